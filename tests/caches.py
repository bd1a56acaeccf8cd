"""Small caches for tests: ten rows, two exits, shards of 4, 4 and 2 rows."""

import numpy as np

from skexit import ExitLayout, FeatureCache
from skexit.cache import CacheWriter
from skexit.cache._json_files import parse_json

LAYOUT = ExitLayout(
    [0, 2],
    [3, 1],
    costs=[10, 30],
    cost_unit="MACs",
    classes=["no", "yes"],
    network_cost=30,
    head_costs=[1, 2],
    feature_maps=[(1, 2, 1, 1), None],
    exit_names=["layer1", "layer2"],
    pools=["avg", None],
)
ORIGIN = {"model": "a", "data": "b"}
N_ROWS = 10


def values(n_rows=N_ROWS, seed=0):
    """Logits and features of the exits."""
    rng = np.random.default_rng(seed)
    logits = [None, rng.normal(size=(n_rows, 2)).astype(np.float32)]
    features = [rng.normal(size=(n_rows, 3)).astype(np.float32), rng.normal(size=(n_rows, 1)).astype(np.float32)]
    return logits, features


def as_array(logits, features):
    """What the X of a cache with these values is."""
    return np.hstack([features[0], logits[1], features[1]])


def read_json(file):
    """What a JSON file of a cache says, compared with its checksum."""
    return parse_json(file.read_bytes())


def take(blocks, rows):
    return [None if block is None else block[rows] for block in blocks]


def append_rows(writer, n_rows=N_ROWS, seed=0, y=None, batch_rows=2):
    """Append the rows that are not yet in the cache."""
    logits, features = values(max(n_rows, N_ROWS), seed)  # fewer rows are the first of these
    for start in range(writer.n_rows, n_rows, batch_rows):
        rows = slice(start, min(start + batch_rows, n_rows))
        writer.append(take(logits, rows), take(features, rows), None if y is None else y[rows])


def write_cache(
    path, *, n_rows=N_ROWS, seed=0, y=None, layout=LAYOUT, origin=ORIGIN, batch_rows=2, shard_rows=4, dtype="float32"
):
    with CacheWriter(path, layout, origin=origin, shard_rows=shard_rows, dtype=dtype) as writer:
        append_rows(writer, n_rows, seed, y, batch_rows)
    return FeatureCache(path)


EXPECTED = as_array(*values())
