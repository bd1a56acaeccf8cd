"""The one place that knows how the tests construct estimators and data."""

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from skexit import (
    ConvExitHeads,
    EENetPolicy,
    EMExitAssigner,
    ExitEnsemble,
    ExitHeads,
    ExitTransformer,
    JEIGatedEnsemble,
    OptimalStoppingPolicy,
    RandomExit,
    RiskControlledPolicy,
    StaticExit,
    ThresholdPolicy,
    stack_exits,
)

#: Heads whose fit draws neither batches nor folds, so that a weight of two is a row twice.
EXACT_HEADS = [
    ExitHeads(training="boosted", random_state=0),
    ExitHeads(training="boosted", cascade=True, random_state=0),
]

#: Heads whose training is not the default.
HEADS = [
    *EXACT_HEADS,
    ExitHeads((4,), training="boosted", max_epochs=2, random_state=0),
    ExitHeads(training="boosted", cascade=True, temperature_scaling=True, cv=2, random_state=0),
    ExitHeads((5, 4), cascade=True, dropout=0.2, max_epochs=2, random_state=0),
]

#: Heads of maps.
CONV_HEADS = [
    ConvExitHeads((3, 4), max_epochs=2, cv=2, random_state=0),
    ConvExitHeads((3,), (1,), dropout=0.2, temperature_scaling=True, max_epochs=2, cv=3, random_state=0),
]

#: Policies with settings that matter for two exits or more.
POLICIES = [
    ThresholdPolicy(),
    ThresholdPolicy("entropy"),
    ThresholdPolicy("margin", schedule="shared"),
    ThresholdPolicy("vote"),
    ThresholdPolicy(OptimalStoppingPolicy(random_state=0)),
    StaticExit(1),
    RandomExit(random_state=0),
    RandomExit(budget=0.6, random_state=0),
    EMExitAssigner(random_state=0, max_epochs=3),
    EMExitAssigner(budget=0.6, random_state=0, max_epochs=3),
    EMExitAssigner(
        lam=3.0, assignment="hard", router_input="features", router_hidden_layer_sizes=(), random_state=0, max_epochs=3
    ),
    EENetPolicy(random_state=0, max_epochs=3),
    EENetPolicy(0.6, init="random", confidence_weight=0, hidden_ratio=2, random_state=0, max_epochs=3),
    EENetPolicy(learn_scores=False, random_state=0, max_epochs=3),
    JEIGatedEnsemble(random_state=0, max_epochs=3),
    JEIGatedEnsemble(budget=0.6, random_state=0, max_epochs=3),
    JEIGatedEnsemble(
        targets="exit_subsequent",
        gate_reading="exit",
        decision="sampled",
        temperature_scaling=False,
        random_state=0,
        max_epochs=3,
    ),
    RiskControlledPolicy(alpha=0.2, random_state=0),
    RiskControlledPolicy(OptimalStoppingPolicy(random_state=0), alpha=0.5, loss="error", random_state=0),
    JEIGatedEnsemble(budget=0.6, gate_reading="exit", random_state=0, max_epochs=3),
    OptimalStoppingPolicy(random_state=0),
    OptimalStoppingPolicy(0.6, use_features=True, random_state=0),
    OptimalStoppingPolicy(0.6, estimator=Ridge(), outcome="realised", random_state=0),
]


def estimators():
    """Every public estimator, with default parameters."""
    return [
        ConvExitHeads(),
        EENetPolicy(),
        EMExitAssigner(),
        ExitEnsemble(),
        ExitHeads(),
        ExitTransformer(StandardScaler()),
        JEIGatedEnsemble(),
        OptimalStoppingPolicy(),
        RandomExit(),
        RiskControlledPolicy(),
        StaticExit(),
        ThresholdPolicy(),
    ]


def make_exits(n_samples, n_exits, n_classes, random_state, n_features=4):
    """Exits whose logits become more often right, with features that tell how hard a sample is."""
    rng = np.random.default_rng(random_state)
    y = rng.integers(n_classes, size=n_samples)
    difficulty = rng.exponential(size=n_samples)
    logits, features = [], []
    for k in range(n_exits):
        noise = rng.normal(size=(n_samples, n_classes))
        logits.append((1 + k) * np.eye(n_classes)[y] + (0.3 + difficulty)[:, None] * noise)
        feature = rng.normal(size=(n_samples, n_features))
        feature[:, 0] += difficulty
        feature[:, 1 : 1 + min(n_classes, n_features - 1)] += np.eye(n_classes)[y][:, : n_features - 1] * (1 + k)
        features.append(feature)
    return stack_exits(np.stack(logits, axis=1), features), y
