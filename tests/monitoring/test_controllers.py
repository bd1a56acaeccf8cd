"""Controllers keep their target on any sequence of inputs."""

import copy
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instances import POLICIES
from rows import make_rows
from threads import frequent_switches

from skexit import OptimalStoppingPolicy, RiskControlledPolicy, StaticExit, ThresholdPolicy, stack_exits
from skexit.monitoring import BudgetController, RiskController
from skexit.monitoring._thresholds import ThresholdTable
from skexit.utils._warnings import silenced

X, Y = make_rows()
POLICY = ThresholdPolicy(budget=0.6).fit(X, Y)


def make_capped():
    """A policy that leaves some of its budget unspent, as its last exit is worse than the one before."""
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=2000)
    logits = [scale * np.eye(3)[y] + rng.normal(size=(2000, 3)) for scale in (1, 4, 1)]
    X = stack_exits(logits, costs=[0.2, 0.5, 1.0], classes=[0, 1, 2])
    with silenced():
        return OptimalStoppingPolicy(budget=0.9, random_state=0).fit(X, y), X


CAPPED = make_capped()[0]


@pytest.fixture(autouse=True, scope="module")
def one_table_of_thresholds():
    """A table takes a quarter of a second, and hundreds of controllers are of the same policy."""
    make = ThresholdTable.from_policy
    table = make(POLICY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ThresholdTable, "from_policy", lambda policy: table if policy is POLICY else make(policy))
        yield


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 1000), st.sampled_from([0.25, 0.4, 0.6, 0.95]), st.sampled_from([0.005, 0.02, 0.3]), st.booleans()
)
def test_budget_holds_for_any_order(seed, budget, step, is_sorted):
    hard, _ = make_rows(300, seed, signal=0.5 + seed % 3)
    if is_sorted:
        hard = hard[np.argsort(POLICY.exit_scores(hard)[:, 0])]
    controller = BudgetController(POLICY, budget, step=step)
    exits = controller.predict_exit(hard)
    assert controller.mean_cost == pytest.approx(POLICY.costs_[exits].mean())
    assert abs(controller.mean_cost - budget) <= controller.bound + 1e-9


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=60), st.integers(0, 2**31))
def test_budget_holds_against_an_adversary(sizes, seed):
    """Scores are drawn anew for each batch, to be as bad as can be: all leave, or none, whatever thresholds allow."""
    rng, controller = np.random.default_rng(seed), BudgetController(POLICY, 0.5, step=0.05)
    for size in sizes:
        thresholds = controller.thresholds
        score = rng.choice([-1e3, 1e3, 0.0])
        exits = np.full(size, int(np.argmax(score >= thresholds)))
        controller.update(exits)
    assert abs(controller.mean_cost - 0.5) <= controller.bound + 1e-9


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    n_processes=st.integers(1, 12), size=st.integers(1, 30), step=st.sampled_from([0.02, 0.2]), seed=st.integers(0, 99)
)
def test_budget_holds_where_processes_decide_before_others_count(n_processes, size, step, seed):
    """All decide by the state as it was, and then count, one after the other."""
    first = BudgetController(POLICY, 0.5, step=step)
    controllers = [first, *(copy.copy(first) for _ in range(n_processes - 1))]  # of one state
    period = 1 + seed % 5
    for turn in range(2000 // (n_processes * size) + 1):
        score = 1e3 if turn // period % 2 == 0 else -1e3
        stops = [int(np.argmax(score >= controller.thresholds)) for controller in controllers]
        for controller, stop in zip(controllers, stops, strict=True):
            controller.update(np.full(size, stop))
        in_flight = n_processes * size
        bound = 2 * 0.8 / (min(step, 0.5 / in_flight) * first.n_samples)
        assert abs(first.mean_cost - 0.5) <= bound + 1e-9
        assert first.bound == pytest.approx(bound)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_every_policy_keeps_its_budget(policy, fitted_policies):
    fitted, rows = fitted_policies(policy)
    if getattr(fitted, "fit_state_", None) is None or fitted.budget is None or not hasattr(fitted, "with_budget"):
        with pytest.raises(ValueError, match="has no budget"):
            BudgetController(fitted)
        return
    controller = BudgetController(fitted, step=0.05)
    exits = controller.predict_exit(rows)
    assert controller.mean_cost == pytest.approx(fitted.costs_[exits].mean())
    assert controller.mean_cost <= fitted.budget + controller.bound + 1e-9


def test_thresholds_are_those_of_the_policy_at_the_nominal_budget():
    controller = BudgetController(POLICY)
    table = controller._table
    for row in (20, 100, 180):
        expected = POLICY.with_budget(table.budgets[row]).thresholds_
        np.testing.assert_allclose(table.thresholds[row], expected)
    assert (table.thresholds[-1, :-1] == np.inf).all()
    assert table.thresholds[0, 0] == -np.inf


def test_a_table_of_many_rows_is_made_from_some_of_them():
    X, y = make_rows(20_000)
    policy = ThresholdPolicy(budget=0.6).fit(X[:10_000], y[:10_000])
    table = BudgetController(policy)._table
    for row in (20, 100, 180):
        cost = policy.costs_[np.argmax(policy.exit_scores(X[10_000:]) >= table.thresholds[row], axis=1)].mean()
        assert cost == pytest.approx(table.budgets[row], abs=0.02)


def test_batches_and_rows_learn_the_same_sum():
    one, other = BudgetController(POLICY, step=0.001), BudgetController(POLICY, step=0.001)
    exits = np.array([0, 3, 3, 1])
    one.update(exits)
    for exit_ in exits:
        other.update([exit_])
    assert one.nominal_budget == pytest.approx(other.nominal_budget)
    assert one.n_samples == other.n_samples == 4


def test_large_batches_lower_the_step_until_they_come_no_more():
    controller = BudgetController(POLICY, step=0.1)
    controller.update(np.zeros(100, dtype=int))
    bound = controller.bound
    assert bound == pytest.approx(2 * 0.8 / (0.5 / 100 * 100))
    assert controller.to_dict()["step"] == pytest.approx(0.5 / 100)
    controller.update([0])
    assert controller.bound < bound
    for _ in range(20 * 100):
        controller.update([0])
    assert controller.to_dict()["step"] == 0.1
    # What the large batch did is not undone.
    assert controller.bound == pytest.approx(2 * 0.8 / (0.5 / 100 * controller.n_samples))


def test_batches_that_run_at_the_same_time_say_when_they_were_decided():
    controller = BudgetController(POLICY, step=0.1)
    first = controller.n_samples
    controller.update(np.zeros(30, dtype=int), decided_at=first)
    controller.update(np.zeros(10, dtype=int), decided_at=first)
    assert controller.to_dict()["step"] == pytest.approx(0.5 / 40)
    controller.update([0], decided_at=10**6)  # of a state that was lost
    assert controller.n_samples == 41
    with pytest.raises(ValueError, match="decided_at=-1 must be a value of n_samples"):
        controller.update([0], decided_at=-1)


def test_threads_share_a_controller():
    controller = BudgetController(POLICY, step=0.001)

    def update(_):
        for _ in range(300):
            controller.update([0, 3], decided_at=controller.n_samples)
            assert controller.thresholds.shape == (4,)

    with frequent_switches(), ThreadPoolExecutor(4) as pool:
        list(pool.map(update, range(4)))
    assert controller.n_samples == 2400
    assert controller.mean_cost == pytest.approx(0.6)


def test_harm_is_not_bought():
    """Where later exits are worse, the policy leaves some of the budget unspent, and so does its controller."""
    policy, X = make_capped()
    with pytest.warns(UserWarning, match="unspent"):
        policy.with_budget(0.9)
    controller = BudgetController(policy)
    exits = controller.predict_exit(X)
    assert np.mean(exits < 2) > 0.99
    assert controller.nominal_budget <= 1


def test_pipelines_and_searches(digits_pipeline):
    pipeline, X = digits_pipeline
    controller = BudgetController(pipeline, step=0.05)
    controller.predict_exit(X)
    assert abs(controller.mean_cost - pipeline[-1].budget) <= controller.bound + 1e-9


def test_saved_and_loaded(tmp_path):
    controller = BudgetController(POLICY)
    controller.update([0, 1, 3])
    joblib.dump(controller, tmp_path / "controller.joblib")
    loaded = joblib.load(tmp_path / "controller.joblib")
    assert loaded.n_samples == 3
    assert loaded.nominal_budget == controller.nominal_budget
    np.testing.assert_array_equal(loaded.thresholds, controller.thresholds)
    described = json.loads(json.dumps(controller.to_dict()))
    assert described["n_samples"] == 3
    assert len(described["table"]["thresholds"][0]) == 4


@pytest.mark.slow
def test_processes_share_a_state(tmp_path):
    controller = BudgetController(POLICY, path=tmp_path / "state.json")
    joblib.dump(controller, tmp_path / "controller.joblib")
    code = (
        "import joblib, sys\n"
        "controller = joblib.load(sys.argv[1])\n"
        "for _ in range(50):\n"
        "    controller.update([0, 3])\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "controller.joblib")]
    for process in [subprocess.Popen(command) for _ in range(3)]:
        assert process.wait() == 0
    assert controller.n_samples == 300
    assert controller.mean_cost == pytest.approx(0.6)


def test_a_file_that_holds_no_state(tmp_path):
    path = tmp_path / "state.json"
    controller = BudgetController(POLICY, path=path)
    controller.update([0])
    written = path.read_text()
    for text in ("[]", "{}", "x", written.replace("1", "NaN"), written.replace("0.6", '"0.6"')):
        path.write_text(text)
        for call in (lambda: controller.update([0]), lambda: BudgetController(POLICY, path=path)):
            with pytest.raises(ValueError, match="is not a state of this controller"):
                call()
    path.write_text(written)
    with pytest.raises(ValueError, match=r"its target is 0.6, not 0.5"):
        BudgetController(POLICY, 0.5, path=path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        BudgetController(POLICY, path=tmp_path / "nowhere" / "state.json")
    with pytest.raises(
        IsADirectoryError, match=r"^path='.*' is a folder; give the name of a file, such as '.*name'\.$"
    ):
        BudgetController(POLICY, path=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 0.1}, "budget=0.1"),
        ({"budget": 1.5}, r"budget=1.5 must be in \(0, 1\]"),
        ({"step": 0}, r"step=0 must be a number in \(0, 1\]"),
        ({"step": True}, r"step=True must be a number in \(0, 1\]"),
    ],
)
def test_wrong_parameters(arguments, message):
    with pytest.raises(ValueError, match=message):
        BudgetController(POLICY, **arguments)


@pytest.mark.parametrize("policy", [StaticExit(0), RiskControlledPolicy(alpha=0.2, random_state=0)], ids=str)
def test_policies_without_a_budget(policy):
    with pytest.raises(ValueError, match="has no budget"):
        BudgetController(policy.fit(X, Y))


def test_a_shipped_policy():
    with pytest.raises(ValueError, match="Make the controller from the policy that was fitted"):
        BudgetController(POLICY.without_fit_state())


@pytest.mark.parametrize("exits", [[4], [-1], [0.5], [[0, 1]]])
def test_wrong_exits(exits):
    with pytest.raises(ValueError, match="pass the number of an exit, 0 to 3"):
        BudgetController(POLICY).update(exits)


@pytest.mark.parametrize("alpha", [0.02, 0.2])
@pytest.mark.parametrize("size", [1, 3, 50])
@pytest.mark.parametrize("policy", [POLICY, CAPPED], ids=["budget", "capped"])
def test_risk_holds_in_the_long_run(policy, size, alpha):
    """All that leave early are wrong: only the last exit is safe, and the level must not forget what was lost."""
    controller, n = RiskController(policy, alpha), 5000
    width, step = policy.costs_[-1] - policy.costs_[0], min(0.05, 0.5 / size)
    for _ in range(n // size):
        leaves_early = (controller.thresholds[:-1] < np.inf).any()
        controller.update(np.full(size, float(leaves_early)))
    assert controller.mean_loss <= alpha + (width + 1) / (step * controller.n_samples) + 1e-9


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=300), st.sampled_from([0.02, 0.2]))
def test_risk_holds_for_any_losses(losses, alpha):
    """An adversary has a loss wherever samples leave early; at the last exit there is none."""
    controller = RiskController(POLICY, alpha)
    for loss in losses:
        leaves_early = (controller.thresholds[:-1] < np.inf).any()
        controller.update([loss if leaves_early else 0.0])
    n = len(losses)
    assert controller.mean_loss <= alpha + (0.8 + 1) / (0.05 * n) + 1e-9


@pytest.mark.parametrize("losses", [[1.1], [-0.1], [[0, 1]], [np.nan]])
def test_wrong_losses(losses):
    with pytest.raises(ValueError, match=r"pass a number in \[0, 1\]"):
        RiskController(POLICY, 0.1).update(losses)


@pytest.mark.parametrize("late", [1, 10, 100])
def test_risk_holds_where_labels_come_late(late):
    """The loss comes only when more samples have been answered; the step stays as it is."""
    controller, waiting = RiskController(POLICY, 0.1), []
    for _ in range(4000):
        waiting.append(float((controller.thresholds[:-1] < np.inf).any()))
        if len(waiting) == late:
            controller.update([waiting.pop(0)])
    n = controller.n_samples
    assert controller.mean_loss <= 0.1 + (0.8 + 1) / (0.05 * n) + late / n + 1e-9


def test_wrong_alpha():
    with pytest.raises(ValueError, match="alpha=1 must be in"):
        RiskController(POLICY, 1)
