"""What happens at an exit is recorded, and the recording gives what the policy gives."""

import copy
import pickle

import numpy as np
import pytest
import torch
from instances import POLICIES
from live_networks import Network, make_live, policies
from sklearn.base import clone
from sklearn.linear_model import Ridge
from torch import nn

from skexit import ExitHeads, OptimalStoppingPolicy, ThresholdPolicy, make_exit_pipeline
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel
from skexit.runtime._recorded import _decide, decide

pytestmark = pytest.mark.filterwarnings("ignore:the mean cost on the fitting data", "ignore:no budget qualifies")

ALL = policies() | {f"{number} {policy}".replace("\n", "")[:60]: policy for number, policy in enumerate(POLICIES)}


def decisions_of(live):
    return live._cut_before().used_exits.decisions


def uses_numpy(policy):
    return isinstance(getattr(policy, "estimator", None), Ridge)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_gives_what_the_policy_gives(name):
    live, x = make_live(clone(ALL[name]))
    decisions = decisions_of(live)
    observed = np.flatnonzero(decisions.is_observed)
    recorded = [k for k in observed if decisions.recorded[k] is not None]
    assert recorded == ([Network.exits.index("blocks.3")] if uses_numpy(ALL[name]) else observed.tolist())
    with torch.inference_mode():
        for rows in (x[:1], x[1:8], x):
            hidden, notes, expected_notes = rows, decisions.start(), decisions.start()
            for k, (block, head) in enumerate(zip(live.model.blocks, live.model.heads, strict=True)):
                hidden = block(hidden)
                if k not in observed:
                    continue
                read = (head(hidden).double(), hidden.double() if decisions.uses_features(k) else None)
                for found, expected in zip(
                    decide(decisions, k, *read, notes), _decide(decisions, k, *read, expected_notes), strict=True
                ):
                    assert (found is None) == (expected is None)
                    if found is not None:
                        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
                assert [list(memory) for memory in notes] == [list(memory) for memory in expected_notes]


def test_samples_whose_classes_are_masked_leave_as_the_policy_says():
    live, _ = make_live(ThresholdPolicy(budget=0.6))
    decisions = decisions_of(live)
    logits = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits[::3, 1:] = -torch.inf
    logits[1::3, 0] = -torch.inf
    _, found = decide(decisions, 0, logits, None, decisions.start())
    _, expected = _decide(decisions, 0, logits, None, decisions.start())
    assert found.equal(expected)
    assert found[::3].all()


class ReadsValues(ThresholdPolicy):
    """Scores by the largest logit, or by the smallest where that of the first row is positive."""

    def score_exit(self, k, logits, features, memory):
        return logits.max(1)[0] if self.decides(logits) else logits.min(1)[0]

    def decides(self, logits):
        return float(logits[0, 0]) < 0

    def fitting_scores(self, X):
        return np.stack([X.logits(k).max(1) for k in range(X.layout.n_exits)], axis=1)


class UsesNumPy(ReadsValues):
    def decides(self, logits):
        return np.asarray(logits)[0, 0] < 0


class FixesRows(ReadsValues):
    def score_exit(self, k, logits, features, memory):
        return torch.as_tensor(np.zeros(len(logits)))


@pytest.mark.parametrize("policy", [ReadsValues(), UsesNumPy(), FixesRows(), OptimalStoppingPolicy(estimator=Ridge())])
def test_what_cannot_be_recorded_runs_as_it_is(policy):
    live, x = make_live(policy)
    assert decisions_of(live).recorded[0] is None
    positive = live(x[x[:, 0] > 0]).exits, live(x[x[:, 0] <= 0]).exits
    assert [len(exits) for exits in positive] == [(x[:, 0] > 0).sum(), (x[:, 0] <= 0).sum()]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda live: pickle.loads(pickle.dumps(live))])
def test_a_copy_records_again(copied):
    live, x = make_live(policies()["stopping"])
    expected, again = live(x), copied(live)
    assert not decisions_of(again).recorded
    output = again(x)
    assert output.exits.equal(expected.exits)
    assert all(decisions_of(again).recorded.values())


def test_notes_are_not_changed_by_stages_that_work_in_place(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 6), nn.Linear(6, 3)).double().eval()
    x, exits = torch.randn(200, 4, dtype=torch.float64), ["0", "2", "3"]
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    cache = ExitExtractor(network, exits, head=None).extract([(x, y)], tmp_path / "cache")
    pipeline = make_exit_pipeline(ExitHeads(cascade=True, max_epochs=2, random_state=0), ThresholdPolicy(budget=0.8))
    pipeline.fit(cache.X, cache.y)
    live = EarlyExitModel(network, exits, pipeline, head=None, example_input=x[:1])
    output = live(x)
    np.testing.assert_array_equal(output.exits, pipeline.predict_exit(cache.X))
    np.testing.assert_allclose(output.probabilities, pipeline.predict_proba(cache.X), atol=1e-4)


class ComparesFeatures(ThresholdPolicy):
    """Scores by how far features are from those of the exit before, which are noted as they are."""

    def uses_features(self, k):
        return True

    def earlier_exits(self, k):
        return range(k)

    def score_exit(self, k, logits, features, memory):
        before = memory.get("features", features)
        memory["features"] = features
        return (features - before).sum(1)


def make_maps(pool, policy, folder, dtype="float32"):
    """A live network that works in place, whose features are pooled maps, the rows, and what the policy says."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True)]
    layers += [nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True)]
    network = nn.Sequential(*layers, nn.Conv2d(4, 4, 3, padding=1)).eval()
    x, exits = torch.randn(200, 3, 8, 8), ["0", "2", "4"]
    y = (x.mean((1, 2, 3)) > 0).long()
    extractor = ExitExtractor(network, exits, head=None, pool=pool, dtype=dtype)
    cache = extractor.extract([(x, y)], folder, progress=False)
    pipeline = make_exit_pipeline(ExitHeads(max_epochs=2, distillation=0, random_state=0), policy)
    pipeline.fit(cache.X, cache.y)
    live = EarlyExitModel(network, exits, pipeline, pool=pool, head=None, example_input=x[:1])
    return live, x, pipeline, cache.X


def assert_same_answers(live, x, pipeline, X):
    for rows in (slice(1), slice(2, 9), slice(None)):
        output = live(x[rows])
        np.testing.assert_array_equal(output.exits, pipeline.predict_exit(X[rows]))
        np.testing.assert_allclose(output.probabilities, pipeline.predict_proba(X[rows]), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("policy", [ThresholdPolicy(budget=0.7), ComparesFeatures(budget=0.7)])
@pytest.mark.parametrize("pool", ["auto", "avg", ["max", "cov"], "grid4"])
def test_pooling_is_recorded_with_the_decision(pool, policy, tmp_path):
    live, *rows = make_maps(pool, policy, tmp_path / "cache")
    runner = live._cut_before().used_exits
    assert runner._pools_when_deciding == set(np.flatnonzero(runner.decisions.is_observed))
    for k in runner._pools:
        runner._pools[k] = None  # cannot be called
    assert_same_answers(live, *rows)


@pytest.mark.slow
def test_recorded_features_are_rounded_as_in_a_cache_of_half_precision(tmp_path):
    live, x, *_ = make_maps("avg", ThresholdPolicy(budget=0.7), tmp_path / "cache", dtype="float16")
    runner = live._cut_before().used_exits
    decisions, pool = runner.decisions, runner.pool_at(0)
    with torch.inference_mode():
        (maps,) = runner.stages[0].network(x)
        features = maps.mean((2, 3)).half().double()
        found, _ = decide(decisions, 0, None, maps, decisions.start(), pool)
        expected, _ = _decide(decisions, 0, None, features, decisions.start())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_a_pool_of_ones_own_is_called(tmp_path):
    sizes = []

    def pool(maps):
        sizes.append(len(maps))
        return maps.mean((2, 3))

    live, x, *rows = make_maps(pool, ThresholdPolicy(budget=0.7), tmp_path / "cache")
    assert_same_answers(live, x, *rows)
    sizes.clear()
    exits = live(x).exits
    assert sizes == [int((exits >= k).sum()) for k in range(3)]


@pytest.mark.slow
def test_pooling_runs_where_the_decision_cannot_be_recorded(tmp_path):
    live, *rows = make_maps("avg", OptimalStoppingPolicy(0.7, estimator=Ridge()), tmp_path / "cache")
    assert decisions_of(live).recorded[0] is None
    assert_same_answers(live, *rows)


class TextMaps(nn.Module):
    """Convolutions over the maps of a text, whose size follows from its length."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.first, self.second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, input_ids):
        return self.second(self.first(self.embed(input_ids)[:, None]))


@pytest.mark.slow
def test_maps_of_texts_of_any_length_are_pooled_by_their_size(tmp_path):
    torch.manual_seed(0)
    network, exits = TextMaps().eval(), ["first", "second"]
    texts = {n: torch.randint(11, (80, n), generator=torch.Generator().manual_seed(n)) for n in (6, 9, 10)}
    caches = {
        n: ExitExtractor(network, exits, head=None, pool="grid2").extract([(x, x[:, 0] % 2)], tmp_path / str(n))
        for n, x in texts.items()
    }
    pipeline = make_exit_pipeline(ExitHeads(max_epochs=2, distillation=0, random_state=0), ThresholdPolicy(budget=0.8))
    pipeline.fit(caches[6].X, caches[6].y)
    live = EarlyExitModel(network, exits, pipeline, pool="grid2", head=None, example_input=texts[6][:1])
    for n, x in texts.items():
        rows = np.asarray(caches[n].X)
        np.testing.assert_array_equal(live(x).exits, pipeline.predict_exit(rows))
