"""How sure an accuracy is where questions cluster by video; Student's t."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def clustered_stderr(correct: ArrayLike, clusters: Sequence | NDArray) -> float:
    """Standard error of the mean of `correct` where questions about one video (cluster) go right or wrong together.

    The cluster-robust sandwich for a mean with the CR1 correction G / (G - 1).
    """
    values, groups = checked(correct, clusters)
    sums = np.bincount(groups, values - values.mean())
    return float(np.sqrt(len(sums) / (len(sums) - 1) * np.sum(sums**2)) / len(values))


def checked(values: ArrayLike, clusters: Sequence | NDArray) -> tuple[Array, NDArray[np.intp]]:
    """The values as numbers, and the place of each one's cluster among the clusters' sorted names."""
    array = np.asarray(values, dtype=np.float64)
    names, groups = np.unique(np.asarray(clusters), return_inverse=True)
    if array.ndim != 1 or len(array) != len(groups):
        raise ValueError(f"{len(groups)} clusters for values of shape {array.shape}: one cluster a question is needed")
    if len(names) < 2:
        raise ValueError(f"an error clustered by video needs at least two videos, got {len(names)}")
    return array, groups


def student_quantile(probability: ArrayLike, freedom: int) -> Array:
    """Quantiles of Student's t."""
    angle, cumulative = _student(freedom)
    return np.sqrt(freedom) * np.tan(np.interp(np.asarray(probability), cumulative, angle))


def student_tail(t: ArrayLike, freedom: int) -> Array:
    """The chance that Student's t exceeds `t`."""
    angle, cumulative = _student(freedom)
    return np.interp(np.arctan(-np.asarray(t) / np.sqrt(freedom)), angle, cumulative)


@lru_cache(maxsize=64)
def _student(freedom: int) -> tuple[Array, Array]:
    """With t = sqrt(freedom) tan(angle) the density in the angle is cos^(freedom - 1): a grid of it, summed up."""
    # The density is negligible beyond 40 / sqrt(freedom): a grid that follows it stays fine at any freedom.
    edge = min(np.pi / 2, 40 / np.sqrt(freedom))
    angle = np.linspace(-edge, edge, 20001)
    density = np.maximum(np.cos(angle), 0.0) ** (freedom - 1)
    cumulative = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return angle, cumulative / cumulative[-1]
