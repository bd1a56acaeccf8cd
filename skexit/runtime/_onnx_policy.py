"""Set another budget in an ONNX file, without exporting the network again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from skexit.data import ExitArray, ExitLayout
from skexit.data._pools import check_same_pools
from skexit.data._walk import collect
from skexit.runtime._decisions import Decisions
from skexit.runtime._onnx_session import METADATA, THRESHOLDS
from skexit.utils._files import replacing
from skexit.utils._optional import optional_import

#: Name of the weight of the file that has the temperatures.
TEMPERATURES = "temperatures"
#: Names of metadata: the exits at which samples may leave, the result of `probe` for the exported policy, and the
#: layout of the network's outputs that it was fitted on.
EXITS_IN_USE, PROBE, LAYOUT = "exits_in_use", "probe", "fitted_layout"
_N_PROBES = 12


def set_policy(path: str | Path, policy: Any, heads: Any = None) -> None:
    """Set the thresholds and temperatures of an exported ONNX file to those of another policy.

    Most policies change only these for another budget or calibration: ``policy.with_budget(0.5)``, or
    ``policy.calibrate(X, y)``.

    Parameters
    ----------
    path : str or Path
        The file from :func:`export_onnx`. It is replaced in one step.
    policy : fitted exit policy, or Pipeline that ends with one
        A policy with the same scores as the exported one, for the same exits.
    heads : fitted ExitHeads or ExitEnsemble, default=None
        The heads that were passed to :class:`EarlyExitModel`.

    Raises
    ------
    ImportError
        If onnx is not installed.
    ValueError
        If the policy has other scores than the exported one, or stops at exits that the file does not have. For another
        budget, a JEIGatedEnsemble may choose other gates, and an EMExitAssigner other weights of its routers; then
        export the live network again with this policy.

    Examples
    --------
    >>> import tempfile
    >>> import torch
    >>> from torch import nn
    >>> from skexit import ThresholdPolicy
    >>> from skexit.extraction import ExitExtractor
    >>> from skexit.runtime import EarlyExitModel, OnnxEarlyExit, export_onnx, set_policy
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> x, y = torch.randn(200, 8), torch.arange(200) % 3
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cache = ExitExtractor(model, ["1", "3"]).extract([(x, y)], f"{folder}/cache")
    ...     policy = ThresholdPolicy(budget=0.8).fit(cache.X, cache.y)
    ...     path = export_onnx(EarlyExitModel(model, ["1", "3"], policy, example_input=x), f"{folder}/network.onnx")
    ...     set_policy(path, policy.with_budget(0.6))
    ...     exits = OnnxEarlyExit(path).predict(x.numpy()).exits
    ...     bool((exits == policy.with_budget(0.6).predict_exit(cache.X)).all())
    True
    """
    with optional_import("files of ONNX are changed by", "onnx-export"):
        import onnx
    path, decisions = Path(path), Decisions(policy, heads)
    model = onnx.load(path, load_external_data=False)
    described = {entry.key: entry.value for entry in model.metadata_props}
    if METADATA + PROBE not in described:
        raise ValueError(f"path={str(path)!r} was not written by export_onnx. Pass a file from export_onnx.")
    expected, exits = (json.loads(described[METADATA + name]) for name in (PROBE, EXITS_IN_USE))
    found = probe(decisions)
    if np.shape(found) != np.shape(expected) or not np.allclose(found, expected, rtol=1e-6):
        raise ValueError(
            f"{policy!r} has other scores than the policy in {path}, where only thresholds and temperatures can be "
            "set. Write the file again: export_onnx(EarlyExitModel(model, exits, policy, example_input=x), path)."
        )
    _check_exits(decisions, exits, path)
    _check_outputs(decisions.layout, ExitLayout.from_dict(json.loads(described[METADATA + LAYOUT])), path)
    arrays = {THRESHOLDS: decisions.policy.thresholds_, TEMPERATURES: decisions.policy.temperatures_[:, None]}
    set_weights(path, model, arrays)


def set_weights(path: Path, model: Any, arrays: dict[str, Any]) -> None:
    """Replace weights of a model by arrays in double precision, by name, and write the model to a file."""
    import onnx

    for weight in model.graph.initializer:
        if weight.name in arrays:
            weight.CopyFrom(onnx.numpy_helper.from_array(arrays[weight.name].astype(np.float64), weight.name))
    with replacing(path) as beside:
        beside.write_bytes(model.SerializeToString())


def _check_exits(decisions: Decisions, exits: list[int], path: Path) -> None:
    used = np.flatnonzero(decisions.is_used).tolist()
    missing = sorted({*used} - {*exits})
    if missing:
        raise ValueError(
            f"the policy stops samples at exits {used}, but {path} has decisions only at exits {exits}, which the "
            "exported policy used. Export the live network again with this policy."
        )


def _check_outputs(layout: ExitLayout, exported: ExitLayout, path: Path) -> None:
    """Raise a ValueError if two layouts are known to be of other exits, or of features that were pooled otherwise."""
    names, exported_names = layout.exit_names, exported.exit_names
    if names is not None and exported_names is not None and names != exported_names:
        raise ValueError(
            f"the policy was fitted on the exits {list(names)}, but the policy in {path} on {list(exported_names)}. "
            "Pass a policy that was fitted on the same exits."
        )
    check_same_pools(exported, layout, "the policy")


def probe(decisions: Decisions) -> list[list[list[float]]]:
    """Scores and largest logits at all exits but the last, for a few random rows, to tell policies apart."""
    everywhere, layout = decisions.for_all_exits(), decisions.layout
    # Rows of different magnitude, because all criteria agree if the logits are large.
    rows = np.random.default_rng(0).normal(size=(_N_PROBES, layout.n_columns)) * np.logspace(-2, 1, _N_PROBES)[:, None]

    def look(k: int, logits: Any, features: Any, memories: Any) -> Any:
        features = everywhere.transform_features(k, features)
        answer = everywhere.answer(k, logits, features, memories)
        return np.stack([everywhere._score(k, answer, features, memories), answer.max(axis=1)], axis=1)

    found = collect(
        look,
        ExitArray.from_array(rows, layout),
        range(layout.n_exits - 1),
        uses_features=everywhere.uses_features,
        start=everywhere.start,
    )
    return [found[k].tolist() for k in range(layout.n_exits - 1)]
