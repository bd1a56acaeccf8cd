"""The base of policies and heads: their saved state, and their table in notebooks."""

from __future__ import annotations

import copy
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from skexit import _version
from skexit.data._arrays import ExitArray
from skexit.data._layout import ExitLayout
from skexit.exceptions import ExpensiveHeadsWarning, InconsistentVersionWarning, LayoutLostWarning
from skexit.utils._docstring import shared_docs
from skexit.utils._html import WithTable
from skexit.utils._sklearn import _VisualBlock
from skexit.utils._warnings import warn

_VERSION = "_skexit_version"

#: Attributes that hold data of single rows. Only the result of ``predict_set`` depends on them.
ROW_STATE = ("fit_state_", "conformal_scores_")

#: Units in which the same network has the same costs everywhere; measured times vary.
_COUNTED_UNITS = ("FLOPs", "MACs")

#: From this share of the network's cost on, heads raise a warning.
_EXPENSIVE_HEADS = 0.05


class ExitEstimator(BaseEstimator):
    """An estimator that saves the version of skexit with its state, and shows a table of its exits."""

    layout: Any
    _layout_in: ExitLayout
    #: Type in which the X that was fitted was stored.
    _dtype_in: str = "float64"

    #: Data of the training rows that another budget, or further fitting, needs; None if nothing is needed.
    fit_state_: Any = None

    @property
    def layout_fingerprint_(self) -> str:
        """Fingerprint of the layout of X in ``fit``: ``X.layout.fingerprint``."""
        check_is_fitted(self)
        return self._layout_in.fingerprint

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        shared_docs(cls)

    def without_fit_state(self) -> Self:
        """A fitted copy that gives the same predictions and holds no data of single rows, for deployment.

        Its size does not depend on the number of rows. ``with_budget`` and ``predict_set`` need rows: choose the budget
        first, and calibrate the copy if it should predict sets. Heads and policies inside it lose their rows, too.

        Returns
        -------
        estimator
            The same kind of estimator.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the estimator is not fitted.
        """
        check_is_fitted(self)
        return without_rows(self)

    def _exit_table(self) -> str:
        """HTML table of the exits, empty before ``fit``."""
        return ""

    def _sk_visual_block_(self) -> Any:
        # By default, heads that are a parameter would be drawn as if they were fitted, and the table folded away.
        return _VisualBlock("single", self, names=type(self).__name__, name_details=str(self))

    def _get_params_html(self, *args: Any, **kwargs: Any) -> WithTable:
        # scikit-learn asks for this wherever it draws the estimator, in a pipeline, too.
        return WithTable(super()._get_params_html(*args, **kwargs), self._exit_table())

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), _VERSION: _version.__version__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        saved_version = state.pop(_VERSION, "unknown")
        if saved_version != _version.__version__:
            warn(InconsistentVersionWarning(type(self).__name__, saved_version, _version.__version__))
        super().__setstate__(state)


def warn_of_other_costs(estimator: ExitEstimator, X: ExitArray) -> None:
    """Warn if counted costs differ from those of the X in ``fit``.

    The same network on inputs of the same size has exactly the same costs. Costs that the user chose by `layout`
    differ from those of X, and measured costs vary; neither is checked.
    """
    fitted = estimator._layout_in
    if estimator.layout is not None or fitted.cost_unit not in _COUNTED_UNITS or X.layout.cost_unit != fitted.cost_unit:
        return
    if not np.allclose(X.layout.costs, fitted.costs, rtol=1e-6, atol=0):
        warn(
            f"the exits of X cost {X.layout.costs.tolist()} {X.layout.cost_unit}, but {type(estimator).__name__} was "
            f"fitted with {fitted.costs.tolist()}: X is of another network, or of inputs of another size. Budgets and "
            "mean_cost stay fractions of the fitted costs. If X is correct nevertheless, give it the fitted costs: "
            " X.with_layout(X.layout.replace(costs=...)) of an ExitArray, numpy.asarray(X) of a frame."
        )


def warn_of_lost_exits(estimator: ExitEstimator, layout: ExitLayout) -> ExitLayout:
    """Warn if a budget cannot be kept because X has one exit or no layout; returns a layout that is not a default.

    A budget of 1 can always be kept, so it raises no warning.
    """
    budget = getattr(estimator, "budget", None)
    name = type(estimator).__name__
    if layout._guessed != "exits":
        if layout.n_exits == 1 and estimator.layout is None and budget not in (None, 1):
            warn(
                f"X has a single exit, whose cost is 1, so that {name} runs the whole network for every sample, and "
                f"budget={budget!r} cannot be kept. Extract or stack the outputs of more exits; if X should have one "
                "exit, pass budget=1."
            )
        return layout
    if budget == 1:
        return layout
    nothing = "so that there is nothing to decide" if budget is None else f"and budget={budget!r} cannot be kept"
    warn(
        LayoutLostWarning(
            f"X has no layout of exits, so {name} takes it for one exit, whose cost is 1, {nothing}. A scaler, "
            "numpy.asarray, numpy.vstack or a file drops the layout of an ExitArray. Keep it in one of three ways: (1) "
            "pass layout=X.layout of the ExitArray to the first estimator of skexit after that step; (2) apply "
            "transformers of scikit-learn exit by exit, as ExitTransformer(StandardScaler()); (3) leave the scaler "
            "out: ExitHeads standardises features itself. Logits of shape (n_samples, n_exits, n_classes) need no "
            "layout. If X should have one exit, pass layout=1."
        )
    )
    return layout._as_guess(None)


def without_rows(value: Any) -> Any:
    """A copy of an estimator without data of single rows, also in its inner estimators; other values unchanged."""
    if isinstance(value, FrozenEstimator):
        return FrozenEstimator(without_rows(value.estimator))
    if isinstance(value, Pipeline):
        light = copy.copy(value)
        light.steps = [(name, without_rows(step)) for name, step in value.steps]
        return light
    if not isinstance(value, ExitEstimator):
        return value
    light = copy.copy(value)
    light.__dict__.update({name: without_rows(part) for name, part in vars(value).items()})
    for name in ROW_STATE:
        light.__dict__.pop(name, None)
    return light


def warn_of_expensive_heads(layout: ExitLayout) -> None:
    """Warn if the heads of all exits cost more than 5 % of the network."""
    share = layout.head_fractions[-1]
    if share > _EXPENSIVE_HEADS:
        warn(ExpensiveHeadsWarning(float(share)))


def cost_columns(layout: ExitLayout) -> dict[str, list[str]]:
    """Costs of the exits and the part of the heads, in per cent of the network's cost, which the column name gives.

    >>> cost_columns(ExitLayout([0, 0], [2, 2], costs=[1e6, 4e6], cost_unit="MACs"))
    {'Cost, % of 4e+06 MACs': ['25%', '100%']}
    """
    whole = "" if layout.cost_unit in ("fraction", None) else f" of {layout.network_cost:.3g} {layout.cost_unit}"
    columns = {f"Cost, %{whole}": [f"{100 * fraction:.3g}%" for fraction in layout.cost_fractions]}
    if layout.head_costs.any():
        columns["Heads alone"] = [f"{100 * fraction:.2g}%" for fraction in layout.head_fractions]
    return columns
