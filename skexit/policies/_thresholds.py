"""Confidence thresholds, as in BranchyNet, MSDNet and PABEE."""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted, has_fit_parameter

from skexit.data import ExitArray, ExitLayout
from skexit.policies._base import ExitPolicy
from skexit.policies._budgeted import BudgetedPolicy
from skexit.policies._decision import gives_logits, unfrozen
from skexit.policies._quotas import quota_thresholds, shared_threshold
from skexit.uncertainty import vote
from skexit.uncertainty._scores import CRITERIA, count_votes
from skexit.utils._module_names import set_module
from skexit.utils._sklearn import HasMethods, StrOptions

Floats = NDArray[np.float64]


@set_module("skexit")
class ThresholdPolicy(BudgetedPolicy):
    """Stop at the first exit that is confident enough, within a budget.

    With the geometric schedule, these are the baselines of the EENet paper: BranchyNet [1]_ with
    ``criterion="entropy"``, MSDNet [2]_ with ``criterion="max_prob"``, and PABEE [3]_ with ``criterion="vote"``.

    Parameters
    ----------
    criterion : {"max_prob", "entropy", "margin", "vote"} or policy, default="max_prob"
        Score by which samples leave: the largest probability (EENet, eq. 5), one minus the normalised entropy (eq. 6),
        the largest probability minus the second largest, or the share of the exits so far that agree (eq. 7); see
        Notes. ``"vote"`` has few values, so that it cannot meet every budget; a warning names the budget and the mean
        cost. With another policy, samples leave by the ``exit_scores`` of this policy. A copy of it is fitted to the
        same data, unless it is in a :class:`sklearn.frozen.FrozenEstimator`. Both policies use the same logits, so pass
        `heads` to the outer policy only.
    schedule : {"geometric", "shared"}, default="geometric"
        ``"geometric"``: the share of samples that leave at exit k is proportional to ``q ** k``, with the
        q that meets the budget. ``"shared"``: the same threshold at every exit.
    budget : float, default=0.5
        Mean cost of a sample on the fitting data, as a fraction in (0, 1] of the network's cost.
    %(use_most_confident)s
    %(heads)s
    %(layout)s

    Attributes
    ----------
    %(thresholds)s
    policy_ : policy or None
        The policy that gives the scores, if `criterion` is a policy.
    %(policy_attributes)s

    Notes
    -----
    Probabilities near 1 differ by less than rounding. Scores and thresholds t are therefore on a scale without an
    upper limit: ``scipy.special.expit(t)`` is the largest probability, ``1 - numpy.exp(-t)`` is one minus the
    normalised entropy, and ``numpy.tanh(t / 2)`` is the margin. The score of ``"vote"`` is the share of exits
    itself.

    References
    ----------
    .. [1] Teerapittayanon et al. "BranchyNet: Fast inference via early exiting from deep neural
       networks." ICPR 2016.
    .. [2] Huang et al. "Multi-scale dense networks for resource efficient image classification."
       ICLR 2018.
    .. [3] Zhou et al. "BERT loses patience: Fast and robust inference with early exit." NeurIPS
       2020.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skexit import ThresholdPolicy
    >>> X, y = load_digits(return_X_y=True)
    >>> policy = ThresholdPolicy(budget=0.75, layout=2).fit(X, y)
    >>> policy.exit_distribution_.round(2)
    array([0.5, 0.5])
    >>> policy.with_budget(0.6).exit_distribution_.round(2)
    array([0.8, 0.2])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BudgetedPolicy._parameter_constraints,
        "criterion": [StrOptions({*CRITERIA, "vote"}), HasMethods(["exit_scores"])],
        "schedule": [StrOptions({"geometric", "shared"})],
        "budget": [Real],
        "use_most_confident": ["boolean"],
    }

    def __init__(
        self,
        criterion: Any = "max_prob",
        *,
        schedule: str = "geometric",
        budget: float = 0.5,
        use_most_confident: bool = False,
        heads: Any = None,
        layout: ExitLayout | int | None = None,
    ) -> None:
        self.criterion = criterion
        self.schedule = schedule
        self.budget = budget
        self.use_most_confident = use_most_confident
        self.heads = heads
        self.layout = layout

    def uses_features(self, k: int) -> bool:
        return self.policy_ is not None and self.policy_.uses_features(k)

    def earlier_exits(self, k: int) -> range:
        return range(k if self.policy_ is not None or self.criterion == "vote" else 0)

    def score_exit(self, k: int, logits: Any, features: Any, memory: dict[str, Any]) -> Any:
        if self.policy_ is not None:
            return self.policy_.score_exit(k, logits, features, memory)
        if self.criterion == "vote":
            memory["votes"] = count_votes(logits, memory.get("votes"))
            return vote(memory["votes"])
        return CRITERIA[self.criterion](logits)

    def fit_policy(
        self, X: ExitArray, labels: NDArray[np.int64], weight: Floats, groups: NDArray[np.int64] | None = None
    ) -> None:
        self.policy_ = None if isinstance(self.criterion, str) else self._fit_criterion(X, labels, weight, groups)
        self.fit_thresholds(X, weight)

    def _fit_criterion(
        self, X: ExitArray, labels: NDArray[np.int64], weight: Floats, groups: NDArray[np.int64] | None
    ) -> ExitPolicy:
        self._check_criterion()
        if not isinstance(self.criterion, FrozenEstimator):
            given = {"groups": groups} if has_fit_parameter(self.criterion, "groups") else {}
            return clone(self.criterion).fit(X, self.classes_[labels], sample_weight=weight, **given)
        policy = self.criterion.estimator
        if policy.layout_.n_logits != X.layout.n_logits or policy.layout_.n_features != X.layout.n_features:
            raise ValueError(
                f"criterion is a {type(policy).__name__} fitted with {policy.layout_}, but the exits here have "
                f"{X.layout}. Fit it on the same exits, or pass it without FrozenEstimator to fit a copy."
            )
        return policy

    def _check_criterion(self) -> None:
        """Raise a ValueError unless the criterion can score the logits of this policy's predictions."""
        policy = unfrozen(self.criterion)
        name = type(policy).__name__
        if not isinstance(policy, ExitPolicy):
            raise ValueError(
                f"criterion is a {name}, which is not a policy. If it is a pipeline, pass the policy at its end, and "
                "put this policy there: make_exit_pipeline(..., ThresholdPolicy(criterion=policy))."
            )
        is_frozen = policy is not self.criterion
        if is_frozen:
            check_is_fitted(policy)
        elif not has_fit_parameter(policy, "sample_weight"):
            raise ValueError(
                f"criterion is a {name}, which cannot be fitted with weights. Pass the policy inside it instead."
            )
        heads = unfrozen(policy.heads_ if is_frozen else getattr(policy, "heads", None))
        if gives_logits(heads) and heads is not unfrozen(self.heads_):
            cure = "heads=FrozenEstimator(criterion.heads_)" if is_frozen else "heads=..., and heads=None to criterion"
            raise ValueError(
                f"criterion is a {name} with its own heads, {heads!r}: it would score other logits than those of this "
                f"policy's predictions. Pass these heads to this policy: {cure}."
            )
        if getattr(policy, "use_most_confident", False) and not self.use_most_confident:
            raise ValueError(
                f"criterion is a {name} with use_most_confident=True, so that it would score other logits than those "
                "of this policy's predictions. Set use_most_confident=True for this policy, too."
            )

    def choose_thresholds(self, scores: Floats, weight: Floats) -> Floats:
        choose = shared_threshold if self.schedule == "shared" else quota_thresholds
        return choose(scores, self.costs_, self.budget, sample_weight=weight)
