"""A folder in which commands run."""

from pathlib import Path

import joblib
import pytest
from instances import make_exits

from skexit import StaticExit, ThresholdPolicy
from skexit.cache import CacheWriter


@pytest.fixture(scope="module")
def data():
    return make_exits(n_samples=400, n_exits=3, n_classes=3, random_state=0)


@pytest.fixture
def folder(data, tmp_path, monkeypatch):
    """A folder with two caches, one of them without labels, and two policies."""
    X, y = data
    monkeypatch.chdir(tmp_path)
    for name, labels in (("cache", y), ("unlabelled", None)):
        with CacheWriter(name, X.layout, origin={"model": "a test"}) as writer:
            writer.append([X.logits(k) for k in range(3)], [X.features(k) for k in range(3)], labels)
    joblib.dump(ThresholdPolicy(budget=0.6).fit(X, y), "policy.joblib")
    joblib.dump(StaticExit(1).fit(X, y), "static.joblib")
    Path("file").write_text("text", encoding="utf-8")
    return tmp_path
