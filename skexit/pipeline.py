"""Pipelines that end in a policy, and the one to start with."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from skexit.data._estimator import without_rows
from skexit.heads import ExitEnsemble, ExitHeads
from skexit.policies import BudgetedPolicy, ExitPolicy, ExitState, ExitStep, OptimalStoppingPolicy
from skexit.policies._access import last_step_and_data, steps_of, with_last_step
from skexit.policies._steps import decide
from skexit.utils._module_names import set_module


def _policy_has(name: str) -> Callable[[Pipeline], bool]:
    def check(pipeline: Pipeline) -> bool:
        getattr(steps_of(pipeline)[-1], name)  # the AttributeError says what lacks it
        return True

    return check


def _by_policy(name: str) -> Any:
    """A method of the policy, on what the steps before it make of X."""

    @wraps(getattr(BudgetedPolicy, name))
    def method(self: Pipeline, X: Any, *args: Any, **kwargs: Any) -> Any:
        check_is_fitted(self)
        policy, X = last_step_and_data(self, X)
        return getattr(policy, name)(X, *args, **kwargs)

    return available_if(_policy_has(name))(method)


def _of_policy(name: str) -> Any:
    """An attribute of the policy."""

    def read(self: Pipeline) -> Any:
        return getattr(steps_of(self)[-1], name)

    return property(read, doc=f"``{name}`` of the policy.")


@set_module("skexit")
class ExitPipeline(Pipeline):
    """A :class:`~sklearn.pipeline.Pipeline` that ends in a policy, with the methods of the policy.

    ``predict_exit``, ``exit_scores``, ``mean_cost``, ``predict_at_exits`` and ``predict_set`` take X as the first step
    does, ``decide`` the network's own logits and features; otherwise they are those of the policy. ``thresholds_``,
    ``costs_``, ``exit_distribution_``, ``layout_`` and ``temperatures_`` are the policy's. A method is there where the
    policy has it, as ``with_budget`` is not for :class:`StaticExit`. Everything else is as in scikit-learn's pipeline,
    and ``best_estimator_`` of a search over such a pipeline is one, too.

    Parameters
    ----------
    steps : list of (str, estimator)
        Names and estimators: what gives logits, as :class:`ExitHeads` and :class:`ExitEnsemble` do, and the policy.
    transform_input : list of str, default=None
        As in scikit-learn's pipeline.
    memory : str or joblib.Memory, default=None
        Where fitted transformers are cached, as in scikit-learn's pipeline.
    verbose : bool, default=False
        Whether ``fit`` prints the time of each step.

    See Also
    --------
    make_exit_pipeline : Names the steps itself.
    recommended_pipeline : The steps to start with.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skexit import ExitHeads, ExitPipeline, ThresholdPolicy, stack_exits
    >>> images, y = load_digits(return_X_y=True)
    >>> X = stack_exits(features=[images[:, :32], images])
    >>> pipeline = ExitPipeline([("heads", ExitHeads(random_state=0)), ("policy", ThresholdPolicy(budget=0.7))])
    >>> pipeline = pipeline.fit(X[:1200], y[:1200])
    >>> round(pipeline.mean_cost(X[1200:]), 1)
    0.7
    >>> pipeline.with_budget(0.5).predict_exit(X[1200:]).max()
    np.int64(0)
    """

    thresholds_ = _of_policy("thresholds_")
    costs_ = _of_policy("costs_")
    exit_distribution_ = _of_policy("exit_distribution_")
    layout_ = _of_policy("layout_")
    temperatures_ = _of_policy("temperatures_")

    predict_exit = _by_policy("predict_exit")
    predict_at_exits = _by_policy("predict_at_exits")
    exit_scores = _by_policy("exit_scores")
    mean_cost = _by_policy("mean_cost")
    predict_set = _by_policy("predict_set")

    @property
    def layout_fingerprint_(self) -> str:
        """Fingerprint of the layout of the X that was fitted: that of ``X.layout``."""
        fingerprint: str = steps_of(self)[0].layout_fingerprint_
        return fingerprint

    @available_if(_policy_has("decide"))
    @wraps(ExitPolicy.decide)
    def decide(self, k: int, logits: Any = None, features: Any = None, state: ExitState | None = None) -> ExitStep:
        check_is_fitted(self)
        return decide(steps_of(self), k, logits, features, state)

    @available_if(_policy_has("calibrate"))
    def calibrate(self, X: Any, y: ArrayLike, **parameters: Any) -> Self:
        """Calibrate the policy, as by its ``calibrate``, on rows that were not used in fitting.

        Parameters
        ----------
        X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
            As the first step takes it.
        y : array-like of shape (n_samples,)
            Class labels.
        **parameters
            Those of ``calibrate`` of the policy, such as ``temperature``.

        Returns
        -------
        self : ExitPipeline
            With the policy calibrated.
        """
        check_is_fitted(self)
        policy, X = last_step_and_data(self, X)
        policy.calibrate(X, y, **parameters)
        return self

    @available_if(_policy_has("with_budget"))
    def with_budget(self, budget: float) -> Self:
        """A fitted copy for another budget; nothing is trained again, and the copy is not calibrated.

        Parameters
        ----------
        budget : float
            As for ``with_budget`` of the policy.

        Returns
        -------
        ExitPipeline
            It shares the steps before the policy with this one.
        """
        check_is_fitted(self)
        copied: Self = with_last_step(self, steps_of(self)[-1].with_budget(budget))
        return copied

    @available_if(_policy_has("meet_budget"))
    def meet_budget(self, X: Any) -> Self:
        """A fitted copy whose thresholds meet the budget on other rows, which need no labels.

        Parameters
        ----------
        X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
            As the first step takes it.

        Returns
        -------
        ExitPipeline
            It shares the steps before the policy with this one.
        """
        check_is_fitted(self)
        policy, X = last_step_and_data(self, X)
        copied: Self = with_last_step(self, policy.meet_budget(X))
        return copied

    @available_if(_policy_has("without_fit_state"))
    def without_fit_state(self) -> Self:
        """A fitted copy that answers alike, and holds nothing of single rows: what to ship.

        Returns
        -------
        ExitPipeline
            Of the same steps, without what ``with_budget`` and ``predict_set`` need of the rows.
        """
        check_is_fitted(self)
        light: Self = without_rows(self)
        return light


def make_exit_pipeline(
    *steps: Any, memory: Any = None, transform_input: list[str] | None = None, verbose: bool = False
) -> ExitPipeline:
    """An :class:`ExitPipeline` whose steps have the names of their classes, in lower case.

    Parameters
    ----------
    *steps : estimators
        What gives logits, and the policy.
    memory : str or joblib.Memory, default=None
        Where fitted transformers are cached.
    transform_input : list of str, default=None
        As in scikit-learn's pipeline.
    verbose : bool, default=False
        Whether ``fit`` prints the time of each step.

    Returns
    -------
    ExitPipeline
        Not fitted, unless the steps are.

    See Also
    --------
    sklearn.pipeline.make_pipeline : The same for any estimators.

    Examples
    --------
    >>> from skexit import ExitHeads, ThresholdPolicy, make_exit_pipeline
    >>> list(make_exit_pipeline(ExitHeads(), ThresholdPolicy()).named_steps)
    ['exitheads', 'thresholdpolicy']
    """
    named = make_pipeline(*steps).steps
    return ExitPipeline(named, memory=memory, transform_input=transform_input, verbose=verbose)


def recommended_heads(random_state: int | np.random.RandomState | None = None) -> ExitHeads:
    """The heads that did best where we compared them.

    One hidden layer that is handed on from exit to exit, and learns from the network's own logits where X has them.
    Penalty, dropout and passes follow the number of rows. A fit of 50,000 rows of nine exits with 5,000 features in all
    takes about a minute, of 5,000 rows about fifteen seconds.

    Parameters
    ----------
    random_state : int, RandomState instance or None, default=None
        Seeds the splits, the initial weights and the batches.

    Returns
    -------
    ExitHeads
        Not fitted; its parameters are free to change by ``set_params``.

    See Also
    --------
    recommended_pipeline : These heads, an ensemble and a policy.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skexit import recommended_heads, recommended_pipeline, stack_exits
    >>> images, y = load_digits(return_X_y=True)
    >>> X = stack_exits(features=[images[:, :32], images[:, 32:]])  # the upper half, then the lower
    >>> heads = recommended_heads(random_state=0).fit(X[:900], y[:900])
    >>> pipeline = recommended_pipeline(0.6, heads=heads, random_state=0).fit(X[900:1400], y[900:1400])
    >>> bool(pipeline.score(X[1400:], y[1400:]) > 0.8)
    True
    """
    return ExitHeads(
        (192,), cascade=True, dropout="auto", learning_rate=0.005, batch_size=512, cv=4, random_state=random_state
    )


def recommended_pipeline(
    budget: float = 0.5, *, heads: ExitHeads | None = None, random_state: int | np.random.RandomState | None = None
) -> ExitPipeline:
    """The heads, the ensemble and the policy that did best where we compared them.

    Heads with a hidden layer that is handed on from exit to exit, exits that answer with those
    before them, and :class:`OptimalStoppingPolicy`. All are set as by default, so that what is
    known of your data can go into their parameters:
    ``pipeline.set_params(ensemble__heads__hidden_layer_sizes=(64,))``.

    Parameters
    ----------
    budget : float, default=0.5
        Mean cost of a sample on the data that is fitted, a fraction in (0, 1] of the network's cost, heads included.
    heads : ExitHeads, default=None
        Fitted heads, used as they are: best trained on many rows, such as those that the network
        was trained on, which may not serve to fit the policy. By default, :func:`recommended_heads` are
        trained on the same rows as the policy, and cross-fitted.
    random_state : int, RandomState instance or None, default=None
        Seeds heads and policy.

    Returns
    -------
    ExitPipeline
        Of the steps ``"ensemble"`` and ``"policy"``, not fitted.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skexit import recommended_pipeline, stack_exits
    >>> images, y = load_digits(return_X_y=True)
    >>> X = stack_exits(features=[images[:, :32], images[:, 32:]])  # the upper half, then the lower
    >>> pipeline = recommended_pipeline(budget=0.6, random_state=0).fit(X[:1200], y[:1200])
    >>> bool(pipeline.score(X[1200:], y[1200:]) > 0.8)
    True
    >>> round(pipeline.mean_cost(X[1200:]), 1)
    0.6
    """
    used = recommended_heads(random_state) if heads is None else FrozenEstimator(heads)
    return ExitPipeline(
        [("ensemble", ExitEnsemble(used)), ("policy", OptimalStoppingPolicy(budget, random_state=random_state))]
    )
