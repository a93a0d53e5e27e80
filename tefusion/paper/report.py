"""Everything of the paper's layout, written into the folder `paper` of a run folder."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from tefusion.drawing import save
from tefusion.files import replace_file
from tefusion.paper import cost, figure6, missed
from tefusion.paper.benchmarks import TITLES, lines_by_benchmark, scored
from tefusion.paper.tables import tables
from tefusion.paper.text import as_csv, latex, markdown
from tefusion.results import parts
from tefusion.rows import ResultsError, read_results


def write_paper(folder: str | Path, more: Sequence[str | Path] = ()) -> Path:
    """Writes paper/paper.md, tables.csv, tables.tex and the figures as PNG and SVG into `folder`; returns paper.md.

    `more` names further run folders whose rows are merged in.
    """
    rows = read_results([folder, *more])
    found = lines_by_benchmark(rows)
    if not found:
        raise ResultsError(f"{folder} has no finished cell to lay out")
    out = Path(folder) / "paper"
    out.mkdir(exist_ok=True)
    laid = tables(found)
    replace_file(out / "tables.csv", as_csv(laid).encode())
    replace_file(out / "tables.tex", latex(laid).encode())
    said = "".join(f"- {line}.\n" for line in scored(rows))
    blocks = [markdown(laid), *([f"## Benchmarks\n\n{said}"] if said else []), *figures(found, out), *hard(found, out)]
    replace_file(out / "paper.md", "\n".join(blocks).encode())
    return out / "paper.md"


def figures(found: Mapping[str, list[dict]], out: Path) -> list[str]:
    """Figure 6 for every number of input frames, and the costs for every benchmark; as Markdown."""
    blocks = []
    compressed = [line for lines in found.values() for line in lines if line["k"] > 1 and not parts(line)]
    for frames in sorted({line["n_input"] for line in compressed if line["by_input"]}):
        picture = save(partial(figure6.draw, found, frames), out / f"figure6-{frames}")[0]
        title = f"Figure 6: {frames} input frames, over the compression ratio"
        blocks.append(f"## {title}\n\n![{title}]({picture.name})\n")
    for name, lines in found.items():
        title = f"Accuracy against cost, {TITLES[name]}"
        picture = save(partial(cost.draw, lines, TITLES[name]), out / f"cost-{name}")[0]
        blocks.append(f"## {title}\n\n![{title}]({picture.name})\n")
    return blocks


def hard(found: Mapping[str, list[dict]], out: Path) -> list[str]:
    """Figure 7 for every benchmark with at least two models' answers; as Markdown."""
    blocks = []
    for name, lines in found.items():
        if shares := missed.missed(lines):
            picture = save(partial(missed.draw, shares, TITLES[name]), out / f"figure7-{name}")[0]
            text = missed.markdown(shares, TITLES[name])
            blocks.append(f"{text}\n![Questions that all models miss]({picture.name})\n")
    return blocks
