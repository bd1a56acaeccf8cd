"""Extraction and searches by the workers of a real dask cluster, which talk over TCP."""

import os
import pickle
import shutil
import signal
import threading
import time
from functools import partial

import joblib
import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from test_workers import N_ROWS, assert_same, make_extractor, make_loader

from skexit import ExitHeads, FeatureCache, ThresholdPolicy
from skexit.extraction import extract_on_dask
from skexit.extraction._parts import extract_part

distributed = pytest.importorskip("distributed")

# The scheduler runs in this process, and a warning that were an error would stop it in the middle of what it does.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def client():
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, protocol="tcp://", dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def expected(tmp_path):
    return make_extractor().extract(make_loader(), tmp_path / "alone")


@pytest.mark.slow
def test_the_cache_is_that_of_one_process(client, tmp_path, expected):
    cache = extract_on_dask(client, make_extractor(), make_loader(), tmp_path / "cache")
    assert_same(cache, expected)
    again = extract_on_dask(client, make_extractor(), make_loader(), tmp_path / "cache")
    assert_same(again, expected)


@pytest.mark.slow
def test_a_worker_is_killed(client, tmp_path, expected):
    folder = tmp_path / "cache"
    killed = []

    def kill_one():
        while not list(folder.glob("part-*/shard-*")):
            time.sleep(0.02)
        pid = client.run(os.getpid)
        killed.append(next(iter(pid.values())))
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill_one)
    thread.start()
    cache = extract_on_dask(client, make_extractor(), make_loader(pause=0.02), folder, n_parts=3, shard_rows=10)
    thread.join()
    assert killed
    assert_same(cache, expected)


def test_errors_of_workers_reach_the_caller(client, tmp_path):
    with pytest.raises(ValueError, match="loader has 21 batches for 200 workers"):
        extract_on_dask(client, make_extractor(), make_loader(), tmp_path, n_parts=200)
    with pytest.raises(ValueError, match="which is not in classes"):
        extract_on_dask(client, make_extractor(), make_loader(), tmp_path / "cache", classes=[5, 6, 7])


def test_rows_of_one_process_are_not_in_parts(client, tmp_path, expected):
    shutil.rmtree(tmp_path / "alone" / "shard-00000")
    make_extractor().extract(make_loader(), tmp_path / "alone", shard_rows=40)
    shutil.rmtree(tmp_path / "alone" / "shard-00002")
    with pytest.raises(ValueError, match="has 80 rows already, which are not in parts"):
        extract_on_dask(client, make_extractor(), make_loader(), tmp_path / "alone")
    assert not list((tmp_path / "alone").glob("part-*"))


def test_an_extraction_goes_on_with_the_parts_it_began_with(client, tmp_path, expected):
    extract_part(partial(make_extractor().extract, progress=False), make_loader(), tmp_path / "cache", 1, 3)
    cache = extract_on_dask(client, make_extractor(), make_loader(), tmp_path / "cache", n_parts=2)
    assert_same(cache, expected)


@pytest.mark.slow
def test_a_search_over_budgets_opens_the_cache_by_its_path(client, tmp_path, expected):
    X, y = expected.X, expected.y
    assert len(pickle.dumps(X[np.arange(0, N_ROWS, 2)])) < 4000, "rows travel as a path and their numbers"
    assert isinstance(pickle.loads(pickle.dumps(X)).source, FeatureCache)
    pipeline = make_pipeline(ExitHeads(random_state=0), ThresholdPolicy())
    grid = {"thresholdpolicy__budget": [0.8, 0.9, 1.0], "thresholdpolicy__criterion": ["max_prob", "entropy"]}
    alone = GridSearchCV(pipeline, grid, cv=2).fit(X, y)
    with joblib.parallel_config(backend="dask", wait_for_workers_timeout=30):
        search = GridSearchCV(pipeline, grid, cv=2).fit(X, y)
    np.testing.assert_array_equal(search.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"])
    assert search.best_params_ == alone.best_params_
