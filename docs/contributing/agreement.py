"""A policy that stops at an exit if it is confident and agrees with the previous exit."""

from skexit.policies import BudgetedPolicy
from skexit.uncertainty import log_odds


class AgreementPolicy(BudgetedPolicy):
    """Score an exit by the log-odds of the mean of its logits and those of the previous exit.

    Parameters
    ----------
    budget : float, default=0.5
        Mean cost of a sample on the fitting data, as a fraction in (0, 1] of the network's cost.
    heads : ExitHeads, default=None
        Heads to fit if exits have no logits.
    layout : ExitLayout or int, default=None
        Layout of X, if X has none.
    """

    def __init__(self, budget=0.5, *, heads=None, layout=None):
        self.budget = budget
        self.heads = heads
        self.layout = layout

    def score_exit(self, k, logits, features, memory):
        before = memory.get("logits", logits)
        memory["logits"] = logits
        return log_odds((logits + before) / 2)
