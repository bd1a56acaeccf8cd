"""Scores that combine a learned probability with the confidence of the classifier."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit

from skexit.policies._blending import blend, score_of_mean

LOG_ODDS = st.floats(-30, 30)
#: Weight of the confidence in any score, by which equal scores are ordered.
TIES = 1e-6


@given(LOG_ODDS, LOG_ODDS, st.sampled_from([0.25, 1.0, 3.0]))
def test_log_odds_of_the_product(learned, confidence, weight):
    found = blend(np.array([learned]), np.array([confidence]), weight)[0] - TIES * confidence
    product = expit(learned) * expit(confidence) ** weight
    # 1 - p q**w, without the rounding of the product near 1.
    rest = -np.expm1(-np.log1p(np.exp(-learned)) - weight * np.log1p(np.exp(-confidence)))
    assert found == pytest.approx(np.log(product) - np.log(rest), rel=1e-9, abs=1e-6)


@given(LOG_ODDS, LOG_ODDS)
def test_weight_one_agrees_with_weights_near_one(learned, confidence):
    arrays = np.array([learned]), np.array([confidence])
    assert blend(*arrays, 1.0)[0] == pytest.approx(blend(*arrays, 1 + 1e-9)[0], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("weight", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("size", [-1e4, 1e3, 1e6])
def test_order_of_extreme_log_odds(weight, size):
    """Probabilities are 0 or 1 after rounding, but scores are finite and rise with both."""
    learned = np.array([size, size + 1, size, size + 1])
    confidence = np.array([size, size, size + 1, size + 1])
    scores = blend(learned, confidence, weight)
    assert np.isfinite(scores).all()
    assert scores[0] < scores[1] < scores[3]
    assert scores[0] < scores[2] < scores[3]


@given(st.floats(0.01, 0.99), st.sampled_from([0.0, 0.5, 1.0, 30.0, np.inf]))
def test_score_of_a_mean(probability, weight):
    """If both probabilities are equal, so is their mean."""
    log_odds = np.array([logit(probability)])
    found = blend(log_odds, log_odds, weight)[0] - (0 if np.isinf(weight) else TIES * log_odds[0])
    assert score_of_mean(probability, weight) == pytest.approx(found, rel=1e-6, abs=1e-6)
