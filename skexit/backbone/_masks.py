"""Which tokens of an exit's output count, told from the attention mask of the network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import pad


@dataclass(frozen=True)
class TokenCounts:
    """How many tokens a network makes of a number of positions, by its own account.

    `of_positions` has the numbers for 0 to `n_positions` positions; for the last it is `n_tokens`.
    """

    n_positions: int
    n_tokens: int
    of_positions: torch.Tensor


def count_tokens(model: nn.Module, mask: torch.Tensor | None) -> TokenCounts | None:
    """What ``_get_feat_extract_output_lengths``, a method of Hugging Face audio networks, says of a mask's positions.

    None where the network has no such method, or there is no mask of shape (n_samples, n_positions).
    """
    name = "_get_feat_extract_output_lengths"
    method = next((getattr(module, name) for module in model.modules() if hasattr(module, name)), None)
    if method is None or mask is None or mask.ndim != 2:
        return None
    counts = method(torch.arange(mask.shape[1] + 1, device=mask.device))
    if not isinstance(counts, torch.Tensor):  # some networks give the lengths of two modules
        return None
    counts = counts.long()
    counts[1:].clamp_(min=1)  # a sample of any length has a token
    return TokenCounts(mask.shape[1], int(counts[-1]), counts)


def fit_mask(mask: torch.Tensor, tokens: torch.Tensor, counts: TokenCounts | None = None) -> torch.Tensor:
    """The mask of shape (n_samples, n_tokens) for tokens that a network made of the positions of another mask.

    Where the network makes fewer tokens than there are positions, each token stands for an equal share of these, and
    counts where one of them does. `counts` says instead how many tokens a sample has, from the first one on.

    A ValueError says if there are more tokens than positions, or the mask has not one row per sample.
    """
    n_samples, n_tokens = tokens.shape[:2]
    if mask.ndim != 2 or mask.shape[0] != n_samples or mask.shape[1] < n_tokens:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)} but an exit gave {n_tokens} tokens for each of {n_samples} "
            "samples; it says nothing of some tokens. Pass a callable as pool=, which gets no mask."
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
