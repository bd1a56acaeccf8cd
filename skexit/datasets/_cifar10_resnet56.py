"""The exits of a ResNet-56 on images of CIFAR-10."""

from __future__ import annotations

from importlib import resources
from typing import Any

import numpy as np
from sklearn.utils import Bunch

from skexit.data import stack_exits

_DATA = resources.files("skexit.datasets") / "data"


def load_cifar10_resnet56(*, return_X_y: bool = False, as_frame: bool = False) -> Any:
    """Load the outputs of a ResNet-56 for 5,000 test images of CIFAR-10 (classification).

    The network is frozen and has nine exits. The data are its pooled activations at each exit, and
    its logits at the last one; the images and the weights are not included.

    ==============  ==========================================
    Samples         5,000
    Classes         10
    Exits           9
    Features        16 / 32 / 64 per exit, three exits each
    Logits          10, at the last exit
    Costs           29 to 251 million FLOPs
    ==============  ==========================================

    Parameters
    ----------
    return_X_y : bool, default=False
        Whether to return ``(data, target)`` instead of a Bunch.
    as_frame : bool, default=False
        Whether the data are a DataFrame with columns ``exit0__feature0`` and so on, and the target is a Series.

    Returns
    -------
    data : sklearn.utils.Bunch
        A dictionary whose keys are also attributes:

        data : ExitArray or DataFrame of shape (5000, 346)
            Features and logits in float32. A DataFrame has costs and classes in its ``attrs``.
        target : ndarray or Series of shape (5000,) of int
            The class of each image.
        frame : DataFrame of shape (5000, 347) or None
            Data and target, with ``as_frame=True``.
        feature_names : list of str
            Names of the columns.
        target_names : ndarray of shape (10,) of str
            Names of the classes.
        DESCR : str
            Origin, use and licence of the data.
    (data, target) : tuple
        With ``return_X_y=True``.

    Examples
    --------
    >>> from skexit.datasets import load_cifar10_resnet56
    >>> outputs = load_cifar10_resnet56()
    >>> outputs.data
    ExitArray(5000 rows, 346 columns, 9 exits, float32)
    >>> outputs.data.layout.cost_fractions.round(2)
    array([0.12, 0.23, 0.34, 0.45, 0.56, 0.67, 0.77, 0.89, 1.  ])
    >>> outputs.target_names[outputs.target[:3]]
    array(['cat', 'ship', 'ship'], dtype='<U10')
    """
    with resources.as_file(_DATA / "cifar10_resnet56.npz") as path, np.load(path, allow_pickle=False) as file:
        target, target_names, costs = file["target"].astype(np.int64), file["target_names"], file["costs"]
        features = [file[f"features{k}"].astype(np.float32) for k in range(len(costs))]
        logits = [None] * (len(costs) - 1) + [file["logits"].astype(np.float32)]
    X: Any = stack_exits(logits, features, costs=costs, cost_unit="FLOPs", classes=np.arange(len(target_names)))
    feature_names, frame = X.layout.column_names(), None
    if as_frame:
        import pandas as pd

        X, target = X.to_frame(), pd.Series(target, name="target")
        frame = X.assign(target=target)
    if return_X_y:
        return X, target
    return Bunch(
        data=X,
        target=target,
        frame=frame,
        feature_names=feature_names,
        target_names=target_names,
        DESCR=(_DATA / "cifar10_resnet56.rst").read_text(encoding="utf-8"),
    )
