"""Networks that compute different things are told apart, and one that computes the same is recognised."""

import dataclasses
import functools
import logging
import os
import subprocess
import sys
import types
import uuid

import pytest
import torch
from networks_to_describe import NETWORKS, hooked
from torch import nn
from torch.nn import functional

from skexit.extraction import ExitExtractor
from skexit.extraction._fingerprints import model_fingerprint

POWER = 1


class Settings(nn.Module):
    """Uses whatever settings it is given."""

    power = 1

    def __init__(self, **settings):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        nn.init.ones_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)
        vars(self).update(settings)

    def forward(self, x):
        return self.apply_setting(self.layer(x))

    def apply_setting(self, x):
        x = x**self.power
        setting = getattr(self, "setting", 1)
        return x * setting if isinstance(setting, int | float) else x


class Config:
    def __init__(self, **entries):
        self.entries = entries
        self.tag = uuid.uuid4()

    def to_dict(self):
        return self.entries | {"use_cache": len(self.entries) > 5, "_name_or_path": str(uuid.uuid4())}


class ByName(Settings):
    def apply_setting(self, x):
        return sum(getattr(self, f"scale{number}") * x for number in range(2))


class ByDict(Settings):
    def apply_setting(self, x):
        return sum(x * value for name, value in self.__dict__.items() if name.startswith("scale"))


@dataclasses.dataclass(slots=True)
class Slots:
    scale: float


class Helper:
    def __init__(self, factor):
        self.factor = factor
        self.n_calls = 0

    def __call__(self, x):
        self.n_calls += 1
        return x * self.factor


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.sign()


class OtherSign(Sign):
    @staticmethod
    def forward(context, x):
        return x.sign() * 2


OtherSign.__qualname__ = "Sign"


def forward_of(function):
    def make():
        model = Settings()
        model.forward = types.MethodType(function, model)
        return model

    return make


def class_of(function):
    """Networks of classes with one name and other code."""
    return type("Network", (Settings,), {"apply_setting": function})


def hook_of(function, kind="register_forward_hook"):
    def make():
        model = Settings()
        getattr(model.layer, kind)(function)
        return model

    return make


def scaled(factor):
    return lambda module, inputs, output: output * factor


def with_changed(attribute, value):
    def make():
        model = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.GELU(), nn.MaxPool2d(2))
        setattr(model[attribute[0]], attribute[1], value)
        return model

    return make


def shared(*order):
    layers = [nn.Linear(2, 2), nn.Linear(2, 2)]
    return nn.Sequential(*(layers[one] for one in order))


ONE, TWO = nn.Linear(2, 2), nn.Linear(2, 2)

DIFFERENT = {
    "int": (lambda: Settings(setting=1), lambda: Settings(setting=2)),
    "list": (lambda: Settings(setting=[1, [2, 3]]), lambda: Settings(setting=[1, [2, 4]])),
    "dict": (lambda: Settings(setting={"a": {"b": 1}}), lambda: Settings(setting={"a": {"b": 2}})),
    "tensor": (lambda: Settings(setting=torch.ones(2)), lambda: Settings(setting=torch.zeros(2))),
    "modules": (lambda: Settings(setting=[ONE]), lambda: Settings(setting=[TWO])),
    "function": (lambda: Settings(setting=functional.relu), lambda: Settings(setting=functional.gelu)),
    "builtin": (lambda: Settings(setting=torch.relu), lambda: Settings(setting=torch.tanh)),
    "lambda": (lambda: Settings(setting=lambda x: x), lambda: Settings(setting=lambda x: -x)),
    "partial": (
        lambda: Settings(setting=functools.partial(functional.leaky_relu, negative_slope=0.1)),
        lambda: Settings(setting=functools.partial(functional.leaky_relu, negative_slope=0.2)),
    ),
    "cached function": (
        lambda: Settings(setting=functools.lru_cache(lambda x: x)),
        lambda: Settings(setting=functools.lru_cache(lambda x: -x)),
    ),
    "config": (lambda: Settings(setting=Config(eps=1)), lambda: Settings(setting=Config(eps=2))),
    "namespace": (
        lambda: Settings(setting=types.SimpleNamespace(eps=1)),
        lambda: Settings(setting=types.SimpleNamespace(eps=2)),
    ),
    "slots": (lambda: Settings(setting=Slots(1)), lambda: Settings(setting=Slots(2))),
    "helper": (lambda: Settings(setting=Helper(1)), lambda: Settings(setting=Helper(2))),
    "type": (lambda: Settings(setting=Sign), lambda: Settings(setting=OtherSign)),
    "unknown part beside another": (lambda: Settings(setting=[iter([]), 1]), lambda: Settings(setting=[iter([]), 2])),
    "made up name": (lambda: ByName(scale0=1, scale1=1), lambda: ByName(scale0=1, scale1=2)),
    "by dict": (lambda: ByDict(scale0=1, scale1=1), lambda: ByDict(scale0=1, scale1=2)),
    "class attribute": (lambda: type("N", (Settings,), {"power": 2})(), lambda: type("N", (Settings,), {"power": 3})()),
    "method": (class_of(lambda self, x: x), class_of(lambda self, x: -x)),
    "static method": (class_of(staticmethod(lambda x: x)), class_of(staticmethod(lambda x: -x))),
    "monkeypatched": (forward_of(lambda self, x: x), forward_of(lambda self, x: -x)),
    "monkeypatched or not": (Settings, forward_of(lambda self, x: x)),
    "hook": (hook_of(scaled(1)), hook_of(scaled(2))),
    "hook or not": (Settings, hook_of(scaled(2))),
    "hook before": (
        hook_of(lambda module, inputs: inputs, "register_forward_pre_hook"),
        hook_of(lambda module, inputs: (-inputs[0],), "register_forward_pre_hook"),
    ),
    "stride": (with_changed((0, "stride"), (1, 1)), with_changed((0, "stride"), (2, 2))),
    "eps": (with_changed((1, "eps"), 1e-5), with_changed((1, "eps"), 1e-3)),
    "approximation": (with_changed((2, "approximate"), "none"), with_changed((2, "approximate"), "tanh")),
    "pooling": (with_changed((3, "kernel_size"), 2), with_changed((3, "kernel_size"), 3)),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_different(name):
    fingerprints = []
    for make in DIFFERENT[name]:
        torch.manual_seed(0)
        fingerprints.append(model_fingerprint(make()))
        torch.manual_seed(0)
        assert model_fingerprint(make()) == fingerprints[-1]
    assert fingerprints[0] != fingerprints[1]


def test_modules_that_are_used_again():
    a, b = nn.Linear(2, 2), nn.ReLU()
    models = [nn.Sequential(a, b), nn.Sequential(a, b, a), nn.Sequential(a, b, b), nn.Sequential(b, a)]
    assert len(set(map(model_fingerprint, models))) == len(models)


def test_what_the_code_reads(monkeypatch):
    class Network(Settings):
        def forward(self, x):
            return x**POWER

    before = model_fingerprint(Network())
    monkeypatch.setitem(globals(), "POWER", 2)
    assert model_fingerprint(Network()) != before


class Recorder:
    def __init__(self):
        self.last = None

    def record(self, module, inputs, output):
        self.last = output


class Busy(Settings):
    """Counts, records and caches in all the ways there are."""

    def __init__(self):
        super().__init__(n_calls=0, last=None, seen=[], cache={}, nested={"seen": []}, lazy=None, run=uuid.uuid4())
        self.state = types.SimpleNamespace(count=0)
        self.total = torch.zeros(1)
        self.register_buffer("steps", torch.tensor(0))
        self.helper = Helper(2)
        self.log = logging.getLogger("busy")
        self.parent = [self]
        self.generator = torch.Generator()
        self.stop = False

    @functools.cached_property
    def factor(self):
        return 2 * self.power

    def forward(self, x):
        self.n_calls += 1
        self.last = x
        self.seen.append(x.shape)
        self.cache[x.shape] = x
        self.nested["seen"].append(x)
        self.state.count += 1
        self.total.add_(1)
        self.steps += 1
        if self.lazy is None:
            self.lazy = torch.arange(4)
        self.log.debug("%s, %s", self.parent, self.generator)
        return self.helper(self.layer(x)) * self.factor


def test_the_same_after_a_pass():
    model, seen = Busy(), []
    model.layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model.layer.register_forward_pre_hook(lambda module, inputs: setattr(module, "last_input", inputs))
    model.layer.register_forward_hook(Recorder().record)
    before = model_fingerprint(model)
    model(torch.ones(3, 4))
    model(torch.ones(2, 4))
    assert seen
    assert model_fingerprint(model) == before
    other = Busy()
    assert model_fingerprint(other) == model_fingerprint(Busy())
    other.helper.factor = 3
    assert model_fingerprint(other) != model_fingerprint(Busy())


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.eval(),
        lambda model: model.requires_grad_(False),
        lambda model: setattr(model, "comment", "first try"),
        lambda model: setattr(model, "use_cache", True),
        lambda model: setattr(model, "trainer", iter([])),
        lambda model: torch.compile(model),
        lambda model: setattr(model, "layer", torch.compile(model.layer)),
        lambda model: model.compile(),
    ],
)
def test_what_does_not_count(change):
    model = Settings(setting=2)
    before = model_fingerprint(model)
    changed = change(model)
    assert model_fingerprint(changed if isinstance(changed, nn.Module) else model) == before


def test_every_value_counts():
    """Also one that the network changes as it learns."""

    class Normed(Settings):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(4))

        def forward(self, x):
            if self.training:
                self.mean = self.mean + x.mean(0)
            return x - self.mean

    model = Normed()
    found = [model_fingerprint(model)]
    model(torch.ones(2, 4))
    found.append(model_fingerprint(model))
    model.layer.bias.data[3] += 1e-6
    found.append(model_fingerprint(model))
    assert len(set(found)) == 3


def test_objects_that_raise_are_left_out():
    class Raises:
        def __getattr__(self, name):
            raise RuntimeError(name)

    assert model_fingerprint(Settings(setting=Raises())) == model_fingerprint(Settings(setting=Raises()))


@pytest.mark.parametrize("name", NETWORKS)
def test_known_networks(name):
    make, inputs, changes = NETWORKS[name]
    torch.manual_seed(0)
    model = make().eval()
    before = model_fingerprint(model)
    with torch.inference_mode():
        model(**inputs) if isinstance(inputs, dict) else model(inputs)
    assert model_fingerprint(model) == before
    for change in changes:
        torch.manual_seed(0)
        other = make()
        assert model_fingerprint(other) == before
        change(other)
        assert model_fingerprint(other) != before


@pytest.mark.slow
def test_the_same_in_other_processes():
    code = (
        "import torch\nfrom networks_to_describe import NETWORKS, hooked\n"
        "from skexit.extraction._fingerprints import model_fingerprint\n"
        "for make in [*(network[0] for network in NETWORKS.values()), hooked]:\n"
        "    torch.manual_seed(0)\n    print(model_fingerprint(make()))"
    )
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path}
    found = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).split()
    expected = []
    for make in [*(network[0] for network in NETWORKS.values()), hooked]:
        torch.manual_seed(0)
        expected.append(model_fingerprint(make()))
    assert found == expected


def test_the_cache_of_other_settings_is_refused(tmp_path):
    x = torch.ones(3, 4)
    ExitExtractor(Settings(setting=2), ["layer"]).extract([x], tmp_path)
    ExitExtractor(Settings(setting=2), ["layer"]).extract([x], tmp_path)
    with pytest.raises(ValueError, match=r"differs in model \("):
        ExitExtractor(Settings(setting=3), ["layer"]).extract([x], tmp_path)
