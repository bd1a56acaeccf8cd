"""Memory is mapped once for many tensors, and given back."""

import platform
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from skexit import StaticExit, stack_exits
from skexit.runtime import EarlyExitModel
from skexit.runtime._kept_memory import kept_memory

if platform.libc_ver()[0] != "glibc":
    pytest.skip("other C libraries decide otherwise", allow_module_level=True)
resource = pytest.importorskip("resource")

CPU = torch.device("cpu")
PAGE = 4096


def n_page_faults(function):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    function()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_memory():
    return 1024 * int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1])


@pytest.mark.parametrize("n_megabytes", [8, 17, 70])
def test_tensors_of_any_size_share_memory(n_megabytes):
    n_bytes = n_megabytes * 2**20

    def allocate():
        for _ in range(20):
            x = torch.ones(n_bytes, dtype=torch.uint8)
            _ = x + x

    with kept_memory(CPU):
        n_faults = n_page_faults(allocate)
    # Each of 20 rounds has two tensors, which need not lie where those of the first round did.
    assert n_faults < 10 * n_bytes / PAGE


def test_memory_is_given_back():
    before = resident_memory()
    with kept_memory(CPU):
        torch.ones(2**28, dtype=torch.uint8)
        assert resident_memory() > before + 2**27
    assert resident_memory() < before + 2**25


def test_memory_is_given_back_after_an_error():
    before = resident_memory()

    def fail():
        torch.ones(2**28, dtype=torch.uint8)
        raise ArithmeticError

    with pytest.raises(ArithmeticError), kept_memory(CPU):
        fail()
    assert resident_memory() < before + 2**25


def test_limited_addresses_are_no_error():
    size = PAGE * int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**28, limits[1]))
    try:
        with kept_memory(CPU):
            torch.ones(2**26, dtype=torch.uint8)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_other_devices_are_left_alone():
    with kept_memory(torch.device("meta")):
        pass


def test_a_loader_maps_its_activations_once(request):
    if request.config.getoption("--round-otherwise"):
        pytest.skip("what changes the rounding makes arrays of its own")
    wide = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 3, 1), nn.ReLU())
    network = nn.Sequential(wide, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)).eval()
    features = np.random.default_rng(0).normal(size=(2, 30, 3))
    policy = StaticExit(-1).fit(stack_exits(features=list(features)), np.arange(30) % 3)
    x = torch.randn(2560, 3, 32, 32)
    live = EarlyExitModel(network, ["0", "2"], policy, head=None, example_input=x[:1])
    activation = 128 * 16 * 32 * 32 * 4  # bytes
    n_faults = n_page_faults(lambda: live.predict_loader(x.split(128), batch_size=128, progress=False))
    # Each of 20 batches has two such activations, and smaller ones; at most a quarter of it is mapped.
    assert n_faults < 10 * activation / PAGE
