"""Methods at one ratio as rows, the most accurate on top: seeds as points, the mean with its error, the ranks that are
left open; the baseline and the controls stand among them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tefusion.drawing import COLOURS, GREY, INK, MARKERS
from tefusion.naming import line_name
from tefusion.ranking import ranked, span, stage_of
from tefusion.results import mean, parts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOOKS = dict(zip(("before", "inside", "after"), zip(COLOURS[1:], MARKERS[1:], strict=True), strict=False))  # by stage


@dataclass(frozen=True)
class RankPanel:
    """`others`: the lines behind the methods, without a rank."""

    title: str
    methods: Sequence[Mapping]
    others: Sequence[Mapping]
    left: ClassVar[float] = 0.22  # where the axes begin, as a share of the width

    @property
    def inches(self) -> float:
        """In height."""
        return 1.25 + 0.22 * (len(self.methods) + len(self.others))


def draw_ranking(axes: "Axes", panel: RankPanel) -> None:
    axes.set_title(f"{panel.title}, {panel.methods[0]['questions']:,} questions", loc="left", fontsize=10, color=INK)
    lines = sorted([*panel.methods, *panel.others], key=lambda line: line["accuracy"])
    ranks = {id(one.line): span(one.alone) for one in ranked(panel.methods)}
    axes.set_yticks(range(len(lines)), [_name(line, lines) for line in lines])
    axes.set_ylim(-0.8, len(lines) - 0.2)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel("accuracy (%)")
    _beside(axes, len(lines) - 0.2, "accuracy", "rank")
    for y, (line, label) in enumerate(zip(lines, axes.get_yticklabels(), strict=True)):
        label.set_color(GREY if parts(line) else INK)
        _bar(axes, y, line)
        _beside(axes, y, f"{100 * line['accuracy']:.1f}", ranks.get(id(line), ""))
    _chance(axes, lines)
    _legend(axes, panel.methods)


def _beside(axes: "Axes", y: float, accuracy: str, rank: str) -> None:
    """Two columns right of the axes."""
    look: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "fontsize": 9, "color": INK}
    for x, text in ((1.18, accuracy), (1.37, rank)):
        axes.text(x, y, text, ha="right", va="center_baseline", **look)


def _bar(axes: "Axes", y: int, line: Mapping) -> None:
    """Seeds as points, the mean with its error over them."""
    colour, marker = _look(line)
    seeds = [100 * accuracy for accuracy in line["by_seed"].values()]
    axes.plot(seeds, [y] * len(seeds), marker="o", markersize=3, linestyle="", color=colour, alpha=0.45, zorder=2)
    look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 6, "markeredgecolor": "white"}
    error = 100 * (line["error"] or 0)
    axes.errorbar([100 * line["accuracy"]], [y], xerr=[error], capsize=2, elinewidth=1.3, zorder=3, **look)


def _name(line: Mapping, lines: Sequence[Mapping]) -> str:
    return line_name(line, lines).replace("none", "baseline", 1) if line["k"] == 1 else line_name(line, lines)


def _look(line: Mapping) -> tuple[str, str]:
    if parts(line):
        return GREY, "X"
    return LOOKS.get(stage_of(line), (INK, "o")) if line["k"] > 1 else (INK, "o")


def _chance(axes: "Axes", lines: Sequence[Mapping]) -> None:
    chance = mean(line["chance"] for line in lines)
    if chance is not None:
        axes.axvline(100 * chance, color=GREY, linestyle=":", linewidth=1.6, zorder=1.5)
        axes.text(100 * chance, -0.75, " chance", fontsize=8.5, color=GREY, va="bottom")


def _legend(axes: "Axes", methods: Sequence[Mapping]) -> None:
    """The stages that occur, in the order of a video's way, below the columns."""
    found = {stage_of(line) for line in methods}
    for stage, (colour, marker) in LOOKS.items():
        if stage in found:
            axes.plot([], [], color=colour, marker=marker, linestyle="", markeredgecolor="white", label=stage)
    if found & set(LOOKS):
        below: dict[str, Any] = {"loc": "upper right", "bbox_to_anchor": (1.38, 0), "borderaxespad": 2.2}
        axes.legend(ncols=3, frameon=False, fontsize=9, handlelength=1, handletextpad=0.4, columnspacing=1.2, **below)
