"""What is counted in operators that torch has no formula for, and what is said of those that nobody can count."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import flop_registry, register_flop_formula
from torchvision.ops import deform_conv2d

from skexit.backbone import describe_exits, exit_costs, exit_points
from skexit.backbone._counting import run_counting_flops
from skexit.backbone._flops import FlopCounter
from skexit.exceptions import UncountedWorkWarning


class Layer(nn.Module):
    """A function of its input and a weight."""

    def __init__(self, function, *shape):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.ones(shape))

    def forward(self, x):
        return self.function(x, self.weight)


def macs(function, x, *shape):
    return exit_costs(nn.Sequential(Layer(function, *shape)), ["0"], x, "MACs", head=None).costs.tolist()


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        return x @ weight


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (Product.apply, 2 * 8 * 8),
        (lambda x, w: torch.einsum("bi,ij->bj", x, w), 2 * 8 * 8),
        (lambda x, w: torch.stack([w @ row for row in x]), 2 * 8 * 8),
        (lambda x, w: x @ w.sum(1).outer(x.new_ones(8)), 2 * 8 * 8),
        (lambda x, w: torch.addmv(x.new_zeros(8), w, x[0]).expand(2, 8), 8 * 8),
        (lambda x, w: (x[0] @ w[0]).expand(2, 1), 8),
        (lambda x, w: torch.addbmm(x.new_zeros(2, 8), x[None], w[None]), 2 * 8 * 8),
        (lambda x, w: torch.cdist(x, w), 2 * 8 * 8),
        (lambda x, w: functional.bilinear(x, x, w[None].expand(3, 8, 8)), 2 * 3 * 8 * 8),
        (lambda x, w: functional.scaled_dot_product_attention(x, w, w), 2 * 2 * 8 * 8),
    ],
)
def test_products_by_hand(function, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UncountedWorkWarning)
        assert macs(function, torch.ones(2, 8), 8, 8) == [expected / 2]


@pytest.mark.parametrize(
    ("x", "weight", "expected"),
    [
        ((16, 8), (4, 8, 32), 16 * 8 * 32),  # rows in groups, each with its matrix
        ((16, 32), (32, 8), 16 * 32 * 8),  # columns in groups, as gradients have them
        ((4, 16, 8), (8, 32), 16 * 8 * 32),
        ((4, 16, 8), (4, 8, 16), 4 * 16 * 8 * 16),
    ],
    ids=str,
)
def test_experts_count_for_the_rows_that_are_routed_to_them(x, weight, expected):
    ends = torch.tensor([4, 8, 16, 16] if len(x) == 2 and len(weight) == 3 else [8, 8, 16, 32], dtype=torch.int32)
    groups = None if len(x) == len(weight) == 3 else ends
    with torch.no_grad(), FlopCounter() as counter:
        torch._grouped_mm(torch.ones(x).bfloat16(), torch.ones(weight).bfloat16(), offs=groups)
    assert (counter.read(), counter.uncounted) == (2 * expected, set())


def test_norms_of_vectors_are_not_counted_and_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UncountedWorkWarning)
        assert macs(lambda x, weight: nn.functional.normalize(x, dim=-1) @ weight, torch.ones(2, 8), 8, 3) == [24]


def test_deformable_convolution_by_hand():
    def convolve(x, weight):
        return deform_conv2d(x, x.new_zeros(len(x), 18, 2, 2), weight)

    assert macs(convolve, torch.ones(2, 4, 4, 4), 3, 4, 3, 3) == [2 * 2 * 3 * 4 * 9]


@pytest.mark.parametrize("layout", ["coo", "csr"])
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_a_sparse_matrix_counts_what_it_stores(layout):
    class Sparse(nn.Module):
        def __init__(self):
            super().__init__()
            weight = torch.eye(8)
            self.register_buffer("weight", weight.to_sparse() if layout == "coo" else weight.to_sparse_csr())

        def forward(self, x):
            return (self.weight @ x.T).T

    model = nn.Sequential(nn.Linear(8, 8), Sparse())
    assert exit_costs(model, ["0", "1"], torch.ones(2, 8), "MACs", head=None).costs.tolist() == [64, 72]


@pytest.mark.filterwarnings("ignore:torch.ao.quantization", "ignore:torch.quantize_per_tensor")
def test_quantised_linear_layers_by_hand():
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    assert exit_costs(quantised, ["0", "2"], torch.ones(2, 8), "MACs").costs.tolist() == [32, 44]


@torch.library.custom_op("skexit_tests::times", mutates_args=())
def times(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x @ weight


@torch.library.custom_op("skexit_tests::times_into", mutates_args={"result"})
def times_into(x: torch.Tensor, weight: torch.Tensor, result: torch.Tensor) -> None:
    result.copy_(x @ weight)


@torch.library.custom_op("skexit_tests::times_shapes", mutates_args=())
def times_shapes(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x @ weight


@times_shapes.register_fake
def _(x, weight):
    return x.new_empty(len(x), weight.shape[1])


def write_times(x, weight):
    result = torch.empty_like(x)
    times_into(x, weight, result)
    return result


def between_layers(function):
    return nn.Sequential(nn.Linear(8, 8), Layer(function, 8, 8), nn.Linear(8, 8), nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (times, "skexit_tests::times"),
        (times_shapes, "skexit_tests::times_shapes"),
        (write_times, "skexit_tests::times_into"),
        (lambda x, w: torch.fft.fft(x).real, "aten::_fft_r2c"),
        (lambda x, w: x @ torch.linalg.inv(w + torch.eye(8, device=w.device)), "aten::linalg_inv_ex"),
    ],
)
def test_what_is_not_counted_is_named(function, operator):
    model, x = between_layers(function), torch.ones(2, 8)
    with pytest.warns(UncountedWorkWarning, match=rf"costs do not count '{operator}' in the module '1'") as caught:
        exit_costs(model, ["0", "2", "3"], x)
    assert [(warning.filename, warning.message.operators) for warning in caught] == [(__file__, [(operator, "1")])]
    with pytest.warns(UncountedWorkWarning, match=operator):
        exit_points(model, example_input=x)
    with pytest.warns(UncountedWorkWarning, match=operator):
        describe_exits(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exit_costs(model, ["0", "2"], x, "ms", head=None, n_repeats=1)


def test_a_registered_formula_is_used(monkeypatch):
    packet = torch.ops.skexit_tests.times
    register_flop_formula(packet)(lambda x, weight, *args, **kwargs: 2 * x[0] * x[1] * weight[1])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            costs = exit_costs(between_layers(times), ["0", "1", "2"], torch.ones(2, 8), "MACs", head=None).costs
    finally:
        del flop_registry[packet]
    np.testing.assert_array_equal(costs, [64, 128, 192])


class LooksAtIntegers(nn.Module):
    """Decides by a mask, its positions and a number of its own, as Hugging Face's networks do."""

    def __init__(self, breaks=False):
        super().__init__()
        self.layer, self.breaks = nn.Linear(4, 4), breaks
        self.register_buffer("offset", torch.tensor([1]))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x, mask):
        self.note(x.device.type)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        counted = torch.zeros(mask.shape, dtype=torch.bool, device=mask.device)
        counted[mask.bool()] = True
        if self.breaks:
            positions += x[:, :, 0].long()
        n_layers = int(positions.max()) + int(self.offset) + int(self.scale.item()) + int(counted.sum() > 3)
        for _ in range(n_layers if not counted.all() else 0):
            x = self.layer(x)
        return x


@pytest.mark.parametrize("breaks", [False, True])
def test_networks_that_look_at_integers_run_on_shapes(breaks):
    """Until what they look at depends on values that are not known."""
    model, mask = LooksAtIntegers(breaks), torch.tensor([[1, 1, 1], [1, 0, 0]])
    devices = []
    model.note = devices.append
    inputs = {"x": torch.zeros(2, 3, 4), "mask": mask}
    with torch.no_grad():
        flops = run_counting_flops(model, inputs, lambda forward, flops: (forward(), flops())[1])
    assert flops == 5 * 2 * 6 * 16  # positions up to 2, the offset, the scale, and four that are counted
    assert devices == (["meta", "cpu"] if breaks else ["meta"])
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


class Doubled(torch.Tensor):
    """A tensor with operators of its own, which call those of plain tensors."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        def unwrap(value):
            return 2 * value.inner if isinstance(value, cls) else value

        return function(*map(unwrap, args), **(kwargs or {}))


def test_tensors_with_operators_of_their_own():
    doubled = Doubled(torch.ones(8, 4))
    model = nn.Sequential(nn.Linear(8, 8), Layer(lambda x, weight: torch.mm(x, doubled), 1))
    assert exit_costs(model, ["0", "1"], torch.ones(2, 8), "MACs").costs.tolist() == [64, 96]
