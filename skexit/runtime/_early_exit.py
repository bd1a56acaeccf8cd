"""The live network that stops where a policy says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from skexit.backbone._channels import Channels, check_channels
from skexit.backbone._exit_points import exit_points
from skexit.backbone._inputs import Inputs, as_inputs, positional_names
from skexit.backbone._modules import Head, device_of, names_of_exits, resolve_heads, unwrapped
from skexit.backbone._pooling import Pool, check_pool
from skexit.backbone._stages import Stage
from skexit.runtime._compiled import check_sizes, compile_exits, compile_stage
from skexit.runtime._decisions import Decisions
from skexit.runtime._deployment import FirstPart, SecondPart, check_at_exit
from skexit.runtime._evaluation import EvaluationModule
from skexit.runtime._output import ExitOutput
from skexit.runtime._prepared import PreparedNetwork, map_stages, prepare_network, start
from skexit.runtime._pruning import warn_of_exits_that_do_not_pay
from skexit.runtime._thresholds import check_thresholds
from skexit.runtime._throughput import LoaderOutput, predict_loader

if TYPE_CHECKING:
    from skexit.runtime._exit_latency import ExitLatency


class EarlyExitModel(EvaluationModule):
    """A network that stops at the exit that a policy chooses for each sample.

    The network is cut at its exits into stages, which call its own modules. After each exit the samples that leave are
    taken out of the batch, and the others go on; when none is left, the stages that follow are not called. Exits at
    which the policy never stops, and at which it need not look, cost nothing.

    Parameters
    ----------
    model : torch.nn.Module
        The network that the exits were extracted from, on the device on which it is to run. It is
        put into evaluation mode, as by ``model.eval()``, and shares its parameters with this one: call
        ``model.train()`` before you train it again.
    exits : sequence of str or of modules, or None
        Names of the modules after which it can stop, or these modules, as in extraction; None for
        :func:`~skexit.backbone.exit_points`, which may need `example_input`.
    policy : fitted exit policy, or Pipeline that ends with one
        Steps before the policy give logits, as ExitHeads and ExitEnsemble do.
    heads : fitted ExitHeads or ExitEnsemble, default=None
        Gives logits before the policy sees them, where the policy was fitted on what ``heads.transform`` gave.
    pool : str, sequence of str or callable, default="auto"
        What is kept of an exit's output, as in extraction.
    channels : {"auto", "first", "last"} or dict of str to str, default="auto"
        Axis of the channels in the exits' outputs, as in extraction.
    head : "output", None, list of n_exits str or None, or dict of str to str, default="output"
        Which logits are the network's own, as in extraction.
    example_input : tensor, tuple of tensors or dict of tensors, default=None
        One input or more, on the device of the network. The network is then cut and checked at once;
        else when the first input comes.
    latency : ExitLatency, default=None
        What :func:`measure_latency` measured. Samples that leave are then taken out of the batch only
        where that is quicker than to take them along to the next exit; else always. An
        :class:`~skexit.exceptions.UnprofitableExitsWarning` names the exits whose decisions take longer than they save.

    Attributes
    ----------
    policy : ExitPolicy
        The policy without the steps before it.
    classes : ndarray of shape (n_classes,)
        Class labels, in the order of the probabilities.

    Raises
    ------
    ValueError
        If the exits do not cut the network: if anything goes around one, as a skip connection does, or samples of a
        batch depend on one another; or if the policy was fitted on another layout than these exits have.

    See Also
    --------
    measure_latency : What each exit costs in milliseconds.

    Notes
    -----
    The network is recorded by ``torch.export`` with its modules as single operations, and then run on
    random inputs, stage after stage, and compared with the plain network. Inputs may have any number
    of rows; sequences of integers, such as token ids, any length.

    Examples
    --------
    >>> import tempfile
    >>> import torch
    >>> from torch import nn
    >>> from skexit import ThresholdPolicy
    >>> from skexit.extraction import ExitExtractor
    >>> from skexit.runtime import EarlyExitModel
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> x, y = torch.randn(200, 8), torch.arange(200) % 3
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cache = ExitExtractor(model, ["1", "3"]).extract([(x, y)], folder)
    ...     policy = ThresholdPolicy(budget=0.6).fit(cache.X, cache.y)
    ...     cached_exits = torch.as_tensor(policy.predict_exit(cache.X))
    >>> live = EarlyExitModel(model, ["1", "3"], policy, example_input=x[:1])
    >>> labels, probabilities, exits = live(x)
    >>> bool((exits == cached_exits).all())
    True
    """

    def __init__(
        self,
        model: nn.Module,
        exits: Sequence[str] | None,
        policy: Any,
        heads: Any = None,
        *,
        pool: Pool = "auto",
        channels: Channels = "auto",
        head: Head = "output",
        example_input: Inputs | None = None,
        latency: ExitLatency | None = None,
    ) -> None:
        super().__init__()
        check_pool(pool)
        model = unwrapped(model)
        if hasattr(exits, "predict"):
            raise TypeError(
                f"exits is the policy {type(exits).__name__}; the order is EarlyExitModel(model, exits, policy)."
            )
        found = exit_points(model, example_input=example_input) if exits is None else exits
        self.exits = names_of_exits(model, found)
        check_channels(channels, self.exits)
        resolve_heads(model, head, self.exits)
        self.pool = pool
        self.channels = channels
        self.head = head
        self.latency = latency
        self._decisions = Decisions(policy, heads)
        self.policy = self._decisions.policy
        if self.policy.layout_.n_exits != len(self.exits):
            raise ValueError(
                f"the policy was fitted with {self.policy.layout_.n_exits} exits, but exits={self.exits} names "
                f"{len(self.exits)}. Pass the exits of the extraction."
            )
        if latency is not None:
            warn_of_exits_that_do_not_pay(self._decisions.steps, latency, self.exits)
        self.classes = self.policy.classes_
        self.model = model.eval()
        self._network: PreparedNetwork | None = None
        if example_input is not None:
            self.prepare(example_input)

    def prepare(self, example_input: Inputs) -> PreparedNetwork:
        """Cut the network at its exits, and check that stages and policy fit.

        Parameters
        ----------
        example_input : tensor, tuple of tensors or dict of tensors
            One input or more.

        Returns
        -------
        PreparedNetwork
            The network that calls run from now on.

        Raises
        ------
        ValueError
            As by the class itself.
        """
        self._network = prepare_network(
            self.model,
            self.exits,
            example_input,
            self._decisions,
            head=self.head,
            pool=self.pool,
            channels=self.channels,
            latency=self.latency,
        )
        return self._network

    @property
    def thresholds(self) -> NDArray[np.float64]:
        """Thresholds of the exits, of shape (n_exits,). Set them to follow inputs that change.

        Exits that the policy does not use stay unused, and the last exit answers all samples that reach it. Nothing is
        recorded or compiled again.
        """
        network = self._network
        return (self._decisions if network is None else network.used_exits.decisions).thresholds

    @thresholds.setter
    def thresholds(self, thresholds: ArrayLike) -> None:
        decisions = self._cut_before().used_exits.decisions
        decisions.set_thresholds(check_thresholds(thresholds, len(self.exits)))

    def compile_stages(self, pad_to: Sequence[int] = (1, 8, 64), **options: Any) -> Self:
        """Compile the stages by ``torch.compile``, each with the decision after it, for batches of a few sizes.

        After an exit a batch may have any number of samples, and each new number would be compiled anew. A batch is
        filled up to the next size by repeating its last sample; one that is larger than the largest is divided. Stages
        are compiled when a size first comes, and again for each length of sequences, so that these are best padded to a
        few. Beyond ``torch._dynamo.config.recompile_limit`` of these, torch runs a stage as it is.

        Parameters
        ----------
        pad_to : sequence of int, default=(1, 8, 64)
            Sizes of batches.
        **options
            Further parameters of ``torch.compile``, as `backend` and `mode`.

        Returns
        -------
        self : EarlyExitModel
            As long as it is not moved to another device or prepared again.

        Raises
        ------
        ValueError
            If the network is not cut yet, or `pad_to` has no sizes.
        """
        sizes = check_sizes(pad_to)
        network = self._cut_before()
        compiled = map_stages(network, lambda stage: compile_stage(stage, sizes, options))
        exits = compile_exits(network.used_exits, sizes, options)
        self._network = replace(compiled, used_exits=replace(compiled.used_exits, compiled=exits))
        return self

    @torch.inference_mode()
    def forward(self, *inputs: Any, **named_inputs: Any) -> ExitOutput:
        """Answer, stopping each sample where the policy says.

        Parameters
        ----------
        *inputs : tensor, several tensors, a tuple of tensors, or a dict or dataclass of tensors
            What the network takes.
        **named_inputs : tensor
            As the network takes them. Labels, ``labels`` or ``label``, are left out.

        Returns
        -------
        ExitOutput
            ``labels, probabilities, exits``, in the order of the inputs.

        Raises
        ------
        ValueError
            If inputs have another shape, type or device than the network takes, or the logits of an answer are not
            finite, as where an input is NaN.
        RuntimeError
            If the network is in training mode.
        """
        given = as_inputs(inputs, named_inputs, positional_names(self.model) if named_inputs else ())
        network = self._prepared(given)
        batch = start(network, given)
        del given, inputs, named_inputs  # the network may free them
        runner = network.used_exits
        answers = runner.answers()
        for k in runner.stages:
            following = runner.run(k, batch, answers)
            if following is None:
                break
            batch = following
        return answers.output()[1]

    @property
    def stages(self) -> Mapping[int, Stage]:
        """The stages of the network by exit; none before the network is cut."""
        return {} if self._network is None else self._network.all_exits.stages

    def predict_loader(
        self, loader: Iterable[Any], *, batch_size: int = 256, max_wait: float | None = None, progress: bool = True
    ) -> LoaderOutput:
        """Answer many inputs, running each stage when enough samples have reached it.

        A batch of the loader that cannot be loaded, that the network does not take or raises for, or
        whose logits are not finite, is reported, and the others are answered.

        Parameters
        ----------
        loader : iterable
            Gives batches as for extraction: x, (x, y), (ids, mask, y), a dict or a dataclass; labels are ignored. x is
            moved to the device of the network.
        batch_size : int, default=256
            Samples with which a stage is run.
        max_wait : float, default=None
            Seconds after which a sample has waited long enough before a stage, which is then run with fewer. This is
            looked at whenever the loader has given a batch. None: wait until the loader ends.
        progress : bool, default=True
            Show a progress bar of the samples that were answered, if the output is a terminal.

        Returns
        -------
        LoaderOutput
            ``labels, probabilities, exits, batches, failures``, in the order of the loader, without the
            batches that failed.

        Raises
        ------
        ValueError
            If the loader is empty, the network cannot be cut, or a parameter is out of range.
        RuntimeError
            If the network is in training mode.
        Exception
            The first batch's, if every batch failed; the loader's, if it raises a hundred times in a row.

        Notes
        -----
        Between two exits at which samples may leave, the network runs without a stop. At most about
        `batch_size` samples wait before each, for every length of sequences, as sequences of different
        lengths cannot be joined. A loader that is a generator ends when it raises.

        On a CPU with glibc, memory that activations free is kept for the next, and returned at the end.

        Where a stage raises for samples of several batches of the loader, it is run for each of these
        batches on its own. A network that was not cut before is cut for the first batch.

        Examples
        --------
        >>> import torch
        >>> from torch import nn
        >>> from skexit import ThresholdPolicy, stack_exits
        >>> from skexit.runtime import EarlyExitModel
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(8, 3), nn.Linear(3, 3))
        >>> x, y = torch.randn(200, 8), torch.arange(200) % 3
        >>> with torch.no_grad():
        ...     logits = torch.stack([model[0](x), model(x)], 1).numpy()
        >>> policy = ThresholdPolicy(budget=0.8).fit(stack_exits(logits), y)
        >>> live = EarlyExitModel(model, ["0", "1"], policy, head=["0", "1"])
        >>> output = live.predict_loader(x.split(30), batch_size=64)
        >>> bool((output.exits == live(x).exits).all()), output.failures
        (True, [])
        """
        return predict_loader(self._prepared, device_of(self.model), loader, batch_size, max_wait, progress)

    def truncate(self, at_exit: int) -> FirstPart:
        """Give the part of the network up to an exit, with the policy.

        Parameters
        ----------
        at_exit : int
            The last exit of the part, from 0 to n_exits - 2.

        Returns
        -------
        FirstPart
            Without the stages of the second part.

        Raises
        ------
        ValueError
            If there is no such exit, or none follows.
        RuntimeError
            If the network was not cut yet.

        Examples
        --------
        >>> import torch
        >>> from torch import nn
        >>> from skexit import ThresholdPolicy, stack_exits
        >>> from skexit.runtime import EarlyExitModel, join_outputs
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(8, 3), nn.Linear(3, 3))
        >>> x, y = torch.randn(200, 8), torch.arange(200) % 3
        >>> with torch.no_grad():
        ...     logits = torch.stack([model[0](x), model(x)], 1).numpy()
        >>> policy = ThresholdPolicy(budget=0.8).fit(stack_exits(logits), y)
        >>> live = EarlyExitModel(model, ["0", "1"], policy, head=["0", "1"], example_input=x[:1])
        >>> first, second = live.truncate(0), live.resume(0)
        >>> answered = first(x)
        >>> output = join_outputs([answered, second(answered.rest)])
        >>> bool((output.exits == live(x).exits).all())
        True
        """
        check_at_exit(at_exit, len(self.exits))
        return FirstPart(self._cut_before(), at_exit)

    def resume(self, at_exit: int) -> SecondPart:
        """Give the part of the network that goes on where another one was truncated.

        Parameters
        ----------
        at_exit : int
            The last exit of the other part, from 0 to n_exits - 2.

        Returns
        -------
        SecondPart
            Without the stages of the first part.

        Raises
        ------
        ValueError
            If there is no such exit, or none follows.
        RuntimeError
            If the network was not cut yet.
        """
        check_at_exit(at_exit, len(self.exits))
        return SecondPart(self._cut_before(), at_exit)

    def _apply(self, function: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        super()._apply(function, recurse)
        self._network = None  # its stages have the buffers as they were
        return self

    def _cut_before(self) -> PreparedNetwork:
        if self._network is None:
            raise RuntimeError("the network is not cut yet; call prepare(example_input) first.")
        return self._network

    def _prepared(self, inputs: Inputs) -> PreparedNetwork:
        """The network as it is cut; it is cut now where it was not."""
        if self.model.training:
            raise RuntimeError("the network is in training mode; call model.eval() on it.")
        return self.prepare(inputs) if self._network is None else self._network
