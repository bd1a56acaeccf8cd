import base64
import copy
import functools
import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from instances import HEADS, POLICIES, make_exits
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline

from skexit import (
    ExitEnsemble,
    ExitHeads,
    OptimalStoppingPolicy,
    RiskControlledPolicy,
    StaticExit,
    ThresholdPolicy,
    stack_exits,
)
from skexit.exceptions import InconsistentVersionWarning
from skexit.runtime import policy_from_json, policy_to_json

N_ROWS = 157  # a number that nothing else has
NO_TIES = pytest.mark.filterwarnings("ignore:the mean cost on the fitting data:UserWarning")
METHODS = ("exit_scores", "predict_exit", "predict", "predict_proba", "predict_at_exits")


@pytest.fixture(scope="module")
def data():
    """Exits of features, the last with logits too, and classes that are words."""
    X, y = make_exits(n_samples=N_ROWS, n_exits=2, n_classes=3, random_state=0)
    classes = ["cat", "dog", "owl"]
    X = stack_exits([None, X.logits(1)], [X.features(k) for k in range(2)], classes=classes)
    return X, np.array(classes)[y]


def read_again(policy):
    return policy_from_json(policy_to_json(policy))


def assert_same_answers(loaded, policy, X):
    assert type(loaded) is type(policy)
    for method in METHODS:
        assert_array_equal(getattr(loaded, method)(X), getattr(policy, method)(X))
    assert loaded.layout_fingerprint_ == policy.layout_fingerprint_


def arrays_of(value):
    """Shapes of all arrays, and lengths of all lists, of a document."""
    if isinstance(value, dict):
        yield from value.get("shape", []) if "data" in value else []
        for part in value.values():
            yield from arrays_of(part)
    elif isinstance(value, list):
        yield len(value)
        for part in value:
            yield from arrays_of(part)


def has_ridge(policy):
    return isinstance(getattr(policy, "estimator", None), Ridge)


@NO_TIES
@pytest.mark.parametrize("template", [policy for policy in POLICIES if not has_ridge(policy)], ids=repr)
def test_policies_answer_as_before(template, data):
    X, y = data
    policy = clone(template).fit(X, y).calibrate(X, y)
    text = policy_to_json(policy)
    assert_same_answers(policy_from_json(text), policy, X)
    assert N_ROWS not in set(arrays_of(json.loads(text)))


@pytest.mark.parametrize("heads", [*HEADS, ExitHeads(cascade=True, random_state=0), ExitEnsemble()], ids=repr)
@pytest.mark.parametrize("wrap", [lambda heads: heads, FrozenEstimator], ids=["plain", "frozen"])
def test_heads_answer_as_before(heads, wrap, data):
    X, y = data
    heads = wrap(clone(heads).fit(X, y))
    assert_array_equal(np.asarray(read_again(heads).transform(X)), np.asarray(heads.transform(X)))


def test_pipelines_and_policies_within_policies(data):
    X, y = data
    criterion = OptimalStoppingPolicy(random_state=0)
    pipeline = make_pipeline(ExitEnsemble(), ThresholdPolicy(criterion, use_most_confident=True)).fit(X, y)
    assert_array_equal(read_again(pipeline).predict_proba(X), pipeline.predict_proba(X))
    policy = OptimalStoppingPolicy(random_state=0, heads=FrozenEstimator(ExitHeads(random_state=0).fit(X, y)))
    frozen = RiskControlledPolicy(FrozenEstimator(policy.fit(X, y)), alpha=0.5, loss="error").fit(X, y)
    assert_same_answers(read_again(frozen), frozen, X)


def test_parameters_that_only_fitting_needs(data):
    X, y = data
    heads = ExitHeads(random_state=np.random.RandomState(0))
    policy = OptimalStoppingPolicy(0.7, heads=heads, random_state=np.random.RandomState(0)).fit(X, y)
    loaded = read_again(policy)
    assert loaded.get_params() == OptimalStoppingPolicy(0.7).get_params()
    assert_same_answers(loaded, policy, X)


def test_a_policy_that_was_read_can_be_calibrated(data):
    X, y = data
    policy = ThresholdPolicy(budget=0.6).fit(X, y)
    assert_array_equal(read_again(policy).calibrate(X, y).predict_set(X), policy.calibrate(X, y).predict_set(X))


def test_what_cannot_be_written_is_named(data):
    X, y = data
    with pytest.raises(ValueError, match=r"^OptimalStoppingPolicy\.estimators_\[0\] has the type sklearn\..*Ridge"):
        policy_to_json(OptimalStoppingPolicy(estimator=Ridge(), random_state=0).fit(X, y))

    class Own(ThresholdPolicy):
        pass

    with pytest.raises(ValueError, match="Own, which cannot be written as JSON"):
        policy_to_json(Own().fit(X, y))
    with pytest.raises(ValueError, match=r"^dict\['when'\] has the type array of datetime64\[D\]"):
        policy_to_json({"when": np.array(["2020-01-01"], dtype="M8[D]")})


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -(2**70),
        0.1,
        float("inf"),
        float("-inf"),
        "größe",
        [1, (2.5, None), {"a": ()}],
        np.array([[np.nan, np.inf], [-np.inf, -0.0]]),
        np.arange(6, dtype=">i4").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.zeros((0, 3), dtype=np.float32),
        np.array([True, False]),
        np.array(["a", "größe"]),
        np.array(["a", 1, None], dtype=object),
    ],
    ids=repr,
)
def test_values(value):
    loaded = read_again(value)
    assert type(loaded) is type(value)
    if isinstance(value, np.ndarray):
        assert loaded.dtype == value.dtype.newbyteorder("=")
        assert loaded.flags.f_contiguous == value.flags.f_contiguous
        assert loaded.flags.writeable
        assert_array_equal(
            np.signbit(loaded) if value.dtype.kind == "f" else loaded == value,
            np.signbit(value) if value.dtype.kind == "f" else True,
        )
        assert_array_equal(loaded, value)
    else:
        assert loaded == value


def test_nan_and_numpy_numbers():
    loaded = read_again([np.float32(0.5), np.int64(3), np.bool_(True), float("nan")])
    assert loaded[:3] == [0.5, 3, True]
    assert np.isnan(loaded[3])


def changed(**changes):
    """A document as somebody would write it by hand, with a digest that is right."""
    document = json.loads(policy_to_json(1)) | changes
    del document["sha256"]
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    return json.dumps(document | {"sha256": digest})


ARRAY = {"__kind__": "array", "dtype": "<f8", "shape": [1], "order": "C", "data": base64.b64encode(bytes(8)).decode()}
LAYOUT = {"__kind__": "skexit.ExitLayout", "parameters": {"n_logits": [3], "n_features": [0]}, "attributes": {}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not valid JSON"),
        ('{"a": ', "is not valid JSON"),
        ("[1]", "not written by skexit"),
        ('{"content": 1}', "not written by skexit"),
        (changed(format_version=99), "version 99 of the format"),
        (
            changed(content={"__kind__": "subprocess.Popen", "parameters": {}}),
            "subprocess.Popen', which is not an allowed",
        ),
        (changed(content={"__kind__": "skexit.ExitArray"}), "is not an allowed class of skexit"),
        (changed(content={"__kind__": ["tuple"]}), "is incomplete or wrong"),
        (changed(content={"__kind__": "tuple"}), "of type 'tuple' is incomplete"),
        (changed(content=ARRAY | {"dtype": "|O"}), "an array of type object"),
        (changed(content=ARRAY | {"dtype": "nonsense"}), "of type 'array' is incomplete or wrong"),
        (changed(content=ARRAY | {"shape": [2]}), "do not fit its description"),
        (changed(content=ARRAY | {"data": "AAA"}), "do not fit its description"),
        (changed(content=LAYOUT | {"parameters": {"n_columns": 3}}), "ExitLayout' is incomplete or wrong"),
        (changed(content={"__kind__": "skexit.ExitLayout"}), "ExitLayout' is incomplete or wrong"),
    ],
)
def test_what_is_not_read(text, message):
    with pytest.raises(ValueError, match=message):
        policy_from_json(text)


def places(value, path=()):
    """Every place in a document of JSON, and what is there."""
    yield path, value
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*path, key))


def damaged(document):
    """The document with each of its parts left out, replaced or added to, one after the other."""
    for path, value in places(document):
        replacements = [other for other in (None, "a", [], {}, True, 7) if type(other) is not type(value)]
        if isinstance(value, int | float):
            replacements += [float("nan"), value + 1]
        for new in [*replacements, DELETED] if path else []:
            changed = copy.deepcopy(document)
            *parents, key = path
            holder = functools.reduce(lambda part, name: part[name], parents, changed)
            if new is DELETED:
                del holder[key]
            else:
                holder[key] = new
            yield changed
        if isinstance(value, dict):
            changed = copy.deepcopy(document)
            functools.reduce(lambda part, name: part[name], path, changed)["unknown"] = 1
            yield changed


DELETED = object()


@pytest.mark.parametrize(
    "estimator",
    [
        OptimalStoppingPolicy(random_state=0),
        make_pipeline(ExitHeads(random_state=0), ThresholdPolicy()),
        {"steps": (StaticExit(1),), "inputs": [{"name": "x", "shape": [None, 3]}], "by_name": False},
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_nothing_that_was_changed_is_read(estimator, data):
    if not isinstance(estimator, dict):
        estimator = clone(estimator).fit(*data)
    text = policy_to_json(estimator)
    document = json.loads(text)
    policy_from_json(json.dumps(document, sort_keys=True))  # layout and order of keys do not matter
    for changed in damaged(document):
        with pytest.raises(ValueError, match=r"this JSON (was|has version)"):
            policy_from_json(json.dumps(changed))


@pytest.mark.parametrize(
    ("attribute", "values"),
    [
        ("thresholds_", [np.nan, -np.inf]),
        ("thresholds_", [0.5, 0.5]),
        ("thresholds_", [-np.inf]),
        ("costs_", [1.0, 0.5]),
        ("costs_", [0.0, 1.0]),
        ("costs_", [0.5, np.inf]),
        ("temperatures_", [1.0, 0.0]),
        ("temperatures_", [1.0, np.nan]),
        ("temperatures_", 1.0),
    ],
)
def test_what_no_fitted_policy_has_is_not_written(attribute, values, data, monkeypatch):
    policy = ThresholdPolicy().fit(*data)
    setattr(policy, attribute, np.asarray(values))
    with pytest.raises(ValueError, match=rf"ThresholdPolicy\.{attribute} is .*, which no policy fitted on 2 exits has"):
        policy_to_json(policy)
    with monkeypatch.context() as patch:
        patch.setattr("skexit.runtime._policy_json._check_policy", lambda policy, place: None)
        text = policy_to_json(policy)
    with pytest.raises(ValueError, match=f"{attribute} is"):
        policy_from_json(text)


def test_another_version_of_skexit_warns(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("skexit._version.__version__", "9.0.0")
        text = policy_to_json(1)
    with pytest.warns(InconsistentVersionWarning, match=r"^a policy was saved by skexit 9\.0\.0"):
        assert policy_from_json(text) == 1


def test_reading_imports_no_torch(data, tmp_path):
    X, y = data
    policy = ThresholdPolicy(budget=0.6).fit(X, y)
    (tmp_path / "policy.json").write_text(policy_to_json(policy))
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from skexit.runtime import policy_from_json\n"
        f"policy = policy_from_json(Path({str(tmp_path / 'policy.json')!r}).read_text())\n"
        "assert 'torch' not in sys.modules\n"
        "print(policy.layout_fingerprint_)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == policy.layout_fingerprint_
