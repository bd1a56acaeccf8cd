import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.models import ConvNeXt, DenseNet, swin_transformer
from torchvision.models.convnext import CNBlockConfig

from skexit import ExitHeads, ThresholdPolicy
from skexit.backbone._channels import find_channels
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel, measure_latency
from skexit.training import MultiExitNetwork

pytestmark = pytest.mark.slow

N_ROWS = 60


def widths(model, exits, inputs, tmp_path, **options):
    """Features an exit, with one number a channel."""
    pools = {3: "mean", 4: "avg", 5: "avg"}
    n_dimensions = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: n_dimensions.update(
                {name: (output if isinstance(output, torch.Tensor) else output[0]).ndim}
            )
        )
        for name in exits
    ]
    model.eval()
    with torch.no_grad():
        model(**inputs) if isinstance(inputs, dict) else model(inputs)
    for hook in hooks:
        hook.remove()
    (pool,) = {pools[n] for n in n_dimensions.values()}
    return list(ExitExtractor(model, exits, pool=pool, **options).extract([inputs], tmp_path).layout.n_features)


def blocks(prefix, *numbers):
    return [f"{prefix}.{number}" for number in numbers]


@pytest.mark.parametrize("size", [32, 64])
def test_torchvision_networks(size, tmp_path):
    images = torch.randn(2, 3, size, size)
    swin = swin_transformer.SwinTransformer([4, 4], 16, [1, 1], [1, 2], [2, 2], num_classes=3)  # 16 x 16 of 16, too
    exits = blocks("features", 0, 1, 2, 3)
    assert widths(swin, exits, images, tmp_path / "swin") == [16, 16, 32, 32]
    # Of 64 pixels, every map is as high and wide as it has channels.
    convnext = ConvNeXt([CNBlockConfig(16, 8, 1), CNBlockConfig(8, None, 2)], num_classes=3)
    assert widths(convnext, exits, images, tmp_path / "convnext") == [16, 16, 8, 8]
    densenet = DenseNet(growth_rate=size // 4, block_config=(2, 2), num_init_features=8, num_classes=3)
    exits = ["features.denseblock1", "features.transition1", "features.denseblock2"]
    first = 8 + 2 * (size // 4)
    expected = [first, first // 2, first // 2 + 2 * (size // 4)]
    assert widths(densenet, exits, images, tmp_path / "densenet") == expected


TIMM = {
    "SwinTransformer": (
        {"img_size": 64, "window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2)},
        {"layers.0": 16, "layers.1": 32},
    ),
    # Maps as high and wide as they have channels, and as many tokens as channels.
    "ConvNeXt": (
        {"depths": (1,) * 4, "dims": (16, 8, 4, 2)},
        {"stem": 16, "stages.0": 16, "stages.1": 8, "stages.2": 4, "stages.3": 2},
    ),
    "MlpMixer": ({"img_size": 64, "patch_size": 32, "embed_dim": 4, "num_blocks": 2}, {"blocks.0": 4, "blocks.1": 4}),
    "VisionTransformer": (
        {"img_size": 64, "patch_size": 16, "embed_dim": 34, "num_heads": 2, "depth": 2},
        {"blocks.0": 34, "blocks.1": 34},
    ),
    "MetaFormer": ({"depths": (1,) * 4, "dims": (16, 8, 4, 2)}, {"stem": 16, "stages.0": 16, "stages.1": 8}),
}


@pytest.mark.parametrize("name", TIMM)
def test_timm_networks(name, tmp_path):
    models = pytest.importorskip("timm").models
    options, expected = TIMM[name]
    kind = getattr(models, name, None) or getattr(models.mlp_mixer, name)
    model = kind(num_classes=3, **options)
    assert widths(model, list(expected), torch.randn(2, 3, 64, 64), tmp_path) == list(expected.values())


def audio_network(norm="group"):
    transformers = pytest.importorskip("transformers")
    config = transformers.Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 79, 8),
        conv_kernel=(10, 3, 3),
        conv_stride=(5, 4, 1),
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=8,
        num_labels=3,
        feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer",
    )
    return transformers.Wav2Vec2ForSequenceClassification(config)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_networks_for_audio(norm, tmp_path):
    lengths = torch.tensor([1600, 800, 450])
    mask = (torch.arange(1600) < lengths[:, None]).long()
    sound = {"input_values": torch.randn(3, 1600) * mask, "attention_mask": mask}
    layers, encoder = blocks("wav2vec2.feature_extractor.conv_layers", 0, 1, 2), blocks("wav2vec2.encoder.layers", 0, 1)
    model = audio_network(norm).eval()
    assert widths(model, layers + encoder, sound, tmp_path / "cache") == [8, 79, 8, 16, 16]
    extractor = ExitExtractor(model, encoder, pool=("mean", "last"))
    features = extractor.extract([sound], tmp_path / "masked").X.features(1)
    with torch.no_grad():
        hidden = model(**sound, output_hidden_states=True).hidden_states[2]
    n_frames = model._get_feat_extract_output_lengths(lengths).tolist()
    if norm == "group":  # the other has a norm after its last layer
        for row, tokens, n in zip(features, hidden, n_frames, strict=True):
            np.testing.assert_allclose(row, torch.cat([tokens[:n].mean(0), tokens[n - 1]]), atol=1e-5)


def test_networks_for_text_and_spectrograms(tmp_path):
    transformers = pytest.importorskip("transformers")
    ids = torch.randint(3, 30, (2, 16))  # as many tokens as channels
    tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    bert = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=40, **small))
    exits = ["bert.embeddings", *blocks("bert.encoder.layer", 0, 1)]
    assert set(find_channels(bert.eval(), exits, tokens, "auto", "auto").values()) == {"last"}
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, pad_token_id=0, eos_token_id=0)
    gpt2 = transformers.GPT2ForSequenceClassification(config).eval()
    assert set(find_channels(gpt2, blocks("transformer.h", 0, 1), tokens, "auto", "auto").values()) == {"last"}
    config = transformers.ASTConfig(max_length=64, num_mel_bins=32, **small)
    ast = transformers.ASTForAudioClassification(config)
    exits = [name for name, _ in ast.named_modules() if name.endswith((".0", ".1")) and name.count(".") < 5]
    assert widths(ast, exits, torch.randn(2, 64, 32), tmp_path / "ast") == [16, 16]
    config = transformers.WhisperConfig(
        d_model=16,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_layers=1,
        decoder_attention_heads=2,
        num_mel_bins=8,
        max_source_positions=20,
        vocab_size=50,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    whisper = transformers.WhisperForAudioClassification(config)
    exits = ["encoder.conv1", "encoder.conv2", *blocks("encoder.layers", 0, 1)]
    spectrogram = {"input_features": torch.randn(2, 8, 40)}
    assert widths(whisper, exits, spectrogram, tmp_path / "whisper") == [16] * 4


class Permute(nn.Module):
    def __init__(self, *axes):
        super().__init__()
        self.axes = axes

    def forward(self, x):
        return x.permute(self.axes)


class Standardise(nn.Module):
    """Without a parameter: says nothing of axes."""

    def forward(self, x):
        return x / (x.std() + 1)


class FunctionalConvolution(nn.Module):
    """Of as many kernels as there are places along an axis."""

    def __init__(self):
        super().__init__()
        self.register_buffer("kernels", torch.randn(8, 3, 3, 3))

    def forward(self, x):
        return functional.conv2d(x, self.kernels, padding=1)


def test_layers_around_an_exit_say_where_its_channels_are():
    images = torch.randn(2, 3, 8, 8)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        Standardise(),
        Permute(0, 2, 3, 1),
        nn.LayerNorm(8),
        Standardise(),
        nn.Linear(8, 8),
        Permute(0, 3, 1, 2),
        nn.BatchNorm2d(8),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(3),
    )
    network(images)
    exits = [str(k) for k in range(10)]
    layouts = find_channels(network.eval(), exits, images, "auto", "auto")
    assert list(layouts.values()) == ["first"] * 2 + ["last"] * 4 + ["first"] * 4


def test_sizes_that_grow_with_the_input_say_what_no_layer_does():
    network = nn.Sequential(FunctionalConvolution(), Standardise(), nn.Flatten())
    layouts = find_channels(network, ["0", "1"], torch.randn(2, 3, 8, 8), "auto", "auto")
    assert layouts == {"0": "first", "1": "first"}


@pytest.mark.parametrize("sizes", [(8, 8, 8), (5, 8), (6, 7, 8), (4, 4, 4, 4)])
def test_what_cannot_be_told_is_refused(sizes, tmp_path):
    inputs = torch.randn(4, *sizes)
    network = nn.Sequential(Standardise(), Standardise(), nn.Flatten(), nn.LazyLinear(3))
    network(inputs)  # takes inputs of this size only
    extractor = ExitExtractor(network, ["0", "1"], head=[None, "3"])
    with pytest.raises(
        ValueError, match=r"exit '0' gave shape .* channels='first' or channels='last', or a dict .* \{'0': 'last'\}"
    ):
        extractor.extract([inputs], tmp_path)
    with pytest.raises(ValueError, match="exit '1' gave shape"):
        find_channels(network, ["0", "1"], inputs, "auto", {"0": "last"})
    pool = "mean" if len(sizes) == 2 else "max"
    declared = {"0": "first", "1": "last"}
    features = {}
    for name, channels in (("first", "first"), ("last", "last"), ("each", declared)):
        extractor = ExitExtractor(network, ["0", "1"], pool=pool, channels=channels, head=[None, "3"], cost_unit="ms")
        features[name] = extractor.extract([inputs], tmp_path / name).layout.n_features
    assert features == {"first": (sizes[0],) * 2, "last": (sizes[-1],) * 2, "each": (sizes[0], sizes[-1])}
    assert find_channels(network, ["0"], inputs, torch.flatten, "auto") == {"0": "auto"}, "a callable asks nobody"


def test_values_of_channels_are_checked(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    for make in (ExitExtractor, lambda *args, **options: MultiExitNetwork(*args, torch.zeros(1, 3, 8, 8), **options)):
        with pytest.raises(ValueError, match=r"channels='middle': 'middle' must be 'first', 'last' or 'auto'"):
            make(network, ["0", "1"], channels="middle")
        with pytest.raises(ValueError, match=r"'next' must be 'first'"):
            make(network, ["0", "1"], channels={"0": "next"})
        with pytest.raises(ValueError, match=r"channels has the key '2', which is not an exit; exits=\['0', '1'\]"):
            make(network, ["0", "1"], channels={"2": "last"})


def test_a_cache_knows_the_channels_it_was_extracted_with(tmp_path):
    network, images = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.randn(2, 3, 8, 8)
    extract = {
        channels: lambda channels=channels: ExitExtractor(network, ["0"], head=None, channels=channels).extract(
            [images], tmp_path
        )
        for channels in ("first", "last")
    }
    extract["first"]()
    with pytest.raises(ValueError, match="differs in channels"):
        extract["last"]()


class OnMaps(nn.Module):
    """Channels-last from its first exit on."""

    exits = ("first", "second")

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), Permute(0, 2, 3, 1), nn.LayerNorm(6))
        self.second = nn.Sequential(nn.Linear(6, 9), nn.GELU())
        self.head = nn.Linear(9, 3)

    def forward(self, x):
        return self.head(self.second(self.first(x)).mean((1, 2)))

    def inputs(self, n):
        return torch.randn(n, 3, 15, 9)


class OnSequences(OnMaps):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv1d(2, 6, 3), nn.Sequential(nn.Conv1d(6, 9, 3), nn.ReLU())

    def forward(self, x):
        return self.head(self.second(self.first(x)).mean(2))

    def inputs(self, n):
        return torch.randn(n, 2, 13)


class OnVolumes(OnSequences):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv3d(1, 6, 3), nn.Sequential(nn.Conv3d(6, 9, 2), nn.BatchNorm3d(9))

    def forward(self, x):
        return self.head(self.second(self.first(x)).mean((2, 3, 4)))

    def inputs(self, n):
        return torch.randn(n, 1, 6, 7, 8)


class OnSound(OnMaps):
    """Makes a frame of four samples, some of which are padding."""

    side = "right"

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv1d(1, 6, 4, stride=4), nn.Conv1d(6, 9, 1)

    def forward(self, x, attention_mask):
        return self.head(self.second(torch.tanh(self.first(x.unsqueeze(1)))).mean(2))

    def inputs(self, n):
        mask = (torch.arange(40) < torch.randint(1, 41, (n, 1))).long()
        mask = mask if self.side == "right" else mask.flip(1)
        return {"x": torch.randn(n, 40) * mask, "attention_mask": mask}


class OnSoundPaddedLeft(OnSound):
    side = "left"


def expected_features(network, inputs, pool):
    """Features of each exit by hand, for pools that are means, or means and last tokens."""
    x, mask = (inputs["x"].unsqueeze(1), inputs["attention_mask"]) if isinstance(inputs, dict) else (inputs, None)
    with torch.no_grad():
        first = network.first(x)
        second = network.second(torch.tanh(first) if mask is not None else first)
    if isinstance(inputs, torch.Tensor):
        axes = (1, 2) if type(network) is OnMaps else tuple(range(2, first.ndim))
        return [output.mean(axes) for output in (first, second)]
    frames = mask.reshape(len(mask), -1, 4).any(2)
    rows = [[row[:, keep] for row, keep in zip(output, frames, strict=True)] for output in (first, second)]
    return [torch.stack([torch.cat([row.mean(1), row[:, -1]]) for row in output]) for output in rows]


@pytest.mark.parametrize("kind", [OnMaps, OnSequences, OnVolumes, OnSound, OnSoundPaddedLeft])
def test_cache_live_network_and_onnx_agree(kind, tmp_path):
    torch.manual_seed(0)
    network = kind().eval()
    x = network.inputs(N_ROWS)
    pool = {OnMaps: "avg", OnVolumes: "avg", OnSequences: "mean"}.get(kind, ("mean", "last"))
    named = x if isinstance(x, dict) else {"x": x}
    y = torch.arange(N_ROWS) % 3
    loader = [({name: part[rows] for name, part in named.items()}, y[rows]) for rows in torch.arange(N_ROWS).split(25)]
    extractor = ExitExtractor(network, network.exits, pool=pool)
    cache = extractor.extract(loader, tmp_path / "cache")
    for k, features in enumerate(expected_features(network, x, pool)):
        np.testing.assert_allclose(cache.X.features(k), features, atol=1e-5)
    policy = ThresholdPolicy(budget=0.9, heads=ExitHeads(max_epochs=3, random_state=0)).fit(cache.X, cache.y)
    live = EarlyExitModel(network, network.exits, policy, pool=pool, example_input=x)
    output = live(**x) if isinstance(x, dict) else live(x)
    np.testing.assert_array_equal(output.exits, policy.predict_exit(cache.X))
    np.testing.assert_allclose(output.probabilities, policy.predict_proba(cache.X), atol=1e-4)
    assert measure_latency(live, batch_sizes=(1,), example_input=x, n_repeats=1).batch_sizes.tolist() == [1]
    pytest.importorskip("onnxruntime")
    from skexit.runtime import OnnxEarlyExit, export_onnx

    loop = OnnxEarlyExit(export_onnx(live, tmp_path / "network.onnx"))
    given = {name: part.numpy() for name, part in x.items()} if isinstance(x, dict) else x.numpy()
    answers = loop.predict(given)
    np.testing.assert_array_equal(answers.exits, output.exits)
    np.testing.assert_allclose(answers.probabilities, output.probabilities, atol=1e-4)


def test_training_pools_as_extraction_does(tmp_path):
    network = OnMaps()
    model = MultiExitNetwork(network, network.exits, network.inputs(2), pool="avg")
    assert model.heads[0].in_features == 6
    declared = MultiExitNetwork(network, network.exits, network.inputs(2), pool="avg", channels={"first": "first"})
    assert declared.heads[0].in_features == 7  # the height of the maps
    assert model(network.inputs(4))[0].shape == declared(network.inputs(4))[0].shape == (4, 3)


def test_a_declared_axis_is_used_live_as_in_the_cache(tmp_path):
    torch.manual_seed(0)
    network = OnMaps().eval()
    x = network.inputs(N_ROWS)
    options = {"pool": ("avg", "grid2"), "channels": {"first": "first"}}
    cache = ExitExtractor(network, network.exits, **options).extract([(x, torch.arange(N_ROWS) % 3)], tmp_path)
    assert cache.layout.n_features == (7 * 5, 9 * 5)
    heads = ExitHeads(max_epochs=3, random_state=0)
    policy = ThresholdPolicy(budget=0.9, heads=heads).fit(cache.X, cache.y)
    live = EarlyExitModel(network, network.exits, policy, **options, example_input=x)
    np.testing.assert_array_equal(live(x).exits, policy.predict_exit(cache.X))
    with pytest.raises(ValueError, match=r"exit 'first' gives 30 features, .* fitted on 35.*channels="):
        EarlyExitModel(network, network.exits, policy, pool=("avg", "grid2"), example_input=x)
