"""Ready-made exit points of well-known backbones."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import nn


def exit_points(model: nn.Module, each: str = "stage") -> list[str]:
    """Names of the modules after which a known network can stop, in forward order.

    A family is recognised by the name of the model's class or of a class it derives from.

    Parameters
    ----------
    model : torch.nn.Module
        From torchvision, or built like it: ResNet, ResNeXt, Wide ResNet, DenseNet, MobileNetV2
        and V3, EfficientNet, VisionTransformer. From Hugging Face, with or without a classifier:
        BERT, RoBERTa, DistilBERT, ELECTRA, MPNet, DeBERTa, ViT.
    each : {"stage", "block"}, default="stage"
        Whether an exit stands after each stage or after each block. A stage ends where the resolution drops; in a
        transformer it is three layers, counted from the last. The layers inside a dense block are no exits, because
        later ones need them all: a DenseNet has the same exits either way.

    Returns
    -------
    names : list of str
        Module names. The last one is the last stage of the backbone.

    Raises
    ------
    ValueError
        If the family is not known.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> from skexit.backbone import exit_points
    >>> model = resnet18(weights=None)
    >>> exit_points(model)
    ['layer1', 'layer2', 'layer3', 'layer4']
    >>> exit_points(model, each="block")[:3]
    ['layer1.0', 'layer1.1', 'layer2.0']
    """
    if each not in ("stage", "block"):
        raise ValueError(f"each={each!r} must be 'stage' or 'block'.")
    for parent in type(model).__mro__:
        if parent.__name__ in _FAMILIES:
            names = _FAMILIES[parent.__name__](model, each)
            if names:
                return names
    raise ValueError(
        f"exit points of {type(model).__name__} are not known; known are networks built like "
        f"{', '.join(_FAMILIES)}. Give the names of the modules instead: ExitExtractor(model, exits=[...]); "
        "model.named_modules() lists them."
    )


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
    # The first and the last child are single convolutions, whose parts are no blocks.
    return stages[:1] + _children_of(model, stages[1:-1]) + stages[-1:]


def _vision_transformer(model: nn.Module, each: str) -> list[str]:
    return _transformer_layers(_children_of(model, ["encoder.layers"]), each)


def _hugging_face_encoder(model: nn.Module, each: str) -> list[str]:
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    return _transformer_layers(_children_of(model, lists[:1]), each)


def _children_of(model: nn.Module, parents: list[str]) -> list[str]:
    """Names of the children of the parents, none where the network has no such parent."""
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
    return names if each == "block" else names[::-3][::-1]


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
