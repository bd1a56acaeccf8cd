import copy
import importlib.util
import json
import logging
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from instances import POLICIES
from live_networks import make_live, make_token_live, policies
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from torch import nn

from skexit import (
    EENetPolicy,
    EMExitAssigner,
    ExitEnsemble,
    ExitHeads,
    JEIGatedEnsemble,
    OptimalStoppingPolicy,
    StaticExit,
    ThresholdPolicy,
)
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel, OnnxEarlyExit, export_onnx, set_policy

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
transformers = pytest.importorskip("transformers")
from skexit.runtime._onnx_parts import PartsSideBySide  # noqa: E402 - needs onnxscript

CNN_EXITS = ["2", "5", "8"]
BERT_EXITS = [f"bert.encoder.layer.{i}" for i in range(2)]
N_ROWS = 90


@pytest.fixture(scope="module")
def cnn():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True)),
        *(nn.Conv2d(6, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
    )
    model.train()
    model(torch.randn(50, 3, 9, 9))  # for running statistics that are no identity
    return model.eval()


@pytest.fixture(scope="module")
def images():
    return torch.from_numpy(np.random.default_rng(0).normal(size=(N_ROWS, 3, 9, 9)).astype(np.float32))


@pytest.fixture(scope="module")
def bert():
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
        num_labels=3,
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(config).eval()


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    mask = np.arange(11) < rng.integers(3, 12, size=N_ROWS)[:, None]
    ids = rng.integers(1, 40, size=(N_ROWS, 11)) * mask
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}


@pytest.fixture(scope="module")
def labels():
    return torch.from_numpy(np.random.default_rng(1).integers(3, size=N_ROWS))


@pytest.fixture(scope="module")
def cnn_cache(cnn, images, labels, tmp_path_factory):
    return ExitExtractor(cnn, CNN_EXITS).extract([(images, labels)], tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def cnn_live(cnn, cnn_cache, images):
    # Labels are random, and so is the network: it has nothing to teach.
    policy = ThresholdPolicy(budget=0.8, heads=ExitHeads(distillation=0, random_state=0)).fit(cnn_cache.X, cnn_cache.y)
    policy.calibrate(cnn_cache.X, cnn_cache.y)
    return EarlyExitModel(cnn, CNN_EXITS, policy, example_input=images)


@pytest.fixture(scope="module")
def cnn_file(cnn_live, tmp_path_factory):
    return export_onnx(cnn_live, tmp_path_factory.mktemp("onnx") / "new" / "network.onnx")


@pytest.fixture(scope="module")
def bert_live(bert, texts, labels, tmp_path_factory):
    cache = ExitExtractor(bert, BERT_EXITS).extract([dict(texts, labels=labels)], tmp_path_factory.mktemp("cache"))
    criterion = OptimalStoppingPolicy(0.7, use_features=True, random_state=0)
    policy = make_pipeline(ExitHeads(random_state=0, cascade=True), ThresholdPolicy(criterion, budget=0.7))
    return EarlyExitModel(bert, BERT_EXITS, policy.fit(cache.X, cache.y), example_input=texts)


def as_numpy(inputs):
    return {name: value.numpy() for name, value in inputs.items()} if isinstance(inputs, dict) else inputs.numpy()


def assert_same_answers(loop, live, inputs):
    output, expected = loop.predict(as_numpy(inputs)), live(inputs)
    assert all(isinstance(part, np.ndarray) for part in output)
    np.testing.assert_array_equal(output.exits, expected.exits)
    np.testing.assert_array_equal(output.labels, expected.labels)
    np.testing.assert_allclose(output.probabilities, expected.probabilities, atol=1e-4)
    return output


def test_a_convolutional_network(cnn_live, cnn_file, images):
    loop = OnnxEarlyExit(cnn_file)
    output = assert_same_answers(loop, cnn_live, images)
    assert set(output.exits.tolist()) == {0, 1, 2}
    assert output.exits.dtype == np.int64
    for n_rows in (1, 2, 7):
        assert_same_answers(loop, cnn_live, images[-n_rows:])
    assert [path.name for path in cnn_file.parent.iterdir()] == ["network.onnx"]
    np.testing.assert_array_equal(loop.classes, cnn_live.classes)
    assert loop.classes.dtype == cnn_live.classes.dtype
    assert loop.exits == CNN_EXITS


@pytest.mark.slow
def test_a_transformer_with_attention_masks(bert_live, texts, tmp_path):
    loop = OnnxEarlyExit(export_onnx(bert_live, tmp_path / "network.onnx"))
    output = assert_same_answers(loop, bert_live, texts)
    assert set(output.exits.tolist()) == {0, 1}
    for n_rows, length in ((1, 11), (5, 7), (4, 3)):
        assert_same_answers(loop, bert_live, {name: value[:n_rows, :length] for name, value in texts.items()})
    with pytest.raises(ValueError, match=r"needs the inputs \['input_ids', 'attention_mask'\] by name, but got nd"):
        loop.predict(texts["input_ids"].numpy())
    arrays = {name: value.numpy() for name, value in texts.items()}
    for part, by_name in zip(loop.predict(arrays), loop.predict(**arrays), strict=True):
        np.testing.assert_array_equal(part, by_name)
    with pytest.raises(ValueError, match="all by position or all by name"):
        loop.predict(arrays.pop("input_ids"), **arrays)
    with pytest.raises(ValueError, match=r"but got \['input_ids'\]"):
        loop.predict({"input_ids": texts["input_ids"].numpy()})
    with pytest.raises(ValueError, match=r"have \[90, 3\] rows"):
        loop.predict({"input_ids": texts["input_ids"].numpy(), "attention_mask": texts["attention_mask"][:3].numpy()})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the mean cost on the fitting data:UserWarning")
def test_an_ensemble_before_a_policy_that_uses_the_most_confident(cnn, cnn_cache, images, tmp_path, monkeypatch):
    monkeypatch.setattr("skexit.runtime._onnx_export._LARGEST_FILE", 0)
    ensemble = ExitEnsemble().fit(cnn_cache.X, cnn_cache.y)
    policy = EENetPolicy(0.8, random_state=0, max_epochs=2, use_most_confident=True)
    policy.fit(ensemble.transform(cnn_cache.X), cnn_cache.y)
    live = EarlyExitModel(cnn, CNN_EXITS, policy, ensemble, example_input=images)
    assert_same_answers(OnnxEarlyExit(export_onnx(live, tmp_path / "network.onnx")), live, images)
    assert (tmp_path / "network.onnx.data").exists()


class NamedClasses(nn.Module):
    """Two inputs by position, and features without a map."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x, shift):
        hidden = self.first(x).relu()
        return self.last(self.second(hidden + shift).relu())


@pytest.mark.slow
def test_two_inputs_and_classes_that_are_words(tmp_path):
    torch.manual_seed(0)
    model, inputs = NamedClasses(), (torch.randn(40, 5), torch.randn(40, 6))
    exits, y = ["first", "last"], np.array(["dog", "cat"])[np.arange(40) % 2]
    live_inputs = {"x": inputs[0], "shift": inputs[1]}
    cache = ExitExtractor(model, exits).extract(
        [dict(live_inputs, labels=torch.arange(40) % 2)], tmp_path / "cache", classes=[1, 0]
    )
    words = cache.X.with_layout(cache.X.layout.replace(classes=["dog", "cat"]))
    policy = ThresholdPolicy(budget=0.8).fit(words, y)
    live = EarlyExitModel(model, exits, policy, example_input=inputs)
    loop = OnnxEarlyExit(export_onnx(live, tmp_path / "network.onnx"))
    output, expected = loop.predict(tuple(part.numpy() for part in inputs)), live(inputs)
    np.testing.assert_array_equal(output.exits, expected.exits)
    np.testing.assert_array_equal(output.labels, expected.labels)
    np.testing.assert_allclose(output.probabilities, expected.probabilities, atol=1e-4)
    np.testing.assert_array_equal(loop.predict(*(part.numpy() for part in inputs)).exits, output.exits)
    with pytest.raises(ValueError, match="needs 2 inputs, but got 1"):
        loop.predict(inputs[0].numpy())


class InPlace(nn.Module):
    """Changes what each of its exits gave."""

    def __init__(self):
        super().__init__()
        self.stem, self.body, self.classifier = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3), nn.Linear(6, 3)

    def forward(self, x):
        return self.classifier(self.body(self.stem(x).mul_(2).add_(1)).relu_().mean((2, 3)))


@pytest.mark.slow
def test_a_network_that_works_in_place(images, labels, tmp_path):
    torch.manual_seed(0)
    model, exits = InPlace(), ["stem", "body"]
    cache = ExitExtractor(model, exits, head=None).extract([(images, labels)], tmp_path / "cache")
    policy = ThresholdPolicy(budget=0.9, heads=ExitHeads(cascade=True, random_state=0)).fit(cache.X, cache.y)
    live = EarlyExitModel(model, exits, policy, head=None, example_input=images)
    loop = OnnxEarlyExit(export_onnx(live, tmp_path / "network.onnx"))
    assert_same_answers(loop, live, images)


def nodes_run(path, x, folder):
    """Names of the parts of the file that run for some inputs, unoptimised."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    loop = OnnxEarlyExit(path, session_options=options)
    loop.predict(x)
    with open(loop.session.end_profiling()) as file:
        return {event["name"].partition("/")[0] for event in json.load(file) if event["cat"] == "Node"}


def all_nodes(graph):
    """Nodes of a graph, and of those within it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from all_nodes(attribute.g)


def parts_of(path):
    return {node.name.partition("/")[0] for node in all_nodes(onnx.load(path).graph)}


def test_only_stages_that_a_sample_reaches_run(cnn_file, cnn_live, images, tmp_path):
    exits = cnn_live(images).exits
    for k in range(3):
        rows = images[exits <= k].numpy()
        run = nodes_run(cnn_file, rows, tmp_path)
        assert {f"stage{j}" in run for j in range(k + 1)} == {True}
        assert not any(f"stage{j}" in run for j in range(k + 1, 3))


@pytest.mark.slow
def test_stages_that_nobody_reaches_are_not_written(cnn, cnn_cache, images, tmp_path):
    live = EarlyExitModel(cnn, CNN_EXITS, StaticExit(1).fit(cnn_cache.X, cnn_cache.y), example_input=images)
    path = export_onnx(live, tmp_path / "network.onnx")
    # Nobody leaves at the first exit, which is no end of a stage then.
    assert {part for part in parts_of(path) if part.startswith(("stage", "exit"))} == {"stage1", "exit1"}
    assert_same_answers(OnnxEarlyExit(path), live, images)


@pytest.mark.slow
@pytest.mark.parametrize(("confidence_weight", "is_written"), [(np.inf, False), (0, True)])
def test_features_are_written_where_routers_are_used(confidence_weight, is_written, tmp_path):
    policy = EMExitAssigner(budget=0.7, confidence_weight=confidence_weight, max_epochs=1, random_state=0)
    live, x = make_live(policy)
    path = export_onnx(live, tmp_path / "network.onnx")
    decisions = [node for node in all_nodes(onnx.load(path).graph) if node.name.startswith("exit0/")]
    assert any(node.op_type in ("Gemm", "MatMul") for node in decisions) == is_written
    assert_same_answers(OnnxEarlyExit(path), live, x)


class Functions(nn.Module):
    def forward(self, x):
        return {
            "log1p": torch.log1p(x["x"].abs()),
            "expm1": torch.expm1(x["x"].clamp(max=700)),
            "logaddexp": torch.logaddexp(x["x"], x["x"].flip(0) / 3),
            "asinh": torch.asinh(x["x"]),
            "sigmoid": torch.sigmoid(x["x"]),
            "softplus": torch.nn.functional.softplus(x["x"], 1, 40),
            "scaled softplus": torch.nn.functional.softplus(x["x"], 0.5, 40),
            "numbers": torch.where(x["x"] < 1e-9, x["x"].clamp(min=-0.1), 20.7232658 + x["x"] * 1e-9),
            "number": torch.where(x["x"] < 1e-9, 0.1, torch.full_like(x["x"], 0.3)),
            "sort": torch.sort(x["x"][:, None] * torch.tensor([1.0, -1.0, 0.5], dtype=x["x"].dtype), stable=True)[0],
            "logsumexp": torch.logsumexp(x["x"][:, None] * torch.tensor([1.0, 0.5], dtype=x["x"].dtype), 1),
        }


def test_functions_are_exact_in_double_precision(tmp_path):
    sizes = np.concatenate([np.logspace(-300, 3, 400), [0.0]])
    x = {"x": torch.from_numpy(np.concatenate([-sizes, sizes]))}
    part = Functions()
    program = PartsSideBySide({"part": part}, {"part": x}, {"part": part(x)}, {"part": {"x": [None]}}).to_onnx()
    program.save(tmp_path / "part.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "part.onnx")
    values = session.run(None, {"part/x": x["x"].numpy()})
    for (name, expected), value in zip(part(x).items(), values, strict=True):
        np.testing.assert_allclose(value, expected.numpy(), rtol=1e-13, atol=1e-300, err_msg=name)


def has_ridge(policy):
    return isinstance(getattr(policy, "estimator", None), Ridge)


ALL_POLICIES = {repr(policy): policy for policy in POLICIES if not has_ridge(policy)} | policies()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the mean cost on the fitting data:UserWarning")
@pytest.mark.filterwarnings("ignore:some of the budget is left:UserWarning")
@pytest.mark.filterwarnings("ignore:no budget qualifies:UserWarning")
@pytest.mark.parametrize("name", ALL_POLICIES)
def test_every_policy(name, tmp_path):
    live, x = make_live(clone(ALL_POLICIES[name]))
    loop = OnnxEarlyExit(export_onnx(live, tmp_path / "network.onnx"))
    exits = assert_same_answers(loop, live, x).exits
    for n_rows in (1, 2, 512):
        assert_same_answers(loop, live, x[torch.arange(n_rows) % len(x)])
    for k in set(exits.tolist()):  # all leave at once, early or late
        assert_same_answers(loop, live, x[exits == k])


@pytest.mark.slow
def test_a_file_has_no_weights_that_it_does_not_use(cnn, cnn_cache, images, tmp_path, capfd):
    X, y = cnn_cache.X, cnn_cache.y
    live = EarlyExitModel(
        cnn,
        CNN_EXITS,
        OptimalStoppingPolicy(0.9, heads=ExitHeads(random_state=0), random_state=0).fit(X, y),
        example_input=images[:1],
    )
    export_onnx(live, tmp_path / "network.onnx")
    OnnxEarlyExit(tmp_path / "network.onnx")
    assert "Removing initializer" not in capfd.readouterr().err


def test_sequences_of_any_length(tmp_path):
    live, draw = make_token_live(ThresholdPolicy(budget=0.8, heads=ExitHeads(random_state=0)))
    loop = OnnxEarlyExit(export_onnx(live, tmp_path / "network.onnx"))
    for n_samples, length in ((50, 7), (1, 3), (20, 12)):
        assert_same_answers(loop, live, draw(n_samples, length))


class GoesPast(nn.Module):
    """What comes before its exit is added after it."""

    def __init__(self):
        super().__init__()
        self.stem, self.first, self.second, self.last = (nn.Linear(5, n) for n in (5, 5, 5, 3))

    def forward(self, x):
        stem = self.stem(x).relu()
        return self.last(self.second(self.first(stem).relu()).relu() + stem)


@pytest.mark.slow
def test_tensors_that_go_past_an_exit(tmp_path):
    torch.manual_seed(0)
    model, exits, x = GoesPast().eval(), ["first", "second"], torch.randn(80, 5)
    cache = ExitExtractor(model, exits).extract([(x, torch.arange(80) % 3)], tmp_path / "cache")
    policy = ThresholdPolicy(budget=0.8, heads=ExitHeads(random_state=0)).fit(cache.X, cache.y)
    live = EarlyExitModel(model, exits, policy, example_input=x)
    output = assert_same_answers(OnnxEarlyExit(export_onnx(live, tmp_path / "network.onnx")), live, x)
    assert set(output.exits.tolist()) == {0, 1}


@pytest.mark.slow
def test_an_estimator_of_scikit_learn_is_named(tmp_path):
    live, _ = make_live(OptimalStoppingPolicy(0.6, estimator=Ridge(), random_state=0))
    with pytest.raises(ValueError, match=r"Ridge.* cannot be written as ONNX"):
        export_onnx(live, tmp_path / "network.onnx")


def test_stages_that_cannot_be_recorded_are_told_from_decisions(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("Constraints violated.\nMore of it.")

    live, _ = make_live(ThresholdPolicy(budget=0.6))
    monkeypatch.setattr(torch.export, "export", refuse)
    with pytest.raises(ValueError, match=r"^the network up to exit 'blocks.0' .*: Constraints violated\. Run the live"):
        export_onnx(live, tmp_path / "network.onnx")


def test_what_the_file_says_of_itself(cnn_file, cnn_live):
    session = onnxruntime.InferenceSession(cnn_file)
    assert [value.name for value in session.get_inputs()] == ["x"]
    assert [value.name for value in session.get_outputs()] == ["labels", "probabilities", "exits"]
    described = {
        name.removeprefix("skexit."): json.loads(text)
        for name, text in session.get_modelmeta().custom_metadata_map.items()
    }
    assert described["exits"] == CNN_EXITS
    assert described["classes"] == cnn_live.classes.tolist()
    assert described["costs"] == cnn_live.policy.layout_.costs.tolist()
    assert described["cost_unit"] == cnn_live.policy.layout_.cost_unit
    assert described["inputs"] == [{"name": "x", "dtype": "float32", "shape": [None, 3, 9, 9]}]
    onnx.checker.check_model(cnn_file, full_check=True)


def test_a_folder_for_a_file(cnn_live, tmp_path):
    with pytest.raises(IsADirectoryError, match=r"^path='.*' is a folder; give the name of a file, such as"):
        export_onnx(cnn_live, tmp_path)


def test_another_budget(cnn, cnn_file, cnn_live, cnn_cache, images, tmp_path):
    path = shutil.copy(cnn_file, tmp_path / "network.onnx")
    for budget in (0.6, 0.95):
        policy = cnn_live.policy.with_budget(budget).calibrate(cnn_cache.X, cnn_cache.y)
        set_policy(path, policy)
        live = EarlyExitModel(cnn, CNN_EXITS, policy, example_input=images)
        assert_same_answers(OnnxEarlyExit(path), live, images)
    for other in (ThresholdPolicy("margin"), JEIGatedEnsemble(max_epochs=1, random_state=0)):
        with pytest.raises(ValueError, match="has other scores than the policy in"):
            set_policy(path, other.fit(cnn_cache.X, cnn_cache.y))
    onnx.save(onnx.ModelProto(), path)
    with pytest.raises(ValueError, match="was not written by export_onnx"):
        set_policy(path, policy)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the mean cost on the fitting data", "ignore:routers add nothing")
@pytest.mark.parametrize(
    "policy",
    [JEIGatedEnsemble(budget=0.5, random_state=0), EMExitAssigner(budget=0.5, confidence_weight=0.5, random_state=0)],
)
def test_another_budget_of_policies_that_learn(policy, tmp_path):
    live, x = make_live(policy)
    path = export_onnx(live, tmp_path / "network.onnx")
    policy = live.policy.with_budget(0.95)
    set_policy(path, policy)  # with the same gates, or routers
    assert_same_answers(OnnxEarlyExit(path), EarlyExitModel(live.model, live.exits, policy, example_input=x), x)


@pytest.mark.slow
def test_other_gates_need_the_export_that_the_error_names(tmp_path):
    live, x = make_live(JEIGatedEnsemble(budget=0.5, random_state=0))
    path = export_onnx(live, tmp_path / "network.onnx")
    model, exits, policy = live.model, live.exits, live.policy.with_budget(0.6)
    policy.lam_, policy.gates_ = next(gates for gates in policy.fit_state_.path if gates[0] != live.policy.lam_)
    policy.set_thresholds(policy.fitted_scores(), policy.fit_state_.weight)
    cure = "export_onnx(EarlyExitModel(model, exits, policy, example_input=x), path)"
    with pytest.raises(ValueError, match=rf"only thresholds and temp.* Write the file again: {re.escape(cure)}\.$"):
        set_policy(path, policy)
    eval(cure)
    output = assert_same_answers(OnnxEarlyExit(path), EarlyExitModel(model, exits, policy, example_input=x), x)
    assert (output.exits != live(x).exits.numpy()).any()


@pytest.mark.slow
def test_another_budget_at_exits_that_were_not_written(tmp_path):
    live, x = make_live(ThresholdPolicy(budget=0.6), thresholds={1: np.inf})
    path = export_onnx(live, tmp_path / "network.onnx")
    assert_same_answers(OnnxEarlyExit(path), live, x)
    with pytest.raises(
        ValueError, match=r"stops samples at exits \[0, 1, 2, 3\], but .* decisions only at exits \[0, 2, 3\]"
    ):
        set_policy(path, live.policy.with_budget(0.7))


def test_no_rows_that_are_not_numbers(cnn_file, images):
    x = images.numpy().copy()
    x[2, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"logits of exit 0, for row 2 of the inputs, contain NaN"):
        OnnxEarlyExit(cnn_file).predict(x)


def test_the_loop_imports_no_torch(cnn_file, cnn_live, images, tmp_path):
    np.save(tmp_path / "x.npy", images.numpy())
    code = (
        "import sys, numpy as np\n"
        "from skexit.runtime import OnnxEarlyExit\n"
        f"output = OnnxEarlyExit({str(cnn_file)!r}).predict(np.load({str(tmp_path / 'x.npy')!r}))\n"
        "assert 'torch' not in sys.modules\n"
        "print(output.exits.tolist())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == cnn_live(images).exits.tolist()


def test_wrong_inputs(cnn_file, images):
    loop, x = OnnxEarlyExit(cnn_file), images.numpy()
    with pytest.raises(ValueError, match="x has the type float64, but the network was exported for float32"):
        loop.predict(x.astype(np.float64))
    with pytest.raises(ValueError, match=r"x has the shape \(90, 3, 9\), but .* exported for \(any, 3, 9, 9\)"):
        loop.predict(x[..., 0])
    with pytest.raises(ValueError, match=r"x has the shape \(90, 3, 9, 8\)"):
        loop.predict(x[..., 1:])
    with pytest.raises(ValueError, match=r"have \[0\] rows"):
        loop.predict(x[:0])


def test_a_bad_file(cnn_file, tmp_path):
    (tmp_path / "text.onnx").write_text("not a network")
    with pytest.raises(ValueError, match=r"text\.onnx' is not an ONNX file; write one with skexit.runtime.export_onnx"):
        OnnxEarlyExit(tmp_path / "text.onnx")
    with pytest.raises(FileNotFoundError, match=r"there is no file '.*missing\.onnx'"):
        OnnxEarlyExit(tmp_path / "missing.onnx")
    other = onnx.load(cnn_file)
    del other.metadata_props[:]
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(ValueError, match="was not written by export_onnx"):
        OnnxEarlyExit(tmp_path / "other.onnx")


def test_a_network_that_is_not_divided(cnn, cnn_live, tmp_path):
    with pytest.raises(RuntimeError, match=r"call prepare"):
        export_onnx(EarlyExitModel(cnn, CNN_EXITS, cnn_live.policy), tmp_path / "network.onnx")


def test_more_exits_than_can_be_nested(cnn_live, tmp_path, monkeypatch):
    monkeypatch.setattr("skexit.runtime._onnx_export._MOST_NESTED", 1)
    with pytest.raises(ValueError, match=r"stops samples at 2 exits before the last.* at most 1 nested stages"):
        export_onnx(cnn_live, tmp_path / "network.onnx")


def test_a_type_that_numpy_does_not_have(cnn_cache, cnn_live, cnn, images, tmp_path):
    half = EarlyExitModel(copy.deepcopy(cnn).bfloat16(), CNN_EXITS, cnn_live.policy, example_input=images.bfloat16())
    with pytest.raises(ValueError, match=r"x has the type torch\.bfloat16"):
        export_onnx(half, tmp_path / "network.onnx")


def test_an_export_that_fails_leaves_the_file_as_it_was(cnn_live, tmp_path, monkeypatch):
    class Nothing:
        def get_inputs(self):
            return []

        def run(self, names, inputs):
            return [np.zeros(1, dtype=np.float32)] * len(names)

    path = tmp_path / "network.onnx"
    path.write_text("before")
    monkeypatch.setattr("skexit.runtime._onnx_export.make_session", lambda path: Nothing())
    with pytest.raises(ValueError, match="other values than torch for the stage up to exit '2'"):
        export_onnx(cnn_live, path)
    assert path.read_text() == "before"


def test_without_the_extra(cnn_live, cnn_file, tmp_path, monkeypatch):
    missing = "{}, which is not installed: pip install 'skexit[{}]'"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(ImportError) as raised:
            OnnxEarlyExit(cnn_file)
    assert str(raised.value) == "networks in ONNX need " + missing.format("onnxruntime", "onnx")
    for name in ("onnx", "onnxscript", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(ImportError) as raised:
                export_onnx(cnn_live, tmp_path / "network.onnx")
        assert str(raised.value) == "an export to ONNX needs " + missing.format(name, "onnx-export")


def test_names_of_the_package():
    import skexit.runtime

    for name in skexit.runtime.__all__:
        assert getattr(skexit.runtime, name).__name__ == name
    assert dir(skexit.runtime) == skexit.runtime.__all__
    with pytest.raises(AttributeError, match=r"'skexit\.runtime' has no attribute 'nothing'"):
        _ = skexit.runtime.nothing


@pytest.mark.slow
def test_an_export_does_not_miss_torchvision(cnn_live, tmp_path, monkeypatch, caplog):
    """As where it is not installed, which torch.onnx warns of once per operation."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torchvision" else find(name))
    # torch keeps its messages from other handlers.
    monkeypatch.setattr(logging.getLogger("torch"), "propagate", True)
    export_onnx(cnn_live, tmp_path / "network.onnx")
    assert "torchvision" not in caplog.text
