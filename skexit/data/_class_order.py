"""Whether logits without names are in the order of the sorted labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from skexit.data._arrays import ExitArray
from skexit.data._labels import NAME_THE_LOGITS, UNLABELLED

#: Rows that are compared, at most.
_N_ROWS = 2000
#: Another order must be so much more accurate, and beyond chance by so many standard errors.
_MIN_GAIN, _MIN_ERRORS = 0.1, 4.0


def check_order_of_classes(X: ExitArray, classes: NDArray[np.generic], labels: NDArray[np.int64]) -> None:
    """Raise a ValueError if logits fit the labels better in another order than that of the sorted classes.

    Labels such as names do not say which logit is theirs. One half of the rows gives the order with the highest
    accuracy, and the other half shows whether it is better than the sorted order. `labels` are indices of `classes`,
    -1 for rows without one; some have one.
    """
    exits = [k for k in range(X.layout.n_exits) if X.layout.has_logits(k)]
    if X.layout.classes is not None or classes.dtype.kind in "iu" or not exits:
        return
    rows = np.flatnonzero(labels != UNLABELLED)
    # At random, because classes may take turns, so that every second row has some of them only.
    rows = np.random.RandomState(0).permutation(rows)[:_N_ROWS]
    logits = X.logits(exits[-1], rows)
    assert logits is not None
    predicted, true = logits.argmax(axis=1), labels[rows]
    counts = np.zeros((len(classes), len(classes)))
    np.add.at(counts, (predicted[::2], true[::2]), 1)
    class_of_logit = linear_sum_assignment(counts, maximize=True)[1]
    is_sorted, is_found = predicted[1::2] == true[1::2], class_of_logit[predicted[1::2]] == true[1::2]
    differences = is_found.astype(float) - is_sorted
    if differences.sum() <= max(_MIN_GAIN * len(differences), _MIN_ERRORS * np.sqrt(np.abs(differences).sum())):
        return
    raise ValueError(
        f"at exit {exits[-1]}, the logits have an accuracy of {is_sorted.mean():.1%} on y in the sorted order of the "
        f"classes, but of {is_found.mean():.1%} in the order {classes[class_of_logit].tolist()}. {NAME_THE_LOGITS} Or "
        f"give y as the numbers of the logits, 0 to {len(classes) - 1}."
    )
