"""Fingerprints of networks and inputs, by which extractions are compared."""

from __future__ import annotations

import hashlib
import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from skexit.backbone._inputs import Inputs, named_tensors
from skexit.extraction._descriptions import model_lines, tensor_text


def model_fingerprint(model: nn.Module) -> str:
    """Digest of the code and settings of a network, and of its parameters and buffers.

    It is the same before and after a forward pass, and in another process.
    """
    digest = hashlib.sha256()
    for line in model_lines(model):
        digest.update(line.encode())
    return digest.hexdigest()


def input_digest(inputs: Inputs) -> str:
    digest = hashlib.sha256()
    named = sorted(named_tensors(inputs).items())
    for name, tensor in named:
        digest.update(f"{name}: {tensor_text(tensor)}\n".encode())
    return digest.hexdigest()


def row_checksums(inputs: Inputs) -> NDArray[np.uint32]:
    """A checksum of each row of the inputs, over all their values."""
    named = sorted(named_tensors(inputs).items())
    kinds = [(name, str(tensor.dtype), tuple(tensor.shape[1:])) for name, tensor in named]
    checksums = [zlib.crc32(repr(kinds).encode())] * len(named[0][1])
    for _, tensor in named:
        if tensor.numel():
            rows = tensor.detach().cpu().contiguous().reshape(len(tensor), -1).view(torch.uint8).numpy()
            checksums = [zlib.crc32(row, before) for row, before in zip(rows, checksums, strict=True)]
    return np.array(checksums, dtype=np.uint32)
