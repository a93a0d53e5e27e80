"""A paired difference over runs and questions, both of them a sample: seeds and videos are crossed random factors.

Resampling seeds with replacement is no way to an interval: five of them hold the truth between the ends of their
resampled means about nine times in ten. Here each factor gives a variance, and the seeds' half of the noise keeps the
heavy tails of Student's t with as few degrees of freedom as there are seeds (`results/coverage.md`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tefusion.estimate import Estimate, Noise
from tefusion.statistics import Array, checked


@dataclass(frozen=True)
class Variances:
    """Of the mean: each contains the share of single answers; `both` is that share alone (with the CR1 corrections
    of Cameron, Gelbach and Miller's two-way clustering)."""

    seed: float
    video: float
    both: float


def paired(pairs: Mapping[int, tuple[ArrayLike, ArrayLike]], clusters: Sequence | NDArray) -> Estimate:
    """mean(a) - mean(b) of {seed: (a, b)}: the same questions in the same order for all, `clusters` their videos.

    With one seed the noise is that of the questions only.
    """
    if not pairs:
        raise ValueError("a paired difference needs at least one seed")
    rows = [_difference(a, b) for a, b in pairs.values()]
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"seeds answered different numbers of questions: {sorted({len(row) for row in rows})}")
    by_seed = np.stack(rows)
    return Estimate(float(by_seed.mean()), noise(by_seed, clusters))


def noise(by_seed: Array, clusters: Sequence | NDArray) -> Noise:
    """Of the mean of values (seeds, questions)."""
    found = variances(by_seed, clusters)
    videos = len(set(clusters))
    if len(by_seed) == 1:
        return Noise(np.sqrt(found.video), videos)
    # Single answers are in both: they stay with the seeds, whose few degrees of freedom they share.
    video = np.sqrt(max(found.video - found.both, 0.0))
    return Noise(float(video), videos, float(np.sqrt(found.seed)), len(by_seed))


def variances(by_seed: Array, clusters: Sequence | NDArray) -> Variances:
    question_means, groups = checked(by_seed.mean(axis=0), clusters)
    seeds, questions = by_seed.shape
    mean, seed_means, videos = by_seed.mean(), by_seed.mean(axis=1), groups.max() + 1
    widen = videos / (videos - 1)
    video = widen * np.sum(np.bincount(groups, question_means - mean) ** 2) / questions**2
    if seeds == 1:
        return Variances(0.0, float(video), 0.0)
    left = by_seed - seed_means[:, None] - question_means + mean
    sums = np.stack([np.bincount(groups, row) for row in left])
    both = widen * seeds / (seeds - 1) * np.sum(sums**2) / (seeds * questions) ** 2
    return Variances(float(np.var(seed_means, ddof=1) / seeds), float(video), float(both))


def _difference(a: ArrayLike, b: ArrayLike) -> Array:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"a pair must answer the same questions, got shapes {first.shape} and {second.shape}")
    return first - second
