"""What a sweep may claim: one family of comparisons, corrected together; every other one is exploratory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tefusion.estimate import Estimate
from tefusion.holm import holm

LEVEL = 0.05
SEEDS = 5  # paired runs that a claim about a method needs
FAMILY = "over_same_tokens"  # each method against `none` at n_input / k, which leaves the decoder as many tokens


@dataclass(frozen=True)
class Comparison:
    """A member of the primary family; `adjusted` is its p-value after Holm's correction."""

    line: Mapping
    estimate: Estimate
    adjusted: float

    @property
    def verdict(self) -> str:
        if self.estimate.seeds < SEEDS:
            return f"no claim: {self.estimate.seeds} of {SEEDS} seeds"
        if self.adjusted > LEVEL:
            return "no difference shown"
        return "better" if self.estimate.value > 0 else "worse"


def primary_family(lines: Sequence[Mapping]) -> list[Comparison]:
    """One for each of the table's lines that has its control, in their order."""
    members = [line for line in lines if line[FAMILY]]
    adjusted = holm([line[FAMILY].p for line in members])
    return [Comparison(line, line[FAMILY], p) for line, p in zip(members, adjusted, strict=True)]
