"""Run the command by ``python -m skexit.cli``."""

from skexit.cli import main

raise SystemExit(main())
