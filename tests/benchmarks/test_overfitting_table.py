"""The table of heads with and without the trial of overfitting: means over draws, with standard errors."""

import numpy as np
import pandas as pd
import pytest

from benchmarks.heads.overfitting import table_of, without_trial
from skexit import ExitHeads, stack_exits

RESULTS = pd.DataFrame(
    {
        "data": "D",
        "rows": 9,
        "draw": [0, 1, 0],
        "heads": ["linear", "linear", "recommended"],
        "mean of exits": [0.5, 0.6, 0.7],
        "30 %": [0.4, 0.4, 0.8],
        "50 %": 0.5,
        "70 %": 0.6,
        "overfits": [False, True, True],
        "seconds": [1.0, 2.0, 4.0],
    }
)


def test_table():
    table = table_of(RESULTS).set_index("heads")
    assert table.loc["linear", ["mean of exits", "30 %"]].tolist() == ["55.0 ± 5.0", "40.0 ± 0.0"]
    assert table.loc["recommended", ["mean of exits", "30 %"]].tolist() == ["70.0", "80.0"]
    assert table["strong in draws"].tolist() == ["1 of 2", "1 of 1"]
    assert table["seconds"].tolist() == [1.5, 4.0]


@pytest.mark.parametrize("n_rows", [120, 6000])
def test_heads_without_a_trial_have_the_usual_penalty_and_dropout(n_rows):
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=n_rows)
    X = stack_exits(features=[rng.normal(size=(n_rows, 3)) + y[:, None]])
    alone, usual = (
        heads.set_params(hidden_layer_sizes=(2,), max_epochs=1).fit(X, y)
        for heads in (without_trial(0, n_rows), ExitHeads(dropout="auto", random_state=0))
    )
    assert not alone.overfits_
    assert alone._head_training().penalty(n_rows) == usual._head_training().penalty(n_rows) / (
        10 if usual.overfits_ else 1
    )
