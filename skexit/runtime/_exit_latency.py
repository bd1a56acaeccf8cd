"""Times of the exits of a live network in milliseconds, by batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from skexit.data import ExitLayout
from skexit.policies._access import policy_and_data, steps_of
from skexit.policies._steps import NetworkDecision
from skexit.utils._checks import check_positive


@dataclass(frozen=True, eq=False, repr=False)
class ExitLatency:
    """Times of the stages and exits of a live network in milliseconds, by batch size.

    A stage is the part of the network from the exit before to an exit. Attributes have the time of a whole batch. The
    methods, and the table that ``print`` shows, divide it by the number of samples in the batch.

    Parameters
    ----------
    batch_sizes : ndarray of shape (n_batch_sizes,) of int
        The batch sizes, in ascending order.
    stage_ms : ndarray of shape (n_batch_sizes, n_exits)
        Time of a batch in the stage before each exit.
    exit_ms : ndarray of shape (n_batch_sizes, n_exits)
        Time of a batch at each exit: pooling, heads and policy.
    compaction_ms : ndarray of shape (n_batch_sizes, n_exits)
        Time to copy a batch of this size after each exit, as is done with the samples that stay.
    spread_ms : ndarray of shape (n_batch_sizes, n_exits)
        Interquartile range of the repeated measurements of each stage; in onnxruntime, of the runs up to each exit.
    network_ms : ndarray of shape (n_batch_sizes,)
        Time of a batch in the network without exits.

    See Also
    --------
    measure_latency : Measures these times in torch.
    measure_onnx_latency : Measures these times in onnxruntime.

    Examples
    --------
    >>> import numpy as np
    >>> from skexit.runtime import ExitLatency
    >>> stages, decisions = np.array([[2.0, 6.0], [8.0, 24.0]]), np.array([[0.5, 0.0], [1.0, 0.0]])
    >>> ExitLatency(np.array([1, 8]), stages, decisions, 0 * stages, 0 * stages, np.array([8.0, 32.0]))
    ExitLatency in ms per sample, by batch size
                        1      8
    plain network   8.000  4.000
    up to exit 0    2.500  1.125
    up to exit 1    8.500  4.125
    all decisions   0.500  0.125
    """

    batch_sizes: NDArray[np.int64]
    stage_ms: NDArray[np.float64]
    exit_ms: NDArray[np.float64]
    compaction_ms: NDArray[np.float64]
    spread_ms: NDArray[np.float64]
    network_ms: NDArray[np.float64]

    def costs(self, batch_size: int) -> NDArray[np.float64]:
        """Milliseconds per sample up to each exit, in batches of one size.

        Parameters
        ----------
        batch_size : int
            Number of samples in a batch. Times are interpolated between measured batch sizes. Beyond the largest one,
            they are proportional to the number of samples.

        Returns
        -------
        ndarray of shape (n_exits,)
            Cumulative times of stages, heads and policy.
        """
        check_positive("batch_size", batch_size)
        per_batch = [self._at(times, batch_size) for times in (self.stage_ms, self.exit_ms)]
        return np.cumsum(sum(per_batch)) / batch_size

    def layout(self, layout: ExitLayout, batch_size: int) -> ExitLayout:
        """A layout with costs in milliseconds. Policies that are fitted with it meet a budget of mean latency.

        Parameters
        ----------
        layout : ExitLayout
            A layout with the same exits.
        batch_size : int
            Number of samples in a batch, as in :meth:`costs`.

        Returns
        -------
        ExitLayout
            The layout with costs in ms per sample. Budgets are fractions of the time of the network without exits.
            ``head_costs`` has the times of pooling, heads and policy.

        Raises
        ------
        ValueError
            If the layout has another number of exits.
        """
        if layout.n_exits != self.n_exits:
            raise ValueError(
                f"the layout has {layout.n_exits} exits, but latency has {self.n_exits}. Measure a live network with "
                "the exits of the layout."
            )
        return layout.replace(
            costs=self.costs(batch_size),
            cost_unit="ms",
            network_cost=float(self._at(self.network_ms, batch_size)) / batch_size,
            head_costs=np.cumsum(self._at(self.exit_ms, batch_size)) / batch_size,
        )

    def to_frame(self) -> pd.DataFrame:
        """The times in milliseconds per sample, one row per batch size and exit.

        Returns
        -------
        DataFrame
            The index has the levels ``batch_size`` and ``exit``. Columns: ``stage_ms`` is the time of the stage before
            the exit; ``decision_ms`` is the time at the exit, from pooling to the decision; ``total_ms`` is the time of
            all stages and decisions up to the exit; ``network_ms`` is the time of the network without exits.

        Examples
        --------
        >>> import numpy as np
        >>> from skexit.runtime import ExitLatency
        >>> stages, decisions = np.array([[8.0, 24.0]]), np.array([[1.0, 0.0]])
        >>> latency = ExitLatency(np.array([8]), stages, decisions, 0 * stages, 0 * stages, np.array([32.0]))
        >>> latency.to_frame()
                         stage_ms  decision_ms  total_ms  network_ms
        batch_size exit
        8          0          1.0        0.125     1.125         4.0
                   1          3.0        0.000     4.125         4.0
        """
        sizes = self.batch_sizes[:, None]
        columns = {
            "stage_ms": self.stage_ms / sizes,
            "decision_ms": self.exit_ms / sizes,
            "total_ms": np.cumsum(self.stage_ms + self.exit_ms, axis=1) / sizes,
            "network_ms": np.broadcast_to(self.network_ms[:, None] / sizes, self.stage_ms.shape),
        }
        index = pd.MultiIndex.from_product([self.batch_sizes, range(self.n_exits)], names=["batch_size", "exit"])
        return pd.DataFrame({name: times.ravel() for name, times in columns.items()}, index=index)

    def expected(self, policy: Any, X: Any = None, *, heads: Any = None) -> pd.DataFrame:
        """Expected time per sample of a live network and of the plain network, by batch size.

        Parameters
        ----------
        policy : fitted policy, or Pipeline that ends with one
            The policy of the live network. Its decisions should take as long as those that were measured.
        X : ExitArray or array-like of shape (n_samples, n_columns), default=None
            Rows like those that the live network will run. By default, the rows that the policy was fitted on:
            samples leave in the shares of its ``exit_distribution_``.
        heads : fitted ExitHeads or ExitEnsemble, default=None
            As in :class:`EarlyExitModel`.

        Returns
        -------
        DataFrame
            One row per batch size. Columns: ``network_ms`` is the time of the network without exits; ``live_ms`` is
            the time of the live network; ``saved`` is the saved fraction of ``network_ms``, which is negative if the
            live network takes longer; ``exit0_share``, ``exit1_share`` and so on are the shares of the samples that
            leave at each exit.

        Raises
        ------
        ValueError
            If the number of exits of the policy differs from that in the latency.

        See Also
        --------
        pruned : A policy without the exits that take longer than they save.
        skexit.metrics.daily_savings : Hours and money per day from ``network_ms`` and ``live_ms``.

        Notes
        -----
        The time of a batch is the sum over the stages and decisions, each for the expected number of samples that
        reach it. If fewer than one sample is expected, it is the time for one sample times the expected number.
        Decisions that the policy does not make take no time. The time to copy the samples that stay is left out. The
        time for numbers of samples between two measured batch sizes is interpolated, so measure small batches, too.

        Examples
        --------
        Half of the samples leave at the second exit, the others at the last one.

        >>> import numpy as np
        >>> from skexit import ThresholdPolicy, stack_exits
        >>> from skexit.runtime import ExitLatency
        >>> confidence = np.array([[0.0, 1.0, 5.0], [0.0, 4.0, 5.0]] * 10)
        >>> X, y = stack_exits(np.stack([0 * confidence, confidence], axis=2)), [0, 1] * 10
        >>> policy = ThresholdPolicy(budget=5 / 6).fit(X, y)
        >>> stages, decisions = np.array([[3.0, 3.0, 3.0]]), np.array([[0.5, 0.5, 0.0]])
        >>> latency = ExitLatency(np.array([1]), stages, decisions, 0 * stages, 0 * stages, np.array([9.0]))
        >>> latency.expected(policy, X).round(3)
                    network_ms  live_ms  saved  exit0_share  exit1_share  exit2_share
        batch_size
        1                  9.0      8.0  0.111          0.0          0.5          0.5
        """
        check_is_fitted(policy)
        self._check_exits(steps_of(policy)[-1])
        before = [] if heads is None else [heads]
        decision = NetworkDecision([*before, *steps_of(policy)])
        shares = decision.policy.exit_distribution_
        if X is not None:
            own, rows = policy_and_data(policy, X if heads is None else heads.transform(X))
            exits = own.predict_exit(rows)
            shares = np.bincount(exits, minlength=self.n_exits) / len(exits)
        live = np.array([self._expected_ms(decision, shares, int(size)) for size in self.batch_sizes])
        columns = {
            "network_ms": self.network_ms / self.batch_sizes,
            "live_ms": live / self.batch_sizes,
            "saved": 1 - live / self.network_ms,
            **{f"exit{k}_share": np.full(len(live), share) for k, share in enumerate(shares)},
        }
        return pd.DataFrame(columns, index=pd.Index(self.batch_sizes, name="batch_size"))

    def to_dict(self) -> dict[str, Any]:
        """The times as lists, which JSON can store.

        Returns
        -------
        dict
            One list per attribute, with the times of whole batches.

        See Also
        --------
        ExitLatency.from_dict : Reads such a dict.
        """
        return {field.name: getattr(self, field.name).tolist() for field in fields(self)}

    @classmethod
    def from_dict(cls, times: Mapping[str, Any]) -> Self:
        """Make an object from the dict that :meth:`to_dict` returned.

        Parameters
        ----------
        times : dict
            One list per attribute. Other keys are ignored.

        Returns
        -------
        ExitLatency
            The times.

        Raises
        ------
        ValueError
            If an attribute is missing, or the arrays do not have the same number of batch sizes and exits.

        Examples
        --------
        >>> import numpy as np
        >>> from skexit.runtime import ExitLatency
        >>> one = np.ones((1, 2))
        >>> latency = ExitLatency(np.array([8]), one, one, one, one, np.array([2.0]))
        >>> ExitLatency.from_dict(latency.to_dict()).costs(8)
        array([0.25, 0.5 ])
        """
        names = [field.name for field in fields(cls)]
        if missing := [name for name in names if name not in times]:
            raise ValueError(f"times has no {', '.join(missing)}. Pass the dict that ExitLatency.to_dict returned.")
        arrays: dict[str, Any] = {name: np.asarray(times[name], dtype=np.float64) for name in names}
        sizes = arrays["batch_sizes"] = arrays["batch_sizes"].astype(np.int64)
        by_exit = [arrays[name].shape for name in names if name not in ("batch_sizes", "network_ms")]
        n_exits = by_exit[0][-1] if by_exit[0] else 0
        if {*by_exit} != {(sizes.size, n_exits)} or sizes.shape != arrays["network_ms"].shape or not sizes.size:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
            raise ValueError(
                f"times has arrays of the shapes {shapes}. Pass the dict that ExitLatency.to_dict returned: one row "
                "per batch size, and one column per exit."
            )
        return cls(**arrays)

    @property
    def n_exits(self) -> int:
        """Number of exits."""
        return self.stage_ms.shape[1]

    def compaction_pays(self, k: int, until: int, n_samples: int, n_staying: int) -> bool:
        """Whether it is faster to copy the samples that stay than to keep all samples in the batch up to a later exit.

        Parameters
        ----------
        k : int
            The exit at which samples leave, counted from 0.
        until : int
            The next exit at which samples can be removed from the batch.
        n_samples : int
            Number of samples in the batch.
        n_staying : int
            Number of samples that stay.

        Returns
        -------
        bool
            True if the copy is faster.
        """
        stages = self.stage_ms[:, k + 1 : until + 1].sum(axis=1)
        gain = self._at(stages, n_samples) - self._at(stages, n_staying)
        return bool(gain > self._at(self.compaction_ms[:, k], n_staying))

    def __repr__(self) -> str:
        sizes = self.batch_sizes
        totals = np.cumsum(self.stage_ms + self.exit_ms, axis=1)
        rows = {"plain network": self.network_ms}
        rows |= {f"up to exit {k}": totals[:, k] for k in range(self.n_exits)}
        rows["all decisions"] = self.exit_ms.sum(axis=1)
        per_sample = {name: times / sizes for name, times in rows.items()}
        n_decimals = _decimals(float(np.min(per_sample["plain network"])))
        cells = [[f"{ms:.{n_decimals}f}" for ms in times] for times in per_sample.values()]
        return "\n".join(
            ["ExitLatency in ms per sample, by batch size", *_aligned(["", *rows], [[*map(str, sizes)], *cells])]
        )

    def _check_exits(self, policy: Any) -> None:
        if len(policy.thresholds_) != self.n_exits:
            raise ValueError(
                f"the policy has {len(policy.thresholds_)} exits, but latency has {self.n_exits}. Pass the result of "
                "measure_latency for a live network with this policy."
            )

    def _expected_ms(self, decision: NetworkDecision, shares: NDArray[np.float64], batch_size: int) -> float:
        """Expected milliseconds of a batch if samples leave at the exits in these shares."""
        reaching = batch_size * (1 - np.append(0, np.cumsum(shares)[:-1]))
        return sum(
            self._mean_of(self.stage_ms[:, k], reaching[k])
            + decision.is_observed[k] * self._mean_of(self.exit_ms[:, k], reaching[k])
            for k in range(decision.n_exits)
        )

    def _mean_of(self, times: NDArray[np.float64], n_samples: float) -> float:
        """Time for `n_samples` on average. Below 1, this is the probability of a sample times the time for one."""
        return float(self._at(times, max(n_samples, 1.0)) * min(n_samples, 1.0))

    def _at(self, times: NDArray[np.float64], n_samples: float) -> Any:
        sizes = self.batch_sizes
        if n_samples >= sizes[-1]:
            return times[-1] * (n_samples / sizes[-1])
        after = max(int(np.searchsorted(sizes, n_samples)), 1)
        if len(sizes) == 1:
            return times[0]
        share = (n_samples - sizes[after - 1]) / (sizes[after] - sizes[after - 1])
        return np.maximum(times[after - 1] + share * (times[after] - times[after - 1]), 0)


def _decimals(ms: float) -> int:
    """Number of decimals with which a time has four digits."""
    return int(np.clip(3 - np.floor(np.log10(ms)), 0, 6)) if ms > 0 else 3


def _aligned(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with a name and right-aligned cells."""
    first, width = max(map(len, names)), max(len(cell) for row in rows for cell in row)
    return [
        f"{name:<{first}}" + "".join(f"  {cell:>{width}}" for cell in row)
        for name, row in zip(names, rows, strict=True)
    ]
