"""How sure an accuracy is: questions cluster by video, runs vary by seed, comparisons are paired."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A difference of two accuracies as a fraction, with its 95 % interval; `seeds` pairs of runs stand behind it."""

    value: float
    low: float
    high: float
    stderr: float
    seeds: int = 1

    @property
    def training_noise(self) -> bool:
        """Whether the interval contains the noise between trainings: one seed cannot show it."""
        return self.seeds > 1

    def __str__(self) -> str:
        text = f"{100 * self.value:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        return text if self.training_noise else f"{text} (one seed: training noise is not in it)"


def clustered_stderr(correct: ArrayLike, clusters: Sequence | NDArray) -> float:
    """Standard error of the mean of `correct` where questions about one video (cluster) go right or wrong together.

    The cluster-robust sandwich for a mean with the CR1 correction G / (G - 1).
    """
    values, groups = _checked(correct, clusters)
    sums = np.bincount(groups, values - values.mean())
    return float(np.sqrt(len(sums) / (len(sums) - 1) * np.sum(sums**2)) / len(values))


def paired_difference(a: ArrayLike, b: ArrayLike, clusters: Sequence | NDArray) -> Estimate:
    """mean(a) - mean(b) on the same questions in the same order, from one run each."""
    difference = _difference(a, b)
    stderr = clustered_stderr(difference, clusters)
    value = float(difference.mean())
    half = float(student_quantile(0.975, len(set(clusters)) - 1)) * stderr
    return Estimate(value, value - half, value + half, stderr)


def paired_over_seeds(
    pairs: Mapping[int, tuple[ArrayLike, ArrayLike]], clusters: Sequence | NDArray, draws: int = 2000
) -> Estimate:
    """The paired difference over runs as well as questions, both of them a sample: {seed: (a, b)}.

    Videos are resampled with replacement. Seeds are not: redrawing three of them ends at the worst and the best one,
    and the truth lies outside that range one time in four. The seeds' half of every draw comes from Student's t with
    seeds - 1 degrees of freedom instead. Both halves contain the noise of single answers, so the interval errs on
    the wide side where training noise is small.
    """
    if not pairs:
        raise ValueError("a paired difference over seeds needs at least one seed")
    if len(pairs) == 1:
        return paired_difference(*next(iter(pairs.values())), clusters)
    rows = [_difference(a, b) for a, b in pairs.values()]
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"seeds answered different numbers of questions: {sorted({len(row) for row in rows})}")
    by_seed = np.stack(rows)
    question_mean = by_seed.mean(axis=0)
    value, seeds = float(by_seed.mean()), len(by_seed)
    seed_stderr = float(by_seed.mean(axis=1).std(ddof=1) / np.sqrt(seeds))
    rng = np.random.default_rng(0)
    # Evenly spaced quantiles in random order: 2,000 free draws from a heavy tail would move the interval by 8 %.
    student = rng.permutation(student_quantile((np.arange(draws) + 0.5) / draws, seeds - 1))
    sampled = value + seed_stderr * student + _bootstrap_errors(question_mean, clusters, draws, rng)
    low, high = np.quantile(sampled, [0.025, 0.975])
    stderr = float(np.hypot(seed_stderr, clustered_stderr(question_mean, clusters)))
    return Estimate(value, float(low), float(high), stderr, seeds)


def student_quantile(probability: ArrayLike, freedom: int) -> Array:
    """Quantiles of Student's t. With t = sqrt(freedom) tan(angle) its density in the angle is cos^(freedom - 1)."""
    # The density is negligible beyond 40 / sqrt(freedom): a grid that follows it stays fine at any freedom.
    edge = min(np.pi / 2, 40 / np.sqrt(freedom))
    angle = np.linspace(-edge, edge, 20001)
    density = np.maximum(np.cos(angle), 0.0) ** (freedom - 1)
    cumulative = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return np.sqrt(freedom) * np.tan(np.interp(np.asarray(probability), cumulative / cumulative[-1], angle))


def _bootstrap_errors(values: Array, clusters: Sequence | NDArray, draws: int, rng: np.random.Generator) -> Array:
    """Mean over resampled clusters minus the mean, widened by sqrt(G / (G - 1)) as the CR1 correction does."""
    values, groups = _checked(values, clusters)
    sums, sizes = np.bincount(groups, values), np.bincount(groups)
    count = len(sums)
    step = max(1, 2_000_000 // count)  # bounds memory
    means = []
    for start in range(0, draws, step):
        picks = rng.integers(count, size=(min(step, draws - start), count), dtype=np.uint32)
        means.append(sums[picks].sum(axis=1) / sizes[picks].sum(axis=1))
    return (np.concatenate(means) - values.mean()) * np.sqrt(count / (count - 1))


def _difference(a: ArrayLike, b: ArrayLike) -> Array:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"a pair must answer the same questions, got shapes {first.shape} and {second.shape}")
    return first - second


def _checked(values: ArrayLike, clusters: Sequence | NDArray) -> tuple[Array, NDArray[np.intp]]:
    array = np.asarray(values, dtype=np.float64)
    names, groups = np.unique(np.asarray(clusters), return_inverse=True)
    if array.ndim != 1 or len(array) != len(groups):
        raise ValueError(f"{len(groups)} clusters for values of shape {array.shape}: one cluster a question is needed")
    if len(names) < 2:
        raise ValueError(f"an error clustered by video needs at least two videos, got {len(names)}")
    return array, groups
