"""The checks of skexit.testing find what they are for: each policy here breaks one promise."""

import subprocess
import sys
import warnings
from unittest import SkipTest

import numpy as np
import pytest
from agreement import AgreementPolicy
from sklearn.base import clone
from sklearn.exceptions import SkipTestWarning

from skexit.policies import BudgetedPolicy, ExitPolicy
from skexit.testing import check_policy, parametrize_policy_checks, policy_checks
from skexit.testing._fits import make_data
from skexit.uncertainty import max_probability, softmax


class Confidence(BudgetedPolicy):
    """Keeps all promises."""

    def __init__(self, budget=0.5, *, scale=1.0, random_state=None, heads=None, layout=None):
        self.budget = budget
        self.scale = scale
        self.random_state = random_state
        self.heads = heads
        self.layout = layout

    def score_exit(self, k, logits, features, memory):
        return max_probability(softmax(logits))


class LastThresholdIsFinite(Confidence):
    def apply_budget(self):
        super().apply_budget()
        self.thresholds_[-1] = 0


class ShareIsACount(Confidence):
    def apply_budget(self):
        super().apply_budget()
        self.exit_distribution_ = 151 * self.exit_distribution_


class NoShares(Confidence):
    def record_distribution(self, scores, weight):
        pass


class ClassesAreNumbers(Confidence):
    def fit_policy(self, X, labels, weight):
        self.classes_ = np.unique(labels)
        self.fit_thresholds(X, weight)


class WrongCosts(Confidence):
    def fit_policy(self, X, labels, weight):
        self.costs_ = np.sqrt(self.costs_)
        self.fit_thresholds(X, weight)


class GuessesBeforeFit(Confidence):
    def predict_exit(self, X):
        return super().predict_exit(X) if hasattr(self, "thresholds_") else np.zeros(len(X), dtype=int)


class ThresholdMustBeExceeded(Confidence):
    def predict_exit(self, X):
        return np.argmax(self.exit_scores(X) > 1.01 * self.thresholds_, axis=1)


class AnswersWithTheLastExit(Confidence):
    def predict(self, X):
        return self.predict_at_exits(X)[:, -1]


class LooksAhead(Confidence):
    """Its scores are those of the mean over all exits."""

    def exit_scores(self, X):
        scores = super().exit_scores(X)
        return scores + scores[:, -1:]

    def predict_exit(self, X):
        return np.argmax(self.exit_scores(X) >= self.thresholds_, axis=1)


class RelativeToTheBatch(Confidence):
    def score_exit(self, k, logits, features, memory):
        scores = super().score_exit(k, logits, features, memory)
        return scores - scores.mean()


class NotesAMean(Confidence):
    def score_exit(self, k, logits, features, memory):
        memory["classes"] = logits.mean(0)
        return super().score_exit(k, logits, features, memory)


class HidesEarlierExits(AgreementPolicy):
    def earlier_exits(self, k):
        return range(0)


class HidesFeatures(Confidence):
    def score_exit(self, k, logits, features, memory):
        scores = super().score_exit(k, logits, features, memory)
        return scores if features is None else scores + 0.1 * features[:, 0]


class NeedsFeaturesThatItHides(Confidence):
    def score_exit(self, k, logits, features, memory):
        return features[:, 0]


class StopsOneExitLater(Confidence):
    def predict_exit(self, X):
        return np.minimum(super().predict_exit(X) + 1, len(self.costs_) - 1)


class NumPyOnly(Confidence):
    def score_exit(self, k, logits, features, memory):
        return np.asarray(logits).max(axis=1)


class AlwaysTheLastExit(Confidence):
    def choose_thresholds(self, scores, weight):
        return np.array([*np.full(scores.shape[1] - 1, np.inf), -np.inf])


class AlwaysTheFirstExit(Confidence):
    def choose_thresholds(self, scores, weight):
        return np.full(scores.shape[1], -np.inf)


class AlwaysTheFirstExitWithAWarning(AlwaysTheFirstExit):
    def choose_thresholds(self, scores, weight):
        warnings.warn("some of the budget is left unspent", UserWarning, stacklevel=2)
        return super().choose_thresholds(scores, weight)


class OldShares(Confidence):
    def with_budget(self, budget):
        policy = super().with_budget(budget)
        policy.exit_distribution_ = self.exit_distribution_
        return policy


class AnyBudget(Confidence):
    def _check_budget(self, budget):
        pass


class ChangesItself(Confidence):
    def with_budget(self, budget):
        self.budget = budget
        self.apply_budget()
        return self


class KeepsItsRows(Confidence):
    def fit_policy(self, X, labels, weight):
        self.labels_ = labels
        self.fit_thresholds(X, weight)


class KeepsScoresOfHalfOfItsRows(Confidence):
    def fit_policy(self, X, labels, weight):
        self.half_ = self.fitting_scores(X)[::2]
        self.fit_thresholds(X, weight)


class NeedsItsFitState(Confidence):
    def score_exit(self, k, logits, features, memory):
        scores = super().score_exit(k, logits, features, memory)
        return scores if self.fit_state_ is None else 2 * scores


class RemembersThresholds(Confidence):
    def choose_thresholds(self, scores, weight):
        known = getattr(self, "known_", {})
        self.known_ = {self.budget: super().choose_thresholds(scores, weight)} | known
        return self.known_[self.budget].copy()


class ChangesAParameter(Confidence):
    def fit_policy(self, X, labels, weight):
        self.scale = 2.0
        self.fit_thresholds(X, weight)


class CountsItsFits(Confidence):
    def fit_policy(self, X, labels, weight):
        self.n_fits_ = getattr(self, "n_fits_", 0) + 1
        self.fit_thresholds(X, weight)

    def score_exit(self, k, logits, features, memory):
        return self.n_fits_ * super().score_exit(k, logits, features, memory)


class DrawsAnew(Confidence):
    def fit_policy(self, X, labels, weight):
        self.exponents_ = np.random.default_rng().uniform(1, 2, len(self.costs_))
        self.fit_thresholds(X, weight)

    def score_exit(self, k, logits, features, memory):
        return super().score_exit(k, logits, features, memory) ** self.exponents_[k]


class PenaltyPerWeight(Confidence):
    def fit(self, X, y, sample_weight=None):
        total = len(y) if sample_weight is None else np.sum(sample_weight)
        self.level_ = total / (total + 10)
        return super().fit(X, y, sample_weight)

    def score_exit(self, k, logits, features, memory):
        return self.level_ * super().score_exit(k, logits, features, memory)


class ZeroCountsAsALittle(Confidence):
    def fit(self, X, y, sample_weight=None):
        return super().fit(
            X, y, None if sample_weight is None else np.maximum(sample_weight, 1e-3 * np.max(sample_weight))
        )


class LosesSomethingWhenSaved(CountsItsFits):
    def __getstate__(self):
        return {name: value for name, value in super().__getstate__().items() if name != "n_fits_"}


class CannotBeSaved(Confidence):
    def fit_policy(self, X, labels, weight):
        self.transform_ = lambda scores: scores
        self.fit_thresholds(X, weight)


BROKEN = [
    (LastThresholdIsFinite, "check_fitted_attributes", "the last of thresholds_ is 0"),
    (ShareIsACount, "check_fitted_attributes", "which is not a distribution"),
    (NoShares, "check_fitted_attributes", "exit_distribution_ is None"),
    (ClassesAreNumbers, "check_fitted_attributes", "not those of y"),
    (WrongCosts, "check_fitted_attributes", "not layout_.cost_fractions"),
    (GuessesBeforeFit, "check_not_fitted", "predict_exit raises no NotFittedError"),
    (ThresholdMustBeExceeded, "check_exits_follow_scores", "predict_exit is not the first exit"),
    (AnswersWithTheLastExit, "check_exits_follow_scores", "predict gives other classes"),
    (LooksAhead, "check_causal", "exit_scores up to exit 0 change"),
    (AnswersWithTheLastExit, "check_causal", "samples that have stopped have other predictions"),
    (RelativeToTheBatch, "check_batches", "have other exit_scores"),
    (NotesAMean, "check_memory", "memory['classes'] has the shape (3,) for 151 samples"),
    (HidesEarlierExits, "check_what_scores_need", "has other scores without the others"),
    (HidesFeatures, "check_what_scores_need", "uses_features(0) = False, exit 0 has other scores"),
    (NeedsFeaturesThatItHides, "check_what_scores_need", "not subscriptable"),
    (StopsOneExitLater, "check_one_exit_at_a_time", "151 samples stop at other exits than by predict_exit"),
    (NumPyOnly, "check_torch_tensors", "gives a ndarray for tensors"),
    (AlwaysTheLastExit, "check_budget", "at budget=0.5, the mean cost on the fitting data is 1.0000"),
    (AlwaysTheFirstExit, "check_budget", "more than one sample's cost below the budget, and there is no warning"),
    (OldShares, "check_budget", "but by exit_distribution_ it is 0.5"),
    (AnyBudget, "check_wrong_budgets", "fit accepts budget=0.0"),
    (ChangesItself, "check_with_budget_copies", "with_budget changes the policy"),
    (RemembersThresholds, "check_meet_budget", "at budget=0.5, the mean cost"),
    (KeepsItsRows, "check_without_fit_state", "holds an array or list of 151 rows"),
    (KeepsScoresOfHalfOfItsRows, "check_without_fit_state", "pickles to"),
    (NeedsItsFitState, "check_without_fit_state", "has other exit_scores"),
    (ChangesAParameter, "check_parameters", "fit changes parameters"),
    (CountsItsFits, "check_fitting_again", "the policy has other thresholds_"),
    (DrawsAnew, "check_fitting_again", "the policy has other thresholds_"),
    (PenaltyPerWeight, "check_scaled_weights", "with all weights times 7e6, the policy has other thresholds_"),
    (ZeroCountsAsALittle, "check_zero_weights", "without the rows of zero weight, the policy has other"),
    (LosesSomethingWhenSaved, "check_saving", "n_fits_"),
    (CannotBeSaved, "check_saving", "lambda"),
]


def checks_of(policy):
    return {check.__name__: check for _, check in policy_checks(policy)}


@pytest.mark.parametrize(("kind", "name", "message"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_a_policy_that_breaks_a_promise_is_found(kind, name, message):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - a mistake of the policy may be any error
        checks_of(kind())[name](kind())
    text = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
    assert message in text
    assert f"{kind.__name__}() does not pass {name}" in text


def test_every_check_can_fail():
    assert {name for _, name, _ in BROKEN} == set(checks_of(Confidence()))


@parametrize_policy_checks([Confidence(), Confidence(0.7), AgreementPolicy(), AlwaysTheFirstExitWithAWarning()])
def test_policies_that_keep_their_promises(policy, check):
    check(policy)


def test_a_failure_says_what_to_do():
    with pytest.raises(AssertionError) as caught:
        check_policy(RelativeToTheBatch(budget=0.6))
    assert str(caught.value) == (
        "RelativeToTheBatch(budget=0.6) does not pass check_batches: in a batch of 40 of the 151 rows, in another order, "
        "samples have other exit_scores. Score each sample by itself, and compute in fit_policy what depends on many "
        "samples."
    )


def test_the_policy_is_left_as_it_is():
    policy = Confidence(random_state=np.random.RandomState(0))
    before = vars(clone(policy)).keys()
    check_policy(policy)
    assert vars(policy).keys() == before


def test_another_policy_than_that_of_the_check():
    _, check = next(policy_checks(Confidence()))
    with pytest.raises(AssertionError, match=r"^LastThresholdIsFinite"):
        check(LastThresholdIsFinite())


@pytest.mark.parametrize("policy", [Confidence, ExitPolicy, "policy", None])
def test_what_is_no_policy_is_refused(policy):
    with pytest.raises(TypeError, match="must be an instance of a subclass of skexit"):
        check_policy(policy)


def test_without_torch(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SkipTest, match=r"torch is not installed.*skexit\[torch\]"):
        checks_of(Confidence())["check_torch_tensors"](Confidence())
    with pytest.warns(SkipTestWarning, match="torch is not installed"):
        check_policy(Confidence())


def test_importing_needs_neither_pytest_nor_torch():
    code = "import sys, skexit.testing\nassert not {'pytest', 'torch', 'skops'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_data_is_shared_and_has_what_checks_need():
    assert make_data("main") is make_data("main")
    for name in ("main", "logits", "features", "binary"):
        data = make_data(name)
        assert len(np.unique(data.y)) == len(data.X.layout.classes)
    assert (make_data("weighted").sample_weight == 0).any()
