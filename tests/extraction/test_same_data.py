"""A cache is given for the data it was extracted from only: every label and every input counts."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, get_worker_info

from skexit import FeatureCache
from skexit.extraction import ExitExtractor

N_ROWS = 23
IMAGES = torch.randn(N_ROWS, 2, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(N_ROWS) % 3


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 4)
        self.head = nn.Linear(4, 3)
        self.n_rows = 0

    def forward(self, x, mask=None):
        self.n_rows += len(x)
        return self.head(self.layer(x.flatten(1)) * (1 if mask is None else mask.sum(1, keepdim=True)))


class Stream(IterableDataset):
    """Gives the rows in turn; each worker all of them, or a part, or all in its own order."""

    def __init__(self, divided=True, shuffled=False):
        self.divided, self.shuffled = divided, shuffled

    def __iter__(self):
        worker = get_worker_info()
        start, step = (worker.id, worker.num_workers) if worker and self.divided else (0, 1)
        rows = list(range(start, N_ROWS, step))
        if self.shuffled and worker:
            np.random.default_rng(worker.id).shuffle(rows)
        return ((IMAGES[row], LABELS[row]) for row in rows)


class RowsOf(IterableDataset):
    """Pairs of which nobody knows the number."""

    def __init__(self, images, labels):
        self.rows = list(zip(images, labels, strict=True))

    def __iter__(self):
        return iter(self.rows)


LOADERS = {
    "indexed": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=5),
    "stream": lambda x, y: DataLoader(RowsOf(x, y), batch_size=5),
    "list": lambda x, y: list(zip(x.split(5), y.split(5), strict=True)),
    "dicts": lambda x, y: [
        {"x": part, "mask": part[:, 0].abs() > 0.1, "labels": label}
        for part, label in zip(x.split(5), y.split(5), strict=True)
    ],
}


def extract(loader, path, **options):
    network = Network()
    cache = ExitExtractor(network, ["layer"]).extract(loader, path, shard_rows=5, **options)
    return cache, network.n_rows


def stopped(loader, n_batches):
    for number, batch in enumerate(loader):
        if number == n_batches:
            raise KeyboardInterrupt
        yield batch


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: y.__setitem__(12, (y[12] + 1) % 3), "the labels of batch 2 differ from those"),
        (lambda x, y: x[12, 1].add_(1e-3), "the inputs of batch 2 differ from those"),
        (lambda x, y: x[12].copy_(x[12].flip(1)), "the inputs of batch 2 differ from those"),
        (lambda x, y: (x[6:9].copy_(x[6:9].flip(0)), y[6:9].copy_(y[6:9].flip(0))), "of batch 1 differ from those"),
    ],
    ids=["label", "value", "flipped", "order"],
)
def test_what_has_changed_is_found(tmp_path, kind, complete, change, message):
    make = LOADERS[kind]
    if complete:
        extract(make(IMAGES, LABELS), tmp_path)
    else:
        with pytest.raises(KeyboardInterrupt):
            extract(stopped(make(IMAGES, LABELS), 4), tmp_path)
    x, y = IMAGES.clone(), LABELS.clone()
    change(x, y)
    n_rows = FeatureCache(tmp_path, allow_partial=True).n_rows
    with pytest.raises(ValueError, match=message):
        extract(make(x, y), tmp_path)
    found = FeatureCache(tmp_path, allow_partial=True)
    assert (found.n_rows, found.complete) == (n_rows, complete)


@pytest.mark.parametrize("kind", LOADERS)
def test_the_same_data_need_no_pass_and_no_write(tmp_path, kind):
    before, n_rows = extract(LOADERS[kind](IMAGES, LABELS), tmp_path)
    assert n_rows == N_ROWS
    manifest = (tmp_path / "manifest.json").stat()
    after, n_rows = extract(LOADERS[kind](IMAGES, LABELS), tmp_path)
    assert n_rows == 0
    np.testing.assert_array_equal(np.asarray(after.X), np.asarray(before.X))
    assert (tmp_path / "manifest.json").stat().st_ino == manifest.st_ino


@pytest.mark.parametrize("complete", [True, False])
def test_inputs_that_are_changed_at_random(tmp_path, complete):
    random = torch.Generator().manual_seed(1)

    def augmented(n_batches=10):
        return stopped(
            [(x + torch.randn(x.shape, generator=random), y) for x, y in LOADERS["list"](IMAGES, LABELS)], n_batches
        )

    if complete:
        extract(augmented(), tmp_path)
    else:
        with pytest.raises(KeyboardInterrupt):
            extract(augmented(3), tmp_path)
    with pytest.raises(ValueError, match=r"differs in first input.*changes inputs at random.*check_data=False"):
        extract(augmented(), tmp_path)
    cache, n_rows = extract(augmented(), tmp_path, check_data=False)
    assert n_rows == (0 if complete else 8)
    assert cache.y.tolist() == LABELS.tolist()


def test_rows_on_trust_are_not_read(tmp_path):
    class Counting(TensorDataset):
        n_read = 0

        def __getitem__(self, row):
            self.n_read += 1
            return super().__getitem__(row)

    data = Counting(IMAGES, LABELS)
    for check_data, n_read in ((True, N_ROWS), (True, N_ROWS), (False, 5)):
        data.n_read = 0
        extract(DataLoader(data, batch_size=5), tmp_path, check_data=check_data)
        assert data.n_read == n_read


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("batch_size", [5, 23, None])
def test_workers_that_give_the_same_rows(tmp_path, shuffled, batch_size):
    data = Stream(divided=False, shuffled=shuffled)
    with pytest.warns(UserWarning, match=r"its 2 workers give the same rows.*get_worker_info.*num_workers=0") as caught:
        cache, _ = extract(make_stream(data, batch_size, 2), tmp_path / "doubled")
    assert caught[0].filename == __file__
    assert cache.n_rows == 2 * N_ROWS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for cure, loader in enumerate((make_stream(Stream(), batch_size, 2), make_stream(data, batch_size, 0))):
            assert extract(loader, tmp_path / str(cure))[0].n_rows == N_ROWS


def make_stream(data, batch_size, num_workers):
    collate = (lambda row: (row[0][None], row[1][None])) if batch_size is None else None
    return DataLoader(data, batch_size=batch_size, num_workers=num_workers, collate_fn=collate)
