"""The ingress of an application: it takes requests over HTTP and from Python."""

from __future__ import annotations

from typing import Any

from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import JSONResponse

from skexit.runtime import ExitOutput
from skexit.serving._inputs import InputFormat, inputs_in
from skexit.serving._retries import ReplicasLostError, call

#: Errors of networks for invalid inputs, such as tokens beyond their vocabulary.
_INPUT_ERRORS = (ValueError, IndexError)


class Ingress:
    """Checks inputs, and calls the first part until a replica has answered.

    It holds no network, so it is less likely to stop than the replicas of the parts.
    """

    def __init__(self, input_format: InputFormat, first: DeploymentHandle, n_retries: int) -> None:
        self._format, self._first, self._n_retries = input_format, first, n_retries

    async def predict(self, inputs: Any) -> ExitOutput:
        """Predict for arrays with one row per sample."""
        arrays = self._format.arrays(inputs)
        output: ExitOutput = await call(self._first, arrays, n_retries=self._n_retries)
        return output

    async def __call__(self, request: Request) -> JSONResponse:
        """Answer a JSON request with JSON."""
        if request.method != "POST":
            return _refusal(405, f'the method {request.method} is not supported; POST {{"inputs": [...]}}.')
        body = await request.body()
        try:
            inputs = inputs_in(body)
        except ValueError as error:
            return _refusal(400, str(error))
        try:
            output = await self.predict(inputs)
        except _INPUT_ERRORS as error:
            # Errors of replicas are wrapped, with a traceback in their text.
            return _refusal(422, str(getattr(error, "cause", error)))
        except ReplicasLostError as error:
            return _refusal(503, str(getattr(error, "cause", error)))
        names = ("labels", "probabilities", "exits")
        return JSONResponse({name: part.tolist() for name, part in zip(names, output, strict=True)})


def _refusal(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status_code=status)
