"""Peak of the resident memory of this process (Linux)."""

from __future__ import annotations

import re
from pathlib import Path


def reset_peak_memory() -> int:
    """Start measuring the peak of the resident memory; its size now, in KiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def peak_memory() -> int:
    """The peak since the last reset, in KiB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
