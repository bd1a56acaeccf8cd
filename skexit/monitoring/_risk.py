"""Keep a mean loss below a level, for any sequence of inputs, with labels that may arrive late."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from skexit.monitoring._controller import Controller
from skexit.policies._access import steps_of


class RiskController(Controller):
    r"""Changes thresholds so that a mean loss tends to at most `alpha`, with labels that may arrive late.

    This works like :class:`BudgetController`, with losses instead of costs: for each labelled sample with the loss
    :math:`\ell`, the nominal budget changes by :math:`\gamma (\ell - \alpha)`. Let :math:`\Delta` be the difference of
    the costs of the last and the first exit. Assume that the mean loss is at most `alpha` if all samples go to the last
    exit; the loss of accuracy compared with the whole network is then 0. If each label arrives before the next sample
    is answered, then after any n labelled samples

    .. math:: \frac1n \sum_{i=1}^n \ell_i \le \alpha + \frac{\Delta + 1}{\gamma n}.

    If labels arrive d labelled samples late, the bound grows by :math:`d / n`. If the loss of the whole network exceeds
    `alpha`, no policy can keep it: all samples go to the last exit until the mean loss is `alpha` again.

    Parameters
    ----------
    policy : fitted policy, or pipeline or search that ends in one
        It must have ``with_budget`` and ``fit_state_``.
    alpha : float
        Largest mean loss, in (0, 1).
    step : float, default=0.05
        The step :math:`\gamma` for one sample, in (0, 1].
    path : str or Path, default=None
        A JSON file for the state, which several processes may share. By default, the state is in memory.

    Attributes
    ----------
    thresholds : ndarray of shape (n_exits,)
        Thresholds for the next samples: ``live.thresholds = controller.thresholds``.
    nominal_budget : float
        The budget whose thresholds are in use.
    mean_loss : float
        Mean loss of all labelled samples so far; NaN before the first one.
    n_samples : int
        Number of labelled samples so far.

    Raises
    ------
    ValueError
        If the policy has no budget or was made by ``without_fit_state``, or `alpha` or `step` is out of range.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skexit import ThresholdPolicy
    >>> from skexit.monitoring import RiskController
    >>> X, y = load_digits(return_X_y=True)
    >>> policy = ThresholdPolicy(budget=0.6, layout=2).fit(X[:900], y[:900])
    >>> controller = RiskController(policy, alpha=0.02)
    >>> before = controller.nominal_budget
    >>> controller.update([1, 1, 0, 1])  # 1: the prediction was wrong, that of the whole network would be correct
    >>> controller.nominal_budget > before
    True
    """

    _sign = 1.0

    def __init__(self, policy: Any, alpha: float, *, step: float = 0.05, path: str | Path | None = None) -> None:
        if isinstance(alpha, bool) or not 0 < alpha < 1:
            raise ValueError(f"alpha={alpha!r} must be in (0, 1). It is the largest mean loss.")
        self.alpha = alpha
        nominal = getattr(steps_of(policy)[-1], "budget", None)
        super().__init__(policy, alpha, np.nan if nominal is None else nominal, step, path)
        # Only at the last exit is the loss known to be small enough.
        self._table = self._table.uncapped()

    @property
    def mean_loss(self) -> float:
        """Mean loss of the labelled samples so far; NaN before the first one."""
        return self._mean

    def update(self, losses: ArrayLike) -> None:
        """Count the losses of samples whose labels have arrived.

        Parameters
        ----------
        losses : array-like of shape (n_samples,)
            Losses in [0, 1]. The loss of accuracy is 1 for a sample if its prediction was wrong and the prediction of
            the whole network is correct, and 0 otherwise. For samples that left early, the prediction of the whole
            network is unknown: run the whole network on a random part of the samples, and pass the losses of this part.

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
        # Without a lower limit, samples with small losses would be credited against later losses. There is no upper
        # limit, so that past losses still count.
        return float(self._table.budgets[0]), np.inf
