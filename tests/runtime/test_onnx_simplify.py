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
from skexit.runtime._onnx_simplify import drop_copies, simplify  # noqa: E402

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
    model = program.to_onnx().model
    before = [node.op_type for node in model.graph]
    simplify(model.graph, "output/part")
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


END = 2**63 - 1
#: Operator, further inputs, attributes, and whether it gives what it takes, of shape (rows, 3, 4).
COPIES = [
    ("Identity", [], {}, True),
    ("Cast", [], {"to": ir.DataType.FLOAT}, True),
    ("Cast", [], {"to": ir.DataType.DOUBLE}, False),
    ("Pad", [[0, 0, 0, 0, 0, 0]], {}, True),
    ("Pad", [[0, 0, 0, 0, 1, 0]], {}, False),
    ("Slice", [[0], [3], [1]], {}, True),
    ("Slice", [[0, 0], [END, 9]], {}, True),
    ("Slice", [[0], [9]], {}, False),  # the number of rows is open
    ("Slice", [[0], [END], [2], [2]], {}, False),
    ("Slice", [[1], [END], [2]], {}, False),
    ("Slice", [[0], [2], [1]], {}, False),
    ("Transpose", [], {"perm": [0, 1, 2]}, True),
    ("Transpose", [], {"perm": [0, 2, 1]}, False),
    ("Relu", [], {}, False),
]


@pytest.mark.parametrize(("kind", "inputs", "attributes", "is_copy"), COPIES)
def test_nodes_that_give_what_they_take(kind, inputs, attributes, is_copy):
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["rows", 3, 4]))
    constants = [ir.tensor(np.array(numbers, dtype=np.int64), name=f"c{i}") for i, numbers in enumerate(inputs)]
    values = [
        ir.Value(name=tensor.name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape)
        for tensor in constants
    ]
    node = ir.node(kind, [x, *values], attributes)
    end = ir.node("Abs", node.outputs)
    end.outputs[0].name, end.outputs[0].type = "y", ir.TensorType(attributes.get("to", ir.DataType.FLOAT))
    graph = ir.Graph([x], end.outputs, nodes=[node, end], initializers=values, name="graph", opset_imports={"": 18})
    model = ir.Model(graph, ir_version=10)
    rows = {"x": np.random.default_rng(0).normal(size=(12, 3, 4)).astype(np.float32)}

    def run():
        return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, rows)[0]

    expected = run()
    drop_copies(graph)
    RemoveUnusedNodesPass()(model)
    assert [found.op_type for found in graph] == (["Abs"] if is_copy else [kind, "Abs"])
    np.testing.assert_array_equal(run(), expected)
