"""Small networks of the usual libraries, an input of each, and changes of one setting."""

import contextlib
import functools

import torch
from torch import nn

NETWORKS = {}


def _setting(path, name, value):
    def change(model):
        setattr(model.get_submodule(path), name, value)

    return change


def _add_torchvision():
    from torchvision.models import mobilenet_v3_small, resnet18
    from torchvision.models.vision_transformer import VisionTransformer

    image = torch.zeros(1, 3, 32, 32)
    NETWORKS["resnet18"] = (
        resnet18,
        image,
        [
            _setting("layer2.0.conv1", "stride", (1, 1)),
            _setting("bn1", "eps", 1e-3),
            _setting("layer1.0", "relu", nn.GELU()),
        ],
    )
    NETWORKS["mobilenet_v3"] = (
        mobilenet_v3_small,
        image,
        [_setting("features.1.block.0.0", "dilation", (2, 2)), _setting("features.1.block.1", "activation", nn.GELU())],
    )
    NETWORKS["vit"] = (
        functools.partial(VisionTransformer, 32, 16, 2, 2, 16, 32),
        image,
        [
            _setting("encoder.ln", "eps", 1e-3),
            _setting("encoder.layers.encoder_layer_0.self_attention", "num_heads", 1),
        ],
    )


def _add_transformers():
    from transformers import BertConfig, BertForSequenceClassification

    def bert():
        return BertForSequenceClassification(
            BertConfig(
                vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                max_position_embeddings=20,
            )
        )  # fmt: skip

    NETWORKS["bert"] = (
        bert,
        {"input_ids": torch.zeros(2, 5, dtype=torch.long), "attention_mask": torch.ones(2, 5, dtype=torch.long)},
        [
            lambda model: setattr(model.config, "layer_norm_eps", 1e-3),
            _setting("bert.encoder.layer.0.attention.self", "scaling", 2.0),
            _setting("bert.encoder.layer.0.intermediate", "intermediate_act_fn", nn.ReLU()),
            _setting("bert.embeddings.LayerNorm", "eps", 1e-3),
        ],
    )


def _add_timm():
    import timm

    NETWORKS["timm"] = (
        functools.partial(timm.create_model, "test_vit", num_classes=3),
        torch.zeros(1, 3, 160, 160),
        [_setting("blocks.0.attn", "scale", 2.0), _setting("", "global_pool", "avg"), _setting("norm", "eps", 1e-3)],
    )


for _add in (_add_torchvision, _add_transformers, _add_timm):
    with contextlib.suppress(ImportError):
        _add()


def hooked():
    """A network of our own, with a hook, in which everything may hang on the order of sets or on addresses."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    names = {"first", "second", "third"}
    model[0].register_forward_hook(
        lambda module, inputs, output: output * len(names) if output.ndim in {1, 2} else output
    )
    return model
