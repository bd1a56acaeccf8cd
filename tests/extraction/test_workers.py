"""Several processes extract into one folder: the cache is that of a single one, also when some of them are killed."""

import multiprocessing
import os
import shutil
import subprocess
import sys
import textwrap
import time
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, TensorDataset

from skexit import FeatureCache
from skexit.extraction import ExitExtractor
from skexit.extraction._parts import (
    extract_as_worker,
    extract_part,
    is_complete,
    join_parts,
    loader_of_part,
    rank_and_size,
)

N_ROWS = 103


class Images(Dataset):
    """Each row is made when it is read, after a pause."""

    def __init__(self, n_rows=N_ROWS, pause=0.0):
        self.n_rows, self.pause = n_rows, pause

    def __len__(self):
        return self.n_rows

    def __getitem__(self, row):
        time.sleep(self.pause)
        return torch.randn(8, generator=torch.Generator().manual_seed(row)), row % 3


def make_extractor(**options):
    torch.manual_seed(0)
    return ExitExtractor(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), exits=["0", "1"], **options)


def make_loader(pause=0.0, n_rows=N_ROWS):
    return DataLoader(Images(n_rows, pause), batch_size=5)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return make_extractor().extract(make_loader(), tmp_path_factory.mktemp("alone"))


def assert_same(cache, expected):
    assert cache.complete
    assert cache.layout == expected.layout
    assert cache.origin == expected.origin
    np.testing.assert_array_equal(cache.y, expected.y)
    # Processes have other numbers of threads, and so may round otherwise.
    np.testing.assert_allclose(np.asarray(cache.X), np.asarray(expected.X), rtol=1e-5, atol=1e-6)
    cache.verify()


SCRIPT = """
    import sys
    import torch
    sys.path[:0] = {path!r}
    from test_workers import make_extractor, make_loader

    torch.set_num_threads(1)
    cache = make_extractor().extract(make_loader(), {folder!r}, shard_rows=10, worker="torchrun")
    print(len(cache), cache.complete)
"""


@pytest.mark.slow
def test_torchrun(tmp_path, expected):
    script, folder = tmp_path / "extract.py", tmp_path / "cache"
    paths = [os.path.dirname(__file__), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    script.write_text(textwrap.dedent(SCRIPT.format(path=paths, folder=str(folder))))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{N_ROWS} True"] * 2
    assert_same(FeatureCache(folder), expected)
    assert not list(folder.glob("part-*")), "parts are deleted when they are joined"


def extract(folder, worker, pause):
    """What a worker does."""
    torch.set_num_threads(1)
    make_extractor().extract(make_loader(pause), folder, shard_rows=10, worker=worker)


@pytest.fixture
def start_workers():
    """Start so many workers, all of which end with the test."""
    # A server that has imported torch once forks each process from itself.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["skexit.extraction"])
    started = []

    def start(folder, n_workers, pause=0.0):
        workers = [
            context.Process(target=extract, args=(folder, (rank, n_workers), pause)) for rank in range(n_workers)
        ]
        for worker in workers:
            worker.start()
        started.extend(workers)
        return workers

    yield start
    for worker in started:
        worker.kill()
        worker.join()


@pytest.mark.slow
@pytest.mark.parametrize("n_workers_afterwards", [1, 2, 3])
def test_workers_are_killed(tmp_path, expected, start_workers, n_workers_afterwards):
    workers = start_workers(tmp_path, 2, pause=0.05)
    while not (written := list(tmp_path.glob("part-*/shard-*"))):
        time.sleep(0.02)
        assert all(worker.is_alive() for worker in workers)
    times = {shard / "shard.json": (shard / "shard.json").stat().st_mtime_ns for shard in written}
    for worker in workers:
        worker.kill()
        worker.join()
    with pytest.raises(FileNotFoundError, match="there is no cache"):
        FeatureCache(tmp_path)
    assert {file: file.stat().st_mtime_ns for file in times} == times

    for worker in start_workers(tmp_path, n_workers_afterwards):
        worker.join()
        assert worker.exitcode == 0
    assert_same(FeatureCache(tmp_path), expected)


def test_one_process_goes_on_with_the_parts(tmp_path, expected):
    extractor, loader = make_extractor(), make_loader()
    extractor.extract(loader_of_part(loader, 1, 3), tmp_path / "part-00001-of-00003")
    assert_same(extractor.extract(loader, tmp_path), expected)


def test_rows_of_one_process_are_not_in_parts(tmp_path, expected):
    """Which is said before the network runs, not when its work is to be joined with them."""
    extractor, loader = make_extractor(), make_loader()
    extractor.extract(loader, tmp_path, shard_rows=40)
    shutil.rmtree(tmp_path / "shard-00002")
    with pytest.raises(ValueError, match="has 80 rows already, which are not in parts for several workers"):
        extractor.extract(loader, tmp_path, worker=(0, 2))
    assert not list(tmp_path.glob("part-*"))
    assert_same(extractor.extract(loader, tmp_path), expected)


def test_a_worker_that_comes_when_all_is_joined(tmp_path, expected):
    make_extractor().extract(make_loader(), tmp_path)
    assert_same(extract_as_worker(make_extractor(), make_loader(), tmp_path, 1, 2), expected)
    assert not list(tmp_path.glob("part-*"))


def test_parts_that_cannot_be_joined_are_kept(tmp_path):
    loader = make_loader()
    for part, pool in enumerate(["mean", "max"]):
        extract_part(partial(make_extractor(pool=pool).extract, progress=False), loader, tmp_path, part, 2)
    with pytest.raises(ValueError, match=r"cannot be merged: they differ in pool \('mean' and 'max'\)\."):
        join_parts(tmp_path)
    assert [FeatureCache(part).n_rows for part in sorted(tmp_path.glob("part-*"))] == [50, 53]


def test_parts_of_extractions_by_different_numbers_of_workers(tmp_path):
    for n_parts in (2, 3):
        (tmp_path / f"part-00000-of-0000{n_parts}").mkdir()
    with pytest.raises(ValueError, match=r"has parts of extractions by \[2, 3\] workers; keep those of one only"):
        make_extractor().extract(make_loader(), tmp_path, worker=(0, 2))


def test_a_cache_that_lost_a_shard_is_not_complete(tmp_path):
    make_extractor().extract(make_loader(), tmp_path, shard_rows=40)
    assert is_complete(tmp_path)
    shutil.rmtree(tmp_path / "shard-00002")
    assert not is_complete(tmp_path)


def test_parts_are_collated_as_the_whole_is():
    def collate(rows):
        return torch.stack([x for x, _ in rows]) + 1, torch.tensor([y for _, y in rows])

    loader = DataLoader(Images(), batch_size=5, collate_fn=collate)
    assert torch.equal(next(iter(loader_of_part(loader, 0, 2)))[0], next(iter(loader))[0])


def test_a_start_killed_while_it_deleted_the_parts_is_no_obstacle(tmp_path, expected):
    extractor, loader = make_extractor(), make_loader()
    extractor.extract(loader, tmp_path)
    (tmp_path / "part-00000-of-00002").mkdir()
    assert_same(extractor.extract(loader, tmp_path, worker=(0, 2)), expected)


@pytest.mark.parametrize("n_parts", [1, 2, 7, 20])
@pytest.mark.parametrize("drop_last", [False, True])
def test_parts_have_all_rows_in_order(n_parts, drop_last):
    loader = DataLoader(Images(), batch_size=5, drop_last=drop_last)
    n_rows = 100 if drop_last else N_ROWS
    parts = [list(loader_of_part(loader, part, n_parts)) for part in range(n_parts)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    batches = [x for part in parts for x, _ in part]
    assert sum(map(len, batches)) == n_rows
    for batch, (expected, _) in zip(batches, loader, strict=True):
        assert torch.equal(batch, expected)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([torch.zeros(8)] * 10)


@pytest.mark.parametrize(
    "loader",
    [
        [torch.zeros(5, 8)],
        DataLoader(Stream(), batch_size=5),
        DataLoader(TensorDataset(torch.zeros(5, 8)), batch_size=None),
    ],
)
def test_rows_must_be_read_by_index(tmp_path, loader):
    with pytest.raises(ValueError, match="several workers need a DataLoader of a data set that is read by index"):
        make_extractor().extract(loader, tmp_path / "cache", worker=(0, 2))
    assert not (tmp_path / "cache").exists()


def test_every_worker_needs_a_row(tmp_path):
    with pytest.raises(ValueError, match="loader has 3 batches for 4 workers; give each at least one"):
        make_extractor().extract(make_loader(n_rows=13), tmp_path, worker=(0, 4))


def test_times_are_not_measured_by_workers(tmp_path):
    with pytest.raises(ValueError, match=r"cost_unit='ms' would be measured by each worker.*cost_unit='FLOPs'"):
        make_extractor(cost_unit="ms").extract(make_loader(), tmp_path, worker=(0, 2))


def test_a_sampler_that_deals_rows_out_is_refused(tmp_path):
    loader = DataLoader(Images(), sampler=DistributedSampler(Images(), num_replicas=2, rank=0, shuffle=False))
    with pytest.raises(ValueError, match=r"loader has a DistributedSampler.*worker='torchrun'"):
        make_extractor().extract(loader, tmp_path)


def test_workers_of_the_environment(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert rank_and_size("torchrun") == (0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "5")
    assert rank_and_size("torchrun") == (2, 5)
    assert rank_and_size(None) == (0, 1)


@pytest.mark.parametrize("worker", ["slurm", (2, 2), (-1, 2), (0,), 3])
def test_workers_that_do_not_exist(tmp_path, worker):
    with pytest.raises(ValueError, match="must be None, 'torchrun' or"):
        make_extractor().extract(make_loader(), tmp_path, worker=worker)
