"""One exit at a time, as in a loop of the user's own."""

import copy
import pickle

import numpy as np
import pytest
from instances import POLICIES, make_exits
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.preprocessing import StandardScaler

from skexit import (
    ExitEnsemble,
    ExitHeads,
    OptimalStoppingPolicy,
    StaticExit,
    ThresholdPolicy,
    make_exit_pipeline,
    recommended_pipeline,
    stack_exits,
)
from skexit.policies import ExitState

torch = pytest.importorskip("torch")

N_EXITS = 3
pytestmark = pytest.mark.filterwarnings("ignore:the mean cost on the fitting data:UserWarning")


@pytest.fixture(scope="module")
def blocks():
    """Logits, features and labels of classes that are not in the order of the alphabet."""
    X, y = make_exits(150, N_EXITS, 3, 0)
    names = np.array(["owl", "cat", "dog"])
    return [X.logits(k) for k in range(N_EXITS)], [X.features(k) for k in range(N_EXITS)], names[y], names


@pytest.fixture(scope="module")
def data(blocks):
    logits, features, y, names = blocks
    return stack_exits(logits, features, classes=names), y


@pytest.fixture(scope="module")
def on_features(blocks):
    """Logits at the last exit alone."""
    logits, features, y, names = blocks
    return stack_exits([None, None, logits[2]], features, classes=names), y


def walk(policy, X, as_array=np.asarray):
    """Exits, labels and probabilities, by a loop over the exits."""
    exits, labels = np.full(len(X), -1), np.empty(len(X), dtype=policy.classes_.dtype)
    probabilities = np.empty((len(X), len(policy.classes_)))
    rows, state = np.arange(len(X)), None
    for k in range(X.layout.n_exits):
        logits, features = (
            None if block is None or not block.shape[1] else as_array(block)
            for block in (X.logits(k, rows), X.features(k, rows))
        )
        step = policy.decide(k, logits, features, state)
        leaves, state = step
        assert type(leaves) is type(as_array(rows))
        leaves = np.asarray(leaves)
        assert leaves.dtype == bool
        if leaves.any():
            exits[rows[leaves]] = k
            labels[rows[leaves]] = policy.classes_[np.asarray(step.logits)[leaves].argmax(axis=1)]
            probabilities[rows[leaves]] = np.asarray(step.probabilities)[leaves]
        rows = rows[~leaves]
        np.testing.assert_array_equal(np.asarray(state.rows), rows)
    assert len(state) == 0
    return exits, labels, probabilities


def assert_same_as_at_once(policy, X, as_array=np.asarray):
    exits, labels, probabilities = walk(policy, X, as_array)
    np.testing.assert_array_equal(exits, policy.predict_exit(X))
    np.testing.assert_array_equal(labels, policy.predict(X))
    np.testing.assert_allclose(probabilities, policy.predict_proba(X), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_equals_predict_exit(policy, data):
    X, y = data
    policy = clone(policy).fit(X, y).calibrate(X, y)
    for as_array in (np.asarray, torch.from_numpy):
        assert_same_as_at_once(policy, X, as_array)
    for row in range(5):
        assert_same_as_at_once(policy, X[row : row + 1])


@pytest.mark.parametrize(
    "estimator",
    [
        ThresholdPolicy(budget=0.6),
        OptimalStoppingPolicy(0.6, random_state=0, heads=ExitHeads((4,), cascade=True, max_epochs=2, random_state=0)),
        make_exit_pipeline(ExitHeads(random_state=0), ExitEnsemble(), ThresholdPolicy("vote", budget=0.8)),
        recommended_pipeline(0.6, random_state=0).set_params(ensemble__heads__max_epochs=2),
        make_exit_pipeline("passthrough", ExitHeads(random_state=0), StaticExit(1)),
    ],
    ids=repr,
)
def test_heads_and_pipelines(estimator, on_features):
    X, y = on_features
    fitted = clone(estimator).fit(X, y)
    for as_array in (np.asarray, torch.from_numpy):
        assert_same_as_at_once(fitted, X, as_array)
    assert_same_as_at_once(fitted, X[:1])


def test_other_containers(data):
    X, y = data
    policy = ThresholdPolicy("vote").fit(X, y)
    expected = policy.decide(0, X.logits(0)).leaves
    gradients = torch.tensor(X.logits(0), requires_grad=True)
    for logits in (X.logits(0).tolist(), gradients, np.asfortranarray(X.logits(0))):
        np.testing.assert_array_equal(np.asarray(policy.decide(0, logits).leaves), expected)


def test_samples_are_dropped_by_indexing_the_state(data):
    X, y = data
    policy = ThresholdPolicy("vote", budget=0.9).fit(X, y)
    leaves, state = policy.decide(0, X.logits(0))
    stay = np.flatnonzero(~leaves)
    every_other = np.arange(len(stay)) % 2 == 0
    expected = policy.decide(1, X.logits(1, stay), state=state).leaves
    for kept in (every_other, np.flatnonzero(every_other), slice(None, None, 2)):
        again = pickle.loads(pickle.dumps(state[kept]))
        np.testing.assert_array_equal(again.rows, stay[every_other])
        found, _ = policy.decide(1, X.logits(1, stay[every_other]), state=again)
        np.testing.assert_array_equal(found, expected[every_other])


def test_a_state_can_be_passed_again(data):
    X, y = data
    policy = ThresholdPolicy("vote", budget=0.9).fit(X, y)
    leaves, state = policy.decide(0, X.logits(0))
    assert len(state) > 0
    before = copy.deepcopy(state._memories)
    first, second = (policy.decide(1, X.logits(1)[~leaves], state=state) for _ in range(2))
    np.testing.assert_array_equal(first.leaves, second.leaves)
    assert all(np.array_equal(value, state._memories[-1][name]) for name, value in before[-1].items())


def test_what_the_policy_does_not_look_at_may_be_left_out(data):
    X, y = data
    policy = StaticExit(1).fit(X, y)
    leaves, state = policy.decide(0, X.logits(0))
    assert not leaves.any()
    assert policy.decide(0, X.logits(0)).probabilities is None
    assert policy.decide(1, X.logits(1), state=state).leaves.all()
    assert policy.decide(1, X.logits(1)).leaves.all()  # nothing of exit 0 matters there
    assert len(ThresholdPolicy().fit(X, y).decide(0, X.logits(0)).logits) == len(X)


def test_before_fit(data):
    for estimator in (ThresholdPolicy(), make_exit_pipeline(ExitEnsemble(), ThresholdPolicy())):
        with pytest.raises(NotFittedError):
            estimator.decide(0, data[0].logits(0))


class TestErrors:
    @pytest.mark.parametrize("k", [-1, 3, 1.0, None, "0"])
    def test_no_such_exit(self, k, data):
        policy = ThresholdPolicy().fit(*data)
        with pytest.raises(ValueError, match=r"k=.* must be the number of an exit, 0 to 2"):
            policy.decide(k, data[0].logits(0))

    @pytest.mark.parametrize(
        ("logits", "message"),
        [
            (None, "logits=None at exit 0"),
            (np.zeros(3), r"shape \(3,\).* pass \(n_samples, 3\), one row for a single sample"),
            (np.zeros((2, 4)), r"shape \(2, 4\)"),
            (np.array([[0, 1, np.nan]]), "logits of exit 0 contain NaN"),
            (torch.tensor([[0, 1, np.inf]]), "logits of exit 0 contain NaN or infinity"),
        ],
    )
    def test_wrong_logits(self, logits, message, data):
        policy = ThresholdPolicy().fit(*data)
        with pytest.raises(ValueError, match=message):
            policy.decide(0, logits)

    def test_logits_and_features_that_are_not_the_network_s(self, on_features):
        X, y = on_features
        policy = ThresholdPolicy().fit(X, y)
        with pytest.raises(ValueError, match=r"features=None at exit 0, but the policy needs 4 features"):
            policy.decide(0, state=ExitState(np.arange(2), [{}, {}]))
        with pytest.raises(ValueError, match=r"logits of exit 0 .* leave out logits"):
            policy.decide(0, np.zeros((5, 3)), X.features(0)[:5])
        with pytest.raises(ValueError, match=r"pass logits or features at exit 0"):
            StaticExit(1).fit(X, y).decide(0)

    def test_other_rows_than_those_of_the_state(self, data):
        X, y = data
        policy = ThresholdPolicy().fit(X, y)
        state = policy.decide(0, X.logits(0)).state
        with pytest.raises(ValueError, match=rf"exit 1 was given 150 rows, but {len(state)} samples are running"):
            policy.decide(1, X.logits(1), state=state)
        with pytest.raises(ValueError, match=r"exit 0 was given 149 rows, but 150"):
            policy.decide(0, X.logits(0), X.features(0)[1:])

    def test_exits_in_another_order(self, data):
        X, y = data
        policy = ThresholdPolicy("vote", budget=0.9).fit(X, y)
        with pytest.raises(ValueError, match=r"exit 1 depends on exits \[0\], at which decide was not called"):
            policy.decide(1, X.logits(1))
        state = policy.decide(0, X.logits(0)).state
        with pytest.raises(ValueError, match=r"k=0, but the state comes from exit 0"):
            policy.decide(0, X.logits(0, state.rows), state=state)
        with pytest.raises(ValueError, match=r"k=2, but no sample reaches this exit: all stop at exit 1"):
            StaticExit(1).fit(X, y).decide(2, X.logits(2))

    def test_another_state(self, data):
        X, y = data
        pipeline = make_exit_pipeline(ExitEnsemble(), ThresholdPolicy()).fit(X, y)
        leaves, state = pipeline.decide(0, X.logits(0))
        for wrong in (state, {}):
            with pytest.raises(
                ValueError, match=r"state=.* must be None, or the state that decide of this policy returned"
            ):
                pipeline[-1].decide(1, X.logits(1)[~leaves], state=wrong)

    def test_steps_without_exit_logits(self, data):
        X, y = data
        scaled = make_exit_pipeline(StandardScaler(), ThresholdPolicy(layout=X.layout)).fit(np.asarray(X), y)
        with pytest.raises(ValueError, match=r"StandardScaler has no exit_logits"):
            scaled.decide(0, X.logits(0), X.features(0))
