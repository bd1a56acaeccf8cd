"""The ``skexit`` command. This package has no functions for use from Python."""

from skexit.cli._main import main as main
