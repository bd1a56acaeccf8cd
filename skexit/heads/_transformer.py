"""Base classes of transformers whose output has the exits of X, and of transformers that add logits."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.base import TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from skexit.data import ExitArray, ExitLayout
from skexit.data._estimator import ExitEstimator
from skexit.data._lazy import TransformedLogits, fit_in_memory, saves_unread_rows
from skexit.data._overlays import LogitsSource
from skexit.data._sources import ColumnSource
from skexit.data._validation import validate_new_data
from skexit.data._walk import collect
from skexit.utils._sklearn import _get_output_config


class LayoutTransformer(TransformerMixin, ExitEstimator):
    """A transformer whose output has the exits of X; ``layout_out_`` is the layout of the output."""

    layout_: ExitLayout
    layout_out_: ExitLayout

    #: Whether X has no exits before ``transform``.
    _makes_exits = False

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[Any]:
        """Names of the columns that ``transform`` returns.

        Parameters
        ----------
        input_features : ignored
            Not used: the names follow from the layout.

        Returns
        -------
        ndarray of shape (n_columns_out,) of str
            Such as ``exit0__logit0``.
        """
        check_is_fitted(self)
        return np.asarray(self.layout_out_.column_names(), dtype=object)

    def _output(self, source: ColumnSource, original: Any, layout: ExitLayout | None = None) -> Any:
        output = ExitArray(source, self.layout_out_ if layout is None else layout)
        container = _get_output_config("transform", self)["dense"]
        if container == "pandas":
            return output.to_frame(index=original.index if hasattr(original, "iloc") else None)
        # For other containers, scikit-learn makes the frame itself, from a plain array.
        return output if container == "default" else np.asarray(output)


class LogitsTransformer(LayoutTransformer):
    """A transformer that adds logits to X. The logits of an exit depend on this exit and earlier exits only.

    A subclass implements `fit`, `exit_logits`, `new_logits` and `earlier_exits`, and sets ``classes_``, ``layout_`` and
    ``layout_out_``.
    """

    classes_: NDArray[Any]

    @abstractmethod
    def exit_logits(self, k: int, logits: Any, features: Any, memory: dict[str, Any]) -> Any:
        """Logits of exit `k` for the samples that are still running.

        Parameters
        ----------
        k : int
            The exit, counted from 0.
        logits : array of shape (n_samples, n_classes) or None
            The exit's own logits.
        features : array of shape (n_samples, n_features) or None
            Features of the exit; None if `uses_features` is False for it.
        memory : dict of str to array of shape (n_samples, ...)
            Values that earlier exits stored for these samples; changed in place.

        Returns
        -------
        array of shape (n_samples, n_classes)
            In the order of ``classes_``.
        """

    @abstractmethod
    def new_logits(self) -> Iterable[int]:
        """Exits whose logits differ from those in X."""

    @abstractmethod
    def earlier_exits(self, k: int) -> range:
        """Exits before `k` on which its logits depend.

        Parameters
        ----------
        k : int
            The exit, counted from 0.

        Returns
        -------
        range
            Empty if the logits of exit `k` depend on no other exit.
        """

    def uses_features(self, k: int) -> bool:
        """Whether `exit_logits` uses the features of exit `k`; True by default.

        Parameters
        ----------
        k : int
            The exit, counted from 0.

        Returns
        -------
        bool
            False if the features of exit `k` need not be read.
        """
        return True

    def transform(self, X: Any) -> Any:
        """Add logits to every exit of X.

        Logits that depend on earlier exits are computed at once if they take at most 512 MiB. All other logits are
        computed when they are read.

        Parameters
        ----------
        %(X)s

        Returns
        -------
        ExitArray of shape (n_samples, n_columns_out)
            A DataFrame after ``set_output(transform="pandas")`` or ``"polars"``.
        """
        check_is_fitted(self)
        new = validate_new_data(self, X)
        # If the exits were read one after another, each of them would compute the earlier exits again.
        at_once = (
            self._fit_in_memory(new)
            and any(self.earlier_exits(k) for k in self.new_logits())
            and not saves_unread_rows(new)
        )
        return self._output(LogitsSource(new, self._logits(new)) if at_once else TransformedLogits(new, self), X)

    def _fit_in_memory(self, X: ExitArray) -> bool:
        return fit_in_memory(len(X), X.layout.n_exits, len(self.classes_))

    def _logits(self, X: ExitArray) -> dict[int, NDArray[np.float64]]:
        """New logits of all rows, by exit."""
        new = set(self.new_logits())
        exits = range(max(new, default=-1) + 1)
        logits = collect(self.exit_logits, X, exits, uses_features=self.uses_features)
        return {k: values for k, values in logits.items() if k in new}

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.one_d_labels = True
        return tags


def logits_by(transformer: Any, method: str, X: ExitArray, *arguments: Any, **named: Any) -> ExitArray:
    """Result of a method of a transformer as an ExitArray, whichever output container is set."""
    with config_context(transform_output="default"):
        output = getattr(transformer, method)(X, *arguments, **named)
    if isinstance(output, ExitArray):
        return output
    return ExitArray.from_array(output, getattr(transformer, "layout_out_", None))
