"""Keep the mean cost at the budget, for any sequence of inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skexit.data._validation import check_budget
from skexit.monitoring._controller import LARGEST_GAIN, Controller
from skexit.policies._access import steps_of
from skexit.utils._checks import at_least


class BudgetController(Controller):
    r"""Moves thresholds so that the mean cost tends to the budget, for any sequence of inputs.

    A fitted policy meets its budget on inputs like those it was fitted on. If inputs become harder, fewer samples leave
    early, and the policy spends more than its budget. The controller needs no labels. It adds up the costs
    :math:`c_i` of the samples beyond the budget B, :math:`S = \sum_i (c_i - B)`, and uses the policy's thresholds for a
    nominal budget

    .. math:: b = B - \gamma S.

    If the nominal budget is at most the cost of the first exit, all samples leave there, and S does not grow. If it is
    at least the cost of the last exit, no sample leaves earlier, and S does not fall. Let :math:`\Delta` be the
    difference of these two costs. Then S can leave the range :math:`\pm \Delta / \gamma` only by samples that were
    decided before S reached its end. At most :math:`D = 1 / (2 \gamma)` samples are decided but not yet counted, so
    that after any n samples

    .. math:: \Bigl|\frac1n \sum_{i=1}^n c_i - B\Bigr| \le \frac{\Delta / \gamma + D \Delta}{n} \le
        \frac{2 \Delta}{\gamma n}.

    This is adaptive conformal inference [1]_ with costs instead of errors. If batches are larger, or several processes
    run batches at the same time, more samples are decided but not yet counted: the controller then measures D and
    lowers the step to 1 / (2 D). When such batches end, D falls by 1 for every 20 samples. The bound holds with the
    smallest step that was used, and the attribute ``bound`` has its value.

    Parameters
    ----------
    policy : fitted policy, or pipeline or search that ends in one
        It must have ``with_budget`` and ``fit_state_``. An :class:`~skexit.OptimalStoppingPolicy` leaves a part of its
        budget unspent if later exits made predictions worse on the rows it was fitted on. Then only the upper bound of
        the mean cost holds.
    budget : float, default=None
        Mean cost to keep, as a fraction of the cost of the network without exits. By default, the budget of the policy.
    step : float, default=0.02
        The step :math:`\gamma` for one sample, in (0, 1]. With a larger step, thresholds follow a change sooner, and
        also vary more if inputs do not change.
    path : str or Path, default=None
        A JSON file for the state, which several processes may share: a process locks it while it changes it. By
        default, the state is in memory. If each process has a state of its own, each keeps the budget, and so do all of
        them together.

    Attributes
    ----------
    thresholds : ndarray of shape (n_exits,)
        Thresholds for the next samples: ``live.thresholds = controller.thresholds``.
    nominal_budget : float
        The budget b whose thresholds are in use.
    mean_cost : float
        Mean cost of all samples so far; NaN before the first sample.
    n_samples : int
        Number of samples so far.
    bound : float
        Largest possible distance between ``mean_cost`` and the budget; for an OptimalStoppingPolicy, by which
        ``mean_cost`` may exceed it.

    Raises
    ------
    ValueError
        If the policy has no budget or was made by ``without_fit_state``, or `budget` or `step` is out of range.

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
            raise ValueError(
                f"budget={self.budget} is below the cost of the first exit in use. Pass a budget of at least "
                f"{at_least(first)}."
            )

    @property
    def mean_cost(self) -> float:
        """Mean cost of the samples so far, a fraction of the network's cost; NaN before the first sample."""
        return self._mean

    @property
    def bound(self) -> float:
        """Largest possible distance between ``mean_cost`` and the budget; infinite before the first sample."""
        state, costs = self._state.read(), self._table.budgets
        width = float(costs[-1] - costs[0])
        smallest_step = min(self.step, LARGEST_GAIN / state.largest_delay)
        return 2 * width / (smallest_step * state.n_samples) if state.n_samples else float("inf")

    def predict_exit(self, X: Any) -> NDArray[np.int64]:
        """Exit at which each sample stops. Rows are read in order, and thresholds change after each row.

        Parameters
        ----------
        X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
            Rows as the ``predict`` method of the policy or pipeline takes them.

        Returns
        -------
        ndarray of shape (n_samples,) of int
            Number of the exit, from 0.
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
        """Count samples that stopped by ``thresholds``, in a live network for example.

        Parameters
        ----------
        exits : array-like or tensor of shape (n_samples,) of int
            The exit at which each sample stopped, counted from 0.
        decided_at : int, default=None
            Value of ``n_samples`` when the thresholds of these samples were read. Pass it if several batches run at the
            same time. By default, the samples stopped by the thresholds that were read last.

        Raises
        ------
        ValueError
            If `exits` are not integers from 0 to n_exits - 1, in one dimension, or `decided_at` is negative.
        """
        if decided_at is not None and decided_at < 0:
            raise ValueError(f"decided_at={decided_at} must be a value of n_samples, which is not negative.")
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
