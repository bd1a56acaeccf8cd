"""Small live networks, with the exits that they were fitted on."""

import tempfile

import torch
from torch import nn

from skexit import EENetPolicy, OptimalStoppingPolicy, RandomExit, StaticExit, ThresholdPolicy, recommended_pipeline
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel

N_CLASSES = 3


class Network(nn.Module):
    """Four exits on features, each with its own head."""

    exits = ("blocks.0", "blocks.1", "blocks.2", "blocks.3")

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.LeakyReLU(0.3)) for _ in self.exits)
        self.heads = nn.ModuleList(nn.Linear(6, N_CLASSES) for _ in self.exits)

    def forward(self, x):
        logits = []
        for block, head in zip(self.blocks, self.heads, strict=True):
            x = block(x)
            logits.append(head(x))
        return logits


class TokenNetwork(nn.Module):
    """Two exits on sequences of tokens, of which a mask says which count."""

    exits = ("first", "second")

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, N_CLASSES)

    def forward(self, input_ids, attention_mask):
        x = self.first(self.embed(input_ids))
        x = self.second(torch.tanh(x) * attention_mask.unsqueeze(2))
        return self.head(x.sum(1) / attention_mask.sum(1, keepdim=True))


def make_live(
    policy, *, classes=None, network=Network, exits=Network.exits, thresholds=None, latency=None, device="cpu"
):
    """A live network of four exits, and inputs to it, with a policy that is fitted on others.

    Thresholds, by exit, replace those that were fitted: no sample exceeds 2, and inf makes an exit unused.
    """
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = network().eval().to(device)
    x, x_train = torch.randn(2, 300, 6, generator=generator).to(device)
    logits = network(x_train)
    logits = logits[-1] if isinstance(logits, list) else logits
    y = (logits - logits.mean(0)).argmax(1).cpu()  # all classes are frequent
    with tempfile.TemporaryDirectory() as folder:
        cache = ExitExtractor(network, exits).extract([(x_train, y)], folder, classes=classes, progress=False)
        policy.fit(cache.X, cache.y)
    for k, threshold in (thresholds or {}).items():
        policy.thresholds_[k] = threshold
    return EarlyExitModel(network, exits, policy, latency=latency, example_input=x[:1]), x


class NothingPays:
    """A latency for which samples that leave are taken along to the last exit."""

    batch_sizes = ()

    def compaction_pays(self, k, until, n_samples, n_staying):
        return False


def make_token_live(policy, device="cpu"):
    """A live network of two exits on tokens, and how to draw inputs to it."""
    torch.manual_seed(0)
    network = TokenNetwork().eval().to(device)
    generator = torch.Generator().manual_seed(0)

    def draw(n_samples, length):
        ids = torch.randint(11, (n_samples, length), generator=generator)
        n_tokens = torch.randint(1, length + 1, (n_samples, 1), generator=generator)
        mask = (torch.arange(length) < n_tokens).long()
        return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}

    train = draw(200, 7)
    logits = network(**train)
    y = (logits - logits.mean(0)).argmax(1).cpu()
    with tempfile.TemporaryDirectory() as folder:
        loader = [train | {"labels": y}]
        cache = ExitExtractor(network, network.exits).extract(loader, folder, progress=False)
        policy.fit(cache.X, cache.y)
    return EarlyExitModel(network, network.exits, policy, example_input=draw(3, 7)), draw


def policies():
    """Policies that differ in what they keep of a sample from exit to exit, by name."""
    ensemble = recommended_pipeline(0.6, random_state=0)
    ensemble.set_params(ensemble__heads__max_epochs=3, ensemble__heads__hidden_layer_sizes=(8,))
    return {
        "threshold": ThresholdPolicy(budget=0.6),
        "eenet": EENetPolicy(0.6, max_epochs=3, random_state=0),
        "stopping": OptimalStoppingPolicy(0.6, random_state=0),
        "use_most_confident": OptimalStoppingPolicy(0.6, use_most_confident=True, random_state=0),
        "ensemble": ensemble,
        "static": StaticExit(1),
        "random": RandomExit(budget=0.6, random_state=0),
    }
