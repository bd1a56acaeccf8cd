"""Base class of heads that are trained on features: fitting, and cross-fitted logits."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state

from skexit._nn._mini_batches import ReadRows
from skexit.data import ExitArray, ExitLayout
from skexit.data._arrays import enough_rows
from skexit.data._estimator import cost_columns
from skexit.data._labels import enough_labelled_rows, only_labelled
from skexit.data._layout import add_heads
from skexit.data._lazy import MergedLogits, TransformedLogits
from skexit.data._overlays import LogitsSource
from skexit.data._validation import cross_validation_splits, validate_groups, validate_new_data, validate_training_data
from skexit.heads._deepest_head import resolve_share_of_deepest, shares_by_exit
from skexit.heads._distillation import Distillation, network_teaches, resolve_share_of_network
from skexit.heads._teacher_folds import Splits, teacher_splits
from skexit.heads._transformer import LogitsTransformer
from skexit.uncertainty import fit_temperature
from skexit.uncertainty._temperature import match_confidence, temperature_within_bounds
from skexit.utils._checks import check_sample_weight, is_integer
from skexit.utils._html import exit_table
from skexit.utils._sklearn import _fit_context
from skexit.utils._threads import run_side_by_side

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Rows = NDArray[np.intp]

#: With fewer rows than this, the confidence of heads with hidden layers changes less than in proportion to the
#: logarithm of the number of rows.
_ROWS_OF_WHOLE_CHANGE = 600
#: Heads are trained on parts of the rows at the same time, as long as so many bytes hold the features of all parts.
_BYTES_SIDE_BY_SIDE = 2**32


class CrossFittedHeads(LogitsTransformer):
    """Heads that learn from labels and from a teacher, where exits have no logits.

    The teacher is the network's own logits at the last exit; if there are none, it is the deepest head.

    A subclass implements `exit_logits`, `earlier_exits`, `_train` and `_describe_head`. If dividing the outputs of a
    head does not divide its logits, it also overrides `_divide_logits`. It must have the parameters annotated below.
    """

    distillation: float | str
    temperature_scaling: bool
    cv: Any
    random_state: int | np.random.RandomState | None
    networks_: list[Any]
    distillation_: float
    _softness: Floats

    @property
    def _has_hidden_layers(self) -> bool:
        """Whether the heads have hidden layers."""
        return True

    @property
    def _trains_in_one_thread(self) -> bool:
        """Whether torch trains the heads in one thread, so that other heads may be trained at the same time."""
        return False

    @abstractmethod
    def _train(self, X: ExitArray, labels: Integers, weight: Floats, distillation: Distillation | None) -> list[Any]:
        """Train heads, None for an exit that has logits. A head has `n_multiply_adds` and `divided_by`."""

    @abstractmethod
    def _describe_head(self, head: Any) -> str:
        """Description of a head for the table of exits in a notebook."""

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> Self:
        """Train the heads on all rows.

        Parameters
        ----------
        %(X_y_weight)s
        groups : array-like of shape (n_samples,), default=None
            Group of each sample. The rows of a group are in the same fold, if `temperature_scaling` or a deepest head
            that teaches needs folds.

        Returns
        -------
        self : object
            The fitted transformer.

        Raises
        ------
        ValueError
            If X does not match its layout or is not finite; y has a class that is unknown to X, or only one class; no
            row has a label; or there are fewer groups than folds.
        """
        used, labels, weight, numbers, _ = self._validate(X, y, sample_weight, groups)
        if self.temperature_scaling:
            folds, fold_of_row = self._cross_fit(used, labels, weight, numbers)
            self._calibrate(folds, fold_of_row, used, labels, weight)
        else:
            self._fit(used, labels, weight, numbers)
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def fit_transform(
        self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> Any:
        """Train the heads, and add cross-fitted logits to X.

        Parameters
        ----------
        %(X_y)s
        sample_weight : array-like of shape (n_samples,), default=None
            Weight of each sample; equal by default. Rows of weight zero are not used in training, and get the logits of
            ``transform``.
        groups : array-like of shape (n_samples,), default=None
            Group of each sample, such as the video of a frame. Rows of a group are in the same fold: their logits come
            from heads that were trained without any row of the group.

        Returns
        -------
        ExitArray of shape (n_samples, n_columns_out)
            A DataFrame after ``set_output(transform="pandas")`` or ``"polars"``.
        """
        used, labels, weight, numbers, rows = self._validate(X, y, sample_weight, groups)
        if used.layout.n_exits == 1:  # no decision will be learned from the logits
            return self.fit(X, y, sample_weight, groups).transform(X)
        folds, fold_of_row = self._cross_fit(used, labels, weight, numbers)
        if self.temperature_scaling:
            self._calibrate(folds, fold_of_row, used, labels, weight)
        new = validate_new_data(self, X)
        # Rows that were not used in training are in no fold. They get the logits of the heads trained on all rows.
        fold = np.full(len(new), len(folds))
        fold[rows] = fold_of_row
        heads = [*folds, self]
        if not self._fit_in_memory(new):
            sources = [TransformedLogits(new, of_fold) for of_fold in heads]
            return self._output(MergedLogits(new, sources, fold, np.arange(len(new))), X)
        logits = {k: np.empty((len(new), len(self.classes_))) for k in self.new_logits()}
        for number, of_fold in enumerate(heads):
            rows = np.flatnonzero(fold == number)
            for k, values in of_fold._logits(new[rows]).items():
                logits[k][rows] = values
        return self._output(LogitsSource(new, logits), X)

    def new_logits(self) -> list[int]:
        return [k for k, network in enumerate(self.networks_) if network is not None]

    def _validate(
        self, X: Any, y: Any, sample_weight: Any, groups: Any
    ) -> tuple[ExitArray, Integers, Floats, Integers | None, Rows]:
        """X, labels, weights and groups of the rows that heads learn from, and the indices of these rows."""
        used, self.classes_, labels, weight = validate_training_data(self, X, y, sample_weight)
        check_two_classes(self.classes_)
        numbers = validate_groups(groups, y, sample_weight)
        rows = np.flatnonzero(check_sample_weight(sample_weight, np.empty(len(np.asarray(y)))) > 0)
        if network_teaches(used.layout):
            self.distillation_ = resolve_share_of_network(self.distillation, used, labels)
        else:
            self.distillation_ = resolve_share_of_deepest(self.distillation, used, labels, weight, numbers)
        if self.distillation_ == 0:
            rows = rows[labels >= 0]
            used, labels, weight, numbers = only_labelled(used, labels, weight, numbers)
        return used, labels, weight, numbers, rows

    def _fit(
        self, X: ExitArray, labels: Integers, weight: Floats, groups: Integers | None, parts: Sequence[Rows] = ()
    ) -> list[Self]:
        """Train the heads on all rows, and copies on parts of the rows, which are returned."""
        networks, *of_parts = self._train_each([slice(None), *parts], X, labels, weight, groups)
        self._keep(X, self.classes_, networks)
        self._undo_softening(X, labels, weight)
        trained = [copy.copy(self) for _ in parts]
        for heads, part, networks in zip(trained, parts, of_parts, strict=True):
            heads._set_networks(networks)
            heads._undo_softening(X[part], labels[part], weight[part])
        return trained

    def _train_each(
        self, parts: Sequence[Rows | slice], X: ExitArray, labels: Integers, weight: Floats, groups: Integers | None
    ) -> list[list[Any]]:
        """Train heads on each part of the rows."""

        def train(heads: Self, rows: Rows | slice) -> list[Any]:
            of_rows = X[rows], labels[rows], weight[rows]
            return heads._train(*of_rows, heads._distil(*of_rows, None if groups is None else groups[rows]))

        tasks = [partial(train, self._seeded(), rows) for rows in parts]
        if not self._trains_in_one_thread:
            return [task() for task in tasks]
        return run_side_by_side(tasks, at_most=_BYTES_SIDE_BY_SIDE // (4 * math.prod(X.shape)))

    def _seeded(self) -> Self:
        """A copy whose result does not depend on what else draws from the random state at the same time."""
        heads = copy.copy(self)
        if not is_integer(self.random_state):
            heads.random_state = int(check_random_state(self.random_state).randint(2**31 - 1))
        return heads

    def _keep(self, X: ExitArray, classes: NDArray[Any], networks: list[Any]) -> None:
        self.layout_, self.classes_ = X.layout, classes
        self._set_networks(networks)
        self.layout_out_ = self._layout_with_heads()

    def _set_networks(self, networks: list[Any]) -> None:
        """Replace the heads."""
        self.networks_ = networks

    def _divide_logits(self, k: int, temperature: float) -> None:
        """Divide the logits of exit `k` by a temperature."""
        self.networks_[k] = self.networks_[k].divided_by(temperature)

    def _layout_with_heads(self) -> ExitLayout:
        multiply_adds = np.cumsum([0 if head is None else head.n_multiply_adds for head in self.networks_])
        return add_heads(self.layout_, multiply_adds).replace(
            n_logits=[len(self.classes_)] * self.layout_.n_exits, classes=self.classes_
        )

    def _exit_table(self) -> str:
        if not hasattr(self, "layout_out_"):
            return ""
        heads = ["none: the exit has logits" if head is None else self._describe_head(head) for head in self.networks_]
        return exit_table(cost_columns(self.layout_out_) | {"Head": heads})

    def _cross_fit(
        self, X: ExitArray, labels: Integers, weight: Floats, groups: Integers | None
    ) -> tuple[list[Self], Rows]:
        """Train the heads on all rows and on folds; return the heads of each fold, and the fold of each row.

        The heads of a fold are trained without its rows. With three folds or more, they are made as confident as heads
        of all rows.
        """
        splits = cross_validation_splits(self.cv, labels, self.random_state, groups)
        fold_of_row = np.empty(len(X), dtype=np.intp)
        for number, (_, test_rows) in enumerate(splits):
            fold_of_row[test_rows] = number
        parts, n_folds = [train_rows for train_rows, _ in splits], len(splits)
        smaller = np.flatnonzero(fold_of_row >= max(2 * n_folds // 5, 2))
        # With two folds, a smaller part has too few rows to extrapolate from its confidence.
        if n_folds == 2 or len(smaller) < 2:
            return self._fit(X, labels, weight, groups, parts), fold_of_row
        *folds, of_smaller = self._fit(X, labels, weight, groups, [*parts, smaller])
        self._match_confidence(folds, fold_of_row, of_smaller, smaller, X, weight)
        return folds, fold_of_row

    def _distil(self, X: ExitArray, labels: Integers, weight: Floats, groups: Integers | None) -> Distillation | None:
        """How the heads of these rows learn from their teacher; None if they learn from labels alone."""
        if self.distillation_ == 0 or network_teaches(X.layout):
            return Distillation.from_network(X, self.distillation_, self.temperature)
        splits = teacher_splits(labels, groups)
        if not splits:  # a fold may have too few rows, though all rows together are enough
            return None
        shares = shares_by_exit(X.layout, self.distillation_)
        return Distillation(shares, self.temperature, self._deepest_head(splits, X, labels, weight))

    def _deepest_head(self, splits: Splits, X: ExitArray, labels: Integers, weight: Floats) -> ReadRows:
        """Train the deepest head on labels and its own features, and return a function that reads its logits.

        The logits are cross-fitted. They are computed when they are read, because those of all rows may be larger than
        memory.
        """
        deepest = X.select_exits([X.layout.n_exits - 1])
        folds: list[Self] = []
        fold_of_row = np.empty(len(X), dtype=np.intp)
        for train_rows, test_rows in splits:
            fold_of_row[test_rows] = len(folds)
            folds.append(copy.copy(self))
            folds[-1]._set_networks(self._train(deepest[train_rows], labels[train_rows], weight[train_rows], None))
        return lambda rows: folds[0]._held_out_logits(folds, fold_of_row, deepest, rows)[0]

    def _undo_softening(self, X: ExitArray, labels: Integers, weight: Floats) -> None:
        """Divide the logits of distilled heads by the temperatures that fit the labels best.

        Otherwise they would be as confident as the network's own logits on rows that it was trained on. If no row has a
        label, the temperatures do not change. They do not change either if the deepest head teaches: its logits for
        rows that it has not seen are not too confident.
        """
        if self.distillation_ == 0 or not network_teaches(X.layout):
            return
        rows = enough_labelled_rows(labels, X.layout.n_exits * len(self.classes_))
        if len(rows):
            self._softness = np.ones(X.layout.n_exits)
            for k, logits in self._logits(X[rows]).items():
                self._softness[k] = temperature_within_bounds(logits, labels[rows], weight[rows])
        for k in self.new_logits():
            self._divide_logits(k, float(self._softness[k]))

    def _match_confidence(
        self, folds: list[Self], fold_of_row: Rows, of_smaller: Self, smaller: Rows, X: ExitArray, weight: Floats
    ) -> None:
        """Divide the logits of the folds' heads by temperatures, so that they are as confident as heads of all rows.

        The confidence of heads on new rows depends on the number of rows that they learned from. The change from the
        heads `of_smaller`, trained on the rows `smaller`, to the heads of the folds is measured, and extrapolated to
        all rows in proportion to the logarithm of the number of rows.
        """
        n_fold = len(X) * (1 - 1 / len(folds))
        others = np.setdiff1d(np.arange(len(X)), smaller)
        rows = others[enough_rows(len(others), X.layout.n_exits * len(self.classes_))]
        exponent = np.log(len(X) / n_fold) / np.log(n_fold / len(smaller))
        if self._has_hidden_layers:
            exponent *= min(1.0, len(X) / _ROWS_OF_WHOLE_CHANGE)
        logits_of_smaller = of_smaller._logits(X[rows])
        for k, logits in self._held_out_logits(folds, fold_of_row, X, rows).items():
            temperature = match_confidence(logits_of_smaller[k], logits, weight[rows]) ** exponent
            for fold in folds:
                fold._divide_logits(k, temperature)

    def _held_out_logits(self, folds: list[Self], fold_of_row: Rows, X: ExitArray, rows: Rows) -> dict[int, Floats]:
        """Cross-fitted logits of some rows, by exit."""
        logits = {k: np.empty((len(rows), len(self.classes_))) for k in self.new_logits()}
        for number, fold in enumerate(folds):
            here = np.flatnonzero(fold_of_row[rows] == number)
            for k, values in fold._logits(X[rows[here]]).items():
                logits[k][here] = values
        return logits

    def _calibrate(self, folds: list[Self], fold_of_row: Rows, X: ExitArray, labels: Integers, weight: Floats) -> None:
        """Divide the logits of all heads of an exit by the temperature that fits its cross-fitted logits best."""
        rows = enough_labelled_rows(labels, X.layout.n_exits * len(self.classes_))
        for k, logits in self._held_out_logits(folds, fold_of_row, X, rows).items():
            temperature = fit_temperature(logits, labels[rows], weight[rows])
            for heads in (*folds, self):
                heads._divide_logits(k, temperature)


def check_two_classes(classes: NDArray[Any]) -> None:
    """Raise a ValueError if there is only one class."""
    if len(classes) == 1:
        raise ValueError(f"y has 1 class, {classes.tolist()[0]!r}; pass rows of two classes or more.")
