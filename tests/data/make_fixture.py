"""Save small fitted estimators of this release, for the tests of later ones: ``python tests/data/make_fixture.py``.

Run it once a release and commit the three files; those of earlier releases stay as they are.
"""

import sys
from pathlib import Path

import joblib
import numpy as np
import skops.io

import skexit
from skexit import (
    EENetPolicy,
    EMExitAssigner,
    ExitEnsemble,
    ExitHeads,
    JEIGatedEnsemble,
    OptimalStoppingPolicy,
    RandomExit,
    RiskControlledPolicy,
    StaticExit,
    ThresholdPolicy,
    stack_exits,
)

FOLDER = Path(__file__).parent
#: Predictions must not hang on the last digits, which differ between processors.
SMALLEST_MARGIN = 1e-6


def make_data():
    """Three exits of features; the last has logits, too."""
    sys.path.insert(0, str(FOLDER.parent))
    from instances import make_exits

    X, y = make_exits(n_samples=120, n_exits=3, n_classes=3, random_state=0)
    X = stack_exits(
        [None, None, X.logits(2)],
        [X.features(k) for k in range(3)],
        costs=[1e6, 2e6, 4e6],
        cost_unit="FLOPs",
        classes=["cat", "dog", "owl"],
    )
    return X, np.array(["cat", "dog", "owl"])[y]


def fit_estimators(X, y):
    """Every estimator; the policies are calibrated."""
    policies = {
        "threshold": ThresholdPolicy(budget=0.6),
        "static": StaticExit(1),
        "random": RandomExit(budget=0.6, random_state=0),
        "em": EMExitAssigner(budget=0.6, random_state=0, max_epochs=3),
        "eenet": EENetPolicy(budget=0.6, random_state=0, max_epochs=3),
        "jei": JEIGatedEnsemble(random_state=0, max_epochs=3),
        "risk": RiskControlledPolicy(alpha=0.5, random_state=0),
        "stopping": OptimalStoppingPolicy(budget=0.6, random_state=0),
    }
    fitted = {name: policy.fit(X[:60], y[:60]).calibrate(X[60:90], y[60:90]) for name, policy in policies.items()}
    transformers = {
        "heads": ExitHeads(hidden=2, cascade=True, random_state=0, max_epochs=3),
        "ensemble": ExitEnsemble(),
    }
    return {**fitted, **{name: transformer.fit(X[:60], y[:60]) for name, transformer in transformers.items()}}


def predictions(estimators, X):
    """What the estimators say of new rows, by estimator and method."""
    answers = {}
    for name, estimator in estimators.items():
        if hasattr(estimator, "transform"):
            answers[f"{name}/transform"] = np.asarray(estimator.transform(X))
        else:
            for method in ("exit_scores", "predict_exit", "predict", "predict_proba", "predict_set"):
                answers[f"{name}/{method}"] = getattr(estimator, method)(X)
    return answers


def main():
    X, y = make_data()
    estimators = fit_estimators(X, y)
    X_new = X[90:]
    for name, policy in estimators.items():
        if hasattr(policy, "exit_scores"):
            margin = np.abs(policy.exit_scores(X_new) - policy.thresholds_).min()
            if margin < SMALLEST_MARGIN:
                raise SystemExit(f"{name}: a score is {margin} from its threshold; take other rows.")
    stem = FOLDER / f"estimators-{skexit.__version__}"
    joblib.dump(estimators, f"{stem}.joblib", compress=9)
    skops.io.dump(estimators, f"{stem}.skops", compression=8, compresslevel=9)
    np.savez_compressed(f"{stem}.npz", X=np.asarray(X_new), **predictions(estimators, X_new))


if __name__ == "__main__":
    main()
