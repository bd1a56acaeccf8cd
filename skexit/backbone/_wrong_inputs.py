"""What errors advise if something that is no input of a network is passed as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from skexit.data import ExitLayout

#: Advice for inputs that differ from the example.
PREPARE_AGAIN = "Pass inputs like the example, or prepare the network again by prepare(example_input)."
_OTHER = (
    "Convert arrays by torch.from_numpy, and leave out what the network does not take. For other inputs, such as "
    "graphs, collect the outputs of exits by hooks of your own, and pass them to stack_exits."
)


def cure_of_form(given: Any) -> str:
    """What to pass instead of something that has a part which is no tensor."""
    if isinstance(given, Mapping):
        parts: Sequence[Any] = list(given.values())
    else:
        parts = given if isinstance(given, list | tuple) else [given]
    wrong = next((part for part in parts if not isinstance(part, torch.Tensor)), None)
    if isinstance(wrong, np.ndarray):
        return _cure_of_arrays(given, wrong)
    if isinstance(given, Mapping) and isinstance(wrong, list | tuple) and all(isinstance(one, str) for one in wrong):
        names = [name for name, part in given.items() if part is wrong]
        return f"Leave out {names}, or make tensors of texts by a tokenizer."
    if isinstance(wrong, list | tuple) and isinstance(given, Mapping):
        return "A tokenizer returns tensors with tokenizer(texts, padding=True, return_tensors='pt')."
    if isinstance(wrong, str | bytes | PurePath) or type(wrong).__module__.partition(".")[0] == "PIL":
        return (
            "Convert an image by the transform of the network, and texts by its tokenizer: transform(image)[None] is a "
            "batch of one image, and torch.stack([transform(image) for image in images]) of several."
        )
    if isinstance(wrong, DataLoader | Iterator | list | tuple):
        return (
            "Pass one of its batches at a time, without the labels. EarlyExitModel.predict_loader(loader) predicts all "
            "of them."
        )
    if isinstance(wrong, Dataset):
        return (
            "torch.utils.data.DataLoader(dataset, batch_size=64) makes batches of a data set, and "
            "EarlyExitModel.predict_loader(loader) predicts them."
        )
    if isinstance(getattr(wrong, "layout", None), ExitLayout):
        return "It has the outputs of exits, which are for policies: policy.predict(cache.X)."
    if hasattr(wrong, "to_numpy"):
        return "Convert a DataFrame by torch.from_numpy(frame.to_numpy(dtype='float32'))."
    return _OTHER


def _cure_of_arrays(given: Any, array: np.ndarray[Any, Any]) -> str:
    convert = "torch.from_numpy({})"
    if array.dtype == np.float64:
        convert += ".float()"
    elif array.dtype.kind not in "biuf":
        convert = "torch.from_numpy({}.astype('float32'))"
    if given is array:
        return f"Pass {convert.format('x')}."
    if isinstance(given, Mapping):
        return (
            f"Convert each array by {convert.format('array')}. A tokenizer returns tensors with "
            "tokenizer(texts, padding=True, return_tensors='pt')."
        )
    return (
        f"If each array is one sample, pass {convert.format('numpy.stack(samples)')}, a batch. If they are several "
        f"inputs of the network, convert each by {convert.format('array')}."
    )


def cure_of_parts(given: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> str:
    """What to pass instead of inputs by position that have other parts than the example."""
    tensors, example = list(given.values()), list(expected.values())
    if len(tensors) == len(example) + 1 and are_labels(tensors[-1]):
        return "The last one looks like labels; leave it out."
    row = example[0].shape[1:]
    if len(example) == 1 and all(tensor.shape == row for tensor in tensors):
        return "Each has the shape of one sample: pass torch.stack(samples), a batch."
    if len(example) == 1 and all(tensor.shape[1:] == row for tensor in tensors):
        return "Each is a batch of its own: pass one at a time, or torch.cat(batches)."
    return PREPARE_AGAIN


def are_labels(tensor: torch.Tensor) -> bool:
    """Whether a tensor looks like labels: one integer per row."""
    return tensor.ndim == 1 and not tensor.is_floating_point()


def cure_of_shape(name: str, tensor: torch.Tensor, like: torch.Tensor) -> str:
    """What to pass instead of a tensor of another shape than the example."""
    name = name if name.isidentifier() else "tensor"
    given, row = tuple(tensor.shape), tuple(like.shape[1:])
    channels_last = (*row[1:], row[0]) if len(row) == 3 else None
    if given == row:
        return f"That is the shape of one sample: pass {name}[None], a batch of one."
    if given[1:] == channels_last:
        return f"Its channels are last: pass {name}.permute(0, 3, 1, 2)."
    if given == channels_last:
        return f"That is one sample with its channels last: pass {name}.permute(2, 0, 1)[None], a batch of one."
    if len(row) == 3 and row[0] == 1 and given[1:] == row[1:]:
        return f"The axis of the channels is missing: pass {name}[:, None]."
    return PREPARE_AGAIN


def cure_of_type(tensor: torch.Tensor, dtype: torch.dtype) -> str:
    """How to convert a tensor to the type of the example."""
    if tensor.dtype == torch.uint8 and dtype.is_floating_point:
        return f"Convert it as the training data were converted, for example by to({dtype}) / 255."
    return f"Convert it by to({dtype})."
