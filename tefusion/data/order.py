"""The order of training examples: a pure function of seed and epoch, so that a run can go on from any step."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Order:
    """Batches of (epoch, example) for one of `world` processes, whose parts together are the global batch.

    The first `done` of the steps are left out: a run goes on with what it would have seen next.

    The global batch is the same for any number of processes; `accumulate` cuts it into equal parts, one after another.
    """

    examples: int
    batch: int
    steps: int
    seed: int
    accumulate: int = 1
    rank: int = 0
    world: int = 1
    done: int = 0

    def __post_init__(self):
        if self.batch % (self.accumulate * self.world):
            raise ValueError(
                f"a batch of {self.batch} does not divide over {self.world} processes x {self.accumulate} parts"
            )

    def __len__(self) -> int:
        return (self.steps - self.done) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        part = self.batch // (self.accumulate * self.world)
        for micro in range(self.done * self.accumulate, self.steps * self.accumulate):
            start = (micro * self.world + self.rank) * part
            yield [self.at(place) for place in range(start, start + part)]

    def at(self, place: int) -> tuple[int, int]:
        """Epoch and example at a place in the endless sequence of examples."""
        epoch, offset = divmod(place, self.examples)
        return epoch, int(shuffled(self.examples, self.seed, epoch)[offset])


@lru_cache(maxsize=2)  # a batch may reach into the next epoch
def shuffled(examples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(examples)
