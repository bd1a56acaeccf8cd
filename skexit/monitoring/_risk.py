"""Keep a mean loss below a level, for any sequence of inputs, by labels that come late."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from skexit.monitoring._controller import Controller
from skexit.policies._access import steps_of


class RiskController(Controller):
    r"""Moves thresholds so that a mean loss tends to at most `alpha`, by labels that may come late.

    As :class:`BudgetController`, with losses in place of costs: the nominal budget rises by :math:`\gamma` times what
    is lost beyond :math:`\alpha` a labelled sample. If the loss is at most `alpha` where all samples go to the last
    exit, as a loss of accuracy to the whole network is, then after n labelled samples, whatever they were,

    .. math:: \frac1n \sum_{i=1}^n \ell_i \le \alpha + \frac{\Delta + 1}{\gamma n}

    with :math:`\Delta` the difference of the costs of the last and the first exit, for labels that come before the next
    sample is answered. Labels that come d labelled samples late add :math:`d / n`. Where the whole network itself loses
    more than `alpha`, no policy could keep it: then all samples go to the last exit until the mean is back at `alpha`.

    Parameters
    ----------
    policy : fitted policy, or pipeline or search that ends in one
        With ``with_budget`` and ``fit_state_``.
    alpha : float
        Mean loss to keep below, in (0, 1).
    step : float, default=0.05
        The step :math:`\gamma` for one sample, in (0, 1].
    path : str or Path, default=None
        A JSON file for the state, which several processes may share.

    Attributes
    ----------
    thresholds : ndarray of shape (n_exits,)
        For the next samples.
    nominal_budget : float
        The budget to which they belong.
    mean_loss : float
        Of all labelled samples so far; NaN before the first.
    n_samples : int
        Number of labelled samples so far.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skexit import ThresholdPolicy
    >>> from skexit.monitoring import RiskController
    >>> X, y = load_digits(return_X_y=True)
    >>> policy = ThresholdPolicy(budget=0.6, layout=2).fit(X[:900], y[:900])
    >>> controller = RiskController(policy, alpha=0.02)
    >>> before = controller.nominal_budget
    >>> controller.update([1, 1, 0, 1])  # 1: the whole network would have been correct, and the early answer was not
    >>> controller.nominal_budget > before
    True
    """

    _sign = 1.0

    def __init__(self, policy: Any, alpha: float, *, step: float = 0.05, path: str | Path | None = None) -> None:
        if isinstance(alpha, bool) or not 0 < alpha < 1:
            raise ValueError(f"alpha={alpha!r} must be in (0, 1): the mean loss to keep below.")
        self.alpha = alpha
        nominal = getattr(steps_of(policy)[-1], "budget", None)
        super().__init__(policy, alpha, np.nan if nominal is None else nominal, step, path)
        # The loss is known to be small enough at the last exit only.
        self._table = self._table.uncapped()

    @property
    def mean_loss(self) -> float:
        """Mean loss of the labelled samples so far; NaN before the first."""
        return self._mean

    def update(self, losses: ArrayLike) -> None:
        """Learn from samples whose labels have come.

        Parameters
        ----------
        losses : array-like of shape (n_samples,)
            In [0, 1]. For a loss of accuracy: 1 where the whole network is correct and the answer was not. On samples
            that left early this needs the network's own answer; run it on a random share of them, and pass these.

        Raises
        ------
        ValueError
            If a loss is outside [0, 1].
        """
        values = np.asarray(losses, dtype=np.float64)
        if values.size == 0:
            return
        if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
            raise ValueError(
                f"losses has shape {values.shape} and values from {values.min()} to {values.max()}; pass a number in "
                "[0, 1] for each sample."
            )
        with self._state.opened() as state:
            self._count(state, float(values.sum()), len(values))

    def _ends(self) -> tuple[float, float]:
        # Below, good times would pay for bad ones. Above, it must go on rising: what was lost would be forgotten.
        return float(self._table.budgets[0]), np.inf
