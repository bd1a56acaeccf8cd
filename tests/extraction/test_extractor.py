import re
import shutil
import weakref

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)
from torchvision.models import resnet18

from skexit import FeatureCache
from skexit.backbone import exit_costs
from skexit.extraction import ExitExtractor

N_ROWS, N_CLASSES = 23, 3


class Network(nn.Module):
    """A small convolutional network that counts the rows it is given."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.body = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2), nn.Dropout(0.5))
        self.classifier = nn.Linear(6, N_CLASSES)
        self.n_rows = 0

    def forward(self, x):
        self.n_rows += len(x)
        x = self.body(self.stem(x))
        return self.classifier(x.relu_().mean((2, 3)))


EXITS = ["stem", "body"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Network()


@pytest.fixture
def images():
    return torch.from_numpy(np.random.default_rng(0).normal(size=(N_ROWS, 1, 9, 9)).astype(np.float32))


@pytest.fixture
def labels():
    return torch.from_numpy(np.random.default_rng(1).integers(N_CLASSES, size=N_ROWS))


@pytest.fixture
def loader(images, labels):
    return DataLoader(TensorDataset(images, labels), batch_size=5)


@torch.inference_mode()
def by_hand(model, images):
    """Averages, maxima and corner averages of each stage, and the logits, all rows at once."""
    model.eval()
    stem = model.stem(images).clone()
    body = model.body(stem).clone()
    features = []
    for maps in (stem, body):
        n_samples, _, height, width = maps.shape
        top, bottom = slice(0, -(-height // 2)), slice(height // 2, None)
        left, right = slice(0, -(-width // 2)), slice(width // 2, None)
        cells = [maps[:, :, rows, columns].mean((2, 3)) for rows in (top, bottom) for columns in (left, right)]
        grid = torch.stack(cells, dim=2).reshape(n_samples, -1)
        features.append(torch.cat([maps.mean((2, 3)), maps.amax((2, 3)), grid], dim=1))
    return features, model.classifier(body.relu().mean((2, 3)))


def batches_of(loader):
    return [(x.clone(), y.clone()) for x, y in loader]


def assert_same_caches(first, second):
    assert first.layout == second.layout
    np.testing.assert_array_equal(np.asarray(first.X), np.asarray(second.X))
    np.testing.assert_array_equal(first.y, second.y)


def test_the_cache_holds_what_the_network_gives_by_hand(model, loader, images, labels, tmp_path):
    cache = ExitExtractor(model, EXITS).extract(loader, tmp_path)
    features, logits = by_hand(model, images)
    assert cache.complete
    assert cache.layout.n_logits == (0, N_CLASSES)
    assert cache.layout.n_features == (24, 36)
    for k in range(2):
        np.testing.assert_allclose(cache.X.features(k), features[k], atol=1e-6)
    assert cache.X.logits(0) is None
    np.testing.assert_allclose(cache.X.logits(1), logits, atol=1e-6)
    np.testing.assert_array_equal(cache.y, labels)
    cache.verify()


@pytest.mark.parametrize("unit", ["FLOPs", "MACs"])
def test_the_layout_has_the_costs_of_one_row(model, loader, images, tmp_path, unit):
    cache = ExitExtractor(model, EXITS, cost_unit=unit).extract(loader, tmp_path)
    assert cache.layout.cost_unit == unit
    np.testing.assert_array_equal(cache.layout.costs, exit_costs(model, EXITS, images, unit).costs)


def test_the_layout_tells_where_maps_are(model, loader, images, tmp_path):
    cache = ExitExtractor(model, EXITS, pool=("avg", "grid3", "max")).extract(loader, tmp_path)
    assert cache.layout.feature_maps == ((4, 4, 3, 3), (6, 6, 3, 3))
    with torch.inference_mode():
        maps = model.eval().stem(images)
    first, *shape = cache.layout.feature_maps[0]
    found = cache.X.features(0)[:, first : first + 36].reshape(-1, *shape)
    np.testing.assert_allclose(found, maps.reshape(N_ROWS, 4, 3, 3, 3, 3).mean(dim=(3, 5)), rtol=1e-5, atol=1e-6)
    assert FeatureCache(tmp_path).layout == cache.layout
    assert ExitExtractor(model, EXITS, pool="avg").extract(loader, tmp_path / "avg").layout.feature_maps == (None, None)


def test_classes_are_kept(model, loader, tmp_path):
    cache = ExitExtractor(model, EXITS).extract(loader, tmp_path, classes=["cat", "dog", "eel"])
    assert cache.layout.classes.tolist() == ["cat", "dog", "eel"]


def test_exits_of_a_known_family_need_no_names(tmp_path):
    model = resnet18(weights=None, num_classes=4)
    cache = ExitExtractor(model).extract([torch.randn(2, 3, 32, 32)], tmp_path)
    assert cache.layout.n_features == (384, 768, 1536, 3072)
    assert cache.layout.n_logits == (0, 0, 0, 4)
    assert cache.y is None


def test_each_input_passes_once(model, loader, tmp_path):
    extractor = ExitExtractor(model, EXITS)
    extractor.extract(loader, tmp_path)
    assert model.n_rows == N_ROWS
    extractor.extract(loader, tmp_path)
    assert model.n_rows == N_ROWS, "a complete cache needs no pass"


def test_only_one_batch_of_feature_maps_is_alive(model, images, tmp_path):
    """Maps are pooled when they are made: none is left when the next module has run."""
    maps = []
    model.stem.register_forward_hook(lambda module, args, output: maps.append(weakref.ref(output)))
    alive = []
    model.classifier.register_forward_hook(lambda *_: alive.append(sum(reference() is not None for reference in maps)))
    ExitExtractor(model, EXITS).extract(images.split(5), tmp_path)
    assert max(alive) == 0


@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_left_as_found(model, loader, tmp_path, fails):
    model.train()
    model.stem.eval()
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    source = batches_of(loader)
    if fails:
        source[2] = (source[2][0].fill_(torch.nan), source[2][1])
        with pytest.raises(ValueError, match=r"exit 'stem' gave features that are infinite or NaN in batch 2"):
            ExitExtractor(model, EXITS).extract(source, tmp_path)
    else:
        ExitExtractor(model, EXITS).extract(source, tmp_path)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_float16(model, loader, images, tmp_path):
    cache = ExitExtractor(model, EXITS, dtype="float16").extract(loader, tmp_path)
    features, _ = by_hand(model, images)
    np.testing.assert_allclose(cache.X.features(1), features[1], atol=2e-3)
    assert np.load(next(tmp_path.glob("*/exit0.features.npy"))).dtype == np.float16


def test_a_network_in_half_precision(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).bfloat16()
    cache = ExitExtractor(model, ["0"]).extract([torch.ones(3, 4, dtype=torch.bfloat16)], tmp_path)
    assert cache.X.features(0).dtype == np.float32


class MultiExit(nn.Module):
    def __init__(self, gives_all):
        super().__init__()
        self.stages = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.heads = nn.ModuleList(nn.Linear(4, 2) for _ in range(3))
        self.gives_all = gives_all

    def forward(self, x):
        logits = []
        for stage, head in zip(self.stages, self.heads, strict=True):
            x = stage(x)
            logits.append(head(x))
        return logits if self.gives_all else logits[-1].mul_(2)


STAGES = ["stages.0", "stages.1", "stages.2"]


def heads_by_hand(model, x):
    logits = []
    with torch.inference_mode():
        for stage, head in zip(model.stages, model.heads, strict=True):
            x = stage(x)
            logits.append(head(x))
    return logits


def assert_same_up_to_rounding(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_list_of_outputs_has_the_logits_of_all_exits(tmp_path):
    model, x = MultiExit(gives_all=True), torch.randn(6, 4)
    cache = ExitExtractor(model, STAGES).extract([x], tmp_path)
    for k, logits in enumerate(heads_by_hand(model, x)):
        assert_same_up_to_rounding(cache.X.logits(k), logits)


@pytest.mark.parametrize(
    ("head", "present"),
    [
        (["heads.0", "heads.1", "heads.2"], [True, True, True]),
        (["heads.0", None, "heads.2"], [True, False, True]),
        ([None, None, None], [False, False, False]),
        (None, [False, False, False]),
    ],
)
def test_heads_by_name(tmp_path, head, present):
    model, x = MultiExit(gives_all=False), torch.randn(6, 4)
    cache = ExitExtractor(model, STAGES, head=head).extract([x], tmp_path)
    for k, logits in enumerate(heads_by_hand(model, x)):
        if present[k]:
            assert_same_up_to_rounding(cache.X.logits(k), logits)
        else:
            assert cache.X.logits(k) is None
    expected = exit_costs(model, STAGES, x, head=head).costs
    np.testing.assert_array_equal(cache.layout.costs, expected)


def test_own_heads_together_with_the_output(tmp_path):
    model, x = MultiExit(gives_all=False), torch.randn(6, 4)
    cache = ExitExtractor(model, STAGES, head=["heads.0", None, "output"]).extract([x], tmp_path)
    by_head = heads_by_hand(model, x)
    assert_same_up_to_rounding(cache.X.logits(0), by_head[0])
    assert_same_up_to_rounding(cache.X.logits(2), 2 * by_head[2])


BERT = transformers.BertConfig(
    hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, vocab_size=50, num_labels=3
)


@pytest.fixture
def sentences():
    random = np.random.default_rng(0)
    lengths = np.array([7, 3, 5, 1, 6, 2])
    mask = torch.from_numpy((np.arange(7) < lengths[:, None]).astype(np.int64))
    return {"input_ids": torch.from_numpy(random.integers(50, size=(6, 7))) * mask, "attention_mask": mask}


@pytest.mark.parametrize("name", ["labels", "label"])
def test_dicts_with_masks(sentences, tmp_path, name):
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(BERT)
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    batches = [{key: value[start : start + 4] for key, value in (sentences | {name: y}).items()} for start in (0, 4)]
    cache = ExitExtractor(model, pool=("first", "mean", "max")).extract(batches, tmp_path)
    with torch.inference_mode():
        output = model.eval()(**sentences, output_hidden_states=True)
    np.testing.assert_array_equal(cache.y, y)
    np.testing.assert_allclose(cache.X.logits(1), output.logits, atol=1e-6)
    for k, hidden in enumerate([output.hidden_states[1], output.hidden_states[4]]):
        for row, (tokens, mask) in enumerate(zip(hidden, sentences["attention_mask"].bool(), strict=True)):
            expected = np.hstack([tokens[0], tokens[mask].mean(dim=0), tokens[mask].amax(dim=0)])
            np.testing.assert_allclose(cache.X.features(k)[row], expected, atol=1e-6)


def test_a_dict_with_labels_beside_it(sentences, tmp_path):
    model = transformers.BertForSequenceClassification(BERT)
    cache = ExitExtractor(model).extract([(sentences, ["a", "b", "c", "a", "b", "c"])], tmp_path)
    assert cache.y.tolist() == ["a", "b", "c", "a", "b", "c"]


def test_a_network_without_a_classifier_needs_no_head(sentences, tmp_path):
    model = transformers.BertModel(BERT)
    with pytest.raises(ValueError, match=r"BaseModelOutput.*no logits.*head=None"):
        ExitExtractor(model).extract([sentences], tmp_path / "output")
    assert not (tmp_path / "output").exists()
    cache = ExitExtractor(model, head=None).extract([sentences], tmp_path / "none")
    assert cache.layout.n_logits == (0, 0)


def stopped_after(n_batches, loader):
    """The batches of a loader, then an interruption."""
    for number, batch in enumerate(loader):
        if number == n_batches:
            raise KeyboardInterrupt
        yield batch


@pytest.mark.parametrize("batch_size_afterwards", [5, 3, 23])
def test_an_interrupted_extraction_goes_on_where_it_stopped(model, images, labels, tmp_path, batch_size_afterwards):
    data = TensorDataset(images, labels)
    loader = DataLoader(data, batch_size=5)
    extractor = ExitExtractor(model, EXITS)
    undisturbed = extractor.extract(loader, tmp_path / "undisturbed")
    model.n_rows = 0
    with pytest.raises(KeyboardInterrupt):
        extractor.extract(stopped_after(3, loader), tmp_path / "stopped", shard_rows=10)
    with pytest.raises(ValueError, match="has not finished"):
        FeatureCache(tmp_path / "stopped")
    cached = FeatureCache(tmp_path / "stopped", allow_partial=True).n_rows
    assert cached == 10
    cache = extractor.extract(DataLoader(data, batch_size=batch_size_afterwards), tmp_path / "stopped")
    assert model.n_rows == 15 + N_ROWS - cached
    np.testing.assert_allclose(cache.X, undisturbed.X, atol=1e-6)
    if batch_size_afterwards == 5:
        assert_same_caches(cache, undisturbed)


def test_an_extraction_stopped_after_its_last_row_is_completed_without_a_pass(model, loader, tmp_path):
    extractor = ExitExtractor(model, EXITS)
    with pytest.raises(KeyboardInterrupt):
        extractor.extract(chain_interrupt(loader), tmp_path, shard_rows=1)
    model.n_rows = 0
    assert extractor.extract(batches_of(loader), tmp_path).complete
    assert model.n_rows == 0


def chain_interrupt(loader):
    yield from loader
    raise KeyboardInterrupt


def test_timed_costs_are_those_of_the_first_start(model, loader, tmp_path):
    extractor = ExitExtractor(model, EXITS, cost_unit="ms")
    with pytest.raises(KeyboardInterrupt):
        extractor.extract(stopped_after(3, loader), tmp_path, shard_rows=5)
    before = FeatureCache(tmp_path, allow_partial=True).layout
    assert extractor.extract(loader, tmp_path).layout == before
    assert before.cost_unit == "ms"


def test_more_rows_are_added(model, images, labels, tmp_path):
    data = TensorDataset(images, labels)
    extractor = ExitExtractor(model, EXITS)
    extractor.extract(DataLoader(Subset(data, range(10)), batch_size=5), tmp_path / "grown")
    grown = extractor.extract(DataLoader(data, batch_size=5), tmp_path / "grown")
    assert_same_caches(grown, extractor.extract(DataLoader(data, batch_size=5), tmp_path / "at once"))


@pytest.mark.parametrize(
    ("changed", "differs"),
    [
        ({"weights": True}, "model"),
        ({"exits": ["body"]}, "exits"),
        ({"pool": "avg"}, "pool"),
        ({"head": None}, "head"),
        ({"dtype": "float16"}, "dtype"),
        ({"cost_unit": "MACs"}, "cost_unit"),
        ({"classes": ["a", "b", "c"]}, "classes"),
        ({"data": True}, "first input"),
    ],
)
def test_the_cache_of_another_extraction_is_refused_and_kept(model, loader, images, labels, tmp_path, changed, differs):
    before = ExitExtractor(model, EXITS).extract(loader, tmp_path)
    if changed.pop("weights", False):
        with torch.no_grad():
            model.classifier.bias[0] += 1
    if changed.pop("data", False):
        loader = DataLoader(TensorDataset(images + 1, labels), batch_size=5)
    classes = changed.pop("classes", None)
    extractor = ExitExtractor(model, **({"exits": EXITS} | changed))
    with pytest.raises(ValueError, match=rf"holds a cache that differs in {differs}( \(.*\))?\. Give another folder"):
        extractor.extract(loader, tmp_path, classes=classes)
    assert_same_caches(FeatureCache(tmp_path), before)


def test_a_network_that_differs_only_in_a_setting_is_another_network(tmp_path, images):
    with_stride = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    without = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.ReLU())
    without.load_state_dict(with_stride.state_dict())
    ExitExtractor(with_stride, ["0"], head=None).extract([images], tmp_path)
    with pytest.raises(ValueError, match="differs in model"):
        ExitExtractor(without, ["0"], head=None).extract([images], tmp_path)


def test_other_labels_are_refused(model, images, labels, tmp_path):
    extractor = ExitExtractor(model, EXITS)
    loader = DataLoader(TensorDataset(images, labels), batch_size=5)
    with pytest.raises(KeyboardInterrupt):
        extractor.extract(stopped_after(3, loader), tmp_path, shard_rows=5)
    other = labels.clone()
    other[7] += 1
    with pytest.raises(ValueError, match="labels of batch 1 differ from those of the same rows in the cache"):
        extractor.extract(DataLoader(TensorDataset(images, other), batch_size=5), tmp_path)
    with pytest.raises(ValueError, match="labels of batch 0 differ from those"):
        extractor.extract(DataLoader(images, batch_size=5), tmp_path)
    assert FeatureCache(tmp_path, allow_partial=True).n_rows == 15
    extractor.extract(loader, tmp_path)
    with pytest.raises(ValueError, match="labels of batch 0 differ from those"):
        extractor.extract(DataLoader(images, batch_size=5), tmp_path)


def test_fewer_rows_than_the_cache_are_refused(model, images, labels, loader, tmp_path):
    extractor = ExitExtractor(model, EXITS)
    extractor.extract(loader, tmp_path)
    with pytest.raises(ValueError, match="loader gave 10 rows but the cache has 23"):
        extractor.extract(DataLoader(TensorDataset(images[:10], labels[:10]), batch_size=5), tmp_path)
    assert FeatureCache(tmp_path).complete


def test_a_batch_in_place_of_a_loader_is_refused(model, images, labels, tmp_path):
    for batch, message in (
        (
            (images, labels),
            r"loader is one batch of 23 rows and their labels. Pass a list of batches, such as \[\(x, y\)\]",
        ),
        (images, r"loader is a tensor of shape \(23, 1, 9, 9\). Pass a list of batches, such as \[x\]"),
    ):
        with pytest.raises(ValueError, match=message):
            ExitExtractor(model, EXITS).extract(batch, tmp_path / "cache")
    assert len(ExitExtractor(model, EXITS).extract([(images, labels)], tmp_path / "cache").X) == 23


@pytest.mark.parametrize("empty", [[], [torch.zeros(0, 1, 9, 9)]])
def test_an_empty_loader_is_refused(model, tmp_path, empty):
    with pytest.raises(ValueError, match="loader is empty"):
        ExitExtractor(model, EXITS).extract(empty, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_loaders_that_shuffle_are_refused(model, images, labels, tmp_path):
    data = TensorDataset(images, labels)
    for loader in (
        DataLoader(data, batch_size=5, shuffle=True),
        DataLoader(data, batch_size=5, sampler=SubsetRandomSampler(range(5))),
        DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 5, drop_last=False)),
    ):
        with pytest.raises(ValueError, match="Pass shuffle=False"):
            ExitExtractor(model, EXITS).extract(loader, tmp_path)


class Stream(IterableDataset):
    def __init__(self, images):
        self.images = images

    def __iter__(self):
        return iter(self.images)


def test_loaders_of_other_kinds(model, images, labels, tmp_path):
    data = TensorDataset(images, labels)
    extractor = ExitExtractor(model, EXITS)
    for name, loader, n_rows in (
        ("drop last", DataLoader(data, batch_size=5, drop_last=True), 20),
        ("stream", DataLoader(Stream(images), batch_size=5), N_ROWS),
        ("whole batches", DataLoader([(images, labels)], batch_size=None), N_ROWS),
        ("batch sampler", DataLoader(data, batch_sampler=BatchSampler(range(N_ROWS), 4, drop_last=False)), N_ROWS),
        ("generator", ([batch] for batch in images.split(6)), N_ROWS),
    ):
        assert extractor.extract(loader, tmp_path / name).n_rows == n_rows
    model.n_rows = 0
    assert extractor.extract(DataLoader(data, batch_size=5, drop_last=True), tmp_path / "drop last").n_rows == 20
    assert model.n_rows == 0


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([(torch.zeros(2, 1, 9, 9), [0, 1]), torch.zeros(2, 1, 9, 9)], "batch 1 has no labels but the batches before"),
        ([torch.zeros(2, 1, 9, 9), (torch.zeros(2, 1, 9, 9), [0, 1])], "batch 1 has labels but the batches before"),
        ([(torch.zeros(2, 1, 9, 9), [0, 1, 2])], r"different numbers of rows: \[2, 3\]"),
        (
            [{"x": torch.zeros(5, 4), "edges": torch.zeros(2, 8), "y": torch.zeros(3)}],
            r"\[5, 2, 3\].* 'Graph networks' in",
        ),
        ([(torch.zeros(2, 1, 9, 9), [0, 1], [2, 3])], r"got a tuple of \(a tensor of shape \(2, 1, 9, 9\), a list of"),
        ([np.zeros((2, 1, 9, 9))], "batch 0: the network takes a tensor, .* but got an array of shape"),
        (
            [{"x": torch.zeros(2, 1, 9, 9), "name": ["a", "b"]}],
            r"got \{'x': a tensor of shape \(2, 1, 9, 9\), 'name': a list of",
        ),
        ([(torch.zeros(2, 1, 9, 9), torch.zeros(2, 2))], r"labels have shape \(2, 2\)"),
        (TensorDataset(torch.zeros(2, 1, 9, 9), torch.arange(2)), r"batch 0 has only one label, 0, .*DataLoader\("),
        ([(torch.zeros(1, 9, 9), "cat")], "batch 0 has only one label, 'cat', so it is a sample"),
    ],
)
def test_batches_are_checked(model, tmp_path, batches, message):
    with pytest.raises(ValueError, match=message):
        ExitExtractor(model, EXITS).extract(batches, tmp_path)


@pytest.mark.parametrize(
    ("loader", "note"),
    [
        (
            [torch.zeros(2, 1, 9, 9), torch.zeros(2, 3, 9, 9)],
            r"batch 1 of the loader: a tensor of shape \(2, 3, 9, 9\)",
        ),
        ([torch.zeros(2, 1, 9, 9, dtype=torch.float64)], r"batch 0 .*: a tensor of shape \(2, 1, 9, 9\)"),
        (
            [(torch.zeros(2, 1, 9, 9), torch.arange(2), torch.arange(2))],
            r"batch 0 .*: a tuple of \(a tensor of .*, a ten",
        ),
        ([torch.zeros(2, 1, 9, 9), torch.zeros(2, 9)], r"batch 1 .*: a tensor of shape \(2, 9\). A loader yields"),
    ],
)
def test_what_the_network_raises_names_the_batch(model, tmp_path, loader, note):
    with pytest.raises((RuntimeError, TypeError, ValueError)) as caught:
        ExitExtractor(model, EXITS).extract(loader, tmp_path)
    assert re.search(note, caught.value.__notes__[-1])


def test_settings_are_checked_at_once(model):
    with pytest.raises(ValueError, match=r"exits names 'steem'.*nearest names are \['stem'"):
        ExitExtractor(model, ["steem", "body"])
    with pytest.raises(ValueError, match=r"head names 'classifer'.*'classifier'"):
        ExitExtractor(model, EXITS, head=[None, "classifer"])
    with pytest.raises(ValueError, match="for each of 2 exits"):
        ExitExtractor(model, EXITS, head=["classifier"])
    with pytest.raises(ValueError, match="'median' is not one of"):
        ExitExtractor(model, EXITS, pool="median")
    with pytest.raises(ValueError, match=r"exit points of Network are found by running it: pass example_input=x"):
        ExitExtractor(model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exits": ["body", "stem"]}, "not in forward order"),
        ({"exits": EXITS, "pool": "first"}, r"exit 'stem': pool='first': 'first' does not fit feature maps"),
        ({"exits": EXITS, "dtype": "int8"}, "dtype='int8' must be"),
        ({"exits": EXITS, "cost_unit": "watt"}, "unit='watt'"),
        ({"exits": EXITS, "head": [None, "stem"]}, r"the head 'stem' gave Tensor of shape \(5, 4, 9, 9\)"),
    ],
)
def test_what_the_network_cannot_give_leaves_no_cache(model, loader, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        ExitExtractor(model, **settings).extract(loader, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


class Repeats(nn.Module):
    def __init__(self, n_calls):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.n_calls = n_calls

    def forward(self, x):
        for _ in range(self.n_calls):
            x = self.layer(x)
        return x


@pytest.mark.parametrize("n_calls", [0, 2])
def test_an_exit_that_is_not_called_once_is_refused(tmp_path, n_calls):
    with pytest.raises(ValueError, match=f"'layer', which the forward pass calls {n_calls} times"):
        ExitExtractor(Repeats(n_calls), ["layer"]).extract([torch.zeros(2, 4)], tmp_path)


def test_samples_must_come_first_or_in_sequences_second(tmp_path):
    tokens = Transposed(nn.Sequential(nn.TransformerEncoderLayer(8, 2, 8)))
    cache = ExitExtractor(tokens, ["model.0"], head=None).extract([torch.zeros(3, 5, 8)], tmp_path / "cache")
    assert cache.X.shape == (3, 16)
    features = Transposed(nn.Sequential(nn.Tanh()))
    with pytest.raises(ValueError, match=r"gave features of shape \(4, 3\) for 3 inputs.*must be the samples"):
        ExitExtractor(features, ["model.0"], head=None).extract([torch.zeros(3, 4)], tmp_path / "refused")


class Transposed(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x.transpose(0, 1))


def test_numbers_too_large_for_float16_are_refused(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="too large for float16"):
        ExitExtractor(model, ["0"], dtype="float16").extract([torch.full((2, 2), 1e7)], tmp_path)


def test_a_folder_with_other_files_is_refused(model, loader, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="not empty and holds no cache"):
        ExitExtractor(model, EXITS).extract(loader, tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_a_start_killed_while_it_wrote_its_manifest_is_no_obstacle(model, loader, tmp_path):
    (tmp_path / "manifest.json.tmp").write_text('{"form')
    assert ExitExtractor(model, EXITS).extract(loader, tmp_path).n_rows == N_ROWS


def test_a_deleted_last_shard_is_replaced(model, loader, tmp_path):
    extractor = ExitExtractor(model, EXITS)
    extractor.extract(loader, tmp_path / "cache", shard_rows=5)
    undisturbed = extractor.extract(loader, tmp_path / "undisturbed")
    shutil.rmtree(sorted((tmp_path / "cache").glob("shard-*"))[-1])
    assert_same_caches(extractor.extract(loader, tmp_path / "cache"), undisturbed)


def test_silence_unless_on_a_terminal(model, loader, tmp_path, capsys):
    ExitExtractor(model, EXITS).extract(loader, tmp_path)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_indices_of_named_classes_become_names(model, loader, tmp_path):
    cache = ExitExtractor(model, EXITS).extract(loader, tmp_path / "named", classes=["cat", "dog", "eel"])
    indices = ExitExtractor(model, EXITS).extract(loader, tmp_path / "indices").y
    np.testing.assert_array_equal(cache.y, np.array(["cat", "dog", "eel"])[indices])


def test_labels_that_are_no_classes_are_refused_before_the_network_runs(model, loader, tmp_path):
    with pytest.raises(ValueError, match=r"batch 0 has the label \d+, which is not in classes=\[4, 5, 6\]"):
        ExitExtractor(model, EXITS).extract(loader, tmp_path / "cache", classes=[4, 5, 6])
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("parameter", [{"dtype": "float64"}, {"cost_unit": "s"}])
def test_parameters_are_checked_at_once(model, parameter):
    (name, value), *_ = parameter.items()
    with pytest.raises(ValueError, match=f"{name}='{value}' must be"):
        ExitExtractor(model, EXITS, **parameter)
