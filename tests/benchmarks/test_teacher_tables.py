"""Tables of heads that learn from the deepest head: what `auto` chooses, and gains on the same draws."""

import pandas as pd

from benchmarks.heads.deepest_head import SHARES, accuracies, gains, keep, with_auto


def results_of(accuracy):
    """Two draws, budgets of 30 and 40 %; `accuracy` gives that of a share and a draw."""
    keys = [(share, draw, budget) for draw in (0, 1) for share in SHARES for budget in (0.3, 0.4)]
    rows = [
        {"data": "D", "rows": 9, "draw": d, "teacher": s, "budget": b, "accuracy": accuracy(s, d)} for s, d, b in keys
    ]
    return pd.DataFrame(rows).assign(cost=0.3, cost_of_heads=0.01, seconds=5.0)


def test_auto_is_the_share_that_the_trial_chooses():
    results = results_of(lambda share, draw: 0.5 + 0.1 * draw + share / 10)
    trials = pd.DataFrame({"data": "D", "rows": 9, "draw": [0, 1], "share": SHARES, "seconds": [1.0, 3.0]})
    with_all = with_auto(results, trials)
    auto = with_all[with_all["teacher"] == "auto"]
    assert auto["accuracy"].round(3).tolist() == [0.5, 0.5, 0.665, 0.665]
    assert auto["seconds"].tolist() == [6, 6, 8, 8]
    table = accuracies(with_all).set_index("teacher")
    assert table["30 %"].round(1).to_dict() == {"labels alone": 55, "0.65": 61.5, "auto": 58.2}
    assert table.loc["auto", ["draws", "cost of heads", "seconds"]].tolist() == [2, 1, 7]
    cells = gains(with_all).set_index("teacher")["40 %"].to_dict()
    assert cells == {"0.65": "+6.5 ± 0.0", "auto": "+3.2 ± 3.2"}


def test_one_draw_has_no_standard_error():
    results = results_of(lambda share, draw: 0.5 + share / 10)
    trials = pd.DataFrame({"data": ["D"], "rows": [9], "draw": [0], "share": [0.65], "seconds": [1.0]})
    cells = gains(with_auto(results[results["draw"] == 0], trials)).set_index("teacher")["30 %"].to_dict()
    assert cells == {"0.65": "+6.5", "auto": "+6.5"}


def test_what_is_measured_is_kept(tmp_path):
    file, calls = tmp_path / "draws.csv", []

    def measure():
        calls.append(1)
        return pd.DataFrame({"accuracy": [0.1 * len(calls), 0.5]})

    for draw in (0, 1, 0):
        keep(file, {"data": "D", "draw": draw}, measure)
    assert pd.read_csv(file).to_numpy().tolist() == [["D", 0, 0.1], ["D", 0, 0.5], ["D", 1, 0.2], ["D", 1, 0.5]]
