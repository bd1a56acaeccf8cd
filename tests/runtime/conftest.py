"""Exports to ONNX share what is the same for all of them."""

import copy
import functools

import pytest


@pytest.fixture(autouse=True, scope="session")
def one_table_of_operations():
    """torch makes a table of all operations that it translates for each export, which takes half of its time."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:  # private in torch
        yield
        return
    make = functools.cache(ONNXRegistry.from_torchlib)

    def copied(*arguments, **options):
        registry = copy.copy(make(*arguments, **options))
        registry.functions = {name: list(functions) for name, functions in registry.functions.items()}
        return registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(copied))
        yield
