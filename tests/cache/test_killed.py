"""Real processes, killed with SIGKILL while they save a policy or search over a cache."""

import contextlib
import hashlib
import multiprocessing
import os
import signal
import time

import joblib
import numpy as np
import pytest
from caches import ORIGIN
from sklearn.model_selection import GridSearchCV

from skexit import ExitLayout, FeatureCache, ThresholdPolicy, stack_exits
from skexit.cache import CacheWriter
from skexit.cli import main
from skexit.model_selection import accuracy_and_cost, best_within

LOGITS = np.random.default_rng(0).normal(size=(300, 3, 4)).astype(np.float32)
LABELS = LOGITS[:, 2].argmax(axis=1)
#: Half a megabyte that does not compress, so that saving takes a while.
NOISE = np.random.default_rng(1).normal(size=2**16)


def in_place(policy, path):
    joblib.dump(policy, path, compress=3)


def replacing(policy, path):
    """What docs/guide/persistence.rst advises."""
    joblib.dump(policy, f"{path}.new", compress=3)
    os.replace(f"{path}.new", path)


def save_again_and_again(save, path, connection):
    policy = ThresholdPolicy(budget=0.7).fit(stack_exits(LOGITS), LABELS)
    policy.noise_ = NOISE
    for number in range(1_000_000):
        policy.number_ = number
        save(policy, path)
        if number == 0:
            connection.send("saved")


def search_again_and_again(path, connection):
    os.setsid()  # joblib's workers outlive a killed process for minutes; as a group they can be ended
    cache = FeatureCache(path)
    grid = {"budget": [0.5, 0.6, 0.7]}
    search = GridSearchCV(ThresholdPolicy(), grid, scoring=accuracy_and_cost(), refit=best_within(0.7), cv=3, n_jobs=2)
    while True:
        search.fit(cache.X, cache.y)
        connection.send("searched")


def kill_soon(target, *arguments, longest):
    """Kill a process at a random moment after it has done its work once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["skexit.extraction"])
    connection, theirs = context.Pipe()
    process = context.Process(target=target, args=(*arguments, theirs))
    process.start()
    connection.recv()
    time.sleep(np.random.default_rng(int.from_bytes(os.urandom(4))).uniform(0, longest))
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return process.pid


def write_labelled_cache(path):
    layout = ExitLayout([4] * 3, [0] * 3, classes=range(4))
    with CacheWriter(path, layout, origin=ORIGIN, shard_rows=100) as writer:
        for rows in map(slice, range(0, 300, 100), range(100, 400, 100)):
            writer.append(list(LOGITS[rows].swapaxes(0, 1)), [None] * 3, LABELS[rows])


def checksums(folder):
    return {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.rglob("*") if file.is_file()}


def test_a_policy_that_replaces_another_is_always_whole(tmp_path):
    path = tmp_path / "policy.joblib"
    numbers = []
    for _ in range(4):
        kill_soon(save_again_and_again, replacing, path, longest=0.3)
        policy = joblib.load(path)
        np.testing.assert_array_equal(policy.noise_, NOISE)
        numbers.append(policy.number_)
    assert max(numbers) > 0


def test_a_policy_that_is_written_in_place_is_whole_or_an_error(tmp_path, capsys):
    write_labelled_cache(tmp_path / "cache")
    joblib.dump(ThresholdPolicy(), tmp_path / "earlier.joblib", compress=3)
    before = checksums(tmp_path)
    path = tmp_path / "policy.joblib"
    n_whole = n_errors = 0
    while n_whole + n_errors < 3 or (n_errors == 0 and n_whole < 30):
        kill_soon(save_again_and_again, in_place, path, longest=0.3)
        try:
            policy = joblib.load(path)
        except Exception:
            assert main(["report", str(tmp_path / "cache"), str(path), "--out", str(tmp_path / "report.html")]) == 1
            assert "policy.joblib' cannot be loaded" in capsys.readouterr().err
            n_errors += 1
        else:
            np.testing.assert_array_equal(policy.noise_, NOISE)
            n_whole += 1
        path.unlink()
    assert n_errors, "none was killed half-way"
    assert checksums(tmp_path) == before


@pytest.mark.parametrize("part", [0, 1e-5, 0.01, 0.5, 0.99])
def test_part_of_a_policy_is_an_error(tmp_path, part):
    policy = ThresholdPolicy(budget=0.7).fit(stack_exits(LOGITS), LABELS)
    policy.noise_ = NOISE
    path = tmp_path / "policy.joblib"
    in_place(policy, path)
    os.truncate(path, int(part * path.stat().st_size))
    with pytest.raises(Exception):  # noqa: B017, PT011
        joblib.load(path)


@pytest.mark.slow
def test_a_killed_search_leaves_the_cache_as_it_was(tmp_path):
    path = tmp_path / "cache"
    write_labelled_cache(path)
    before = checksums(path)
    group = kill_soon(search_again_and_again, path, longest=0.5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    assert checksums(path) == before
    cache = FeatureCache(path)
    cache.verify()
    np.testing.assert_array_equal(np.asarray(cache.X), np.asarray(stack_exits(LOGITS)))
