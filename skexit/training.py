"""Train a network and its exits together, in a training loop of your own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike

from skexit.utils._optional import optional_import

with optional_import("skexit.training trains networks with", "torch"):
    import torch
    from torch import nn
    from torch.nn import functional

from skexit.backbone._channels import Channels, axes_of_rows, check_channels, find_channels
from skexit.backbone._costs import check_forward_order
from skexit.backbone._exit_points import exit_points
from skexit.backbone._inputs import Inputs, as_arguments, in_form, map_tensors, positional_names
from skexit.backbone._masks import count_tokens
from skexit.backbone._modules import (
    NETWORK_OUTPUT,
    check_called_once,
    check_network,
    device_of,
    evaluating,
    hook_calls,
    names_of_exits,
)
from skexit.backbone._other_forms import naming_other_form
from skexit.backbone._outputs import as_logits, first_tensor
from skexit.backbone._pooling import Pool, check_pool, pool_output
from skexit.backbone._rows import rows_first

__all__ = ["MultiExitNetwork", "joint_cross_entropy"]


def joint_cross_entropy(
    logits: Sequence[torch.Tensor],
    targets: torch.Tensor,
    weights: ArrayLike | None = None,
    *,
    distillation: float = 0.0,
    temperature: float = 4.0,
) -> torch.Tensor:
    """Weighted sum of the cross-entropies of all exits.

    With `distillation`, earlier exits also learn from the logits of the last exit. The last exit learns from the
    targets alone.

    Parameters
    ----------
    logits : sequence of n_exits tensors of shape (n_samples, n_classes)
        Logits of each exit, in forward order.
    targets : tensor of shape (n_samples,)
        Indices of the classes.
    weights : array-like of shape (n_exits,), default=None
        Weight of the loss of each exit. By default ``k / (K * (K + 1))`` for the k-th of K exits, k
        from 1: larger weights for later exits. These sum to one half, as in the paper. Weights of 1 give the plain sum.
    distillation : float, default=0.0
        Share of an exit's loss, from 0 to 1, that compares it with the last exit instead of the targets:
        ``(1 - distillation) CE(y, softmax(z)) + distillation T² CE(softmax(t / T), softmax(z / T))``, with the
        logits z of the exit and t of the last exit. No gradient flows through t.
    temperature : float, default=4.0
        T in the loss of `distillation`; a higher value gives more weight to the classes that are not predicted.

    Returns
    -------
    loss : tensor of shape ()
        In nats.

    Raises
    ------
    ValueError
        If there are no logits; the weights are not one per exit, finite, not negative and not all zero;
        `distillation` is not from 0 to 1; or `temperature` is not positive and finite.

    References
    ----------
    Section 3.1 of "EENet: Learning to Early Exit for Adaptive Inference"; the loss is in the text and has no
    equation number.

    Distillation: Phuong, Lampert. "Distillation-based training for multi-exit architectures." ICCV 2019.

    Examples
    --------
    >>> import torch
    >>> from skexit.training import joint_cross_entropy
    >>> certain, undecided = torch.tensor([[20.0, 0.0]]), torch.zeros(1, 2)
    >>> joint_cross_entropy([undecided, certain], torch.tensor([0]))  # log(2) / 6
    tensor(0.1155)
    >>> joint_cross_entropy([undecided, certain], torch.tensor([0]), weights=[1, 1])
    tensor(0.6931)
    """
    if not len(logits):
        raise ValueError("logits is empty; give the logits of at least one exit.")
    _check_distillation(distillation, temperature)
    n_exits = len(logits)
    given = (
        np.arange(1, n_exits + 1) / (n_exits * (n_exits + 1)) if weights is None else _check_weights(weights, n_exits)
    )
    losses = [functional.cross_entropy(block, targets) for block in logits]
    if distillation > 0:
        soft_targets = (logits[-1].detach() / temperature).softmax(dim=-1)
        for k, block in enumerate(logits[:-1]):
            distance = temperature**2 * functional.cross_entropy(block / temperature, soft_targets)
            losses[k] = (1 - distillation) * losses[k] + distillation * distance
    return torch.stack([weight * loss for weight, loss in zip(given.tolist(), losses, strict=True)]).sum()


def _check_distillation(distillation: float, temperature: float) -> None:
    if not 0 <= distillation <= 1:
        raise ValueError(f"distillation={distillation!r} must be a share of the loss, from 0 to 1.")
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature={temperature!r} must be positive and finite.")


def _check_weights(weights: ArrayLike, n_exits: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    values = np.asarray(weights, dtype=np.float64)
    if values.shape != (n_exits,):
        raise ValueError(f"weights has shape {values.shape}; pass one weight for each of {n_exits} exits.")
    if not (np.isfinite(values).all() and (values >= 0).all() and values.any()):
        raise ValueError(f"weights={values.tolist()} must be finite, not negative and not all zero.")
    return values


class MultiExitNetwork(nn.Module):
    """A network with a linear head at each of its exits, for joint training.

    Heads read the outputs of the exits' modules, pooled as in extraction; the logits of the last exit are
    the network's own output. The network is not changed: it may be trained already, be frozen by
    ``network.requires_grad_(False)``, or learn together with its heads.

    Parameters
    ----------
    network : torch.nn.Module
        A classifier, on the device on which it should be trained. It is not copied.
    exits : sequence of str or of modules, or None
        Names of the modules after which the network can stop, or these modules, in forward order, as in extraction;
        None for :func:`skexit.backbone.exit_points`. The last one stands for the network's own output.
    example_input : tensor, tuple of tensors or dict of tensors
        One input or more, from which the widths of the heads are inferred. A tuple is passed by position,
        a dict by keyword; its ``"attention_mask"`` also masks tokens in pooling.
    pool : str, sequence of str or callable, default="auto"
        How the inputs of heads are computed from the exits' outputs, as in :class:`skexit.extraction.ExitExtractor`.
    channels : {"auto", "first", "last"} or dict of str to str, default="auto"
        Axis of the channels in the exits' outputs, as in ExitExtractor; a dict has names of modules as keys.

    Attributes
    ----------
    network : torch.nn.Module
        As given.
    heads : torch.nn.ModuleList
        One per exit, except the last. A head may be replaced by any module that takes pooled features of
        shape (n_samples, n_features) and returns logits.
    exits : list of str
        Names of the exits in this module, for ExitExtractor and EarlyExitModel.
    head : list of str
        Name of the head of each exit, or ``"output"``, for the `head` parameter of these classes.
    pool : str, sequence of str or callable
        As given.

    Raises
    ------
    ValueError
        If the network lacks one of the modules, does not call each exactly once in this order, or returns no logits.

    See Also
    --------
    joint_cross_entropy : The loss of all exits.
    skexit.ExitHeads : Heads of a frozen network, fitted on its cached features.

    Examples
    --------
    >>> import tempfile
    >>> import torch
    >>> from torch import nn
    >>> from skexit import ThresholdPolicy
    >>> from skexit.extraction import ExitExtractor
    >>> from skexit.runtime import EarlyExitModel
    >>> from skexit.training import MultiExitNetwork, joint_cross_entropy
    >>> _ = torch.manual_seed(0)
    >>> network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> x, y = torch.randn(200, 8), torch.arange(200) % 3
    >>> model = MultiExitNetwork(network, ["1", "3"], example_input=x[:1])
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> for _ in range(3):
    ...     optimizer.zero_grad()
    ...     joint_cross_entropy(model(x), y).backward()
    ...     _ = optimizer.step()

    The trained model is then used like any other network whose exits have logits:

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cache = ExitExtractor(model, model.exits, head=model.head).extract([(x, y)], folder)
    ...     policy = ThresholdPolicy(budget=0.8).fit(cache.X, cache.y)
    >>> live = EarlyExitModel(model, model.exits, policy, head=model.head, example_input=x[:1])
    """

    def __init__(
        self,
        network: nn.Module,
        exits: Sequence[str] | None,
        example_input: Inputs,
        *,
        pool: Pool = "auto",
        channels: Channels = "auto",
    ) -> None:
        super().__init__()
        check_network(network)
        self._names = names_of_exits(network, exit_points(network) if exits is None else exits)
        check_pool(pool)
        check_channels(channels, self._names)
        self.network = network
        self.pool = pool
        self.exits = [f"network.{name}" for name in self._names]
        self.head = [f"heads.{k}" for k in range(len(self.exits) - 1)] + [NETWORK_OUTPUT]
        device = device_of(network)
        example_input = in_form(example_input, "example_input")
        args, kwargs = as_arguments(network, map_tensors(lambda tensor: tensor.to(device), example_input))
        widths: list[int] = []
        with naming_other_form(network, example_input), evaluating(network), torch.no_grad():
            self._channels = find_channels(network, self._names, example_input, pool, channels)
            self._axes = axes_of_rows(network, self._names, example_input)
            output = self._run(args, kwargs, lambda k, features: widths.append(features.shape[1]))
        self.heads = nn.ModuleList(nn.Linear(width, output.shape[1], device=device) for width in widths)

    def forward(self, *args: Any, **kwargs: Any) -> list[torch.Tensor]:
        """Logits of all exits.

        Parameters
        ----------
        *args, **kwargs : tensor
            Inputs of the network.

        Returns
        -------
        list of n_exits tensors of shape (n_samples, n_classes)
            In forward order.
        """
        logits: list[torch.Tensor] = []
        output = self._run(args, kwargs, lambda k, features: logits.append(self._apply_head(k, features)))
        return [*logits, output]

    def _apply_head(self, k: int, features: torch.Tensor) -> torch.Tensor:
        head = cast(nn.Linear, self.heads[k])
        return cast(torch.Tensor, head(features.to(head.weight.dtype)))

    def _run(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], read: Callable[[int, torch.Tensor], None]
    ) -> torch.Tensor:
        """Run the network, give the features of each exit but the last to `read`, and return its logits."""
        mask = {**dict(zip(positional_names(self.network), args, strict=False)), **kwargs}.get("attention_mask")
        counts = count_tokens(self.network, mask)
        called: list[str] = []

        def see(k: int, name: str, output: Any) -> None:
            called.append(name)
            if name != self._names[-1]:
                tensor = rows_first(first_tensor(output), self._axes[name])
                read(k, pool_output(tensor, self.pool, mask, self._channels[name], counts))

        with ExitStack() as hooks:
            for k, name in enumerate(self._names):
                # Heads run at once, because a later module may change the feature map in place.
                hook = partial(lambda _, args, output, k, name: see(k, name, output), k=k, name=name)
                hooks.enter_context(hook_calls(self.network, name, hook))
            output = self.network(*args, **kwargs)
        check_called_once(called, self._names, "exits")
        check_forward_order(called, self._names)
        return as_logits(output, type(self.network).__name__, "; give a classifier, with its own last layer.")
