"""Batches as people have them become what a network is given."""

import dataclasses
from collections import UserDict, namedtuple

import pytest
import torch
from torch import nn

from skexit.backbone import describe_exits, exit_costs
from skexit.backbone._inputs import as_inputs, attention_mask_in, call, in_form, like_example, main_first
from skexit.backbone._loaders import read_item

IDS, MASK, Y = torch.randint(1, 9, (4, 6)), torch.ones(4, 6, dtype=torch.long), torch.arange(4)


class Network(nn.Module):
    def forward(self, input_ids, attention_mask=None):
        return input_ids if attention_mask is None else input_ids * attention_mask


@dataclasses.dataclass
class Batch:
    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None = None
    labels: torch.Tensor | None = None


Pair = namedtuple("Pair", ["x", "y"])
NAMED = {"input_ids": IDS, "attention_mask": MASK}


@pytest.mark.parametrize(
    ("item", "inputs", "labels"),
    [
        (IDS, IDS, None),
        ((IDS,), IDS, None),
        ([IDS, Y], IDS, Y),
        (Pair(IDS, Y), IDS, Y),
        ((IDS, None), IDS, None),
        ((IDS, MASK, Y), (IDS, MASK), Y),
        ([IDS, MASK, Y], (IDS, MASK), Y),
        (([IDS, MASK], Y), (IDS, MASK), Y),
        (((IDS, MASK),), (IDS, MASK), None),
        ((NAMED, Y), NAMED, Y),
        (NAMED | {"labels": Y}, NAMED, Y),
        ({"label": Y} | NAMED, NAMED, Y),
        (UserDict(NAMED | {"labels": Y}), NAMED, Y),
        (Batch(IDS, MASK, Y), NAMED, Y),
        (Batch(IDS), {"input_ids": IDS}, None),
    ],
)
def test_items_of_loaders(item, inputs, labels):
    given, y = read_item(0, item)
    assert y is labels
    assert type(given) is type(inputs)
    assert given is inputs or given == inputs


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((IDS, MASK), r"the last part of batch 3, which is y, has the shape \(4, 6\) of an input"),
        (
            {"input_ids": IDS, "text": ["a"] * 4},
            r"batch 3: .* got \{'input_ids': a tensor of shape \(4, 6\), 'text': a",
        ),
        ((IDS, {"mask": MASK}, Y), r"got a tuple of \(a tensor of shape \(4, 6\), \{'mask': a tensor of shape \(4, 6"),
        (torch.tensor(3.0), r"got a tensor of shape \(\)"),
        ((), "got nothing"),
        ("text", "got a str. Convert an image by the transform of the network, and texts by its tokenizer"),
    ],
)
def test_what_is_no_batch_is_described(item, message):
    with pytest.raises(ValueError, match=message):
        read_item(3, item)


@pytest.mark.parametrize(
    ("args", "named"),
    [((), NAMED), ((), NAMED | {"labels": Y}), ((NAMED | {"labels": Y},), {}), ((IDS,), {"attention_mask": MASK})],
)
def test_what_a_live_network_is_called_with(args, named):
    assert as_inputs(args, named, ["input_ids", "attention_mask"]) == NAMED


def test_inputs_by_position_are_joined_with_inputs_by_name_only_where_their_names_are_known():
    for names in ([], ["attention_mask"]):
        with pytest.raises(ValueError, match="either all by position or all by name"):
            as_inputs((IDS,), {"attention_mask": MASK}, names)


@pytest.mark.parametrize("order", [("attention_mask", "input_ids"), ("input_ids", "attention_mask")])
def test_the_main_input_comes_first(order):
    given = {name: NAMED[name] for name in order}
    assert list(main_first(Network(), given)) == ["input_ids", "attention_mask"]
    assert list(like_example(given, NAMED)) == list(NAMED)
    assert attention_mask_in(Network(), given) == order.index("attention_mask")
    assert attention_mask_in(Network(), (IDS, MASK)) == 1
    assert attention_mask_in(Network(), (IDS,)) is None


class OfParameters(nn.Module):
    def forward(self, series, static):
        return series


class NamesItsInput(OfParameters):
    main_input_name = "static"


@pytest.mark.parametrize(("model", "first"), [(OfParameters(), "series"), (NamesItsInput(), "static")])
def test_the_main_input_is_the_one_that_the_network_names_or_its_first_parameter(model, first):
    assert next(iter(main_first(model, {"other": Y, "static": IDS, "series": MASK}))) == first


class TakesABatch(nn.Module):
    """Takes all inputs as one argument."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, batch):
        left, right = batch.values() if isinstance(batch, dict) else batch
        return self.last(self.first(left + right))


@pytest.mark.parametrize("batch", [{"left": torch.ones(2, 3), "right": torch.ones(2, 3)}, (torch.ones(2, 3),) * 2])
def test_networks_that_take_a_batch_as_one_argument(batch):
    model = TakesABatch()
    assert call(model, batch).shape == (2, 2)
    assert exit_costs(model, ["first"], batch, unit="MACs").network == 15
    assert describe_exits(model, batch)["name"].tolist() == ["first"]


def test_examples_have_no_labels():
    assert in_form([IDS], "example_input") is IDS
    with pytest.raises(ValueError, match="example_input takes a tensor, a tuple of tensors or a dict of tensors"):
        in_form({"labels": Y}, "example_input")
