"""ConvExitHeads: what they learn, cost and refuse, and that all who apply them agree."""

import subprocess
import sys

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from skexit import (
    ConvExitHeads,
    ExitHeads,
    ExitLayout,
    ExitTransformer,
    ThresholdPolicy,
    make_exit_pipeline,
    stack_exits,
)
from skexit._nn._conv import ConvNetwork
from skexit._nn._dense import DenseNetwork
from skexit.extraction import ExitExtractor
from skexit.heads._conv_model import ConvModel
from skexit.heads._conv_scaling import HeadScaling, head_scaling
from skexit.runtime import EarlyExitModel, OnnxEarlyExit, export_onnx, policy_from_json, policy_to_json

torch = pytest.importorskip("torch")

QUICK = ConvExitHeads((3, 4), max_epochs=3, random_state=0)


def make_bars(n_samples=400, seed=0, n_channels=2, side=6):
    """Maps with a bar of four at a random place, upright or lying: no single place tells the two classes apart."""
    rng = np.random.default_rng(seed)
    y = rng.integers(2, size=n_samples)
    maps = rng.normal(scale=0.3, size=(n_samples, n_channels, side, side))
    for image, label in zip(maps, y, strict=True):
        along, across = rng.integers(side - 3), rng.integers(side)
        place = (slice(along, along + 4), across) if label else (across, slice(along, along + 4))
        image[0][place] += 1.5
    return 5 * maps + 20, y


def make_exits(n_samples=300, seed=0, own_logits=True, **options):
    """An exit of a map between other features, one of features alone, one of a map alone, and one with logits."""
    maps, y = make_bars(n_samples, seed)
    rng = np.random.default_rng(seed)
    beside = rng.normal(size=(n_samples, 5)) + y[:, None]
    first = np.hstack([beside[:, :2], maps.reshape(n_samples, -1), beside[:, 2:]])
    last = 2 * rng.normal(size=(n_samples, 2)) + 6 * np.eye(2)[y]
    X = stack_exits([None, None, None, last] if own_logits else None, [first, beside, maps, beside], **options)
    return X.with_layout(X.layout.replace(feature_maps=[(2, *maps.shape[1:]), None, (0, *maps.shape[1:]), None])), y


def accuracy(X, k, y):
    return np.mean(X.logits(k).argmax(axis=1) == y)


class TestWhatIsLearned:
    def test_what_is_the_same_at_every_place(self):
        maps, y = make_bars(1200)
        X, new, new_y = stack_exits(features=[maps[:800]]), stack_exits(features=[maps[800:]]), y[800:]
        heads = ConvExitHeads((8, 8), max_epochs=15, random_state=0).fit(X, y[:800])
        assert accuracy(heads.transform(new), 0, new_y) > 0.95
        assert accuracy(ExitHeads().fit(X, y[:800]).transform(new), 0, new_y) < 0.75

    def test_features_beside_the_map(self):
        X, y = make_exits()
        heads = clone(QUICK).set_params(max_epochs=20).fit(X, y)
        assert accuracy(heads.transform(X), 0, y) > 0.8
        without = np.asarray(X).copy()
        columns = X.layout.feature_columns(0)
        without[:, [columns.start, columns.stop - 1]] = 0
        assert (heads.transform(without).logits(0) != heads.transform(X).logits(0)).any(axis=1).all()

    def test_an_exit_without_a_map_has_a_linear_head(self):
        X, y = make_exits()
        heads = clone(QUICK).fit(X, y)
        assert isinstance(heads.networks_[1], DenseNetwork)
        np.testing.assert_allclose(heads.transform(X).logits(1), ExitHeads().fit(X, y).transform(X).logits(1))

    def test_own_logits_are_kept(self):
        X, y = make_exits()
        heads = clone(QUICK)
        for added in (heads.fit_transform(X, y), heads.transform(X)):
            np.testing.assert_array_equal(added.logits(3), X.logits(3))
            for k in range(4):
                np.testing.assert_array_equal(added.features(k), X.features(k))
        assert heads.networks_[3] is None
        stacked = stack_exits(np.random.default_rng(0).normal(size=(20, 2, 3)))
        np.testing.assert_array_equal(np.asarray(QUICK.fit_transform(stacked, np.arange(20) % 3)), np.asarray(stacked))

    def test_the_network_teaches_and_rows_need_no_labels(self):
        X, y = make_exits(600)
        few = np.where(np.arange(600) < 20, y, -1)
        heads = clone(QUICK).set_params(channels=(8, 8), max_epochs=15)
        assert accuracy(heads.fit(X[:400], few[:400]).transform(X[400:]), 2, y[400:]) > 0.9
        assert heads.distillation_ == 0.9
        assert accuracy(heads.set_params(distillation=0).fit(X[:400], few[:400]).transform(X[400:]), 2, y[400:]) < 0.8
        wrong = stack_exits([None, None, None, X.logits(3)[:, ::-1]], [X.features(k) for k in range(4)])
        taught = heads.set_params(distillation=1.0).fit(wrong.with_layout(X.layout), y).transform(X)
        assert accuracy(taught, 2, y) < 0.2

    @pytest.mark.parametrize("dtype", ["float16", "float32"])
    def test_a_handful_of_rows(self, dtype):
        maps = np.arange(12, dtype=dtype).reshape(3, 1, 2, 2)
        heads = ConvExitHeads((2,), (1,), batch_size=1, cv=2, max_epochs=2)
        for features in (maps, maps[:, :, :1, :1], np.zeros_like(maps)):
            added = clone(heads).fit_transform(stack_exits(features=[features, features]), [0, 1, 0])
            assert np.isfinite(np.asarray(added)).all()


class TestTraining:
    @pytest.mark.parametrize("place", [(2, 3, 4, 5), (0, 3, 4, 5), (10, 3, 4, 5)])
    def test_what_is_kept_is_what_was_trained(self, place):
        """Normalisation and standardisation are folded into kernels and weights."""
        rng = np.random.default_rng(0)
        model = ConvModel(
            place, 70, 3, channels=(4, 6), strides=(2, 1), dropout=0.0, generator=torch.Generator().manual_seed(0)
        )
        with torch.no_grad():
            for norm in model.norms:
                for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                    values.copy_(torch.rand(values.shape) + 0.5)
        channels = rng.normal(size=3), rng.uniform(0.5, 2, size=3)
        scaling = HeadScaling(place, channels, (rng.normal(size=10), rng.uniform(0.5, 2, size=10)))
        mean, scale = scaling.columns()
        features = rng.normal(size=(20, 70))
        # In evaluation mode, by torch's own layers: averages of the batches so far.
        seen = torch.as_tensor((features - mean) / scale, dtype=torch.float32)
        with torch.no_grad():
            first, *shape = place
            maps = seen[:, first : first + 60].reshape(-1, *shape)
            for convolution, norm in zip(model.convolutions, model.norms, strict=True):
                maps = norm.eval()(convolution(maps)).relu()
            seen = torch.cat([maps.flatten(1), seen[:, :first], seen[:, first + 60 :]], dim=1)
            expected = model.linear(seen).numpy()
        np.testing.assert_allclose(model.to_network(scaling)(features), expected, rtol=1e-4, atol=1e-4)

    def test_standardisation(self):
        X, _ = make_exits(own_logits=False)
        maps, beside = X.features(2).reshape(300, 2, 36), X.features(1)
        for k in (0, 2):
            scaling = head_scaling(X, k, X.layout.feature_maps[k])
            np.testing.assert_allclose(scaling.channels[0], maps.mean(axis=(0, 2)))
            np.testing.assert_allclose(scaling.channels[1], maps.std(axis=(0, 2)))
            if k == 0:
                np.testing.assert_allclose(scaling.others, [beside.mean(axis=0), beside.std(axis=0)])
            columns = (X.features(k) - scaling.columns()[0]) / scaling.columns()[1]
            assert np.mean(columns**2) == pytest.approx(1)

    def test_random_state_decides_and_torchs_own_generator_is_left_alone(self):
        X, y = make_exits()
        heads = clone(QUICK).set_params(dropout=0.3)
        before = torch.random.get_rng_state()
        one, same = (np.asarray(clone(heads).fit_transform(X, y)) for _ in range(2))
        np.testing.assert_array_equal(one, same)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert (np.asarray(clone(heads).set_params(random_state=1).fit_transform(X, y)) != one).any()

    def test_fit_forgets_what_was_fitted(self):
        X, y = make_exits()
        heads = clone(QUICK).fit(X[:100], 1 - y[:100])
        np.testing.assert_array_equal(heads.fit(X, y).transform(X), clone(QUICK).fit(X, y).transform(X))

    def test_verbose_shows_progress(self, capsys):
        clone(QUICK).set_params(verbose=True).fit(*make_exits())
        assert "heads" in capsys.readouterr().err


class TestCrossFitting:
    def test_equals_a_loop_over_the_folds(self):
        X, y = make_exits()
        found = clone(QUICK).set_params(cv=KFold(2), distillation=0).fit_transform(X, y)
        for train, test in KFold(2).split(y):
            expected = clone(QUICK).set_params(distillation=0).fit(X[train], y[train]).transform(X[test])
            for k in range(4):
                np.testing.assert_allclose(found[test].logits(k), expected.logits(k), rtol=1e-5, atol=1e-5)

    @pytest.mark.slow
    def test_labels_that_nothing_explains_are_guessed_at_chance(self):
        rng = np.random.default_rng(0)
        X = stack_exits(features=list(rng.normal(size=(2, 300, 2, 6, 6))))
        y = rng.permutation(np.arange(300) % 2)
        heads = ConvExitHeads((16, 16), max_epochs=30, random_state=0)
        cross_fitted = heads.fit_transform(X, y)
        for k in range(2):
            assert accuracy(heads.transform(X), k, y) > 0.9
            assert accuracy(cross_fitted, k, y) == pytest.approx(0.5, abs=0.1)

    def test_temperatures(self):
        X, y = make_exits()
        plain, scaled = (clone(QUICK).set_params(temperature_scaling=scales).fit(X, y) for scales in (False, True))
        temperatures = []
        for k in range(3):
            quotients = plain.transform(X).logits(k) / scaled.transform(X).logits(k)
            np.testing.assert_allclose(quotients, quotients[0, 0], rtol=1e-4)
            temperatures.append(quotients[0, 0])
        assert np.ptp(temperatures) > 0.1


class TestCosts:
    @pytest.mark.parametrize(("unit", "each"), [("MACs", 1), ("FLOPs", 2), ("ms", 0)])
    def test_by_hand(self, unit, each):
        X, y = make_exits(costs=[1e4, 2e4, 3e4, 4e4], cost_unit=unit)
        heads = clone(QUICK).fit(X, y)
        convolutions = 9 * (2 * 3 + 3 * 4) * 3 * 3  # of maps of 6 x 6, with a stride of 2
        of_heads = np.cumsum([convolutions + (4 * 9 + 5) * 2, 5 * 2, convolutions + 4 * 9 * 2, 0])
        np.testing.assert_array_equal(heads.layout_out_.head_costs, each * of_heads)
        np.testing.assert_array_equal(heads.layout_out_.costs, X.layout.costs + each * of_heads)
        assert heads.transform(X).layout == heads.layout_out_

    def test_are_shown(self):
        html = clone(QUICK).fit(*make_exits())._repr_html_()
        for words in ("map of 2 x 6 x 6, 3 kernels, 4 kernels", "5 features, no map", "none: the exit has logits"):
            assert words in html


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"channels": ()}, r"^channels=\(\) must hold one positive integer for each layer, at least one\.$"),
        ({"channels": (3, 0)}, r"^channels=\(3, 0\) must hold one positive integer for each layer"),
        ({"channels": (3, 2.5)}, r"^channels=\(3, 2\.5\) must hold"),
        ({"strides": (1, 0)}, r"^strides=\(1, 0\) must hold one positive integer for each layer"),
        (
            {"channels": (3,)},
            r"^channels=\(3,\) and strides=\(2, 1\) must have the same length, .* pass strides=\(1,\)\.$",
        ),
        ({"channels": 3}, "The 'channels' parameter of ConvExitHeads must be an array-like"),
        ({"dropout": 1.0}, "The 'dropout' parameter of ConvExitHeads must be"),
    ],
)
def test_wrong_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        clone(QUICK).set_params(**parameters).fit(*make_exits())


def test_the_cure_of_wrong_strides_works():
    clone(QUICK).set_params(channels=(3,), strides=(1,)).fit(*make_exits())


def test_no_map_at_all_is_warned_of():
    X, y = make_exits()
    plain = X.with_layout(X.layout.replace(feature_maps=None))
    with pytest.warns(UserWarning, match=r"^no exit of X that needs a head has a map, .* pool=\('avg', 'grid8'\)"):
        clone(QUICK).fit(plain, y)
    layout = ExitLayout([0, 0, 0, 2], X.layout.n_features, feature_maps=X.layout.feature_maps)
    heads = clone(QUICK).set_params(layout=layout).fit(plain, y)  # as the warning says
    assert isinstance(heads.networks_[0], ConvNetwork)


def test_scaled_maps_are_maps():
    X, y = make_exits()
    scaled = ExitTransformer(StandardScaler()).fit(X, y).transform(X)
    assert scaled.layout.feature_maps == X.layout.feature_maps
    assert isinstance(clone(QUICK).fit(scaled, y).networks_[0], ConvNetwork)
    reduced = ExitTransformer(PCA(2)).fit(X, y).transform(X)
    assert not any(reduced.layout.feature_maps)
    with pytest.warns(UserWarning, match="ExitTransformer removes maps, unless .* as StandardScaler does"):
        clone(QUICK).fit(reduced, y)


def test_weights():
    X, y = make_exits()
    weight = np.random.default_rng(0).exponential(size=len(y)) * (np.arange(len(y)) % 3 > 0)
    used = weight > 0
    expected = clone(QUICK).fit(X[used], y[used], sample_weight=weight[used]).transform(X)
    for scale in (1, 1e-6, 1e6):
        found = clone(QUICK).fit(X, y, sample_weight=scale * weight).transform(X)
        np.testing.assert_allclose(found, expected, atol=1e-4)
    flipped = np.where(np.arange(len(y)) % 2, y, 1 - y)  # what weighs a hundred times as much decides
    heads = clone(QUICK).set_params(channels=(8, 8), distillation=0, max_epochs=15)
    taught = heads.fit(X, flipped, sample_weight=np.where(np.arange(len(y)) % 2, 100.0, 1.0)).transform(X)
    assert accuracy(taught, 2, y) > 0.8


def test_rows_that_are_read_when_they_are_needed(monkeypatch):
    X, y = make_exits()
    expected = clone(QUICK).fit(X, y).transform(X)
    monkeypatch.setattr("skexit._nn._mini_batches._IN_MEMORY_BYTES", 0)
    monkeypatch.setattr("skexit.heads._conv_scaling._CHUNK_NUMBERS", 1000)
    np.testing.assert_allclose(clone(QUICK).fit(X, y).transform(X), expected, atol=1e-4)


def test_without_torch_the_answers_are_the_same(tmp_path):
    X, y = make_exits()
    heads = clone(QUICK).fit(X, y)
    joblib.dump((heads, np.asarray(X), X.layout), tmp_path / "heads.joblib")
    code = (
        "import sys\n"
        "class NoTorch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': raise ImportError('torch is not here')\n"
        "sys.meta_path.insert(0, NoTorch())\n"
        "import joblib, numpy as np, skexit\n"
        f"heads, X, layout = joblib.load({str(tmp_path / 'heads.joblib')!r})\n"
        "X = skexit.ExitArray.from_array(X, layout)\n"
        f"np.save({str(tmp_path / 'logits.npy')!r}, np.asarray(heads.transform(X)))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), heads.transform(X), rtol=1e-4, atol=1e-4)


EXITS, POOL = ("0", "1", "2"), ("avg", "grid3", "max")


@pytest.fixture(scope="module", params=["float32", "float16"])
def fitted(request, tmp_path_factory):
    """A network with three exits, its images, the cache and a pipeline of heads and a policy."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(6 * 36, 2)),
    )
    maps, y = make_bars(400)
    images = torch.as_tensor((maps - 20) / 5, dtype=torch.float32)
    loader = DataLoader(TensorDataset(images, torch.from_numpy(y)), batch_size=50)
    extractor = ExitExtractor(network, EXITS, pool=POOL, dtype=request.param)
    cache = extractor.extract(loader, tmp_path_factory.mktemp("cache"), progress=False)
    assert cache.layout.feature_maps == ((4, 4, 3, 3), (6, 6, 3, 3), None)
    heads = ConvExitHeads((4, 8), max_epochs=5, distillation=0, random_state=0)
    return network, images, cache.X, make_exit_pipeline(heads, ThresholdPolicy(budget=0.7)).fit(cache.X, cache.y)


def rounding_of(X):
    """How far probabilities may be apart: the last bit of a feature may change that of its half precision."""
    return 1e-5 if X.stored_dtype == np.float32 else 5e-3


@pytest.mark.slow
class TestLive:
    """Heads and policy in NumPy, torch and onnxruntime."""

    def test_the_live_network_answers_as_on_the_cache(self, fitted):
        network, images, X, pipeline = fitted
        live = EarlyExitModel(network, EXITS, pipeline, pool=POOL, example_input=images[:2])
        exits = pipeline.predict_exit(X)
        assert len(np.unique(exits)) > 1
        for batch in (images, images[:1]):
            output = live(batch)
            np.testing.assert_array_equal(output.exits.numpy(), exits[: len(batch)])
            expected = pipeline.predict_proba(X)[: len(batch)]
            np.testing.assert_allclose(output.probabilities.numpy(), expected, rtol=1e-4, atol=rounding_of(X))
        assert all(live._decisions.recorded.values()), "decisions run without Python"

    def test_onnxruntime_answers_as_on_the_cache(self, fitted, tmp_path):
        pytest.importorskip("onnxscript")
        network, images, X, pipeline = fitted
        live = EarlyExitModel(network, EXITS, pipeline, pool=POOL, example_input=images[:2])
        session = OnnxEarlyExit(export_onnx(live, tmp_path / "network.onnx"))
        output = session.predict(images.numpy())
        np.testing.assert_array_equal(output.exits, pipeline.predict_exit(X))
        np.testing.assert_allclose(output.probabilities, pipeline.predict_proba(X), rtol=1e-4, atol=rounding_of(X))

    def test_one_exit_at_a_time(self, fitted):
        *_, X, pipeline = fitted
        rows, state, found = np.arange(len(X)), None, np.empty(len(X), dtype=int)
        for k in range(3):
            logits = X.logits(k, rows) if X.layout.has_logits(k) else None
            leaves, state = pipeline.decide(k, logits, X.features(k, rows), state)
            found[rows[leaves]] = k
            rows = rows[~leaves]
        np.testing.assert_array_equal(found, pipeline.predict_exit(X))

    def test_json(self, fitted):
        *_, X, pipeline = fitted
        loaded = policy_from_json(policy_to_json(pipeline))
        np.testing.assert_array_equal(loaded.predict_proba(X), pipeline.predict_proba(X))
