"""What goes wrong in silence unless it is refused: labels, classes, layouts, folds, parameters."""

import numpy as np
import pytest
from instances import make_exits
from sklearn.exceptions import DataConversionWarning
from sklearn.metrics import get_scorer
from sklearn.model_selection import KFold, ShuffleSplit

from skexit import (
    EMExitAssigner,
    ExitArray,
    ExitHeads,
    ExitLayout,
    OptimalStoppingPolicy,
    RiskControlledPolicy,
    ThresholdPolicy,
    oracle,
    stack_exits,
)
from skexit.data._validation import cross_validation_splits


@pytest.fixture(scope="module")
def data():
    return make_exits(n_samples=200, n_exits=3, n_classes=4, random_state=0)


def logits_of(X):
    return np.stack([X.logits(k) for k in range(X.layout.n_exits)], axis=1)


def test_integer_labels_that_do_not_start_at_zero_need_classes(data):
    X, y = data
    with pytest.raises(ValueError, match=r"1 to 4, and X logits for 4, .* stack_exits\(\.\.\., classes=\[\.\.\.\]\)"):
        ThresholdPolicy().fit(X, y + 1)
    named = stack_exits(logits_of(X), classes=[1, 2, 3, 4])
    some = y < 3
    policy = ThresholdPolicy(budget=0.9).fit(named[some], y[some] + 1)
    assert policy.score(named[some], y[some] + 1) == ThresholdPolicy(budget=0.9).fit(X[some], y[some]).score(
        X[some], y[some]
    )


@pytest.mark.parametrize("name", [str, "class{}".format])
def test_numbered_strings_that_sort_otherwise_need_classes(name):
    X, y = make_exits(n_samples=300, n_exits=2, n_classes=12, random_state=0)
    labels, classes = np.array([name(label) for label in y]), [name(label) for label in range(12)]
    with pytest.raises(ValueError, match=r"unclear which logit is which class.*classes="):
        ThresholdPolicy(budget=0.9).fit(X, labels)
    named = X.with_layout(X.layout.replace(classes=classes))
    expected = ThresholdPolicy(budget=0.9).fit(X, y).score(X, y)
    assert ThresholdPolicy(budget=0.9).fit(named, labels).score(named, labels) == expected
    few = np.flatnonzero(y < 3)
    X = stack_exits(logits_of(X)[few, :, :3])
    assert ThresholdPolicy(budget=0.9).fit(X, labels[few]).classes_.tolist() == classes[:3]


def test_a_single_row_cannot_be_split():
    X, y = make_exits(n_samples=1, n_exits=2, n_classes=2, random_state=0)
    for estimator in (OptimalStoppingPolicy(), RiskControlledPolicy()):
        with pytest.raises(ValueError, match="n_samples=1"):
            estimator.fit(X, y)


def test_a_column_of_labels_is_warned_of_at_the_users_line(data):
    X, y = data
    with pytest.warns(DataConversionWarning, match="column-vector") as caught:
        ExitHeads().fit(X, y[:, None])
    assert not caught[0].filename.endswith("skexit/data/_validation.py")


@pytest.mark.parametrize("scorer", ["neg_log_loss", "roc_auc_ovr", "accuracy"])
@pytest.mark.parametrize("method", [ThresholdPolicy(budget=0.7), EMExitAssigner(3.0, random_state=0, max_epochs=2)])
def test_scorers_agree_whatever_the_order_of_the_logits(data, scorer, method):
    X, y = data
    order = np.array([3, 1, 0, 2])
    names = np.array(["a", "b", "c", "d"])
    labels = names[y]
    in_order = stack_exits(logits_of(X), [X.features(k) for k in range(3)], classes=names)
    shuffled = stack_exits(logits_of(X)[:, :, order], [X.features(k) for k in range(3)], classes=names[order])
    expected = get_scorer(scorer)(method.fit(in_order, labels), in_order, labels)
    fitted = method.fit(shuffled, labels)
    assert fitted.classes_.tolist() == names.tolist()
    assert get_scorer(scorer)(fitted, shuffled, labels) == pytest.approx(expected)
    assert get_scorer(scorer)(fitted, np.asarray(shuffled), labels) == pytest.approx(expected)
    assert get_scorer(scorer)(fitted, in_order, labels) == pytest.approx(expected)
    assert oracle(shuffled, labels).accuracy == oracle(in_order, labels).accuracy


def test_own_logits_keep_their_classes_through_heads(data):
    X, y = data
    order = np.array([3, 1, 0, 2])
    frozen = stack_exits([None, None, X.logits(2)[:, order]], [X.features(k) for k in range(3)], classes=order)
    heads = ExitHeads().fit(frozen, y)
    assert heads.classes_.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(heads.transform(frozen).logits(2), X.logits(2))


def test_logits_of_other_classes_are_refused(data):
    X, y = data
    policy = ThresholdPolicy().fit(X, y)
    with pytest.raises(ValueError, match=r"the layout of X has the classes \['a', .* was fitted with \[0, 1, 2, 3\]"):
        policy.predict(stack_exits(logits_of(X), [X.features(k) for k in range(3)], classes=["a", "b", "c", "d"]))


def test_layout_parameter_gives_an_exit_array_other_costs(data):
    X, y = data
    layout = X.layout.replace(costs=[1, 2, 10], cost_unit="ms")
    policy = ThresholdPolicy(budget=0.5, layout=layout).fit(X, y)
    assert policy.costs_.tolist() == [0.1, 0.2, 1.0]
    assert 0.5 - 1 / len(X) <= policy.mean_cost(X) <= 0.5
    with pytest.raises(ValueError, match="divides the columns otherwise than X"):
        ThresholdPolicy(layout=2).fit(X, y)


def test_no_rows(data):
    X, y = data
    with pytest.raises(ValueError, match=r"0 sample\(s\)"):
        ThresholdPolicy().fit(X[:0], y[:0])
    with pytest.raises(ValueError, match=r"0 sample\(s\)"):
        ThresholdPolicy().fit(X, y).mean_cost(X[:0])


@pytest.mark.parametrize("cv", [ShuffleSplit(2, test_size=0.2, random_state=0), list(KFold(3).split(np.zeros(150)))])
def test_folds_must_hold_each_row_once(data, cv):
    X, y = data
    features = stack_exits(features=[X.features(k) for k in range(3)])
    with pytest.raises(ValueError, match="each of the 200 rows of positive weight into exactly one test fold"):
        ExitHeads(cv=cv).fit_transform(features, y)
    with pytest.raises(ValueError, match="each of the 200 rows of positive weight into exactly one test fold"):
        EMExitAssigner(budget=0.6, cv=cv).fit(X, y)


def test_every_row_is_in_one_fold_also_with_rare_classes():
    labels = np.array([0] * 30 + [1] * 2)
    test_rows = np.concatenate([test for _, test in cross_validation_splits(5, labels, 0)])
    assert sorted(test_rows) == list(range(32))


def test_stacked_features_are_split_by_exit():
    features = np.arange(24.0).reshape(2, 3, 4)
    X = stack_exits(features=features)
    assert X.layout.n_features == (4, 4, 4)
    np.testing.assert_array_equal(X.features(1), features[:, 1])
    with pytest.raises(ValueError, match=r"features has shape \(2, 12\); pass \(n_samples, n_exits, n_features\)"):
        stack_exits(features=features.reshape(2, 12))


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ({"lam": np.nan}, "lam"),
        ({"lam": np.inf}, "lam"),
        ({"router_hidden_layer_sizes": (0,)}, r"router_hidden_layer_sizes=\(0,\) must hold one positive integer"),
        ({"router_hidden_layer_sizes": (8.5,)}, r"router_hidden_layer_sizes=\(8.5,\) must hold one positive integer"),
        ({"router_hidden_layer_sizes": ("8",)}, r"router_hidden_layer_sizes=\('8',\) must hold one positive integer"),
        ({"confidence_weight": -1}, "confidence_weight"),
    ],
)
def test_parameters_of_em(data, parameter, message):
    with pytest.raises(ValueError, match=message):
        EMExitAssigner(**parameter).fit(*data)


@pytest.mark.parametrize("budget", ["x", [0.5], None])
def test_budgets_that_are_no_numbers(data, budget):
    with pytest.raises(ValueError, match=r"budget=.* must be in \(0, 1\]"):
        ThresholdPolicy().fit(*data).with_budget(budget)


def test_the_confidence_alone_is_maximum_probability(data):
    X, y = data
    policy = EMExitAssigner(budget=0.6, confidence_weight=np.inf, max_epochs=1, random_state=0).fit(X, y)
    np.testing.assert_allclose(policy.exit_scores(X), ThresholdPolicy().fit(X, y).exit_scores(X))


def test_mean_cost_with_weights(data):
    X, y = data
    policy = ThresholdPolicy().fit(X, y)
    weight = np.random.default_rng(0).exponential(size=len(X))
    expected = np.average(policy.costs_[policy.predict_exit(X)], weights=weight)
    assert policy.mean_cost(X, sample_weight=weight) == pytest.approx(expected)


def test_a_torch_tensor_is_an_array_without_a_layout(data):
    import torch

    X, y = data
    values = torch.from_numpy(np.asarray(X))
    layout = ExitLayout(X.layout.n_logits, X.layout.n_features)
    fitted = ThresholdPolicy(layout=layout).fit(values, y)
    np.testing.assert_array_equal(
        fitted.predict_exit(values), ThresholdPolicy().fit(X, y).predict_exit(ExitArray.from_array(values, layout))
    )


def test_scores_do_not_vanish_in_single_precision():
    import torch

    from skexit.policies._blending import blend

    probability, confidence = torch.full((2,), 1e-3), torch.tensor([0.02, 0.03])
    single = blend(probability, confidence, 30.0).numpy()
    double = blend(probability.numpy().astype(float), confidence.numpy().astype(float), 30.0)
    np.testing.assert_allclose(single, double, rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, None])
def test_missing_labels(data, value):
    """Where X tells the classes, -1 marks rows without a label; elsewhere it would be one more class."""
    X, y = data
    is_missing = (y == 1) & (np.arange(len(y)) % 2 == 0)
    missing = np.where(is_missing, value, y.astype(object))
    if value is not None:
        missing = missing.astype(float)
    message = rf"y has the value {value!r}, which is no label, in {is_missing.sum()} rows\. "
    with pytest.raises(ValueError, match=message + "Mark rows without a label by -1, or leave them out"):
        ThresholdPolicy().fit(X, missing)
    ThresholdPolicy().fit(X, np.where(is_missing, -1, y))
    with pytest.raises(ValueError, match=message + r"Leave them out\.$"):
        ExitHeads().fit(stack_exits(features=[X.features(0)]), missing)


def test_numbers_among_objects_become_integers(data):
    X, y = data
    with pytest.raises(ValueError, match=r"y has dtype object; .* for example by y\.astype\(int\)\.$"):
        ThresholdPolicy().fit(X, y.astype(object))
    ThresholdPolicy().fit(X, y.astype(object).astype(int))
