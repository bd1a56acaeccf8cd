"""Record a network as a graph of calls to its own modules."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, cast

import torch
from torch import fx, nn
from torch._guards import detect_fake_mode
from torch.export.graph_signature import InputKind
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, get_proxy_mode
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from skexit.backbone._autocast import Autocast, mark
from skexit.backbone._costs import check_forward_order
from skexit.backbone._counting import attributes_as_found, left_as_found
from skexit.backbone._exporting import WithFlatInputs, export, hidden_weights, is_in_place, is_sequence, without_cache
from skexit.backbone._inputs import Inputs, call, map_tensors, tensors_of, with_tensors
from skexit.backbone._merging import merge
from skexit.backbone._modules import (
    check_called_once,
    check_can_be_recorded,
    device_of,
    own_heads,
    split_call,
    with_first_name,
)
from skexit.backbone._outputs import tensors_in
from skexit.backbone._own_logits import OwnLogits
from skexit.backbone._refusals import refusal
from skexit.backbone._rows import with_rows
from skexit.backbone._shapes import FILLED, filled

_OPERATORS = torch.library.Library("skexit", "DEF")
# For the recorder, the call of a module is one operation, with the number of the call.
_OPERATORS.define("call_module(int call, Tensor[] tensors, SymInt[] sizes) -> Tensor[]")

#: Numbers of rows of the inputs in a recording, and in a second one if needed. A size of 1 would become a constant.
_N_ROWS, _OTHER_N_ROWS = 3, 5


@dataclass(frozen=True)
class Recording:
    """A network as a graph whose ``call_module`` and ``get_attr`` nodes have names of the network.

    It has one node per input tensor; for each exit the nodes of the tensors in its module's output; and for each exit
    the node of the network's own logits for it, or None. Constants are tensors that depend on no input and no
    parameter, by name.
    """

    graph: fx.Graph
    inputs: list[fx.Node]
    exits: list[list[fx.Node]]
    logits: list[fx.Node | None]
    constants: dict[str, torch.Tensor]
    given_objects: set[str]
    """Modules with an argument that is neither a tensor nor a plain value, such as a cache that they change."""


def record(
    model: nn.Module,
    exits: Sequence[str],
    heads: Sequence[str | None],
    own: OwnLogits | None,
    inputs: Inputs,
    opened: Collection[str] = (),
) -> Recording:
    """Run a network in evaluation mode on shapes only, and record the calls of modules with their arguments.

    Modules that contain no exit are recorded as one call each. In modules that contain one, and in those in `opened`,
    every operation outside of modules without children is recorded. The exits are in forward order, the heads are those
    of `resolve_heads`, and `own` has the places of exits' logits in the network's output. The number of rows is left
    open, and so is the length of sequences of integers.

    Raises a ValueError if the network does not call an exit or head exactly once, calls exits in another order, or
    has modules of TorchScript or operations that depend on the values of its inputs.
    """
    check_can_be_recorded(model)
    network = WithFlatInputs(model, inputs, own, "output" in heads)

    def run(n_rows: int, open_axes: Sequence[int], with_hooks: bool) -> tuple[Any, _Recorder]:
        tensors = [with_rows(tensor, n_rows) for tensor in tensors_of(inputs)]
        outputs = {} if open_axes else _outputs_of_modules(model, with_tensors(inputs, tensors))
        recorder = _Recorder(model, exits, heads, opened, outputs)
        replaced = recorder.in_place_of_modules(with_hooks)
        with attributes_as_found(model), hidden_weights(model), replaced, without_cache(model):
            return export(network, tensors, open_axes), recorder

    # Some networks take sequences of one length only, and some read the number of rows as a plain number.
    attempts: list[list[tuple[int, Sequence[int]]]] = (
        [[(_N_ROWS, (0, 1))]] if any(map(is_sequence, tensors_of(inputs))) else []
    )
    attempts += [[(_N_ROWS, (0,))], [(_N_ROWS, ()), (_OTHER_N_ROWS, ())]]
    reasons: list[Exception] = []
    # Hooks are left out, unless the network needs values that its own hooks collect.
    for with_hooks, attempt in product([False, True][: 1 + _has_hooks(model)], attempts):
        try:
            runs = [run(*settings, with_hooks) for settings in attempt]
            break
        except Exception as error:
            reasons.append(error)
    else:
        reason = reasons[len(attempts) - 1]
        raise refusal(model, inputs, reason) from reason
    for _, recorder in runs:
        _explain_wrong_calls(recorder, exits, heads)
    recording, *others = [_Reader(*run).read(exits, heads, own) for run in runs]
    for other in others:
        try:
            merge(recording, other)
        except ValueError as error:
            raise refusal(model, inputs, error) from error
    return recording


@torch.no_grad()
def _outputs_of_modules(model: nn.Module, inputs: Inputs) -> dict[str, list[Any]]:
    """The output of each call of each module, by module."""
    outputs: dict[str, list[Any]] = {name: [] for name, _ in model.named_modules()}
    with left_as_found(model), ExitStack() as stack:
        for name, module in model.named_modules():
            keep = partial(lambda _, args, output, kept: kept.append(output), kept=outputs[name])
            stack.enter_context(module.register_forward_hook(keep))
        call(model, map_tensors(torch.clone, inputs))
    return outputs


#: Marks of arguments that become nodes of the graph.
_TENSOR, _SIZE = object(), object()
#: Types of other arguments, which can be written as code.
_PLAIN = (int, float, complex, str, slice, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


@dataclass
class _Call:
    """One call of a module, while it is recorded."""

    name: str
    arguments: list[Any]
    """Leaves of the positional and keyword arguments, with marks in place of tensors and sizes."""
    structure: Any
    outputs: list[torch.Tensor]
    paths: list[Any]
    """Path of each tensor in the module's output."""
    marks: list[str]
    """Names of the exits and heads at this call."""
    is_marker: bool
    autocast: Autocast | None
    """The setting of autocast, if the network itself has changed it."""


class _Recorder:
    """Replaces modules, so that their calls are recorded instead of computed."""

    def __init__(
        self,
        model: nn.Module,
        exits: Sequence[str],
        heads: Sequence[str | None],
        opened: Collection[str],
        outputs: dict[str, list[Any]],
    ) -> None:
        self._known_outputs = outputs
        self._autocast = Autocast.current(device_of(model).type)
        modules = dict(model.named_modules())
        #: The module and the call of each exit and head.
        self._marks = {mark: split_call(with_first_name(model, mark)) for mark in [*exits, *own_heads(heads).values()]}
        marked = {name for name, _ in self._marks.values()}
        self.calls: list[_Call] = []
        self._open = {""} | _parents(model, modules, marked)
        inside = [name for name in modules if any(f"{name}.".startswith(f"{other}.") for other in opened)]
        self._open |= {name for name in inside if name in opened or any(modules[name].children())}
        self._marked = [name for name in marked if name in self._open]
        self._modules = modules

    @contextmanager
    def in_place_of_modules(self, with_hooks: bool) -> Iterator[None]:
        _RECORDERS.append(self)
        with ExitStack() as stack:
            stack.callback(_RECORDERS.pop)
            for module in self._modules.values():
                _replace_hooks(stack, module, with_hooks)
            for name in self._closed_modules():
                self._replace_forward(stack, name, is_marker=False)
            for name in self._marked:
                self._replace_forward(stack, name, is_marker=True)
            yield

    def _closed_modules(self) -> list[str]:
        """Children of open modules that are recorded as one call; containers of modules are never called."""
        closed, waiting = [], [(name, self._modules[name]) for name in sorted(self._open)]
        seen = {id(module) for _, module in waiting}
        while waiting:
            parent, module = waiting.pop(0)
            for child, submodule in module.named_children():
                name = f"{parent}.{child}" if parent else child
                if id(submodule) in seen:
                    continue
                if type(submodule).forward is nn.Module.forward and "forward" not in vars(submodule):
                    waiting.append((name, submodule))
                else:
                    seen.add(id(submodule))
                    closed.append(name)
        return closed

    def _replace_forward(self, stack: ExitStack, name: str, *, is_marker: bool) -> None:
        module = self._modules[name]
        own = module.__dict__.get("forward")
        original = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if is_marker:
                output = original(*args, **kwargs)
                return self._note(name, (pytree.tree_leaves(output),), {}, output, is_marker=True)
            leaves, structure = pytree.tree_flatten((args, kwargs))
            if not any(isinstance(leaf, torch.Tensor) for leaf in leaves):
                return original(*args, **kwargs)  # equal for all samples
            # Containers are copied: some modules change the lists that they are given.
            copied, named = pytree.tree_unflatten(leaves, structure)
            with _left_modules(), disable_proxy_modes_tracing(), attributes_as_found(module):
                output = self._output_of(name, original, copied, named)
            return self._note(name, args, kwargs, output)

        module.__dict__["forward"] = forward
        stack.callback(_restore, module, own)

    def _output_of(self, name: str, original: Any, args: Any, kwargs: Any) -> Any:
        """Output of a module on shapes; if its shapes depend on values, those that it had for the inputs."""
        shapes = cast(Any, detect_fake_mode()).shape_env
        known = free_unbacked_symbols(tensors_in((args, kwargs)))
        try:
            with shapes.ignore_fresh_unbacked_symbols():
                output = original(*args, **kwargs)
            if free_unbacked_symbols(tensors_in(output)) <= known:
                return output
            raise ValueError(f"the shape of the output of {name!r} depends on values")
        except Exception:
            number = sum(call.name == name for call in self.calls)
            if number >= len(self._known_outputs.get(name, [])):
                raise
        return pytree.tree_map_only(
            torch.Tensor,
            lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device),
            self._known_outputs[name][number],
        )

    def _note(self, name: str, args: Any, kwargs: Any, output: Any, *, is_marker: bool = False) -> Any:
        if any(isinstance(value, nn.utils.rnn.PackedSequence) for value in (*args, *kwargs.values(), output)):
            raise ValueError(f"{name!r} takes or gives a PackedSequence, which must stay within one module")
        leaves, structure = pytree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        sizes = [leaf for leaf in leaves if isinstance(leaf, torch.SymInt)]
        kept = [
            _TENSOR if isinstance(leaf, torch.Tensor) else _SIZE if isinstance(leaf, torch.SymInt) else leaf
            for leaf in leaves
        ]
        with_paths, output_structure = pytree.tree_flatten_with_path(output)
        outputs = [leaf for _, leaf in with_paths]
        paths = [path for path, leaf in with_paths if isinstance(leaf, torch.Tensor)]
        given = [leaf for leaf in outputs if isinstance(leaf, torch.Tensor)]
        number = sum(call.name == name for call in self.calls)
        marks = [mark for mark, (module, call) in self._marks.items() if module == name and call in (None, number)]
        setting = Autocast.current(self._autocast.device_type)
        setting_of_call = None if setting == self._autocast else setting
        self.calls.append(_Call(name, kept, structure, given, paths, marks, is_marker, setting_of_call))
        results = iter(torch.ops.skexit.call_module(len(self.calls) - 1, tensors, sizes))
        return pytree.tree_unflatten(
            [next(results) if isinstance(leaf, torch.Tensor) else leaf for leaf in outputs], output_structure
        )


@contextmanager
def _left_modules() -> Iterator[None]:
    """Tell torch.export that all modules called within have ended: it does not notice if an error ends them."""
    entered = getattr(getattr(get_proxy_mode(), "tracer", None), "module_stack", {})
    n_entered = len(entered)
    try:
        yield
    finally:
        while len(entered) > n_entered:
            entered.popitem()


#: The active recorders, the innermost last.
_RECORDERS: list[_Recorder] = []


def _shapes_of_call(call: int, tensors: list[torch.Tensor], sizes: list[int]) -> list[torch.Tensor]:
    return [torch.empty_like(tensor) for tensor in _RECORDERS[-1].calls[call].outputs]


torch.library.impl(_OPERATORS, "call_module", "Meta")(_shapes_of_call)


_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def _has_hooks(model: nn.Module) -> bool:
    return any(module.__dict__[name] for module in model.modules() for name in _HOOKS)


def _replace_hooks(stack: ExitStack, module: nn.Module, with_hooks: bool) -> None:
    """Until the stack is closed, ignore the results of hooks, or leave hooks out, because they may read values.

    The hooks run as usual when the recorded graph calls the module.
    """
    for name in _HOOKS:
        if hooks := module.__dict__[name]:
            module.__dict__[name] = type(hooks)(
                (key, partial(_watch, hook)) for key, hook in hooks.items() if with_hooks
            )
            stack.callback(module.__dict__.__setitem__, name, hooks)


def _watch(hook: Any, *args: Any, **kwargs: Any) -> None:
    hook(*args, **kwargs)


def _restore(module: nn.Module, forward: Any) -> None:
    if forward is None:
        del module.__dict__["forward"]
    else:
        module.__dict__["forward"] = forward


def _explain_wrong_calls(recorder: _Recorder, exits: Sequence[str], heads: Sequence[str | None]) -> None:
    called = [mark for call in recorder.calls for mark in call.marks]
    check_called_once(called, exits, "exits")
    check_called_once(called, list(own_heads(heads).values()), "head")
    check_forward_order([name for name in called if name in set(exits)], list(exits))


def _parents(model: nn.Module, modules: dict[str, nn.Module], names: Collection[str]) -> set[str]:
    """Modules that contain the named modules, also under other names of these."""
    searched = {id(modules[name]) for name in names}
    aliases = [name for name, module in model.named_modules(remove_duplicate=False) if id(module) in searched]
    holders = {name[:end] for name in aliases for end, character in enumerate(name) if character == "."}
    held_by = {id(model.get_submodule(name)) for name in holders}
    return {name for name, module in modules.items() if id(module) in held_by}


class _Reader:
    """Turns an exported program into a graph that calls the network's own modules."""

    def __init__(self, exported: Any, recorder: _Recorder) -> None:
        self._exported = exported
        self._calls = recorder.calls
        self._graph = fx.Graph()
        self._values: dict[fx.Node, Any] = {}
        self._values_of_calls: dict[fx.Node, list[Any]] = {}
        self._outputs: dict[str, list[Any]] = {}
        self._constants: dict[str, torch.Tensor] = {}
        self._given_objects = set[str]()

    def read(self, exits: Sequence[str], heads: Sequence[str | None], own: OwnLogits | None) -> Recording:
        inputs: list[fx.Node] = []
        kinds = {spec.arg.name: spec for spec in self._exported.graph_signature.input_specs}
        results: list[Any] = []
        for node in self._exported.graph.nodes:
            if node.op == "placeholder":
                self._values[node] = self._read_input(node, kinds[node.name], inputs)
            elif node.op == "output":
                results = [self._values[value] for value in node.args[0]]
            elif node.target is torch.ops.skexit.call_module.default:
                self._read_call(node)
            elif node.target is operator.getitem and node.args[0] in self._values_of_calls:
                self._values[node] = self._values_of_calls[node.args[0]][node.args[1]]
            else:
                self._values[node] = self._copy(node)
        self._follow_changes_in_place()
        logits: list[fx.Node | None] = [None] * len(exits)
        for k, head in enumerate(heads):
            if head is not None and head != "output":
                logits[k] = self._outputs[head][0]
        places = [None] * (len(exits) - 1) + [(0, None)] if own is None else own.places
        rest = iter(results)
        for k, place in enumerate(places):
            given = next(rest, None) if place is not None else None
            if given is not None and heads[k] in (None, "output"):
                logits[k] = given
        outputs = [self._outputs[name] for name in exits]
        return Recording(self._graph, inputs, outputs, logits, self._constants, self._given_objects)

    def _read_input(self, node: fx.Node, spec: Any, inputs: list[fx.Node]) -> fx.Node:
        if spec.kind is InputKind.USER_INPUT:
            value = self._graph.placeholder(node.name)
            inputs.append(value)
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            value = self._graph.get_attr(spec.target.removeprefix("model."))
        else:
            name = f"_constant_{len(self._constants)}"
            self._constants[name] = self._exported.constants[spec.target]
            value = self._graph.get_attr(name)
        value.meta.update(node.meta)
        return value

    def _read_call(self, node: fx.Node) -> None:
        number, *parts = cast(tuple[int, list[Any], list[Any]], node.args)
        call = self._calls[number]
        tensors, sizes = (iter([self._map(value) for value in values]) for values in parts)
        if call.is_marker:
            self._outputs |= dict.fromkeys(call.marks, self._values_of_calls.setdefault(node, list(tensors)))
            return
        if not all(leaf in (_TENSOR, _SIZE) or isinstance(leaf, _PLAIN) for leaf in call.arguments):
            self._given_objects.add(call.name)
        leaves = [
            next(tensors) if leaf is _TENSOR else next(sizes) if leaf is _SIZE else leaf for leaf in call.arguments
        ]
        args, kwargs = pytree.tree_unflatten(leaves, call.structure)
        output = self._graph.call_module(call.name, args, kwargs)
        mark(output, call.autocast)
        values = []
        for path, tensor in zip(call.paths, node.meta["val"], strict=True):
            value = output
            for key in path:
                value = self._graph.call_function(*_access(value, key))
            value.meta["val"] = tensor
            values.append(value)
        self._outputs |= dict.fromkeys(call.marks, self._values_of_calls.setdefault(node, values))

    def _copy(self, node: fx.Node) -> fx.Node:
        if getattr(node.target, "overloadpacket", None) in FILLED:
            return filled(self._graph, node, self._map)
        copied = self._graph.node_copy(node, self._map)
        copied.meta = dict(node.meta)
        if node.target is torch.ops.aten.squeeze.default:
            # The axis of the rows must stay, even if there is one row.
            squeezed = cast(fx.Node, node.args[0])
            ones = [axis for axis, size in enumerate(squeezed.meta["val"].shape) if isinstance(size, int) and size == 1]
            copied.target, copied.args = torch.ops.aten.squeeze.dims, (copied.args[0], ones)
        return copied

    def _map(self, value: Any) -> Any:
        return self._values[value] if isinstance(value, fx.Node) else value

    def _follow_changes_in_place(self) -> None:
        """Let nodes that read a tensor after a change in place read the result of the change."""
        order = {node: index for index, node in enumerate(self._graph.nodes)}
        for node in list(self._graph.nodes):
            if is_in_place(node) and node.args and isinstance(node.args[0], fx.Node):
                changed = node.args[0]
                for user in list(changed.users):
                    if order[user] > order[node]:
                        user.replace_input_with(changed, node)


def _access(value: fx.Node, key: Any) -> tuple[Any, tuple[Any, ...]]:
    """Function and arguments that take a part out of a module's output."""
    if isinstance(key, pytree.SequenceKey):
        return operator.getitem, (value, key.idx)
    if isinstance(key, pytree.MappingKey):
        return operator.getitem, (value, key.key)
    return getattr, (value, key.name)
