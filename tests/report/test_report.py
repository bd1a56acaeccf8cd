"""The report: what it says is what is computed otherwise, and it stands alone."""

import base64
import re
import struct
import sys
from html.parser import HTMLParser

import matplotlib.pyplot
import numpy as np
import pytest
import torch
from instances import make_exits
from scipy.stats import beta
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from skexit import ExitHeads, RandomExit, StaticExit, ThresholdPolicy, oracle, recommended_pipeline, stack_exits
from skexit.cache import CacheWriter
from skexit.cli import main
from skexit.extraction import ExitExtractor
from skexit.metrics import OracleRegret, bootstrap_interval, daily_savings
from skexit.policies._access import check_fits
from skexit.report import write_report
from skexit.report._measures import Measured, difference_interval, is_within, mean_interval
from skexit.runtime import EarlyExitModel
from skexit.uncertainty import coverage_score, expected_calibration_error, inefficiency_score

matplotlib.use("Agg")


class Page(HTMLParser):
    """Tables, pictures, paragraphs and tags of a page; tags must be closed in order."""

    def __init__(self, path):
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.tables, self.images, self.open, self.tags, self.text = [], [], [], set(), []
        self.marked, self.buttons = [], []
        self.feed(self.html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "img":
            self.images.append(dict(attributes))
        elif tag == "input":
            self.buttons.append(dict(attributes))
        elif tag != "meta":
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
            if dict(attributes).get("class") == "best":
                self.marked.append(self.tables[-1][-1])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif self.open and self.open[-1] != "style":
            self.text.append(data.replace("\xa0", " "))

    def table(self, heading):
        """The rows of the first table with this heading of its first column."""
        return next(table for table in self.tables if table[0][0] == heading)

    def says(self, text):
        return any(text in piece for piece in self.text)


@pytest.fixture(scope="module")
def data():
    X, y = make_exits(n_samples=500, n_exits=3, n_classes=3, random_state=0)
    layout = X.layout.replace(costs=[1e6, 3e6, 4e6], cost_unit="FLOPs")
    return X.with_layout(layout), y


@pytest.fixture(scope="module")
def policy(data):
    X, y = data
    return ThresholdPolicy(budget=0.6).fit(X[:200], y[:200])


def percent(value):
    return f"{100 * value:.1f} %"


def correct_rows(policy, X, y):
    return policy.predict(X) == y


def binomial_interval(correct):
    """Clopper and Pearson's, from the beta distribution."""
    right, wrong = correct.sum(), (~correct).sum()
    return beta.ppf(0.025, right, wrong + 1), beta.ppf(0.975, right + 1, wrong)


def difference_by_normal(first, second):
    """The normal interval of a paired difference, of the rows and two more that differ in each way."""
    differences = np.concatenate([first.astype(float) - second, [1, -1]])
    half = 1.959964 * differences.std() / np.sqrt(len(differences))
    return differences.mean() - half, differences.mean() + half


def test_figures_of_the_policies(data, policy, tmp_path):
    X, y = data[0][200:], data[1][200:]
    chance = RandomExit(budget=0.6, random_state=0).fit(*data)
    path = write_report(X, y, {"sure": policy, "chance": chance}, tmp_path / "r.html", budgets=[0.5, 0.8])
    page = Page(path)

    rows = {row[0]: row for row in page.table("Policy")[1:]}
    bound = oracle(X, y)
    for name, base in (("sure", policy), ("chance", chance)):
        for budget in (0.5, 0.8):
            at_budget = base.with_budget(budget)
            cost, accuracy = at_budget.mean_cost(X), at_budget.score(X, y)
            low, high = binomial_interval(correct_rows(at_budget, X, y))
            assert rows[f"{name} at {100 * budget:.0f} %"][1:] == [
                percent(cost),
                percent(accuracy),
                f"{100 * low:.1f} to {100 * high:.1f} %",
                f"{1 / cost:.2f}",
                percent(budget),
                f"{100 * (bound.accuracy - accuracy):.1f}",
                f"{100 * (cost - bound.mean_cost):.1f}",
            ]
    for k in range(3):
        assert rows[f"all at exit {k}"][1:3] == [
            percent(X.layout.cost_fractions[k]),
            percent(StaticExit(k).fit(X, y).score(X, y)),
        ]
    assert rows["oracle"][1:3] == [percent(bound.mean_cost), percent(bound.accuracy)]

    best = policy.with_budget(0.5)
    assert page.says(
        f"Within 50.0 % of the plain network's cost, sure at 50 % is the most accurate: {percent(best.score(X, y))}"
    )
    assert page.says("Within 80.0 % of the plain network's cost, ")
    assert page.says(f"a speedup of {1 / best.mean_cost(X):.2f} in FLOPs")
    whole = StaticExit().fit(X, y)
    difference = whole.score(X, y) - best.score(X, y)
    low, high = difference_by_normal(correct_rows(whole, X, y), correct_rows(best, X, y))
    assert page.says(
        f"The plain network has {percent(whole.score(X, y))}, {100 * abs(difference):.1f} points "
        f"{'more' if difference >= 0 else 'less'} than the policy (95 % interval of the difference {100 * low:+.1f} to "
        f"{100 * high:+.1f})"
    )
    assert page.marked[0][0] == "sure at 50 %"


def run_plain(network, x):
    """Answers of the network, and what it takes, counted by torch."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        answers = network(x)
    return answers, counter.get_total_flops()


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    """A network of four stages, exits and inputs; the first half of the rows and their labels; the other half."""
    torch.manual_seed(0)
    stages = [nn.Sequential(nn.Conv2d(c, w, 3, padding=1), nn.ReLU()) for c, w in [(1, 8), (8, 8), (8, 12), (12, 12)]]
    network = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)).eval()
    x, exits = torch.randn(300, 1, 4, 4), ["0", "1", "2", "3"]
    noise = 0.1 * torch.randn(300, 3)
    y = (network(x) - network(x).mean(0) + noise).argmax(1).numpy()
    cache = ExitExtractor(network, exits).extract([(x, torch.as_tensor(y))], tmp_path_factory.mktemp("c") / "cache")
    return network, exits, x[150:], (cache.X[:150], y[:150]), (cache.X[150:], y[150:])


def with_trained_heads(X, y):
    return recommended_pipeline(0.5, heads=ExitHeads((16,), cascade=True, max_epochs=2, random_state=0).fit(X, y))


@pytest.mark.parametrize(
    "make",
    [
        with_trained_heads,
        lambda X, y: ThresholdPolicy(budget=0.6, heads=ExitHeads((16,), max_epochs=2, distillation=0, random_state=0)),
        lambda X, y: make_pipeline(
            ExitHeads((16,), max_epochs=2, distillation=0, random_state=0), ThresholdPolicy(budget=1.0)
        ),
    ],
    ids=["ensemble", "heads", "all of the budget"],
)
@pytest.mark.filterwarnings("ignore:the fitted temperature lies at the bound")  # of a network that nobody trained
def test_a_speedup_is_over_the_network_without_exits(extracted, make, tmp_path):
    """As torch counts the operations of the two networks."""
    network, exits, x, fitting, (X, y) = extracted
    fitted = make(*fitting).fit(*fitting)
    plain, plain_flops = run_plain(network, x)
    live_flops = run_plain(EarlyExitModel(network, exits, fitted, example_input=x[:1]), x)[1]
    page = Page(write_report(X, y, {"a": fitted}, tmp_path / "r.html"))
    rows = {row[0]: dict(zip(page.table("Policy")[0], row, strict=True)) for row in page.table("Policy")}
    assert float(rows["a"]["Speedup"]) == pytest.approx(plain_flops / live_flops, rel=0.02)
    assert float(rows["a"]["Mean cost"].split()[0]) == pytest.approx(100 * live_flops / plain_flops, rel=0.02)
    # The network is a row of its own, and is what the policy is compared with.
    accuracy = (plain.argmax(1).numpy() == y).mean()
    assert [rows["the plain network"][name] for name in ("Mean cost", "Accuracy", "Speedup")] == [
        "100.0 %",
        percent(accuracy),
        "1.00",
    ]
    assert page.says(f"The plain network has {percent(accuracy)}")
    policy = fitted[-1] if isinstance(fitted, Pipeline) else fitted
    shares = policy.layout_.head_fractions
    costs = next(table for table in page.tables if table[0][1] == "Cost (FLOPs)")
    assert [row[3] for row in costs] == ["Of which heads", *map(percent, shares), ""]
    assert costs[-1] == ["the plain network", f"{plain_flops // len(x):,}", "100.0 %", ""]
    stops = policy.predict_exit(X if policy is fitted else fitted[:-1].transform(X))
    assert rows["a"]["Of which heads"] == percent(shares[stops].mean())
    assert page.says(f"{percent(shares[stops].mean())} of it for heads: a speedup of")


def test_without_the_networks_answers_it_is_not_spoken_of(tmp_path):
    X, y = make_exits(n_samples=200, n_exits=2, n_classes=3, random_state=0)
    features = stack_exits(features=[X.features(k) for k in range(2)], costs=[100, 1000], cost_unit="FLOPs")
    policy = ThresholdPolicy(budget=0.6).fit(features, y)
    for rows in (features, np.asarray(features)):
        page = Page(write_report(rows, y, {"a": policy}, tmp_path / "r.html"))
        assert not page.says("The plain network has")
        assert page.says("With all samples at the last exit, at a cost of 104.8 %, 4.8 % of it for heads, there is")
        assert "the plain network" not in [row[0] for row in page.table("Policy")]


def test_exits_classes_and_costs(data, policy, tmp_path):
    X, y = data[0][200:], data[1][200:]
    page = Page(write_report(X, y, {"sure": policy}, tmp_path / "r.html", source="a test"))
    exits, correct = policy.predict_exit(X), correct_rows(policy, X, y)
    for k, row in enumerate(page.table("Exit")[1:4]):
        leaves = exits == k
        everyone = np.argmax(X.logits(k), axis=1) == y
        values = leaves.mean(), X.layout.cost_fractions[k], correct[leaves].mean(), everyone.mean()
        assert row == [f"exit {k}", *map(percent, values)]
    assert page.table("Exit")[4] == ["total", "100.0 %", percent(policy.mean_cost(X)), *[percent(correct.mean())] * 2]
    for label, row in enumerate(page.table("Class")[1:]):
        own = y == label
        shares = [percent(np.mean(exits[own] == k)) for k in range(3)]
        cost = X.layout.cost_fractions[exits[own]].mean()
        assert row == [str(label), str(own.sum()), percent(correct[own].mean()), percent(cost), *shares]
    costs = next(table for table in page.tables if table[0][1] == "Cost (FLOPs)")
    assert costs[1:] == [
        ["exit 0", "1,000,000", "25.0 %"],
        ["exit 1", "3,000,000", "75.0 %"],
        ["exit 2", "4,000,000", "100.0 %"],
    ]
    assert page.says("300, with labels, of a test")
    assert page.says("Of these policies, sure is the most accurate")
    assert page.says("none was set")
    assert page.says("ThresholdPolicy(budget=0.6)")


@pytest.mark.parametrize("unit", ["FLOPs", "ms"])
def test_the_page_begins_with_what_is_saved_and_lost(data, unit, tmp_path):
    X, y = data
    X = X.with_layout(X.layout.replace(costs=[1, 3, 4], cost_unit=unit, network_cost=4))
    policy = ThresholdPolicy(budget=0.6).fit(X, y)
    page = Page(write_report(X, y, {"sure": policy}, tmp_path / "r.html"))
    network = np.mean(np.argmax(X.logits(2), axis=1) == y)
    saved, lost = 1 - policy.mean_cost(X), network - policy.score(X, y)
    time = f" and {4 * saved:.3g} ms per sample" if unit == "ms" else ""
    change = "loses" if lost >= 0 else "gains"
    assert page.says(
        f"sure saves {percent(saved)} of compute{time}, and {change} {100 * abs(lost):.1f} points of accuracy"
    )
    assert page.says("compared with the plain network.")
    expensive = X.with_layout(X.layout.replace(costs=[1, 3, 5], network_cost=4))
    page = Page(write_report(expensive, y, {"last": StaticExit(2).fit(expensive, y)}, tmp_path / "r.html"))
    assert page.says("last costs 25.0 % of compute more")
    assert page.says("compared with the last exit.")


def test_every_budget_can_be_selected_without_a_script(data, tmp_path):
    X, y = data[0][200:], data[1][200:]
    policies = {"sure": ThresholdPolicy(budget=0.6).fit(*data), "static": StaticExit(1).fit(*data)}
    page = Page(write_report(X, y, policies, tmp_path / "r.html", budgets=[0.62]))
    assert "script" not in page.tags
    # From the cost of the first exit, a quarter of the network, in steps of 5 %, and the budget that was asked about.
    budgets = [25, 30, 35, 40, 45, 50, 55, 60, 62, 65, 70, 75, 80, 85, 90, 95, 100]
    labels = re.findall(r'<label for="(.*?)">(.*?)</label>', page.html)
    assert [text for _, text in labels] == [f"{budget} %" for budget in budgets]
    assert [name for name, _ in labels] == [button["id"] for button in page.buttons]
    assert len({button["name"] for button in page.buttons}) == 1
    assert [label for button, label in zip(page.buttons, budgets, strict=True) if "checked" in button] == [62]
    network = np.argmax(X.logits(2), axis=1) == y
    for row, budget in zip(page.table("Budget")[1:], budgets, strict=True):
        own = policies["sure"].with_budget(budget / 100)
        allowed = [each for each in (own, policies["static"]) if each.mean_cost(X) <= budget / 100 + 1e-9]
        if row[1] == "none within it" or own not in allowed:  # by chance; see the tests of budgets that are met
            continue
        best = max(allowed, key=lambda each: each.score(X, y))
        right = correct_rows(best, X, y)
        low, high = difference_by_normal(right, network)
        assert row == [
            f"{budget} %",
            "sure" if best is own else "static",
            percent(best.mean_cost(X)),
            percent(right.mean()),
            f"{100 * (right.mean() - network.mean()):+.1f}",
            f"{100 * low:+.1f} to {100 * high:+.1f}",
        ]
    # Policies have a row of the table as they were asked about; the selectable budgets do not fill it.
    assert [row[0] for row in page.table("Policy")[1:]][:2] == ["sure at 62 %", "static"]


def test_without_budgets_policies_are_selected_as_they_were_fitted(data, policy, tmp_path):
    X, y = data
    page = Page(write_report(X, y, {"sure": policy}, tmp_path / "r.html"))
    assert "checked" in page.buttons[0]
    assert re.findall(r"<label .*?>(.*?)</label>", page.html)[:2] == ["as fitted", "25 %"]
    shipped = policy.without_fit_state()
    for fixed in (shipped, StaticExit(1).fit(X, y)):
        page = Page(write_report(X, y, {"fixed": fixed}, tmp_path / "r.html"))
        assert page.buttons == []
        assert page.says("Of these policies, fixed is the most accurate")


def test_savings_of_a_day(data, policy, tmp_path):
    X, y = data
    page = Page(write_report(X, y, {"sure": policy}, tmp_path / "r.html"))
    shares = np.bincount(policy.predict_exit(X), minlength=3) / len(y)
    savings = daily_savings(policy.costs_, shares, samples_per_day=1e6, network_cost=4e6)
    assert page.says(f"{percent(savings.compute)}, {savings.operations:.3g} FLOPs")
    assert page.says("For hours and money, give network_ms and price_per_hour")
    assert not page.says("Hours saved")
    given = {"samples_per_day": 2e6, "network_ms": 20, "price_per_hour": 0.5}
    page = Page(write_report(X, y, {"sure": policy}, tmp_path / "r.html", **given))
    savings = daily_savings(policy.costs_, shares, **given)
    for text in (
        "2,000,000",
        f"{savings.hours:,.2f}",
        f"{savings.money:,.2f}",
        "early exits save less time than operations",
    ):
        assert page.says(text)
    assert page.says(f"of compute and about {20 * savings.compute:.3g} ms per sample")
    timed = X.with_layout(X.layout.replace(costs=[5, 15, 20], cost_unit="ms", network_cost=20))
    own = ThresholdPolicy(budget=0.6).fit(timed[:200], y[:200])
    page = Page(write_report(timed, y, {"sure": own}, tmp_path / "r.html"))
    assert page.says("Hours are computed from the milliseconds of each exit")
    with pytest.raises(ValueError, match="samples_per_day=-1 must be a finite number of at least 0"):
        write_report(X, y, {"sure": policy}, tmp_path / "s.html", samples_per_day=-1)
    assert not (tmp_path / "s.html").exists()


def test_intervals_are_those_of_the_bootstrap():
    rng = np.random.default_rng(0)
    nothing = np.zeros(400, dtype=int)
    rows = [rng.random(400) < accuracy for accuracy in (0.9, 0.85)]
    first, second = (Measured("a", None, nothing, own, 0, 0, (0, 0), (0, 0), OracleRegret(0, 0)) for own in rows)
    drawn = bootstrap_interval(lambda a, b: a.mean() - b.mean(), *rows, method="difference", random_state=0)
    assert difference_interval(first, second) == pytest.approx(drawn, abs=0.005)
    costs = rng.choice([0.25, 1.0], 400)
    drawn = bootstrap_interval(np.mean, costs, method="percentile", random_state=0)
    assert mean_interval(costs) == pytest.approx(drawn, abs=0.005)
    assert mean_interval(costs[:1]) == (costs[0], costs[0])


def test_narrow_screens_and_dark_ones(data, policy, tmp_path):
    """Each cell of a wide table has the name of its column, which a narrow screen shows in place of the first row."""
    page = Page(write_report(*data, {"sure": policy}, tmp_path / "r.html"))
    assert "prefers-color-scheme: dark" in page.html
    assert '<td data-column="Mean cost">' in page.html
    wide = re.findall(r'<table class="cards">(.*?)</table>', page.html, re.DOTALL)
    assert len(wide) == len([table for table in page.tables if len(table[0]) > 3])
    for content in wide:
        columns = re.findall("<th>(.*?)</th>", content)
        assert re.findall('data-column="(.*?)"', content) == columns * (content.count("<tr") - 1)


def test_the_page_stands_alone(data, policy, tmp_path):
    figures = matplotlib.pyplot.get_fignums()
    page = Page(write_report(*data, {"sure": policy}, tmp_path / "r.html"))
    assert page.tags.isdisjoint({"script", "link", "iframe", "object", "a"})
    assert re.findall(r"(?:https?:|url\(|@import)", page.html) == []
    assert len(page.images) == 4
    for image in page.images:
        assert image["alt"]
        assert image["src"].startswith("data:image/png;base64,")
        content = base64.b64decode(image["src"].partition(",")[2])
        assert content.startswith(b"\x89PNG")
        assert struct.unpack(">I", content[16:20]) == (960,)
    assert matplotlib.pyplot.get_fignums() == figures


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", '"><img src=x>', "$\\frac{$ & <b>", "_hidden", "$body ${title}"]
)
def test_names_are_text(data, policy, name, tmp_path):
    X, y = data
    names = np.array(["<i>cat</i>", "dog & co", "$x"])
    X = X.with_layout(X.layout.replace(classes=sorted(names)))
    named = ThresholdPolicy(budget=0.6).fit(X, np.sort(names)[y])
    page = Page(write_report(X, np.sort(names)[y], {name: named}, tmp_path / "r.html", source=name))
    assert page.tags.isdisjoint({"script", "b", "i"})
    assert len(page.images) == 4
    assert name in [row[0] for row in page.table("Policy")]
    assert [row[0] for row in page.table("Class")[1:]] == sorted(names)
    assert page.says(f"of {name}")
    dear = {name: StaticExit().fit(X, np.sort(names)[y])}
    page = Page(write_report(X, np.sort(names)[y], dear, tmp_path / "r.html", budgets=[0.5]))
    assert page.tags.isdisjoint({"script", "b", "i"})
    assert len(page.images) == 4
    assert page.says(f"The cheapest, {name}, costs 100.0 %")


def test_nothing_within_the_budget(data, tmp_path):
    X, y = data
    static = {"dear": StaticExit(2).fit(X, y), "less": StaticExit(1).fit(X, y)}
    page = Page(write_report(X, y, static, tmp_path / "r.html", budgets=[0.5, 0.75]))
    assert page.says("No policy stays within 50.0 % of the plain network's cost.")
    assert page.says("The cheapest, less, costs 75.0 %.")
    assert page.says("Within 75.0 % of the plain network's cost, less is the most accurate")
    assert page.says("Exits of less")
    page = Page(write_report(X, y, static, tmp_path / "r.html", budgets=[0.5]))
    accuracies = {name: each.score(X, y) for name, each in static.items()}
    assert page.says(f"Exits of {max(accuracies, key=accuracies.get)}")


def test_a_cost_above_the_budget_by_chance_counts_and_more_does_not(data, tmp_path):
    X, y = data
    policy = ThresholdPolicy(budget=0.5).fit(X, y)
    exits = policy.predict_exit(X)
    # Rows that cost a little more than those that were fitted, and rows that cost much more.
    late, early = np.flatnonzero(exits == 2), np.flatnonzero(exits == 0)
    little, much = np.concatenate([np.arange(500), late[:10]]), np.concatenate([early[:5], late])
    assert policy.mean_cost(X[little]) > 0.5
    page = Page(write_report(X[little], y[little], {"sure": policy}, tmp_path / "r.html", budgets=[0.5]))
    assert page.says("Within 50.0 % of the plain network's cost, sure at 50 % is the most accurate")
    assert page.says("The policy was set to 50.0 %; on these rows its cost is above the budget by no more than chance")
    page = Page(write_report(X[much], y[much], {"sure": policy}, tmp_path / "r.html", budgets=[0.5]))
    assert page.says("No policy stays within 50.0 %")


def test_the_best_single_exit_may_be_cheap_and_a_budget_may_be_named_twice(data, tmp_path):
    X, y = data
    logits = np.stack([np.eye(3)[(y + shift * (np.arange(500) % 2)) % 3] for shift in (0, 1, 0)], axis=1)
    X = stack_exits(logits + np.random.default_rng(0).uniform(0, 0.1, size=logits.shape))
    policy = ThresholdPolicy(budget=0.9).fit(X, y)
    page = Page(write_report(X, y, {"a": policy}, tmp_path / "r.html", budgets=[0.9, 0.9]))
    assert page.says("Without a policy, all at exit 0, at a cost of 33.3 %, has 100.0 %")
    assert [row[0] for row in page.table("Policy")[1:3]] == ["a at 90 %", "all at exit 0"]


@pytest.mark.parametrize(
    ("budget_set", "cost", "lowest", "expected"),
    [
        (None, 0.5, 0.49, True),
        (None, 0.51, 0.49, False),  # nobody said that it would cost less
        (0.5, 0.51, 0.49, True),
        (0.4, 0.51, 0.49, True),
        (0.5, 0.53, 0.51, False),  # more than chance
        (0.52, 0.51, 0.49, False),  # set to more
        (0.9, 0.4, 0.39, True),
    ],
)
def test_within_the_budget(budget_set, cost, lowest, expected):
    nothing = np.zeros(1, dtype=int)
    interval = lowest, 2 * cost - lowest
    measured = Measured("a", budget_set, nothing, nothing == 0, 0.9, cost, (0.8, 1.0), interval, OracleRegret(0.1, 0.1))
    assert is_within(measured, 0.5) is expected


def test_calibration_on_one_half(data, policy, tmp_path):
    X, y = data[0][200:], data[1][200:]
    page = Page(write_report(X, y, {"sure": policy}, tmp_path / "r.html", random_state=3))
    from sklearn.model_selection import train_test_split

    calibration, rest = train_test_split(np.arange(300), test_size=0.5, random_state=3)
    calibrated = ThresholdPolicy(budget=0.6).fit(data[0][:200], data[1][:200]).calibrate(X[calibration], y[calibration])
    errors = [
        expected_calibration_error(y[rest], each.predict_proba(X[rest]), n_bins=10, strategy="uniform")
        for each in (policy, calibrated)
    ]
    assert [row[1] for row in page.table("Calibration error")[1:]] == [f"{100 * error:.1f}" for error in errors]
    sets = [calibrated.predict_set(X[rest], alpha) for alpha in (0.1, 0.05, 0.01)]
    expected = [[percent(coverage_score(y[rest], own)), f"{inefficiency_score(own):.2f}"] for own in sets]
    assert [row[1:] for row in page.table("Requested coverage")[1:]] == expected
    assert page.says("calibrated on 150 of the rows, drawn at random, and measured on the other 150")
    np.testing.assert_array_equal(policy.temperatures_, 1)


def test_a_calibrated_policy_is_measured_as_it_is(data, tmp_path):
    X, y = data
    policy = ThresholdPolicy(budget=0.6).fit(X[:200], y[:200]).calibrate(X[200:300], y[200:300])
    X, y = X[300:], y[300:]
    error = expected_calibration_error(y, policy.predict_proba(X), n_bins=10, strategy="uniform")
    for budgets in ([], [0.6]):
        page = Page(write_report(X, y, {"sure": policy}, tmp_path / "r.html", budgets=budgets))
        assert page.table("Calibration error")[1:] == [["as it was calibrated", f"{100 * error:.1f}"]]
        assert page.says("was calibrated before it was saved")
    page = Page(write_report(X, y, {"sure": policy}, tmp_path / "r.html", budgets=[0.5]))
    assert page.says("The policy is not calibrated.")


def test_few_rows_and_absent_classes(data, policy, tmp_path):
    X, y = data
    rows = np.flatnonzero(y < 2)[:39]
    page = Page(write_report(X[rows], y[rows], {"sure": policy}, tmp_path / "r.html"))
    assert page.says("There are too few rows to calibrate on one half")
    assert [row[0] for row in page.table("Class")[1:]] == ["0", "1"]
    assert len(page.images) == 2


def test_many_classes_are_folded(tmp_path):
    X, y = make_exits(n_samples=600, n_exits=2, n_classes=40, random_state=0)
    policy = StaticExit().fit(X, y)
    page = Page(write_report(X, y, {"last": policy}, tmp_path / "r.html"))
    accuracies = [policy.score(X[y == label], y[y == label]) for label in range(40)]
    worst = page.table("Class")[1:]
    assert [row[0] for row in worst] == [str(label) for label in np.argsort(accuracies, kind="stable")[:10]]
    assert page.says("All 40 classes")
    assert len([table for table in page.tables if table[0][0] == "Class"][1]) == 41


def test_bad_input(data, policy, tmp_path, monkeypatch):
    X, y = data
    out = tmp_path / "r.html"
    with pytest.raises(ValueError, match="y is None: a report needs the labels of the rows"):
        write_report(X, None, {"a": policy}, out)
    with pytest.raises(ValueError, match="policies is empty; give at least one fitted policy"):
        write_report(X, y, {}, out)
    with pytest.raises(ValueError, match=r"budget=50 must be in \(0, 1\]: it is a fraction of the network's cost"):
        write_report(X, y, {"a": StaticExit().fit(X, y)}, out, budgets=[50])
    with pytest.raises(ValueError, match=r"is below the cost of the first exit, 0\.25 of the network's"):
        write_report(X, y, {"a": policy}, out, budgets=[0.1])
    with pytest.raises(
        ValueError, match="the policy 'a' does not fit the rows: LogisticRegression is not an exit policy"
    ):
        write_report(X, y, {"a": LogisticRegression()}, out)
    with pytest.raises(ValueError, match="the policy 'a' does not fit the rows: y has the class 7"):
        write_report(X, np.where(y == 0, 7, y), {"a": policy}, out)
    with pytest.raises(ValueError, match=r"the policy 'a' does not fit the rows: .*not fitted yet"):
        write_report(X, y, {"a": ThresholdPolicy()}, out)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*absent"):
        write_report(X, y, {"a": policy}, tmp_path / "absent" / "r.html")
    with pytest.raises(IsADirectoryError, match=r"^out='.*' is a folder; give the name of a file, such as"):
        write_report(X, y, {"a": policy}, tmp_path)
    for policies in (policy, [policy]):
        with pytest.raises(TypeError, match="; give a dict of names and fitted policies, such as"):
            write_report(X, y, policies, out)
    for budgets in (0.5, "0.5"):
        with pytest.raises(ValueError, match=rf"^budgets={budgets!r} must be a list of budgets, such as \[0.5\]\.$"):
            write_report(X, y, {"a": policy}, out, budgets=budgets)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(
        ImportError, match=r"^plots need matplotlib, which is not installed: pip install 'skexit\[plot\]'$"
    ):
        write_report(X, y, {"a": policy}, out)
    assert not out.exists()


def test_a_pipeline_on_a_frame(data, policy, tmp_path):
    X, y = data
    frame = X.to_frame()
    pipeline = Pipeline([("nothing", FunctionTransformer()), ("policy", ThresholdPolicy(budget=0.6))])
    pipeline.fit(frame[:200], y[:200])
    check_fits(pipeline, frame, y)
    page = Page(write_report(frame[200:], y[200:], {"sure": pipeline}, tmp_path / "r.html"))
    expected = Page(write_report(X[200:], y[200:], {"sure": policy}, tmp_path / "s.html"))
    assert page.table("Policy") == expected.table("Policy")


@pytest.fixture
def saved(data, policy, tmp_path, monkeypatch):
    """A folder with a cache, one without labels, and policies."""
    import joblib

    X, y = data
    monkeypatch.chdir(tmp_path)
    for name, labels in (("cache", y), ("unlabelled", None)):
        with CacheWriter(name, X.layout, origin={"model": "a test"}) as writer:
            writer.append([X.logits(k) for k in range(3)], [X.features(k) for k in range(3)], labels)
    joblib.dump(policy, "sure.joblib")
    joblib.dump(Pipeline([("policy", StaticExit(1).fit(X, y))]), "static.joblib")
    joblib.dump(ThresholdPolicy(layout=2).fit(np.asarray(X)[:, :4], y), "other.joblib")
    joblib.dump(LogisticRegression(), "regression.joblib")
    (tmp_path / "damaged.joblib").write_bytes((tmp_path / "sure.joblib").read_bytes()[:100])
    return tmp_path


def test_command(saved, data, policy, capsys):
    command = [
        "report",
        "cache",
        "sure.joblib",
        "static.joblib",
        "--budget",
        "0.6",
        "--budget",
        "0.9",
        "--out",
        "x.html",
    ]
    assert main(command) == 0
    assert capsys.readouterr().out == "x.html\n"
    page = Page(saved / "x.html")
    assert page.says("500, with labels, of the cache 'cache'")
    names = {row[0] for row in page.table("Policy")[1:]}
    assert {"sure at 60 %", "sure at 90 %", "static"} < names
    assert main(["report", "cache", "sure.joblib"]) == 0
    rows = Page(saved / "report.html").table("Policy")
    assert rows[1][:3] == ["sure", percent(policy.mean_cost(data[0])), percent(policy.score(*data))]


def test_files_of_one_name_keep_their_folders(saved):
    (saved / "folder").mkdir()
    (saved / "folder" / "sure.joblib").write_bytes((saved / "sure.joblib").read_bytes())
    assert main(["report", "cache", "sure.joblib", "folder/sure.joblib"]) == 0
    assert {row[0] for row in Page(saved / "report.html").table("Policy")[1:3]} == {"sure.joblib", "folder/sure.joblib"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["unlabelled", "sure.joblib"], "the cache 'unlabelled' has no labels, which a report needs"),
        (["absent", "sure.joblib"], "absent': it has no manifest.json"),
        (["cache", "absent.joblib"], "No such file or directory: 'absent.joblib'"),
        (["cache", "sure.joblib", "damaged.joblib"], "'damaged.joblib' cannot be loaded ("),
        (["cache", "other.joblib"], "'other.joblib' does not fit the cache 'cache': "),
        (
            ["cache", "regression.joblib"],
            "'regression.joblib' does not fit the cache 'cache': LogisticRegression is no",
        ),
        (["cache", "sure.joblib", "--budget", "60"], "budget=60.0 must be in (0, 1]"),
        (["cache", "sure.joblib", "--out", "absent/x.html"], "there is no folder 'absent' to write 'x.html' into"),
    ],
)
def test_command_errors(saved, capsys, arguments, message):
    assert main(["report", *arguments]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("skexit report: error: ")
    assert message in printed.err
    assert not (saved / "report.html").exists()


def test_command_help_warns_of_files_that_are_not_trusted(capsys):
    assert main(["report", "--help"]) == 0
    assert "give only files that you trust" in " ".join(capsys.readouterr().out.split())
    assert main(["report", "cache"]) == 2
