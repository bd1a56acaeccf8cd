"""The trial that decides whether heads with hidden layers are strongly regularised."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from tasks import overfitted_task

from skexit import ExitHeads, recommended_heads, stack_exits
from skexit.heads import _heads, _overfitting_trial
from skexit.heads._overfitting_trial import TrialRows, heads_overfit


def many_exits(n_samples=400, with_logits=(), labels_of=1):
    """Seven exits with the label as their only feature; one row in `labels_of` has a label."""
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=n_samples)
    logits = [3 * np.eye(3)[y] - 1 if k in with_logits else None for k in range(7)]
    X = stack_exits(logits, [k + np.column_stack([y, np.arange(n_samples)]) for k in range(7)], classes=[0, 1, 2])
    return X, np.where(rng.permutation(n_samples) % labels_of, -1, y)


class Fake:
    """Heads whose logits are right for a share of the rows, and more certain of the class if strongly regularised."""

    def __init__(self, usual=0.8, strong=0.8, certainty=1.0, offset=0):
        self.correct, self.certainty, self.trained = {False: usual, True: strong}, certainty, []
        self.offset = offset  # what is added to the features of the first exit in the trial

    def __call__(self, rows, strong):
        self.trained.append((rows, strong))
        return lambda X: self.logits(X, strong)

    def logits(self, X, strong):
        self.measured = X
        first = X.features(0).astype(int) - self.offset
        labels, number = first.T
        correct = number % 100 < round(100 * self.correct[strong])
        wrong = 1.0 if not strong else 1 / self.certainty  # how far the logits of wrong rows are from the label's
        logits = np.where(correct[:, None], 3.0, -wrong) * np.eye(3)[labels]
        return {k: logits for k in range(X.layout.n_exits) if not X.layout.has_logits(k)}


def trial(train, X, y, groups=None):
    return heads_overfit(train, TrialRows(X, y, np.ones(len(y)), groups))


class TestRule:
    @pytest.mark.parametrize(
        ("options", "decision"),
        [
            ({}, False),
            ({"strong": 1.0}, True),
            ({"strong": 0.6}, False),
            ({"certainty": 4.0}, True),  # as often right, and less wrong about the others
            ({"certainty": 0.25}, False),
            ({"certainty": 40.0, "strong": 0.7}, False),  # less often right
        ],
        ids=str,
    )
    def test_less_loss_and_no_less_accuracy(self, options, decision):
        assert trial(Fake(**options), *many_exits()) is decision

    def test_small_gains_are_chance(self):
        """A gain in few rows proves nothing; the same in many does."""
        assert [trial(Fake(0.97, 0.98), *many_exits(n_samples)) for n_samples in (100, 4000)] == [False, True]

    def test_few_rows_have_no_trial(self):
        train = Fake(strong=1.0)
        assert not trial(train, *many_exits(99))
        X, y = many_exits()
        assert not trial(train, X, y, groups=np.arange(len(y)) // 5)
        assert not train.trained

    def test_groups_are_apart(self):
        X, y = many_exits(800)
        train, groups = Fake(strong=1.0), np.arange(800) // 4
        assert trial(train, X, y, groups)
        assert trial(train, X, y, groups)
        fitted = {groups[number] for number in train.trained[0][0].X.features(0)[:, 1].astype(int)}
        measured = {groups[number] for number in train.measured.features(0)[:, 1].astype(int)}
        assert not fitted & measured
        assert len(fitted | measured) == 200
        assert train.trained[0][0].groups.max() == len(fitted) - 1

    @pytest.mark.parametrize(
        ("with_logits", "tried"), [((), [0, 3, 6]), ((6,), [0, 2, 5]), ((0, 6), [1, 3, 5]), ((1, 2, 3, 4, 5), [0, 6])]
    )
    def test_some_exits(self, with_logits, tried):
        X, y = many_exits(with_logits=with_logits)
        train = Fake(offset=tried[0])
        trial(train, X, y)
        assert [strong for _, strong in train.trained] == [False, True]
        of_trial = train.trained[0][0].X
        firsts = [of_trial.features(k)[:, 0].min() for k in range(of_trial.layout.n_exits)]
        np.testing.assert_array_equal(firsts, tried)

    def test_some_rows_decide(self, monkeypatch):
        monkeypatch.setattr(_overfitting_trial, "_ENOUGH_ROWS", 200)
        X, y = many_exits(900)
        train = Fake()
        trial(train, X, y)
        assert len(train.trained[0][0].labels) + len(train.measured) == 200


class TestHeads:
    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(2))
    def test_wrong_labels_and_noise_need_it(self, seed):
        heads = recommended_heads(random_state=0).set_params(distillation=0)
        assert heads.fit(*overfitted_task(1500, seed)).overfits_

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(2))
    def test_digits_do_not(self, seed):
        """No label is wrong, and a strong penalty makes predictions worse."""
        images, y = load_digits(return_X_y=True)
        rows = np.random.default_rng(seed).permutation(len(y))[:1000]
        X = stack_exits(features=[images[rows, :32], images[rows, 32:]])
        assert not recommended_heads(random_state=0).set_params(distillation=0).fit(X, y[rows]).overfits_

    @pytest.mark.parametrize("overfits", [False, True])
    def test_values_of_auto(self, monkeypatch, overfits):
        X, y = many_exits()
        monkeypatch.setattr(_heads, "heads_overfit", lambda *_: overfits)
        auto = ExitHeads((3,), cascade=True, dropout="auto", max_epochs=2, random_state=0)
        given = clone(auto).set_params(dropout=0.7 if overfits else 0.4, l2=3e-2 if overfits else 3e-3)
        np.testing.assert_allclose(auto.fit_transform(X, y), given.fit_transform(X, y), rtol=1e-3)
        assert auto.overfits_ is overfits
        assert given.overfits_ is False

    @pytest.mark.parametrize(
        "options",
        [
            {"hidden_layer_sizes": (), "dropout": "auto"},
            {"dropout": 0.1, "l2": 0.1},
            {"distillation": 0.5, "dropout": "auto"},
        ],
        ids=str,
    )
    def test_no_trial_where_it_would_change_nothing(self, monkeypatch, options):
        monkeypatch.setattr(_heads, "heads_overfit", None)  # an error if it is called
        X, y = many_exits(with_logits=(6,))
        heads = ExitHeads(**{"hidden_layer_sizes": (3,), "max_epochs": 1} | options).fit(X, y)
        assert heads.overfits_ is False

    def test_one_trial_for_all_folds(self, monkeypatch):
        trials = []
        monkeypatch.setattr(_heads, "heads_overfit", lambda *arguments: trials.append(arguments) or True)
        X, y = many_exits()
        ExitHeads((3,), max_epochs=1, random_state=0).fit_transform(X, y)
        assert len(trials) == 1

    def test_partial_fit_has_no_trial(self, monkeypatch):
        monkeypatch.setattr(_heads, "heads_overfit", lambda *_: True)
        X, y = many_exits()
        heads = ExitHeads((3,), cascade=True, dropout="auto", max_epochs=1, random_state=0)
        expected = clone(heads).partial_fit(X, y).transform(X)
        heads.fit(X, y).partial_fit(X, y)
        assert heads.overfits_ is False
        np.testing.assert_array_equal(heads.transform(X), expected)

    @pytest.mark.parametrize("with_logits", [(), (6,)], ids=str)
    def test_the_trial_trains_these_heads_on_labels_alone(self, monkeypatch, with_logits):
        X, y = many_exits(with_logits=with_logits, labels_of=2)
        share = 0 if with_logits else 0.5
        heads = ExitHeads((3,), cascade=True, distillation=share, max_epochs=1, random_state=0)
        tried = []
        monkeypatch.setattr(_heads, "heads_overfit", lambda train, rows: tried.append(train(rows, True)) or False)
        heads.fit(X, y)
        alone = clone(heads).set_params(distillation=0, l2=3e-2).fit(X[y >= 0], y[y >= 0]).transform(X)
        for k, logits in tried[0](X).items():
            np.testing.assert_array_equal(logits, alone.logits(k))
