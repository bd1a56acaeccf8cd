"""Replacements for functions that torch.onnx translates inexactly or not at all, or onnxruntime has not in double."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset18

op: Any = opset18


def _scalar_tensor(
    number: Any, dtype: int = ir.DataType.FLOAT, layout: str = "", device: str = "", pin_memory: bool = False
) -> Any:
    # torch.onnx would write every number in single precision, and then convert it.
    if isinstance(number, bool | int | float):
        return op.Constant(value=ir.tensor(np.array(number, dtype=ir.DataType(dtype).numpy())))
    return op.Cast(number, to=dtype)


def _full_like(values: Any, number: Any, dtype: int | None = None, **others: Any) -> Any:
    kind = values.dtype if dtype is None else dtype
    return op.Expand(_scalar_tensor(number, kind), op.Shape(values))


def _sort(values: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    size = op.Shape(values, start=dim, end=dim + 1 or None)
    return op.TopK(values, size, axis=dim, largest=descending)


def _log1p(values: Any) -> Any:
    # Kahan's method: the rounding errors of the sum cancel.
    one = op.CastLike(1.0, values)
    rounded = op.Add(one, values)
    is_one = op.Equal(rounded, one)
    quotient = op.Div(op.Log(rounded), op.Where(is_one, one, op.Sub(rounded, one)))
    return op.Mul(values, op.Where(is_one, one, quotient))


def _expm1(values: Any) -> Any:
    one, two = op.CastLike(1.0, values), op.CastLike(2.0, values)
    tangent = op.Tanh(op.Div(values, two))
    small = op.Div(op.Mul(two, tangent), op.Sub(one, tangent))
    return op.Where(op.Greater(values, one), op.Sub(op.Exp(values), one), small)


def _log1p_of_finite(values: Any) -> Any:
    # Like _log1p with fewer nodes, for values that are finite and not negative.
    one = op.CastLike(1.0, values)
    rounded = op.Add(one, values)
    return op.Sub(op.Log(rounded), op.Div(op.Sub(op.Sub(rounded, one), values), rounded))


def _logaddexp(first: Any, second: Any) -> Any:
    distance = op.Abs(op.Sub(first, second))
    return op.Add(op.Max(first, second), _log1p_of_finite(op.Exp(op.Neg(distance))))


def _softplus(values: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
    # onnxruntime's Softplus is inexact near zero. The `threshold` of torch avoids overflow, which cannot occur here.
    scaled = values if beta == 1 else op.Mul(values, op.CastLike(float(beta), values))
    result = op.Add(op.Relu(scaled), _log1p_of_finite(op.Exp(op.Neg(op.Abs(scaled)))))
    return result if beta == 1 else op.Div(result, op.CastLike(float(beta), values))


def _sigmoid(values: Any) -> Any:
    if values.dtype != ir.DataType.DOUBLE:
        return op.Sigmoid(values)
    # onnxruntime's Sigmoid is inexact near zero.
    return op.Reciprocal(op.Add(op.CastLike(1.0, values), op.Exp(op.Neg(values))))


def _asinh(values: Any) -> Any:
    size = op.Abs(values)
    one = op.CastLike(1.0, values)
    square = op.Mul(size, size)
    excess = op.Add(size, op.Div(square, op.Add(one, op.Sqrt(op.Add(square, one)))))
    return op.Mul(op.Sign(values), _log1p_of_finite(excess))


TRANSLATIONS: dict[Any, Any] = {
    torch.ops.aten.full_like.default: _full_like,
    torch.ops.aten.scalar_tensor.default: _scalar_tensor,
    torch.ops.aten.sort.stable: _sort,
    torch.ops.aten.log1p.default: _log1p,
    torch.ops.aten.expm1.default: _expm1,
    torch.ops.aten.logaddexp.default: _logaddexp,
    torch.ops.aten.softplus.default: _softplus,
    torch.ops.aten.sigmoid.default: _sigmoid,
    torch.ops.aten.asinh.default: _asinh,
}
