"""Exit assignments found by expectation-maximisation, and routers that learn the assignments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from skexit._nn._dense import DenseNetwork, check_hidden_layer_sizes
from skexit._nn._mini_batches import Training, number_of_epochs, train
from skexit.data import ExitArray, ExitLayout
from skexit.data._labels import encode_labels
from skexit.data._validation import cross_validation_splits, read_features, read_logits
from skexit.data._walk import correct_exits, walk_batches
from skexit.exceptions import RoutersUnusedWarning
from skexit.policies._blending import blend, score_of_mean
from skexit.policies._budgeted import BudgetedPolicy
from skexit.policies._gain import exceeds_error
from skexit.policies._quotas import equal_thresholds, exits_from_scores, quota_thresholds
from skexit.policies.em._assignment import (
    AssignerFitState,
    correct_and_confident,
    expectation,
    fit_exit_prior,
    group_patterns,
)
from skexit.policies.em._unused_parameters import UNUSED_PARAMETERS
from skexit.uncertainty import log_odds, margin, max_probability, normalized_entropy, softmax
from skexit.utils._array_api import array_namespace
from skexit.utils._module_names import set_module
from skexit.utils._optional import check_torch
from skexit.utils._sklearn import Interval, StrOptions
from skexit.utils._warnings import warn

Floats = NDArray[np.float64]

#: The search for `lam` stops at this price, for which exp(-lam) is far below `noise`.
_LARGEST_LAM = 2.0**12
#: Weights from which the best are chosen: of the confidence in the scores, where 0 means routers alone, and of the
#: assignments in the quotas, where 0 means geometric quotas.
_CONFIDENCE_WEIGHTS = (0.0, 1.0, 3.0, 10.0, 30.0, np.inf)
_ASSIGNMENT_WEIGHTS = (0.0, 0.5, 1.0)
#: The confidence alone, with geometric quotas: the weights that are used if no others are clearly better.
_CONFIDENCE_ALONE = (np.inf, 0.0)
#: Smallest share of an exit to which no sample was assigned, before the quotas are tilted.
_SMALLEST_SHARE = 1e-6
#: Largest number of passes with ``max_epochs="auto"``.
_MOST_EPOCHS = 20


@set_module("skexit")
class EMExitAssigner(BudgetedPolicy):
    """Assign samples to exits by expectation-maximisation, and train routers that predict the assignments.

    The exit of a sample is a latent variable. The likelihood of a sample at exit k is ``exp(-lam * c_k)`` if the
    exit is correct, and `noise` times this if it is wrong; c_k is the exit's cost as a fraction of the network's cost.
    The E-step computes the probability of each exit for each sample, the M-step the probability of each exit over all
    samples. At each exit but the last, a router learns the probability that the sample is assigned to this exit or an
    earlier one. A sample stops at the first exit where this probability reaches a threshold.

    Parameters
    ----------
    lam : float, default=1.0
        Price of the whole network; a larger price means earlier exits. With nine exits, prices between 1
        and 5 cover the useful costs. Not used with `budget`, which finds the price.
    max_iter : int, default=10
        Iterations of expectation-maximisation.
    assignment : {"soft", "hard"}, default="soft"
        Target of the router of exit k. ``"soft"``: the probability that the sample's exit is k or
        earlier. ``"hard"``: whether its most probable exit is k or earlier.
    noise : float, default=1e-3
        Likelihood of a sample at an exit that is wrong, relative to an exit that is correct.
        The paper has 0, for which samples without a correct exit are undefined.
    router_hidden_layer_sizes : tuple of int, default=(64,)
        Width of each hidden layer of a router; ``()`` makes the routers linear.
    router_input : {"both", "features", "probabilities"}, default="both"
        Inputs of a router: the exit's features (as in the paper), its class probabilities with
        their largest value, entropy and margin, or both.
    threshold : float, default=0.5
        A sample stops if its router's probability is at least this. Not used with `budget`.
    budget : float, default=None
        Mean cost of a sample on the fitting data, as a fraction in (0, 1] of the network's cost. ``fit`` finds the
        `lam` at which the assignments have this cost, and one threshold per exit at which the routers have it.
    confidence_weight : "auto" or float, default="auto"
        Samples leave by the weighted geometric mean of their router's probability, with weight 1, and their largest
        class probability, with this weight; see Notes. 0 gives the paper's router. ``"auto"`` is 0 without a budget.
        With a budget, it is one of 0, 1, 3, 10, 30 and infinity: the most accurate one within the budget for routers
        trained on other rows if it gains more than one standard error, otherwise infinity, the confidence alone. If it
        is infinite, ``fit`` warns.
    learning_rate : float, default=5e-3
        Highest learning rate of the routers; in the paper, 1e-3.
    l2 : float, default=1e-2
        Strength of the squared penalty on the routers' weights.
    max_epochs : int or "auto", default="auto"
        Passes over the rows in training a router; the epoch with the lowest loss on a held-out tenth of
        the rows is kept. ``"auto"`` is 20 up to 75,000 rows, and falls to 1 at 1,500,000 rows.
    batch_size : int, default=512
        Number of rows in a step of training a router; smaller if an epoch would have fewer than 20 steps.
    cv : int, cross-validation generator or iterable, default=3
        How rows are split to choose the weights of the confidence and of the assignments.
    %(use_most_confident)s
    %(heads)s
    %(layout)s
    random_state : int, RandomState instance or None, default=None
        Seeds the training of heads and routers.
    verbose : bool, default=False
        Show the progress of the routers.

    Attributes
    ----------
    exit_prior_ : ndarray of shape (n_exits,)
        Probability of each exit over all samples (π in the paper).
    assigned_distribution_ : ndarray of shape (n_exits,)
        Share of the fitting samples that are assigned to each exit.
    log_likelihood_ : ndarray of shape (max_iter + 1,)
        Mean log-likelihood of the fitting samples before each iteration and after the last; it never falls.
    n_iter_ : int
        Number of iterations, `max_iter`.
    lam_ : float
        `lam`, or the price that was found for `budget`. Negative if the budget is so large that the
        assignments would not spend it at a price of 0.
    confidence_weight_ : float
        `confidence_weight`, or the weight that was chosen.
    assignment_weight_ : float
        With `budget`, the share of samples at exit k is proportional to ``assigned_k ** assignment_weight_ * exp(t *
        c_k)``, with the t that meets the budget; 0 makes the shares geometric. Chosen with `confidence_weight_` from 0,
        0.5 and 1; it is 1 if `confidence_weight` is given.
    routers_ : list of DenseNetwork, one per exit but the last
        Each gives the logit of the probability of stopping. Empty if `confidence_weight` is infinite.
    uses_routers_ : bool
        Whether scores depend on routers. False if `confidence_weight_` is infinite or there is a
        single exit; then no router runs, and no features are read for routers.
    %(thresholds)s
    %(policy_attributes)s

    See Also
    --------
    ThresholdPolicy : Stops if the classifier is confident, without learning.

    Notes
    -----
    With `budget`, the routers learn the assignments of the `lam_` that was found, and `with_budget` finds another
    `lam_` and other thresholds for the same routers. A policy that was fitted without a budget has not chosen the
    weights of confidence and assignments: its copies for a budget use the routers alone.

    Scores and thresholds are log-odds of the router's probability times the power of the largest probability with the
    exponent `confidence_weight_`, which have the order of the geometric mean.

    The E-step depends on a sample only through the exits that are correct for it. Samples are grouped by
    this pattern once, so that the cost of an iteration is proportional to the number of patterns.

    References
    ----------
    "EM-Based Adaptive Computation in Multi-Exit Neural Networks", phases 2 to 4.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skexit import EMExitAssigner
    >>> X, y = load_digits(return_X_y=True)
    >>> policy = EMExitAssigner(budget=0.75, layout=2, random_state=0).fit(X, y)
    >>> policy.exit_distribution_.round(2)
    array([0.5, 0.5])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BudgetedPolicy._parameter_constraints,
        "lam": [Interval(Real, None, None, closed="neither")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "assignment": [StrOptions({"soft", "hard"})],
        "noise": [Interval(Real, 0, 1, closed="neither")],
        "router_hidden_layer_sizes": ["array-like"],
        "router_input": [StrOptions({"both", "features", "probabilities"})],
        "threshold": [Interval(Real, 0, 1, closed="both")],
        "confidence_weight": [StrOptions({"auto"}), Interval(Real, 0, None, closed="both")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "l2": [Interval(Real, 0, None, closed="left")],
        "max_epochs": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "cv": ["cv_object"],
        "use_most_confident": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    _unused_parameters = UNUSED_PARAMETERS

    def __init__(
        self,
        lam: float = 1.0,
        *,
        max_iter: int = 10,
        assignment: str = "soft",
        noise: float = 1e-3,
        router_hidden_layer_sizes: Sequence[int] = (64,),
        router_input: str = "both",
        threshold: float = 0.5,
        budget: float | None = None,
        confidence_weight: float | str = "auto",
        learning_rate: float = 5e-3,
        l2: float = 1e-2,
        max_epochs: int | str = "auto",
        batch_size: int = 512,
        cv: Any = 3,
        use_most_confident: bool = False,
        heads: Any = None,
        layout: ExitLayout | int | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        self.lam = lam
        self.max_iter = max_iter
        self.assignment = assignment
        self.noise = noise
        self.router_hidden_layer_sizes = router_hidden_layer_sizes
        self.router_input = router_input
        self.threshold = threshold
        self.budget = budget
        self.confidence_weight = confidence_weight
        self.learning_rate = learning_rate
        self.l2 = l2
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.cv = cv
        self.use_most_confident = use_most_confident
        self.heads = heads
        self.layout = layout
        self.random_state = random_state
        self.verbose = verbose

    def assignments(self, X: Any, y: ArrayLike) -> Floats:
        """Probability of each exit for each sample, given its label (the E-step).

        Parameters
        ----------
        %(X_y)s

        Returns
        -------
        ndarray of shape (n_samples, n_exits)
            Rows sum to one.
        """
        check_is_fitted(self)
        exits = self._add_logits(self._check_new(X))
        check_consistent_length(exits, y)
        _, labels = encode_labels(y, exits.layout)
        return expectation(correct_exits(exits, labels), self.exit_prior_, self.lam_, self.costs_, self.noise)[0]

    def fit_policy(
        self, X: ExitArray, labels: NDArray[np.int64], weight: Floats, groups: NDArray[np.int64] | None = None
    ) -> None:
        check_hidden_layer_sizes(self.router_hidden_layer_sizes, "router_hidden_layer_sizes")
        uses_confidence_alone = self.confidence_weight == np.inf
        if X.layout.n_exits > 1 and not uses_confidence_alone:
            check_torch("EMExitAssigner trains its routers with")
        correct, confidence = correct_and_confident(X, labels)
        patterns, pattern_weight, pattern_of_row = group_patterns(correct, weight)
        state = AssignerFitState(correct, confidence, weight, patterns, pattern_weight)
        self._find_assignments(state)
        if uses_confidence_alone:
            self.routers_, self.fit_state_ = [], state
            self._set_weights_and_thresholds()
            return
        targets = self._targets(state)[pattern_of_row]
        random_state = check_random_state(self.random_state)
        chooses = self.budget is not None and self.confidence_weight == "auto" and X.layout.n_exits > 1
        held_out = self._cross_fit_routers(X, labels, targets, weight, random_state, groups) if chooses else None
        self.routers_ = self._train_routers(X, targets, weight, random_state, groups)
        router_log_odds = self._router_log_odds(X, self.routers_)
        self.fit_state_ = replace(state, router_log_odds=router_log_odds, held_out_log_odds=held_out)
        self._set_weights_and_thresholds()
        if chooses and not self.uses_routers_:
            self._warn_of_unused_routers()

    def _warn_of_unused_routers(self) -> None:
        if self.assignment_weight_ == 0:
            cure = "Use ThresholdPolicy with this budget, which makes the same decisions without training, or pass"
        else:
            cure = "Only the quotas depend on what was learned, the assignments. Pass"
        warn(
            f"routers do not improve the accuracy at budget={self.budget}: on rows that they were not trained on, "
            "decisions without routers are as accurate, within one standard error. Predictions run no routers and read "
            f"no features for them. {cure} confidence_weight=0 to decide by the routers alone.",
            RoutersUnusedWarning,
        )

    def _targets(self, state: AssignerFitState) -> Floats:
        """Targets of the routers: for each pattern, the probability that its exit is exit k or an earlier one."""
        return np.minimum(np.cumsum(self._assigned(state, self.lam_, self.exit_prior_), axis=1), 1)

    def _find_assignments(self, state: AssignerFitState) -> None:
        finds_lam = self.budget is not None and len(self.costs_) > 1
        self.lam_ = self._find_lam(state) if finds_lam else float(self.lam)
        self.n_iter_ = self.max_iter
        self.exit_prior_, self.log_likelihood_ = self._maximize(state, self.lam_)
        assigned = self._assigned(state, self.lam_, self.exit_prior_)
        self.assigned_distribution_ = np.average(assigned, axis=0, weights=state.pattern_weight)

    def _maximize(self, state: AssignerFitState, lam: float) -> tuple[Floats, Floats]:
        return fit_exit_prior(state.patterns, state.pattern_weight, lam, self.costs_, self.noise, self.max_iter)

    def _find_lam(self, state: AssignerFitState) -> float:
        def mean_cost(lam: float) -> float:
            assigned = self._assigned(state, lam, self._maximize(state, lam)[0])
            return float(np.average(assigned @ self.costs_, weights=state.pattern_weight))

        # The mean cost falls as the price rises, from the cost of the last exit to that of the first exit.
        low, high = -1.0, 1.0
        while mean_cost(low) < self.budget and low > -_LARGEST_LAM:
            low *= 2
        while mean_cost(high) > self.budget and high < _LARGEST_LAM:
            high *= 2
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if mean_cost(middle) > self.budget else (low, middle)
        return high

    def _assigned(self, state: AssignerFitState, lam: float, prior: Floats) -> Floats:
        """Probability of each exit for each pattern; 0 or 1 for hard assignments."""
        posterior, _ = expectation(state.patterns, prior, lam, self.costs_, self.noise)
        if self.assignment == "hard":
            return np.eye(len(self.costs_))[np.argmax(posterior, axis=1)]
        return posterior

    def _train_routers(
        self,
        X: ExitArray,
        targets: Floats,
        weight: Floats,
        random_state: np.random.RandomState,
        groups: NDArray[np.int64] | None,
    ) -> list[DenseNetwork]:
        n_epochs = number_of_epochs(self.max_epochs, len(X), 1, _MOST_EPOCHS)
        training = Training(self.learning_rate, self.l2, n_epochs, self.batch_size, early_stopping=True)
        return [
            train(
                partial(self._read_router_inputs, X, k),
                targets[:, k],
                weight,
                hidden_layer_sizes=self.router_hidden_layer_sizes,
                n_outputs=1,
                training=training,
                random_state=random_state,
                groups=groups,
                description=f"router of exit {k}" if self.verbose else None,
            )
            for k in range(X.layout.n_exits - 1)
        ]

    def _cross_fit_routers(
        self,
        X: ExitArray,
        labels: NDArray[np.int64],
        targets: Floats,
        weight: Floats,
        random_state: np.random.RandomState,
        groups: NDArray[np.int64] | None,
    ) -> NDArray[np.float32]:
        """Log-odds for each row by routers that were trained on other rows."""
        # They are stored to choose weights for other budgets; single precision is enough for that.
        held_out_log_odds = np.empty((len(X), X.layout.n_exits), dtype=np.float32)
        for fit_rows, held_out in cross_validation_splits(self.cv, labels, random_state, groups):
            routers = self._train_routers(
                X[fit_rows],
                targets[fit_rows],
                weight[fit_rows],
                random_state,
                None if groups is None else groups[fit_rows],
            )
            held_out_log_odds[held_out] = self._router_log_odds(X[held_out], routers)
        return held_out_log_odds

    def _router_log_odds(self, X: ExitArray, routers: list[DenseNetwork]) -> Floats:
        """Log-odds by the routers; at the last exit, which has no router, those of the largest probability."""

        def route(k: int, logits: Any, features: Any, memory: Any) -> Any:
            return self._apply_router(routers, k, logits, features)

        router_log_odds = np.empty((len(X), X.layout.n_exits))
        for k, rows, values in walk_batches(route, X, uses_features=lambda k: self.router_input != "probabilities"):
            router_log_odds[rows, k] = values
        return router_log_odds

    def _apply_router(self, routers: list[DenseNetwork], k: int, logits: Any, features: Any) -> Any:
        if k == len(routers):
            return log_odds(logits)
        return routers[k](self._router_inputs(k, softmax(logits), features))[..., 0]

    def _read_router_inputs(self, X: ExitArray, k: int, rows: Any) -> Floats:
        features = read_features(X, k, rows) if self.router_input != "probabilities" else None
        return self._router_inputs(k, softmax(read_logits(X, k, rows)), features)

    def _router_inputs(self, k: int, probabilities: Any, features: Any) -> Any:
        parts = []
        if self.router_input != "probabilities" and features.shape[1]:
            parts.append(features)
        elif self.router_input == "features":
            raise ValueError(
                f"router_input='features', but exit {k} has no features. Use router_input='probabilities' or 'both', "
                "or give X features of each exit."
            )
        xp = array_namespace(probabilities)
        if self.router_input != "features":
            scores = [max_probability(probabilities), normalized_entropy(probabilities), margin(probabilities)]
            parts += [probabilities, xp.stack(scores, axis=1)]
        return xp.concat(parts, axis=1)

    def uses_features(self, k: int) -> bool:
        return self.uses_routers_ and self.router_input != "probabilities"

    @property
    def uses_routers_(self) -> bool:
        """Whether scores depend on routers."""
        return len(self.routers_) > 0 and bool(np.isfinite(self.confidence_weight_))

    def earlier_exits(self, k: int) -> range:
        return range(0)

    def score_exit(self, k: int, logits: Any, features: Any, memory: dict[str, Any]) -> Any:
        confidence = log_odds(logits)
        if not self.uses_routers_:
            return confidence
        return blend(self._apply_router(self.routers_, k, logits, features), confidence, self.confidence_weight_)

    def apply_budget(self) -> None:
        self._find_assignments(self.fit_state_)
        self._set_weights_and_thresholds()

    def _set_weights_and_thresholds(self) -> None:
        self.confidence_weight_, self.assignment_weight_ = self._find_weights()
        self.set_thresholds(self.fitted_scores(), self.fit_state_.weight)

    def fitted_scores(self) -> Floats:
        state = self.fit_state_
        return blend(state.router_log_odds, state.confidence, self.confidence_weight_)

    def choose_thresholds(self, scores: Floats, weight: Floats) -> Floats:
        return self._thresholds_for(scores, weight, self.assignment_weight_)

    def _thresholds_for(self, scores: Floats, weight: Floats, assignment_weight: float, warn: bool = True) -> Floats:
        if self.budget is None:
            return equal_thresholds(score_of_mean(self.threshold, self.confidence_weight_), scores.shape[1])
        if assignment_weight == 0:
            return quota_thresholds(scores, self.costs_, self.budget, sample_weight=weight, warn=warn)
        log_prior = assignment_weight * np.log(np.maximum(self.assigned_distribution_, _SMALLEST_SHARE))
        return quota_thresholds(
            scores,
            self.costs_,
            self.budget,
            log_prior=log_prior,
            direction=self.costs_,
            sample_weight=weight,
            warn=warn,
        )

    def _find_weights(self) -> tuple[float, float]:
        """Weights of the confidence and of the assignments."""
        if self.fit_state_.held_out_log_odds is None:
            return 0.0 if self.confidence_weight == "auto" else float(self.confidence_weight), 1.0
        candidates = list(product(_CONFIDENCE_WEIGHTS, _ASSIGNMENT_WEIGHTS))
        correct = np.stack([self._held_out_correct(*candidate) for candidate in candidates])
        weight = self.fit_state_.weight
        best = int(np.argmax(np.average(correct, axis=1, weights=weight)))
        gain = correct[best].astype(np.float64) - correct[candidates.index(_CONFIDENCE_ALONE)]
        return candidates[best] if exceeds_error(gain, weight) else _CONFIDENCE_ALONE

    def _held_out_correct(self, confidence_weight: float, assignment_weight: float) -> NDArray[np.bool_]:
        """Whether each row's prediction is correct, with routers that were trained on other rows."""
        state = self.fit_state_
        scores = blend(state.held_out_log_odds, state.confidence, confidence_weight)
        thresholds = self._thresholds_for(scores, state.weight, assignment_weight, warn=False)
        stops = exits_from_scores(scores, thresholds)
        return state.correct[np.arange(len(stops)), stops]
