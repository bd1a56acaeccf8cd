"""What a cache says of itself may have been written to harm: it is shown as text."""

import numpy as np
import pytest
from sklearn.utils import estimator_html_repr

from skexit import ExitLayout, FeatureCache
from skexit.cache import CacheWriter
from skexit.cli._cache import describe
from skexit.policies import ThresholdPolicy
from skexit.report import write_report

NAMES = ["\x1b[31m", "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a\nb\u202e", "${title} & <i>"]


@pytest.fixture(params=NAMES, ids=range(len(NAMES)))
def name(request):
    return request.param


@pytest.fixture
def cache(tmp_path, name):
    layout = ExitLayout([2, 2], [0, 0], costs=[1, 2], cost_unit=name, classes=[name, "other"])
    folder = tmp_path / name.replace("/", "-")
    rng = np.random.default_rng(0)
    y = rng.choice([name, "other"], 60)
    logits = [rng.normal(size=(60, 2)) + 2 * (y[:, None] == [name, "other"]) for _ in range(2)]
    with CacheWriter(folder, layout, origin={name: name}) as writer:
        writer.append(logits, [None, None], y=y)
    return FeatureCache(folder)


def test_texts_are_printable(cache):
    for value in (cache, cache.X, cache.layout):
        assert repr(value).isprintable()
        assert not hasattr(value, "_repr_html_")
    assert describe(cache).replace("\n", "").isprintable()


@pytest.mark.parametrize("name", [name for name in NAMES if "<" in name])
def test_pages_are_escaped(cache, tmp_path, name):
    policy = ThresholdPolicy(budget=0.8).fit(cache.X, cache.y)
    report = tmp_path / "report.html"
    write_report(cache.X, cache.y, {name: policy}, report, source=str(cache.path))
    for page in (estimator_html_repr(policy), report.read_text(encoding="utf-8")):
        for harmful in ("<script>alert", "<img src=x", "<i>"):
            assert harmful not in page
