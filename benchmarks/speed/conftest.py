"""One thread, so that what grows is the work and not its division; before NumPy is imported."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
