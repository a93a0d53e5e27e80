"""The smallest difference that an experiment of this size could have shown."""

from collections.abc import Sequence

import numpy as np

from tefusion.estimate import Estimate, Noise

POWER = 0.8


def resolvable(noise: Noise) -> float:
    """The true difference, as a fraction of 1, whose 95 % interval excludes zero in POWER of all repetitions.

    Repetitions draw new seeds and new videos, as many as there were.
    """
    return noise.exceeded(0.025) + noise.exceeded(1 - POWER)


def resolution(estimates: Sequence[Estimate]) -> str:
    """A line for below a table: the median comparison, the range, and where its noise comes from."""
    found = sorted(100 * resolvable(estimate.noise) for estimate in estimates)
    text = f"Smallest resolvable difference (95 % interval, {100 * POWER:.0f} % power): {np.median(found):.1f} points"
    if len(found) > 1:
        text += f" in the median of {len(found)} comparisons ({found[0]:.1f} to {found[-1]:.1f})"
    video = 100 * float(np.median([estimate.noise.video for estimate in estimates]))
    trained = [estimate.noise.seed for estimate in estimates if estimate.training_noise]
    if not trained:
        return f"{text}; questions alone, a standard error of {video:.1f}: one seed cannot show training noise."
    seed = 100 * float(np.median(trained))
    return f"{text}; standard errors: training {seed:.1f}, questions {video:.1f}."
