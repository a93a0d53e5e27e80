"""What README says in numbers, printed by code: rewrites the blocks between its markers.

    python benchmarks/readme.py

Reads results/default/, results/full/ and results/zoo/ (copies of run folders), the zoo, and what `tefusion describe`
prints.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from tefusion.config import Run
from tefusion.describe import describe_run, zoo
from tefusion.files import replace_file
from tefusion.ranking import ranking
from tefusion.report import live_table, read_results, table

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"<!-- (\w+) -->\n(.*?)<!-- /\1 -->", re.DOTALL)


def main() -> None:
    readme = ROOT / "README.md"
    replace_file(readme, filled(readme.read_text(encoding="utf-8"), blocks(ROOT)).encode())


def blocks(root: Path) -> dict[str, str]:
    """Every block by the name of its marker."""
    described = describe_run(Run(compressor="te_fusion", k=4, n_input=16), device="cpu")
    return {
        "table": results(root, "default"),
        "full": results(root, "full"),
        "zoo": zoo() + "\n",
        "ranking": results(root, "zoo", in_order),
        "describe": fenced(f"$ tefusion describe compressor=te_fusion k=4 frames=16\n{described}"),
    }


def filled(text: str, blocks: Mapping[str, str]) -> str:
    """Raises ValueError where the text lacks one of the blocks or has a marker that is nobody's."""
    found = [match[1] for match in BLOCK.finditer(text)]
    if sorted(found) != sorted(blocks):
        raise ValueError(f"README has the blocks {sorted(found)} instead of {sorted(blocks)}")
    return BLOCK.sub(lambda match: f"<!-- {match[1]} -->\n{blocks[match[1]]}<!-- /{match[1]} -->", text)


def printed(rows: Sequence[Mapping]) -> str:
    """The table that the sweep itself prints."""
    paper = io.StringIO()
    Console(file=paper, width=80, color_system=None).print(live_table(rows))
    return fenced("\n".join(line.rstrip() for line in paper.getvalue().splitlines()))


def in_order(rows: Sequence[Mapping]) -> str:
    """The report's ranking."""
    return "\n".join(ranking(table(rows))) + "\n"


def results(root: Path, budget: str, shown: Callable[[Sequence[Mapping]], str] = printed) -> str:
    """What `shown` makes of a sweep's rows, where they come from, and the figure; a sentence where there is no
    result."""
    folder = root / "results" / budget
    if not any(folder.glob("results*.jsonl")):
        return f"No result of `budget={budget}` is recorded yet.\n"
    rows = read_results(folder)
    text = f"{shown(rows)}\n{origin(rows)} [The report](results/{budget}/report.md) has the intervals.\n"
    if (folder / "figure.png").is_file():
        text += f"\n![Accuracy with its errors](results/{budget}/figure.png)\n"
    return text


def origin(rows: Sequence[Mapping]) -> str:
    done = [row for row in rows if row["status"] == "done"]
    hours = sum(row.get("seconds") or 0 for row in done) / 3600
    says = [f"{len(done)} cells of {each(done, 'questions')} questions, {hours:.1f} hours of cells"]
    says += [f"{name} {each(rows, name)}" for name in ("protocol", "commit", "machine", "date")]
    return f"{'; '.join(says)}."


def each(rows: Sequence[Mapping], name: str) -> str:
    return ", ".join(sorted({str(row[name]) for row in rows if name in row}))


def fenced(text: str) -> str:
    return f"```console\n{text.rstrip()}\n```\n"


if __name__ == "__main__":
    main()
