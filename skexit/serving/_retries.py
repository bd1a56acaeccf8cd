"""Calls of replicas that may stop in the middle of a request."""

from __future__ import annotations

from typing import Any

from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle


class ReplicasLostError(RuntimeError):
    """Every replica that the request was sent to stopped before it answered."""


async def call(handle: DeploymentHandle, *arguments: Any, n_retries: int) -> Any:
    """Call a deployment, and call it again if the replica stops before it has answered.

    Ray itself sends a request to another replica only if the first replica has not accepted it.
    """
    for _ in range(1 + n_retries):
        try:
            return await handle.remote(*arguments)
        except RayActorError as error:
            lost = error
    raise ReplicasLostError(
        f"{1 + n_retries} replicas of {handle.deployment_name} stopped before they answered this request. Send it "
        "again, or set a higher n_retries in serve_parts."
    ) from lost
