"""The numbers MotionBench (arXiv 2501.02955) prints: tables 7 and 8 by method and k, table 3 by model."""

import csv
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
BENCHMARKS = ("motionbench_dev", "mvbench", "lvbench", "videomme_short", "videomme_medium", "videomme_long")


@cache
def paper_tables() -> tuple[dict[str, str], ...]:
    """Tables 7 and 8, one cell a row, accuracies in percent; `n_input_over_k` is empty in table 8."""
    return _read("paper_tables.csv")


@cache
def paper_table3() -> tuple[dict[str, str], ...]:
    """Table 3, one model a row, accuracies as fractions: dev, test, then the six categories."""
    return _read("paper_table3.csv")


def printed(method: str, k: int, n_input: int, benchmark: str = "motionbench_dev") -> tuple[float, ...]:
    """Every value in percent the paper prints for this cell: empty where none, two where tables 7 and 8 disagree."""
    if benchmark not in BENCHMARKS:
        raise ValueError(f"benchmark {benchmark!r} is not in the paper's tables: {', '.join(BENCHMARKS)}")
    cell = (method, str(k), str(n_input))
    values = [float(row[benchmark]) for row in paper_tables() if (row["method"], row["k"], row["n_input"]) == cell]
    return tuple(dict.fromkeys(values))


def _read(name: str) -> tuple[dict[str, str], ...]:
    with (FOLDER / name).open(newline="", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))
