"""Inference modules and gates of JEI-DNN, trained together."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import fields
from numbers import Integral, Real
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp
from sklearn.base import clone
from sklearn.utils import check_array, check_random_state

from skexit._nn._dense import DenseNetwork
from skexit.data import ExitArray, ExitLayout
from skexit.data._arrays import enough_rows
from skexit.data._estimator import warn_of_expensive_heads
from skexit.data._lazy import MergedLogits, TransformedLogits, fit_in_memory
from skexit.data._overlays import LogitsSource, OverlaidSource
from skexit.data._unused_parameters import Unused
from skexit.data._validation import cross_validation_splits, read_logits
from skexit.data._walk import no_features, own_logits, walk_batches
from skexit.heads import ExitHeads
from skexit.heads._cross_fitting import check_two_classes
from skexit.policies._blending import break_ties, sigmoid
from skexit.policies._budgeted import BudgetedPolicy
from skexit.policies._draws import SampleDraws
from skexit.policies._quotas import equal_thresholds, exits_from_scores, shared_threshold
from skexit.policies.jei._gate_fitting import GateFitState, fit_gate
from skexit.policies.jei._gates import N_STATISTICS, balanced_weight, gate_statistics, gate_targets, leaving_log_odds
from skexit.policies.jei._lambda_path import LambdaPath
from skexit.policies.jei._training import JointTrainer, JointTraining
from skexit.uncertainty import fit_temperature, log_odds
from skexit.utils._array_api import array_namespace
from skexit.utils._module_names import set_module
from skexit.utils._optional import check_torch
from skexit.utils._sklearn import Interval, StrOptions
from skexit.utils._warnings import silenced

Floats = NDArray[np.float64]

#: Prices from which the price for a budget is chosen, in nats for the whole network.
_PRICES = np.geomspace(0.01, 30, 18)
#: Log-odds from which a sample stops: even odds.
_THRESHOLD = 0.0


@set_module("skexit")
class JEIGatedEnsemble(BudgetedPolicy):
    """Classifiers at the exits and gates between them, trained together for a price of compute.

    At each exit, a linear inference module, one of ``heads_``, classifies, and a linear gate decides from the
    confidence of the module whether to stop. Modules and gates minimise the cross-entropy plus `lam` times the
    expected cost of a sample (JEI-DNN, eq. 6): a module weights the samples by the probability that they
    leave at its exit; a gate learns for which samples no later exit is worth its price.

    Parameters
    ----------
    lam : float, default=1.0
        Price of the whole network, in nats of cross-entropy; a larger price means earlier exits. Prices
        between 0.01 and 10 cover the useful costs. Not used with `budget`, which finds the price.
    budget : float, default=None
        Mean cost of a sample on the fitting data, as a fraction in (0, 1] of the network's cost. ``fit``
        finds the price at which the gates come nearest to this cost, and moves the threshold that all
        gates share from even odds to the value that meets the budget.
    targets : {"exit_if_min", "exit_subsequent"}, default="exit_if_min"
        Targets of the gates, from the cross-entropy plus the price of each exit. ``"exit_if_min"``: 1 if no later exit
        has a smaller sum (section 9.15). ``"exit_subsequent"``: 1 at the exit with the smallest sum and at all later
        exits (eq. 31), as in the paper.
    gate_reading : {"stop", "exit"}, default="stop"
        What the probability of a gate means. ``"stop"``: that a sample that reaches the exit should
        stop there, as in the targets. ``"exit"``: that this is the exit of the sample, P(G = l), as in
        the paper (eq. 7 and 8); samples then leave earlier than the targets ask for.
    gate_class_weight : {"balanced"} or None, default=None
        ``"balanced"`` gives the zeros and the ones of a gate's targets the same total weight. This moves
        the gate's probabilities, and samples no longer stop at the best exit.
    temperature_scaling : bool, default=True
        Whether to divide the logits of each exit by a temperature before gates and prices use them. If a module is
        over-confident, as a network's own classifier mostly is, its cross-entropies are too large to be compared with
        those of other modules. The modules of joint training are not scaled. The paper does not scale.
    decision : {"deterministic", "sampled"}, default="deterministic"
        Whether to stop if the gate's probability is at least one half, or to stop with the gate's probability.
        Draws are computed from the sample and the seed: the same sample always stops at the same exit.
    joint : bool, default=True
        Whether to train the modules further, together with the gates. If False, they are only trained on all rows, by
        `heads`. Exits that have logits, such as the last exit of a frozen network, always keep them.
    gradient : {"partial", "full"}, default="partial"
        ``"partial"``: the gradient of the modules ignores that the gates depend on them (eq. 14, left
        term). ``"full"``: it includes this (section 9.7).
    learning_rate : float, default=0.01
        Highest learning rate of Adam. In the warm-up, it is multiplied by the number of later exits (eq. 17).
    l2 : float, default=3e-3
        Strength of the squared penalty on the weights of modules and gates, for standardised inputs. In joint training,
        it is multiplied by the share of the samples that leave at the module. In the paper, 5e-4.
    warm_up_epochs : int, default=10
        Passes over the rows in which every module learns from all samples.
    max_epochs : int, default=15
        Passes over the rows in which steps of modules and of gates alternate.
    early_stopping : bool, default=True
        Whether to keep the modules and gates of the epoch with the lowest loss (eq. 6) on rows that the modules were
        not trained on. Epoch 0 has the modules of the warm-up, and gates fitted to them. If False, the last is kept.
    patience : int, default=5
        With early stopping, stop after so many epochs without a lower loss.
    batch_size : int, default=128
        Number of rows in a step; smaller if an epoch would have fewer than 80 steps. In the paper, 64.
    bilevel_switch : int, default=5
        Number of steps of the gates between steps of the modules, and of the modules between steps of the gates.
    cv : int, cross-validation generator or iterable, default=3
        How rows are split. Gates learn from the logits of modules that were not trained on the row.
    heads : ExitHeads, default=None
        With ``joint=False``, heads to fit if exits have no logits; by default, ``ExitHeads()`` with
        this `random_state`.
    %(layout)s
    random_state : int, RandomState instance or None, default=None
        Seeds splits, batches, draws and heads.
    verbose : bool, default=False
        Show progress bars.

    Attributes
    ----------
    lam_ : float
        `lam`, or the price that was found for `budget`.
    gates_ : list of DenseNetwork, one per exit but the last
        Each gives the logit of the probability of stopping.
    gate_temperatures_ : ndarray of shape (n_exits,)
        Temperatures by which logits are divided before the gates use them; 1 without `temperature_scaling`.
    n_epochs_ : int
        Number of epochs of joint training that were kept; 0 if the gates were best with the modules of the
        warm-up, or if there was no joint training.
    thresholds_ : ndarray of shape (n_exits,)
        A sample stops if its score is at least the threshold. Without a budget, it is 0, even odds; at the last exit,
        ``-inf``. Scores are the log-odds by the gates; with ``decision="sampled"``, their probability minus the draw.
    %(policy_attributes)s

    See Also
    --------
    EMExitAssigner : Learns from features to which exit a sample belongs.
    ThresholdPolicy : Stops if the classifier is confident, without learning.

    Notes
    -----
    The modules are trained in one copy per fold, and one copy that is trained on all rows. The gates
    learn from the logits of each copy on the rows that the copy was not trained on.

    With `budget`, gates are fitted for 18 prices from 0.01 to 30, and `with_budget` takes those of another
    price; the modules stay those of the price in training. A policy that was fitted without a budget
    has gates for one price, and `with_budget` only moves their threshold.

    References
    ----------
    Regol, Chataoui, Coates. "Jointly-learned exit and inference for a dynamic neural network: JEI-DNN." ICLR 2024.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skexit import JEIGatedEnsemble
    >>> X, y = load_digits(return_X_y=True)
    >>> policy = JEIGatedEnsemble(budget=0.75, layout=2, random_state=0).fit(X, y)
    >>> policy.exit_distribution_.round(2)
    array([0.5, 0.5])
    >>> policy.with_budget(0.6).lam_ > policy.lam_
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BudgetedPolicy._parameter_constraints,
        "lam": [Interval(Real, 0, None, closed="left")],
        "targets": [StrOptions({"exit_if_min", "exit_subsequent"})],
        "gate_reading": [StrOptions({"stop", "exit"})],
        "gate_class_weight": [StrOptions({"balanced"}), None],
        "temperature_scaling": ["boolean"],
        "decision": [StrOptions({"deterministic", "sampled"})],
        "joint": ["boolean"],
        "gradient": [StrOptions({"partial", "full"})],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "l2": [Interval(Real, 0, None, closed="neither")],
        "warm_up_epochs": [Interval(Integral, 1, None, closed="left")],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "early_stopping": ["boolean"],
        "patience": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "bilevel_switch": [Interval(Integral, 1, None, closed="left")],
        "cv": ["cv_object"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    _unused_parameters: ClassVar[tuple[Unused, ...]] = (
        Unused(
            ("lam",),
            "budget",
            lambda policy: policy.budget is not None,
            "fit finds the price that meets the budget. Leave it out, or set budget=None.",
        ),
        Unused(
            (
                "gradient",
                "learning_rate",
                "warm_up_epochs",
                "max_epochs",
                "early_stopping",
                "patience",
                "batch_size",
                "bilevel_switch",
                "cv",
            ),
            "joint",
            lambda policy: not policy.joint,
            "Only the joint training has such settings. Keep the defaults, set joint=True, or set up heads by heads=.",
        ),
        Unused(
            ("patience",),
            "early_stopping",
            lambda policy: policy.joint and not policy.early_stopping,
            "Leave it out, or set early_stopping=True.",
        ),
    )

    def __init__(
        self,
        lam: float = 1.0,
        *,
        budget: float | None = None,
        targets: str = "exit_if_min",
        gate_reading: str = "stop",
        gate_class_weight: str | None = None,
        temperature_scaling: bool = True,
        decision: str = "deterministic",
        joint: bool = True,
        gradient: str = "partial",
        learning_rate: float = 0.01,
        l2: float = 3e-3,
        warm_up_epochs: int = 10,
        max_epochs: int = 15,
        early_stopping: bool = True,
        patience: int = 5,
        batch_size: int = 128,
        bilevel_switch: int = 5,
        cv: Any = 3,
        heads: Any = None,
        layout: ExitLayout | int | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        self.lam = lam
        self.budget = budget
        self.targets = targets
        self.gate_reading = gate_reading
        self.gate_class_weight = gate_class_weight
        self.temperature_scaling = temperature_scaling
        self.decision = decision
        self.joint = joint
        self.gradient = gradient
        self.learning_rate = learning_rate
        self.l2 = l2
        self.warm_up_epochs = warm_up_epochs
        self.max_epochs = max_epochs
        self.early_stopping = early_stopping
        self.patience = patience
        self.batch_size = batch_size
        self.bilevel_switch = bilevel_switch
        self.cv = cv
        self.heads = heads
        self.layout = layout
        self.random_state = random_state
        self.verbose = verbose

    def lambda_path(
        self,
        X: Any,
        y: ArrayLike,
        lams: ArrayLike,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> LambdaPath:
        """Fit a policy for each of several prices, each from the end of the previous fit.

        Parameters
        ----------
        %(X_y)s
        lams : array-like of shape (n_prices,)
            Prices, in the order in which to fit them. `lam` and `budget` are not used.
        sample_weight : array-like of shape (n_samples,), default=None
            Weight of each sample; equal by default.
        groups : array-like of shape (n_samples,), default=None
            Group of each sample. The rows of a group are in the same fold.

        Returns
        -------
        LambdaPath
            The policies, and their accuracies and costs.

        Raises
        ------
        ValueError
            As in ``fit``, and if a price is negative or not finite.
        """
        prices = check_array(lams, ensure_2d=False, ensure_all_finite=True, dtype=np.float64, input_name="lams").ravel()
        if prices.min() < 0:
            raise ValueError(f"lams={prices.tolist()} has a price below 0; pass prices of 0 or more.")
        first = clone(self).set_params(budget=None)
        first._validate_params()
        exits, first.classes_, labels, weight, numbers = first._validate_training_data(X, y, sample_weight, groups)
        trainer = first._make_trainer(exits, labels, weight, numbers) if first._trains_jointly(exits) else None
        with_logits = None if trainer else first._fit_heads(exits, labels, weight, numbers)
        policies = []
        for lam in prices.tolist():
            policy = copy.copy(first).set_params(lam=lam)
            if trainer is not None:
                with_logits = policy._train_jointly(trainer, exits, labels, weight)
            policies.append(policy._fit_on(cast(ExitArray, with_logits), labels, weight))
        warn_of_expensive_heads(policies[-1].layout_)
        costs = np.array([policy.exit_distribution_ @ policy.costs_ for policy in policies])
        accuracies = np.array([policy._fitting_accuracy() for policy in policies])
        return LambdaPath(prices, costs, accuracies, policies)

    def _fit_heads(
        self, X: ExitArray, labels: NDArray[np.int64], weight: Floats, groups: NDArray[np.int64] | None
    ) -> ExitArray:
        if self._trains_jointly(X):
            return self._train_jointly(self._make_trainer(X, labels, weight, groups), X, labels, weight)
        self.n_epochs_ = 0
        return super()._fit_heads(X, labels, weight, groups)

    def _trains_jointly(self, X: ExitArray) -> bool:
        n_exits = X.layout.n_exits
        return self.joint and n_exits > 1 and not all(X.layout.has_logits(k) for k in range(n_exits))

    def _make_trainer(
        self, X: ExitArray, labels: NDArray[np.int64], weight: Floats, groups: NDArray[np.int64] | None
    ) -> JointTrainer:
        if self.heads is not None:
            raise ValueError(
                f"heads={self.heads!r} cannot be used with joint=True, which trains its own heads. Pass joint=False or "
                "heads=None."
            )
        check_two_classes(self.classes_)
        check_torch("JEIGatedEnsemble trains classifiers and gates jointly with")
        random_state = check_random_state(self.random_state)
        folds = np.empty(len(labels), dtype=np.int64)
        for fold, (_, held_out) in enumerate(cross_validation_splits(self.cv, labels, random_state, groups)):
            folds[held_out] = fold
        X = self._with_classes(X)
        rows = enough_rows(len(X), X.layout.n_exits * len(self.classes_))
        return JointTrainer(
            X,
            labels,
            weight,
            folds,
            temperatures=self._fit_exit_temperatures(X, labels, weight, rows),
            settings=JointTraining(**{field.name: getattr(self, field.name) for field in fields(JointTraining)}),
            random_state=random_state,
            verbose=bool(self.verbose),
        )

    def _train_jointly(
        self, trainer: JointTrainer, X: ExitArray, labels: NDArray[np.int64], weight: Floats
    ) -> ExitArray:
        """Fit the gates to the current modules, then train both; returns X with held-out logits."""
        self._fit_on(self._take_modules(trainer, X), labels, weight)
        trainer.start_gates(self.gates_)
        self.n_epochs_ = trainer.fit(self.lam_ * self.costs_)
        return self._take_modules(trainer, X)

    def _take_modules(self, trainer: JointTrainer, X: ExitArray) -> ExitArray:
        """Keep the modules that learned from all rows; returns X with logits of the other copies on held-out rows."""
        X = self._with_classes(X)
        self.heads_ = ExitHeads._from_networks(X, self.classes_, trainer.networks())
        copies = [trainer.networks(fold) for fold in range(trainer.n_copies - 1)]
        held_out = [TransformedLogits(X, ExitHeads._from_networks(X, self.classes_, copy)) for copy in copies]
        source: OverlaidSource = MergedLogits(X, held_out, trainer.folds, np.arange(len(X)))
        if fit_in_memory(len(X), len(trainer.trained), len(self.classes_)):
            source = LogitsSource(X, {k: source.read_logits(k, slice(None)) for k in trainer.trained})
        return ExitArray(source, self.heads_.layout_out_)

    def fit_policy(self, X: ExitArray, labels: NDArray[np.int64], weight: Floats) -> None:
        n_samples, n_exits = len(X), X.layout.n_exits
        self._draws = SampleDraws.fit(X, weight, check_random_state(self.random_state))
        enough = enough_rows(n_samples, sum(X.layout.n_logits))
        self.gate_temperatures_ = self._fit_exit_temperatures(X, labels, weight, enough)
        draws, confidence = np.empty((2, n_samples, n_exits))
        statistics = np.empty((n_samples, n_exits, N_STATISTICS))
        losses, correct = np.empty((n_samples, n_exits)), np.empty((n_samples, n_exits), dtype=bool)
        for k, rows, logits in walk_batches(own_logits, X, uses_features=no_features):
            if k == 0:
                draws[rows] = self._draws(logits)
            scaled = logits / self.gate_temperatures_[k]
            statistics[rows, k], confidence[rows, k] = gate_statistics(scaled), log_odds(scaled)
            losses[rows, k] = logsumexp(scaled, axis=1) - scaled[np.arange(len(scaled)), labels[rows]]
            correct[rows, k] = np.argmax(scaled, axis=1) == labels[rows]
        prices = [float(self.lam)] if self.budget is None else _PRICES.tolist()
        path = [(lam, self._fit_gates(statistics, losses + lam * self.costs_, weight)) for lam in prices]
        self.fit_state_ = GateFitState(draws, statistics, confidence, correct, weight, path)
        self.apply_budget()

    def _fit_exit_temperatures(
        self, X: ExitArray, labels: NDArray[np.int64], weight: Floats, rows: NDArray[np.intp]
    ) -> Floats:
        """Temperature of each exit's logits for the gates, from some of the rows; 1 if the exit has no logits."""
        temperatures = np.ones(X.layout.n_exits)
        if self.temperature_scaling:
            for k in filter(X.layout.has_logits, range(X.layout.n_exits)):
                with silenced():  # at a bound, the logits have no information, and the gate should see this
                    temperatures[k] = fit_temperature(cast(Any, read_logits(X, k, rows)), labels[rows], weight[rows])
        return temperatures

    def _fit_gates(self, statistics: Floats, priced_losses: Floats, weight: Floats) -> list[DenseNetwork]:
        targets = gate_targets(priced_losses, self.targets)
        weight = np.broadcast_to(weight[:, None], targets.shape)
        if self.gate_class_weight == "balanced":
            weight = balanced_weight(targets, weight)
        return [fit_gate(statistics[:, k], targets[:, k], weight[:, k], self.l2) for k in range(targets.shape[1])]

    def apply_budget(self) -> None:
        self.lam_, self.gates_ = min(self.fit_state_.path, key=self._distance_from_budget)
        self.set_thresholds(self.fitted_scores(), self.fit_state_.weight)

    def fitted_scores(self) -> Floats:
        return self._fitting_scores_of(self.gates_)

    def _distance_from_budget(self, priced_gates: tuple[float, list[DenseNetwork]]) -> float:
        """Distance of the mean cost from the budget if samples stop from even odds of the gates."""
        if self.budget is None:
            return 0.0
        scores = self._fitting_scores_of(priced_gates[1])
        stops = exits_from_scores(scores, equal_thresholds(_THRESHOLD, scores.shape[1]))
        return abs(np.average(self.costs_[stops], weights=self.fit_state_.weight) - self.budget)

    def choose_thresholds(self, scores: Floats, weight: Floats) -> Floats:
        if self.budget is None:
            return equal_thresholds(_THRESHOLD, scores.shape[1])
        return shared_threshold(scores, self.costs_, self.budget, weight)

    def _fitting_accuracy(self) -> float:
        stops = exits_from_scores(self._fitting_scores_of(self.gates_), self.thresholds_)
        correct = self.fit_state_.correct[np.arange(len(stops)), stops]
        return float(np.average(correct, weights=self.fit_state_.weight))

    def _fitting_scores_of(self, gates: Sequence[DenseNetwork]) -> Floats:
        state, memory = self.fit_state_, {"draws": self.fit_state_.draws}
        scores = [
            self._score(k, state.statistics[:, k], state.confidence[:, k], gates, memory)
            for k in range(state.statistics.shape[1])
        ]
        return np.column_stack(scores)

    def earlier_exits(self, k: int) -> range:
        return range(k if self.decision == "sampled" or self.gate_reading == "exit" else 0)

    def score_exit(self, k: int, logits: Any, features: Any, memory: dict[str, Any]) -> Any:
        if k == 0 and self.decision == "sampled":
            memory["draws"] = self._draws(logits)
        scaled = logits / float(self.gate_temperatures_[k])
        return self._score(k, gate_statistics(scaled), log_odds(scaled), self.gates_, memory)

    def _score(
        self, k: int, statistics: Any, confidence: Any, gates: Sequence[DenseNetwork], memory: dict[str, Any]
    ) -> Any:
        """Log-odds of stopping, P(E_l); if exits are sampled, P(E_l) minus the draw."""
        if k == len(gates):
            return array_namespace(statistics).zeros_like(confidence)
        gate = gates[k](statistics)[..., 0]
        score = break_ties(leaving_log_odds(gate, memory, self.gate_reading), confidence)
        return score if self.decision == "deterministic" else sigmoid(score) - memory["draws"][:, k]
