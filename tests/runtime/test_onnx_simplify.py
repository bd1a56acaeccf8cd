"""A graph of ONNX gives the same with fewer nodes."""

import numpy as np
import pytest
import torch
from torch import nn

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
import onnx_ir as ir  # noqa: E402
from onnx_ir.passes.common import RemoveUnusedNodesPass  # noqa: E402

from skexit.runtime._onnx_parts import PartsSideBySide  # noqa: E402
from skexit.runtime._onnx_simplify import simplify  # noqa: E402

N_ROWS, N_COLUMNS = 7, 5


class Columns(nn.Module):
    """Numbers of the rows, some of which are used as they are, too."""

    def forward(self, inputs):
        x = inputs["x"]
        largest, total = x.amax(1), x.sum(1)
        columns = torch.stack([x[:, 1], 1 - largest, (total - x[:, -1]).abs(), 2 * total], dim=1)
        return {"columns": columns, "largest": largest * 3, "column": x.sum(1)[:, None]}


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(N_COLUMNS, 3, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(3, dtype=torch.float64))

    def forward(self, inputs):
        return {"y": inputs["x"] @ self.weight + self.bias}


@pytest.mark.parametrize(
    ("part", "gone", "made"), [(Columns(), set(), set()), (Linear(), {"Add"}, {"Gemm"})], ids=["columns", "gemm"]
)
def test_same_values_of_fewer_nodes(part, gone, made):
    torch.manual_seed(0)
    x = {"x": torch.randn(N_ROWS, N_COLUMNS, dtype=torch.float64)}
    expected = part(x)
    program = PartsSideBySide({"part": part}, {"part": x}, {"part": expected}, {"part": {"x": [None, N_COLUMNS]}})
    model = program.record().model
    before = [node.op_type for node in model.graph]
    simplify(model.graph)
    RemoveUnusedNodesPass()(model)
    after = [node.op_type for node in model.graph]
    assert len(after) < len(before)
    assert gone <= set(before)
    assert not gone & set(after)
    assert after.count("Unsqueeze") <= 1  # an output
    assert made <= set(after)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    names = [value.name for value in session.get_outputs()]
    values = dict(zip(names, session.run(None, {"part/x": x["x"].numpy()}), strict=True))
    assert set(names) == {f"output/part/{name}" for name in expected}
    for name, tensor in expected.items():
        np.testing.assert_allclose(values[f"output/part/{name}"], tensor.detach().numpy())
