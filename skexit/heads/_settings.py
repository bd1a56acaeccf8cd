"""Settings of training that all kinds of heads share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from skexit._nn._mini_batches import Training, number_of_epochs
from skexit.utils._optional import check_torch

#: ``l2="auto"``: the largest penalty, and for more rows, the penalty times the number of rows.
_LARGEST_PENALTY, _PENALTY_OF_ALL_ROWS = 3e-3, 15.0
#: ``dropout="auto"``: its highest value, and the number of rows up to which it has this value.
_MOST_DROPOUT, _ROWS_OF_MOST_DROPOUT = 0.4, 5000
#: ``max_epochs="auto"``: bounds of the number of passes, and in between, the number of passes times the number of rows.
_FEWEST_EPOCHS, _MOST_EPOCHS, _ENOUGH_VISITS = 8, 30, 500_000


@dataclass(frozen=True)
class TrainingSettings:
    """Parameters that ExitHeads and ConvExitHeads share."""

    dropout: float | str
    l2: float | str
    learning_rate: float
    max_epochs: int | str
    batch_size: int
    verbose: bool

    def penalty(self, n_rows: int) -> float:
        """Strength of the penalty for `n_rows` rows."""
        if self.l2 == "auto":
            return min(_LARGEST_PENALTY, _PENALTY_OF_ALL_ROWS / n_rows)
        return cast(float, self.l2)

    def dropout_share(self, n_rows: int) -> float:
        """Share of the hidden units that are left out, for `n_rows` rows."""
        if self.dropout == "auto":
            return _MOST_DROPOUT * min(1.0, (_ROWS_OF_MOST_DROPOUT / n_rows) ** 0.5)
        return cast(float, self.dropout)

    def by_mini_batches(self, n_rows: int, name: str) -> Training:
        """Settings of mini-batches for `n_rows` rows; raises an ImportError if torch is not installed.

        `name` is the name of the estimator, for the error.
        """
        check_torch(f"{name} trains by mini-batches with")
        n_epochs = number_of_epochs(self.max_epochs, n_rows, _FEWEST_EPOCHS, _MOST_EPOCHS, _ENOUGH_VISITS)
        return Training(self.learning_rate, self.penalty(n_rows), n_epochs, self.batch_size)
