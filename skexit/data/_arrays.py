"""X as scikit-learn sees it: two-dimensional, lazy, and aware of its exits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skexit.data._blocks import as_numpy, logit_blocks, warn_of_probabilities
from skexit.data._layout import ExitLayout
from skexit.data._layout_of_input import attributes_of_frame, resolve_layout
from skexit.data._selection import SelectedExits, check_selected_exits, layout_of_exits
from skexit.data._sources import ArraySource, ColumnSource
from skexit.data._wrong_data import check_is_not_input
from skexit.utils._checks import check_positive

if TYPE_CHECKING:
    import pandas as pd


#: Rows that are worked on at a time where all rows are gone through; fewer where an exit has more bytes than these.
BATCH_ROWS, _BATCH_BYTES = 8192, 2**24
#: So many numbers are enough to learn a few parameters from, such as a temperature or the weights of a mixture.
_ENOUGH_NUMBERS = 10**7


class ExitArray:
    """Rows of a cache, or of arrays in memory, as a lazy two-dimensional X with a layout.

    Rows are read when they are asked for. Indexing rows (with a mask, integers or a slice) gives
    another ExitArray; ``numpy.asarray`` reads everything. An ExitArray on a cache pickles as the
    path of the cache and the row numbers, so that workers do not copy the data.

    Made by :func:`stack_exits`, :attr:`skexit.FeatureCache.X`, :meth:`from_array` and
    :meth:`from_frame`. :meth:`to_frame` makes a DataFrame; ``pandas.DataFrame(X)`` raises an error, because it would
    lose the names of the columns and the layout.

    Parameters
    ----------
    source : ColumnSource
        Where the columns are read.
    layout : ExitLayout
        Which columns are which exit's.
    rows : ndarray of shape (n_samples,) of int, default=None
        Rows of the source, in order; None means all.

    Attributes
    ----------
    layout : ExitLayout
        Columns, classes and costs of the exits.
    shape : tuple of int
        ``(n_samples, n_columns)``.
    dtype : numpy.dtype
        Type of the values that are read.

    Examples
    --------
    >>> import numpy as np
    >>> from skexit import stack_exits
    >>> X = stack_exits(features=[np.ones((4, 2)), np.zeros((4, 3))])
    >>> X
    ExitArray(4 rows, 5 columns, 2 exits, float64)
    >>> X[X.features(0)[:, 0] > 0].shape
    (4, 5)
    >>> X.features(1, rows=[0, 2]).shape
    (2, 3)
    """

    ndim = 2

    def __init__(self, source: ColumnSource, layout: ExitLayout, rows: NDArray[np.int64] | None = None) -> None:
        self.source = source
        self.layout = layout
        self._rows = rows

    @classmethod
    def from_array(cls, X: ArrayLike, layout: ExitLayout | int | None = None) -> ExitArray:
        """Give a two-dimensional array a layout; an int splits its columns evenly.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_columns), or (n_samples, n_exits, n_classes)
            Values of all columns; in three dimensions, the logits of every exit.
        layout : ExitLayout or int, default=None
            Columns of the exits, or the number of exits into which they split evenly. By default
            the layout of X, if it has one; otherwise X is one exit with features.

        Returns
        -------
        ExitArray
            X with this layout. The values are not copied.
        """
        if isinstance(X, ExitArray) and layout is None:
            return X
        check_is_not_input(X)
        array = as_numpy(X)
        if array.ndim == 3:
            exits = cls._from_logits(array)
            return exits if layout is None else relabel(exits, layout)
        if array.ndim != 2:
            raise ValueError(
                f"X has shape {array.shape}; pass one row per sample, as X.reshape(1, -1) of a single one, or logits "
                "of shape (n_samples, n_exits, n_classes)."
            )
        exits = cls(ArraySource(array), resolve_layout(layout, X, array.shape[1]))
        warn_of_probabilities([exits.logits(k) for k in range(exits.layout.n_exits)])
        return exits

    @classmethod
    def _from_logits(cls, logits: NDArray[Any]) -> ExitArray:
        blocks = [block for block in logit_blocks(logits, "X") if block is not None]
        return cls(ArraySource(np.hstack(blocks)), ExitLayout([block.shape[1] for block in blocks]))

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, layout: ExitLayout | None = None) -> ExitArray:
        """Read a DataFrame with columns ``exit0__logit0``, as :meth:`to_frame` makes it.

        Parameters
        ----------
        frame : pandas.DataFrame
            Its columns tell the layout, and its ``attrs`` classes and costs.
        layout : ExitLayout, default=None
            Layout to use instead.

        Returns
        -------
        ExitArray
            The values of the DataFrame, without its index.
        """
        return cls.from_array(frame, layout)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of samples and number of columns."""
        return len(self), self.layout.n_columns

    @property
    def dtype(self) -> np.dtype:
        """Type of the values that are read."""
        return self.source.dtype

    @property
    def stored_dtype(self) -> np.dtype:
        """Type in which a cache has stored the values, which may have fewer digits than `dtype`."""
        return getattr(self.source, "stored_dtype", self.dtype)

    @property
    def exit_names(self) -> list[str] | None:
        """Names that the exits have in the network, None where the layout does not have them."""
        names = self.layout.exit_names
        return None if names is None else list(names)

    def __len__(self) -> int:
        return self.source.n_rows if self._rows is None else len(self._rows)

    def logits(self, k: int, rows: ArrayLike | slice | None = None) -> NDArray[Any] | None:
        """Logits of exit `k`, None where the exit has none.

        Parameters
        ----------
        k : int
            The exit.
        rows : array-like of int or bool, or slice, default=None
            Rows of this array; None means all.

        Returns
        -------
        ndarray of shape (n_rows, n_classes), or None
            A copy, or a view of an array in memory.
        """
        if not self.layout.has_logits(k):
            return None
        return self.source.read(self.layout, k, "logits", self._source_rows(rows))

    def features(self, k: int, rows: ArrayLike | slice | None = None) -> NDArray[Any]:
        """Features of exit `k`.

        Parameters
        ----------
        k : int
            The exit.
        rows : array-like of int or bool, or slice, default=None
            Rows of this array; None means all.

        Returns
        -------
        ndarray of shape (n_rows, n_features)
            A copy, or a view of an array in memory.
        """
        return self.source.read(self.layout, k, "features", self._source_rows(rows))

    def with_layout(self, layout: ExitLayout) -> ExitArray:
        """The same rows and columns with other costs or classes.

        Parameters
        ----------
        layout : ExitLayout
            With the same columns.

        Returns
        -------
        ExitArray
            Shares its values with this one.
        """
        return ExitArray(self.source, layout, self._rows)

    def select_exits(self, exits: Sequence[int]) -> ExitArray:
        """The same rows with some of the exits, as if the network had no others.

        Parameters
        ----------
        exits : array-like of shape (n_selected,) of int
            The exits, counted from 0, in rising order.

        Returns
        -------
        ExitArray
            Read from the same source. Costs in its layout are without the heads of the exits that are left out.

        Raises
        ------
        ValueError
            If an exit does not exist, the exits do not rise, or there is none.

        Examples
        --------
        >>> import numpy as np
        >>> from skexit import stack_exits
        >>> X = stack_exits(features=[np.zeros((4, 2)), np.ones((4, 3)), np.ones((4, 1))])
        >>> X.select_exits([0, 2])
        ExitArray(4 rows, 3 columns, 2 exits, float64)
        """
        selected = check_selected_exits(exits, self.layout.n_exits)
        source = SelectedExits(self.source, self.layout, selected)
        return ExitArray(source, layout_of_exits(self.layout, selected), self._rows)

    def batches(self, batch_size: int | None = None) -> Iterator[slice]:
        """Slices that cover the rows in order.

        Parameters
        ----------
        batch_size : int, default=None
            Rows in a slice; the last may have fewer. By default 8,192, or as many as make 16 MiB of one
            exit in double precision.

        Yields
        ------
        slice
            Numbers of the rows of a batch.
        """
        if batch_size is not None:
            check_positive("batch_size", batch_size)
        else:
            classes = self.layout.classes
            widths = [*self.layout.n_logits, *self.layout.n_features, 1 if classes is None else len(classes)]
            batch_size = max(1, min(BATCH_ROWS, _BATCH_BYTES // (8 * max(widths))))
        for start in range(0, len(self), batch_size):
            yield slice(start, min(start + batch_size, len(self)))

    def to_frame(self, index: Any = None) -> pd.DataFrame:
        """The whole array as a DataFrame with named columns, its layout kept in ``attrs``.

        pandas does not ask an array for the names of its columns. Call this instead of ``pandas.DataFrame(X)``, which
        raises the ValueError "DataFrame constructor not properly called!".

        Parameters
        ----------
        index : array-like of shape (n_samples,), default=None
            Index of the DataFrame.

        Returns
        -------
        pandas.DataFrame
            One column for each logit and feature.
        """
        import pandas as pd

        frame = pd.DataFrame(np.asarray(self), columns=self.layout.column_names(), index=index)
        frame.attrs.update(attributes_of_frame(self.layout))
        return frame

    def __getitem__(self, key: Any) -> Any:
        columns: Any = ...
        if isinstance(key, tuple):
            if len(key) > 2:
                raise IndexError(
                    f"ExitArray has 2 dimensions, but the index has {len(key)}; give rows, or rows and columns."
                )
            key, columns = (*key, ..., ...)[:2]
        if key is ...:
            key = slice(None)
        if isinstance(key, int | np.integer) or (isinstance(key, np.ndarray) and key.ndim == 0):
            return np.asarray(self[[int(key)]])[0][columns]
        rows = self._absolute(key)
        taken = ExitArray(self.source, self.layout, rows.ravel())
        if columns is ... or (isinstance(columns, slice) and columns == slice(None)):
            if rows.ndim != 1:
                raise IndexError(
                    f"rows of an ExitArray are taken by an index of one dimension, not {rows.ndim}; flatten it, as by "
                    "numpy.ravel."
                )
            return taken
        if isinstance(key, slice):
            return np.asarray(taken)[:, columns]
        # As in NumPy, an array of rows and an array of columns are broadcast against each other.
        return np.asarray(taken)[np.arange(rows.size).reshape(rows.shape), columns]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False and not self._is_whole_array():
            raise ValueError("an ExitArray is read from its source, which needs a copy; pass copy=None.")
        if self._is_whole_array():
            return np.array(self.source.array, dtype=dtype, copy=copy)  # type: ignore[attr-defined]
        out = np.empty(self.shape, dtype=dtype or self.dtype)
        rows = self._source_rows(None)
        for k in range(self.layout.n_exits):
            if self.layout.has_logits(k):
                out[:, self.layout.logit_columns(k)] = self.source.read(self.layout, k, "logits", rows)
            if self.layout.n_features[k]:
                out[:, self.layout.feature_columns(k)] = self.source.read(self.layout, k, "features", rows)
        return out

    def __repr__(self) -> str:
        rows, columns = self.shape
        return f"ExitArray({rows} rows, {columns} columns, {self.layout.n_exits} exits, {self.dtype})"

    def _is_whole_array(self) -> bool:
        return self._rows is None and isinstance(self.source, ArraySource)

    def _absolute(self, rows: Any) -> NDArray[np.int64]:
        """Row numbers in the source for an index into this array."""
        if isinstance(rows, list) and not rows:
            rows = np.empty(0, dtype=np.int64)
        own = np.arange(self.source.n_rows) if self._rows is None else self._rows
        return own[rows if isinstance(rows, slice) else np.asarray(rows)]

    def _source_rows(self, rows: Any) -> Any:
        if rows is None:
            return slice(None) if self._rows is None else self._rows
        if self._rows is None and isinstance(rows, slice):
            return rows
        return self._absolute(rows)


def relabel(X: ExitArray, layout: ExitLayout | int) -> ExitArray:
    """X with other costs or classes; the columns must stay those of its exits."""
    layout = resolve_layout(layout, X, X.shape[1])
    if (X.layout.n_logits, X.layout.n_features) != (layout.n_logits, layout.n_features):
        raise ValueError(
            f"layout={layout} divides the columns otherwise than X, which knows its exits: {X.layout}. Leave "
            "layout=None, to go by X."
        )
    if not any(layout.feature_maps):
        layout = layout.replace(feature_maps=X.layout.feature_maps)
    if layout.exit_names is None:
        layout = layout.replace(exit_names=X.layout.exit_names)
    if layout.pools is None:
        layout = layout.replace(pools=X.layout.pools)
    known = X.layout.classes
    if layout.classes is None or known is None:
        return X.with_layout(layout if known is None else layout.replace(classes=known))
    if not np.array_equal(layout.classes, known):
        raise ValueError(
            f"layout has the classes {layout.classes.tolist()}, but X has {known.tolist()}. Leave layout=None or its "
            "classes=None to go by X; if X is wrong, correct it by X.with_layout(layout), a DataFrame by "
            "ExitArray.from_frame(X, layout)."
        )
    return X.with_layout(layout)


def enough_rows(n_rows: int, n_numbers: int) -> NDArray[np.intp]:
    """Rows with `n_numbers` numbers each that are enough to learn a few parameters from, evenly spaced.

    These are all rows, where they have no more than ten million numbers.
    """
    most = max(_ENOUGH_NUMBERS // n_numbers, 1)
    return np.arange(n_rows) if n_rows <= most else np.linspace(0, n_rows - 1, most).astype(np.intp)
