"""A real process, killed with SIGKILL at random points and started again until it is done."""

import multiprocessing
import os
import signal
import time

import numpy as np
import torch
from torch import nn

from skexit import FeatureCache
from skexit.extraction import ExitExtractor


def extract(folder, pause, started):
    """What the killed process does: 60 small batches, a shard every third."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 12 * 12, 5))
    images, labels = torch.randn(600, 3, 16, 16), torch.randint(5, (600,))

    def batches():
        for batch in zip(images.split(10), labels.split(10), strict=True):
            time.sleep(pause)
            yield batch

    started.send(None)
    ExitExtractor(model, exits=["0", "2"]).extract(batches(), folder, shard_rows=30)


def start(folder, pause=0.0):
    # A server that has imported torch once forks each process from itself.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["skexit.extraction"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=extract, args=(folder, pause, sender))
    process.start()
    receiver.recv()
    return process


def test_a_killed_extraction_ends_like_an_undisturbed_one(tmp_path):
    process = start(tmp_path / "undisturbed")
    process.join()
    assert process.exitcode == 0

    random = np.random.default_rng(int.from_bytes(os.urandom(4)))
    rows_when_killed = []
    for _ in range(6):
        process = start(tmp_path / "killed", pause=0.02)
        time.sleep(random.uniform(0, 0.8))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        if (tmp_path / "killed" / "manifest.json").exists():
            rows_when_killed.append(FeatureCache(tmp_path / "killed", allow_partial=True).n_rows)
    process = start(tmp_path / "killed")
    process.join()
    assert process.exitcode == 0

    assert rows_when_killed == sorted(rows_when_killed), "complete shards must never be lost"
    killed, undisturbed = FeatureCache(tmp_path / "killed"), FeatureCache(tmp_path / "undisturbed")
    assert killed.layout == undisturbed.layout
    np.testing.assert_array_equal(killed.y, undisturbed.y)
    np.testing.assert_array_equal(np.asarray(killed.X), np.asarray(undisturbed.X))
    killed.verify()
