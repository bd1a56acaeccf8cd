"""Logits and features on disk: complete, checksummed shards with a manifest, written by one process at a time.

Running a network to fill a cache is in :mod:`skexit.extraction`.
"""

from skexit.cache._cache import FeatureCache
from skexit.cache._merging import merge_caches
from skexit.cache._writer import CacheWriter

__all__ = ["CacheWriter", "FeatureCache", "merge_caches"]
