"""Pipelines that end in a policy, and a recommended pipeline."""

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
        getattr(steps_of(pipeline)[-1], name)  # raises an AttributeError that names the class of the policy
        return True

    return check


def _policy_method(name: str) -> Any:
    """A method of the policy, which is applied to X after the steps before the policy."""

    @wraps(getattr(BudgetedPolicy, name))
    def method(self: Pipeline, X: Any, *args: Any, **kwargs: Any) -> Any:
        check_is_fitted(self)
        policy, X = last_step_and_data(self, X)
        return getattr(policy, name)(X, *args, **kwargs)

    return available_if(_policy_has(name))(method)


def _policy_attribute(name: str) -> Any:
    """An attribute of the policy."""

    def read(self: Pipeline) -> Any:
        return getattr(steps_of(self)[-1], name)

    return property(read, doc=f"``{name}`` of the policy.")


@set_module("skexit")
class ExitPipeline(Pipeline):
    """A :class:`~sklearn.pipeline.Pipeline` that ends in a policy, with the methods of the policy.

    ``predict_exit``, ``exit_scores``, ``mean_cost``, ``predict_at_exits`` and ``predict_set`` take X in the form that
    the first step takes. ``decide`` takes the logits and features of the network. Otherwise these are the methods of
    the policy. ``thresholds_``, ``costs_``, ``exit_distribution_``, ``layout_`` and ``temperatures_`` are attributes of
    the policy. The pipeline has only the methods that the policy has: :class:`StaticExit` has no ``with_budget``.
    Everything else is as in scikit-learn's pipeline. A search over such pipelines has an ExitPipeline as
    ``best_estimator_``.

    Parameters
    ----------
    steps : list of (str, estimator)
        Names and estimators: steps that give logits, such as :class:`ExitHeads` and :class:`ExitEnsemble`; the policy.
    transform_input : list of str, default=None
        As in scikit-learn's pipeline.
    memory : str or joblib.Memory, default=None
        Where fitted transformers are cached, as in scikit-learn's pipeline.
    verbose : bool, default=False
        Whether ``fit`` prints the time of each step.

    See Also
    --------
    make_exit_pipeline : Names the steps after their classes.
    recommended_pipeline : The pipeline to start with.

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

    thresholds_ = _policy_attribute("thresholds_")
    costs_ = _policy_attribute("costs_")
    exit_distribution_ = _policy_attribute("exit_distribution_")
    layout_ = _policy_attribute("layout_")
    temperatures_ = _policy_attribute("temperatures_")

    predict_exit = _policy_method("predict_exit")
    predict_at_exits = _policy_method("predict_at_exits")
    exit_scores = _policy_method("exit_scores")
    mean_cost = _policy_method("mean_cost")
    predict_set = _policy_method("predict_set")

    @property
    def layout_fingerprint_(self) -> str:
        """Fingerprint of ``X.layout``, for the X that was passed to ``fit``."""
        fingerprint: str = steps_of(self)[0].layout_fingerprint_
        return fingerprint

    @available_if(_policy_has("decide"))
    @wraps(ExitPolicy.decide)
    def decide(self, k: int, logits: Any = None, features: Any = None, state: ExitState | None = None) -> ExitStep:
        check_is_fitted(self)
        return decide(steps_of(self), k, logits, features, state)

    @available_if(_policy_has("calibrate"))
    def calibrate(self, X: Any, y: ArrayLike, **parameters: Any) -> Self:
        """Calibrate the policy, with its ``calibrate``, on rows that were not used in fitting.

        This changes the policy in the pipeline; to keep it, calibrate a copy:
        ``copy.deepcopy(pipeline).calibrate(X, y)``.

        Parameters
        ----------
        X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
            Rows in the form that the first step takes.
        y : array-like of shape (n_samples,)
            Class labels.
        **parameters
            Further parameters of the policy's ``calibrate``, such as ``temperature``.

        Returns
        -------
        self : ExitPipeline
            The same pipeline, with its policy calibrated.
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
            As in ``with_budget`` of the policy.

        Returns
        -------
        ExitPipeline
            The copy, which has the same steps before the policy as this pipeline.
        """
        check_is_fitted(self)
        copied: Self = with_last_step(self, steps_of(self)[-1].with_budget(budget))
        return copied

    @available_if(_policy_has("meet_budget"))
    def meet_budget(self, X: Any) -> Self:
        """A fitted copy whose thresholds meet the budget on other rows, without labels.

        Parameters
        ----------
        X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
            Rows in the form that the first step takes.

        Returns
        -------
        ExitPipeline
            The copy, which has the same steps before the policy as this pipeline.
        """
        check_is_fitted(self)
        policy, X = last_step_and_data(self, X)
        copied: Self = with_last_step(self, policy.meet_budget(X))
        return copied

    @available_if(_policy_has("without_fit_state"))
    def without_fit_state(self) -> Self:
        """A fitted copy that gives the same predictions, but stores no data of single rows; for deployment.

        Returns
        -------
        ExitPipeline
            The same steps, without the data of the rows that ``with_budget`` and ``predict_set`` need.
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
        Steps that give logits, and then the policy.
    memory : str or joblib.Memory, default=None
        Where fitted transformers are cached.
    transform_input : list of str, default=None
        As in scikit-learn's pipeline.
    verbose : bool, default=False
        Whether ``fit`` prints the time of each step.

    Returns
    -------
    ExitPipeline
        Not fitted, unless the steps are fitted.

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
    """The heads that performed best in our comparisons.

    Each head has one hidden layer, which is also an input of the next head. The heads also learn from the network's
    own logits, or from the deepest head if X has none at the last exit. Penalty, dropout and the number of passes
    depend on the number of rows. A trial on held-out rows makes penalty and dropout stronger where heads overfit, as
    with wrong labels or wide features of few rows. A fit on 50,000 rows of nine exits with 5,000 features in total
    takes about a minute, on 5,000 rows about fifteen seconds. If the network's own logits teach, there is
    no trial. Otherwise, the trial takes up to twice as long again with three exits or fewer, and less with more. With
    two threads of torch, it takes half of that.

    Parameters
    ----------
    random_state : int, RandomState instance or None, default=None
        Seeds the splits, the initial weights and the batches.

    Returns
    -------
    ExitHeads
        Heads that are not fitted; ``set_params`` changes their parameters.

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
    """The heads, the ensemble and the policy that performed best in our comparisons.

    The steps are an :class:`ExitEnsemble` of :func:`recommended_heads`, in which each exit combines its
    probabilities with those of earlier exits, and :class:`OptimalStoppingPolicy`. Ensemble and policy
    have their default parameters. To adapt parameters to your data, set them:
    ``pipeline.set_params(ensemble__heads__hidden_layer_sizes=(64,))``.

    Parameters
    ----------
    budget : float, default=0.5
        Mean cost of a sample on the fitting data, heads included, as a fraction in (0, 1] of the network's cost.
    heads : ExitHeads, default=None
        Fitted heads, which are not trained again. Train them on many rows, such as the training rows of the
        network, and do not fit the policy on these rows. By default, :func:`recommended_heads` are
        trained on the same rows as the policy, and cross-fitted.
    random_state : int, RandomState instance or None, default=None
        Seeds the heads and the policy.

    Returns
    -------
    ExitPipeline
        A pipeline with the steps ``"ensemble"`` and ``"policy"``, not fitted.

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
