"""The cure that an error of extraction, caches, live network or command line names works in the case that raised it."""

import pickle
import shutil

import joblib
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from skexit import ThresholdPolicy
from skexit.cache import FeatureCache, merge_caches
from skexit.cli import main
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel

pytestmark = pytest.mark.slow

N_ROWS = 60
EXITS = ["1", "3"]


@pytest.fixture(scope="module")
def data():
    torch.manual_seed(0)
    return torch.randn(N_ROWS, 64), torch.arange(N_ROWS) % 3


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


@pytest.fixture
def extractor(network):
    return ExitExtractor(network, EXITS)


@pytest.fixture(scope="module")
def cache(network, data, tmp_path_factory):
    return ExitExtractor(network, EXITS).extract([data], tmp_path_factory.mktemp("cache") / "cache")


@pytest.fixture(scope="module")
def policy(cache):
    return ThresholdPolicy(budget=0.99).fit(cache.X, cache.y)


@pytest.fixture
def live(network, policy, data):
    return EarlyExitModel(network, EXITS, policy, example_input=data[0])


def in_batches(x, y, n_batches):
    return [(x[start : start + 20], y[start : start + 20]) for start in range(0, 20 * n_batches, 20)]


class Repeated(nn.Module):
    """Calls a module twice, and gives no tensor of logits."""

    def __init__(self):
        super().__init__()
        self.first, self.twice = nn.Linear(64, 8), nn.Linear(8, 8)

    def forward(self, x):
        return {"hidden": self.twice(self.twice(self.first(x)))}


class TestExtraction:
    def test_module_called_twice(self, data, tmp_path):
        with pytest.raises(ValueError, match="name one of the calls, from 'twice#0' to 'twice#1', or modules that are"):
            ExitExtractor(Repeated(), ["twice"], head=None).extract([data], tmp_path / "c")
        ExitExtractor(Repeated(), ["first"], head=None).extract([data], tmp_path / "c")
        ExitExtractor(Repeated(), ["twice#0", "twice#1"], head=None).extract([data], tmp_path / "d")

    def test_no_logits(self, data, tmp_path):
        with pytest.raises(ValueError, match="Pass head=None"):
            ExitExtractor(Repeated(), ["first"]).extract([data], tmp_path / "c")
        ExitExtractor(Repeated(), ["first"], head=None).extract([data], tmp_path / "c")

    def test_names(self, network):
        with pytest.raises(ValueError, match=r"The nearest names are \['"):
            ExitExtractor(network, ["33"])
        with pytest.raises(ValueError, match="name each module once"):
            ExitExtractor(network, ["1", "1"])
        with pytest.raises(ValueError, match="must be a list"):
            ExitExtractor(network, "1")
        ExitExtractor(network, ["1"])

    def test_order(self, network, data, tmp_path):
        with pytest.raises(ValueError, match=r"calls \['1', '3'\]. Pass this order"):
            ExitExtractor(network, ["3", "1"]).extract([data], tmp_path / "c")
        ExitExtractor(network, ["1", "3"]).extract([data], tmp_path / "c")

    def test_an_exit_that_costs_nothing(self, network, data, tmp_path):
        free = nn.Sequential(nn.Identity(), *network)
        with pytest.raises(ValueError, match="start with a later module, or use 'ms'"):
            ExitExtractor(free, ["0", "2"]).extract([data], tmp_path / "c")
        ExitExtractor(free, ["1", "2", "4"], cost_unit="ms").extract([data], tmp_path / "c")
        ExitExtractor(free, ["0", "2"], cost_unit="ms").extract([data], tmp_path / "ms")

    def test_shuffled_rows(self, extractor, data, tmp_path):
        rows = TensorDataset(*data)
        with pytest.raises(ValueError, match=r"shuffle=False; .* torch\.utils\.data\.Subset"):
            extractor.extract(DataLoader(rows, shuffle=True), tmp_path / "c")
        extractor.extract(DataLoader(Subset(rows, [4, 2, 7]), batch_size=3, shuffle=False), tmp_path / "c")

    def test_half_precision(self, data, tmp_path):
        large = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
        batch = [(1e6 * data[0], data[1])]
        with pytest.raises(ValueError, match="extract with dtype='float32'"):
            ExitExtractor(large, ["1"], dtype="float16").extract(batch, tmp_path / "half")
        ExitExtractor(large, ["1"], dtype="float32").extract(batch, tmp_path / "single")

    def test_labels_in_some_batches(self, extractor, data, tmp_path):
        x, y = data
        with pytest.raises(ValueError, match="give labels with every batch or with none"):
            extractor.extract([(x, y), x], tmp_path / "some")
        extractor.extract([x, x], tmp_path / "none")
        extractor.extract([(x, y), (x, y)], tmp_path / "every")

    def test_classes_that_labels_lack(self, extractor, data, tmp_path):
        with pytest.raises(ValueError, match="Give the classes of all labels"):
            extractor.extract([data], tmp_path / "c", classes=[0, 1, 7])
        extractor.extract([data], tmp_path / "c", classes=[0, 1, 2])


class TestCaches:
    @pytest.mark.parametrize("change", ["rows", "labels"])
    def test_other_data(self, change, extractor, data, tmp_path):
        x, y = data
        other = {"rows": in_batches(x, y, 2), "labels": [(x, 2 - y)]}[change]
        extractor.extract(in_batches(x, y, 3), tmp_path / "c")
        with pytest.raises(ValueError, match=r"Give the loader that the cache was started with, or another folder"):
            extractor.extract(other, tmp_path / "c")
        extractor.extract(in_batches(x, y, 3), tmp_path / "c")
        extractor.extract(other, tmp_path / "other")

    def test_other_settings(self, network, extractor, data, tmp_path):
        extractor.extract([data], tmp_path / "c")
        other = ExitExtractor(network, ["1"])
        with pytest.raises(ValueError, match=r"differs in exits .*Give another folder, or delete this one"):
            other.extract([data], tmp_path / "c")
        other.extract([data], tmp_path / "another")
        shutil.rmtree(tmp_path / "c")
        other.extract([data], tmp_path / "c")

    def test_not_finished(self, extractor, data, tmp_path):
        def interrupted():
            yield from in_batches(*data, 2)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            extractor.extract(interrupted(), tmp_path / "c", shard_rows=20)
        with pytest.raises(ValueError, match=r"call extract\(\) again .*allow_partial=True"):
            FeatureCache(tmp_path / "c")
        assert len(FeatureCache(tmp_path / "c", allow_partial=True)) == 40
        extractor.extract(in_batches(*data, 3), tmp_path / "c", shard_rows=20)
        assert len(FeatureCache(tmp_path / "c")) == 60

    @pytest.mark.parametrize("number", [0, 1, 2])
    def test_damage(self, number, extractor, data, tmp_path):
        extractor.extract(in_batches(*data, 3), tmp_path / "c", shard_rows=20)
        shards = sorted((tmp_path / "c").glob("shard-*"))
        file = next(shards[number].glob("*.npy"))
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        with pytest.raises(ValueError, match="Delete that shard and all later ones, and extract again"):
            FeatureCache(tmp_path / "c").verify()
        for shard in shards[number:]:
            shutil.rmtree(shard)
        with pytest.raises(ValueError, match=r"is missing\. Extract again to replace it"):
            FeatureCache(tmp_path / "c")
        extractor.extract(in_batches(*data, 3), tmp_path / "c", shard_rows=20).verify()

    def test_manifest(self, extractor, data, tmp_path):
        extractor.extract([data], tmp_path / "c")
        (tmp_path / "c" / "manifest.json").write_text("{}")
        with pytest.raises(ValueError, match="Restore it from a copy, or extract into another folder"):
            FeatureCache(tmp_path / "c")
        extractor.extract([data], tmp_path / "another")

    def test_nothing_there(self, cache, tmp_path):
        with pytest.raises(FileNotFoundError, match="Give the folder of an extraction"):
            FeatureCache(tmp_path)
        FeatureCache(cache.path)

    def test_another_cache_at_the_place(self, extractor, data, tmp_path):
        pickled = pickle.dumps(extractor.extract([data], tmp_path / "c").X)
        (tmp_path / "c").rename(tmp_path / "moved")
        extractor.extract([(data[0] + 1, data[1])], tmp_path / "c")
        with pytest.raises(ValueError, match="Put that back, or take X from FeatureCache again"):
            pickle.loads(pickled)
        shutil.rmtree(tmp_path / "c")
        (tmp_path / "moved").rename(tmp_path / "c")
        assert len(pickle.loads(pickled)) == N_ROWS

    def test_caches_of_other_settings_do_not_merge(self, network, extractor, data, tmp_path):
        extractor.extract([data], tmp_path / "a")
        ExitExtractor(network, ["1"]).extract([data], tmp_path / "b")
        with pytest.raises(ValueError, match=r"Extract all with one network and the same settings\.$"):
            merge_caches([tmp_path / "a", tmp_path / "b"], tmp_path / "m")
        extractor.extract([data], tmp_path / "c")
        merge_caches([tmp_path / "a", tmp_path / "c"], tmp_path / "m")

    def test_labels_of_two_kinds_do_not_merge(self, extractor, data, tmp_path):
        extractor.extract([data], tmp_path / "a")
        extractor.extract([data[0]], tmp_path / "b")
        with pytest.raises(ValueError, match="Extract all with labels of one kind"):
            merge_caches([tmp_path / "a", tmp_path / "b"], tmp_path / "m")
        extractor.extract([data], tmp_path / "c")
        merge_caches([tmp_path / "a", tmp_path / "c"], tmp_path / "m")


class TestLive:
    def test_inputs(self, live, data):
        x, _ = data
        with pytest.raises(ValueError, match=r"Convert it by to\(torch.float32\)"):
            live(x.double())
        live(x.double().to(torch.float32))
        with pytest.raises(ValueError, match=r"Pass torch\.from_numpy\(x\)\."):
            live(x.numpy())
        live(torch.from_numpy(x.numpy()))
        with pytest.raises(ValueError, match="pass at least one"):
            live(x[:0])
        with pytest.raises(ValueError, match="either all by position or all by name"):
            live(x, input=x)
        with pytest.raises(ValueError, match="Pass inputs like the example"):
            live(x[:, :7])
        live(x[:1])

    def test_inputs_of_another_size(self, data, tmp_path):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        ).eval()
        small, large = torch.randn(N_ROWS, 1, 8, 8), torch.randn(5, 1, 12, 12)
        cache = ExitExtractor(network, ["1", "2"]).extract([(small, data[1])], tmp_path / "c")
        live = EarlyExitModel(network, ["1", "2"], ThresholdPolicy().fit(cache.X, cache.y), example_input=small)
        with pytest.raises(ValueError, match=r"or prepare the network again by prepare\(example_input\)"):
            live(large)
        with pytest.warns(UserWarning, match="or extract and fit again with images of this size"):
            live.prepare(large)
        live(large)

    def test_other_exits(self, network, policy, data):
        with pytest.raises(ValueError, match="Pass the exits of the extraction"):
            EarlyExitModel(network, ["1"], policy, example_input=data[0])
        with pytest.raises(ValueError, match=r"name the module that computes them with head="):
            EarlyExitModel(network, EXITS, policy, head=None, example_input=data[0])
        EarlyExitModel(network, EXITS, policy, head=[None, "4"], example_input=data[0])

    def test_training_mode(self, live, data):
        live.model.train()
        with pytest.raises(RuntimeError, match=r"call model.eval\(\)"):
            live(data[0])
        live.model.eval()
        live(data[0])


class TestCommandLine:
    @pytest.mark.filterwarnings("ignore:the fitted temperature lies at the bound")  # of a network that nobody trained
    def test_cache_without_labels(self, extractor, data, policy, tmp_path, capsys):
        extractor.extract([data[0]], tmp_path / "c")
        joblib.dump(policy, tmp_path / "policy.joblib")
        assert main(["report", str(tmp_path / "c"), str(tmp_path / "policy.joblib")]) == 1
        assert "Extract into another folder, with a loader that returns (inputs, labels)" in capsys.readouterr().err
        with pytest.raises(ValueError, match="another folder"):
            extractor.extract([data], tmp_path / "c")
        extractor.extract([data], tmp_path / "another")
        out = ["--out", str(tmp_path / "report.html")]
        assert main(["report", str(tmp_path / "another"), str(tmp_path / "policy.joblib"), *out]) == 0

    def test_budget_below_the_first_exit(self, cache, policy, tmp_path, capsys):
        joblib.dump(policy, tmp_path / "policy.joblib")
        report = ["report", str(cache.path), str(tmp_path / "policy.joblib"), "--out", str(tmp_path / "report.html")]
        assert main([*report, "--budget", "0.01"]) == 1
        budget = capsys.readouterr().err.partition("Raise it to ")[2].split()[0]
        assert main([*report, "--budget", budget]) == 0
