"""The tables of latencies, and expected times compared with a sum over single rows."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from instances import make_exits

from skexit import EENetPolicy, ExitEnsemble, StaticExit, ThresholdPolicy, make_exit_pipeline
from skexit.runtime import ExitLatency, pruned
from skexit.utils._warnings import silenced

N_EXITS = 4


@pytest.fixture(scope="module")
def data():
    return make_exits(400, N_EXITS, 3, random_state=0)


@pytest.fixture(scope="module")
def fitted(data):
    return ThresholdPolicy(budget=0.7).fit(*data)


def draw_latency(sizes=(1, 4, 16), seed=0, n_exits=N_EXITS):
    rng = np.random.default_rng(seed)
    stages, decisions, copies, spread = rng.uniform(0.1, 3, (4, len(sizes), n_exits)) * np.sqrt(sizes)[:, None]
    return ExitLatency(np.array(sizes), stages, decisions, copies, spread, stages.sum(axis=1) * 0.9)


def ms_of_one_row(latency, exit_of_row, observed):
    """Milliseconds of a single row that stops at an exit: its stages, and the decisions that are made."""
    total = 0.0
    for k in range(exit_of_row + 1):
        total += latency.stage_ms[0, k]
        if k in observed:
            total += latency.exit_ms[0, k]
    return total


@pytest.mark.parametrize("seed", range(3))
def test_single_rows_take_the_mean_of_their_times(data, fitted, seed):
    X, latency = data[0], draw_latency(seed=seed)
    for policy, observed in (
        (fitted, {k for k in range(N_EXITS) if fitted.thresholds_[k] < np.inf}),
        (StaticExit(2).fit(*data), {2}),
    ):
        rows = X[:150]
        exits = policy.predict_exit(rows)
        expected = np.mean([ms_of_one_row(latency, k, observed) for k in exits])
        row = latency.expected(policy, rows).loc[1]
        assert row["live_ms"] == pytest.approx(expected)
        assert row["network_ms"] == pytest.approx(latency.network_ms[0])
        assert row["saved"] == pytest.approx(1 - expected / latency.network_ms[0])
        assert row[[f"exit{k}_share" for k in range(N_EXITS)]].tolist() == pytest.approx(
            [np.mean(exits == k) for k in range(N_EXITS)]
        )


def test_times_in_proportion_to_the_rows_are_the_same_per_sample_in_every_batch(data, fitted):
    sizes = np.array([1, 2, 64])
    stages, decisions = sizes[:, None] * np.array([[1.0, 2, 3, 4]]), sizes[:, None] * np.array([[0.1, 0.2, 0.3, 0]])
    latency = ExitLatency(sizes, stages, decisions, 0 * stages, 0 * stages, stages.sum(axis=1))
    live = latency.expected(fitted, data[0][:300])["live_ms"]
    np.testing.assert_allclose(live, live[1])


def test_a_batch_takes_the_time_of_the_rows_that_reach_each_stage(data, fitted):
    latency, X = draw_latency(), data[0]
    exits = fitted.predict_exit(X)
    total = 0.0
    for k in range(exits.max() + 1):
        n_rows = 16 * np.mean(exits >= k)
        assert n_rows >= 1
        for times, counts in ((latency.stage_ms, True), (latency.exit_ms, fitted.thresholds_[k] < np.inf)):
            total += counts * np.interp(n_rows, latency.batch_sizes, times[:, k])
    assert latency.expected(fitted, X).loc[16, "live_ms"] == pytest.approx(total / 16)


def test_without_rows_the_shares_are_those_of_the_fitted_rows(data, fitted):
    latency = draw_latency()
    given_none, given_rows = latency.expected(fitted), latency.expected(fitted, data[0])
    np.testing.assert_allclose(given_none, given_rows, atol=0.01)
    assert given_none.filter(like="share").iloc[0].tolist() == fitted.exit_distribution_.tolist()


@pytest.mark.filterwarnings("ignore:the mean cost on the fitting data")
@pytest.mark.parametrize("policy", [ThresholdPolicy(budget=0.7), EENetPolicy(0.7, max_epochs=2, random_state=0)])
def test_heads_in_a_pipeline_or_apart(data, policy):
    X, y = data
    latency = draw_latency()
    with silenced():
        heads = ExitEnsemble().fit(X, y)
        alone = policy.fit(heads.transform(X), y)
        pipeline = make_exit_pipeline(heads, alone)
        expected = latency.expected(pipeline.fit(X, y), X)
        again = latency.expected(policy.fit(heads.transform(X), y), X, heads=heads)
    np.testing.assert_allclose(expected, again)


def test_pruned_policies_are_expected_to_be_faster(data, fitted):
    latency = draw_latency(seed=1)
    for size in (1, 4, 16):
        before = latency.expected(fitted)["live_ms"][size]
        assert latency.expected(pruned(fitted, latency, size))["live_ms"][size] <= before * 1.02


def test_the_table_is_that_of_the_costs():
    latency = draw_latency()
    table = latency.to_frame()
    assert table.index.names == ["batch_size", "exit"]
    for number, size in enumerate(latency.batch_sizes):
        rows = table.loc[size]
        np.testing.assert_allclose(rows["total_ms"], latency.costs(size))
        np.testing.assert_allclose((rows["stage_ms"] + rows["decision_ms"]).cumsum(), rows["total_ms"])
        np.testing.assert_allclose(rows["network_ms"] * size, latency.network_ms[number])
        np.testing.assert_allclose(rows["decision_ms"] * size, latency.exit_ms[number])


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=5, unique=True), st.floats(1e-3, 1e4), st.integers(1, 12))
def test_print_shows_every_time(sizes, ms, n_exits):
    latency = draw_latency(sorted(sizes), n_exits=n_exits)
    latency = ExitLatency(**{**vars(latency), "network_ms": np.full(len(sizes), ms)})
    title, header, *lines = str(latency).splitlines()
    assert title == "ExitLatency in ms per sample, by batch size"
    assert [int(size) for size in header.split()] == sorted(sizes)
    assert len({*map(len, lines), len(header)}) == 1, "the columns are aligned"
    values = [[float(cell) for cell in line.split()[-len(sizes) :]] for line in lines]
    n_decimals = len(lines[0].split()[-1].partition(".")[2])
    by_size = latency.to_frame()["total_ms"].unstack("exit").to_numpy()
    shown = [ms / np.array(sorted(sizes)), *by_size.T, latency.exit_ms.sum(axis=1) / np.array(sorted(sizes))]
    np.testing.assert_allclose(values, shown, atol=0.51 * 10.0**-n_decimals)
    assert [line[: len("up to exit 11")].strip() for line in lines] == [
        "plain network",
        *[f"up to exit {k}" for k in range(n_exits)],
        "all decisions",
    ]


def test_a_latency_survives_json():
    latency = draw_latency()
    again = ExitLatency.from_dict(json.loads(json.dumps({"runtime": "torch", **latency.to_dict()})))
    for name, times in vars(latency).items():
        np.testing.assert_array_equal(getattr(again, name), times)
        assert getattr(again, name).dtype == times.dtype


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage_ms": [[1.0, 2.0]]}, r"stage_ms \(1, 2\).*one row per batch size, and one column per exit"),
        ({"network_ms": [1.0]}, r"network_ms \(1,\).*Pass the dict that ExitLatency.to_dict returned"),
        ({"stage_ms": 1.0}, r"stage_ms \(\)"),
    ],
)
def test_a_dict_of_other_shapes(change, message):
    with pytest.raises(ValueError, match=message):
        ExitLatency.from_dict(draw_latency().to_dict() | change)


def test_a_dict_without_an_attribute():
    times = draw_latency().to_dict()
    del times["stage_ms"], times["network_ms"]
    with pytest.raises(
        ValueError, match=r"^times has no stage_ms, network_ms\. Pass the dict that ExitLatency\.to_dict"
    ):
        ExitLatency.from_dict(times)


def test_a_policy_with_other_exits(fitted):
    with pytest.raises(
        ValueError, match=r"^the policy has 4 exits, but latency has 2\. Pass the result of measure_lat"
    ):
        draw_latency(n_exits=2).expected(fitted)


def test_a_policy_that_is_not_fitted():
    with pytest.raises(ValueError, match="not fitted"):
        draw_latency().expected(ThresholdPolicy())
