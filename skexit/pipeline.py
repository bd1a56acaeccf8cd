"""The pipeline to start with."""

from __future__ import annotations

import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline

from skexit.heads import ExitEnsemble, ExitHeads
from skexit.policies import OptimalStoppingPolicy


def recommended_pipeline(
    budget: float = 0.5, *, heads: ExitHeads | None = None, random_state: int | np.random.RandomState | None = None
) -> Pipeline:
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
        was trained on, which may not serve to fit the policy. By default, ``ExitHeads((256,),
        cascade=True, dropout=0.5, learning_rate=0.005, batch_size=512)`` are trained on the same rows
        as the policy, and cross-fitted. From some ten thousand rows on, less dropout is better.
    random_state : int, RandomState instance or None, default=None
        Seeds heads and policy.

    Returns
    -------
    sklearn.pipeline.Pipeline
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
    """
    if heads is None:
        used = ExitHeads(
            (256,), cascade=True, dropout=0.5, learning_rate=0.005, batch_size=512, random_state=random_state
        )
    else:
        used = FrozenEstimator(heads)
    return Pipeline(
        [("ensemble", ExitEnsemble(used)), ("policy", OptimalStoppingPolicy(budget, random_state=random_state))]
    )
