"""A small live network whose inputs say how long to wait, and what finds and stops replicas."""

import contextlib
import json
import os
import signal
import socket
import tempfile
import time
import urllib.error
import urllib.request

import ray
import torch
from torch import nn

from skexit import ThresholdPolicy
from skexit.extraction import ExitExtractor
from skexit.runtime import EarlyExitModel

EXITS = ("0", "1", "2")
N_FEATURES = 6
#: No random number, with which a live network is checked, is so large.
NO_WAIT = 100


class Stage(nn.Module):
    """A layer on all columns but the last."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(N_FEATURES, N_FEATURES)

    def forward(self, x):
        return torch.cat([torch.tanh(self.linear(x[:, :-1])), x[:, -1:]], 1)


class WaitingStage(Stage):
    """Waits for as many seconds as the largest value of the last column is above `NO_WAIT`."""

    def forward(self, x):
        time.sleep(max(float(x[:, -1].max()) - NO_WAIT, 0))
        return super().forward(x)


class Last(nn.Module):
    """Logits."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(N_FEATURES, 3)

    def forward(self, x):
        return self.linear(x[:, :-1])


def make_waiting_live(budget=0.8):
    """A live network of three exits, and inputs to it, none of which waits.

    What goes on after the first exit may wait.
    """
    torch.manual_seed(0)
    network = nn.Sequential(Stage(), WaitingStage(), Last()).eval()
    x, x_train = torch.randn(2, 300, N_FEATURES + 1)
    x[:, -1] = x_train[:, -1] = 0
    with torch.no_grad():
        logits = network(x_train)
    y = (logits - logits.mean(0)).argmax(1)  # all classes are frequent
    with tempfile.TemporaryDirectory() as folder:
        cache = ExitExtractor(network, EXITS).extract([(x_train, y)], folder, progress=False)
        policy = ThresholdPolicy(budget=budget).fit(cache.X, cache.y)
    return EarlyExitModel(network, EXITS, policy, example_input=x[:1]), x, cache


def free_port():
    """A port of this machine that nobody uses."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def post(url, body):
    """Status and answer of an HTTP request with JSON, or with bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=data), timeout=100) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            text = error.read().decode()
            return error.code, json.loads(text) if text.startswith("{") else text


def pids_of(application, deployment):
    """Process of each replica that runs, by the name of its actor."""
    start = f"SERVE_REPLICA::{application}#{deployment}#"
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    actors = {name: ray.get_actor(name, namespace="serve") for name in names if name.startswith(start)}
    pids = {}
    for name, actor in actors.items():
        # One that was just killed may still have its name.
        with contextlib.suppress(ray.exceptions.RayActorError):
            pids[name] = ray.get(actor.__ray_call__.remote(lambda replica: os.getpid()))
    return pids


def kill_process(application, deployment):
    """Kill the process of one replica."""
    os.kill(next(iter(pids_of(application, deployment).values())), signal.SIGKILL)


def kill_actor(application, deployment):
    """Have Ray kill the actor of one replica."""
    ray.kill(ray.get_actor(next(iter(pids_of(application, deployment))), namespace="serve"))
