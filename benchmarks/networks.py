"""Does skexit take this network? Exits found by themselves, extracted, run live and compared, network by network.

    python -m benchmarks.networks [--only NAME ...] [--onnx] [--out CSV]

Networks of torchvision, timm and Hugging Face with random weights, and networks with exits of their own written here.
For each: the exits found, how many forward passes that takes, by what share of the network's FLOPs costs differ from
those that torch's profiler counts in the stages as they run, and how many of 48 samples leave where the policy on
cached rows says. A cell says why where something is not possible.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from skexit import ExitHeads, ThresholdPolicy
from skexit.backbone import exit_points
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel, OnnxEarlyExit, export_onnx

N_SAMPLES, N_EXITS = 48, 4
COUNTED = ("aten::conv2d", "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")

TORCHVISION = {
    "alexnet": 64, "convnext_tiny": 64, "densenet121": 64, "efficientnet_b0": 64, "efficientnet_v2_s": 64,
    "googlenet": 64, "inception_v3": 96, "maxvit_t": 224, "mnasnet1_0": 64, "mobilenet_v2": 64,
    "mobilenet_v3_small": 64, "regnet_y_400mf": 64, "resnet18": 64, "resnext50_32x4d": 64,
    "shufflenet_v2_x1_0": 64, "squeezenet1_1": 64, "swin_t": 64, "swin_v2_t": 64, "vgg11": 64, "vit_b_32": 224,
    "wide_resnet50_2": 64,
}  # fmt: skip

TIMM = [
    "cait_xxs24_224", "coat_lite_tiny", "convnextv2_atto", "crossvit_tiny_240", "deit_tiny_patch16_224", "dla34",
    "edgenext_xx_small", "efficientnet_lite0", "eva02_tiny_patch14_224", "fastvit_t8", "ghostnet_100",
    "gmlp_ti16_224", "hrnet_w18_small", "levit_128s", "mixer_s16_224", "mobilevit_xxs", "nfnet_l0", "poolformer_s12",
    "pvt_v2_b0", "repvgg_a0", "seresnet18", "swin_tiny_patch4_window7_224", "tiny_vit_5m_224", "vovnet39a",
    "xcit_nano_12_p16_224",
]  # fmt: skip

SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
DECODER = SIZES | {"num_key_value_heads": 1, "pad_token_id": 0}
AUDIO = SIZES | {
    "conv_dim": (8, 8), "conv_stride": (5, 4), "conv_kernel": (10, 8), "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 2,
}  # fmt: skip
TEXT = {
    "Albert": SIZES | {"embedding_size": 16}, "Bert": SIZES, "Bloom": {"hidden_size": 32, "n_layer": 4, "n_head": 2},
    "Deberta": SIZES, "DebertaV2": SIZES, "DistilBert": {"dim": 32, "n_layers": 4, "n_heads": 2, "hidden_dim": 64},
    "Electra": SIZES, "Gemma": DECODER | {"head_dim": 16}, "GPT2": {"n_embd": 32, "n_layer": 4, "n_head": 2},
    "GPTNeoX": SIZES, "Llama": DECODER, "Mistral": DECODER, "ModernBert": SIZES, "MPNet": SIZES,
    "OPT": SIZES | {"ffn_dim": 64, "word_embed_proj_dim": 32}, "Phi": DECODER, "Qwen2": DECODER, "Roberta": SIZES,
    "SqueezeBert": SIZES | {"embedding_size": 32},
}  # fmt: skip
IMAGES = {
    "Beit": SIZES, "ConvNextV2": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 2, 1]}, "Dinov2": SIZES,
    "ViT": SIZES,
}  # fmt: skip
SOUNDS = ["Hubert", "SEW", "UniSpeech", "Wav2Vec2", "WavLM"]


def networks() -> Iterator[tuple[str, Callable[[], tuple[nn.Module, Any]]]]:
    """Names, and functions that give a network and inputs for it."""
    for name, side in TORCHVISION.items():
        yield f"torchvision {name}", lambda name=name, side=side: _of_torchvision(name, side)
    for name in TIMM:
        yield f"timm {name}", lambda name=name: _of_timm(name)
    for name, sizes in TEXT.items():
        yield f"Hugging Face {name}", lambda name=name, sizes=sizes: _of_text(name, sizes)
    for name, sizes in IMAGES.items():
        yield f"Hugging Face {name}", lambda name=name, sizes=sizes: _of_images(name, sizes)
    for name in SOUNDS:
        yield f"Hugging Face {name}", lambda name=name: _of_sounds(name)
    for name, make in OWN_EXITS.items():
        yield f"own exits: {name}", make


def _of_torchvision(name: str, side: int) -> tuple[nn.Module, Any]:
    from torchvision import models

    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return models.get_model(name, weights=None, **options), torch.randn(N_SAMPLES, 3, side, side)


def _of_timm(name: str) -> tuple[nn.Module, Any]:
    import timm

    model = timm.create_model(name, pretrained=False)
    side = model.default_cfg["input_size"][-1]
    return model, torch.randn(N_SAMPLES, 3, side, side)


def _hugging_face(name: str, task: str, sizes: dict[str, Any]) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{name}Config")(**sizes)
    model: nn.Module = getattr(transformers, f"{name}For{task}")(config)
    return model


def _of_text(name: str, sizes: dict[str, Any]) -> tuple[nn.Module, Any]:
    model = _hugging_face(name, "SequenceClassification", {"vocab_size": 100, "pad_token_id": 0} | sizes)
    lengths = torch.randint(4, 13, (N_SAMPLES, 1))
    tokens = torch.randint(5, 100, (N_SAMPLES, 12))
    mask = (torch.arange(12) < lengths).long()
    return model, {"input_ids": tokens * mask, "attention_mask": mask}


def _of_images(name: str, sizes: dict[str, Any]) -> tuple[nn.Module, Any]:
    model = _hugging_face(name, "ImageClassification", {"image_size": 32, "patch_size": 8, "num_labels": 5} | sizes)
    return model, {"pixel_values": torch.randn(N_SAMPLES, 3, 32, 32)}


def _of_sounds(name: str) -> tuple[nn.Module, Any]:
    sizes = AUDIO | ({"squeeze_factor": 1} if name == "SEW" else {})
    return _hugging_face(name, "SequenceClassification", sizes), {"input_values": torch.randn(N_SAMPLES, 1600)}


class Scales(nn.Module):
    """Maps at two scales from maps at two scales, as a layer of MSDNet."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fine = nn.Conv2d(width, width, 3, padding=1)
        self.down = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.coarse = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        fine, coarse = maps
        return [self.fine(fine).relu() + fine, self.coarse(coarse).relu() + self.down(fine).relu()]


def _classifier(width: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))


class MultiScale(nn.Module):
    """Every classifier sees the coarse map; gives a list of logits (MSDNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Scales(8) for _ in range(4))
        self.classifiers = nn.ModuleList(_classifier(8) for _ in range(4))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        fine = self.stem(x)
        maps, logits = [fine, self.down(fine)], []
        for block, classifier in zip(self.blocks, self.classifiers, strict=True):
            maps = block(maps)
            logits.append(classifier(maps[1]))
        return logits


class ResolutionAdaptive(nn.Module):
    """A small map is looked at first; what it showed is merged into the larger one (RANet)."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.low = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.high = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.classifiers = nn.ModuleList(_classifier(8) for _ in range(4))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        low, logits = self.small(nn.functional.avg_pool2d(x, 2)), []
        for layer, classifier in zip(self.low, self.classifiers[:2], strict=True):
            low = layer(low).relu()
            logits.append(classifier(low))
        high = self.large(x)
        for layer, classifier in zip(self.high, self.classifiers[2:], strict=True):
            high = layer(high + nn.functional.interpolate(low, scale_factor=2)).relu()
            logits.append(classifier(high))
        return logits


class Branchy(nn.Module):
    """Side branches on a residual network; gives the last logits and a list of the others (BranchyNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))
        self.branches = nn.ModuleList(_classifier(8) for _ in range(3))
        self.last = _classifier(8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        x, early = self.stem(x), []
        for k, block in enumerate(self.blocks):
            x = x + block(x).relu()
            if k < 3:
                early.append(self.branches[k](x))
        return self.last(x), early


class TwoStreams(nn.Module):
    """Features and a latent that exchange what they know; classifiers see the latent (Dynamic Perceiver)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.start = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.Linear(16, 16)
        self.convolutions = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(4))
        self.latents = nn.ModuleList(nn.Linear(32, 16) for _ in range(4))
        self.classifiers = nn.ModuleList(nn.Linear(16, 5) for _ in range(4))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        maps, logits = self.stem(x), []
        latent = self.start(maps.mean((2, 3)))
        for convolution, linear, classifier in zip(self.convolutions, self.latents, self.classifiers, strict=True):
            maps = convolution(maps).relu() + latent[:, :, None, None]
            latent = linear(torch.cat([latent, maps.mean((2, 3))], dim=1)).tanh()
            logits.append(classifier(latent))
        return {"logits": logits[-1], "early_logits": torch.stack(logits[:-1], dim=1)} | {
            f"logits_{k}": block for k, block in enumerate(logits[:-1])
        }


class MultiExitEncoder(nn.Module):
    """A transformer with a classifier on the first token after each layer; gives one stacked tensor (DeeBERT)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(100, 32), nn.Parameter(torch.randn(12, 32))
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(32, 2, 64, batch_first=True) for _ in range(4))
        self.classifiers = nn.ModuleList(nn.Linear(32, 5) for _ in range(4))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden, logits = self.embedding(tokens) + self.positions, []
        for layer, classifier in zip(self.layers, self.classifiers, strict=True):
            hidden = layer(hidden)
            logits.append(classifier(hidden[:, 0]))
        return torch.stack(logits, dim=1)


class TokensToToken(nn.Module):
    """Patches are unfolded into tokens again and again before the transformer (T2T-ViT); logits of two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3 * 49, 16), nn.Linear(16 * 9, 32)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(32, 2, 64, batch_first=True) for _ in range(4))
        self.early, self.last = nn.Linear(32, 5), nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.first(nn.functional.unfold(x, 7, stride=4, padding=2).transpose(1, 2))
        side = int(tokens.shape[1] ** 0.5)
        maps = tokens.transpose(1, 2).unflatten(2, (side, side))
        tokens = self.second(nn.functional.unfold(maps, 3, stride=2, padding=1).transpose(1, 2))
        for k, layer in enumerate(self.layers):
            tokens = layer(tokens)
            if k == 1:
                early = self.early(tokens.mean(1))
        return self.last(tokens.mean(1)), early


OWN_EXITS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "MSDNet": lambda: (MultiScale(), torch.randn(N_SAMPLES, 3, 16, 16)),
    "RANet": lambda: (ResolutionAdaptive(), torch.randn(N_SAMPLES, 3, 16, 16)),
    "BranchyNet": lambda: (Branchy(), torch.randn(N_SAMPLES, 3, 16, 16)),
    "Dynamic Perceiver": lambda: (TwoStreams(), torch.randn(N_SAMPLES, 3, 16, 16)),
    "multi-exit encoder": lambda: (MultiExitEncoder(), torch.randint(0, 100, (N_SAMPLES, 12))),
    "T2T": lambda: (TokensToToken(), torch.randn(N_SAMPLES, 3, 32, 32)),
}


def measure(make: Callable[[], tuple[nn.Module, Any]], onnx: bool) -> dict[str, Any]:
    """What works with a network, and what does not, why."""
    torch.manual_seed(0)
    model, inputs = make()
    model.eval()
    row: dict[str, Any] = {}
    example = _rows(inputs, slice(0, 2))
    with torch.no_grad():
        _call(model, example)
        start = time.perf_counter()
        _call(model, example)
        forward = time.perf_counter() - start
    try:
        start = time.perf_counter()
        exits = exit_points(model, example_input=example, n_exits=N_EXITS)
        row |= {"exits": len(exits), "forward passes": round((time.perf_counter() - start) / forward, 1)}
        row["names"] = " ".join(exits)
        with tempfile.TemporaryDirectory() as folder:
            y = torch.arange(N_SAMPLES) % 2
            cache = ExitExtractor(model, exits).extract([(inputs, y)], f"{folder}/cache", progress=False)
            row["extracted"] = "yes"
            row |= _measure_live(model, exits, cache, inputs, example, onnx, folder)
    except Exception as error:
        row["fails"] = f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"
    return row


def _measure_live(
    model: nn.Module, exits: list[str], cache: Any, inputs: Any, example: Any, onnx: bool, folder: str
) -> dict[str, Any]:
    X = cache.X
    y = np.argmax(X.logits(len(exits) - 1), axis=1) if X.layout.has_logits(len(exits) - 1) else cache.y
    classes = X.layout.n_classes or 2
    y[:classes] = np.arange(min(classes, len(y)))
    heads = ExitHeads(cv=2, random_state=0)
    policy = ThresholdPolicy(budget=0.8, heads=heads).fit(X, y)
    live = EarlyExitModel(model, exits, policy, example_input=example)
    found = live(**inputs) if isinstance(inputs, dict) else live(inputs)
    row: dict[str, Any] = {"live": "yes", "agreement": float(np.mean(found.exits.numpy() == policy.predict_exit(X)))}
    row["costs differ by"] = _difference_of_costs(live, cache.layout, example)
    if onnx:
        try:
            session = OnnxEarlyExit(export_onnx(live, f"{folder}/onnx"))
            arrays = {k: v.numpy() for k, v in inputs.items()} if isinstance(inputs, dict) else inputs.numpy()
            row["onnx agreement"] = float(np.mean(session.predict(arrays).exits == found.exits.numpy()))
        except Exception as error:
            row["onnx agreement"] = f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
    return row


def _difference_of_costs(live: EarlyExitModel, layout: Any, example: Any) -> float:
    """Largest difference of an exit's cost from what the stages up to it take, as a fraction of the network's."""
    runner, given = live.prepare(example).all_exits, list(example.values()) if isinstance(example, dict) else [example]
    tensors, side = given[:1], given[1:]
    counted, differences = 0.0, []
    for k in range(layout.n_exits):
        stage = runner.stages[k]
        tensors, own = _count(lambda stage=stage, tensors=tensors: stage.network(*tensors, *side))
        counted += own
        if stage.logits is not None:
            counted += _count(lambda stage=stage, tensors=tensors: stage.logits(*tensors, *side))[1]
        differences.append(abs(layout.costs[k] - counted / len(given[0])) / layout.network_cost)
    return round(max(differences), 4)


def _count(run: Callable[[], Any]) -> tuple[Any, float]:
    """What a function gives, and the FLOPs that torch's profiler counts in it."""
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        profile(activities=[ProfilerActivity.CPU], with_flops=True) as profiled,
    ):
        output = run()
    return output, float(sum(event.flops for event in profiled.key_averages() if event.key in COUNTED and event.flops))


def _rows(inputs: Any, rows: slice) -> Any:
    return {name: value[rows] for name, value in inputs.items()} if isinstance(inputs, dict) else inputs[rows]


def _call(model: nn.Module, inputs: Any) -> Any:
    return model(**inputs) if isinstance(inputs, dict) else model(inputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names")
    parser.add_argument("--onnx", action="store_true")
    parser.add_argument("--out")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.backends.mha.set_fastpath_enabled(False)  # the profiler counts nothing in fused layers
    rows = {}
    for name, make in networks():
        if any(part in name for part in options.only):
            rows[name] = measure(make, options.onnx)
            print(name, rows[name], flush=True)
    table = pd.DataFrame(rows).T
    if options.out:
        table.to_csv(options.out)
    print(table.drop(columns="names", errors="ignore").to_string())
    works = {column: int(table[column].notna().sum()) for column in ("exits", "extracted", "live") if column in table}
    print(f"{len(table)} networks, of which {works}")


if __name__ == "__main__":
    main()
