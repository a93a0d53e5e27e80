"""A difference of two accuracies with its noise: an interval, a p-value, and what could have been told apart."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tefusion.statistics import student_quantile, student_tail

GRID = (np.arange(2000) + 0.5) / 2000


@dataclass(frozen=True)
class Noise:
    """The error of a mean over runs and videos: two independent parts, as standard errors in fractions of 1.

    `seed` is what training leaves open, with Student's t of seeds - 1 degrees of freedom; `video` what the choice of
    videos does, with Student's t of videos - 1. One seed cannot show the first.
    """

    video: float
    videos: int
    seed: float = 0.0
    seeds: int = 1

    @property
    def stderr(self) -> float:
        return float(np.hypot(self.seed, self.video))

    def tail(self, distance: float) -> float:
        """The chance that noise alone exceeds `distance`, on one side."""
        if not self.stderr:
            return 0.0 if distance > 0 else 1.0  # all answers agree: no noise, and nothing was ever different
        if not self.seed:
            return float(student_tail(distance / self.video, self.videos - 1))
        if not self.video:
            return float(student_tail(distance / self.seed, self.seeds - 1))
        training = self.seed * student_quantile(GRID, self.seeds - 1)
        return float(student_tail((distance - training) / self.video, self.videos - 1).mean())

    def exceeded(self, chance: float) -> float:
        """The distance that noise alone exceeds on one side with this chance."""
        if not self.stderr:
            return 0.0
        low, high = 0.0, self.stderr
        while self.tail(high) > chance:
            low, high = high, 2 * high
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self.tail(middle) > chance else (low, middle)
        return high


@dataclass(frozen=True)
class Estimate:
    """A difference of two accuracies as a fraction of 1."""

    value: float
    noise: Noise

    @cached_property
    def half(self) -> float:
        """Half of the 95 % interval."""
        return self.noise.exceeded(0.025)

    @property
    def low(self) -> float:
        return self.value - self.half

    @property
    def high(self) -> float:
        return self.value + self.half

    @property
    def stderr(self) -> float:
        return self.noise.stderr

    @property
    def seeds(self) -> int:
        return self.noise.seeds

    @cached_property
    def p(self) -> float:
        """Two-sided, of no difference; at most 0.05 just where the interval excludes zero."""
        return min(1.0, 2 * self.noise.tail(abs(self.value)))

    @property
    def training_noise(self) -> bool:
        """Whether the interval contains the noise between trainings: one seed cannot show it."""
        return self.seeds > 1

    def __str__(self) -> str:
        text = f"{100 * self.value:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        return text if self.training_noise else f"{text} (one seed: training noise is not in it)"
