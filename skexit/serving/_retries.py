"""Calls of replicas that may stop in the middle of a request."""

from __future__ import annotations

from typing import Any

from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle


class ReplicasLostError(RuntimeError):
    """Each replica that had the request has stopped in the middle of it."""


async def call(handle: DeploymentHandle, *arguments: Any, n_retries: int) -> Any:
    """Call a deployment, and call it again where the replica stops before it has answered.

    Ray itself sends a request to another replica only where the first has not accepted it.
    """
    for _ in range(1 + n_retries):
        try:
            return await handle.remote(*arguments)
        except RayActorError as error:
            lost = error
    raise ReplicasLostError(
        f"{1 + n_retries} replicas of {handle.deployment_name} stopped before they answered this request."
    ) from lost
