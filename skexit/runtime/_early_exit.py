"""The live network, in which a policy decides at which exit each sample stops."""

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
from skexit.utils._threads import one_recording

if TYPE_CHECKING:
    from skexit.runtime._exit_latency import ExitLatency


class EarlyExitModel(EvaluationModule):
    """A network in which a policy decides at which exit each sample stops.

    The network is divided into stages at its exits. The stages call the modules of the network. After each exit, the
    samples that leave are removed from the batch, and the others continue. When no sample is left, later stages are
    not called. An exit takes no time if the policy never stops there and does not read its outputs.

    Parameters
    ----------
    model : torch.nn.Module
        The network of the extraction, on the device on which it will run. It is not copied, and is set to evaluation
        mode: call ``model.train()`` before you train it again.
    exits : sequence of str or of modules, or None
        Names of the modules after which the network can stop, or these modules, as in the extraction. None:
        :func:`~skexit.backbone.exit_points` finds them, and may need `example_input`.
    policy : fitted exit policy, or Pipeline that ends with one
        Steps before the policy compute logits, as ExitHeads and ExitEnsemble do. The first steps may be
        ExitTransformers.
    heads : fitted ExitHeads or ExitEnsemble, default=None
        Computes the logits, if the policy was fitted on the output of ``heads.transform``.
    pool : str, sequence of str or callable, default="auto"
        How features are computed from the output of an exit, as in the extraction.
    channels : {"auto", "first", "last"} or dict of str to str, default="auto"
        Axis of the channels in the exits' outputs, as in the extraction.
    head : "output", None, list of n_exits str or None, or dict of str to str, default="output"
        The network's own logits, as in the extraction.
    example_input : tensor, tuple of tensors or dict of tensors, default=None
        One or more inputs, on the device of the network. They serve to divide and check the network at once; by
        default, this is done for the first inputs.
    latency : ExitLatency, default=None
        Result of :func:`measure_latency`. With it, samples that leave are removed from the batch only if that is faster
        than to keep them up to the next exit; by default, they are always removed.

    Attributes
    ----------
    policy : ExitPolicy
        The policy without the steps before it.
    classes : ndarray of shape (n_classes,)
        Class labels, in the order of the probabilities.
    exits : list of str
        Names of the exits.

    Raises
    ------
    TypeError
        If `exits` is a policy.
    ValueError
        If the network cannot be divided at its exits, because later modules need a tensor from before an exit that does
        not have one row per sample, or because the samples of a batch depend on one another; or if the policy was
        fitted on other exits, logits or features.

    Warns
    -----
    UnprofitableExitsWarning
        If `latency` shows that the decisions at some exits take longer than they save.
    UserWarning
        If the network takes another number of operations for images of this size than for those of the extraction, or
        exits cost other fractions of the network than those that the policy was fitted on.

    See Also
    --------
    measure_latency : Measures the time up to each exit.

    Notes
    -----
    ``torch.export`` records the network with its modules as single operations. The stages are then run on random inputs
    and compared with the plain network. Inputs may have any number of rows; sequences of integers, such as token ids,
    may have any length.

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
                f"exits is a policy of type {type(exits).__name__}; the order is EarlyExitModel(model, exits, policy)."
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
        """Divide the network into stages at its exits, and check that stages and policy fit.

        Parameters
        ----------
        example_input : tensor, tuple of tensors or dict of tensors
            One or more inputs, on the device of the network.

        Returns
        -------
        PreparedNetwork
            The divided network, which later calls run.

        Raises
        ------
        ValueError
            If the network cannot be divided at its exits, or the policy was fitted on other logits or features.
        """
        return self._prepare(example_input, "example_input")

    @property
    def thresholds(self) -> NDArray[np.float64]:
        """Thresholds of the exits, of shape (n_exits,). Set them to adapt a running network to changed inputs.

        Exits that the policy does not use stay unused, and all samples leave at the last exit. Nothing is recorded or
        compiled again.
        """
        network = self._network
        return (self._decisions if network is None else network.used_exits.decisions).thresholds

    @thresholds.setter
    def thresholds(self, thresholds: ArrayLike) -> None:
        decisions = self._cut_before().used_exits.decisions
        decisions.set_thresholds(check_thresholds(thresholds, len(self.exits)))

    def compile_stages(self, pad_to: Sequence[int] = (1, 8, 64), **options: Any) -> Self:
        """Compile each stage and the decision after it with ``torch.compile``, for a few batch sizes.

        After an exit, a batch may have any number of samples, and ``torch.compile`` would compile again for each
        number. Therefore a batch is padded to the next size by repeating its last sample, and a batch larger than the
        largest size is divided. A stage is compiled when a batch size first occurs. It is compiled again for each
        length of sequences, so pad sequences to a few lengths. Beyond ``torch._dynamo.config.recompile_limit``
        compilations, torch runs a stage without compilation.

        Moving the network to another device, or preparing it again, removes the compiled stages.

        Parameters
        ----------
        pad_to : sequence of int, default=(1, 8, 64)
            Batch sizes.
        **options
            Other parameters of ``torch.compile``, such as `backend` and `mode`.

        Returns
        -------
        self : EarlyExitModel
            The live network with compiled stages.

        Raises
        ------
        ValueError
            If `pad_to` is empty, or a size is not a positive integer.
        RuntimeError
            If the network is not prepared.
        """
        sizes = check_sizes(pad_to)
        network = self._cut_before()
        compiled = map_stages(network, lambda stage: compile_stage(stage, sizes, options))
        exits = compile_exits(network.used_exits, sizes, options)
        self._network = replace(compiled, used_exits=replace(compiled.used_exits, compiled=exits))
        return self

    @torch.inference_mode()
    def forward(self, *inputs: Any, **named_inputs: Any) -> ExitOutput:
        """Predict the class of each sample, at the exit that the policy chooses.

        Parameters
        ----------
        *inputs : tensor, several tensors, a tuple of tensors, or a dict or dataclass of tensors
            Inputs of the network.
        **named_inputs : tensor
            Inputs of the network by name. ``labels`` and ``label`` are ignored.

        Returns
        -------
        ExitOutput
            ``labels, probabilities, exits``, in the order of the inputs.

        Raises
        ------
        ValueError
            If inputs have the wrong shape, type or device for the network, or the logits of a prediction are not
            finite, for example because an input is NaN.
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
        """The stages of the network by exit; empty before the network is prepared."""
        return {} if self._network is None else self._network.all_exits.stages

    def predict_loader(
        self, loader: Iterable[Any], *, batch_size: int = 256, max_wait: float | None = None, progress: bool = True
    ) -> LoaderOutput:
        """Predict many inputs, and run each stage when enough samples have reached it.

        If the loader raises for a batch, the network cannot take it or raises for it, or its logits are not finite,
        the batch is listed in ``failures``, and the other batches are predicted.

        Parameters
        ----------
        loader : iterable
            Its batches are as for extraction: x, (x, y), (ids, mask, y), a dict or a dataclass. Labels are ignored, and
            inputs are moved to the device of the network.
        batch_size : int, default=256
            Number of samples with which a stage is run.
        max_wait : float, default=None
            Longest time in seconds that a sample waits before a stage; then the stage is run with fewer samples. The
            time is checked after each batch of the loader. None: samples wait until the loader ends.
        progress : bool, default=True
            Whether to show a progress bar of the predicted samples, if the output is a terminal.

        Returns
        -------
        LoaderOutput
            ``labels, probabilities, exits, batches, failures``, in the order of the loader, without the
            batches that failed.

        Raises
        ------
        ValueError
            If the loader is empty, the network cannot be divided at its exits, or a parameter is out of range.
        RuntimeError
            If the network is in training mode.
        Exception
            The error of the first batch, if every batch failed; the error of the loader, if it raises a hundred times
            in a row.

        Notes
        -----
        Samples wait only after exits at which samples may leave. At most about `batch_size` samples wait at each, for
        every length of sequences, because sequences of different lengths cannot be joined. A loader that is a generator
        ends when it raises.

        On a CPU with glibc, freed memory is kept for later activations, and returned to the system at the end.

        If a stage raises for samples of several batches of the loader, it is run again for each of these batches
        separately. A network that is not prepared is prepared with the first batch.

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
        """Return the part of the network up to an exit, with the policy.

        Parameters
        ----------
        at_exit : int
            The last exit of this part, from 0 to n_exits - 2.

        Returns
        -------
        FirstPart
            A network that has only the stages up to this exit.

        Raises
        ------
        ValueError
            If `at_exit` is not an integer from 0 to n_exits - 2.
        RuntimeError
            If the network is not prepared.

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
        """Return the part of the network after an exit, with the policy.

        Parameters
        ----------
        at_exit : int
            The last exit of the first part, from 0 to n_exits - 2.

        Returns
        -------
        SecondPart
            A network that has only the stages after this exit.

        Raises
        ------
        ValueError
            If `at_exit` is not an integer from 0 to n_exits - 2.
        RuntimeError
            If the network is not prepared.
        """
        check_at_exit(at_exit, len(self.exits))
        return SecondPart(self._cut_before(), at_exit)

    def _apply(self, function: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        super()._apply(function, recurse)
        self._network = None  # its stages still have the old buffers
        return self

    def _cut_before(self) -> PreparedNetwork:
        if self._network is None:
            raise RuntimeError("the live network is not prepared; call prepare(example_input) first.")
        return self._network

    def _prepared(self, inputs: Inputs) -> PreparedNetwork:
        """The prepared network. If it is not prepared, `inputs` prepare it now."""
        if self.model.training:
            raise RuntimeError("the network is in training mode; call model.eval() on it.")
        if self._network is not None:
            return self._network
        with one_recording():  # another thread may have prepared it meanwhile
            return self._prepare(inputs, "x") if self._network is None else self._network

    def _prepare(self, inputs: Inputs, name: str) -> PreparedNetwork:
        """Prepare the network with an input, which errors call `name`."""
        self._network = prepare_network(
            self.model,
            self.exits,
            inputs,
            self._decisions,
            head=self.head,
            pool=self.pool,
            channels=self.channels,
            latency=self.latency,
            input_name=name,
        )
        return self._network
