"""How every figure looks, and how it becomes files."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tefusion.files import replace_file
from tefusion.results import METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by colour-blind readers; markers say the same once more.
COLOURS = ("#333333", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#7A5195", "#8C6D31")
MARKERS = "hsD^vopX*"
GREY = "#8A8A8A"
INK = "#222222"


def save(draw: Callable[[], "Figure"], stem: Path) -> list[Path]:
    """What `draw` makes as stem.png and stem.svg: the same results give the same bytes."""
    import matplotlib as mpl

    # A fixed salt and no date: the same results give the same file.
    style: Any = {"font.size": 10, "font.family": "DejaVu Sans", "svg.hashsalt": "tefusion", "svg.fonttype": "none"}
    with mpl.rc_context(style):
        figure = draw()
        paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
        for path, metadata in zip(paths, ({"Software": None}, {"Date": None}), strict=True):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=path.suffix[1:], dpi=200, metadata=metadata, bbox_inches="tight")
            replace_file(path, buffer.getvalue())
    return paths


def looks_of(names: Sequence[str]) -> dict[str, dict]:
    """A method of the paper looks the same in every figure; others take what is left, in order."""
    left = [place for place in range(len(COLOURS)) if place >= len(METHODS) or METHODS[place] not in names]
    looks, spare = {}, 0
    for name in names:
        if name in METHODS:
            place = METHODS.index(name)
        else:
            place, spare = left[spare % len(left)] if left else spare % len(COLOURS), spare + 1
        looks[name] = {"color": COLOURS[place], "marker": MARKERS[place % len(MARKERS)]}
    return looks


def blank(width: float, height: float) -> "Figure":
    """A figure in inches, without any window behind it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: "Axes") -> None:
    """Nothing but what carries numbers."""
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def ratios_axis(axes: "Axes", ratios: Sequence[int], written: str = "{}") -> None:
    """Equal steps of x are equal factors; every number that occurs has a tick, `written` as this says."""
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log", base=2)
    axes.set_xlim(ratios[0] * 2**-0.3, ratios[-1] * 2**0.3)
    axes.set_xticks(ratios, [written.format(k) for k in ratios])
    axes.xaxis.set_minor_locator(NullLocator())
