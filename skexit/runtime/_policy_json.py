"""Fitted policies as JSON. To read them does not run code from the file."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib
import json
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline

from skexit import _version
from skexit.data import ExitLayout
from skexit.data._estimator import ROW_STATE, ExitEstimator
from skexit.exceptions import InconsistentVersionWarning
from skexit.persistence import SAVED_TYPES
from skexit.pipeline import ExitPipeline
from skexit.policies import ExitPolicy
from skexit.utils._warnings import warn

_FORMAT, _FORMAT_VERSION = "skexit", 1
#: Key of the digest of all other keys. Without it, a policy with missing or changed values would still predict.
_DIGEST = "sha256"
#: Key that marks a JSON object for a type that JSON does not have. Its value is the name of the type.
_KIND = "__kind__"
#: Kinds of NumPy arrays that are written as bytes: bool, integers, floats and strings.
_ARRAY_KINDS = "biufU"

#: Classes that contain estimators of skexit, and the one parameter of each on which predictions depend.
_CONTAINERS: dict[str, tuple[type, str]] = {
    "sklearn.frozen.FrozenEstimator": (FrozenEstimator, "estimator"),
    "sklearn.pipeline.Pipeline": (Pipeline, "steps"),
    "skexit.ExitPipeline": (ExitPipeline, "steps"),
}


def policy_to_json(policy: Any) -> str:
    """Write a fitted policy as JSON.

    The text has all values that predictions depend on: thresholds, networks, temperatures and the layout. It leaves out
    the state that only ``with_budget`` and ``predict_set`` need, so its length does not depend on the number of fitted
    rows. It also leaves out parameters that are estimators, functions or random states, which only ``fit`` needs: after
    reading, they have their default values.

    Parameters
    ----------
    policy : fitted exit policy, ExitHeads or ExitEnsemble
        It may be in a FrozenEstimator or a Pipeline. Dicts, lists and tuples of policies, numbers, strings and NumPy
        arrays are also allowed.

    Returns
    -------
    str
        JSON text for :func:`policy_from_json`.

    Raises
    ------
    ValueError
        If `policy` contains an object of another type, such as a regressor of scikit-learn, or its thresholds, costs or
        temperatures are not those of a fitted policy.

    See Also
    --------
    policy_from_json : Reads the text.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skexit import ThresholdPolicy
    >>> from skexit.runtime import policy_from_json, policy_to_json
    >>> X, y = load_digits(return_X_y=True)
    >>> policy = ThresholdPolicy(budget=0.75, layout=2).fit(X, y)
    >>> text = policy_to_json(policy)
    >>> bool((policy_from_json(text).predict(X) == policy.predict(X)).all())
    True
    """
    document = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "skexit_version": _version.__version__,
        "content": _encode(policy, type(policy).__name__),
    }
    return json.dumps(document | {_DIGEST: _digest(document)}, indent=1, allow_nan=False)


def policy_from_json(text: str) -> Any:
    """Read a policy from the text of `policy_to_json`.

    Parameters
    ----------
    text : str
        JSON text from :func:`policy_to_json`.

    Returns
    -------
    policy
        The policy. It can predict, score and be calibrated. For another budget, fit it again.

    Raises
    ------
    ValueError
        If the text has another format, was changed or damaged, or names a class that is not from skexit. The digest in
        the text detects damage. It is not a signature: it does not show who wrote the text.

    Warns
    -----
    InconsistentVersionWarning
        If another version of skexit wrote the text.

    Examples
    --------
    >>> policy_from_json(policy_to_json({"thresholds": (0.5, float("-inf"))}))
    {'thresholds': (0.5, -inf)}
    """
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"text is not valid JSON: {error}. Pass a text from policy_to_json.") from error
    if not isinstance(document, dict) or document.get("format") != _FORMAT or "content" not in document:
        raise ValueError("this JSON was not written by skexit. Pass a text from policy_to_json.")
    version = document.get("format_version")
    if version != _FORMAT_VERSION:
        raise ValueError(
            f"this JSON has version {version!r} of the format, but skexit {_version.__version__} reads version "
            f"{_FORMAT_VERSION}. Write the policy again with this version of skexit."
        )
    if document.pop(_DIGEST, None) != _digest(document):
        raise ValueError(
            f"this JSON was changed after it was written: its {_DIGEST} does not belong to its content. Write the "
            "policy again with policy_to_json."
        )
    content = _decode(document["content"])
    saved_version = str(document.get("skexit_version", "unknown"))
    if saved_version != _version.__version__:
        name = type(content).__name__ if isinstance(content, BaseEstimator) else "a policy"
        warn(InconsistentVersionWarning(name, saved_version, _version.__version__))
    return content


def _digest(document: dict[str, Any]) -> str:
    """Digest of the document's content. It does not depend on the order of keys."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _encode(value: Any, place: str) -> Any:
    """The value in types that JSON has. `place` is the position of the value, for errors."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {_KIND: "float", "value": repr(value)}
    if type(value) is list:
        return [_encode(part, f"{place}[{i}]") for i, part in enumerate(value)]
    if type(value) is tuple:
        return {_KIND: "tuple", "items": _encode(list(value), place)}
    if type(value) is dict and all(isinstance(name, str) and name != _KIND for name in value):
        return {name: _encode(part, f"{place}[{name!r}]") for name, part in value.items()}
    if type(value) is np.ndarray:
        return _encode_array(value, place)
    return _encode_object(value, place)


def _encode_array(array: NDArray[Any], place: str) -> dict[str, Any]:
    if array.dtype.kind == "O":
        return {_KIND: "objects", "shape": list(array.shape), "items": _encode(array.ravel().tolist(), place)}
    if array.dtype.kind not in _ARRAY_KINDS:
        raise _not_writable(f"array of {array.dtype}", place)
    # The memory order is written, too, because the last digits of matrix products depend on it.
    order: Literal["C", "F"] = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    data = base64.b64encode(little.tobytes(order=order)).decode()
    return {_KIND: "array", "dtype": little.dtype.str, "shape": list(array.shape), "order": order, "data": data}


def _encode_object(value: Any, place: str) -> dict[str, Any]:
    kind = type(value)
    containers = {container: (name, parameter) for name, (container, parameter) in _CONTAINERS.items()}
    attributes: dict[str, Any] = {}
    if kind in containers:
        name, parameter = containers[kind]
        parameters = {parameter: getattr(value, parameter)}
    else:
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name not in SAVED_TYPES:
            raise _not_writable(name, place)
        if isinstance(value, ExitPolicy):
            _check_policy(value, place)
        if isinstance(value, ExitEstimator):
            parameters, attributes = _state_of_estimator(value)
        elif isinstance(value, ExitLayout):
            parameters = {field: getattr(value, field) for field in value.to_dict()}
        else:
            parameters = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {
        _KIND: name,
        "parameters": {field: _encode(part, f"{place}.{field}") for field, part in parameters.items()},
        "attributes": {field: _encode(part, f"{place}.{field}") for field, part in attributes.items()},
    }


def _state_of_estimator(estimator: ExitEstimator) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters and fitted attributes on which predictions depend."""
    parameters = {name: value for name, value in estimator.get_params(deep=False).items() if _is_plain(value)}
    by_init = estimator.get_params(deep=False)
    attributes = {
        name: value for name, value in vars(estimator).items() if name not in by_init and name not in ROW_STATE
    }
    return parameters, attributes


def _is_plain(value: Any) -> bool:
    if type(value) in (list, tuple):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, bool | int | float | str | np.generic | np.ndarray | ExitLayout)


def _not_writable(what: str, place: str) -> ValueError:
    return ValueError(f"{place} has the type {what}, which cannot be written as JSON. Save it with joblib or skops.")


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(part) for part in value]
    if not isinstance(value, dict):
        return value
    if _KIND not in value:
        return {name: _decode(part) for name, part in value.items()}
    kind = value[_KIND]
    decode = _DECODERS.get(kind, _decode_object) if isinstance(kind, str) else _decode_object
    try:
        return decode(value)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"this JSON is damaged: its object of type {kind!r} is incomplete or wrong. Write the policy again with "
            "policy_to_json."
        ) from error


def _decode_array(value: dict[str, Any]) -> NDArray[Any]:
    dtype = np.dtype(value["dtype"])
    if dtype.kind not in _ARRAY_KINDS:
        raise ValueError(
            f"this JSON is damaged: it has an array of type {dtype}. Write the policy again with policy_to_json."
        )
    try:
        flat = np.frombuffer(base64.b64decode(value["data"], validate=True), dtype=dtype)
        # astype copies, because arrays from bytes are read-only.
        return flat.astype(dtype.newbyteorder("=")).reshape(value["shape"], order=value["order"])
    except ValueError as error:
        raise ValueError(
            f"this JSON is damaged: the data of an array do not fit its description ({error}). Write the policy again "
            "with policy_to_json."
        ) from error


def _decode_objects(value: dict[str, Any]) -> NDArray[Any]:
    items = _decode(value["items"])
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array.reshape(value["shape"])


def _decode_object(value: dict[str, Any]) -> Any:
    name = value[_KIND]
    if name in _CONTAINERS:
        kind: Any = _CONTAINERS[name][0]
    elif name in SAVED_TYPES:
        module, _, class_name = name.rpartition(".")
        kind = getattr(importlib.import_module(module), class_name)
    else:
        raise ValueError(
            f"this JSON has an object of type {name!r}, which is not an allowed class of skexit. Pass a text from "
            "policy_to_json."
        )
    made = kind(**{field: _decode(part) for field, part in value["parameters"].items()})
    made.__dict__.update({field: _decode(part) for field, part in value["attributes"].items()})
    if isinstance(made, ExitPolicy):
        _check_policy(made, name)
    return made


def _check_policy(policy: ExitPolicy, place: str) -> None:
    """Raise a ValueError if a policy has thresholds, costs or temperatures that no fitted policy can have."""
    if not hasattr(policy, "layout_"):
        return  # not fitted
    shape = (policy.layout_.n_exits,)
    thresholds, costs, temperatures = (
        np.asarray(getattr(policy, name)) for name in ("thresholds_", "costs_", "temperatures_")
    )
    for name, values, is_right in (
        ("thresholds_", thresholds, lambda: not np.isnan(thresholds).any() and np.isneginf(thresholds[-1])),
        ("costs_", costs, lambda: np.isfinite(costs).all() and (np.diff(costs, prepend=0) > 0).all()),
        ("temperatures_", temperatures, lambda: np.isfinite(temperatures).all() and (temperatures > 0).all()),
    ):
        if values.shape != shape or not is_right():
            raise ValueError(
                f"{place}.{name} is {values.tolist()}, which no policy fitted on {shape[0]} exits has. Fit the policy "
                "again."
            )


_DECODERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "float": lambda value: float(value["value"]),
    "tuple": lambda value: tuple(_decode(value["items"])),
    "array": _decode_array,
    "objects": _decode_objects,
}
