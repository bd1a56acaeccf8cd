import pytest
import torch
import transformers
from torch import nn
from torchvision import models

from skexit.backbone._exit_points import exit_points

ENCODER = {
    "hidden_size": 16,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
}


def called_modules(model, names, *args, **kwargs):
    """Names in the order in which the forward pass finishes the modules."""
    called = []
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: called.append(name))
    with torch.inference_mode():
        model.eval()(*args, **kwargs)
    return called


@pytest.mark.parametrize("each", ["stage", "block"])
@pytest.mark.parametrize(
    ("build", "n_pixels"),
    [
        (models.resnet18, 32),
        (models.resnext50_32x4d, 32),
        (models.wide_resnet50_2, 32),
        (models.densenet121, 32),
        (models.mobilenet_v2, 32),
        (models.mobilenet_v3_small, 32),
        (models.efficientnet_b0, 32),
        (models.efficientnet_v2_s, 32),
        (models.vit_b_32, 224),
    ],
)
def test_torchvision_networks_reach_their_exits_once_and_in_order(build, n_pixels, each):
    with torch.device("meta"):
        model = build(weights=None)
        names = exit_points(model, each)
        assert called_modules(model, names, torch.empty(1, 3, n_pixels, n_pixels)) == names


@pytest.mark.parametrize(
    ("build", "stages", "n_blocks"),
    [
        (models.resnet18, ["layer1", "layer2", "layer3", "layer4"], 8),
        (models.resnet50, ["layer1", "layer2", "layer3", "layer4"], 16),
        (models.densenet121, [*(f"features.transition{i}" for i in (1, 2, 3)), "features.norm5"], 4),
        (models.mobilenet_v2, [f"features.{i}" for i in (1, 3, 6, 13, 18)], 19),
        (models.efficientnet_b0, [f"features.{i}" for i in (1, 2, 3, 5, 8)], 18),
        (models.vit_b_32, [f"encoder.layers.encoder_layer_{i}" for i in (2, 5, 8, 11)], 12),
    ],
)
def test_stages_and_blocks_of_torchvision_networks(build, stages, n_blocks):
    with torch.device("meta"):
        model = build(weights=None)
    assert exit_points(model) == stages
    blocks = exit_points(model, each="block")
    assert len(blocks) == n_blocks
    assert blocks[-1].startswith(stages[-1])


def test_stages_of_a_convolutional_network_end_where_the_resolution_drops():
    with torch.device("meta"):
        model = models.mobilenet_v3_large(weights=None)
    sides = []
    for name in exit_points(model):
        model.get_submodule(name).register_forward_hook(lambda module, args, output: sides.append(output.shape[-1]))
    model.eval()(torch.empty(1, 3, 64, 64, device="meta"))
    assert sides == [32, 16, 8, 4, 2]


@pytest.mark.parametrize(
    ("config", "prefix", "layers"),
    [
        (transformers.BertConfig(**ENCODER), "bert", "encoder.layer"),
        (transformers.RobertaConfig(**ENCODER), "roberta", "encoder.layer"),
        (transformers.ElectraConfig(embedding_size=16, **ENCODER), "electra", "encoder.layer"),
        (transformers.MPNetConfig(**ENCODER), "mpnet", "encoder.layer"),
        (transformers.DebertaConfig(**ENCODER), "deberta", "encoder.layer"),
        (transformers.DebertaV2Config(**ENCODER), "deberta", "encoder.layer"),
        (
            transformers.DistilBertConfig(vocab_size=50, dim=16, n_layers=5, n_heads=2, hidden_dim=32),
            "distilbert",
            "transformer.layer",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_hugging_face_encoders(config, prefix, layers):
    tokens = {"input_ids": torch.ones(1, 6, dtype=torch.long), "attention_mask": torch.ones(1, 6, dtype=torch.long)}
    for automatic, start in (
        (transformers.AutoModel, layers),
        (transformers.AutoModelForSequenceClassification, f"{prefix}.{layers}"),
    ):
        model = automatic.from_config(config)
        assert exit_points(model) == [f"{start}.{i}" for i in (1, 4)]
        blocks = exit_points(model, each="block")
        assert blocks == [f"{start}.{i}" for i in range(5)]
        assert called_modules(model, blocks, **tokens) == blocks


def test_hugging_face_vision_transformer():
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=16
    )
    model = transformers.AutoModelForImageClassification.from_config(config)
    names = exit_points(model, each="block")
    assert len(names) == 4
    assert exit_points(model) == [names[0], names[3]]
    assert called_modules(model, names, torch.zeros(1, 3, 32, 32)) == names


def test_a_subclass_belongs_to_the_family_of_its_parent():
    class FineTuned(models.ResNet):
        pass

    model = FineTuned(models.resnet.BasicBlock, [1, 1, 1, 1])
    assert exit_points(model) == ["layer1", "layer2", "layer3", "layer4"]


def test_an_unknown_network_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"Sequential are not known.*EfficientNet.*exits="):
        exit_points(nn.Sequential(nn.Linear(2, 2)))


def test_a_network_that_shares_only_the_name_of_a_family_is_refused():
    ResNet = type("ResNet", (nn.Module,), {})
    with pytest.raises(ValueError, match="not known"):
        exit_points(ResNet())


def test_each_is_checked():
    with pytest.raises(ValueError, match="each='layer' must be 'stage' or 'block'"):
        exit_points(nn.Linear(2, 2), each="layer")
