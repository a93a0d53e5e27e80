"""Two single checkpoints on the same questions: exact tests that assume no distribution."""

from collections.abc import Sequence
from itertools import product
from math import comb

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tefusion.statistics import checked

EXACT = 14  # videos up to which all 2^videos signs are tried
DRAWS = 20_000
ROUNDING = 1e-9


def sign_flip(a: ArrayLike, b: ArrayLike, clusters: Sequence | NDArray) -> float:
    """p of no difference, two-sided: which checkpoint is which is exchanged video by video.

    Says how sure the difference is over other videos, not over other trainings.
    """
    differences, groups = checked(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64), clusters)
    sums = np.bincount(groups, differences)
    sums = sums[sums != 0]
    found = abs(sums.sum()) - ROUNDING
    if len(sums) <= EXACT:
        signs = np.array(list(product((-1, 1), repeat=len(sums))))
        return float(np.mean(np.abs(signs @ sums) >= found))
    rng, reached, step = np.random.default_rng(0), 0, max(1, 2_000_000 // len(sums))  # bounds memory
    for start in range(0, DRAWS, step):
        signs = rng.integers(0, 2, (min(step, DRAWS - start), len(sums))) * 2 - 1
        reached += int(np.sum(np.abs(signs @ sums) >= found))
    return (reached + 1) / (DRAWS + 1)  # what was found is one of the possible signs itself


def mcnemar(a: ArrayLike, b: ArrayLike, clusters: Sequence | NDArray) -> float:
    """p of no difference, two-sided and exact, from the questions that just one of both answers.

    Raises ValueError where a video has several questions: their answers go together, which the test does not know.
    """
    first, second = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if len(set(clusters)) < len(clusters):
        asked = f"{len(clusters)} questions about {len(set(clusters))} videos"
        raise ValueError(f"McNemar's test needs one question a video, got {asked}")
    wins, losses = int(np.sum(first & ~second)), int(np.sum(~first & second))
    total = wins + losses
    tail = sum(comb(total, i) for i in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**total)
