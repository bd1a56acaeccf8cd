"""Networks that round otherwise in each batch size, as some do on some processors."""

import contextlib
import functools

import numpy as np
import pytest
import torch
from torch import nn

#: Relative: a few times what float32 rounds to, as the sums of linear and convolutional layers have many terms.
SIZE = 3e-7


@contextlib.contextmanager
def round_otherwise():
    """Change what linear and convolutional layers give in evaluation mode by less than one part in a million.

    The changes depend on the shape of the output, and so on the number of samples and on a sample's place among them;
    the same batch has the same.
    """
    with pytest.MonkeyPatch.context() as patch:
        for layer in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d):
            patch.setattr(layer, "forward", _changed(layer.forward))
        yield


def _changed(forward):
    @functools.wraps(forward)
    def changed(self, inputs):
        output = forward(self, inputs)
        # Not while the network is compiled, recorded or exported: then no values are known.
        if torch.compiler.is_compiling() or self.training or type(output) is not torch.Tensor or output.is_meta:
            return output
        return output * torch.from_numpy(_factors(tuple(output.shape))).to(output)

    return changed


@functools.cache
def _factors(shape):
    return 1 + np.random.default_rng(shape).uniform(-SIZE, SIZE, size=shape)
