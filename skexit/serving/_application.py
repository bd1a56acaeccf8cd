"""A live network as an application of Ray Serve, in two parts that scale separately."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from skexit.utils._optional import optional_import

if TYPE_CHECKING:
    from ray.serve import Application

    from skexit.monitoring import BudgetController, ExitMonitor
    from skexit.runtime import EarlyExitModel

_BATCHES = {"max_batch_size": 32, "batch_wait_timeout_s": 0.002}
#: Samples that were answered are reported in batches, so that few calls are enough.
_MOST_CALLS = 1000


def serve_parts(
    live: EarlyExitModel,
    at_exit: int,
    *,
    first: Mapping[str, Any] | None = None,
    second: Mapping[str, Any] | None = None,
    ingress: Mapping[str, Any] | None = None,
    controller: BudgetController | None = None,
    monitor: ExitMonitor | None = None,
    n_retries: int = 3,
) -> Application:
    """Make an application of Ray Serve from a live network, in two parts that scale separately.

    ``serve.run(serve_parts(live, at_exit=0))`` starts up to four deployments:

    ``Ingress``
        Takes requests, checks them, and calls the first part.
    ``FirstPart``
        ``live.truncate(at_exit)``. Predicts the samples that leave at its exits, and calls the second part for the
        others.
    ``SecondPart``
        ``live.resume(at_exit)``.
    ``Monitor``
        One replica with `controller` and `monitor`, if at least one of them is passed.

    If a replica of either part stops in the middle of a request, the request is sent again, and Ray starts another
    replica. Predictions are the same as those of ``live``.

    Parameters
    ----------
    live : EarlyExitModel
        Live network on the CPU, created with ``example_input``. A replica with a GPU moves its part to the GPU.
    at_exit : int
        The last exit of the first part, from 0 to n_exits - 2.
    first, second, ingress : dict, default=None
        Options of ``ray.serve.deployment`` for these deployments, such as `num_replicas`, `autoscaling_config`,
        `ray_actor_options`, `max_ongoing_requests` and `max_queued_requests`. The `user_config` of the parts has the
        settings of ``ray.serve.batch``: `max_batch_size`, in requests, by default 32, and `batch_wait_timeout_s`, in
        seconds, by default 0.002. By default, a replica of a part takes as many requests at a time as fill two batches,
        and a replica of the ingress takes 1,000.
    controller : BudgetController, default=None
        Sets the thresholds of both parts, from the exits of all requests.
    monitor : ExitMonitor, default=None
        Gets the exits and confidences of all requests.
    n_retries : int, default=3
        How often a request is sent to another replica if replicas of a part stop in the middle of it.

    Returns
    -------
    ray.serve.Application
        For ``serve.run``. It answers JSON over HTTP. In Python, ``handle.predict.remote(inputs)`` returns an
        :class:`~skexit.runtime.ExitOutput` of NumPy arrays.

    Raises
    ------
    ImportError
        If ray is not installed.
    ValueError
        If `at_exit` is not from 0 to n_exits - 2, or the network is not on the CPU or takes several inputs by position.
    RuntimeError
        If the live network was created without ``example_input`` and has not been called.

    Notes
    -----
    Over HTTP, ``{"inputs": [row, ...]}``, or ``{"inputs": {"name": [row, ...], ...}}`` for a network with named inputs,
    gets the answer ``{"labels": [...], "probabilities": [[...], ...], "exits": [...]}``. A request that fails gets a
    message under ``"error"``, with status 400 if the body is not such JSON, 405 if the method is not POST, 422 if the
    inputs do not fit the network, and 503 if all retries failed. Ray itself answers 503 if more than
    `max_queued_requests` wait, and 408 after `request_timeout_s`, an option of ``serve.start``.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from skexit import ThresholdPolicy, stack_exits
    >>> from skexit.runtime import EarlyExitModel
    >>> from skexit.serving import serve_parts
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(8, 3), nn.Linear(3, 3))
    >>> x, y = torch.randn(200, 8), torch.arange(200) % 3
    >>> with torch.no_grad():
    ...     logits = torch.stack([model[0](x), model(x)], 1).numpy()
    >>> policy = ThresholdPolicy(budget=0.8).fit(stack_exits(logits), y)
    >>> live = EarlyExitModel(model, ["0", "1"], policy, head=["0", "1"], example_input=x[:1])
    >>> application = serve_parts(live, at_exit=0, first={"num_replicas": 4}, second={"max_queued_requests": 100})
    >>> type(application).__name__
    'Application'
    """
    with optional_import("serve_parts needs", "serve"):
        from ray import serve

        from skexit.serving._ingress import Ingress
        from skexit.serving._inputs import InputFormat
        from skexit.serving._monitor import Monitor
        from skexit.serving._parts import FirstReplica, SecondReplica

    first_part, second_part = live.truncate(at_exit), live.resume(at_exit)
    if first_part.device.type != "cpu":
        raise ValueError(
            f"the network is on {first_part.device}. Move it to the CPU, model.cpu(), and create the live network "
            "again. A replica moves its part to the GPU that Ray assigns to it."
        )
    observed = None
    if controller is not None or monitor is not None:
        options = {"max_ongoing_requests": _MOST_CALLS, "max_queued_requests": _MOST_CALLS}
        light = serve.deployment(Monitor, name="Monitor", ray_actor_options={"num_cpus": 0}, **options)
        observed = light.bind(controller, monitor)
    later = serve.deployment(SecondReplica, name="SecondPart").options(**_part_options(second)).bind(second_part)
    earlier = serve.deployment(FirstReplica, name="FirstPart").options(**_part_options(first))
    entrance = serve.deployment(Ingress, name="Ingress").options(
        **{"max_ongoing_requests": 1000, "ray_actor_options": {"num_cpus": 0}, **(ingress or {})}
    )
    beginning = earlier.bind(first_part, later, observed, controller is not None, n_retries)
    return entrance.bind(InputFormat(first_part.example), beginning, n_retries)


def _part_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    given = dict(options or {})
    settings = {**_BATCHES, **given.pop("user_config", {})}
    return {"max_ongoing_requests": 2 * settings["max_batch_size"], **given, "user_config": settings}
