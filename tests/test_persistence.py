"""What is saved, what is loaded, what is refused, and what a notebook shows."""

import copy
import functools
import importlib
import io
import json
import os
import re
import subprocess
import sys
import types
import warnings
import zipfile
from functools import cache
from pathlib import Path

import joblib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from instances import POLICIES, estimators, make_exits
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline

import skexit
from skexit import (
    ConvExitHeads,
    EMExitAssigner,
    ExitHeads,
    ExitLayout,
    JEIGatedEnsemble,
    ModelCascade,
    OptimalStoppingPolicy,
    StaticExit,
    ThresholdPolicy,
    make_exit_pipeline,
    persistence,
    stack_exits,
)
from skexit.exceptions import InconsistentVersionWarning
from skexit.model_selection import accuracy_and_cost, best_within, neg_mean_cost_scorer, utility_scorer
from skexit.runtime import policy_from_json, policy_to_json
from skexit.runtime._policy_json import _decode

skops_io = pytest.importorskip("skops.io")
from skops.io.exceptions import UntrustedTypesFoundException  # noqa: E402

DATA = Path(__file__).parent / "fixtures"
VOTES_ARE_TIED = pytest.mark.filterwarnings("ignore:the mean cost on the fitting data:UserWarning")


@pytest.fixture(scope="module")
def data():
    """Exits of features, the last with logits too, and classes that are words."""
    X, y = make_exits(n_samples=150, n_exits=3, n_classes=3, random_state=0)
    X = stack_exits(
        [None, None, X.logits(2)],
        [X.features(k) for k in range(3)],
        costs=[1e6, 2e6, 4e6],
        cost_unit="FLOPs",
        classes=["cat", "dog", "owl"],
    )
    X = X.with_layout(X.layout.replace(feature_maps=[(0, 1, 2, 2)] * 3))  # as maps where heads look for such
    return X, np.array(["cat", "dog", "owl"])[y]


@pytest.fixture(scope="module")
def policy(data):
    X, y = data
    return ThresholdPolicy(budget=0.6).fit(X, y).calibrate(X, y)


@pytest.fixture(scope="module")
def calibrated(data):
    """A function that fits and calibrates the policy of an index, once for all tests."""
    X, y = data

    @cache
    def make(index):
        return clone(POLICIES[index]).fit(X, y).calibrate(X, y)

    return make


def saved_with_joblib(estimator):
    file = io.BytesIO()
    joblib.dump(estimator, file, compress=3)
    return file.getvalue()


def load_with_joblib(content):
    return joblib.load(io.BytesIO(content))


def load_with_skops(content):
    return skops_io.loads(content, trusted=skexit.TRUSTED_TYPES)


FORMATS = [
    pytest.param(saved_with_joblib, load_with_joblib, id="joblib"),
    pytest.param(skops_io.dumps, load_with_skops, id="skops"),
]


def assert_same_answers(loaded, policy, X):
    for method in ("exit_scores", "predict_exit", "predict", "predict_proba", "predict_set"):
        np.testing.assert_array_equal(getattr(loaded, method)(X), getattr(policy, method)(X))
    assert repr(loaded) == repr(policy)
    assert loaded.layout_fingerprint_ == policy.layout_fingerprint_


@VOTES_ARE_TIED
@pytest.mark.parametrize(("save", "load"), FORMATS)
@pytest.mark.parametrize("index", range(len(POLICIES)), ids=map(repr, POLICIES))
def test_policies_answer_as_before(index, save, load, data, calibrated):
    X, y = data
    policy = calibrated(index)
    loaded = load(save(policy))
    assert_same_answers(loaded, policy, X)
    if hasattr(policy, "with_budget"):
        assert_same_answers(
            loaded.with_budget(0.8).calibrate(X, y, temperature=False),
            policy.with_budget(0.8).calibrate(X, y, temperature=False),
            X,
        )


@pytest.mark.parametrize(("save", "load"), FORMATS)
@pytest.mark.parametrize(
    "heads",
    [
        ExitHeads(),
        ExitHeads((3,), cascade=True, max_epochs=2),
        ExitHeads(training="boosted"),
        ConvExitHeads((3,), (1,), max_epochs=2),
    ],
    ids=repr,
)
def test_heads_answer_as_before(heads, save, load, data):
    X, y = data
    heads = clone(heads).set_params(random_state=0).fit(X.to_frame(), y)
    loaded = load(save(heads))
    np.testing.assert_array_equal(np.asarray(loaded.transform(X.to_frame())), np.asarray(heads.transform(X.to_frame())))
    assert loaded.layout_out_ == heads.layout_out_
    assert loaded.feature_names_in_.tolist() == heads.feature_names_in_.tolist()


@pytest.mark.parametrize(("save", "load"), FORMATS)
def test_a_pipeline_answers_as_before(save, load, data):
    X, y = data
    policy = JEIGatedEnsemble(budget=0.6, layout=X.layout.replace(n_logits=[3, 3, 3]), max_epochs=2, random_state=0)
    pipeline = make_pipeline(ExitHeads(random_state=0), policy).fit(X, y)
    loaded = load(save(pipeline))
    np.testing.assert_array_equal(loaded.predict_proba(X), pipeline.predict_proba(X))


@pytest.mark.parametrize(("save", "load"), FORMATS)
@pytest.mark.parametrize("estimator", estimators(), ids=repr)
def test_estimators_that_are_not_fitted(estimator, save, load):
    loaded = load(save(estimator))
    assert repr(loaded) == repr(estimator)
    with pytest.raises(NotFittedError):
        _ = loaded.layout_fingerprint_


@VOTES_ARE_TIED
@pytest.mark.filterwarnings("ignore:no budget qualifies:UserWarning")  # for the default alpha, of few rows
def test_every_trusted_type_is_needed_and_exists(data, calibrated):
    X, y = data
    fitted = [*map(calibrated, range(len(POLICIES))), *(fit_quickly(estimator, X, y) for estimator in estimators())]
    found = {name for each in fitted for name in skops_io.get_untrusted_types(data=skops_io.dumps(each))}
    learned = ExitHeads(random_state=0).partial_fit(X, y)
    found |= set(skops_io.get_untrusted_types(data=skops_io.dumps(learned)))
    found |= set(skops_io.get_untrusted_types(data=skops_io.dumps(make_exit_pipeline(ThresholdPolicy()))))
    cascade = ModelCascade([GaussianNB().fit(X, y)], costs=[1]).fit(X)
    found |= set(skops_io.get_untrusted_types(data=skops_io.dumps(cascade)))
    assert sorted(found) == persistence.SAVED_TYPES
    for name in persistence.SAVED_TYPES:
        module, _, class_name = name.rpartition(".")
        assert isinstance(getattr(importlib.import_module(module), class_name), type)


@pytest.mark.parametrize(
    ("scoring", "refit", "cv"),
    [
        (accuracy_and_cost(0.1), best_within(0.9), 2),
        (utility_scorer(0.1), True, KFold(2)),
        (neg_mean_cost_scorer, True, 2),
    ],
)
def test_a_search_by_our_scorers(scoring, refit, cv, data):
    X, y = data
    search = GridSearchCV(StaticExit(), {"exit": [0, 1]}, scoring=scoring, refit=refit, cv=cv).fit(X, y)
    loaded = load_with_skops(skops_io.dumps(search))
    assert loaded.score(X, y) == search.score(X, y)
    np.testing.assert_array_equal(loaded.predict(X), search.predict(X))


@pytest.mark.parametrize("name", sorted(set(skexit.TRUSTED_TYPES) - set(persistence.SAVED_TYPES)))
def test_json_has_no_types_of_searches(name):
    document = {"__kind__": name, "parameters": {}, "attributes": {}}
    with pytest.raises(ValueError, match="which is not an allowed class of skexit"):
        _decode(document)


def test_a_partial_of_another_function_is_refused():
    with pytest.raises(UntrustedTypesFoundException, match="abs"):
        load_with_skops(skops_io.dumps(functools.partial(os.path.abspath, "x")))


def fit_quickly(estimator, X, y):
    """With few epochs where there are epochs."""
    return estimator.set_params(**{"max_epochs": 1} if "max_epochs" in estimator.get_params() else {}).fit(X, y)


def test_trusted_types_have_names_that_last():
    """Not those of the modules where they are, which may move."""
    for name in persistence.SAVED_TYPES:
        assert name.rpartition(".")[0] in ("skexit", "skexit.persistence")
        module, _, class_name = name.rpartition(".")
        kind = getattr(importlib.import_module(module), class_name)
        assert (kind.__module__, kind.__qualname__) == (module, class_name)


@VOTES_ARE_TIED
@pytest.mark.parametrize(("save", "load"), [*FORMATS, pytest.param(policy_to_json, policy_from_json, id="JSON")])
def test_modules_may_move_and_files_still_load(save, load, data, monkeypatch):
    X, y = data
    templates = [
        OptimalStoppingPolicy(0.6, random_state=0),
        EMExitAssigner(budget=0.6, max_epochs=1, random_state=0),
        JEIGatedEnsemble(decision="sampled", max_epochs=1, random_state=0),
        ThresholdPolicy(),
    ]
    policies = [template.fit(X, y).calibrate(X, y) for template in templates]
    files = [save(policy) for policy in policies]

    moved = types.ModuleType("skexit.moved")
    monkeypatch.setitem(sys.modules, moved.__name__, moved)
    for name, module in list(persistence._MODULES.items()):
        setattr(moved, name, getattr(persistence, name))
        monkeypatch.delattr(f"{module}.{name}")
        monkeypatch.setitem(persistence._MODULES, name, moved.__name__)
    for policy, file in zip(policies, files, strict=True):
        loaded = load(file)
        for method in ("exit_scores", "predict_exit", "predict_proba"):
            np.testing.assert_array_equal(getattr(loaded, method)(X), getattr(policy, method)(X))


# Versions


@pytest.mark.parametrize(("save", "load"), FORMATS)
@pytest.mark.parametrize("version", ["0.0.9", "9.0.0"])
def test_another_version_warns(policy, data, save, load, version, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("skexit._version.__version__", version)
        content = save(policy)
    with pytest.warns(InconsistentVersionWarning) as warned:
        loaded = load(content)
    assert [w.message.estimator_name for w in warned] == ["ExitHeads", "ThresholdPolicy"]
    for warning in warned:
        assert warning.message.saved_version == version
        assert warning.message.current_version == skexit.__version__
        assert f"was saved by skexit {version} and is loaded by skexit {skexit.__version__}" in str(warning.message)
    assert_same_answers(loaded, policy, data[0])
    load(save(loaded))  # is of this version now, and warns no more


def test_a_file_without_a_version_warns(policy):
    state = policy.__getstate__()
    assert state.pop("_skexit_version") == skexit.__version__
    with pytest.warns(InconsistentVersionWarning, match="saved by skexit unknown"):
        ThresholdPolicy().__setstate__(state)


def test_copies_are_of_this_version(policy):
    for other in (policy, copy.copy(policy), copy.deepcopy(policy), policy.with_budget(0.7)):
        assert "_skexit_version" not in vars(other)
    state = policy.__getstate__()
    ThresholdPolicy().__setstate__(state)
    assert "_skexit_version" in state  # what was passed is left as it was


@pytest.mark.parametrize("suffix", ["joblib", "skops"])
def test_what_release_0_1_0_saved(suffix):
    """The first release, so that this is no other version yet; see data/make_fixture.py."""
    path = DATA / f"estimators-0.1.0.{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InconsistentVersionWarning)
        loaded = joblib.load(path) if suffix == "joblib" else skops_io.load(path, trusted=skexit.TRUSTED_TYPES)
    with np.load(DATA / "estimators-0.1.0.npz") as stored:
        X = stored["X"]
        assert {name.partition("/")[0] for name in stored.files} == {"X", *loaded}
        for name in stored.files:
            if name != "X":
                key, _, method = name.partition("/")
                answer = np.asarray(getattr(loaded[key], method)(X))
                if answer.dtype.kind == "f":
                    single = key == "convolutions"  # computed in single precision
                    tolerance = {"rtol": 1e-4, "atol": 1e-5} if single else {"rtol": 1e-6, "atol": 1e-9}
                    np.testing.assert_allclose(answer, stored[name], **tolerance, err_msg=name)
                else:
                    np.testing.assert_array_equal(answer, stored[name], err_msg=name)
    assert {type(estimator) for estimator in loaded.values()} == {type(estimator) for estimator in estimators()}
    for name, estimator in loaded.items():
        assert estimator.layout_fingerprint_ == "e74f7f26ab0bf05c"
        if hasattr(estimator, "with_budget"):
            assert estimator.with_budget(0.8).budget == 0.8, name


# Files that are damaged or hostile


@pytest.mark.parametrize(("save", "load"), FORMATS)
def test_a_file_that_ends_too_early_is_refused(policy, save, load):
    content = save(policy)
    for length in (0, 1, 10, len(content) // 2, len(content) - 10):
        with pytest.raises(Exception):  # noqa: B017, PT011 - zipfile's, zlib's or pickle's own
            load(content[:length])


def test_errors_of_files_that_are_no_zip():
    for content in (b"", b"no zip"):
        with pytest.raises(zipfile.BadZipFile):
            load_with_skops(content)


@pytest.mark.parametrize(("save", "load"), FORMATS)
def test_a_flipped_bit_never_changes_an_answer(policy, data, save, load):
    content, refused = save(policy), 0
    positions = np.random.default_rng(0).integers(len(content), size=60)
    for position in positions:
        damaged = bytearray(content)
        damaged[position] ^= 16
        try:
            loaded = load(bytes(damaged))
        except Exception:
            refused += 1
        else:
            assert_same_answers(loaded, policy, data[0])
    assert refused > len(positions) / 2


def hostile_file(policy, marker):
    """A saved policy whose budget is a call that makes a file."""
    content = skops_io.dumps(policy)
    command = skops_io.dumps(([sys.executable, "-c", f"open({str(marker)!r}, 'w')"],))
    call = {
        "__class__": "check_call",
        "__module__": "subprocess",
        "__loader__": "ConstructorFromReduceNode",
        "content": json.loads(zipfile.ZipFile(io.BytesIO(command)).read("schema.json")),
        "__id__": 1,
    }
    new = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(new, "w") as changed:
        for name in old.namelist():
            entry = old.read(name)
            if name == "schema.json":
                schema = json.loads(entry)
                schema["content"]["content"]["budget"] = call
                entry = json.dumps(schema).encode()
            changed.writestr(name, entry)
    return new.getvalue()


def test_a_hostile_file_is_refused(policy, tmp_path):
    marker = tmp_path / "marker"
    content = hostile_file(policy, marker)
    assert "subprocess.check_call" in skops_io.get_untrusted_types(data=content)
    with pytest.raises(UntrustedTypesFoundException, match=r"subprocess\.check_call"):
        load_with_skops(content)
    assert not marker.exists()
    # That it is hostile indeed: who trusts it runs it.
    skops_io.loads(content, trusted=[*skexit.TRUSTED_TYPES, "subprocess.check_call"])
    assert marker.exists()


def test_loading_imports_no_torch(policy, data, tmp_path):
    joblib.dump(policy, tmp_path / "policy.joblib")
    code = (
        "import sys, skexit, joblib\n"
        "heavy = {'torch', 'skops', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules)\n"
        f"policy = joblib.load({str(tmp_path / 'policy.joblib')!r})\n"
        "assert not heavy & set(sys.modules)\n"
        "print(policy.layout_fingerprint_)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == policy.layout_fingerprint_ == data[0].layout.fingerprint


# The layout


LAYOUT = {"n_logits": [0, 3], "n_features": [2, 1], "costs": [1.0, 4.0], "cost_unit": "ms", "classes": [0, 1, 2]}


@pytest.mark.parametrize(
    "change",
    [
        {"n_logits": [3, 3]},
        {"n_features": [2, 2]},
        {"costs": [1.0, np.nextafter(4, 5)]},
        {"network_cost": np.nextafter(4, 3)},
        {"head_costs": [0.0, 0.5], "network_cost": 4.0},
        {"cost_unit": "FLOPs"},
        {"cost_unit": None},
        {"classes": [0, 2, 1]},
        {"classes": ["0", "1", "2"]},
        {"classes": [0, 1, 2.5]},
        {"classes": None},
    ],
    ids=repr,
)
def test_fingerprints_tell_layouts_apart(change):
    layout = ExitLayout(**LAYOUT)
    other = layout.replace(**change)
    assert other != layout
    assert other.fingerprint != layout.fingerprint
    assert re.fullmatch("[0-9a-f]{16}", layout.fingerprint)


@pytest.mark.parametrize(
    "classes",
    [
        np.array([0, 1, 2], dtype=np.uint8),
        np.array([0.0, 1.0, 2.0], dtype=np.float32),
        np.array([np.int64(0), np.float64(1), 2], dtype=object),
        [False, True, 2],
    ],
    ids=repr,
)
def test_equal_layouts_have_the_same_fingerprint(classes):
    layout = ExitLayout(**LAYOUT)
    assert layout.replace(classes=classes) == layout
    assert layout.replace(classes=classes).fingerprint == layout.fingerprint


def test_fingerprints_are_for_ever():
    assert ExitLayout(**LAYOUT).fingerprint == "ddaf7ccf7ded7582"
    words = np.array(["cat", "dog", "größe"])
    assert ExitLayout([3], [0], classes=words).fingerprint == "786399c697d4e77a"
    assert ExitLayout([3], [0], classes=words.astype(object)).fingerprint == "786399c697d4e77a"


@given(st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=5, unique=True))
def test_fingerprints_survive_json(costs):
    layout = ExitLayout([0] * len(costs), [1] * len(costs), costs=sorted(costs), cost_unit="FLOPs")
    assert ExitLayout.from_dict(json.loads(json.dumps(layout.to_dict()))).fingerprint == layout.fingerprint


def test_another_layout_is_refused(policy, data):
    X, _ = data
    narrower = stack_exits([None, None, X.logits(2)], [X.features(0)[:, :3], np.ones((len(X), 5)), X.features(2)])
    with pytest.raises(ValueError, match=r"X has the layout .*n_features=\[3, 5, 4\].* was fitted with .*\[4, 4, 4\]"):
        policy.predict(narrower)
    others = X.with_layout(X.layout.replace(classes=["cat", "dog", "pig"]))
    with pytest.raises(ValueError, match=r"classes \['cat', 'dog', 'pig'\].* was fitted with \['cat', 'dog', 'owl'\]"):
        policy.predict(others)


@pytest.mark.parametrize("method", ["predict", "predict_exit", "mean_cost", "predict_set"])
def test_other_counted_costs_warn(policy, data, method):
    X, _ = data
    others = X.with_layout(X.layout.replace(costs=[1e6, 2.001e6, 4e6]))
    message = r"^the exits of X cost \[1000000.0, 2001000.0, 4000000.0\] FLOPs, but ThresholdPolicy was fitted with"
    with pytest.warns(UserWarning, match=message) as warned:
        answer = getattr(policy, method)(others)
    assert len(warned) == 1
    np.testing.assert_array_equal(answer, getattr(policy, method)(X))


def test_measured_costs_and_other_units_do_not_warn(policy, data):
    X, y = data
    in_ms = X.layout.replace(costs=[1, 2, 4], cost_unit="ms")
    policy.predict(X.with_layout(in_ms))
    ThresholdPolicy().fit(X.with_layout(in_ms), y).predict(X.with_layout(in_ms.replace(costs=[1, 2.5, 4])))
    chosen = ThresholdPolicy(layout=X.layout.replace(costs=[1e6, 3e6, 4e6])).fit(X, y)
    chosen.predict(X)
    assert chosen.layout_fingerprint_ != X.layout.fingerprint


# What a notebook shows


def exit_rows(html):
    """Cells of the table of exits, by row."""
    table = re.search(r"<summary>Exits</summary>(.*?)</table>", html, re.DOTALL)[1]
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in re.findall("<tr.*?</tr>", table)]


def test_the_table_of_a_policy(policy, data):
    X, y = data
    shares = [f"{100 * share:.1f}%" for share in policy.exit_distribution_]
    thresholds = [f"{threshold:.4g}" for threshold in policy.thresholds_[:2]]
    temperatures = [f"{temperature:.3g}" for temperature in policy.temperatures_]
    heads = [f"{100 * share:.2g}%" for share in policy.layout_.head_fractions]
    header = [
        "Exit", "Cost, % of 4e+06 FLOPs", "Heads alone", "Threshold", "Temperature", "Share of the fitted samples"
    ]  # fmt: skip
    rows = exit_rows(policy._repr_html_())
    assert rows[0] == header
    assert rows[1] == ["0", "25%", heads[0], thresholds[0], temperatures[0], shares[0]]
    assert rows[2] == ["1", "50%", heads[1], thresholds[1], temperatures[1], shares[1]]
    assert rows[3] == ["2", "100%", heads[2], "all stop", temperatures[2], shares[2]]
    fractions = X.with_layout(X.layout.replace(costs=[0.25, 0.5, 1], cost_unit="fraction"))
    uncalibrated = skexit.StaticExit(1).fit(fractions, y)
    assert exit_rows(uncalibrated._repr_html_()) == [
        ["Exit", "Cost, %", "Threshold", "Share of the fitted samples"],
        ["0", "25%", "none stops", "0.0%"],
        ["1", "50%", "all stop", "100.0%"],
        ["2", "100%", "all stop", "0.0%"],
    ]


def test_the_table_of_heads_and_of_a_pipeline(data):
    X, y = data
    pipeline = make_pipeline(ExitHeads((5,), max_epochs=1, random_state=0), ThresholdPolicy())
    assert "<summary>Exits</summary>" not in pipeline._repr_html_()
    html = pipeline.fit(X, y)._repr_html_()
    assert html.count("<summary>Exits</summary>") == 2
    assert [row[3] for row in exit_rows(html)] == [
        "Head",
        "4 features, 5 hidden units",
        "4 features, 5 hidden units",
        "none: the exit has logits",
    ]


def test_a_policy_with_heads_as_a_parameter_shows_its_own_table(data):
    policy = ThresholdPolicy(heads=ExitHeads()).fit(*data)
    html = policy._repr_html_()
    assert "Share of the fitted samples" in html
    assert 'class="sk-parallel"' not in html  # where scikit-learn draws the parameter, and folds the table away


@pytest.mark.parametrize("estimator", estimators(), ids=repr)
def test_estimators_that_are_not_fitted_show_no_table(estimator):
    html = estimator._repr_html_()
    assert type(estimator).__name__ in html
    assert "<summary>Exits</summary>" not in html
    assert estimator._get_doc_link() == ""  # scikit-learn's site has no page of it


def test_the_table_is_escaped(data):
    X, y = data
    hostile = X.with_layout(X.layout.replace(cost_unit="<script>alert(1)</script>"))
    html = ThresholdPolicy().fit(hostile, y)._repr_html_()
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
