"""Run a network once over a loader and store the logits and features of each exit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn
from tqdm import tqdm

from skexit.backbone._channels import Channels, axes_of_rows, check_channels, find_channels
from skexit.backbone._costs import COST_UNITS, ExitCosts, measure_costs
from skexit.backbone._exit_points import exit_points
from skexit.backbone._inputs import Inputs, attention_mask_in, call, in_form, map_tensors, tensors_of
from skexit.backbone._loaders import count_rows
from skexit.backbone._masks import count_tokens
from skexit.backbone._modules import (
    NETWORK_OUTPUT,
    Head,
    check_called_once,
    device_of,
    evaluating_rows,
    hook_calls,
    names_of_exits,
    own_heads,
    resolve_heads,
    unwrapped,
)
from skexit.backbone._outputs import as_logits, first_tensor
from skexit.backbone._own_logits import OwnLogits, own_logits_or_none
from skexit.backbone._pool_costs import pool_multiply_adds
from skexit.backbone._pooling import Pool, check_pool, pool_name, pool_of_output, pool_output, pooled_map
from skexit.backbone._rows import rows_first
from skexit.cache import CacheWriter, FeatureCache
from skexit.cache._folders import absolute, is_url
from skexit.data import ExitLayout
from skexit.data._blocks import warn_of_probabilities
from skexit.data._layout import add_heads
from skexit.data._layout_checks import FeatureMap
from skexit.extraction._batches import Batch, check_loader, naming_batch, read_batches, skip_cached_rows
from skexit.extraction._callables import callable_fingerprint
from skexit.extraction._earlier import check_costs, find_cache
from skexit.extraction._fingerprints import input_digest, model_fingerprint
from skexit.extraction._parts import Worker, extract_as_worker, found_parts, is_complete, rank_and_size


class ExitExtractor:
    """Run a network once over a data set and cache logits and features of each exit.

    Forward hooks pool the outputs of the named modules while the network runs. Feature maps are
    freed at once, and each input passes through the network exactly once.

    Parameters
    ----------
    model : torch.nn.Module
        A trained network, on the device on which it should run. It runs in evaluation mode and is not changed.
    exits : sequence of str or of modules, default=None
        Names of the modules after which the network can stop, or these modules, in forward order. By default found
        by :func:`~skexit.backbone.exit_points`.
    example_input : tensor, tuple of tensors or dict of tensors, default=None
        One batch of inputs. The costs in all caches are those of its first row, such as a text of typical length. By
        default they are those of the first row that the extractor reads, with its padding. The batch also serves to
        find exits, if `exits` is None and the model belongs to no known family.
    pool : str, sequence of str or callable, default="auto"
        How features are computed from the output of an exit's module. For feature maps (4 dimensions): ``"avg"``,
        ``"max"``, or averages on a grid: ``"grid2"`` for 2 x 2 cells, ``"grid8"`` for 8 x 8, and so on. For volumes
        (5): the same. For sequences (3): ``"first"``, ``"last"``, ``"mean"`` or ``"max"`` of the tokens that the
        attention mask counts, see the notes. For all of these: ``"cov"``, the second moments of the channels, or
        ``"cov32"``, those of 32 random projections of the channels. Several are joined in the order given. ``"auto"``
        is ``("avg", "max", "grid2")`` for maps and volumes, and ``("first", "mean")`` for sequences. A callable gets
        the tensor and returns one of shape (n_samples, n_features). A cache identifies it by its attribute
        ``fingerprint``, a string, or else by its code, the values that the code reads, and its state. Two-dimensional
        outputs are not pooled.
    channels : {"auto", "first", "last"} or dict of str to str, default="auto"
        Axis of the channels in the exits' outputs: the one after the samples, or the last. ``"auto"`` infers it from
        the layers that the network calls. A dict has exits as keys; the axis of other exits is inferred.
    head : "output", None, list of n_exits str or None, or dict of str to str, default="output"
        Where logits come from. ``"output"``: the network's own output, a tensor or an object with ``logits``, has those
        of the last exit. It may also have logits of several exits: in nested lists, tuples, dicts or dataclasses;
        stacked to (n_samples, n_exits, n_classes) or (n_exits, n_samples, n_classes); or, in a binary network with one
        logit per exit, joined to (n_samples, n_exits) or (n_exits, n_samples). Logits belong to the last exit from
        which they are computed, or to a later exit if they need much of the computation in between. None: no exit has
        logits. A list has the name of each exit's head, ``"output"``, or None for no head. A dict has the same by the
        names of exits: ``{"layer1": "head1", "layer2": "output"}``. A single logit z of a binary network is ``[0, z]``.
    dtype : {"float32", "float16"}, default="float32"
        Type in which logits and features are stored.
    cost_unit : {"FLOPs", "MACs", "ms"}, default="FLOPs"
        Unit of the costs in the layout of the cache, see :func:`~skexit.backbone.exit_costs`.

    Raises
    ------
    ValueError
        If `exits` or `head` name a module that the network does not have, `pool` is unknown, or
        `exits` and `example_input` are None and the model belongs to no known family.

    See Also
    --------
    skexit.backbone.exit_points : Finds the exits of a network.
    skexit.backbone.exit_costs : Measures the cost of each exit.

    Notes
    -----
    A feature map of C channels becomes C features by ``"avg"`` and by ``"max"``, 4 C by ``"grid2"`` (8 C for a volume),
    64 C by ``"grid8"``, and 6 C by default. Each feature takes four bytes in the cache, or two as float16; a linear
    head for n_classes costs 2 n_classes FLOPs per feature.

    ``"cov"`` averages the products of any two channels a and b over places or tokens. Features are the signed square
    roots ``m / sqrt(|m| + 1e-4)`` of these means m for a ≤ b: C (C + 1) / 2 numbers. More than 64 channels, or more
    than the number in the name, are first replaced by that many sums of channels with fixed random signs, divided by
    the square root of C. With R channels after this step and P places, this takes R² P multiply-adds, and C R P for the
    sums. They are part of the ``head_costs`` of the layout, for exits without logits of their own.

    If a network makes fewer tokens than its attention mask has positions, as audio networks do, each token stands for
    an equal share of the positions, and counts if one of them does. If a Hugging Face network has the method
    ``_get_feat_extract_output_lengths``, this method determines the number of tokens of each sample.

    Examples
    --------
    >>> import tempfile
    >>> import torch
    >>> from torch import nn
    >>> from skexit.extraction import ExitExtractor
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> loader = [(torch.randn(4, 8), torch.tensor([0, 1, 2, 0])) for _ in range(5)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cache = ExitExtractor(model, exits=["1", "3"]).extract(loader, folder)
    ...     print(cache.X, cache.layout.costs)
    ExitArray(20 rows, 35 columns, 2 exits, float32) [256. 864.]
    """

    def __init__(
        self,
        model: nn.Module,
        exits: Sequence[str] | None = None,
        *,
        example_input: Inputs | None = None,
        pool: Pool = "auto",
        channels: Channels = "auto",
        head: Head = "output",
        dtype: str = "float32",
        cost_unit: str = "FLOPs",
    ) -> None:
        check_pool(pool)
        self.model = unwrapped(model)
        if dtype not in ("float32", "float16"):
            raise ValueError(f"dtype={dtype!r} must be 'float32' or 'float16'.")
        if cost_unit not in COST_UNITS:
            raise ValueError(f"cost_unit={cost_unit!r} must be one of {list(COST_UNITS)}.")
        found = exit_points(self.model, example_input=example_input) if exits is None else exits
        self.exits = names_of_exits(self.model, found)
        check_channels(channels, self.exits)
        self._heads = resolve_heads(self.model, head, self.exits)
        self.pool = pool
        self.channels = channels
        self._pool_name = pool_name(pool) + (f" {callable_fingerprint(pool)}" if callable(pool) else "")
        self.head = head
        self.dtype = dtype
        self.cost_unit = cost_unit
        #: The input whose costs are measured; None until one is read.
        self._example = None if example_input is None else _first_row(in_form(example_input, "example_input"))
        self._has_example_input = example_input is not None
        #: Results for the example, by the fingerprint of the model.
        self._own: dict[str, OwnLogits | None] = {}
        self._costs: dict[str, ExitCosts] = {}

    def extract(
        self,
        loader: Iterable[Any],
        path: str | os.PathLike[str],
        *,
        classes: ArrayLike | None = None,
        shard_rows: int | None = None,
        worker: Worker = None,
        check_data: bool = True,
        progress: bool = True,
    ) -> FeatureCache:
        """Run the network over a loader and write a cache.

        If the folder has an unfinished cache, the extraction continues where it stopped.

        Parameters
        ----------
        loader : iterable
            Yields batches in the same order each time: x; (x, y); several inputs followed by y, such as (ids, mask, y);
            or a dict or dataclass whose ``labels`` or ``label`` is y. x is a tensor, a tuple of tensors that are passed
            by position, or a dict of tensors that are passed by keyword; an ``attention_mask`` among these also masks
            tokens in pooling. y has one number or string per row.
        path : str or path-like
            Folder of the cache: new, empty, or of an earlier extraction.
        classes : array-like of shape (n_classes,), default=None
            Class labels in the order of the logits, stored in the layout. If they are names and
            the labels of the loader are integers, these are indices of classes.
        shard_rows : int, default=None
            Number of rows after which a part of the cache is on disk and survives a crash. By default
            as many as take about 64 MiB.
        worker : "torchrun" or tuple of two int, default=None
            Required if several processes extract into the same folder, each a part of the rows. ``(rank, n_workers)``
            of this process, or ``"torchrun"`` for the ``RANK`` and ``WORLD_SIZE`` that torchrun sets. Each process
            returns when the whole cache is complete. By default there is one process.
        check_data : bool, default=True
            Whether all cached rows are compared with those of the loader, by their labels and by checksums of
            their inputs. This reads the loader but does not run the network. With False, a complete cache with
            as many rows as the loader is returned at once, and inputs may differ from those of the cached rows,
            such as after random changes.
        progress : bool, default=True
            Show a progress bar, if the output is a terminal.

        Returns
        -------
        cache : FeatureCache
            The complete cache.

        Raises
        ------
        ValueError
            If the loader is empty, shuffles, or has other labels or inputs than the cache; the folder has the cache of
            another model, other settings or other data; or the network does not call each exit exactly once, or its
            outputs are infinite or NaN. With several workers also if rows of the loader cannot be read by index, the
            costs are in ``"ms"``, or a single process has started an extraction into the folder.
        RuntimeError
            If another process is extracting into the folder.
        """
        rank, n_workers = rank_and_size(worker)
        folder = absolute(path)  # reading the loader may change the working directory
        path = path if is_url(path) else folder
        if (n_workers > 1 or found_parts(folder)) and not is_complete(folder):
            self._read_example(loader)
            options: dict[str, Any] = {"classes": classes, "shard_rows": shard_rows, "check_data": check_data}
            part = partial(self._extract_part, progress=progress, **options)
            return extract_as_worker(part, loader, folder, rank, n_workers)
        check_loader(loader)
        batches = read_batches(loader, None if classes is None else np.asarray(classes))
        first = next(batches, None)
        if first is None:
            raise ValueError("loader is empty; give at least one batch, of one row or more.")
        self._example = _first_row(first.inputs) if self._example is None else self._example
        origin = self._origin(first, classes)
        check_data = check_data and rank == 0  # one worker compares for all
        found = find_cache(path, origin, check_data)
        n_rows = count_rows(loader)
        if found is not None and found.complete and found.n_rows == n_rows and not check_data:
            return found
        if found is not None and self._has_example_input and self.cost_unit != "ms":
            check_costs(found, self._with_costs(found.layout, origin["model"]))
        with evaluating_rows(self.model):
            own = self._find_own_logits(origin["model"])
            outputs = self._run_all(skip_cached_rows(chain([first], batches), found, check_data), own)
            # One batch runs before the folder is made, so that an error leaves no cache behind.
            first_output = list(islice(outputs, 1))
            if found is not None and found.complete and not first_output:
                return found
            layout = found.layout if found is not None else self._new_layout(origin["model"], first_output[0], classes)
            with (
                CacheWriter(
                    path,
                    layout,
                    origin=origin if found is None else found.origin,
                    dtype=self.dtype,
                    shard_rows=shard_rows,
                    n_cached=0 if found is None else found.n_rows,
                ) as writer,
                tqdm(initial=writer.n_rows, total=n_rows, unit=" rows", disable=None if progress else True) as bar,
            ):
                for output in chain(first_output, outputs):
                    writer.append(output.logits, output.features, output.y, inputs=output.inputs)
                    bar.update(output.n_rows)
        return FeatureCache(path)

    def _extract_part(self, loader: Iterable[Any], path: Path, **options: Any) -> FeatureCache:
        """Extract some of the rows, while other workers extract the others."""
        if self.cost_unit == "ms":
            raise ValueError(
                "cost_unit='ms' would be measured by each worker while others use the same machine. Extract with "
                "cost_unit='FLOPs', and put the times that skexit.runtime.measure_latency measures into the layout."
            )
        return self.extract(loader, path, **options)

    def _run_all(self, batches: Iterable[Batch], own: OwnLogits | None) -> Iterator[_Output]:
        channels: dict[str, str] = {}
        axes: dict[str, int] = {}
        for batch in batches:
            with naming_batch(self.model, batch):
                channels = channels or find_channels(self.model, self.exits, batch.inputs, self.pool, self.channels)
                axes = axes or axes_of_rows(self.model, self.exits, batch.inputs)
                output = self._run(batch, channels, axes, own)
            yield output

    @torch.inference_mode()
    def _run(
        self, batch: Batch, channels: Mapping[str, str], axes: Mapping[str, int], own: OwnLogits | None
    ) -> _Output:
        """Run the network on one batch, and pool the output of each exit as soon as it is computed."""
        device = device_of(self.model)
        inputs = map_tensors(lambda tensor: tensor.to(device, non_blocking=True), batch.inputs)
        place = attention_mask_in(self.model, inputs)
        mask = None if place is None else tensors_of(inputs)[place]
        counts = count_tokens(self.model, mask)
        features: list[tuple[str, torch.Tensor]] = []
        maps: dict[str, FeatureMap | None] = {}
        pools: dict[str, str | None] = {}
        own_logits: list[tuple[str, torch.Tensor]] = []
        with ExitStack() as hooks:
            for name in self.exits:
                pool = partial(pool_output, pool=self.pool, mask=mask, channels=channels[name], counts=counts)
                find_map = partial(pooled_map, self.pool, channels=channels[name])
                hooks.enter_context(self._hook_features(name, axes[name], pool, find_map, features, maps, pools))
            for name in own_heads(self._heads).values():
                hooks.enter_context(self._hook_logits(name, own_logits))
            output = call(self.model, inputs)
        check_called_once([name for name, _ in features], self.exits, "exits")
        check_called_once([name for name, _ in own_logits], list(own_heads(self._heads).values()), "head")
        logits = self._network_logits(output, own)
        for k, name in own_heads(self._heads).items():
            logits[k] = dict(own_logits)[name]
        pooled = dict(features)
        return _Output(
            features=[self._to_numpy(pooled[name], "features", k, batch) for k, name in enumerate(self.exits)],
            logits=[
                None if block is None else self._to_numpy(block, "logits", k, batch) for k, block in enumerate(logits)
            ],
            maps=[maps[name] for name in self.exits],
            pools=[pools[name] for name in self.exits],
            y=batch.y,
            inputs=batch.checksums,
        )

    def _hook_features(
        self,
        name: str,
        axis_of_rows: int,
        pool: Callable[[Any], torch.Tensor],
        find_map: Callable[[Sequence[int]], FeatureMap | None],
        features: list[tuple[str, torch.Tensor]],
        maps: dict[str, FeatureMap | None],
        pools: dict[str, str | None],
    ) -> torch.utils.hooks.RemovableHandle:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            try:
                tensor = rows_first(first_tensor(output), axis_of_rows)
                features.append((name, pool(tensor)))
                maps[name] = find_map(tensor.shape)
                pools[name] = pool_of_output(self.pool, tensor.ndim)
            except ValueError as error:
                raise ValueError(f"exit {name!r}: {error}") from error

        return hook_calls(self.model, name, keep)

    def _hook_logits(self, name: str, logits: list[tuple[str, torch.Tensor]]) -> torch.utils.hooks.RemovableHandle:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            # The network may change them in place afterwards.
            logits.append((name, _as_logits(output, f"the head {name!r}").clone()))

        return hook_calls(self.model, name, keep)

    def _network_logits(self, output: Any, own: OwnLogits | None) -> list[torch.Tensor | None]:
        """Logits of each exit in the network's own output; None for exits with another head or none."""
        found = [None] * len(self.exits) if own is None else own.read(output)
        logits: list[torch.Tensor | None] = []
        for k, (head, of_exit) in enumerate(zip(self._heads, found, strict=True)):
            # head="output" stands for all exits whose logits are in the output.
            if of_exit is not None and NETWORK_OUTPUT in (self.head, head):
                logits.append(_as_logits(of_exit, f"the network's output for exit {self.exits[k]!r}"))
            else:
                logits.append(_as_logits(output, "the network") if head == NETWORK_OUTPUT else None)
        return logits

    def _to_numpy(self, block: torch.Tensor, part: str, k: int, batch: Batch) -> NDArray[np.float32]:
        array: NDArray[np.float32] = block.float().cpu().numpy()
        if len(array) != batch.n_rows:
            raise ValueError(
                f"exit {self.exits[k]!r} gave {part} of shape {array.shape} for {batch.n_rows} inputs; the first "
                "dimension of a module's output, or the second in sequences, must be the samples."
            )
        if not np.isfinite(array).all():
            if part == "logits" and not (np.isnan(array) | np.isposinf(array)).any():
                raise ValueError(
                    f"exit {self.exits[k]!r} gave logits of -inf in batch {batch.number} of the loader. Mask classes "
                    "by a large negative number such as -1e4, which half precision can represent, too."
                )
            raise ValueError(
                f"exit {self.exits[k]!r} gave {part} that are infinite or NaN in batch {batch.number} of the loader. "
                "Check this batch for missing values or a wrong scale."
            )
        return array

    def _read_example(self, loader: Iterable[Any]) -> None:
        """Use the first row of all as the example, rather than the first row of a part."""
        if self._example is None:
            first = next(read_batches(loader, None), None)
            self._example = None if first is None else _first_row(first.inputs)

    def _find_own_logits(self, fingerprint: str) -> OwnLogits | None:
        """The places of exits' logits in the network's output; found once."""
        if fingerprint not in self._own:
            assert self._example is not None
            self._own[fingerprint] = own_logits_or_none(self.model, self._heads, self.exits, self._example)
        return self._own[fingerprint]

    def _measure(self, fingerprint: str) -> ExitCosts:
        """Costs of the example, measured once, so that all caches of one extractor have equal costs."""
        if fingerprint not in self._costs:
            assert self._example is not None
            own = self._find_own_logits(fingerprint)
            costs = measure_costs(self.model, self.exits, self._example, self.cost_unit, self.head, own)
            self._costs[fingerprint] = costs
        return self._costs[fingerprint]

    def _new_layout(self, fingerprint: str, output: _Output, classes: ArrayLike | None) -> ExitLayout:
        warn_of_probabilities(
            output.logits, "Pass the module before the softmax as head=, or leave the softmax out of the network."
        )
        layout = ExitLayout(
            n_logits=[0 if block is None else block.shape[1] for block in output.logits],
            n_features=[block.shape[1] for block in output.features],
            classes=classes,
            feature_maps=output.maps,
            exit_names=self.exits,
            pools=output.pools,
        )
        return self._with_costs(layout, fingerprint)

    def _with_costs(self, layout: ExitLayout, fingerprint: str) -> ExitLayout:
        costs = self._measure(fingerprint)
        layout = layout.replace(costs=costs.costs, cost_unit=costs.unit, network_cost=costs.network)
        assert self._example is not None
        pooling = pool_multiply_adds(self.model, self.exits, self._example, self.pool, self.channels)
        # Only heads need pooled features, and an exit with logits of its own has no head.
        return add_heads(layout, np.cumsum(np.where(layout.n_logits, 0, pooling)))

    def _origin(self, first: Batch, classes: ArrayLike | None) -> dict[str, str]:
        """Settings and data that determine the content of a cache; extractions that differ in one need other caches."""
        return {
            "model": model_fingerprint(self.model),
            "exits": json.dumps(list(self.exits)),
            "pool": self._pool_name,
            "channels": self.channels if isinstance(self.channels, str) else json.dumps(dict(self.channels)),
            "head": json.dumps(self.head if self.head is None or isinstance(self.head, str) else self._heads),
            "dtype": self.dtype,
            "cost_unit": self.cost_unit,
            "classes": json.dumps(None if classes is None else np.asarray(classes).tolist()),
            "first input": input_digest(first.rows(0, 1).inputs),
        }


@dataclass(frozen=True)
class _Output:
    """Logits and features of one batch, by exit."""

    logits: list[NDArray[np.float32] | None]
    features: list[NDArray[np.float32]]
    maps: list[FeatureMap | None]
    pools: list[str | None]
    y: NDArray[Any] | None
    inputs: NDArray[np.uint32]

    @property
    def n_rows(self) -> int:
        return len(self.features[0])


def _first_row(inputs: Inputs) -> Inputs:
    return map_tensors(lambda tensor: tensor[:1].clone(), inputs)


def _as_logits(output: Any, source: str) -> torch.Tensor:
    return as_logits(
        output,
        f"head: {source}",
        ". Pass head=None for a network without a classifier, or name modules: head={exits[-1]: 'classifier'}.",
    )
