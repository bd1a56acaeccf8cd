"""Runs a network once, in one process or several, and stores logits and features of each exit in a cache."""

from skexit.utils._optional import optional_import

with optional_import("skexit.extraction runs networks with", "torch"):
    from skexit.extraction._dask import extract_on_dask
    from skexit.extraction._extractor import ExitExtractor

__all__ = ["ExitExtractor", "extract_on_dask"]
