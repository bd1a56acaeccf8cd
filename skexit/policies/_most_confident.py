"""Predictions of the most confident exit so far, instead of the last exit that ran."""

from __future__ import annotations

from typing import Any

from skexit.data import ExitArray
from skexit.data._lazy import answer_from_exits
from skexit.uncertainty import log_odds
from skexit.utils._array_api import array_namespace


def most_confident(logits: Any, memory: dict[str, Any]) -> Any:
    """Logits of the exit so far with the largest probability; the memory is updated for later exits.

    If exits are equally confident, these are the logits of the earlier exit.
    """
    xp = array_namespace(logits)
    confidence = log_odds(logits)
    if "most_confident" in memory:
        is_larger = confidence > memory["highest_confidence"]
        logits = xp.where(is_larger[:, None], logits, memory["most_confident"])
        confidence = xp.where(is_larger, confidence, memory["highest_confidence"])
    memory["most_confident"], memory["highest_confidence"] = logits, confidence
    return logits


def answer_with_most_confident(X: ExitArray) -> ExitArray:
    """X with the logits of the most confident exit so far at each exit."""
    return ExitArray(answer_from_exits(X, X.layout.n_logits[-1], _answer), X.layout)


def _answer(k: int, logits: Any, memory: dict[str, Any]) -> Any:
    return most_confident(logits, memory)
