"""Convolutions: the same by NumPy, by torch and by the definition, and the costs that torch counts."""

import copy
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import correlate2d

import skexit._nn._conv
from skexit._nn._conv import ConvNetwork, convolve
from skexit._nn._dense import DenseNetwork

torch = pytest.importorskip("torch")


def by_definition(maps, kernel, bias, stride):
    """Sums of cross-correlations with zeros around the maps, sample by sample."""
    return np.stack(
        [
            [
                sum(correlate2d(channel, window, mode="same") for channel, window in zip(sample, windows, strict=True))[
                    ::stride, ::stride
                ]
                + offset
                for windows, offset in zip(kernel, bias, strict=True)
            ]
            for sample in maps
        ]
    )


def make_network(shape=(2, 5, 4), n_before=3, n_after=2, channels=(4, 3), strides=(2, 1), n_outputs=3, seed=0):
    """A network with random numbers, of a map between other inputs."""
    rng = np.random.default_rng(seed)
    kernels, sides, n_inputs = [], shape[1:], shape[0]
    for n_kernels, stride in zip(channels, strides, strict=True):
        kernels.append(rng.normal(size=(n_kernels, n_inputs, 3, 3)).astype(np.float32))
        sides, n_inputs = [-(-side // stride) for side in sides], n_kernels
    n_seen = n_inputs * np.prod(sides, dtype=int) + n_before + n_after
    return ConvNetwork(
        (n_before, *shape),
        rng.normal(size=shape[0]).astype(np.float32),
        tuple(kernels),
        tuple(rng.normal(size=n_kernels).astype(np.float32) for n_kernels in channels),
        tuple(strides),
        DenseNetwork((rng.normal(size=(n_seen, n_outputs)),), (rng.normal(size=n_outputs),)),
    )


def as_torch(network):
    """The same network, built from torch's own layers."""
    first, n_channels, height, width = network.place
    end = first + n_channels * height * width

    class Same(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.convolutions = torch.nn.ModuleList()
            for kernel, bias, stride in zip(network.kernels, network.biases, network.strides, strict=True):
                layer = torch.nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, stride, padding=1)
                layer.weight.data, layer.bias.data = torch.from_numpy(kernel), torch.from_numpy(bias)
                self.convolutions.append(layer)
            weight = network.dense.weights[0]
            self.linear = torch.nn.Linear(*weight.shape)
            self.linear.weight.data = torch.from_numpy(weight.T).float()
            self.linear.bias.data = torch.from_numpy(network.dense.biases[0]).float()

        def forward(self, inputs):
            maps = inputs[:, first:end].reshape(-1, n_channels, height, width)
            maps = maps - torch.from_numpy(network.means)[None, :, None, None]
            for layer in self.convolutions:
                maps = layer(maps).relu()
            return self.linear(torch.cat([maps.flatten(1), inputs[:, :first], inputs[:, end:]], dim=1))

    return Same().eval()


def n_inputs_of(network):
    n_of_map = network.kernels[-1].shape[0] * np.prod(sides_of(network), dtype=int)
    return len(network.dense.weights[0]) - n_of_map + np.prod(network.place[1:], dtype=int)


def sides_of(network):
    """Height and width of the last map."""
    sides = network.place[2:]
    for stride in network.strides:
        sides = [-(-side // stride) for side in sides]
    return sides


@pytest.fixture(params=["torch", "numpy"])
def convolved_by(request, monkeypatch):
    """Whether arrays of NumPy are convolved by torch, or as where torch has not been imported."""
    if request.param == "numpy":
        monkeypatch.delitem(sys.modules, "torch")
        monkeypatch.setattr(skexit._nn._conv, "_convolve_by_torch", lambda *_: pytest.fail("torch convolved"))
    return request.param


@settings(max_examples=40, deadline=None)
@given(
    sides=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    n_channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.integers(1, 3),
    n_samples=st.integers(0, 5),
    seed=st.integers(0, 9),
)
def test_convolutions_are_those_of_the_definition(sides, n_channels, stride, n_samples, seed):
    rng = np.random.default_rng(seed)
    maps = rng.normal(size=(n_samples, n_channels[0], *sides)).astype(np.float32)
    kernel = rng.normal(size=(n_channels[1], n_channels[0], 3, 3)).astype(np.float32)
    bias = rng.normal(size=n_channels[1]).astype(np.float32)
    by_torch = convolve(maps, kernel, bias, stride)
    of_tensors = convolve(torch.from_numpy(maps), kernel, bias, stride)
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "torch")
        patch.setattr(skexit._nn._conv, "_WINDOW_NUMBERS", 2 * 9 * maps[:1].size)  # two rows at a time
        by_numpy = convolve(maps, kernel, bias, stride)
    assert by_numpy.dtype == by_torch.dtype == np.float32
    assert by_numpy.shape == by_torch.shape == (n_samples, n_channels[1], *(-(-side // stride) for side in sides))
    if n_samples:
        expected = by_definition(maps, kernel, bias, stride)
        for found in (by_numpy, by_torch, of_tensors.numpy()):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


NETWORKS = {
    "two layers": make_network(),
    "one layer": make_network(channels=(4,), strides=(1,)),
    "nothing beside the map": make_network(n_before=0, n_after=0),
    "map of one place": make_network(shape=(5, 1, 1)),
}


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
class TestConvNetwork:
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_outputs_are_those_of_torchs_layers(self, network, dtype, convolved_by):
        inputs = np.random.default_rng(1).normal(size=(6, n_inputs_of(network))).astype(dtype)
        with torch.no_grad():
            expected = as_torch(network)(torch.from_numpy(inputs).float()).numpy()
        found = network(inputs)
        assert found.dtype == dtype
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_torch_tensors_give_torch_tensors(self, network, dtype):
        inputs = np.random.default_rng(1).normal(size=(6, n_inputs_of(network))).astype(dtype)
        found = network(torch.from_numpy(inputs))
        assert found.dtype == getattr(torch, dtype)
        np.testing.assert_allclose(found.numpy(), network(inputs), rtol=1e-5, atol=1e-5)

    def test_no_samples(self, network, convolved_by):
        assert network(np.zeros((0, n_inputs_of(network)))).shape == (0, 3)

    def test_arrays_that_cannot_be_written(self, network, convolved_by):
        inputs = np.random.default_rng(1).normal(size=(6, n_inputs_of(network)))
        expected, network = network(inputs), copy.deepcopy(network)
        for array in (inputs, network.means, *network.kernels, *network.biases):
            array.flags.writeable = False
        np.testing.assert_array_equal(network(inputs), expected)

    def test_multiply_adds_are_those_that_torch_counts(self, network):
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            as_torch(network)(torch.zeros(1, n_inputs_of(network)))
        assert 2 * network.n_multiply_adds == counter.get_total_flops()

    def test_divided(self, network):
        inputs = np.random.default_rng(1).normal(size=(6, n_inputs_of(network)))
        np.testing.assert_allclose(network.divided_by(2.5)(inputs), network(inputs) / 2.5)
