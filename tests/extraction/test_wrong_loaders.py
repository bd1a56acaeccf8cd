"""What is no loader, such as a batch in no list, raises an error whose cure works as it is written."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from skexit.extraction import ExitExtractor

x = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
y = np.arange(12) % 3
array, frame, rows = x.numpy(), pd.DataFrame(x.numpy()), list(x.numpy())
LABELS = [
    y,
    torch.tensor(y),
    y.tolist(),
    pd.Series(y),
    np.array(["a", "b", "c"])[y],
    list("abcabcabcabc"),
    list(torch.tensor(y)),
]
OF_ROWS = "loader is one batch of 12 rows and their labels"


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def extract(network, loader, path):
    return ExitExtractor(network, ["1", "3"]).extract(loader, path, progress=False)


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        (x, "x"),
        (array, "torch.from_numpy(x)"),
        (array.astype(np.float64), "torch.from_numpy(x).float()"),
        (frame, "torch.tensor(x.to_numpy(dtype='float32'))"),
        (rows, "torch.from_numpy(numpy.stack(x))"),
        ([row.astype(np.float64) for row in rows], "torch.from_numpy(numpy.stack(x)).float()"),
        (list(x), "torch.stack(tuple(x))"),
    ],
)
@pytest.mark.parametrize("kind", [tuple, list])
def test_inputs_and_labels_in_no_list(network, inputs, code, kind, tmp_path):
    expected = extract(network, [(x, y)], tmp_path / "right")
    message = f"{OF_ROWS}. Pass a list of batches, such as [({code}, y)]."
    for labels in LABELS:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            extract(network, kind((inputs, labels)), tmp_path / "wrong")
    cure = re.search(r"such as (.*)\.$", message)[1]
    found = extract(network, eval(cure, {"torch": torch, "numpy": np}, {"x": inputs, "y": y}), tmp_path / "cured")
    np.testing.assert_allclose(found.X, expected.X, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.y, y)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (x, "loader is a tensor of shape (12, 8). Pass a list of batches, such as [x]."),
        (
            array,
            "loader is an array of shape (12, 8) and type float32. Pass a list of batches of tensors, such as "
            "[torch.from_numpy(x)].",
        ),
        (
            frame,
            "loader is a DataFrame. Pass a list of batches of tensors, such as "
            "[torch.tensor(x.to_numpy(dtype='float32'))].",
        ),
        ((x, None), "loader is one batch of 12 rows. Pass a list of batches, such as [x]."),
        ((array, None), "loader is one batch of 12 rows. Pass a list of batches, such as [torch.from_numpy(x)]."),
        ((x, array, y), f"{OF_ROWS}. Pass a list of batches, such as [(x0, torch.from_numpy(x1), y)]."),
        (
            {"x": x, "labels": torch.tensor(y)},
            "loader is one batch, {'x': a tensor of shape (12, 8), 'labels': a tensor of shape (12,)}. Pass a list of "
            "batches, such as [batch].",
        ),
        (
            rows,
            "loader has 12 arrays of shape (8,), which are samples. Pass a list of batches of tensors, such as "
            "[torch.from_numpy(numpy.stack(samples))].",
        ),
    ],
)
def test_other_forms(network, loader, message, tmp_path):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        extract(network, loader, tmp_path)


@pytest.mark.parametrize(
    "samples",
    [list(zip(x, y, strict=True)), list(zip(array, y, strict=True)), list(zip(array, map(str, y), strict=True))],
)
def test_samples_with_labels(network, samples, tmp_path):
    label = str(samples[0][1]) if isinstance(samples[0][1], str) else 0
    message = f"loader: batch 0 has only one label, {label!r}, so it is a sample and not a batch. Pass batches: "
    message += "torch.utils.data.DataLoader(dataset, batch_size=64) makes them from a data set."
    for loader in (samples, iter(samples)):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            extract(network, loader, tmp_path / "wrong")
    cured = extract(network, torch.utils.data.DataLoader(samples, batch_size=64), tmp_path / "cured")
    assert cured.y.tolist() == [label for _, label in samples]


def test_what_is_right_stays_so(network, tmp_path):
    expected = np.asarray(extract(network, [(x, y)], tmp_path / "0").X)
    for number, loader in enumerate(
        [[(x, labels) for _ in range(1)] for labels in LABELS]
        + [
            [x],
            (x,),
            [x[:6], x[6:]],
            (x[:6], x[6:]),
            [(x[:6], y[:6]), (x[6:], y[6:])],
            ((x[:6], y[:6]), (x[6:], y[6:])),
        ]
        + [[{"input": x, "labels": torch.tensor(y)}], (batch for batch in [(x[:6], y[:6]), (x[6:], y[6:])])],
        start=1,
    ):
        np.testing.assert_allclose(extract(network, loader, tmp_path / str(number)).X, expected, rtol=1e-4, atol=1e-5)


class Named(nn.Sequential):
    """A network whose input has a name."""

    def forward(self, x):
        return super().forward(x)


@pytest.mark.parametrize("part", ["y", "target", "index"])
def test_parts_by_name_that_the_network_does_not_take(network, part, tmp_path):
    named = Named(*network)
    message = (
        f"x of batch 0 of the loader has the parts ['{part}'], which the network does not take. Leave them out, and "
        "name labels 'labels' or 'label'."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        extract(named, [{"x": x, part: torch.tensor(y)}], tmp_path / "wrong")
    found = extract(named, [{"x": x, "labels": torch.tensor(y)}], tmp_path / "cured")
    np.testing.assert_array_equal(found.y, y)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((x, {"label": y}), "is a dict with the keys ['label']. Give one label per row, such as [(x, y['label']) for"),
        ((x.to_sparse(), y), "x of batch 0 is a sparse tensor, torch.sparse_coo. Pass x.to_dense()."),
        ((torch.nested.nested_tensor(list(x), layout=torch.jagged), y), "x of batch 0 is a nested tensor. Pad it by"),
        ((x.to("meta"), y), "batch 0 is on the device 'meta', which has shapes only. Give real inputs."),
        ({"x": x, "labels": y, "path": ["a"] * 12}, "Leave out ['path'], or make tensors of texts by a tokenizer."),
        ((x, np.array([b"a", b"b", b"c"])[y]), "such as numpy.asarray(labels).astype(str) of bytes."),
    ],
)
def test_batches_of_other_kinds(network, batch, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        extract(Named(*network), [batch], tmp_path / "wrong")
