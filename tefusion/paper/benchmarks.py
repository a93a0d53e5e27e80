"""What a sweep was scored on, under the names of the paper's columns."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from tefusion.data.paper import BENCHMARKS
from tefusion.results import is_primary, table

GENERATED = "generated"
TITLES = {
    GENERATED: "generated motion",
    "motionbench_dev": "MotionBench dev",
    "mvbench": "MVBench",
    "lvbench": "LVBench",
    "videomme_short": "Video-MME short",
    "videomme_medium": "Video-MME medium",
    "videomme_long": "Video-MME long",
}


def lines_by_benchmark(rows: Sequence[Mapping]) -> dict[str, list[dict]]:
    """The primary lines of `table` for every benchmark that has any, in the order of the paper's columns."""
    found: dict[str, list[Mapping]] = defaultdict(list)
    for row in rows:
        if row["status"] == "done":
            found[benchmark_of(row)].append(row)
    lines = {name: [line for line in table(found[name]) if is_primary(line)] for name in TITLES if name in found}
    return {name: chosen for name, chosen in lines.items() if chosen}


def benchmark_of(row: Mapping) -> str:
    """The generated set is no benchmark of the paper's, whatever folder it lies in."""
    generated = row.get("generated", str(row.get("data", "")).split("-")[0] == "motion")
    return GENERATED if generated else BENCHMARKS[0]
