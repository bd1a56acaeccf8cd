"""What is no input of a live network raises an error that says what to pass, and this works."""

import numpy as np
import pandas as pd
import pytest
import torch
from messages import exactly
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from skexit import ThresholdPolicy, stack_exits
from skexit.runtime import Activations, EarlyExitModel, PartialOutput, join_outputs
from skexit.runtime._onnx_inputs import checked_arrays

IMAGES, LABELS = torch.randn(20, 2, 8, 6, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3
SAMPLE, ARRAY = IMAGES[0], IMAGES.numpy()
TAKES = "the network takes a tensor, a tuple of tensors or a dict of tensors, with one row per sample, but got "
BATCHES = (
    "Pass one of its batches at a time, without the labels. EarlyExitModel.predict_loader(loader) predicts all of them."
)
STACK = (
    "If each array is one sample, pass torch.from_numpy(numpy.stack(samples)), a batch. If they are several inputs of "
    "the network, convert each by torch.from_numpy(array)."
)
TOKENIZER = "A tokenizer returns tensors with tokenizer(texts, padding=True, return_tensors='pt')."
CUT = "the network was prepared for the inputs ['x'], but got ['input 0', 'input 1']. "
SHAPE = "but the network was prepared for (n, 2, 8, 6). "


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()


@pytest.fixture(scope="module")
def policy(network):
    with torch.no_grad():
        logits = network(IMAGES).numpy()
    return ThresholdPolicy(budget=0.8).fit(stack_exits([logits / 9, logits]), LABELS)


class TwoExits(nn.Module):
    """The network, with a head at its first exit."""

    def __init__(self, network):
        super().__init__()
        self.first, self.second, self.last = network[:2], network[2:4], network[4:]

    def forward(self, x):
        hidden = self.first(x)
        return [self.last(hidden), self.last(self.second(hidden))]


@pytest.fixture(scope="module")
def unprepared(network, policy):
    return lambda: EarlyExitModel(TwoExits(network), ["first", "second"], policy)


@pytest.fixture(scope="module")
def live(unprepared):
    live = unprepared()
    live.prepare(IMAGES)
    return live


#: What is passed, the error, and what it says to pass.
OTHER_FORMS = {
    "an array": (ARRAY, f"{TAKES}an array of shape (20, 2, 8, 6) and type float32. Pass torch.from_numpy(x).", IMAGES),
    "an array in double precision": (
        ARRAY.astype(float),
        f"{TAKES}an array of shape (20, 2, 8, 6) and type float64. Pass torch.from_numpy(x).float().",
        torch.from_numpy(ARRAY.astype(float)).float(),
    ),
    "an array of objects": (
        ARRAY.astype(object),
        f"{TAKES}an array of shape (20, 2, 8, 6) and type object. Pass torch.from_numpy(x.astype('float32')).",
        torch.from_numpy(ARRAY.astype(object).astype("float32")),
    ),
    "a list of arrays": (
        [ARRAY[0], ARRAY[1]],
        f"{TAKES}a tuple of (an array of shape (2, 8, 6) and type float32, an array of shape (2, 8, 6) and type "
        f"float32). {STACK}",
        torch.from_numpy(np.stack([ARRAY[0], ARRAY[1]])),
    ),
    "a frame": (
        pd.DataFrame(np.zeros((2, 2))),
        f"{TAKES}a DataFrame. Convert a DataFrame by torch.from_numpy(frame.to_numpy(dtype='float32')).",
        None,
    ),
    "a loader": (
        DataLoader(TensorDataset(IMAGES, LABELS), batch_size=20),
        f"{TAKES}a DataLoader. {BATCHES}",
        next(iter(DataLoader(TensorDataset(IMAGES, LABELS), batch_size=20)))[0],
    ),
    "a generator": ((batch for batch in [IMAGES]), f"{TAKES}a generator. {BATCHES}", IMAGES),
    "batches with labels": (
        [(SAMPLE, 1), (SAMPLE, 2)],
        f"{TAKES}a tuple of (a tuple of (a tensor of shape (2, 8, 6), an int), a tuple of (a tensor of shape "
        f"(2, 8, 6), an int)). {BATCHES}",
        None,
    ),
    "a data set": (
        TensorDataset(IMAGES),
        f"{TAKES}a TensorDataset. torch.utils.data.DataLoader(dataset, batch_size=64) makes batches of a data set, and "
        "EarlyExitModel.predict_loader(loader) predicts them.",
        None,
    ),
    "a path": (
        "image.png",
        f"{TAKES}a str. Convert an image by the transform of the network, and texts by its tokenizer: "
        "transform(image)[None] is a batch of one image, and torch.stack([transform(image) for image in images]) of "
        "several.",
        None,
    ),
    "tokens without tensors": (
        {"input_ids": [[1, 2]]},
        f"{TAKES}{{'input_ids': a list of (a list of (an int, an int))}}. {TOKENIZER}",
        None,
    ),
    "arrays by name": (
        {"x": ARRAY},
        f"{TAKES}{{'x': an array of shape (20, 2, 8, 6) and type float32}}. Convert each array by "
        f"torch.from_numpy(array). {TOKENIZER}",
        None,
    ),
    "outputs of exits": (
        stack_exits(np.zeros((2, 2, 3))),
        f"{TAKES}an ExitArray. It has the outputs of exits, which are for policies: policy.predict(cache.X).",
        None,
    ),
    "nothing": (
        None,
        f"{TAKES}None. Convert arrays by torch.from_numpy, and leave out what the network does not take. For other "
        "inputs, such as graphs, collect the outputs of exits by hooks of your own, and pass them to stack_exits.",
        None,
    ),
    "a list of samples": (
        [SAMPLE, SAMPLE],
        f"{CUT}Each has the shape of one sample: pass torch.stack(samples), a batch.",
        torch.stack([SAMPLE, SAMPLE]),
    ),
    "a list of batches": (
        [IMAGES[:4], IMAGES[4:8]],
        f"{CUT}Each is a batch of its own: pass one at a time, or torch.cat(batches).",
        torch.cat([IMAGES[:4], IMAGES[4:8]]),
    ),
    "inputs and labels": ((IMAGES, LABELS), f"{CUT}The last one looks like labels; leave it out.", IMAGES),
    "one sample": (
        SAMPLE,
        f"x has the shape (2, 8, 6), {SHAPE}That is the shape of one sample: pass x[None], a batch of one.",
        SAMPLE[None],
    ),
    "channels last": (
        IMAGES.permute(0, 2, 3, 1),
        f"x has the shape (20, 8, 6, 2), {SHAPE}Its channels are last: pass x.permute(0, 3, 1, 2).",
        IMAGES.permute(0, 2, 3, 1).permute(0, 3, 1, 2),
    ),
    "one sample with channels last": (
        SAMPLE.permute(1, 2, 0),
        f"x has the shape (8, 6, 2), {SHAPE}That is one sample with its channels last: pass x.permute(2, 0, 1)[None], "
        "a batch of one.",
        SAMPLE.permute(1, 2, 0).permute(2, 0, 1)[None],
    ),
    "bytes": (
        (255 * IMAGES.abs().clamp(max=1)).to(torch.uint8),
        "x has the type torch.uint8, but the network was prepared for torch.float32. Convert it as the training data were "
        "converted, for example by to(torch.float32) / 255.",
        (255 * IMAGES.abs().clamp(max=1)).to(torch.uint8).to(torch.float32) / 255,
    ),
}


@pytest.mark.parametrize("case", OTHER_FORMS)
@pytest.mark.parametrize("part", ["live", "first"])
def test_other_forms(live, case, part):
    given, message, cure = OTHER_FORMS[case]
    network = live if part == "live" else live.truncate(0)
    with pytest.raises(ValueError, match=exactly(message)):
        network(given)
    if cure is not None:
        network(cure)


def test_images_of_pil(live):
    image = pytest.importorskip("PIL.Image").new("RGB", (8, 6))
    for given in (image, [image, image]):
        with pytest.raises(ValueError, match=r"transform\(image\)\[None\] is a batch of one image, and torch.stack"):
            live(given)


def test_grey_images_without_channels():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 4 * 4, 3)).eval()
    images = torch.randn(9, 6, 6)
    with torch.no_grad():
        logits = network(images[:, None]).numpy()
    policy = ThresholdPolicy(budget=1.0).fit(stack_exits([logits]), np.arange(9) % 3)
    live = EarlyExitModel(network, ["2"], policy, example_input=images[:, None])
    message = (
        "x has the shape (9, 6, 6), but the network was prepared for (n, 1, 6, 6). The axis of the channels is missing: "
        "pass x[:, None]."
    )
    with pytest.raises(ValueError, match=exactly(message)):
        live(images)
    live(images[:, None])


#: What is passed first to a live network without an example, the error, and what it says to pass.
FIRST_INPUTS = {
    "one sample": (
        SAMPLE,
        "x has the shape (2, 8, 6), which is that of one sample; the network takes a batch. Pass x[None], a batch of "
        "one sample.",
        SAMPLE[None],
    ),
    "channels last": (
        IMAGES.permute(0, 2, 3, 1),
        "x has the shape (20, 8, 6, 2); the network takes channels first. Pass x.permute(0, 3, 1, 2).",
        IMAGES,
    ),
    "double precision": (
        IMAGES.double(),
        "x has the type torch.float64, but the network torch.float32. Convert it by to(torch.float32).",
        IMAGES.double().to(torch.float32),
    ),
    "inputs and labels": (
        (IMAGES, LABELS),
        "x has 2 parts, of which the last looks like labels. Leave it out.",
        IMAGES,
    ),
    "a list of samples": (
        [SAMPLE, SAMPLE],
        "x has 2 parts, of which each is one sample; the network takes a batch. Join them by torch.stack(samples).",
        torch.stack([SAMPLE, SAMPLE]),
    ),
    "a list of batches": (
        [IMAGES[:4], IMAGES[4:8]],
        "x has 2 parts, of which each is a batch; the network takes one at a time. Join them by torch.cat(batches).",
        torch.cat([IMAGES[:4], IMAGES[4:8]]),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", FIRST_INPUTS)
def test_first_inputs_in_another_form(unprepared, case):
    given, message, cure = FIRST_INPUTS[case]
    with pytest.raises(ValueError, match=exactly(message)):
        unprepared()(given)
    unprepared()(cure)


class TestSecondPart:
    def test_all_samples_have_left(self, live):
        first, second = live.truncate(0), live.resume(0)
        first.thresholds = [-np.inf, -np.inf]
        answered = first(IMAGES)
        assert answered.rest is None
        message = (
            "rest is None, because all samples left in the first part. Call the second part only if answered.rest is "
            "not None; join_outputs([answered]) then has all predictions."
        )
        with pytest.raises(ValueError, match=exactly(message)):
            second(answered.rest)
        assert len(join_outputs([answered]).labels) == len(IMAGES)

    def test_what_is_no_rest(self, live):
        first, second = live.truncate(0), live.resume(0)
        first.thresholds = [np.inf, -np.inf]
        answered = first(IMAGES)
        for given, message in (
            (answered, "rest is the PartialOutput of a part; pass its activations, answered.rest."),
            (answered.rest.to_dict(), "rest is a dict; pass Activations.from_dict(rest)."),
            (
                IMAGES,
                "rest is a tensor of shape (20, 2, 8, 6); pass the activations of the first part, truncate(0)(x).rest.",
            ),
        ):
            with pytest.raises(TypeError, match=exactly(message)):
                second(given)
        second(Activations.from_dict(answered.rest.to_dict()))

    def test_what_cannot_be_joined(self):
        output = PartialOutput(torch.tensor([7]), torch.ones(1, 1), torch.tensor([0]), torch.tensor([0]), None)
        for given in (output, [output, None], [output.labels]):
            message = (
                "outputs must be a list of PartialOutput: pass [answered, second(answered.rest)], or [answered] if "
                "answered.rest is None."
            )
            with pytest.raises(TypeError, match=exactly(message)):
                join_outputs(given)
        with pytest.raises(ValueError, match=r"^outputs is empty; pass the output of the first part at least\.$"):
            join_outputs([])


EXPECTED = [{"name": "x", "dtype": "float32", "shape": [None, 2, 8, 6]}]
GREY = [{"name": "x", "dtype": "float32", "shape": [None, 1, 8, 6]}]
FIT = "but the network was exported for (any, 2, 8, 6). "


class TestOnnx:
    @pytest.mark.parametrize(
        ("given", "message", "cure"),
        [
            (
                ARRAY[0],
                f"the input x has the shape (2, 8, 6), {FIT}That is the shape of one sample: pass x[None], a batch of "
                "one.",
                ARRAY[0][None],
            ),
            (
                ARRAY.transpose(0, 2, 3, 1),
                f"the input x has the shape (20, 8, 6, 2), {FIT}Its channels are last: pass x.transpose(0, 3, 1, 2).",
                ARRAY,
            ),
            (
                ARRAY[:, :, :7],
                f"the input x has the shape (20, 2, 7, 6), {FIT}Pass inputs of this shape, or export the network with "
                "an example_input of the other shape.",
                None,
            ),
            (
                [ARRAY[0], ARRAY[1]],
                "the network needs 1 inputs, but got 2. Each has the shape of one sample: pass numpy.stack(samples), "
                "a batch.",
                np.stack([ARRAY[0], ARRAY[1]]),
            ),
            (
                [ARRAY, ARRAY],
                "the network needs 1 inputs, but got 2. Each is a batch of its own: pass one at a time, or "
                "numpy.concatenate(batches).",
                np.concatenate([ARRAY, ARRAY]),
            ),
            (
                (ARRAY, LABELS.numpy()),
                "the network needs 1 inputs, but got 2. The last one looks like labels; leave it out.",
                ARRAY,
            ),
            (
                DataLoader(TensorDataset(IMAGES)),
                "the input x is of type DataLoader, which holds no numbers. Pass a NumPy array with one row per "
                "sample, one batch at a time.",
                None,
            ),
            (
                None,
                "the input x is of type NoneType, which holds no numbers. Pass a NumPy array with one row per sample, "
                "one batch at a time.",
                None,
            ),
            (
                [[ARRAY[0].tolist(), [1.0]]],
                "the input x has rows of different shapes. Resize or pad them to one shape, and pass one array.",
                None,
            ),
            (
                ARRAY.astype("uint8"),
                "the input x has the type uint8, but the network was exported for float32. Convert it as the training "
                "data were converted, for example by x.astype('float32') / 255.",
                ARRAY.astype("uint8").astype("float32") / 255,
            ),
            (
                ARRAY.astype(float),
                "the input x has the type float64, but the network was exported for float32. Pass x.astype('float32').",
                ARRAY.astype(float).astype("float32"),
            ),
        ],
    )
    def test_other_forms(self, given, message, cure):
        with pytest.raises(ValueError, match=exactly(message)):
            checked_arrays(given, EXPECTED, by_name=False)
        if cure is not None:
            (array,) = checked_arrays(cure, EXPECTED, by_name=False)
            assert array.shape == cure.shape

    def test_grey_images_without_channels(self):
        with pytest.raises(ValueError, match=r"The axis of the channels is missing: pass x\[:, None\]\.$"):
            checked_arrays(ARRAY[:, 0], GREY, by_name=False)
        checked_arrays(ARRAY[:, 0][:, None], GREY, by_name=False)

    def test_images_of_pil(self):
        image = pytest.importorskip("PIL.Image").new("RGB", (8, 6))
        for given in (image, [[image, image]]):
            with pytest.raises(ValueError, match=r"pass an array with one row per image: numpy\.stack\(\[transform"):
                checked_arrays(given, EXPECTED, by_name=False)
