"""Confidence scores, calibration, prediction sets, and p-values of a risk."""

from skexit.uncertainty._calibration import expected_calibration_error
from skexit.uncertainty._conformal import conformal_threshold, coverage_score, inefficiency_score
from skexit.uncertainty._mixing import fit_mixture, mix
from skexit.uncertainty._risk import betting_p_value, binomial_p_value
from skexit.uncertainty._scores import log_odds, margin, max_probability, normalized_entropy, softmax, vote
from skexit.uncertainty._temperature import fit_temperature

__all__ = [
    "betting_p_value",
    "binomial_p_value",
    "conformal_threshold",
    "coverage_score",
    "expected_calibration_error",
    "fit_mixture",
    "fit_temperature",
    "inefficiency_score",
    "log_odds",
    "margin",
    "max_probability",
    "mix",
    "normalized_entropy",
    "softmax",
    "vote",
]
