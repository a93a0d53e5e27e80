"""Figure 7 of the paper: the share of questions that no model gets right, by category and by the video's duration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tefusion.drawing import COLOURS, INK, blank, tidy
from tefusion.results import Marks, parts
from tefusion.score import CATEGORIES, category_order
from tefusion.wording import grid, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BOUNDS = (0, 3, 6, 10, 20, 60, 180, 900, 3600)  # seconds
Groups = Mapping[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class Share:
    """Of a group's questions: missed by all models, and what guessing would miss; fractions of 1."""

    group: str
    missed: float
    guessing: float
    questions: int


@dataclass(frozen=True)
class Missed:
    models: int
    by_category: Sequence[Share]
    by_duration: Sequence[Share]


def missed(lines: Sequence[Mapping]) -> Missed | None:
    """A model is one cell: a method at one k and seed, without the controls. None where fewer than two answered the
    same questions."""
    marks = [one for line in lines if not parts(line) for one in line["marks"].values() if one]
    marks = [one for one in marks if one.uids == marks[0].uids]
    if len(marks) < 2:
        return None
    first, every = marks[0], np.all([one.correct == 0 for one in marks], axis=0)
    guessing = (1 - 1 / np.array(first.options)) ** len(marks)
    kinds = {name: np.array([one == name for one in first.categories]) for name in category_order(first.categories)}
    sorts = (shares(every, guessing, groups) for groups in (kinds, in_bins(first)))
    return Missed(len(marks), *sorts)


def shares(every: NDArray, guessing: NDArray, groups: Groups) -> list[Share]:
    return [Share(name, every[of].mean(), guessing[of].mean(), int(of.sum())) for name, of in groups.items()]


def in_bins(marks: Marks) -> dict[str, NDArray[np.bool_]]:
    """The questions about videos of known duration; no bin is empty."""
    seconds = np.array([np.nan if one is None else one for one in marks.durations])
    bins = {}
    for low, high in zip(BOUNDS, [*BOUNDS[1:], np.inf], strict=True):
        inside = (seconds >= low) & (seconds < high)
        if inside.any():
            bins[f"{low} to {high} s" if np.isfinite(high) else f"{low} s or more"] = inside
    return bins


def markdown(found: Missed, title: str) -> str:
    """The table behind the figure."""
    text = f"## Figure 7: questions that all {found.models} models miss, {title}"
    body = [
        [share.group, share.questions, percent(share.missed), percent(share.guessing)]
        for share in [*found.by_category, *found.by_duration]
    ]
    heads = ["category or duration", "questions", "missed by all (%)", "by as many guessers (%)"]
    return "\n".join([text, "", *grid(heads, body), ""])


def draw(found: Missed, title: str) -> "Figure":
    panels = [shares for shares in (found.by_category, found.by_duration) if shares]
    figure = blank(4.8 * len(panels), 3.4)
    for axes, shares in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
        bars(axes, shares)
    figure.suptitle(
        f"{title}: questions that all {found.models} models miss", x=0.02, ha="left", fontsize=10, color=INK
    )
    figure.tight_layout()
    return figure


def bars(axes: "Axes", shares: Sequence[Share]) -> None:
    tidy(axes)
    names = [CATEGORIES.get(share.group, share.group) for share in shares]
    heights = [100 * share.missed for share in shares]
    axes.bar(range(len(shares)), heights, color=COLOURS[2], width=0.65)
    for place, (height, share) in enumerate(zip(heights, shares, strict=True)):
        above = place, max(height, 100 * share.guessing)
        axes.annotate(f"{height:.0f} %", above, (0, 3), textcoords="offset points", ha="center", fontsize=8)
        axes.plot([place - 0.33, place + 0.33], [100 * share.guessing] * 2, color=INK, linewidth=1.2)
    axes.set_xticks(range(len(shares)), [f"{name}\n{s.questions:,}" for name, s in zip(names, shares, strict=True)])
    axes.tick_params(axis="x", labelsize=8)
    axes.set_ylabel("missed by all (%), line: guessing")
    axes.set_ylim(0, max(5.0, 1.15 * max([*heights, *(100 * share.guessing for share in shares)])))
