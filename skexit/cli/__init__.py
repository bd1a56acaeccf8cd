"""The ``skexit`` command: demo, caches and report."""

from skexit.cli._main import main

__all__ = ["main"]
