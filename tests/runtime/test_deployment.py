"""A live network in two parts answers as the whole does, also after a way through files."""

import functools
import io
import subprocess
import sys

import joblib
import numpy as np
import pytest
import torch
from live_networks import Network, NothingPays, make_live, make_token_live, policies
from torch import nn

from skexit import ExitHeads, StaticExit, ThresholdPolicy
from skexit.runtime import Activations, EarlyExitModel, PartialOutput, join_outputs


@functools.cache
def live_and_inputs(name):
    return make_live(policies()[name])


def assert_same_answers(output, expected):
    assert np.array_equal(np.asarray(output.labels), np.asarray(expected.labels))
    torch.testing.assert_close(output.exits, expected.exits)
    torch.testing.assert_close(output.probabilities, expected.probabilities, rtol=0, atol=1e-5)


def through_a_file(rest):
    file = io.BytesIO()
    torch.save(rest.to_dict(), file)
    file.seek(0)
    return Activations.from_dict(torch.load(file, weights_only=True))


def names_of_parameters(live, part):
    """Names that the network has for the parameters of a part."""
    names = {id(parameter): name for name, parameter in live.model.named_parameters()}
    return {names[id(parameter)] for parameter in part.parameters()}


@pytest.mark.parametrize("at_exit", range(3))
@pytest.mark.parametrize("name", policies())
def test_parts_together_are_the_whole(name, at_exit):
    live, x = live_and_inputs(name)
    expected = live(x)
    first, second = live.truncate(at_exit), live.resume(at_exit)
    answered = first(x)
    assert torch.equal(answered.rows, torch.nonzero(expected.exits <= at_exit).flatten())
    outputs = [answered]
    if answered.rest is not None:
        assert torch.equal(answered.rest.rows, torch.nonzero(expected.exits > at_exit).flatten())
        assert len(answered.rest) == len(answered.rest.rows)
        outputs.append(second(through_a_file(answered.rest)))
        assert outputs[1].rest is None
    assert_same_answers(join_outputs(outputs), expected)


def test_samples_that_all_leave_or_all_stay():
    live, x = live_and_inputs("static")
    answered = live.truncate(0)(x)
    assert len(answered.rest) == len(x)
    assert answered.labels.shape == answered.exits.shape == answered.rows.shape == (0,)
    assert answered.probabilities.shape == (0, 3)
    for at_exit in (1, 2):
        assert live.truncate(at_exit)(x).rest is None


def test_samples_that_left_are_not_taken_along():
    plain, x = live_and_inputs("threshold")
    expected = plain(x)
    live, _ = make_live(policies()["threshold"], latency=NothingPays())
    answered = live.truncate(1)(x)
    assert torch.equal(answered.rest.rows, torch.nonzero(expected.exits > 1).flatten())
    assert_same_answers(join_outputs([answered, live.resume(1)(answered.rest)]), expected)


def test_classes_with_names():
    live, x = make_live(ThresholdPolicy(budget=0.6), classes=["ant", "bee", "cow"])
    answered = live.truncate(1)(x)
    assert_same_answers(join_outputs([answered, live.resume(1)(answered.rest)]), live(x))


def test_masks_go_with_the_samples():
    live, draw = make_token_live(ThresholdPolicy(budget=0.75, heads=ExitHeads(max_epochs=5, random_state=0)))
    first, second = (joblib_copy(part) for part in (live.truncate(0), live.resume(0)))
    for length in (7, 4):
        inputs = draw(30, length)
        answered = first(**inputs)
        assert 0 < len(answered.rest) < 30
        assert_same_answers(join_outputs([answered, second(through_a_file(answered.rest))]), live(inputs))


def joblib_copy(part):
    file = io.BytesIO()
    joblib.dump(part, file)
    file.seek(0)
    return joblib.load(file)


@pytest.mark.parametrize("at_exit", range(3))
def test_parts_have_the_parameters_that_they_need(at_exit):
    live, _ = live_and_inputs("threshold")
    first, second = (names_of_parameters(live, part) for part in (live.truncate(at_exit), live.resume(at_exit)))
    for part, ks in ((first, range(at_exit + 1)), (second, range(at_exit + 1, 4))):
        assert part == {
            f"{name}.{k}.{parameter}" for k in ks for name in ("blocks", "heads") for parameter in names_of(name)
        }
    assert not first & second


def names_of(module):
    return ("0.weight", "0.bias") if module == "blocks" else ("weight", "bias")


IN_A_FRESH_PROCESS = """
import sys, torch
first, x = (torch.load(path, weights_only=False) for path in sys.argv[1:3])
output = first(x)
torch.save([*output[:-1], output.rest.to_dict()], sys.argv[3])
"""


def make_uneven_network():
    """A network of which nearly all parameters are behind the first exit."""
    wide = nn.Sequential(nn.Linear(6, 20000), nn.Tanh(), nn.Linear(20000, 6))
    return nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.Tanh()), wide, nn.Linear(6, 6), nn.Linear(6, 3))


@pytest.mark.slow
def test_the_first_part_runs_in_a_process_of_its_own(tmp_path):
    live, x = make_live(policies()["ensemble"], network=make_uneven_network, exits=["0", "1", "2"])
    paths = [tmp_path / name for name in ("first.pt", "x.pt", "output.pt")]
    torch.save(live.truncate(0), paths[0])
    torch.save(x, paths[1])
    subprocess.run([sys.executable, "-c", IN_A_FRESH_PROCESS, *map(str, paths)], check=True)
    *answers, rest = torch.load(paths[2], weights_only=True)
    answered = PartialOutput(*answers, Activations.from_dict(rest))
    assert 0 < len(answered.rest) < len(x)
    assert_same_answers(join_outputs([answered, live.resume(0)(answered.rest)]), live(x))
    torch.save(live, tmp_path / "whole.pt")
    assert paths[0].stat().st_size < 2e5 < 1e6 < (tmp_path / "whole.pt").stat().st_size


@pytest.mark.parametrize("at_exit", [-1, 3, 1.0, None])
def test_exits_at_which_nothing_can_be_cut(at_exit):
    live, _ = live_and_inputs("threshold")
    for method in (live.truncate, live.resume):
        with pytest.raises(ValueError, match=r"at_exit=.* an integer from 0 to 2"):
            method(at_exit)


def test_a_network_that_is_not_divided_yet():
    live, _ = live_and_inputs("threshold")
    uncut = EarlyExitModel(live.model, Network.exits, live.policy)
    for method in (uncut.truncate, uncut.resume):
        with pytest.raises(RuntimeError, match="the live network is not prepared"):
            method(0)


def test_activations_of_another_exit():
    live, x = live_and_inputs("threshold")
    with pytest.raises(ValueError, match="activations after exit 0, but this part continues after exit 1"):
        live.resume(1)(live.truncate(0)(x).rest)


def test_activations_on_another_device():
    live, x = live_and_inputs("threshold")
    rest = live.truncate(0)(x).rest.to("meta")
    assert {tensor.device.type for tensor in (*rest.tensors, rest.rows)} == {"meta"}
    with pytest.raises(ValueError, match="rest is on meta, but this part is on cpu"):
        live.resume(0)(rest)


def test_inputs_that_the_network_does_not_take():
    live, x = live_and_inputs("threshold")
    with pytest.raises(ValueError, match="has the shape"):
        live.truncate(0)(x[:, 1:])


def test_parts_cannot_be_trained():
    live, _ = make_live(StaticExit(1))
    with pytest.raises(RuntimeError, match="cannot be trained"):
        live.truncate(0).train()
    assert not any(module.training for module in live.resume(0).modules())


def test_parts_move_with_their_policy():
    live, x = make_live(policies()["ensemble"])
    first, second = (joblib_copy(part).to("meta") for part in (live.truncate(0), live.resume(0)))
    with pytest.raises(ValueError, match="x is on cpu, but the network on meta"):
        first(x)
    with pytest.raises(ValueError, match="rest is on cpu, but this part is on meta"):
        second(live.truncate(0)(x).rest)
