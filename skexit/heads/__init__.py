"""Transformers of the features of exits, classifiers at the exits, and ensembles of exits.

:mod:`skexit.policies` decides when a sample stops.
"""

from skexit.heads._conv_heads import ConvExitHeads
from skexit.heads._ensemble import ExitEnsemble
from skexit.heads._exit_transformer import ExitTransformer
from skexit.heads._heads import ExitHeads
from skexit.heads._transformer import LogitsTransformer

__all__ = ["ConvExitHeads", "ExitEnsemble", "ExitHeads", "ExitTransformer", "LogitsTransformer"]
