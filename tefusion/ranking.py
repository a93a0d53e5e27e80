"""Methods at one ratio in the order of their accuracy, with the ranks that their differences leave open.

Of two methods one is ahead where their paired difference is told from zero. A method's rank then lies between one more
than are ahead of it and all less those that it is ahead of; with the pairs corrected together these intervals hold for
all methods at once (Mogstad, Romano, Shaikh and Wilhelm, Rev. Econ. Stud. 91, 2024).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from tefusion.estimate import Estimate
from tefusion.family import LEVEL
from tefusion.holm import holm
from tefusion.naming import method_name
from tefusion.results import difference, parts
from tefusion.wording import NOTHING, count, grid, interval, mean_spread, number

Ranks = tuple[int, int]  # the best and the worst that is left open


@dataclass(frozen=True)
class Ranked:
    """`alone`: ranks by each pair's own test; `together`: after Holm's correction over all pairs. `behind` is the
    difference to the first line; None for itself, and where they share no answers."""

    line: Mapping
    behind: Estimate | None
    alone: Ranks
    together: Ranks


def is_ranking(lines: Sequence[Mapping]) -> bool:
    """Three methods or more at a single ratio, where an axis of ratios would have one point."""
    methods = compressed(lines)
    return len(methods) > 2 and len({line["k"] for line in methods}) == 1


def compressed(lines: Sequence[Mapping]) -> list[Mapping]:
    return [line for line in lines if line["k"] > 1 and not parts(line)]


def ranked(methods: Sequence[Mapping]) -> list[Ranked]:
    """The most accurate first."""
    order = sorted(methods, key=lambda line: -line["accuracy"])
    places = combinations(range(len(order)), 2)
    pairs = {(i, j): found for i, j in places if (found := difference(order[j], order[i]))}
    tests = [found.p for found in pairs.values()]
    alone, together = (open_ranks(len(order), pairs, p_values) for p_values in (tests, holm(tests)))
    return [Ranked(line, pairs.get((0, i)), alone[i], together[i]) for i, line in enumerate(order)]


def open_ranks(
    methods: int, pairs: Mapping[tuple[int, int], Estimate], p_values: Sequence[float]
) -> list[tuple[int, int]]:
    """`pairs` holds j - i under (i, j), `p_values` one for each."""
    best, worst = [1] * methods, [methods] * methods
    for ((i, j), found), p in zip(pairs.items(), p_values, strict=True):
        if p <= LEVEL:
            ahead, behind = (i, j) if found.value < 0 else (j, i)
            best[behind] += 1
            worst[ahead] -= 1
    return list(zip(best, worst, strict=True))


def stage_of(line: Mapping) -> str:
    """Where the line's method acts; nothing for one that is not installed here."""
    from tefusion.compressors import COMPRESSORS  # loads PyTorch

    method = COMPRESSORS.get(line["compressor"].partition(":")[0])
    return method.stage if method else NOTHING


def ranking(lines: Sequence[Mapping]) -> list[str]:
    """What a report says of a protocol's lines; nothing where they are no ranking."""
    if not is_ranking(lines):
        return []
    heads = ["method", "stage", "accuracy", "behind the first", "rank by each pair", "rank by all pairs"]
    heads += ["decoder tokens", "GFLOPs", "parameters of the compressor"]
    body = []
    for one in ranked(compressed(lines)):
        line, flops = one.line, one.line["flops"]
        cells = [method_name(line, lines), stage_of(line), mean_spread(line), interval(one.behind)]
        cells += [span(one.alone), span(one.together), line["l_decoder"], number(flops and flops / 1e9)]
        body.append([*cells, count(line["compressor_params"])])
    text = "Each method against each other, paired by seed and question: one is ahead of another where p <="
    text += f" {LEVEL}, for each pair by itself or after Holm's correction over all pairs. A rank is what is left open"
    text += " between the methods ahead of a line and those behind it. Exploratory."
    return [text, "", *grid(heads, body)]


def span(ranks: Ranks) -> str:
    best, worst = ranks
    return f"{best}" if best == worst else f"{best} to {worst}"
