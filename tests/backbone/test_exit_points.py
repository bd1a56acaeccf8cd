import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torchvision import models

from skexit.backbone import describe_exits, exit_costs, exit_points

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


@pytest.mark.parametrize("n_layers", [1, 2, 3, 4, 7])
def test_small_transformers_have_early_exits(n_layers):
    model = models.VisionTransformer(32, 16, n_layers, 2, 16, 32)
    names = exit_points(model)
    assert len(names) >= min(n_layers, 2)
    assert names[-1] == f"encoder.layers.encoder_layer_{n_layers - 1}"
    assert set(names) <= set(exit_points(model, each="block"))


def test_a_subclass_belongs_to_the_family_of_its_parent():
    class FineTuned(models.ResNet):
        pass

    model = FineTuned(models.resnet.BasicBlock, [1, 1, 1, 1])
    assert exit_points(model) == ["layer1", "layer2", "layer3", "layer4"]


@pytest.mark.parametrize("model", [nn.Sequential(nn.Linear(2, 2)), type("ResNet", (nn.Module,), {})()])
def test_other_networks_are_run_to_find_their_exits(model):
    """Also one that only shares the name of a family."""
    with pytest.raises(ValueError, match=r"are found by running it: pass example_input=x, one batch of inputs, or"):
        exit_points(model)


def shares_of_cost(model, x):
    return describe_exits(model, x).set_index("name")["cost"]


@pytest.mark.parametrize("n_exits", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 7))])
@pytest.mark.parametrize("name", ["mnasnet0_5", "squeezenet1_1", "regnet_y_400mf", "shufflenet_v2_x0_5", "swin_t"])
def test_exits_found_are_called_once_in_order_and_at_about_equal_steps(name, n_exits):
    model, x = models.get_model(name, weights=None), torch.zeros(1, 3, 64, 64)
    names = exit_points(model, example_input=x, n_exits=n_exits)
    shares = shares_of_cost(model, x)
    assert len(names) == n_exits
    assert called_modules(model, names, x) == names
    steps = np.arange(1, n_exits + 1) / n_exits * shares[names[-1]]
    assert (np.abs(shares[names] - steps) < 1 / n_exits).all()
    assert shares[names[-1]] > 0.7


def test_blocks_are_found_rather_than_what_is_inside_them():
    model = transformers.ViTModel(
        transformers.ViTConfig(
            hidden_size=16,
            num_hidden_layers=8,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=32,
            patch_size=8,
        )
    )
    names = exit_points(model, example_input=torch.zeros(1, 3, 32, 32), n_exits=4)
    assert all(name.rpartition(".")[2].isdigit() for name in names[:-1])


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrappers_are_seen_through(wrap):
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(1, 4)
    assert exit_points(wrap(model), example_input=x, n_exits=2) == exit_points(model, example_input=x, n_exits=2)
    np.testing.assert_array_equal(exit_costs(wrap(model), ["1", "3"], x).costs, exit_costs(model, ["1", "3"], x).costs)


class Branches(nn.Module):
    """A skip connection past its second module, and a module whose output has no rows of samples."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third, self.mean = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        hidden = self.first(x)
        inside = self.second(hidden)
        return self.third(inside + hidden) + self.mean(inside.mean(0))


def test_what_goes_on_past_a_module_is_described():
    table = describe_exits(Branches(), torch.zeros(2, 4)).set_index("name")
    assert table.loc["first", ["carried", "live"]].tolist() == [0, True]
    assert table.loc["second", ["carried", "live"]].tolist() == [1, True]
    assert "mean" not in table.index
    np.testing.assert_allclose(table["cost"], np.cumsum([16, 16, 16])[: len(table)] * 5 / (3 * 16 * 5 + 16), rtol=1e-6)


def test_what_is_made_of_a_shape_keeps_no_samples_together():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            table = x.new_ones(4, 4).tril()
            return self.last(self.first(x) @ table)

    table = describe_exits(Masked(), torch.zeros(2, 4)).set_index("name")
    assert table.loc["first", ["carried", "live"]].tolist() == [0, True]


def test_calls_of_shared_modules_are_places_where_they_have_parameters():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.act, self.last = nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)

        def forward(self, x):
            for _ in range(4):
                x = self.act(self.block(x))
            return self.last(x)

    assert describe_exits(Shared(), torch.zeros(2, 4))["name"].tolist() == [f"block#{k}" for k in range(4)]
    assert exit_points(Shared(), example_input=torch.zeros(2, 4), n_exits=2) == ["block#1", "block#3"]
    costs = exit_costs(Shared(), ["block#1", "block#3"], torch.zeros(2, 4), unit="MACs", head=None).costs
    np.testing.assert_array_equal(costs, [32, 64])


@pytest.mark.parametrize("value", [0, -1])
def test_n_exits_is_checked(value):
    with pytest.raises(ValueError, match=f"n_exits={value} must be at least 1"):
        exit_points(nn.Linear(2, 2), example_input=torch.zeros(1, 2), n_exits=value)


def test_a_network_with_one_place_cannot_stop_early(recwarn):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.last = nn.GRU(3, 4, num_layers=3, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.last(self.layers(x)[0][:, -1])

    x = torch.zeros(2, 5, 3)
    assert exit_points(Recurrent(), example_input=x, n_exits=1) == ["layers"]
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"Recurrent has one place for an exit, 'layers', so .* instead of one with"):
        assert exit_points(Recurrent(), example_input=x) == ["layers"]


def test_a_network_without_modules_has_no_place():
    class Plain(nn.Module):
        def forward(self, x):
            return x * 2

    with pytest.raises(ValueError, match=r"Plain has no module .* Divide its computation into modules"):
        exit_points(Plain(), example_input=torch.zeros(1, 2))


def test_networks_with_shared_modules_keep_their_weights():
    """torch's functional_call leaves other tensors in modules that have two names."""
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(nn.Linear(4, 4), shared)})
    model.forward = lambda x: model["b"](model["a"](x))
    exit_points(model, example_input=torch.zeros(1, 4), n_exits=1)
    exit_costs(model, ["b.0"], torch.zeros(1, 4), head=None)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert model["b"][1].weight is shared.weight


def test_each_is_checked():
    with pytest.raises(ValueError, match="each='layer' must be 'stage' or 'block'"):
        exit_points(nn.Linear(2, 2), each="layer")


def test_one_sample_as_the_example():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2)).eval()
    with pytest.raises(
        ValueError, match=r"shape \(3, 8, 8\), which is that of one sample; .* Pass example_input\[None\]"
    ):
        exit_points(model, example_input=torch.zeros(3, 8, 8), n_exits=1)
    assert exit_points(model, example_input=torch.zeros(3, 8, 8)[None], n_exits=1)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_modules_of_torchscript_keep_their_mode():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)))
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), scripted, nn.Linear(4, 3)).train()
    list(scripted.children())[1].eval()
    modes = [module.training for module in network.modules()]
    exit_points(network, example_input=torch.randn(2, 4), n_exits=1)
    assert [module.training for module in network.modules()] == modes
