"""Finds places where a network can stop, in known families and in any network that runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

from skexit.backbone._inputs import Inputs, in_form
from skexit.backbone._modules import unwrapped
from skexit.backbone._places import trace_modules
from skexit.backbone._selection import choose_places
from skexit.utils._checks import check_positive
from skexit.utils._warnings import warn

if TYPE_CHECKING:
    import pandas as pd

#: Exits of a network of no known family.
_DEFAULT_N_EXITS = 4


def exit_points(
    model: nn.Module, each: str = "stage", *, example_input: Inputs | None = None, n_exits: int | None = None
) -> list[str]:
    """Names of the modules after which a network can stop, in forward order.

    For networks of known families, they depend on the class. For any other network, they are found in a forward pass:
    calls of modules where a live network can be divided, if possible at about equal steps of cost. Calls after which
    later modules need only their output are preferred. The last exit is the last such place before the network's
    output.
    :func:`describe_exits` lists all places. If a module is called several times, such as the only layer of ALBERT,
    ``"layer#0"`` is its first call and ``"layer#1"`` its second; all parameters for exits and heads take such names.

    Parameters
    ----------
    model : torch.nn.Module
        Any network. Known families are ResNet, ResNeXt, Wide ResNet, DenseNet, MobileNetV2 and V3, EfficientNet and
        VisionTransformer of torchvision, and BERT, RoBERTa, DistilBERT, ELECTRA, MPNet, DeBERTa and ViT of Hugging
        Face, with or without a classifier.
    each : {"stage", "block"}, default="stage"
        For known families, whether there is an exit after each stage or after each block. A stage ends where the
        resolution drops; in a transformer it is three layers, counted from the last, or one layer if there are at most
        three. The layers inside a dense block are not exits, because all later ones need them: a DenseNet has the same
        exits in both cases.
    example_input : tensor, tuple of tensors or dict of tensors, default=None
        One batch of inputs; a tuple is passed by position, a dict by keyword. Required for networks of no known family,
        and with `n_exits`.
    n_exits : int, default=None
        Number of exits, or fewer if the network has fewer places for them. By default the exits of the family,
        or 4.

    Returns
    -------
    names : list of str
        Module names.

    Raises
    ------
    ValueError
        If `example_input` is required but missing, or the network has no place for an exit.

    Warns
    -----
    UserWarning
        If the network has only one place for an exit, and more are requested.

    See Also
    --------
    describe_exits : Lists all places for exits, with their costs.

    Examples
    --------
    >>> import torch
    >>> from torchvision.models import resnet18, squeezenet1_1
    >>> from skexit.backbone import exit_points
    >>> model = resnet18(weights=None)
    >>> exit_points(model)
    ['layer1', 'layer2', 'layer3', 'layer4']
    >>> exit_points(model, each="block")[:3]
    ['layer1.0', 'layer1.1', 'layer2.0']
    >>> exit_points(squeezenet1_1(weights=None), example_input=torch.zeros(1, 3, 64, 64), n_exits=3)
    ['features.4', 'features.7', 'features']
    """
    if each not in ("stage", "block"):
        raise ValueError(f"each={each!r} must be 'stage' or 'block'.")
    if n_exits is not None:
        check_positive("n_exits", n_exits)
    model = unwrapped(model)
    names = _names_of_family(model, each) if n_exits is None else []
    if names:
        return names
    if example_input is None:
        raise ValueError(
            f"the exit points of {type(model).__name__} are found by running it: pass example_input=x, one batch of "
            "inputs, or the names of modules, exits=[...]."
        )
    places = choose_places(trace_modules(model, in_form(example_input, "example_input")), n_exits or _DEFAULT_N_EXITS)
    if not places:
        raise ValueError(
            f"{type(model).__name__} has no module that gives a tensor of floats with one row per sample, computed "
            "from the input by operations of torch, so that it has no place for an exit. Divide its computation into "
            "modules, and do not convert tensors to NumPy and back in it."
        )
    if len(places) == 1 and n_exits != 1:
        warn(
            f"{type(model).__name__} has one place for an exit, {places[0].name!r}, so that no sample can stop early. "
            "Divide its computation into modules, such as several nn.GRU instead of one with num_layers=3."
        )
    return [place.name for place in places]


def describe_exits(model: nn.Module, example_input: Inputs) -> pd.DataFrame:
    """All places where a network can have an exit, in forward order.

    Parameters
    ----------
    model : torch.nn.Module
        Any network.
    example_input : tensor, tuple of tensors or dict of tensors
        One batch of inputs.

    Returns
    -------
    pandas.DataFrame
        One row per call of a module that returns a tensor of floats with one row per sample: its ``name``, the
        ``shape`` of its output for a sample, the ``cost`` of the network up to there as a fraction of its FLOPs, the
        number of other tensors that later modules need (``carried``), and whether a live network can be divided there
        (``live``): if these have one row per sample, too. Parameter-free modules with several calls are left out.

    See Also
    --------
    exit_points : Chooses some of these places.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from skexit.backbone import describe_exits
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> describe_exits(model, torch.zeros(1, 8)).round(2)
      name  shape  cost  carried  live
    0    0  (16,)  0.30        0  True
    1    1  (16,)  0.30        0  True
    2    2  (16,)  0.89        0  True
    3    3  (16,)  0.89        0  True
    """
    import pandas as pd

    places = trace_modules(unwrapped(model), in_form(example_input, "example_input"))
    rows = [(place.name, place.shape, place.cost, place.n_carried, place.can_divide) for place in places]
    return pd.DataFrame(rows, columns=["name", "shape", "cost", "carried", "live"])


def _names_of_family(model: nn.Module, each: str) -> list[str]:
    """Exits of a network of a known family; no exits for other networks."""
    for parent in type(model).__mro__:
        if parent.__name__ in _FAMILIES and parent.__module__.partition(".")[0] in ("torchvision", "transformers"):
            return _FAMILIES[parent.__name__](model, each)
    return []


def _resnet(model: nn.Module, each: str) -> list[str]:
    stages = [name for name, _ in model.named_children() if re.fullmatch(r"layer\d+", name)]
    return stages if each == "stage" else _children_of(model, stages)


def _densenet(model: nn.Module, each: str) -> list[str]:
    children = _children_of(model, ["features"])
    return [name for name in children if re.fullmatch(r"features\.transition\d+", name)] + children[-1:]


def _mobilenet(model: nn.Module, each: str) -> list[str]:
    blocks = _children_of(model, ["features"])
    return blocks if each == "block" else _before_each_drop_of_resolution(model, blocks)


def _efficientnet(model: nn.Module, each: str) -> list[str]:
    stages = _children_of(model, ["features"])
    if each == "stage":
        return _before_each_drop_of_resolution(model, stages)
    # The first and the last child are single convolutions without blocks.
    return stages[:1] + _children_of(model, stages[1:-1]) + stages[-1:]


def _vision_transformer(model: nn.Module, each: str) -> list[str]:
    return _transformer_layers(_children_of(model, ["encoder.layers"]), each)


def _hugging_face_encoder(model: nn.Module, each: str) -> list[str]:
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    return _transformer_layers(_children_of(model, lists[:1]), each)


def _children_of(model: nn.Module, parents: list[str]) -> list[str]:
    """Names of the children of the parents, without those of parents that the network lacks."""
    modules = dict(model.named_modules())
    return [
        f"{parent}.{name}" for parent in parents if parent in modules for name, _ in modules[parent].named_children()
    ]


def _before_each_drop_of_resolution(model: nn.Module, names: list[str]) -> list[str]:
    following = names[1:]
    return [name for name, after in zip(names, following, strict=False) if _has_stride(model, after)] + names[-1:]


def _has_stride(model: nn.Module, name: str) -> bool:
    convolutions = (module for module in model.get_submodule(name).modules() if isinstance(module, nn.Conv2d))
    return any(max(convolution.stride) > 1 for convolution in convolutions)


def _transformer_layers(names: list[str], each: str) -> list[str]:
    return names if each == "block" or len(names) <= 3 else names[::-3][::-1]


_FAMILIES: dict[str, Callable[[nn.Module, str], list[str]]] = {
    "ResNet": _resnet,
    "DenseNet": _densenet,
    "MobileNetV2": _mobilenet,
    "MobileNetV3": _mobilenet,
    "EfficientNet": _efficientnet,
    "VisionTransformer": _vision_transformer,
    "BertPreTrainedModel": _hugging_face_encoder,
    "RobertaPreTrainedModel": _hugging_face_encoder,
    "DistilBertPreTrainedModel": _hugging_face_encoder,
    "ElectraPreTrainedModel": _hugging_face_encoder,
    "MPNetPreTrainedModel": _hugging_face_encoder,
    "DebertaPreTrainedModel": _hugging_face_encoder,
    "DebertaV2PreTrainedModel": _hugging_face_encoder,
    "ViTPreTrainedModel": _hugging_face_encoder,
}
