"""Classifiers at the exits, and mixtures of them: transformers that add logits to X.

When a sample stops is decided in :mod:`skexit.policies`.
"""

from skexit.heads._ensemble import ExitEnsemble
from skexit.heads._heads import ExitHeads
from skexit.heads._transformer import LogitsTransformer

__all__ = ["ExitEnsemble", "ExitHeads", "LogitsTransformer"]
