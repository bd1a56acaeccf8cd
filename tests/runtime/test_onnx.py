import copy
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from live_networks import make_live
from sklearn.pipeline import make_pipeline
from torch import nn

from skexit import (
    EENetPolicy,
    EMExitAssigner,
    ExitEnsemble,
    ExitHeads,
    OptimalStoppingPolicy,
    StaticExit,
    ThresholdPolicy,
)
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel, OnnxEarlyExit, export_onnx, policy_to_json
from skexit.runtime._prepared import start

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
transformers = pytest.importorskip("transformers")

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
    policy = ThresholdPolicy(budget=0.8).fit(cnn_cache.X, cnn_cache.y).calibrate(cnn_cache.X, cnn_cache.y)
    return EarlyExitModel(cnn, CNN_EXITS, policy, example_input=images)


@pytest.fixture(scope="module")
def cnn_folder(cnn_live, tmp_path_factory):
    return export_onnx(cnn_live, tmp_path_factory.mktemp("onnx") / "new" / "folder")


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


def test_a_convolutional_network(cnn_live, cnn_folder, images):
    loop = OnnxEarlyExit(cnn_folder)
    output = assert_same_answers(loop, cnn_live, images)
    assert set(output.exits.tolist()) == {0, 1, 2}
    assert output.exits.dtype == np.int64
    for n_rows in (1, 2, 7):
        assert_same_answers(loop, cnn_live, images[-n_rows:])
    assert sorted(path.name for path in cnn_folder.iterdir()) == ["policy.json", *(f"stage{k}.onnx" for k in range(3))]
    np.testing.assert_array_equal(loop.classes, cnn_live.classes)


@pytest.mark.slow
def test_a_transformer_with_attention_masks(bert_live, texts, tmp_path):
    loop = OnnxEarlyExit(export_onnx(bert_live, tmp_path))
    output = assert_same_answers(loop, bert_live, texts)
    assert set(output.exits.tolist()) == {0, 1}
    for n_rows, length in ((1, 11), (5, 7), (4, 3)):
        assert_same_answers(loop, bert_live, {name: value[:n_rows, :length] for name, value in texts.items()})
    with pytest.raises(ValueError, match=r"a dict with the inputs \['input_ids', 'attention_mask'\], but got ndarray"):
        loop.predict(texts["input_ids"].numpy())
    with pytest.raises(ValueError, match=r"but got \['input_ids'\]"):
        loop.predict({"input_ids": texts["input_ids"].numpy()})
    with pytest.raises(ValueError, match=r"have \[90, 3\] rows"):
        loop.predict({"input_ids": texts["input_ids"].numpy(), "attention_mask": texts["attention_mask"][:3].numpy()})


@pytest.mark.filterwarnings("ignore:the mean cost on the fitting data:UserWarning")
def test_an_ensemble_before_a_policy_that_uses_the_most_confident(cnn, cnn_cache, images, tmp_path, monkeypatch):
    monkeypatch.setattr("skexit.runtime._onnx_export._LARGEST_FILE", 0)
    ensemble = ExitEnsemble().fit(cnn_cache.X, cnn_cache.y)
    policy = EENetPolicy(0.8, random_state=0, max_epochs=2, use_most_confident=True)
    policy.fit(ensemble.transform(cnn_cache.X), cnn_cache.y)
    live = EarlyExitModel(cnn, CNN_EXITS, policy, ensemble, example_input=images)
    assert_same_answers(OnnxEarlyExit(export_onnx(live, tmp_path)), live, images)
    assert (tmp_path / "stage0.onnx.data").exists()


class NamedClasses(nn.Module):
    """Two inputs by position, and features without a map."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x, shift):
        hidden = self.first(x).relu()
        return self.last(self.second(hidden + shift).relu())


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
    loop = OnnxEarlyExit(export_onnx(live, tmp_path / "onnx"))
    output, expected = loop.predict(tuple(part.numpy() for part in inputs)), live(inputs)
    np.testing.assert_array_equal(output.exits, expected.exits)
    np.testing.assert_array_equal(output.labels, expected.labels)
    np.testing.assert_allclose(output.probabilities, expected.probabilities, atol=1e-4)
    with pytest.raises(ValueError, match="takes 2 inputs, but got 1"):
        loop.predict(inputs[0].numpy())


class InPlace(nn.Module):
    """Changes what each of its exits gave."""

    def __init__(self):
        super().__init__()
        self.stem, self.body, self.classifier = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3), nn.Linear(6, 3)

    def forward(self, x):
        return self.classifier(self.body(self.stem(x).mul_(2).add_(1)).relu_().mean((2, 3)))


def test_a_network_that_works_in_place(images, labels, tmp_path):
    torch.manual_seed(0)
    model, exits = InPlace(), ["stem", "body"]
    cache = ExitExtractor(model, exits, head=None).extract([(images, labels)], tmp_path / "cache")
    policy = ThresholdPolicy(budget=0.9, heads=ExitHeads(cascade=True, random_state=0)).fit(cache.X, cache.y)
    live = EarlyExitModel(model, exits, policy, head=None, example_input=images)
    loop = OnnxEarlyExit(export_onnx(live, tmp_path / "onnx"))
    assert_same_answers(loop, live, images)
    at_stem = loop._stages[0].run([images.numpy()])
    at_body = loop._stages[1].run([at_stem["tensor0"]])
    network = live.prepare(images)
    runner, batch = network.used_exits, start(network, images)
    for k, outputs in enumerate((at_stem, at_body)):
        with torch.inference_mode():
            batch = runner.compute(k, batch)
            features = runner._read(k, batch)[1]
        np.testing.assert_allclose(outputs["features"], cache.X.features(k), atol=1e-4)
        np.testing.assert_allclose(features, cache.X.features(k), atol=1e-4)


def count_runs(loop, monkeypatch):
    """Rows with which each stage is called."""
    rows = [[] for _ in loop._stages]
    for noted, stage in zip(rows, loop._stages, strict=True):

        def run(inputs, noted=noted, original=stage.run):
            noted.append(len(inputs[0]))
            return original(inputs)

        monkeypatch.setattr(stage, "run", run)
    return rows


def test_only_who_is_left_goes_on(cnn_folder, images, monkeypatch):
    loop = OnnxEarlyExit(cnn_folder)
    rows = count_runs(loop, monkeypatch)
    exits = loop.predict(images.numpy()).exits
    assert rows == [[N_ROWS], [(exits > 0).sum()], [(exits > 1).sum()]]
    at_first = images.numpy()[exits == 0]
    for noted in rows:
        noted.clear()
    assert (loop.predict(at_first).exits == 0).all()
    assert rows == [[len(at_first)], [], []]


def test_stages_that_nobody_reaches_are_not_written(cnn, cnn_cache, images, tmp_path):
    live = EarlyExitModel(cnn, CNN_EXITS, StaticExit(1).fit(cnn_cache.X, cnn_cache.y), example_input=images)
    loop = OnnxEarlyExit(export_onnx(live, tmp_path))
    assert not (tmp_path / "stage2.onnx").exists()
    # Nobody leaves at the first exit, so that nothing is kept of it.
    assert loop._stages[0]._outputs == ["tensor0"]
    assert_same_answers(loop, live, images)


@pytest.mark.parametrize(("confidence_weight", "written"), [(np.inf, False), (0, True)])
def test_features_are_written_where_routers_are_used(confidence_weight, written, tmp_path):
    policy = EMExitAssigner(budget=0.7, confidence_weight=confidence_weight, max_epochs=1, random_state=0)
    live, x = make_live(policy)
    loop = OnnxEarlyExit(export_onnx(live, tmp_path))
    assert loop._decisions.policy.uses_routers_ == written
    assert any("features" in stage._outputs for stage in loop._stages) == written
    assert_same_answers(loop, live, x)


def test_the_loop_imports_no_torch(cnn_folder, cnn_live, images, tmp_path):
    np.save(tmp_path / "x.npy", images.numpy())
    code = (
        "import sys, numpy as np\n"
        "from skexit.runtime import OnnxEarlyExit\n"
        f"output = OnnxEarlyExit({str(cnn_folder)!r}).predict(np.load({str(tmp_path / 'x.npy')!r}))\n"
        "assert 'torch' not in sys.modules\n"
        "print(output.exits.tolist())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == cnn_live(images).exits.tolist()


def test_wrong_inputs(cnn_folder, images):
    loop, x = OnnxEarlyExit(cnn_folder), images.numpy()
    with pytest.raises(ValueError, match="x has the type float64, but the network was exported for float32"):
        loop.predict(x.astype(np.float64))
    with pytest.raises(ValueError, match=r"x has the shape \(90, 3, 9\), but .* exported for \(any, 3, 9, 9\)"):
        loop.predict(x[..., 0])
    with pytest.raises(ValueError, match=r"x has the shape \(90, 3, 9, 8\)"):
        loop.predict(x[..., 1:])
    with pytest.raises(ValueError, match=r"have \[0\] rows"):
        loop.predict(x[:0])


def test_a_bad_folder(cnn_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no policy\.json"):
        OnnxEarlyExit(tmp_path)
    text = (cnn_folder / "policy.json").read_text()
    (tmp_path / "policy.json").write_text(text)
    with pytest.raises(FileNotFoundError, match=r"stage0\.onnx is missing"):
        OnnxEarlyExit(tmp_path)
    (tmp_path / "policy.json").write_text(text[:100])
    with pytest.raises(ValueError, match=r"policy\.json cannot be read: this is no JSON"):
        OnnxEarlyExit(tmp_path)
    (tmp_path / "policy.json").write_text(json.dumps(json.loads(text) | {"content": {"steps": []}}))
    with pytest.raises(ValueError, match=r"policy\.json cannot be read: this JSON was changed"):
        OnnxEarlyExit(tmp_path)
    (tmp_path / "policy.json").write_text(policy_to_json({"steps": []}))
    with pytest.raises(ValueError, match="was not written by skexit"):
        OnnxEarlyExit(tmp_path)


def test_a_network_that_is_not_cut(cnn, cnn_live, tmp_path):
    with pytest.raises(RuntimeError, match=r"call prepare"):
        export_onnx(EarlyExitModel(cnn, CNN_EXITS, cnn_live.policy), tmp_path)


def test_a_type_that_numpy_does_not_have(cnn_cache, cnn_live, cnn, images, tmp_path):
    half = EarlyExitModel(copy.deepcopy(cnn).bfloat16(), CNN_EXITS, cnn_live.policy, example_input=images.bfloat16())
    with pytest.raises(ValueError, match=r"x is of torch\.bfloat16"):
        export_onnx(half, tmp_path)


def test_an_export_that_fails_leaves_nothing_to_load(cnn_live, cnn_folder, tmp_path, monkeypatch):
    folder = shutil.copytree(cnn_folder, tmp_path / "onnx")
    nothing = dict.fromkeys(["tensor0", "features"], np.zeros(1))
    monkeypatch.setattr("skexit.runtime._onnx_loop.OnnxStage.run", lambda stage, inputs: nothing)
    with pytest.raises(ValueError, match="the stage that ends at '2' gives other values than in torch"):
        export_onnx(cnn_live, folder)
    with pytest.raises(FileNotFoundError, match=r"has no policy\.json"):
        OnnxEarlyExit(folder)


def test_without_the_extra(cnn_live, cnn_folder, tmp_path, monkeypatch):
    missing = "{}, which is not installed: pip install 'skexit[{}]'"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(ImportError) as raised:
            OnnxEarlyExit(cnn_folder)
    assert str(raised.value) == "networks in ONNX need " + missing.format("onnxruntime", "onnx")
    for name in ("onnx", "onnxscript", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(ImportError) as raised:
                export_onnx(cnn_live, tmp_path)
        assert str(raised.value) == "an export to ONNX needs " + missing.format(name, "onnx-export")


def test_names_of_the_package():
    import skexit.runtime

    for name in skexit.runtime.__all__:
        assert getattr(skexit.runtime, name).__name__ == name
    assert dir(skexit.runtime) == skexit.runtime.__all__
    with pytest.raises(AttributeError, match=r"'skexit\.runtime' has no attribute 'nothing'"):
        _ = skexit.runtime.nothing
