"""The ``skexit`` command: demo, caches and report. Nothing here is for use from Python."""

from skexit.cli._main import main as main
