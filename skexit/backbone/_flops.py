"""FLOPs of operators: torch's formulas, and some that it lacks."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count, shape_wrapper

from skexit.backbone._outputs import are_plain, tensors_among

Shape = Sequence[int]

#: Namespaces of torch's own operators: all but products count as zero.
_OF_TORCH = {"aten", "prim", "prims", "profiler"}
#: Prefixes of the names of torch's products that have no formula.
_PRODUCTS = (
    "_cudnn_rnn", "_fft_", "_linalg_eigh", "_linalg_s", "_native_multi_head", "_scaled_grouped_mm", "_sparse",
    "_transformer_encoder_layer", "cholesky", "linalg_", "lu_solve", "miopen_rnn", "mkldnn_convolution",
    "mkldnn_linear", "ormqr", "quantized_", "sparse_sampled", "triangular_solve",
)  # fmt: skip


class FlopCounter(TorchDispatchMode):
    """Counts the FLOPs of operations, and collects operators whose FLOPs are not known."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0.0
        self.uncounted: set[tuple[str, nn.Module | None]] = set()
        """Names of operators, and the modules that called them."""
        self._formulas: dict[Any, Callable[..., int]] = {}

    def read(self) -> float:
        """FLOPs so far."""
        return self.flops

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not are_plain(types):
            return NotImplemented  # such tensors call operators on plain ones, which are counted
        kwargs = kwargs or {}
        formula = self._formulas.get(function)
        if formula is None:
            formula = _formula(function)
            if formula is None:
                with self:
                    result = function.decompose(*args, **kwargs)
                if result is not NotImplemented:
                    return result
            formula = self._formulas[function] = formula or _unknown_flops(function)
        result = function(*args, **kwargs)
        if formula is _unknown:
            self.uncounted.add((function._schema.name, _calling_module()))
        elif formula is not _none:
            self.flops += _density(args) * formula(*args, **kwargs, out_val=result)
        return result


def _formula(function: Any) -> Callable[..., int] | None:
    own = _FORMULAS.get(function._schema.name)
    found: Callable[..., int] | None = flop_registry.get(function._overloadpacket)  # users may add formulas
    return found or (None if own is None else shape_wrapper(own))


def _unknown_flops(function: Any) -> Callable[..., int]:
    """Replaces the formula of an operator that has none, and may be a product or not."""
    if function._schema.name == "aten::linalg_vector_norm":  # not a product, unlike others of torch.linalg
        return _none
    if function.namespace in _OF_TORCH:
        return _unknown if function._schema.name.partition("::")[2].startswith(_PRODUCTS) else _none
    return _unknown if function._schema.arguments else _none


def _none(*args: Any, **kwargs: Any) -> int:
    return 0


def _unknown(*args: Any, **kwargs: Any) -> int:
    return 0


def _density(args: Any) -> float:
    """Share of the elements of a product's sparse factor that are stored."""
    sparse = [tensor for tensor in tensors_among(args) if tensor.layout != torch.strided]
    return math.prod(_n_stored(tensor) / max(tensor.numel(), 1) for tensor in sparse)


def _n_stored(tensor: torch.Tensor) -> int:
    return (tensor._values() if tensor.layout == torch.sparse_coo else tensor.values()).numel()


def _calling_module() -> nn.Module | None:
    """The innermost module that has a running method."""
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module):
            return module
    return None


def _of_matrix(matrix: Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(matrix)


def _of_added_matrix(added: Shape, matrix: Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(matrix)


def _of_product(first: Shape, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    return 2 * math.prod(first) * out_shape[-1]


def _of_added_product(added: Shape, first: Shape, second: Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(first) * second[-1]


def _of_grouped_product(first: Shape, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    """Each row, such as a token that is routed to an expert, is multiplied only by the matrix of its group."""
    return 2 * (math.prod(first) * out_shape[-1] if len(first) == 2 else math.prod(out_shape) * first[-1])


def _of_distances(first: Shape, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    return 2 * math.prod(out_shape) * first[-1]


def _of_bilinear_layer(first: Shape, weight: Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * first[0] * math.prod(weight)


def _of_deformable_convolution(x: Shape, weight: Shape, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def _of_recurrent_layer(x: Shape, input_weight: Shape, hidden_weight: Shape, *args: Any, **kwargs: Any) -> int:
    n_steps, n_samples, _ = x
    return 2 * n_steps * n_samples * (math.prod(input_weight) + math.prod(hidden_weight))


def _of_attention(query: Shape, key: Shape, value: Shape, *args: Any, **kwargs: Any) -> int:
    flops: int = sdpa_flop_count(query, key, value)
    return flops


#: Formulas that torch lacks, by the name of the operator; they get shapes instead of tensors.
_FORMULAS: dict[str, Callable[..., int]] = {
    "aten::_addmm_activation": _of_added_product,
    "aten::_cdist_forward": _of_distances,
    "aten::_grouped_mm": _of_grouped_product,
    "aten::_int_mm": _of_product,
    "aten::_scaled_dot_product_flash_attention_for_cpu": _of_attention,
    "aten::_scaled_dot_product_fused_attention_overrideable": _of_attention,
    "aten::_sparse_addmm": _of_added_product,
    "aten::_trilinear": _of_bilinear_layer,
    "aten::_weight_int4pack_mm": _of_product,
    "aten::_weight_int8pack_mm": _of_product,
    "aten::addbmm": _of_added_product,
    "aten::addmv": _of_added_matrix,
    "aten::dot": _of_matrix,
    "aten::mkldnn_rnn_layer": _of_recurrent_layer,
    "aten::mv": _of_matrix,
    "aten::vdot": _of_matrix,
    "quantized::linear": _of_product,
    "quantized::linear_dynamic": _of_product,
    "quantized::linear_dynamic_fp16": _of_product,
    "quantized::linear_relu": _of_product,
    "quantized::linear_relu_dynamic": _of_product,
    "torchvision::deform_conv2d": _of_deformable_convolution,
}
