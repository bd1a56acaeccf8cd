"""What the reader would refuse is refused when it is written, before a folder is made."""

import numpy as np
import pytest
from caches import LAYOUT, ORIGIN, write_cache

from skexit import ExitLayout, FeatureCache
from skexit.cache import CacheWriter, _folders, _json_files, _manifest
from skexit.cache._manifest import Manifest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"origin": {"seed": 3}}, r"origin=\{'seed': 3\} must have strings"),
        ({"origin": {"seed": None}}, "must have strings"),
        ({"origin": {3: "seed"}}, "must have strings"),
        ({"origin": {"text": "x" * 2**24}}, "it has more than 16777216 bytes.*short strings"),
        ({"layout": ExitLayout([2], [0], classes=[0, np.nan])}, "it holds NaN.*finite numbers"),
        ({"layout": ExitLayout([2], [0], classes=[0, np.inf])}, "it holds Infinity"),
        ({"layout": ExitLayout([2], [0], classes=[b"a", b"b"])}, "not JSON serializable"),
        ({"layout": ExitLayout([2], [0], cost_unit=3)}, "cost_unit of its layout is no string"),
    ],
)
def test_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        CacheWriter(tmp_path / "c", **({"layout": LAYOUT, "origin": ORIGIN} | change))
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("block", [np.zeros((4, 2, 3)), np.zeros(4)])
def test_blocks_are_two_dimensional(tmp_path, block):
    with CacheWriter(tmp_path, ExitLayout([2], [0]), origin={}) as writer:
        with pytest.raises(ValueError, match="the logits of exit 0 have shape"):
            writer.append([block], [None])
        with pytest.raises(ValueError, match="have 2 and 1 exits, not 1"):
            writer.append([None, None], [None])


def test_a_manifest_grows_with_its_shards(tmp_path, monkeypatch):
    """Descriptions are bounded, but for a checksum of each shard that is there."""
    for module in (_json_files, _folders, _manifest):
        monkeypatch.setattr(module, "MAX_JSON_BYTES", 1200)
    before = write_cache(tmp_path, n_rows=300, batch_rows=1, shard_rows=1)
    assert (tmp_path / "manifest.json").stat().st_size > 3000
    assert FeatureCache(tmp_path).n_rows == before.n_rows == 300
    with (tmp_path / "manifest.json").open("a") as file:
        file.write(" " * 5000)
    with pytest.raises(ValueError, match="it has more than 1200 bytes beside 4800 for its shards"):
        FeatureCache(tmp_path)


def test_every_manifest_of_a_cache_fits(tmp_path):
    """Also the last one, which has more rows and a fingerprint."""
    n_bytes = len(_json_files.dump_json(Manifest(LAYOUT, np.dtype("float32"), {"text": ""}).to_dict()))
    for spare in (0, 10):
        with pytest.raises(ValueError, match="short strings as origin"):
            write_cache(tmp_path, origin={"text": "x" * (2**24 - n_bytes - spare)})
    origin = {"text": "x" * (2**24 - n_bytes - 100)}
    assert write_cache(tmp_path, origin=origin).origin == origin
