import re
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from skexit import OptimalStoppingPolicy, ThresholdPolicy
from skexit.backbone import exit_costs
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel
from skexit.training import MultiExitNetwork, joint_cross_entropy

N_CLASSES = 3
EXITS = ["first", "second", "third"]


def make_network():
    torch.manual_seed(0)
    layers = OrderedDict(
        first=nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        second=nn.Sequential(nn.Conv2d(4, 6, 3, stride=2), nn.ReLU()),
        third=nn.Sequential(nn.Conv2d(6, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        classifier=nn.Linear(8, N_CLASSES),
    )
    return nn.Sequential(layers)


def make_data(n_samples, seed=0):
    """Images whose brightness tells the class, more or less."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(N_CLASSES, (n_samples,), generator=generator)
    return torch.randn(n_samples, 1, 9, 9, generator=generator) + y[:, None, None, None], y


def train(model, x, y, n_steps=30):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.train()
    for _ in range(n_steps):
        optimizer.zero_grad()
        joint_cross_entropy(model(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("weights", [None, [0.5, 0, 2.0]])
def test_the_loss_is_the_papers_in_slow_lines(weights):
    rng = np.random.default_rng(0)
    logits, y = rng.normal(size=(3, 7, 4)), rng.integers(4, size=7)
    expected = 0.0
    for k in range(1, 4):
        of_exit = 0.0
        for n in range(7):
            exponentials = [np.exp(value) for value in logits[k - 1, n]]
            of_exit -= np.log(exponentials[y[n]] / sum(exponentials)) / 7
        expected += of_exit * (k / (3 * 4) if weights is None else weights[k - 1])
    loss = joint_cross_entropy([torch.tensor(block) for block in logits], torch.tensor(y), weights)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "weights has shape (1,); pass one weight for each of 2 exits."),
        ([[1.0, 2.0]], "weights has shape (1, 2); pass one weight for each of 2 exits."),
        ([1.0, -1.0], "weights=[1.0, -1.0] must be finite, not negative and not all zero."),
        ([np.inf, 1.0], "weights=[inf, 1.0] must be finite, not negative and not all zero."),
        ([0.0, 0.0], "weights=[0.0, 0.0] must be finite, not negative and not all zero."),
    ],
)
def test_weights_that_are_no_weights_are_refused(weights, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        joint_cross_entropy([torch.zeros(1, 2)] * 2, torch.tensor([0]), weights)


def test_exits_learn_from_the_last_one_in_slow_lines():
    rng = np.random.default_rng(0)
    logits, y = rng.normal(size=(3, 7, 4)), rng.integers(4, size=7)
    softmax = lambda z: np.exp(z) / np.exp(z).sum()  # noqa: E731
    expected, share, T = 0.0, 0.7, 3.0
    for k in range(3):
        for n in range(7):
            hard = -np.log(softmax(logits[k, n])[y[n]])
            soft = -(softmax(logits[2, n] / T) * np.log(softmax(logits[k, n] / T))).sum()
            of_row = hard if k == 2 else (1 - share) * hard + share * T**2 * soft
            expected += (k + 1) / (3 * 4) * of_row / 7
    blocks = [torch.tensor(block) for block in logits]
    loss = joint_cross_entropy(blocks, torch.tensor(y), distillation=share, temperature=T)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_the_last_exit_learns_from_the_targets_alone():
    generator = torch.Generator().manual_seed(0)
    blocks = [torch.randn(5, 3, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
    targets = torch.tensor([0, 1, 2, 0, 1])
    (plain,) = torch.autograd.grad(joint_cross_entropy(blocks, targets), blocks[1])
    (distilled,) = torch.autograd.grad(joint_cross_entropy(blocks, targets, distillation=0.9), blocks[1])
    torch.testing.assert_close(distilled, plain)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"distillation": 1.5}, "distillation=1.5 must be a share of the loss, from 0 to 1."),
        ({"distillation": np.nan}, "distillation=nan must be a share of the loss, from 0 to 1."),
        ({"temperature": 0}, "temperature=0 must be positive and finite."),
    ],
)
def test_a_distillation_that_cannot_be_is_refused(parameters, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        joint_cross_entropy([torch.zeros(1, 2)] * 2, torch.tensor([0]), **parameters)


def test_a_loss_of_no_exits_is_refused():
    with pytest.raises(ValueError, match=r"^logits is empty; give the logits of at least one exit\.$"):
        joint_cross_entropy([], torch.tensor([0]))


def test_logits_are_those_of_the_heads_on_what_extraction_keeps(tmp_path):
    network, (x, y) = make_network(), make_data(20)
    model = MultiExitNetwork(network, EXITS, x[:1], pool=("avg", "max")).eval()
    logits = model(x)
    features = ExitExtractor(network, EXITS, pool=("avg", "max")).extract([(x, y)], tmp_path).X
    for k in range(2):
        expected = model.heads[k](torch.as_tensor(features.features(k)))
        torch.testing.assert_close(logits[k], expected)
    torch.testing.assert_close(logits[2], network(x))


@pytest.mark.parametrize("k", range(3))
def test_the_loss_of_an_exit_trains_its_head_and_what_leads_to_it(k):
    x, y = make_data(20)
    model = MultiExitNetwork(make_network(), EXITS, x[:1])
    joint_cross_entropy(model(x), y, weights=np.eye(3)[k]).backward()
    reached = {name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()}
    modules = {".".join(name.split(".")[:2]) for name in reached}
    before = {f"network.{name}" for name in EXITS[: k + 1]}
    assert modules == before | {f"heads.{k}" if k < 2 else "network.classifier"}


def test_joint_training_reaches_everything():
    x, y = make_data(20)
    model = MultiExitNetwork(make_network(), EXITS, x[:1])
    joint_cross_entropy(model(x), y).backward()
    assert all(value.grad is not None and value.grad.any() for value in model.heads.parameters())
    assert all(value.grad is not None for value in model.network.parameters())


def test_a_frozen_network_trains_its_heads_only():
    network, (x, y) = make_network(), make_data(60)
    before = {name: value.clone() for name, value in network.named_parameters()}
    model = MultiExitNetwork(network.requires_grad_(False), EXITS, x[:1])
    joint_cross_entropy(model(x), y).backward()
    assert all(value.grad is not None for value in model.heads.parameters())
    assert all(value.grad is None for value in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.named_parameters())


def test_making_it_leaves_the_network_as_it_was():
    network, (x, _) = make_network(), make_data(20)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    model = MultiExitNetwork(network, EXITS, x)
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    model(x)
    assert not any(module._forward_hooks for module in network.modules())


def test_extraction_finds_the_logits_of_all_exits(tmp_path):
    x, y = make_data(20)
    model = MultiExitNetwork(make_network(), EXITS, x[:1]).eval()
    cache = ExitExtractor(model, model.exits, head=model.head).extract([(x, y)], tmp_path)
    for k, logits in enumerate(model(x)):
        np.testing.assert_allclose(cache.X.logits(k), logits.detach(), atol=1e-6)


def test_costs_are_those_of_the_network_and_the_heads_so_far():
    x, _ = make_data(2)
    network = make_network()
    model = MultiExitNetwork(network, EXITS, x)
    heads = np.cumsum([2 * head.weight.numel() for head in model.heads] + [0])
    found = exit_costs(model, model.exits, x, head=model.head)
    np.testing.assert_array_equal(found.costs, exit_costs(network, EXITS, x).costs + heads)


@pytest.mark.parametrize("policy", [ThresholdPolicy(budget=0.6), OptimalStoppingPolicy(0.6, random_state=0)])
def test_from_training_to_the_live_network(policy, tmp_path):
    x, y = make_data(300)
    model = MultiExitNetwork(make_network(), EXITS, x[:1])
    train(model, x, y)
    extractor = ExitExtractor(model, model.exits, head=model.head)
    new, y_new = make_data(200, seed=1)
    cache = extractor.extract([(new, y_new)], tmp_path / "cache")
    assert cache.layout.n_logits == (3, 3, 3)
    policy.fit(cache.X, cache.y)
    assert policy.score(cache.X, cache.y) > 0.8
    assert len(np.unique(policy.predict_exit(cache.X))) > 1
    live = EarlyExitModel(model, model.exits, policy, head=model.head, example_input=new[:1])
    # On other rows than those that were fitted.
    others, y_others = make_data(400, seed=2)
    X = extractor.extract([(others, y_others)], tmp_path / "others").X
    labels, _, exits = live(others)
    is_clear = (np.abs(policy.exit_scores(X) - policy.thresholds_) > 1e-8).all(axis=1)
    assert is_clear.mean() > 0.95  # else nothing would be compared
    np.testing.assert_array_equal(labels[is_clear], policy.predict(X)[is_clear])
    np.testing.assert_array_equal(exits[is_clear], policy.predict_exit(X)[is_clear])


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.classifier = nn.Embedding(9, 5), nn.Linear(5, 5), nn.Linear(5, N_CLASSES)

    def forward(self, input_ids, attention_mask):
        x = self.mix(self.embed(input_ids))
        return {"logits": self.classifier(x[:, 0])}


def test_masked_tokens_do_not_count():
    torch.manual_seed(0)
    tokens = {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    model = MultiExitNetwork(Tokens(), ["embed", "mix"], tokens, pool="mean")
    other = tokens | {"input_ids": torch.tensor([[1, 2, 8]])}
    torch.testing.assert_close(model(**tokens)[0], model(**other)[0])


@pytest.mark.parametrize(
    ("exits", "message"),
    [
        (["second", "first"], "exits=['second', 'first'] are not in forward order"),
        (["first", "nowhere"], "exits names 'nowhere', which the network does not have"),
    ],
)
def test_exits_that_are_none_are_refused(exits, message):
    x, _ = make_data(2)
    with pytest.raises(ValueError, match=re.escape(message)):
        MultiExitNetwork(make_network(), exits, x)


def test_a_network_without_logits_is_refused():
    network, (x, _) = make_network()[:2], make_data(2)
    message = r"^Sequential gave Tensor of shape \(2, 6, 4, 4\), which has no logits of shape \(n_samples, n_classes\)"
    with pytest.raises(ValueError, match=message):
        MultiExitNetwork(network, ["first", "second"], x)
