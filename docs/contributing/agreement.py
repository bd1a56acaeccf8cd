"""A policy that stops where an exit is sure and agrees with the exit before it."""

from skexit.policies import BudgetedPolicy
from skexit.uncertainty import log_odds


class AgreementPolicy(BudgetedPolicy):
    """Stop where the mean of this exit's logits and the last one's is sure.

    Parameters
    ----------
    budget : float, default=0.5
        Mean cost of a sample on the data that was fitted, a fraction in (0, 1] of the network's
        cost.
    heads : ExitHeads, default=None
        Heads to fit where exits have no logits.
    layout : ExitLayout or int, default=None
        Layout of X, where X does not know it.
    """

    def __init__(self, budget=0.5, *, heads=None, layout=None):
        self.budget = budget
        self.heads = heads
        self.layout = layout

    def score_exit(self, k, logits, features, memory):
        before = memory.get("logits", logits)
        memory["logits"] = logits
        return log_odds((logits + before) / 2)
