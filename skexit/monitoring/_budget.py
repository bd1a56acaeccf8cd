"""Keep the mean cost at the budget, for any sequence of inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skexit.data._validation import check_budget
from skexit.monitoring._controller import LARGEST_GAIN, Controller
from skexit.policies._access import steps_of


class BudgetController(Controller):
    r"""Moves thresholds so that the mean cost tends to the budget, for any sequence of inputs.

    A fitted policy meets its budget on inputs like those it was fitted on. If harder inputs come, fewer samples leave
    early, and the budget is overspent. The controller needs no labels. It sums up what was spent beyond the budget B,
    :math:`S = \sum_i (c_i - B)`, and uses the thresholds that the policy has for a nominal budget

    .. math:: b = B - \gamma S.

    For a nominal budget of the cost of the first exit or less, all samples leave there, and S does not grow; for one of
    the cost of the last exit or more, none leaves before it, and S does not fall. So S leaves a range of
    :math:`\pm \Delta / \gamma`, with :math:`\Delta` the difference of these costs, only by samples that were decided
    before. These are at most :math:`D = 1 / (2 \gamma)`, and after n samples, whatever they were,

    .. math:: \Bigl|\frac1n \sum_{i=1}^n c_i - B\Bigr| \le \frac{\Delta / \gamma + D \Delta}{n} \le
        \frac{2 \Delta}{\gamma n}.

    This is adaptive conformal inference [1]_ with costs in place of errors. Larger batches, or batches of several
    processes at the same time, lower the step to 1 / (2 D), for D samples that are counted from the decision of one of
    them until it is counted itself. Where they come no more, D falls by one for every 20 samples. The bound has the
    lowest step that there was, which is in ``bound``.

    Parameters
    ----------
    policy : fitted policy, or pipeline or search that ends in one
        With ``with_budget`` and ``fit_state_``. If later exits made answers worse on the rows that were fitted,
        :class:`~skexit.OptimalStoppingPolicy` still leaves that part of the budget unspent, and the bound holds from
        above only.
    budget : float, default=None
        Mean cost to keep, a fraction of the network's cost; by default that of the policy.
    step : float, default=0.02
        The step :math:`\gamma` for one sample, in (0, 1]. Larger steps follow a change sooner, and move thresholds more
        while nothing changes.
    path : str or Path, default=None
        A JSON file for the state, which several processes may share: it is locked while one of them changes it. By
        default the state is in memory. Controllers with states of their own keep the budget each, and so together.

    Attributes
    ----------
    thresholds : ndarray of shape (n_exits,)
        For the next samples: ``live.thresholds = controller.thresholds``.
    nominal_budget : float
        The budget b to which they belong.
    mean_cost : float
        Of all samples so far; NaN before the first.
    n_samples : int
        Number of samples so far.
    bound : float
        What the distance of ``mean_cost`` to the budget is at most.

    Raises
    ------
    ValueError
        If the policy has no budget or was made by ``without_fit_state``, or budget or step are out of range.

    References
    ----------
    .. [1] Gibbs and Candès. "Adaptive conformal inference under distribution shift." NeurIPS 2021.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skexit import ThresholdPolicy
    >>> from skexit.monitoring import BudgetController
    >>> X, y = load_digits(return_X_y=True)
    >>> policy = ThresholdPolicy(budget=0.7, layout=2).fit(X[:900], y[:900])
    >>> pale = 0.7 * X[900:]  # less contrast: exits are less confident
    >>> bool(policy.mean_cost(pale) > 0.75)
    True
    >>> controller = BudgetController(policy)
    >>> exits = controller.predict_exit(pale)
    >>> round(controller.mean_cost, 1), bool(abs(controller.mean_cost - 0.7) <= controller.bound)
    (0.7, True)
    """

    _sign = -1.0

    def __init__(
        self, policy: Any, budget: float | None = None, *, step: float = 0.02, path: str | Path | None = None
    ) -> None:
        own = steps_of(policy)[-1]
        self.budget = getattr(own, "budget", None) if budget is None else budget
        if self.budget is not None and hasattr(own, "layout_"):
            check_budget(self.budget, own.layout_)
        super().__init__(policy, self.budget or np.nan, self.budget or np.nan, step, path)
        first = self._table.budgets[0]
        if self.budget < first:
            raise ValueError(f"budget={self.budget} does not pay for the first exit in use, which costs {first:.4g}.")

    @property
    def mean_cost(self) -> float:
        """Mean cost of the samples so far, a fraction of the network's cost; NaN before the first."""
        return self._mean

    @property
    def bound(self) -> float:
        """What the distance of ``mean_cost`` to the budget is at most; infinite before the first sample."""
        state, costs = self._state.read(), self._table.budgets
        width = float(costs[-1] - costs[0])
        smallest_step = min(self.step, LARGEST_GAIN / state.largest_delay)
        return 2 * width / (smallest_step * state.n_samples) if state.n_samples else float("inf")

    def predict_exit(self, X: Any) -> NDArray[np.int64]:
        """Exit at which each sample stops. Rows are taken in order, and thresholds move after each of them.

        Parameters
        ----------
        X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
            As the policy or pipeline takes it.

        Returns
        -------
        ndarray of shape (n_samples,) of int
            Exits count from 0.
        """
        scores = self._scores(X)
        exits = np.empty(len(scores), dtype=np.int64)
        thresholds, row_of, costs = self._table.thresholds, self._table.row_of, self._costs.tolist()
        with self._state.opened() as state:
            self._decided_at = state.n_samples
            for row, own in enumerate(scores):
                exits[row] = k = int((own >= thresholds[row_of(self._nominal(state))]).argmax())
                self._count(state, costs[k], 1)
        return exits

    def update(self, exits: ArrayLike, *, decided_at: int | None = None) -> None:
        """Learn from samples that stopped by ``thresholds``, as those of a live network.

        Parameters
        ----------
        exits : array-like of shape (n_samples,) of int
            Where they stopped, counted from 0. Tensors of torch are arrays, too.
        decided_at : int, default=None
            ``n_samples`` when their thresholds were read. Pass it where several batches run at the same time; by
            default, the thresholds were the last that were read.

        Raises
        ------
        ValueError
            If there is no such exit.
        """
        stopped = np.asarray(exits)
        if stopped.size == 0:
            return
        if (
            stopped.ndim != 1
            or stopped.dtype.kind not in "iu"
            or not (0 <= stopped.min() <= stopped.max() < len(self._costs))
        ):
            raise ValueError(
                f"exits has shape {stopped.shape}, type {stopped.dtype} and values from {stopped.min()} to "
                f"{stopped.max()}; pass the number of an exit, 0 to {len(self._costs) - 1}, for each sample."
            )
        with self._state.opened() as state:
            self._count(state, float(self._costs[stopped].sum()), len(stopped), decided_at)

    def _ends(self) -> tuple[float, float]:
        low, high = super()._ends()
        return low, min(high, float(self._table.budgets[-1])) if self.budget > self._costs[-1] else high
