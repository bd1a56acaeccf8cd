"""Wherever rows are split again, those of a group stay together."""

import sys

import numpy as np
import pytest
import sklearn
from hypothesis import given, settings
from hypothesis import strategies as st
from instances import make_exits
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, LeaveOneGroupOut, StratifiedKFold, cross_validate
from sklearn.pipeline import make_pipeline

from skexit import (
    ConvExitHeads,
    EENetPolicy,
    EMExitAssigner,
    ExitEnsemble,
    ExitHeads,
    JEIGatedEnsemble,
    OptimalStoppingPolicy,
    RiskControlledPolicy,
    ThresholdPolicy,
    recommended_pipeline,
    stack_exits,
)
from skexit._nn._mini_batches import Training, split_rows
from skexit.data._validation import cross_validation_splits, validate_groups
from skexit.model_selection import budget_curve

HEADS = ExitHeads(cv=3, random_state=0)
#: All that split the rows that they are fitted to.
SPLITTERS = [
    HEADS,
    ExitHeads(cv=3, temperature_scaling=True, random_state=0),
    ConvExitHeads((3,), (1,), cv=3, temperature_scaling=True, max_epochs=1, random_state=0),
    ExitEnsemble(HEADS),
    ThresholdPolicy(heads=HEADS),
    ThresholdPolicy(OptimalStoppingPolicy(cv=3), heads=HEADS),
    OptimalStoppingPolicy(0.6, cv=3, heads=HEADS),
    EMExitAssigner(budget=0.6, heads=HEADS, max_epochs=1, random_state=0),
    EMExitAssigner(heads=HEADS, max_epochs=1, random_state=0),
    EENetPolicy(0.6, heads=HEADS, max_epochs=1, random_state=0),
    JEIGatedEnsemble(budget=0.6, max_epochs=1, warm_up_epochs=1, random_state=0),
    JEIGatedEnsemble(budget=0.6, joint=False, heads=HEADS, random_state=0),
    RiskControlledPolicy(OptimalStoppingPolicy(cv=3, heads=HEADS), alpha=0.3, random_state=0),
]


@pytest.fixture(scope="module")
def data():
    """Features of 240 rows, and the groups of these, of which one has half the rows."""
    X, y = make_exits(n_samples=240, n_exits=3, n_classes=3, random_state=0)
    groups = np.random.default_rng(0).choice(12, size=len(y), p=[0.5] + [0.5 / 11] * 11)
    return stack_exits(features=[X.features(k) for k in range(3)]), y, groups


@pytest.fixture
def splits(monkeypatch):
    """All splits that are made from now on: groups of the rows, and of the rows of each part."""
    made = []

    def watch_folds(cv, labels, random_state, groups=None):
        folds = cross_validation_splits(cv, labels, random_state, groups)
        made.extend((groups[fitted], groups[held_out]) for fitted, held_out in folds)
        return folds

    def watch_held_out(n_samples, training, random_state, groups=None, fewest_held_out=0):
        parts = split_rows(n_samples, training, random_state, groups, fewest_held_out)
        made.append(tuple(groups[part] for part in parts))
        return parts

    for name, watched in [("cross_validation_splits", watch_folds), ("split_rows", watch_held_out)]:
        for module in [module for key, module in sys.modules.items() if key.startswith("skexit")]:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, watched)
    for kind in (KFold, StratifiedKFold):
        monkeypatch.setattr(kind, "split", lambda *args: pytest.fail("rows are split without regard to groups"))
    return made


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("estimator", SPLITTERS, ids=repr)
def test_no_group_is_on_both_sides_of_a_split(estimator, data, splits):
    X, y, groups = data
    weight = (np.arange(len(y)) % 5 > 0) * 2.0
    for method in ("fit", "fit_transform") if hasattr(estimator, "fit_transform") else ("fit",):
        getattr(clone(estimator), method)(X, y, groups=groups)
        if not isinstance(estimator, RiskControlledPolicy):
            getattr(clone(estimator), method)(X, y, sample_weight=weight, groups=groups)
    assert splits
    for fitted, held_out in splits:
        assert not np.intersect1d(fitted, held_out).size


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_risk_control_tests_on_other_groups_than_it_fits_on(data):
    X, y, groups = data
    seen = {}

    class Watching(ThresholdPolicy):
        def fit(self, X, y, sample_weight=None, groups=None):
            seen["fitted"] = np.asarray(X)
            return super().fit(X, y, sample_weight, groups)

        def predict_at_exits(self, X):
            seen["tested"] = np.asarray(X)
            return super().predict_at_exits(X)

    RiskControlledPolicy(Watching(heads=ExitHeads(cv=2)), random_state=0).fit(X, y, groups=groups)
    group_of = dict(zip(map(bytes, np.asarray(X)), groups.tolist(), strict=True))
    fitted, tested = ({group_of[bytes(row)] for row in seen[part]} for part in ("fitted", "tested"))
    assert fitted
    assert tested
    assert not fitted & tested
    assert len(seen["fitted"]) + len(seen["tested"]) == len(y)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_risk_control_counts_a_group_as_one_observation():
    X, y = make_exits(n_samples=150, n_exits=3, n_classes=3, random_state=0)
    policy = FrozenEstimator(ThresholdPolicy().fit(*make_exits(200, 3, 3, random_state=1)))
    for loss in ("error", "accuracy_drop"):
        risk = RiskControlledPolicy(policy, alpha=0.3, loss=loss, budgets=[0.9], random_state=0)
        alone = clone(risk).fit(X, y)
        rows = np.repeat(np.arange(len(y)), 4)
        copies = clone(risk).fit(X[rows], y[rows], groups=rows)
        np.testing.assert_allclose(copies.risks_, alone.risks_)
        assert copies.p_values_[0] == pytest.approx(alone.p_values_[0], rel=0.3)
        # Four times as many rows that say the same are no more evidence.
        assert clone(risk).fit(X[rows], y[rows]).p_values_[0] < alone.p_values_[0] / 2
        no_whole_numbers = clone(risk).fit(X, y, groups=np.arange(len(y)) // 3)
        np.testing.assert_allclose(no_whole_numbers.risks_, alone.risks_)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 7), min_size=6, max_size=80), st.integers(2, 6), st.integers(0, 3))
def test_folds_hold_whole_groups(groups, n_folds, seed):
    groups = np.unique(groups, return_inverse=True)[1]
    labels = np.random.default_rng(seed).integers(3, size=len(groups))
    n_groups = groups.max() + 1
    if n_groups < n_folds:
        with pytest.raises(ValueError, match=r"groups has one group" if n_groups == 1 else rf"to at most {n_groups}"):
            cross_validation_splits(n_folds, labels, seed, groups)
        return
    for cv in (n_folds, GroupKFold(n_folds), LeaveOneGroupOut()):
        folds = cross_validation_splits(cv, labels, seed, groups)
        np.testing.assert_array_equal(np.sort(np.concatenate([test for _, test in folds])), np.arange(len(groups)))
        for train, test in folds:
            assert len(train) > 0
            assert len(test) > 0
            assert len(train) + len(test) == len(groups)
            assert not np.intersect1d(groups[train], groups[test]).size


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=200), st.integers(0, 3))
def test_rows_held_out_are_whole_groups(groups, seed):
    groups = np.array(groups)
    training = Training(0.1, 0.0, 1, 8, early_stopping=True)
    rows, held_out = split_rows(len(groups), training, np.random.RandomState(seed), groups)
    np.testing.assert_array_equal(np.sort(np.append(rows, held_out)), np.arange(len(groups)))
    assert not np.intersect1d(groups[rows], groups[held_out]).size
    smallest = np.unique(groups, return_counts=True)[1].min()
    assert len(rows) > 0
    assert len(held_out) <= max(len(groups) // 10, smallest)
    assert (len(held_out) > 0) == (len(np.unique(groups)) > 1 and len(groups) >= 10)


@pytest.mark.filterwarnings("ignore:The groups parameter is ignored:UserWarning")
def test_groups_of_one_row_each_are_as_none(data):
    X, y, _ = data
    heads = ExitHeads(cv=KFold(3), distillation=0)
    alone = OptimalStoppingPolicy(0.6, cv=KFold(3), heads=heads).fit(X, y)
    grouped = clone(alone).fit(X, y, groups=np.arange(len(y)))
    np.testing.assert_array_equal(grouped.exit_scores(X), alone.exit_scores(X))


@pytest.mark.parametrize("kind", [np.array, list, lambda groups: [f"scene {group}" for group in groups]])
def test_groups_are_told_apart_by_any_names(data, kind):
    X, y, groups = data
    expected = HEADS.fit_transform(X, y, groups=groups)
    np.testing.assert_array_equal(HEADS.fit_transform(X, y, groups=kind(groups)), expected)


@pytest.mark.slow
def test_copies_of_rows_do_not_make_heads_overconfident():
    """800 rows in four noisy copies each: the spend on new rows is the budget where copies are groups."""
    rng = np.random.default_rng(0)
    X, y = make_exits(n_samples=2800, n_exits=3, n_classes=5, n_features=40, random_state=0)
    features = [X.features(k) + rng.normal(size=(2800, 40)) for k in range(3)]
    rows = np.repeat(np.arange(800), 4)
    copies = stack_exits(features=[block[rows] + 0.05 * rng.normal(size=(len(rows), 40)) for block in features])
    new = stack_exits(features=[block[800:] for block in features])
    policy = ThresholdPolicy(budget=0.6, heads=ExitHeads((64,), cascade=True, random_state=0))
    assert policy.fit(copies, y[rows], groups=rows).mean_cost(new) == pytest.approx(0.6, abs=0.03)
    assert policy.fit(copies, y[rows]).mean_cost(new) > 0.7


@pytest.mark.parametrize("cv", [2, GroupKFold(2)])
def test_metadata_routing_takes_groups_to_every_step(data, splits, cv):
    X, y, groups = data
    with sklearn.config_context(enable_metadata_routing=True):
        heads = ExitHeads(cv=cv).set_fit_request(groups=True, sample_weight=False)
        policy = OptimalStoppingPolicy(cv=cv).set_fit_request(groups=True)
        pipeline = make_pipeline(heads, policy)
        pipeline.fit(X, y, groups=groups)
        results = cross_validate(
            pipeline, X, y, cv=GroupKFold(3), params={"groups": groups}, error_score="raise", scoring="accuracy"
        )
        assert len(results["test_score"]) == 3
        search = GridSearchCV(pipeline, {"optimalstoppingpolicy__budget": [0.6, 0.8]}, cv=GroupKFold(3))
        search.fit(X, y, groups=groups)
        curve = budget_curve(pipeline, X, y, [0.6, 0.8], cv=GroupKFold(3), params={"groups": groups})
        assert curve.accuracies.shape == (2, 3)
        recommended = recommended_pipeline(0.6)
        recommended.set_params(ensemble__heads=ExitHeads(cv=cv))
        recommended["ensemble"].set_fit_request(groups=True)
        recommended["policy"].set_params(cv=cv).set_fit_request(groups=True)
        recommended.fit(X, y, groups=groups)
    assert len(splits) > 20
    for fitted, held_out in splits:
        assert not np.intersect1d(fitted, held_out).size


def test_a_pipeline_takes_groups_of_its_steps(data, splits):
    X, y, groups = data
    heads = clone(HEADS).set_params(distillation=0)
    make_pipeline(heads, OptimalStoppingPolicy(cv=3)).fit(
        X, y, exitheads__groups=groups, optimalstoppingpolicy__groups=groups
    )
    assert len(splits) == 6


def test_budget_curves_take_groups(data, splits):
    X, y, groups = data
    policy = OptimalStoppingPolicy(cv=2, heads=ExitHeads(cv=2, distillation=0))
    budget_curve(policy, X, y, [0.6, 0.8], cv=GroupKFold(2), params={"groups": groups})
    assert len(splits) == 2 * (2 + 2)


def test_groups_must_be_given_for_each_row(data):
    X, y, groups = data
    for estimator in SPLITTERS:
        with pytest.raises(ValueError, match=r"groups has 239 values, but there are 240 rows"):
            clone(estimator).fit(X, y, groups=groups[1:])
    for missing in (None, np.nan):
        with pytest.raises(ValueError, match=r"groups lacks the group of 1 rows, the first of which is row 3"):
            HEADS.fit_transform(X, y, groups=[missing if row == 3 else row for row in range(len(y))])


def test_missing_values_of_pandas_are_no_groups():
    pd = pytest.importorskip("pandas")
    with pytest.raises(ValueError, match="the first of which is row 1"):
        validate_groups(pd.Series([1, None, 2], dtype="Int64"), [0, 1, 0])
    assert validate_groups(pd.Series(["b", "a", "b"], dtype="string"), [0, 1, 0]).tolist() == [0, 1, 0]


def test_cures_of_too_few_groups_work(data):
    X, y, _ = data
    groups = np.arange(len(y)) % 2
    for estimator in (ExitHeads(), OptimalStoppingPolicy(heads=ExitHeads(cv=2)), OptimalStoppingPolicy(cv=2)):
        with pytest.raises(ValueError, match=r"cv=5 asks .* Set cv to at most 2; .* heads=ExitHeads\(cv=2\)"):
            getattr(estimator, "fit_transform", estimator.fit)(X, y, groups=groups)
    ExitHeads(cv=2).fit_transform(X, y, groups=groups)
    OptimalStoppingPolicy(cv=2, heads=ExitHeads(cv=2)).fit(X, y, groups=groups)
    # Groups whose rows all have zero weight count for nothing.
    with pytest.raises(ValueError, match="groups has one group"):
        HEADS.fit_transform(X, y, sample_weight=groups.astype(float), groups=groups)
    with pytest.raises(ValueError, match="FrozenEstimator"):
        RiskControlledPolicy().fit(X, y, groups=np.zeros(len(y)))


def test_a_splitter_of_groups_needs_them(data):
    X, y, groups = data
    with pytest.raises(ValueError, match=r"needs groups.*fit\(X, y, groups=\.\.\.\).*set_fit_request\(groups=True\)"):
        OptimalStoppingPolicy(cv=GroupKFold(3), heads=HEADS).fit(X, y)
    OptimalStoppingPolicy(cv=GroupKFold(3), heads=HEADS).fit(X, y, groups=groups)


@pytest.mark.filterwarnings("ignore:The groups parameter is ignored:UserWarning")
def test_folds_of_ones_own_must_keep_groups_together(data):
    X, y, groups = data
    halves = [(np.arange(120), np.arange(120, 240)), (np.arange(120, 240), np.arange(120))]
    for cv in (KFold(3), halves):
        with pytest.raises(ValueError, match=r"divides groups between folds\. Set cv to an integer or to GroupKFold"):
            ExitHeads(cv=cv).fit_transform(X, y, groups=groups)
    ExitHeads(cv=halves).fit_transform(X, y, groups=np.arange(240) // 120)
