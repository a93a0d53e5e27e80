"""Accuracy over the compression ratio, like figure 6 of the paper, and over samples: a line a method, baseline and
controls behind. Methods at a single ratio are ranked instead."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tefusion.curves import Curve, curves, samples
from tefusion.drawing import GREY, INK, blank, looks_of, ratios_axis, save, tidy
from tefusion.naming import TITLES, method_name
from tefusion.rank_panel import RankPanel, draw_ranking
from tefusion.ranking import is_ranking
from tefusion.results import by_start, is_primary, mean, parts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def write_figure(lines: Sequence[Mapping], folder: str | Path) -> list[Path]:
    """figure.png and figure.svg of the lines of `table`; nothing is written where no method has a finished cell."""
    return save(lambda: draw(lines), Path(folder) / "figure") if panels(lines) else []


@dataclass(frozen=True)
class Panel:
    """The lines of one protocol: `methods` over k, `base` and `controls` behind them."""

    title: str
    methods: Sequence[Mapping]
    base: Sequence[Mapping]
    controls: Sequence[Mapping] = ()
    left: ClassVar[float] = 0.085  # where the axes begin, as a share of the width
    inches: ClassVar[float] = 4.5  # in height


@dataclass(frozen=True)
class CurvePanel:
    """Learning curves of the methods at one k, over those of the baseline and of fewer frames with as many tokens."""

    title: str
    methods: Sequence[Curve]
    behind: Sequence[Curve]
    left: ClassVar[float] = Panel.left
    inches: ClassVar[float] = Panel.inches


def panels(lines: Sequence[Mapping]) -> list[Panel | RankPanel | CurvePanel]:
    return [*protocol_panels(lines), *curve_panels(lines)]


def draw(lines: Sequence[Mapping]) -> "Figure":
    """One panel under another: every number of input frames, every fixed decoder length, then learning curves."""
    shown = panels(lines)
    whole = sum(panel.inches for panel in shown)
    figure, bottom = blank(7.4, whole), 0.0
    for panel in reversed(shown):
        box = (panel.left, (bottom + 0.675) / whole, 0.705 - panel.left, (panel.inches - 1.035) / whole)
        DRAW[type(panel)](figure.add_axes(box), panel)
        bottom += panel.inches
    note = "Bars and band: standard error of the mean, seeds and questions together."
    if max(len(line["by_seed"]) for line in lines) == 1:
        note = "Bars and band: standard error over questions. One seed: training noise is not in them."
    figure.text(0.085, 0.09 / whole, note, fontsize=8, color="#666666")
    return figure


def curve_panels(lines: Sequence[Mapping]) -> list[CurvePanel]:
    """One for every number of input frames and k that has any, those of each init apart."""
    found = []
    for start, chosen in by_start(lines).items():
        every = curves(chosen)
        methods = [curve for curve in every if curve[0]["k"] > 1 and not parts(curve[0])]
        for frames, k in sorted({(curve[0]["n_input"], curve[0]["k"]) for curve in methods}):
            mine = [curve for curve in methods if (curve[0]["n_input"], curve[0]["k"]) == (frames, k)]
            behind = [curve for curve in every if _behind(curve[0], mine[0][0])]
            found.append(CurvePanel(f"{frames} input frames, k = {k}{start}", mine, behind))
    return found


def _behind(line: Mapping, method: Mapping) -> bool:
    """The baseline on the same frames, and fewer frames that leave the decoder as many tokens."""
    if line["compressor"] != "none" or line["size"] != method["size"]:
        return False
    if "fewer_frames" in parts(line):
        return line["l_decoder"] == method["l_decoder"]
    return not parts(line) and line["n_input"] == method["n_input"]


def protocol_panels(lines: Sequence[Mapping]) -> list[Panel | RankPanel]:
    """Of the primary lines, those of each init apart."""
    primary = [line for line in lines if is_primary(line)]
    found = [(start, panel) for start, chosen in by_start(primary).items() for panel in _protocols(chosen)]
    named = [replace(panel, title=panel.title + start) for start, panel in found if panel.methods]
    return [_as_ranking(panel) if is_ranking(panel.methods) else panel for panel in named]


def _as_ranking(panel: Panel) -> RankPanel:
    """With the controls that leave the decoder as many tokens as the methods, or none of the video to compress."""
    tokens = {line["l_decoder"] for line in panel.methods}
    everywhere = frozenset({"text_only", "one_frame"})
    controls = [line for line in panel.controls if parts(line) & everywhere or line["l_decoder"] in tokens]
    return RankPanel(f"{panel.title}, k = {panel.methods[0]['k']}", panel.methods, [*panel.base, *controls])


def _protocols(lines: Sequence[Mapping]) -> list[Panel]:
    methods = [line for line in lines if not parts(line)]
    controls = [line for line in lines if parts(line)]
    panels = []
    for frames in sorted({line["n_input"] for line in methods if line["by_input"]}):
        chosen = [line for line in methods if line["n_input"] == frames]
        panels.append(Panel(f"{frames} input frames", *_compressed(chosen), controls))
    for length in sorted({length for line in methods for length in line["n_per_k"]}):
        chosen = [line for line in lines if matched(line, length)]
        panels.append(Panel(f"{length}·k input frames, the same decoder tokens at every k", *_compressed(chosen)))
    return panels


def _compressed(lines: list[Mapping]) -> tuple[list[Mapping], list[Mapping]]:
    return [line for line in lines if line["k"] > 1], [line for line in lines if line["k"] == 1]


def matched(line: Mapping, length: int) -> bool:
    """Whether the line belongs to the protocol that gives the decoder `length` frames' worth of tokens."""
    return line["n_input"] == length * line["k"] and parts(line) <= {"one_frame", "fewer_frames"}


def _panel(axes: "Axes", panel: Panel) -> None:
    ratios_axis(axes, sorted({line["k"] for line in panel.methods}))
    tidy(axes)
    axes.set_xlabel("temporal compression ratio k")
    axes.set_ylabel("accuracy (%)")
    axes.set_title(f"{panel.title}, {panel.methods[0]['questions']:,} questions", loc="left", fontsize=10, color=INK)
    labels = [*_controls(axes, panel), *_chance(axes, panel), *_baseline(axes, panel), *_methods(axes, panel.methods)]
    low, high = axes.dataLim.intervaly
    axes.set_ylim(max(low - 3, -2), min(high + 3, 102))
    _label(axes, labels)


def _controls(axes: "Axes", panel: Panel) -> list[tuple]:
    """Thin and grey: controls without a ratio run across, the others stand at the ratio of equal decoder tokens."""
    labels = []
    for style, marker, part in zip(("-", "-.", "-", "--"), ("", "", "1", "2"), TITLES, strict=True):
        heights: dict[float, list[float]] = defaultdict(list)
        for control in (line for line in panel.controls if part in parts(line)):
            matches = [line["k"] for line in panel.methods if line["l_decoder"] == control["l_decoder"]][:1]
            for x in axes.get_xlim() if part in ("text_only", "one_frame") else matches:
                heights[x].append(100 * control["accuracy"])
        if heights:
            x, y = zip(*((x, np.mean(values)) for x, values in sorted(heights.items())), strict=True)
            look: dict[str, Any] = {"color": GREY, "linestyle": style, "marker": marker, "linewidth": 1}
            axes.plot(x, y, markersize=7, zorder=2, **look)
            labels.append((TITLES[part], y[-1], x[-1], look))
    return labels


def _chance(axes: "Axes", panel: Panel) -> list[tuple]:
    chance = mean(line["chance"] for line in panel.methods)
    if chance is None:
        return []
    look: dict[str, Any] = {"color": GREY, "linestyle": ":", "marker": "", "linewidth": 1.6}
    axes.axhline(100 * chance, zorder=1.5, **look)
    return [("chance", 100 * chance, axes.get_xlim()[1], look)]


def _baseline(axes: "Axes", panel: Panel) -> list[tuple]:
    labels = []
    for line in panel.base:
        level, error = 100 * line["accuracy"], 100 * (line["error"] or 0)
        look: dict[str, Any] = {"color": INK, "linestyle": "--", "marker": "", "linewidth": 1.4}
        axes.axhspan(level - error, level + error, color=INK, alpha=0.10, linewidth=0, zorder=1)
        axes.axhline(level, zorder=2.5, **look)
        name = method_name(line, panel.base).replace("none", "baseline", 1)
        labels.append((f"{name}, {line['n_input']} frames", level, axes.get_xlim()[1], look))
    return labels


def _methods(axes: "Axes", lines: Sequence[Mapping]) -> list[tuple]:
    names = list(dict.fromkeys(method_name(line, lines) for line in lines))
    looks = looks_of(names)
    octaves = float(np.log2(axes.get_xlim()[1] / axes.get_xlim()[0]))
    labels = []
    for place, name in enumerate(names):
        chosen = sorted((line for line in lines if method_name(line, lines) == name), key=lambda line: line["k"])
        # Side by side: bars at the same k would hide each other.
        x = [line["k"] * 2 ** (octaves * 0.01 * (place - (len(names) - 1) / 2)) for line in chosen]
        y = [100 * line["accuracy"] for line in chosen]
        bars = [100 * (line["error"] or 0) for line in chosen]
        look = {**looks[name], "linestyle": "-", "linewidth": 1.8}
        axes.errorbar(x, y, bars, capsize=2, elinewidth=1.1, markersize=6, markeredgecolor="white", zorder=3, **look)
        labels.append((name, y[-1], x[-1], look))
    return labels


def _curve_panel(axes: "Axes", panel: CurvePanel) -> None:
    ratios_axis(axes, sorted({samples(line) for curve in panel.methods for line in curve}), "{:,}")
    tidy(axes)
    axes.set_xlabel("training samples")
    axes.set_ylabel("accuracy (%)")
    axes.set_title(panel.title, loc="left", fontsize=10, color=INK)
    first = [curve[0] for curve in panel.methods]
    looks = looks_of([method_name(line, first) for line in first])
    labels = []
    for curve in panel.behind:
        control = bool(parts(curve[0]))
        look: dict[str, Any] = {"color": GREY if control else INK, "marker": "", "linestyle": "-" if control else "--"}
        name = TITLES["fewer_frames"] if control else f"baseline, {curve[0]['n_input']} frames"
        labels.append(_curve(axes, curve, name, look | {"linewidth": 1.2}))
    for curve, (name, look) in zip(panel.methods, looks.items(), strict=True):
        labels.append(_curve(axes, curve, name, {**look, "linestyle": "-", "linewidth": 1.8}))
    low, high = axes.dataLim.intervaly
    axes.set_ylim(max(low - 3, -2), min(high + 3, 102))
    _label(axes, labels)


def _curve(axes: "Axes", curve: Curve, name: str, look: dict[str, Any]) -> tuple:
    x, y = [samples(line) for line in curve], [100 * line["accuracy"] for line in curve]
    bars = [100 * (line["error"] or 0) for line in curve]
    axes.errorbar(x, y, bars, capsize=2, elinewidth=1.1, markersize=6, markeredgecolor="white", zorder=3, **look)
    return name, y[-1], x[-1], look


def _label(axes: "Axes", labels: list[tuple]) -> None:
    """Names stand right of the axes at the height of their line's end, moved apart until none touches another."""
    low, high = axes.get_ylim()
    height = axes.get_window_extent().height * 72 / axes.figure.dpi  # points
    ends = [(end - low) / (high - low) for _, end, _, _ in labels]
    order = np.argsort(ends, kind="stable")
    places = spread_out([ends[i] for i in order], gap=14 / height)
    blend = axes.get_yaxis_transform()
    for i, place in zip(order, places, strict=True):
        name, end, x, look = labels[i]
        y = low + place * (high - low)
        edge = np.log2(x / axes.get_xlim()[0]) / np.log2(axes.get_xlim()[1] / axes.get_xlim()[0])
        axes.plot(
            [edge, 1.0, 1.04], [end, end, y], color=look["color"], lw=0.6, alpha=0.6, transform=blend, clip_on=False
        )
        sample = {**look, "markeredgecolor": "white" if look["color"] != GREY else GREY}
        axes.plot([1.05, 1.085, 1.12], [y, y, y], markevery=[1], transform=blend, clip_on=False, markersize=6, **sample)
        axes.text(1.135, y, name, transform=blend, va="center", color=INK, fontsize=9.5)


def spread_out(ends: Sequence[float], gap: float) -> list[float]:
    """Ascending heights moved as little as possible until neighbours stand `gap` apart: blocks share a mean."""
    blocks: list[list[float]] = []  # [centre, members]
    for end in ends:
        blocks.append([end, 1])
        while len(blocks) > 1 and blocks[-1][0] - blocks[-2][0] < gap * (blocks[-1][1] + blocks[-2][1]) / 2:
            (right, many), (left, some) = blocks.pop(), blocks.pop()
            blocks.append([(left * some + right * many) / (some + many), some + many])
    return [centre + gap * (i - (many - 1) / 2) for centre, many in blocks for i in range(int(many))]


DRAW: Mapping[type, Callable[["Axes", Any], None]] = {
    Panel: _panel,
    RankPanel: draw_ranking,
    CurvePanel: _curve_panel,
}
