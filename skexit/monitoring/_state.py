"""What a controller has learned, in memory or in a file that several processes share."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

#: The largest move of the nominal budget per batch, as a share of the error of its mean: larger ones would overshoot.
_LARGEST_GAIN = 0.5


@dataclass
class ControllerState:
    """The nominal budget that sets thresholds, the step, the number of samples, and the sum of what they had."""

    nominal: float
    step: float
    n_samples: int = 0
    total: float = 0.0

    def move(self, total: float, n_samples: int, target: float, sign: float) -> None:
        """Move the nominal budget after a batch whose values sum to `total`, against the error of their mean.

        The step never grows, so that the bound holds for batches of any sizes.
        """
        self.step = min(self.step, _LARGEST_GAIN / n_samples)
        self.nominal += sign * self.step * (total - n_samples * target)
        self.n_samples += n_samples
        self.total += total


class OwnState:
    """The state of one process."""

    def __init__(self, state: ControllerState) -> None:
        self._state = state

    @contextmanager
    def opened(self) -> Iterator[ControllerState]:
        """The state, to read and to change."""
        yield self._state

    def read(self) -> ControllerState:
        return self._state


class SharedState:
    """A state in a file, which is locked while a process changes it, and is always whole."""

    def __init__(self, path: Path, first: ControllerState) -> None:
        self._path, self._first = path, first
        if not path.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {str(path.parent)!r} for path={str(path)!r}; make it first.")

    @contextmanager
    def opened(self) -> Iterator[ControllerState]:
        """The state, to read and to change, while no other process does."""
        with FileLock(f"{self._path}.lock"):
            state = self.read()
            yield state
            descriptor, beside = tempfile.mkstemp(dir=self._path.parent, prefix=self._path.name)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(asdict(state), file)
            os.replace(beside, self._path)

    def read(self) -> ControllerState:
        if not self._path.exists():
            return ControllerState(**asdict(self._first))
        try:
            return ControllerState(**json.loads(self._path.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"path={str(self._path)!r} holds no state of a controller ({error}). Give another path, or remove it."
            ) from error
