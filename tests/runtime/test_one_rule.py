"""Cached rows and the live network decide alike, however sure, tied or coarse the logits are."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

from skexit import (
    EENetPolicy,
    EMExitAssigner,
    ExitEnsemble,
    ExitHeads,
    JEIGatedEnsemble,
    OptimalStoppingPolicy,
    RandomExit,
    StaticExit,
    ThresholdPolicy,
    stack_exits,
)
from skexit.extraction import ExitExtractor
from skexit.policies._steps import NetworkDecision
from skexit.runtime import EarlyExitModel

N_ROWS = 2000
EXITS = ["0", "1"]


def make_network(n_outputs=3, scale=40.0, dtype=torch.float32):
    """Two linear layers, each an exit; the larger the scale, the surer they are."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, n_outputs), nn.Linear(n_outputs, n_outputs))
    with torch.no_grad():
        network[0].weight.mul_(scale)
    return network.to(dtype).eval()


def inputs_of(network, n_rows=N_ROWS, step=None):
    x = torch.randn(n_rows, 8, generator=torch.Generator().manual_seed(1))
    if step is not None:
        x = (x / step).round() * step
    return x.to(network[0].weight.dtype)


def extract(network, x, folder, dtype="float32"):
    y = torch.arange(len(x)) % max(network[0].out_features, 2)
    batches = list(zip(x.split(256), y.split(256), strict=True))
    return ExitExtractor(network, EXITS, head=EXITS, dtype=dtype).extract(batches, folder)


def budget_for(cache, share):
    """A budget with which the share of the rows goes to the last exit."""
    first = cache.X.layout.cost_fractions[0]
    return first + share * (1 - first)


def assert_one_rule(network, policy, cache, x):
    """Exits are those of the cache, but for a few rows whose score is within rounding of the threshold."""
    live = EarlyExitModel(network, EXITS, policy, head=EXITS)
    expected = policy.predict_exit(cache.X)
    distance = np.abs(policy.exit_scores(cache.X)[:, 0] - policy.thresholds_[0])
    is_near = distance <= 1e-4 * (1 + np.abs(policy.thresholds_[0]))
    for n_rows in (len(x), 100, 7):
        exits = torch.cat([live(batch).exits for batch in x[: 50 * n_rows].split(n_rows)]).numpy()
        differs = exits != expected[: len(exits)]
        assert differs.mean() <= 0.005
        assert is_near[: len(exits)][differs].all()


SLOW = pytest.mark.slow
NETWORKS = [
    pytest.param({}, id="sure"),
    pytest.param({"n_outputs": 2}, id="two classes"),
    pytest.param({"n_outputs": 1}, id="one logit"),
    pytest.param({"dtype": torch.bfloat16}, id="bfloat16"),
    pytest.param({"dtype": torch.float16}, id="float16", marks=SLOW),
    pytest.param({"n_outputs": 100}, id="many classes", marks=SLOW),
    pytest.param({"scale": 4000.0}, id="surer", marks=SLOW),
    pytest.param({"scale": 1e35}, id="huge", marks=SLOW),
    pytest.param({"scale": 1e-4}, id="tiny", marks=SLOW),
]


@pytest.mark.parametrize("criterion", ["max_prob", "entropy", "margin"])
@pytest.mark.parametrize("settings", NETWORKS)
def test_the_budget_is_met_and_the_live_network_stops_alike(settings, criterion, tmp_path):
    network = make_network(**settings)
    x = inputs_of(network)
    cache = extract(network, x, tmp_path)
    policy = ThresholdPolicy(criterion, budget=budget_for(cache, 0.5)).fit(cache.X, cache.y)
    # Logits of a few digits are often tied.
    slack = 5 / N_ROWS if "dtype" in settings else 1 / N_ROWS
    for share in (0.1, 0.5, 0.9):
        moved = policy.with_budget(budget_for(cache, share))
        assert moved.budget - slack <= moved.mean_cost(cache.X) <= moved.budget + 1e-9
        assert_one_rule(network, moved, cache, x)


POLICIES = [
    ThresholdPolicy(schedule="shared"),
    ThresholdPolicy(use_most_confident=True),
    ThresholdPolicy("vote"),
    ThresholdPolicy(OptimalStoppingPolicy(1.0, random_state=0)),
    EENetPolicy(max_epochs=1, random_state=0),
    EENetPolicy(max_epochs=1, confidence_weight=0, random_state=0),
    EMExitAssigner(max_epochs=1, router_input="probabilities", confidence_weight=1, random_state=0),
    JEIGatedEnsemble(random_state=0),
    JEIGatedEnsemble(decision="sampled", random_state=0),
    JEIGatedEnsemble(gate_reading="exit", random_state=0),
    OptimalStoppingPolicy(random_state=0),
    RandomExit(random_state=0),
    StaticExit(0),
]


@pytest.mark.parametrize(
    "settings",
    [{"n_outputs": 2, "scale": 4000.0}, *(pytest.param(s, marks=SLOW) for s in ({}, {"scale": 400.0}))],
    ids=str,
)
@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.filterwarnings("ignore:the mean cost on the fitting data:UserWarning")  # of votes
@pytest.mark.filterwarnings("ignore:some of the budget is left unspent:UserWarning")
def test_every_policy_stops_a_sure_network_alike(policy, settings, tmp_path):
    network = make_network(**settings)
    x = inputs_of(network, 800)
    cache = extract(network, x, tmp_path)
    for share in (0.3, 0.9):
        if hasattr(policy, "budget"):
            policy.set_params(budget=budget_for(cache, share))
        policy.fit(cache.X, cache.y)
        assert_one_rule(network, policy, cache, x)


@pytest.mark.parametrize(
    "policy", [p for p in POLICIES if isinstance(p, EENetPolicy | EMExitAssigner | JEIGatedEnsemble)], ids=str
)
def test_learned_scores_tell_sure_samples_apart(policy, tmp_path):
    """Where probabilities are 1, networks say the same of all samples; the budget is met nonetheless."""
    network = make_network(n_outputs=2, scale=4000.0)
    x = inputs_of(network, 800)
    cache = extract(network, x, tmp_path)
    for share in (0.3, 0.9):
        policy.set_params(budget=budget_for(cache, share)).fit(cache.X, cache.y)
        assert policy.mean_cost(cache.X) == pytest.approx(policy.budget, abs=1 / len(x))


def test_equal_samples_leave_together():
    network = make_network(scale=1.0)
    x = inputs_of(network, step=4.0)  # few different inputs
    x[:300] = 0
    inputs, number = np.unique(x.numpy(), axis=0, return_inverse=True)
    with torch.no_grad():
        first = network[0](torch.from_numpy(inputs))
        logits = [first.numpy()[number], network[1](first).numpy()[number]]
    X, y = stack_exits(logits), np.arange(len(x)) % 3
    for share in (0.1, 0.5, 0.9):
        with pytest.warns(UserWarning, match="tied"):
            policy = ThresholdPolicy(budget=0.5 + 0.5 * share).fit(X, y)
        assert len(set(policy.predict_exit(X)[:300].tolist())) == 1


def test_equal_logits(tmp_path):
    torch.manual_seed(0)
    heads = [nn.Sequential(nn.Linear(8, 3), nn.ReLU()), nn.Sequential(nn.Linear(3, 3), nn.ReLU())]
    network = nn.Sequential(*heads).eval()
    x = torch.randn(N_ROWS, 8)
    batches = list(zip(x.split(256), (torch.arange(N_ROWS) % 3).split(256), strict=True))
    cache = ExitExtractor(network, EXITS, head=EXITS).extract(batches, tmp_path)
    for criterion in ("max_prob", "entropy", "margin"):
        policy = ThresholdPolicy(criterion, budget=budget_for(cache, 0.5)).fit(cache.X, cache.y)
        assert_one_rule(network, policy, cache, x)


@pytest.mark.parametrize("criterion", ["max_prob", "entropy", "margin"])
@pytest.mark.filterwarnings("ignore:the mean cost on the fitting data:UserWarning")
def test_half_precision_of_the_cache(criterion, tmp_path):
    """Among large logits, the digits that the cache has not kept would decide otherwise."""
    network = make_network(10, scale=1.0)
    with torch.no_grad():
        for layer in network:
            layer.bias.add_(500)
    x = inputs_of(network)
    cache = extract(network, x, tmp_path, dtype="float16")
    policy = ThresholdPolicy(criterion, budget=budget_for(cache, 0.5))
    policy.fit(cache.X, cache.y)
    assert 0 < policy.predict_exit(cache.X).mean() < 1
    live = EarlyExitModel(network, EXITS, policy, head=EXITS)
    # A value that lies within rounding of the border between two of half precision may be stored as either.
    assert np.mean(live(x).exits.numpy() == policy.predict_exit(cache.X)) > 0.99


@pytest.mark.parametrize("heads", [ExitHeads(random_state=0), ExitEnsemble()], ids=str)
def test_half_precision_of_features(heads, tmp_path):
    network = make_network(10, scale=1.0)
    with torch.no_grad():
        network[0].bias.add_(500)
    x = inputs_of(network)
    batches = list(zip(x.split(256), network(x).argmax(1).split(256), strict=True))
    cache = ExitExtractor(network, ["0"], dtype="float16").extract(batches, tmp_path)
    fitted = clone(heads).fit(cache.X, cache.y)
    exact = stack_exits(features=[network[0](x).detach().numpy()])
    decision = NetworkDecision([fitted, StaticExit().fit(fitted.transform(cache.X), cache.y)])
    features = decision.transform_features(0, exact.features(0).astype(np.float64))
    # A value that lies within rounding of the border between two of half precision may be stored as either.
    np.testing.assert_allclose(features, cache.X.features(0), rtol=2**-10)
    assert np.mean(features == cache.X.features(0)) > 0.99


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    network = make_network(scale=1.0)
    return extract(network, inputs_of(network), tmp_path_factory.mktemp("cache"))


class TestInputsThatAreNotFinite:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize(
        "policy",
        [
            ThresholdPolicy(budget=0.8),
            ThresholdPolicy("vote", budget=0.8),
            OptimalStoppingPolicy(0.8, random_state=0),
            EENetPolicy(0.8, max_epochs=1, random_state=0),
            RandomExit(0.8, random_state=0),
            StaticExit(0),
            StaticExit(1),
        ],
        ids=str,
    )
    @pytest.mark.filterwarnings("ignore:the mean cost on the fitting data:UserWarning")
    def test_are_refused(self, cache, policy, value):
        network = make_network(scale=1.0)
        x = inputs_of(network, 20)
        live = EarlyExitModel(network, EXITS, policy.fit(cache.X, cache.y), head=EXITS)
        expected = live(x)
        x[13, 2] = value
        with pytest.raises(ValueError, match=r"logits of exit \d, for row 13 of the inputs, contain NaN or infinity"):
            live(x)
        others = torch.arange(20) != 13
        assert torch.equal(live(x[others]).exits, expected.exits[others])  # the cure of the message

    def test_are_refused_by_the_part_that_answers(self, cache):
        network = make_network(scale=1.0)
        x = inputs_of(network, 20)
        policy = ThresholdPolicy(budget=0.9).fit(cache.X, cache.y)
        live = EarlyExitModel(network, EXITS, policy, head=EXITS, example_input=x)
        x[7] = torch.nan
        with pytest.raises(ValueError, match="for row 7 of the inputs"):
            live.truncate(0)(x)
