"""One writer for a folder at a time."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

#: Name of the file that a writer holds. It may be left behind by one that was killed, which holds nothing.
LOCK = "writing.lock"


class FolderLock:
    """The right to write into an existing folder, until it is released or the process ends in any way.

    Raises a RuntimeError if another writer has it.
    """

    def __init__(self, folder: Path) -> None:
        from filelock import FileLock, Timeout

        self._file = folder / LOCK
        self._lock = FileLock(self._file, thread_local=False)
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise RuntimeError(
                f"another process is writing into {str(folder)!r}: wait until it has ended, or give another folder. "
                "A process that was killed does not count."
            ) from None
        except BaseException:  # an interruption; it may have come when the lock was held
            self._lock.release(force=True)
            raise

    def release(self) -> None:
        """Release the lock."""
        try:
            # Removed while it is held: who opened it just now finds that it has no name any more, and does not take it.
            with suppress(OSError):
                self._file.unlink()
        finally:
            self._lock.release()
