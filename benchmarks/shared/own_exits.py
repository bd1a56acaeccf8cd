"""Small networks with exits of their own, after papers; ``classifiers`` holds each exit's classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import avg_pool2d, interpolate, unfold

N_CLASSES = 5


def convolution(n_in: int, n_out: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(n_in, n_out, 3, stride, padding=1), nn.BatchNorm2d(n_out), nn.ReLU())


def classifier(width: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, N_CLASSES))


class MultiScaleLayer(nn.Module):
    """Each scale gets what all layers before gave at it, and at the next finer one."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.same = nn.ModuleList(convolution(width, growth) for _ in range(3))
        self.down = nn.ModuleList(convolution(width, growth, stride=2) for _ in range(2))

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        new = [convolution(scale) for convolution, scale in zip(self.same, maps, strict=True)]
        for k, down in enumerate(self.down):
            new[k + 1] = new[k + 1] + down(maps[k])
        return [torch.cat(pair, dim=1) for pair in zip(maps, new, strict=True)]


class MSDNet(nn.Module):
    """Dense layers over three scales; classifiers see the coarsest. Gives a list of logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.ModuleList([convolution(3, 8), convolution(8, 8, 2), convolution(8, 8, 2)])
        self.layers = nn.ModuleList(MultiScaleLayer(8 + 4 * k, 4) for k in range(4))
        self.classifiers = nn.ModuleList(classifier(12 + 4 * k) for k in range(4))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps, logits = [], []
        for stem in self.stem:
            x = stem(x)
            maps.append(x)
        for layer, head in zip(self.layers, self.classifiers, strict=True):
            maps = layer(maps)
            logits.append(head(maps[-1]))
        return logits


class RANet(nn.Module):
    """A small map is looked at first, and what it showed is merged into the larger one. Gives a list of logits."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = convolution(3, 8), convolution(3, 8)
        self.low = nn.ModuleList(convolution(8, 8) for _ in range(2))
        self.high = nn.ModuleList(convolution(16, 8) for _ in range(2))
        self.classifiers = nn.ModuleList(classifier(8) for _ in range(4))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        low, seen, logits = self.small(avg_pool2d(x, 2)), [], []
        for k, layer in enumerate(self.low):
            low = layer(low)
            seen.append(low)
            logits.append(self.classifiers[k](low))
        high = self.large(x)
        for k, layer in enumerate(self.high):
            high = layer(torch.cat([high, interpolate(seen[k], scale_factor=2)], dim=1))
            logits.append(self.classifiers[k + 2](high))
        return logits


class BranchyResNet(nn.Module):
    """torchvision's residual blocks with side branches (BranchyNet). Gives the last logits and a list of the others."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models.resnet import BasicBlock

        self.stem = convolution(3, 8)
        self.blocks = nn.ModuleList(BasicBlock(8, 8) for _ in range(4))
        self.classifiers = nn.ModuleList(classifier(8) for _ in range(4))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        x, early = self.stem(x), []
        for block, branch in zip(self.blocks[:3], self.classifiers[:3], strict=True):
            x = block(x)
            early.append(branch(x))
        return self.classifiers[3](self.blocks[3](x)), early


class DynamicPerceiver(nn.Module):
    """Maps and a latent that exchange what they know; classifiers see the latent. Gives a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.start = convolution(3, 16, stride=2), nn.Parameter(torch.randn(1, 4, 16))
        self.stages = nn.ModuleList(convolution(16, 16) for _ in range(4))
        self.look = nn.ModuleList(nn.MultiheadAttention(16, 2, batch_first=True) for _ in range(4))
        self.tell = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        self.classifiers = nn.ModuleList(nn.Linear(16, N_CLASSES) for _ in range(4))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        maps, latent, logits = self.stem(x), self.start.expand(len(x), -1, -1), []
        for stage, look, tell, head in zip(self.stages, self.look, self.tell, self.classifiers, strict=True):
            maps = stage(maps)
            pixels = maps.flatten(2).transpose(1, 2)
            latent = latent + look(latent, pixels, pixels, need_weights=False)[0]
            maps = maps + tell(latent.mean(1))[:, :, None, None]
            logits.append(head(latent.mean(1)))
        return {f"early_logits_{k}": early for k, early in enumerate(logits[:-1])} | {"logits": logits[-1]}


class MultiExitTransformer(nn.Module):
    """A classifier on the first token after each layer (DeeBERT). Gives one stacked tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(100, 32), nn.Parameter(torch.randn(12, 32))
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(32, 2, 64, batch_first=True) for _ in range(4))
        self.classifiers = nn.ModuleList(nn.Linear(32, N_CLASSES) for _ in range(4))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden, logits = self.embedding(tokens) + self.positions, []
        for layer, head in zip(self.layers, self.classifiers, strict=True):
            hidden = layer(hidden)
            logits.append(head(hidden[:, 0]))
        return torch.stack(logits, dim=1)


class MultiExitBert(nn.Module):
    """Classifiers on all hidden states of a Hugging Face BERT with masks (PABEE). Gives the last logits and a tuple."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=100, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64
        )
        self.bert = BertModel(config, add_pooling_layer=False)
        self.classifiers = nn.ModuleList(nn.Linear(32, N_CLASSES) for _ in range(4))

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        states = self.bert(input_ids, attention_mask=attention_mask, output_hidden_states=True).hidden_states[1:]
        logits = [head(state[:, 0]) for head, state in zip(self.classifiers, states, strict=True)]
        return logits[-1], tuple(logits[:-1])


class T2T(nn.Module):
    """Patches are unfolded into tokens again and again before the transformer (T2T-ViT). Gives logits of two exits."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3 * 49, 16), nn.Linear(16 * 9, 32)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(32, 2, 64, batch_first=True) for _ in range(4))
        self.classifiers = nn.ModuleList(nn.Linear(32, N_CLASSES) for _ in range(2))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.first(unfold(x, 7, stride=4, padding=2).transpose(1, 2))
        side = int(tokens.shape[1] ** 0.5)
        maps = tokens.transpose(1, 2).unflatten(2, (side, side))
        tokens = self.second(unfold(maps, 3, stride=2, padding=1).transpose(1, 2))
        early = tokens
        for k, layer in enumerate(self.layers):
            tokens = layer(tokens)
            early = tokens if k == 1 else early
        return self.classifiers[0](early.mean(1)), self.classifiers[1](tokens.mean(1))


def _images(n_samples: int) -> torch.Tensor:
    return torch.randn(n_samples, 3, 16, 16)


def _texts(n_samples: int) -> dict[str, torch.Tensor]:
    mask = (torch.arange(12) < torch.randint(4, 13, (n_samples, 1))).long()
    return {"input_ids": torch.randint(5, 100, (n_samples, 12)) * mask, "attention_mask": mask}


#: A network of each kind, and what gives inputs for it.
OWN_EXITS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any]]] = {
    "MSDNet": (MSDNet, _images),
    "RANet": (RANet, _images),
    "branchy ResNet": (BranchyResNet, _images),
    "Dynamic Perceiver": (DynamicPerceiver, _images),
    "multi-exit transformer": (MultiExitTransformer, lambda n_samples: torch.randint(0, 100, (n_samples, 12))),
    "multi-exit BERT": (MultiExitBert, _texts),
    "T2T": (T2T, lambda n_samples: torch.randn(n_samples, 3, 32, 32)),
}


def network_with_exits(name: str, n_samples: int) -> tuple[nn.Module, Any]:
    """A network and inputs."""
    make_network, make_inputs = OWN_EXITS[name]
    return make_network(), make_inputs(n_samples)
