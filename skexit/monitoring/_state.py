"""The state of a controller, in memory or in a file that several processes share."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Lock

from filelock import FileLock

from skexit.utils._files import refuse_folder, replacing

#: The delay falls by this number with each sample that is counted.
_FADING = 1 / 20


@dataclass
class ControllerState:
    """Number and sum of the values that were counted, and their target.

    `left_out` corrects the excess when the nominal budget is at one of its limits. The delay of a sample is the number
    of samples that are counted from its decision until it is counted itself: the size of a batch, or more if several
    processes decide at the same time. `delay` is the largest delay of recent samples, `largest_delay` that of all.
    """

    target: float
    n_samples: int = 0
    total: float = 0.0
    left_out: float = 0.0
    delay: float = 1.0
    largest_delay: int = 1

    @property
    def excess(self) -> float:
        """Sum of the values minus the target."""
        return self.total - self.n_samples * self.target + self.left_out

    def count(self, total: float, n_samples: int, decided_at: int) -> None:
        """Count samples whose values have the sum `total`, and which were decided after `decided_at` samples."""
        self.n_samples += n_samples
        self.total += total
        delay = self.n_samples - decided_at
        self.delay = max(delay, self.delay - _FADING * n_samples, 1.0)
        self.largest_delay = max(self.largest_delay, delay)


class OwnState:
    """A state in memory, which the threads of one process may share."""

    def __init__(self, state: ControllerState) -> None:
        self._state = state
        self._lock = Lock()

    @contextmanager
    def opened(self) -> Iterator[ControllerState]:
        """The state, locked against other threads, to read and change."""
        with self._lock:
            yield self._state

    def read(self) -> ControllerState:
        """A copy of the state."""
        with self._lock:
            return replace(self._state)

    def __getstate__(self) -> ControllerState:
        return self.read()

    def __setstate__(self, state: ControllerState) -> None:
        OwnState.__init__(self, state)


class SharedState:
    """A state in a file. The file is locked while a process changes it, and replaced in one step."""

    def __init__(self, path: Path, first: ControllerState) -> None:
        self._path, self._first = path, first
        if not path.parent.is_dir():
            raise FileNotFoundError(
                f"there is no folder {str(path.parent)!r} for path={str(path)!r}. Create the folder first."
            )
        refuse_folder(path, "path")

    @contextmanager
    def opened(self) -> Iterator[ControllerState]:
        """The state, locked against other processes, to read and change."""
        with FileLock(f"{self._path}.lock"):
            state = self.read()
            yield state
            with replacing(self._path) as beside:
                beside.write_text(json.dumps(asdict(state)), encoding="utf-8")

    def read(self) -> ControllerState:
        if not self._path.exists():
            return ControllerState(**asdict(self._first))
        try:
            state = ControllerState(**json.loads(self._path.read_text(encoding="utf-8")))
            if not all(map(math.isfinite, vars(state).values())):
                raise ValueError("it has a number that is not finite")
            if state.target != self._first.target:
                raise ValueError(f"its target is {state.target}, not {self._first.target}")
            return state
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"path={str(self._path)!r} is not a state of this controller ({error}). Pass another path, or remove "
                "the file."
            ) from error
