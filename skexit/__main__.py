"""Run the command with ``python -m skexit``."""

from skexit.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
