"""Whole models as the exits of a network."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data

from skexit.cascade._models import Model, indexable, milliseconds_per_row, number_of_rows, take_rows
from skexit.data import ExitLayout
from skexit.data._blocks import warn_of_probabilities
from skexit.data._estimator import cost_columns
from skexit.data._sources import ArraySource
from skexit.heads._transformer import LayoutTransformer
from skexit.utils._html import exit_table
from skexit.utils._labels import index_of_labels
from skexit.utils._module_names import set_module
from skexit.utils._sklearn import Interval, _fit_context
from skexit.utils._warnings import warn


@set_module("skexit")
class ModelCascade(LayoutTransformer):
    """Exits that are whole models: a cheap model runs first, and the next ones run for the samples that continue.

    The cascade is the first step of a pipeline that ends in a policy. The models are fitted already, on other rows
    than those of the policy, and are not fitted again. ``fit_transform`` runs every model on every row; its result is
    the X on which policies are fitted and searched. ``transform`` runs a model on a row when its logits are first
    read. Thus ``predict`` of the pipeline, or of a policy on the result of ``transform``, runs each model only for
    the samples that reach it.

    Parameters
    ----------
    models : list of models, or of (str, model)
        Models from cheap to expensive, with names for tables and messages. A model is a fitted classifier with
        ``predict_proba`` or ``decision_function``, or a torch module that returns logits. All have the same classes.
    costs : array-like of shape (n_models,), default=None
        Cost of each model alone for one row, in `cost_unit`. By default ``fit`` measures milliseconds.
    cost_unit : str, default=None
        Unit of `costs`, such as ``"FLOPs"``; ``"ms"`` if they are measured.
    classes : array-like of shape (n_classes,), default=None
        Class labels in the order of the logits of torch modules. By default the sorted classes of the classifiers;
        if all models are torch modules, the classes in the y on which the policy is fitted.
    batch_size : int, default=256
        Largest number of rows on which a model runs at a time. Costs are measured on as many rows.

    Attributes
    ----------
    model_costs_ : ndarray of shape (n_models,)
        Cost of each model alone for one row, measured or given.
    layout_out_ : ExitLayout
        Layout of the result of ``transform``. The cost of an exit is the sum of the costs of the models up to it;
        ``network_cost`` is the cost of the last model alone, which would run for all samples without a cascade.

    See Also
    --------
    ExitPipeline : Holds the cascade and its policy.
    stack_exits : Makes X from logits or probabilities that are computed already.

    Notes
    -----
    Costs are fractions of the cost of the last model, so that a sample that all models process costs more than 1. The
    cost of an exit counts every model up to it. After ``transform``, however, a model is not run if no sample can stop
    at its exit; predictions are then cheaper than ``mean_cost``.

    The logits of a classifier are the logarithms of its ``predict_proba``, with values below 1e-12 raised to 1e-12, or
    its ``decision_function`` if it has no ``predict_proba``. The logits of a torch module are its output, or the
    ``logits`` in its output, in evaluation mode.

    X may be an array, a DataFrame, a sparse matrix, a list of texts, a tensor, or any other object whose rows can be
    selected. A torch module gets numbers as tensors, on its device and in its precision. The values of a dict are
    passed to it by keyword, the tensors of a tuple by position.

    Times are medians of up to ten runs on the first `batch_size` rows of X; smaller batches take longer per row. Every
    ``fit``, in each fold of a search, measures them again. To keep them, pass `costs`, or the fitted cascade in a
    :class:`sklearn.frozen.FrozenEstimator`. Clones share the models.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.svm import SVC
    >>> from skexit import ModelCascade, ThresholdPolicy, make_exit_pipeline
    >>> images, y = load_digits(return_X_y=True)
    >>> small = LogisticRegression(C=0.01).fit(images[:600] / 16, y[:600])
    >>> large = SVC().fit(images[:600] / 16, y[:600])
    >>> cascade = ModelCascade([("small", small), ("large", large)], costs=[1, 20])
    >>> pipeline = make_exit_pipeline(cascade, ThresholdPolicy(budget=0.5)).fit(images[600:1200] / 16, y[600:1200])
    >>> pipeline.costs_.tolist()
    [0.05, 1.05]
    >>> bool(pipeline.mean_cost(images[1200:] / 16) < 0.6)
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "models": [list, tuple],
        "costs": ["array-like", None],
        "cost_unit": [str, None],
        "classes": ["array-like", None],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
    }

    _makes_exits = True  # from inputs that have no exits

    def __init__(
        self,
        models: Sequence[Any],
        *,
        costs: ArrayLike | None = None,
        cost_unit: str | None = None,
        classes: ArrayLike | None = None,
        batch_size: int = 256,
    ) -> None:
        self.models = models
        self.costs = costs
        self.cost_unit = cost_unit
        self.classes = classes
        self.batch_size = batch_size

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: ArrayLike | None = None) -> ModelCascade:
        """Measure the costs of the models, unless `costs` are given; the models are not changed.

        Parameters
        ----------
        X : array-like, DataFrame, list, tensor, or dict or tuple of tensors, with n_samples rows
            Inputs of the models. The first `batch_size` rows are used.
        y : ignored
            The models are fitted already.

        Returns
        -------
        self : ModelCascade
            This cascade, with costs and layout.

        Raises
        ------
        ValueError
            If X has no rows; a model is not fitted, has neither ``predict_proba`` nor ``decision_function``, or lacks a
            class that another has; or `costs` are not one positive number per model, or missing for a `cost_unit`.

        Warns
        -----
        UserWarning
            If a model costs as much as the last one, or the output of a torch module looks like probabilities.
        """
        models, unit = self._models(), self._find_unit()
        classes = self._find_classes(models)
        self._check_columns(X, reset=True)
        X = indexable(X)
        first = take_rows(X, np.arange(min(number_of_rows(X), self.batch_size)))
        answers = [model.logits(first) for model in models]
        _check_widths(models, answers, classes)
        for model, logits in zip(models, answers, strict=True):
            if model.is_module:
                _warn_of_softmax(model, logits)
        self._dtype = np.result_type(*answers).name
        if self.costs is None:
            self.model_costs_ = milliseconds_per_row(
                [partial(model.logits, first) for model in models], len(answers[0])
            )
        else:
            self.model_costs_ = _check_costs(self.costs, len(models))
        _warn_of_order(models, self.model_costs_)
        self.layout_out_ = self._layout_in = ExitLayout(
            [answers[0].shape[1]] * len(models),
            costs=np.cumsum(self.model_costs_),
            cost_unit=unit,
            classes=classes,
            network_cost=self.model_costs_[-1],
        )
        return self

    def fit_transform(self, X: Any, y: ArrayLike | None = None) -> Any:
        """Measure costs as ``fit`` does, and run every model on every row; policies are fitted on the result.

        Parameters
        ----------
        X : array-like, DataFrame, list, tensor, or dict or tuple of tensors, with n_samples rows
            Inputs of the models, with rows on which they were not trained.
        y : ignored
            The models are fitted already.

        Returns
        -------
        ExitArray of shape (n_samples, n_columns)
            Logits in memory. A DataFrame after ``set_output(transform="pandas")``.
        """
        self.fit(X, y)
        source = _LogitsWhenRead(self, X)
        logits = [source.read(self.layout_out_, k, "logits", slice(None)) for k in range(self.layout_out_.n_exits)]
        return self._output(ArraySource(np.hstack(logits)), X)

    def transform(self, X: Any) -> Any:
        """Logits of the models; a model runs on a row once, when its logits are first read.

        Parameters
        ----------
        X : array-like, DataFrame, list, tensor, or dict or tuple of tensors, with n_samples rows
            Inputs of the models. They are read later, and must not be changed until then.

        Returns
        -------
        ExitArray of shape (n_samples, n_columns)
            Logits, computed when they are read. A DataFrame after ``set_output(transform="pandas")``: all models run.
        """
        check_is_fitted(self)
        self._check_columns(X, reset=False)
        return self._output(_LogitsWhenRead(self, X), X)

    def _check_columns(self, X: Any, *, reset: bool) -> None:
        """Store the columns of a table if `reset`; otherwise raise a ValueError unless they are the stored ones."""
        if len(getattr(X, "shape", ())) == 2:
            validate_data(self, X, reset=reset, skip_check_array=True)

    def _models(self) -> list[Model]:
        if not self.models:
            raise ValueError(f"models={self.models!r} has no model; pass one or more, from cheap to expensive.")
        return [
            Model(given[1], k, given[0]) if isinstance(given, tuple) and len(given) == 2 else Model(given, k)
            for k, given in enumerate(self.models)
        ]

    def _find_classes(self, models: list[Model]) -> NDArray[Any] | None:
        """The classes in the order of the logits. Raises a ValueError if models have different classes."""
        known = [(model.name, model.classes) for model in models if model.classes is not None]
        if self.classes is not None:
            known.insert(0, ("classes", np.asarray(self.classes)))
        for name, classes in known:
            for other, others in known:
                missing = [label for label in others.tolist() if label not in classes.tolist()]
                if missing:
                    cure = "Give all classes" if name == "classes" else "Fit it on rows of every class"
                    raise ValueError(
                        f"{name} lacks the class {missing[0]!r}, which {other} has; all models of a cascade need the "
                        f"same classes. {cure}, or leave the model out."
                    )
        if not known:
            return None
        return known[0][1] if self.classes is not None else np.unique(known[0][1])

    def _find_unit(self) -> str | None:
        if self.costs is None and self.cost_unit not in (None, "ms"):
            raise ValueError(
                f"cost_unit={self.cost_unit!r} needs costs in that unit; without costs, milliseconds are measured. "
                "Pass costs=, or leave cost_unit=None."
            )
        return "ms" if self.costs is None else self.cost_unit

    def _exit_table(self) -> str:
        if not hasattr(self, "layout_out_"):
            return ""
        return exit_table({"Model": [model.name for model in self._models()]} | cost_columns(self.layout_out_))

    def __sklearn_clone__(self) -> Self:
        """A cascade that is not fitted, with the same models, which stay fitted."""
        cloned = type(self)(**self.get_params(deep=False))
        if hasattr(self, "_sklearn_output_config"):
            cloned._sklearn_output_config = copy.deepcopy(self._sklearn_output_config)
        return cloned

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.no_validation = tags.input_tags.sparse = tags.input_tags.string = True  # the models check the inputs
        return tags


class _LogitsWhenRead:
    """Logits of the models of a cascade; a model runs on a row when its logits are first read."""

    #: Models do not run on rows that are not read.
    saves_unread_rows = True

    def __init__(self, cascade: ModelCascade, inputs: Any) -> None:
        self._inputs, self._batch_size = indexable(inputs), cascade.batch_size
        self.n_rows, self.dtype = number_of_rows(self._inputs), np.dtype(cascade._dtype)
        self._models, layout = cascade._models(), cascade.layout_out_
        self._classes = layout.classes
        shape = (layout.n_exits, self.n_rows)
        self._is_known = np.zeros(shape, dtype=bool)
        # Pages that are never written take no memory.
        self._logits = np.empty((*shape, layout.n_logits[0]), dtype=self.dtype)

    def read(self, layout: ExitLayout, k: int, part: str, rows: Any) -> NDArray[Any]:
        numbers = np.arange(self.n_rows)[rows]
        if part == "features":
            return np.empty((len(numbers), 0), dtype=self.dtype)
        unknown = np.unique(numbers[~self._is_known[k, numbers]])
        for start in range(0, len(unknown), self._batch_size):
            self._run(k, unknown[start : start + self._batch_size])
        return self._logits[k, numbers]

    def _run(self, k: int, rows: NDArray[np.intp]) -> None:
        model = self._models[k]
        logits = model.logits(take_rows(self._inputs, rows))
        if model.classes is not None and self._classes is not None:
            logits = logits[:, index_of_labels(self._classes, model.classes)]
        self._logits[k, rows] = logits
        self._is_known[k, rows] = True


def _check_widths(models: list[Model], answers: list[NDArray[Any]], classes: NDArray[Any] | None) -> None:
    n_classes = answers[-1].shape[1] if classes is None else len(classes)
    for model, logits in zip(models, answers, strict=True):
        if logits.shape[1] != n_classes:
            expected = "one per logit of the last model" if classes is None else f"one per class of {classes.tolist()}"
            raise ValueError(f"{model.name} returns {logits.shape[1]} logits; it must return {n_classes}, {expected}.")


def _check_costs(costs: ArrayLike, n_models: int) -> NDArray[np.float64]:
    checked = np.asarray(costs, dtype=np.float64)
    if checked.shape != (n_models,):
        raise ValueError(f"costs has the shape {checked.shape}; give the cost of each of {n_models} models alone.")
    if not (np.isfinite(checked) & (checked > 0)).all():
        raise ValueError(f"costs={checked.tolist()} must be positive and finite: each is the cost of one model alone.")
    return checked


def _warn_of_softmax(model: Model, logits: NDArray[Any]) -> None:
    cure = f"Leave out the softmax at the end of {model.name}, or take the logarithm of its output."
    warn_of_probabilities([*[None] * model.k, logits], cure)


def _warn_of_order(models: list[Model], costs: NDArray[np.float64]) -> None:
    for model, cost in zip(models[:-1], costs[:-1], strict=True):
        if cost >= costs[-1]:
            warn(
                f"{model.name} costs {cost:.4g} and the last model {costs[-1]:.4g}, so running it first saves nothing. "
                "Order the models from cheap to expensive, or leave it out."
            )
