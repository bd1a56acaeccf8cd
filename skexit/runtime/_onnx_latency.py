"""Measure the times of the exits of a network in ONNX, by batch size."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from skexit.backbone._counting import Clock
from skexit.backbone._inputs import Inputs, in_form, like_example, map_tensors, tensors_of
from skexit.backbone._rows import with_rows
from skexit.runtime._early_exit import EarlyExitModel
from skexit.runtime._exit_latency import ExitLatency
from skexit.runtime._latency import check_sizes_and_repeats, clock_on
from skexit.runtime._onnx_export import export_onnx
from skexit.runtime._onnx_policy import set_weights
from skexit.runtime._onnx_session import PROVIDERS, THRESHOLDS, OnnxEarlyExit

_N_WARM_UP_RUNS = 2
#: A later exit takes longer by at least this share, because the costs of a layout must increase.
_LEAST_RISE = 1e-6
#: At most this share of the time from one exit to the next counts as time of the exit, the rest as time of the stage.
_MOST_AT_EXIT = 0.9


def measure_onnx_latency(
    live: EarlyExitModel,
    batch_sizes: Sequence[int] = (1, 8, 64),
    *,
    example_input: Inputs,
    session_options: Any = None,
    providers: Sequence[Any] = PROVIDERS,
    n_repeats: int = 10,
    clock: str = "wall",
) -> ExitLatency:
    """Measure the time up to each exit in onnxruntime on this machine, including heads and policy.

    Parameters
    ----------
    live : EarlyExitModel
        A prepared live network. It is exported twice: with all its exits, even if its policy does not use them, and
        with the last exit only.
    batch_sizes : sequence of int, default=(1, 8, 64)
        Batch sizes to measure.
    example_input : tensor, tuple of tensors or dict of tensors
        One or more inputs. They are repeated to make batches.
    session_options : onnxruntime.SessionOptions, default=None
        Options of the sessions, such as the number of threads.
    providers : sequence of str, default=("CPUExecutionProvider",)
        Execution providers of onnxruntime.
    n_repeats : int, default=10
        Number of timed runs per batch size. The result has their medians.
    clock : {"wall", "processor"}, default="wall"
        ``"processor"``: the processor time of the calling thread, which other programs lengthen less. For sessions on a
        CPU, with one thread: ``session_options.intra_op_num_threads = 1``.

    Returns
    -------
    ExitLatency
        Milliseconds by exit and batch size. ``compaction_ms`` is 0, because ``exit_ms`` includes it.

    Raises
    ------
    ImportError
        If onnx, onnxscript or onnxruntime is not installed.
    ValueError
        If a batch size or `n_repeats` is not positive, `clock` is unknown, or the network cannot be exported.
    RuntimeError
        If the network is not prepared.

    See Also
    --------
    measure_latency : The same measurement in torch.

    Notes
    -----
    For each exit, the file is run with thresholds with which all samples leave there. The time of all decisions
    together is the time up to the last exit minus the time of the network without early exits. Each exit before the
    last gets an equal share of it.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from skexit import ThresholdPolicy, stack_exits
    >>> from skexit.runtime import EarlyExitModel, measure_onnx_latency
    >>> model = nn.Sequential(nn.Linear(8, 3), nn.Linear(3, 3))
    >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
    >>> with torch.no_grad():
    ...     logits = torch.stack([model[0](x), model(x)], 1).numpy()
    >>> X = stack_exits(logits)
    >>> live = EarlyExitModel(model, ["0", "1"], ThresholdPolicy().fit(X, y), head=["0", "1"], example_input=x[:1])
    >>> latency = measure_onnx_latency(live, (1, 4), example_input=x[:1])
    >>> latency.layout(X.layout, batch_size=4).cost_unit
    'ms'
    """
    sizes, read = check_sizes_and_repeats(batch_sizes, n_repeats), clock_on(torch.device("cpu"), clock)
    inputs = like_example(in_form(example_input, "example_input"), live._cut_before().example)
    n_exits = len(live.exits)
    with TemporaryDirectory() as folder:

        def session_of(thresholds: Sequence[float], path: Path) -> OnnxEarlyExit:
            set_weights(path, model, {THRESHOLDS: np.array(thresholds)})
            return OnnxEarlyExit(path, session_options=session_options, providers=providers)

        everywhere, nowhere = (
            export_onnx(_with_thresholds(live, [number] * (n_exits - 1) + [-np.inf]), Path(folder, f"{number}.onnx"))
            for number in (0.0, np.inf)
        )
        import onnx  # export_onnx has checked that it is installed

        model = onnx.load(everywhere, load_external_data=False)
        plain = OnnxEarlyExit(nowhere, session_options=session_options, providers=providers)
        by_exit = [session_of([np.inf] * k + [-np.inf] * (n_exits - k), everywhere) for k in range(n_exits)]
        measured = [
            _measure(by_exit, plain, map_tensors(partial(with_rows, n_rows=int(size)), inputs), n_repeats, read)
            for size in sizes
        ]
    stage, at_exit, spread, whole = (np.array(times) for times in zip(*measured, strict=True))
    return ExitLatency(sizes, stage, at_exit, np.zeros_like(stage), spread, whole)


def _with_thresholds(live: EarlyExitModel, thresholds: Sequence[float]) -> EarlyExitModel:
    """A copy of a live network with other thresholds, prepared again."""
    other = copy.copy(live)
    other._decisions = live._decisions.with_thresholds(np.array(thresholds))
    other.policy = other._decisions.policy
    other.prepare(live._cut_before().example)
    return other


def _measure(
    by_exit: Sequence[OnnxEarlyExit], plain: OnnxEarlyExit, inputs: Inputs, n_repeats: int, clock: Clock
) -> tuple[NDArray[np.float64], ...]:
    """Milliseconds of stages and exits, the spread of the runs up to an exit, and the time of the plain network.

    All but the last have the shape (n_exits,). All sessions run in turn, so that other load slows them equally.
    """
    arrays: Any = map_tensors(cast(Any, lambda tensor: tensor.numpy(force=True)), inputs)
    names = [value.name for value in plain.session.get_inputs()]
    named = dict(zip(names, [tensor.numpy(force=True) for tensor in tensors_of(inputs)], strict=True))
    calls = [partial(plain.session.run, None, named), *(partial(session.predict, arrays) for session in by_exit)]
    n_runs = _N_WARM_UP_RUNS + n_repeats
    runs = np.array([[_time(call, clock) for call in calls] for _ in range(n_runs)][_N_WARM_UP_RUNS:])
    whole, *until = np.median(runs, axis=0)
    # Later exits take longer; a measurement that says otherwise is noise.
    until = np.maximum.accumulate(until) * (1 + _LEAST_RISE * np.arange(len(until)))
    own = np.diff(until, prepend=0)
    share = max(until[-1] - whole, 0) / max(len(until) - 1, 1)
    at_exit = np.minimum(np.append(np.full(len(own) - 1, share), 0), _MOST_AT_EXIT * own)
    return own - at_exit, at_exit, np.subtract(*np.percentile(runs[:, 1:], [75, 25], axis=0)), whole


def _time(call: Callable[[], Any], clock: Clock) -> float:
    start = clock()
    call()
    return clock() - start
