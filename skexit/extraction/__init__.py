"""Run a torch network once and keep what it says and knows at each exit."""

from skexit.backbone._costs import ExitCosts, exit_costs
from skexit.backbone._exit_points import exit_points
from skexit.extraction._dask import extract_on_dask
from skexit.extraction._extractor import ExitExtractor

__all__ = ["ExitCosts", "ExitExtractor", "exit_costs", "exit_points", "extract_on_dask"]
