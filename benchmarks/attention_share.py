"""Where attention matters: its share of the encoder's FLOPs and of its floor on an H200, at each k.

    python benchmarks/attention_share.py

Rewrites the table of docs/attention.md. FLOPs are `tefusion.cost`'s; nothing here is a measured time.
"""

import os
from pathlib import Path

from tefusion.config import Run
from tefusion.cost import count
from tefusion.encoders import PRESETS

DOC = Path(__file__).parents[1] / "docs" / "attention.md"
START, END = "<!-- share -->\n", "<!-- /share -->"
SHAPES = [(224, k) for k in (1, 2, 4, 8, 16)] + [(448, 1), (448, 4), (1120, 1), (1120, 4)]  # pixels a side, k
FRAMES = 16
FLOPS_PER_SECOND = 0.79e15  # bf16 matrix products, measured on an H200
BYTES_PER_SECOND = 4.3e12  # copies, measured there too


def main() -> None:
    text = DOC.read_text(encoding="utf-8")
    unfinished = DOC.with_suffix(".part")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(filled(text))
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(DOC)


def filled(text: str) -> str:
    """Raises ValueError where the text has no place for the table."""
    if START not in text or END not in text:
        raise ValueError(f"the text has no place for the table: {START.strip()} and {END}")
    before, after = text.split(START)[0], text.split(END)[1]
    return f"{before}{START}{table()}{END}{after}"


def table() -> str:
    head = [
        *("pixels", "k", "tokens a group", "attention's FLOPs", "the encoder's", "share", "floor, us"),
        *("encoder with attention 1.25x as fast", "with attention free"),
    ]
    rows = [head, ["---:"] * len(head), *(row(side, k) for side, k in SHAPES)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows) + "\n"


def row(side: int, k: int) -> list[str]:
    attention, encoder = flops(side, k)
    share = attention / encoder
    return [
        *(str(side), str(k), f"{k * tokens(side):,}", f"{attention / 1e12:.2f} T", f"{encoder / 1e12:.1f} T"),
        *(f"{100 * share:.1f} %", f"{layer_floor(side, k):.2f}"),
        *(f"{1 / (1 - share + share / 1.25):.3f}x", f"{1 / (1 - share):.3f}x"),
    ]


def tokens(side: int) -> int:
    """Of a frame of GLM-4V-9B: patches and one class token."""
    return (side // PRESETS["glm4v-9b"].patch_size) ** 2 + 1


def flops(side: int, k: int) -> tuple[int, int]:
    """Of the attention's two products, and of the whole encoder, for one video of 16 frames."""
    run = Run(compressor="te_fusion", k=k, n_input=FRAMES, size=str(side), encoder="glm4v-9b", decoder="tiny")
    config, length = PRESETS["glm4v-9b"], k * tokens(side)
    return 4 * length**2 * (FRAMES // k) * config.width * config.depth, count(run)["encoder_flops"]


def layer_floor(side: int, k: int) -> float:
    """Microseconds of one frame in one layer: the larger of arithmetic, and reading qkv and writing out once."""
    width, n = PRESETS["glm4v-9b"].width, tokens(side)
    return 1e6 * max(4 * n * k * n * width / FLOPS_PER_SECOND, 4 * n * width * 2 / BYTES_PER_SECOND)


if __name__ == "__main__":
    main()
