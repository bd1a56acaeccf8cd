"""Finds the tokens of an exit's output that count, from the attention mask of the network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import pad


@dataclass(frozen=True)
class TokenCounts:
    """Numbers of tokens that a network makes from positions, by a method of the network.

    `of_positions` has the numbers of tokens for 0 to `n_positions` positions; the last one is `n_tokens`.
    """

    n_positions: int
    n_tokens: int
    of_positions: torch.Tensor


def count_tokens(model: nn.Module, mask: torch.Tensor | None) -> TokenCounts | None:
    """Numbers of tokens for the positions of a mask, by a method of Hugging Face audio networks.

    None if no module has the method, or there is no mask of shape (n_samples, n_positions).
    """
    name = "_get_feat_extract_output_lengths"
    method = next((getattr(module, name) for module in model.modules() if hasattr(module, name)), None)
    if method is None or mask is None or mask.ndim != 2:
        return None
    counts = method(torch.arange(mask.shape[1] + 1, device=mask.device))
    if not isinstance(counts, torch.Tensor):  # in some networks it returns the lengths of two modules
        return None
    counts = counts.long()
    counts[1:].clamp_(min=1)  # a sample of any length has a token
    return TokenCounts(mask.shape[1], int(counts[-1]), counts)


def fit_mask(mask: torch.Tensor, tokens: torch.Tensor, counts: TokenCounts | None = None) -> torch.Tensor:
    """The mask of shape (n_samples, n_tokens) for tokens that a network made from the positions of another mask.

    If there are fewer tokens than positions, each token stands for an equal share of the positions, and counts if one
    of them does. With `counts`, the first tokens of each sample count instead, and `counts` has their number.

    Raises a ValueError if there are more tokens than positions, or the mask does not have one row per sample.
    """
    n_samples, n_tokens = tokens.shape[:2]
    if mask.ndim != 2 or mask.shape[0] != n_samples or mask.shape[1] < n_tokens:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)} but an exit gave {n_tokens} tokens for each of {n_samples} "
            "samples, so it does not cover all tokens. Pass a callable as pool=, which gets no mask."
        )
    counted = mask.bool()
    n_positions = mask.shape[1]
    if n_positions == n_tokens:
        return counted
    token = torch.arange(n_tokens, device=mask.device)
    if counts is not None and (counts.n_positions, counts.n_tokens) == (n_positions, n_tokens):
        return token < counts.of_positions[counted.sum(dim=1)].unsqueeze(1)
    n_before = pad(counted.long().cumsum(dim=1), (1, 0))
    start, stop = token * n_positions // n_tokens, -((token + 1) * -n_positions // n_tokens)
    return n_before[:, stop] > n_before[:, start]
