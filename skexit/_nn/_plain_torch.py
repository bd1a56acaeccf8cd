"""Train the same way whatever contexts of torch the caller is in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def plain_torch() -> Iterator[None]:
    """Compute on the CPU, with gradients and without autocast, in this thread.

    The caller may be in ``torch.inference_mode`` or ``torch.autocast``, or have a default device.
    """
    import torch

    with ExitStack() as contexts:
        contexts.enter_context(torch.inference_mode(False))
        contexts.enter_context(torch.enable_grad())
        contexts.enter_context(torch.autocast("cpu", enabled=False))
        if torch.get_default_device().type != "cpu":  # the context of a device makes each call slower
            contexts.enter_context(torch.device("cpu"))
        yield
