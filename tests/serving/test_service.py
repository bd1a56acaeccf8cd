"""Applications of Ray Serve, started, loaded and killed on this machine."""

import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import services
from services import NO_WAIT, free_port, kill_actor, kill_process, make_waiting_live, pids_of, post

from skexit.monitoring import BudgetController, ExitMonitor
from skexit.serving import serve_parts

ray = pytest.importorskip("ray")
from ray import serve  # noqa: E402

# Ray runs threads of its own in this process, which a warning that were an error would stop.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

TIMEOUT_S = 15.0


@pytest.fixture(scope="module")
def url():
    """Ray with an HTTP proxy, and nothing deployed yet."""
    port = free_port()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.cloudpickle.register_pickle_by_value(services)
        ray.init(address="local", num_cpus=16, include_dashboard=False, log_to_driver=False)
        serve.start(http_options={"port": port, "request_timeout_s": TIMEOUT_S})
        yield f"http://127.0.0.1:{port}"
        ray.shutdown()


@pytest.fixture(scope="module")
def live_and_inputs():
    return make_waiting_live()


@pytest.fixture(scope="module")
def expected(live_and_inputs):
    live, x, _ = live_and_inputs
    return live(x)


@pytest.fixture(scope="module")
def parts(url, live_and_inputs):
    """A handle of two replicas of each part."""
    application = serve_parts(live_and_inputs[0], 0, first={"num_replicas": 2}, second={"num_replicas": 2})
    return serve.run(application, name="parts", route_prefix="/parts")


def test_answers_are_those_of_the_live_network(url, parts, live_and_inputs, expected):
    _, x, _ = live_and_inputs
    assert 0 < (expected.exits > 0).sum() < len(x)
    output = parts.predict.remote(x.numpy()).result()
    assert np.array_equal(output.labels, expected.labels)
    assert np.array_equal(output.exits, expected.exits)
    np.testing.assert_allclose(output.probabilities, expected.probabilities, rtol=0, atol=1e-5)
    status, answer = post(f"{url}/parts", {"inputs": x[:40].tolist()})
    assert status == 200
    assert answer["labels"] == expected.labels[:40].tolist()
    assert answer["exits"] == expected.exits[:40].tolist()
    np.testing.assert_allclose(answer["probabilities"], expected.probabilities[:40], rtol=0, atol=1e-5)


def test_bad_input_is_named_and_harms_no_other_request(url, parts, live_and_inputs, expected):
    _, x, _ = live_and_inputs
    huge = np.full((1, x.shape[1]), 3e38)
    huge[:, -1] = 0
    bodies = [
        (b"{", 400, "the body is not JSON"),
        ({"input": []}, 400, "the body has the names ['input']"),
        ({"inputs": [[1, 2]]}, 422, "inputs has the shape (1, 2); pass numbers of shape (n_samples, 7)."),
        ({"inputs": [["a"] * 7]}, 422, "inputs holds values that are not numbers"),
    ]
    bodies *= 3
    with ThreadPoolExecutor(8) as pool:
        good = [pool.submit(post, f"{url}/parts", {"inputs": x[row : row + 1].tolist()}) for row in range(30)]
        bad = [pool.submit(post, f"{url}/parts", body) for body, _, _ in bodies]
    for future, (_, status, message) in zip(bad, bodies, strict=True):
        assert future.result()[0] == status
        assert message in future.result()[1]["error"]
    assert [future.result()[1]["exits"] for future in good] == [[k] for k in expected.exits[:30].tolist()]
    with pytest.raises(ValueError, match=r"inputs has the shape \(7,\)"):
        parts.predict.remote(x[0].numpy()).result()


@pytest.mark.parametrize("kill", [kill_process, kill_actor])
def test_no_request_is_lost_when_replicas_are_killed(url, parts, live_and_inputs, expected, kill):
    _, x, _ = live_and_inputs
    slow = x.clone()
    slow[:, -1] = NO_WAIT + 0.05  # so that both parts have requests under way at any time
    stopping, going_on = (np.flatnonzero(mask) for mask in (expected.exits == 0, expected.exits > 0))
    n_requests, answers = 300, {}
    rows = np.column_stack([np.resize(own, n_requests // 2) for own in (stopping, going_on)]).ravel()
    quarter = threading.Event()

    def ask(k):
        x = slow[rows[k] : rows[k] + 1]
        if k // 2 % 2:
            answers[k] = int(parts.predict.remote(x.numpy()).result().exits[0])
        else:
            status, answer = post(f"{url}/parts", {"inputs": x.tolist()})
            answers[k] = answer["exits"][0] if status == 200 else (status, answer)
        if len(answers) > n_requests // 4:
            quarter.set()

    before = {part: set(pids_of("parts", part)) for part in ("FirstPart", "SecondPart")}
    assert all(before.values())
    with ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(ask, k) for k in range(n_requests)]
        quarter.wait(60)
        for part in before:
            kill("parts", part)
        for future in futures:
            future.result()
    assert [answers[k] for k in range(n_requests)] == expected.exits[rows].tolist()
    until = time.monotonic() + 60
    while any(len(set(pids_of("parts", part)) - before[part]) < 1 for part in before):
        assert time.monotonic() < until, "Ray has not replaced the replicas"
        time.sleep(0.5)


def ask_at_once(url, x, n_requests):
    """Status and answer of requests that are sent at the same time."""
    with ThreadPoolExecutor(n_requests) as pool:
        return list(pool.map(lambda _: post(url, {"inputs": x.tolist()}), range(n_requests)))


def test_too_many_requests_are_refused_and_slow_ones_time_out(url, live_and_inputs, expected):
    live, x, _ = live_and_inputs
    row = int((expected.exits > 0).nonzero()[0])
    one = {"max_batch_size": 1}
    limited = serve_parts(
        live,
        0,
        second={"max_ongoing_requests": 1, "max_queued_requests": 1, "user_config": one},
        ingress={"max_ongoing_requests": 6, "max_queued_requests": 2},
    )
    serve.run(limited, name="limited", route_prefix="/limited")
    slow = x[row : row + 1].clone()
    slow[:, -1] = NO_WAIT + 2
    # One runs. Ray may refuse all that come at the same moment, at either limit.
    answers = ask_at_once(f"{url}/limited", slow, 6)
    assert {status for status, _ in answers} == {200, 503}
    assert all(answer["exits"] == expected.exits[row : row + 1].tolist() for status, answer in answers if status == 200)
    assert all("max_queued_requests=" in str(answer) for status, answer in answers if status == 503)
    assert post(f"{url}/limited", {"inputs": x[:1].tolist()})[0] == 200

    slow[:, -1] = NO_WAIT + 3 * TIMEOUT_S
    status, message = post(f"{url}/limited", {"inputs": slow.tolist()})
    assert status == 408
    assert "timed out" in str(message)
    serve.delete("limited", _blocking=False)


def test_the_controller_keeps_the_budget_over_replicas(url, live_and_inputs):
    live, x, cache = live_and_inputs
    budget = live.policy.budget
    controller = BudgetController(live.policy, step=0.05)
    monitor = ExitMonitor(live.policy, cache.X, cache.y)
    application = serve_parts(live, 0, first={"num_replicas": 2}, controller=controller, monitor=monitor)
    handle = serve.run(application, name="controlled", route_prefix="/controlled")
    before = live.thresholds
    faint = 0.3 * x  # exits are less confident
    fixed = live.policy.costs_[live(faint).exits].mean()
    assert fixed > budget + 0.05

    def ask(k):
        return int(handle.predict.remote(faint[k % len(x) : k % len(x) + 1].numpy()).result().exits[0])

    with ThreadPoolExecutor(8) as pool:
        exits = list(pool.map(ask, range(1000)))
    observer = serve.get_deployment_handle("Monitor", "controlled")
    until = time.monotonic() + 30
    while (read := observer.read.remote().result())[0].n_samples < len(exits):
        assert time.monotonic() < until, "not all requests were counted"
        time.sleep(0.1)
    kept, seen = read
    assert kept.mean_cost == pytest.approx(live.policy.costs_[exits].mean())
    assert abs(kept.mean_cost - budget) <= kept.bound
    assert abs(kept.mean_cost - budget) < (fixed - budget) / 2
    assert seen.n_samples == len(exits)
    assert seen.changed
    assert np.array_equal(live.thresholds, before)

    kill_process("controlled", "Monitor")
    with ThreadPoolExecutor(8) as pool:
        assert all(k in range(3) for k in pool.map(ask, range(100)))
