"""What mixes with what: how much each decoder token moves with each input frame, a figure and a table a family.

    python benchmarks/influence.py

Writes docs/influence-<family>.png and .svg, and the tables of docs/before.md, inside.md and after.md. Measured on the
preset `tiny` with every parameter moved at random, so that nothing hides behind an initial zero: this is what a method
can mix, not what a training makes of it.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange, reduce

from tefusion.compressors import COMPRESSORS
from tefusion.drawing import INK, blank, save
from tefusion.files import replace_file
from tefusion.vision import create_video_encoder
from tefusion.wording import grid

ROOT = Path(__file__).parents[1]
K, GROUPS, VIDEOS, SIDE = 4, 3, 2, 32
FAMILIES = ("before", "inside", "after")
BLOCK = re.compile(r"<!-- influence -->\n.*?<!-- /influence -->", re.DOTALL)


def members(family: str) -> list[str]:
    return [name for name, method in COMPRESSORS.items() if method.stage == family]


@torch.no_grad()
def influence(name: str) -> torch.Tensor:
    """(tokens, frames): the share of each frame in what a token moves by when frames are exchanged one at a time.
    Exactly zero where a frame does not reach a token."""
    torch.manual_seed(0)
    encoder, noise = create_video_encoder("tiny", name, K), torch.Generator().manual_seed(1)
    for parameter in encoder.parameters():
        parameter.add_(0.2 * torch.randn(parameter.shape, generator=noise))
    video, other = torch.randn(2, VIDEOS, GROUPS * K, 3, SIDE, SIDE, generator=noise)
    before, moved = encoder(video), []
    for frame in range(GROUPS * K):
        changed = video.clone()
        changed[:, frame] = other[:, frame]
        moved.append(reduce((encoder(changed) - before).norm(dim=-1), "b g m -> (g m)", "mean"))
    found = torch.stack(moved, dim=-1)
    return found / found.sum(-1, keepdim=True)


def table(family: str) -> str:
    """Shares in percent. `earlier`, `own` and `later` are groups as the middle one sees them; then the k frames within
    its own."""
    rows = []
    for name in members(family):
        found = rearrange(influence(name), "(g m) (h k) -> g m h k", g=GROUPS, k=K)[GROUPS // 2].mean(0)
        own = found[GROUPS // 2] / found[GROUPS // 2].sum()
        rows.append([f"`{name}`", *map(percent, found.sum(-1).tolist()), " ".join(map(percent, own.tolist()))])
    return "\n".join(grid(["method", "earlier", "own group", "later", f"frames 1 to {K} of the own"], rows))


def percent(share: float) -> str:
    """Nothing at all is a dash: a frame that does not reach a token."""
    return f"{100 * share:.0f}" if share else "-"


def draw(family: str, columns: int = 4) -> Any:
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, PowerNorm

    shades = ListedColormap(colormaps["Blues"](np.linspace(0.15, 1, 256))).with_extremes(bad="white")
    names = members(family)
    lines = -(-len(names) // columns)
    figure = blank(2.1 * columns, 2.45 * lines)
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for place, (one, name) in enumerate(zip(axes, names, strict=False)):
        found = influence(name).numpy()
        reached = np.ma.masked_equal(found, 0)
        one.imshow(reached, cmap=shades, norm=PowerNorm(0.5, 0, 0.5), interpolation="nearest", aspect="auto")
        one.set_title(name, fontsize=10, color=INK)
        for border in range(1, GROUPS):
            one.axvline(border * K - 0.5, color="#888888", linewidth=0.6)
            one.axhline(border * len(found) / GROUPS - 0.5, color="#888888", linewidth=0.6)
        one.set_xticks(range(0, GROUPS * K, K), range(1, GROUPS * K + 1, K), fontsize=8)
        one.set_yticks([])
        one.set_xlabel("input frame", fontsize=8)
        if place % columns == 0:
            one.set_ylabel("decoder token", fontsize=8)
    for one in axes[len(names) :]:
        one.set_axis_off()
    figure.tight_layout()
    return figure


def filled(text: str, made: str) -> str:
    """Raises ValueError where the page lacks the markers."""
    if not BLOCK.search(text):
        raise ValueError("the page has no <!-- influence --> block")
    return BLOCK.sub(lambda _: f"<!-- influence -->\n{made}\n<!-- /influence -->", text)


def main(families: Sequence[str] = FAMILIES) -> None:
    for family in families:
        save(lambda family=family: draw(family), ROOT / "docs" / f"influence-{family}")
        page = ROOT / "docs" / f"{family}.md"
        replace_file(page, filled(page.read_text(encoding="utf-8"), table(family)).encode())


if __name__ == "__main__":
    main()
