"""What the reader would refuse is refused when it is written, before a folder is made."""

import numpy as np
import pytest
from caches import LAYOUT, ORIGIN

from skexit import ExitLayout
from skexit.cache import CacheWriter


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
