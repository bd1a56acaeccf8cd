"""Transformers of scikit-learn, applied to the features of each exit."""

from __future__ import annotations

import copy
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import OneToOneFeatureMixin, clone
from sklearn.utils import Tags, get_tags
from sklearn.utils.validation import check_is_fitted

from skexit.data import ExitArray, ExitLayout
from skexit.data._overlays import OverlaidSource
from skexit.data._validation import read_features, validate_exits, validate_new_exits
from skexit.heads._semi_supervision import rows_and_labels_for
from skexit.heads._transformer import LayoutTransformer
from skexit.utils._module_names import set_module
from skexit.utils._sklearn import HasMethods, Interval, _fit_context


@set_module("skexit")
class ExitTransformer(LayoutTransformer):
    """Apply a scikit-learn transformer to the features of each exit; logits do not change.

    A scaler or PCA on all columns of X would mix the exits and lose the layout of X. This class fits one transformer
    for each exit that has features. The result is an :class:`~skexit.ExitArray` with the same costs and classes. Put it
    before heads and policies in a pipeline. :class:`~skexit.ExitHeads` needs no scaler, because it standardises
    features itself.

    Parameters
    ----------
    transformer : estimator with `fit` and `transform`
        One copy is fitted for each exit that has features. It may change the number of features.
    %(layout)s

    Attributes
    ----------
    transformers_ : list of estimator or None
        The fitted transformer of each exit; None for an exit without features.
    layout_ : ExitLayout
        Layout of the X that was fitted.
    layout_out_ : ExitLayout
        Layout of the X that ``transform`` returns. ``feature_maps`` are kept if the transformer returns one feature for
        each feature, as StandardScaler does.
    %(columns)s

    See Also
    --------
    ExitHeads : Classifiers at the exits.

    Notes
    -----
    Features are transformed when they are read, in double precision. ``fit`` reads batches of 8,192 rows, or of as many
    as take 16 MiB. If there are several batches and the transformer has ``partial_fit``, it learns in one pass over
    batches of equal size. Any other transformer gets all rows of an exit in memory.

    A live network, :class:`~skexit.runtime.EarlyExitModel`, applies the transformers on the CPU. Linear
    ones, such as StandardScaler and PCA, can be exported to ONNX.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.decomposition import PCA
    >>> from sklearn.pipeline import make_pipeline
    >>> from skexit import ExitHeads, ExitTransformer, ThresholdPolicy, stack_exits
    >>> rng = np.random.default_rng(0)
    >>> y = rng.integers(2, size=200)
    >>> X = stack_exits(features=[y[:, None] + rng.normal(size=(200, 5)), 3 * y[:, None] + rng.normal(size=(200, 8))])
    >>> pca = ExitTransformer(PCA(2)).fit(X)
    >>> pca.transform(X)
    ExitArray(200 rows, 4 columns, 2 exits, float64)
    >>> pipeline = make_pipeline(pca, ExitHeads(), ThresholdPolicy(budget=0.7)).fit(X, y)
    >>> pipeline[-1].costs_.tolist()
    [0.5, 1.0]
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "transformer": [HasMethods(["fit", "transform"])],
        "layout": [ExitLayout, Interval(Integral, 1, None, closed="left"), None],
    }

    transformers_: list[Any]

    def __init__(self, transformer: Any, *, layout: ExitLayout | int | None = None) -> None:
        self.transformer = transformer
        self.layout = layout

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: ArrayLike | None = None) -> ExitTransformer:
        """Fit a transformer at each exit that has features.

        Parameters
        ----------
        X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
            Logits and features of the exits.
        y : array-like of shape (n_samples,), default=None
            Labels, for transformers that need them. If some rows have no label, -1, a transformer that needs labels
            learns from the labelled rows only. A transformer that needs no labels learns from all rows, without `y`. An
            estimator of :mod:`sklearn.semi_supervised` gets all rows, with -1.

        Returns
        -------
        self : ExitTransformer
            The fitted transformer.

        Raises
        ------
        ValueError
            If X does not match its layout, features are not finite, or no row has a label and the transformer needs
            labels.
        """
        exits, labels = validate_exits(self, X, y)
        exits, labels = rows_and_labels_for(self.transformer, exits, labels)
        self._layout_in = self.layout_ = exits.layout
        self._dtype_in = exits.stored_dtype.name
        self.transformers_ = [
            self._fit_exit(exits, k, labels) if width else None for k, width in enumerate(exits.layout.n_features)
        ]
        widths = [
            self.exit_features(k, read_features(exits, k, slice(0, 1))).shape[1] for k in range(exits.layout.n_exits)
        ]
        maps = exits.layout.feature_maps if isinstance(self.transformer, OneToOneFeatureMixin) else None
        self.layout_out_ = exits.layout.replace(n_features=widths, feature_maps=maps)
        return self

    def _fit_exit(self, X: ExitArray, k: int, y: NDArray[Any] | None) -> Any:
        transformer = clone(self.transformer)
        n_batches = len(list(X.batches()))
        if n_batches == 1 or not hasattr(transformer, "partial_fit"):
            return transformer.fit(read_features(X, k), y)
        # Batches of equal size, because some transformers, such as IncrementalPCA, need a minimum number of rows.
        for rows in np.array_split(np.arange(len(X)), n_batches):
            transformer.partial_fit(read_features(X, k, rows), None if y is None else y[rows])
        return transformer

    def transform(self, X: Any) -> Any:
        """Transform the features of each exit, when they are read.

        Parameters
        ----------
        X : ExitArray, DataFrame or array-like of shape (n_samples, n_columns)
            Logits and features of the exits.

        Returns
        -------
        ExitArray of shape (n_samples, n_columns_out)
            A DataFrame after ``set_output(transform="pandas")``.
        """
        check_is_fitted(self)
        new = validate_new_exits(self, X)
        out = self.layout_out_
        layout = new.layout.replace(n_features=out.n_features, feature_maps=out.feature_maps)
        return self._output(_TransformedFeatures(new, self), X, layout)

    def exit_features(self, k: int, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Transform the features of exit `k`.

        Parameters
        ----------
        k : int
            The exit, counted from 0.
        features : ndarray of shape (n_samples, n_features)
            Features of the exit, as they are in X.

        Returns
        -------
        ndarray of shape (n_samples, n_features_out)
            The transformed features. For an exit without a transformer, `features` as they are.
        """
        transformer = self.transformers_[k]
        if transformer is None:
            return features
        if len(features) == 0:
            return np.empty((0, self.layout_out_.n_features[k]))
        transformed = transformer.transform(features)
        dense = transformed.toarray() if hasattr(transformed, "toarray") else transformed
        return np.asarray(dense, dtype=np.float64)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = get_tags(self.transformer).target_tags.required
        return tags


class _TransformedFeatures(OverlaidSource):
    """The columns of an ExitArray, with transformed features."""

    def __init__(self, base: ExitArray, transformer: ExitTransformer) -> None:
        super().__init__(base, np.dtype(np.float64))
        self.transformer = copy.copy(transformer)  # a later fit must not change these features

    def read(self, layout: ExitLayout, k: int, part: str, rows: Any) -> NDArray[Any]:
        if part == "logits":
            return self.read_logits(k, rows)
        return self.transformer.exit_features(k, read_features(self.base, k, rows))
