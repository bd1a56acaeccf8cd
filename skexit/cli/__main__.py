"""Run the command with ``python -m skexit.cli``."""

from skexit.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
