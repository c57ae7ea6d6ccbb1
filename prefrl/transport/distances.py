r"""Distances within one task, costs between two: what optimal transport reads of trajectories.

Gromov–Wasserstein needs only the distances inside each task (Mémoli 2011; Peyré, Cuturi and Solomon 2016), so the two
tasks may have different observations and actions. A cost between the tasks (the fused form, Vayer et al. 2020, arXiv
1811.02834) needs features that mean the same in both. Everything is float64.

Axes: n items (trajectories or windows) of the source, m of the target, T points of an item, F features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import ot
from scipy.spatial.distance import cdist, pdist, squareform

from prefrl.errors import InvalidData

__all__ = ["cosine_distances", "cross_cost", "euclidean_distances", "window_distances", "z_score"]

Array = np.ndarray


def euclidean_distances(features: Any, *, normalize: bool = True) -> Array:
    """(n, …) -> (n, n) Euclidean distances of items, divided by the largest where ``normalize``.

    An item's features are flattened: (n, T, F) compares time step with time step.

    >>> euclidean_distances([[0.0], [1.0], [4.0]])
    array([[0.  , 0.25, 1.  ],
           [0.25, 0.  , 0.75],
           [1.  , 0.75, 0.  ]])
    """
    items = _items(features, "features", at_least=2)
    return _normalized(squareform(pdist(items.reshape(len(items), -1))), normalize)


def cosine_distances(features: Any, *, normalize: bool = True) -> Array:
    """(n, …) -> (n, n): one minus the cosine of the angle between flattened items, divided by the largest.

    >>> cosine_distances([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]], normalize=False)
    array([[0., 1., 2.],
           [1., 0., 1.],
           [2., 1., 0.]])
    """
    items = _items(features, "features", at_least=2)
    items = items.reshape(len(items), -1)
    norms = np.linalg.norm(items, axis=1)
    if (norms == 0).any():
        raise InvalidData(
            f"Item {int(np.argmin(norms))} of the features is zero everywhere and has no direction: "
            "use Euclidean distances, or leave it out."
        )
    unit = items / norms[:, None]
    distances = np.clip(1 - unit @ unit.T, 0, 2)
    np.fill_diagonal(distances, 0)
    return _normalized((distances + distances.T) / 2, normalize)


def window_distances(windows: Any, *, normalize: bool = True) -> Array:
    """(n, T, F) -> (n, n): the 1-Wasserstein distance of each two windows as clouds of T points; time is ignored.

    About 0.1 ms a pair for 10 points: n = 150 takes a second. Thin the points out before.

    >>> window_distances([[[0.0], [2.0]], [[2.0], [0.0]], [[1.0], [3.0]]], normalize=False)
    array([[0., 0., 1.],
           [0., 0., 1.],
           [1., 1., 0.]])
    """
    clouds = _items(windows, "windows", at_least=2)
    if clouds.ndim != 3:
        raise InvalidData(f"windows must have shape (n, T, F), but have {clouds.shape}.")
    n, T = clouds.shape[:2]
    weights = np.full(T, 1 / T)
    distances = np.zeros((n, n))
    for i in range(n):
        for j in range(i):
            distances[i, j] = distances[j, i] = ot.emd2(weights, weights, cdist(clouds[i], clouds[j]))
    return _normalized(distances, normalize)


def cross_cost(source: Any, target: Any) -> Array:
    """(n, F), (m, F) -> (n, m) squared distances of features z-scored within their task, divided by the largest.

    For features that mean the same in both tasks up to units, which the z-score removes.

    >>> cross_cost([[0.0], [1.0]], [[10.0], [30.0]])
    array([[0., 1.],
           [1., 0.]])
    """
    source, target = _items(source, "source features"), _items(target, "target features")
    if source.ndim != 2 or source.shape[1:] != target.shape[1:]:
        raise InvalidData(
            f"A cost between the tasks needs the same features in both, but the source has shape {source.shape} and "
            f"the target {target.shape}: give task-free summaries (n, F), or use plain Gromov-Wasserstein."
        )
    cost = cdist(z_score(source), z_score(target), "sqeuclidean")
    return cost / max(cost.max(), np.finfo(float).tiny)


def z_score(features: Any) -> Array:
    """(n, F) -> (n, F) with mean 0 and standard deviation 1 a column; a constant column becomes 0.

    >>> z_score([[1.0, 5.0], [3.0, 5.0]])
    array([[-1.,  0.],
           [ 1.,  0.]])
    """
    values = _items(features, "features")
    spread = values.std(0)
    constant = spread <= 1e-12 * np.abs(values).max(0, initial=0)
    return np.where(constant, 0.0, (values - values.mean(0)) / np.where(constant, 1.0, spread))


def _items(values: Any, name: str, *, at_least: int = 1) -> Array:
    """Finite float64 values of enough items, or an error that names them."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidData(f"The {name} must be an array of numbers, all items of one shape: {error}.") from None
    if array.ndim < 2 or len(array) < at_least or array.size == 0:
        raise InvalidData(
            f"The {name} have shape {array.shape}: at least {at_least} item{'s' * (at_least > 1)} of one or more "
            "numbers are needed. Give more trajectories."
        )
    bad = ~np.isfinite(array).reshape(len(array), -1).all(1)
    if bad.any():
        raise InvalidData(f"The {name} of item {int(bad.argmax())} hold NaN or infinite values: drop or repair it.")
    return array


def _normalized(distances: Array, normalize: bool) -> Array:
    largest = distances.max()
    if largest == 0:
        raise InvalidData(
            f"These are {len(distances)} constant trajectories (all distances 0): transport has nothing to tell them "
            "apart by. Choose other features, or more varied data."
        )
    return distances / largest if normalize else distances
