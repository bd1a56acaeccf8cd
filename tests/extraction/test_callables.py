"""Callables that do different things are told apart, and one that does the same is recognised."""

import functools
import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from skexit.extraction import ExitExtractor
from skexit.extraction._callables import callable_fingerprint

SCALE = 1


def times(factor):
    return lambda v: v * factor


def nested(factor):
    def pool(v):
        def inner(w):
            return w * factor

        return inner(v)

    return pool


class Times:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, v):
        return v * self.factor

    def method(self, v):
        return v + self.factor


def default(v, factor=1):
    return v * factor


def keyword(v, *, factor=1):
    return v * factor


DIFFERENT = {
    "code": (lambda v: v, lambda v: -v),
    "constant": (lambda v: v, lambda v: v * 100),
    "constants": (lambda v: v * 10, lambda v: v * 100),
    "name": (lambda v: v.sin(), lambda v: v.cos()),
    "library": (lambda v: torch.sin(v), lambda v: torch.cos(v)),
    "closure": (times(1), times(100)),
    "closed tensor": (times(torch.ones(1)), times(torch.zeros(1))),
    "closed array": (times(np.ones(1)), times(np.zeros(1))),
    "nested": (nested(1), nested(2)),
    "default": (lambda v, f=1: v * f, lambda v, f=2: v * f),
    "keyword": (lambda v, *, f=1: v * f, lambda v, *, f=2: v * f),
    "partial": (functools.partial(default, factor=1), functools.partial(default, factor=2)),
    "object": (Times(1), Times(2)),
    "method": (Times(1).method, Times(2).method),
    "methods": (Times(1).method, Times(1)),
    "module": (nn.Linear(2, 2), nn.Linear(2, 2)),
    "builtin": (torch.sin, torch.cos),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_different(name):
    first, second = map(callable_fingerprint, DIFFERENT[name])
    assert first != second
    assert first == callable_fingerprint(DIFFERENT[name][0])


def test_what_the_code_reads(monkeypatch):
    before = callable_fingerprint(lambda v: v * SCALE)
    monkeypatch.setitem(globals(), "SCALE", 100)
    assert callable_fingerprint(lambda v: v * SCALE) != before


@pytest.mark.slow
def test_the_same_in_another_process(tmp_path):
    code = (
        "import torch\nfrom skexit.extraction._callables import callable_fingerprint\n"
        "print(callable_fingerprint(lambda v: torch.nn.functional.relu(v).flatten(1) if v.ndim in {2, 3, 4} else v))"
    )
    (tmp_path / "script.py").write_text(code)
    assert len({subprocess.check_output([sys.executable, tmp_path / "script.py"]) for _ in range(2)}) == 1


def test_the_cache_of_another_pooling_is_refused(tmp_path):
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.ones(3, 4)
    ExitExtractor(model, ["0"], pool=lambda v: v).extract([x], tmp_path)
    ExitExtractor(model, ["0"], pool=lambda v: v).extract([x], tmp_path)
    with pytest.raises(ValueError, match=r"differs in pool \("):
        ExitExtractor(model, ["0"], pool=lambda v: v * 100).extract([x], tmp_path)


def test_what_cannot_be_told_apart_is_to_be_named(tmp_path):
    pool = times(io.BytesIO())
    with pytest.raises(ValueError, match=r"part of type _io.BytesIO.*attribute fingerprint"):
        ExitExtractor(nn.Sequential(nn.Linear(4, 4)), ["0"], pool=pool)
    pool.fingerprint = "first"
    named = callable_fingerprint(pool)
    pool.fingerprint = "second"
    assert callable_fingerprint(pool) != named
