"""The paper's tables as Markdown, LaTeX and CSV."""

import csv
import io
from collections.abc import Iterable, Sequence

from tefusion.paper.tables import Number, Table
from tefusion.wording import NOTHING, grid

LEGEND = "Each cell: ours ± its standard error (seeds and questions), the paper's, the difference."
SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "_": r"\_",
    "#": r"\#",
    "$": r"\$",
    "{": r"\{",
    "}": r"\}",
}
SPECIAL |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", NOTHING: "--"}


def markdown(tables: Iterable[Table]) -> str:
    blocks = ["# The paper's tables", LEGEND]
    for table in tables:
        blocks.append(f"## Table {table.number}: {table.caption}")
        body = [[*row.place, *(said(row.numbers[name]) for name in table.columns)] for row in table.rows]
        blocks.append("\n".join(grid([*table.heads, *table.columns.values()], body)))
        blocks += [table.note] if table.note else []
    return "\n\n".join(blocks) + "\n"


def said(number: Number) -> str:
    """Nothing where neither ran nor printed it."""
    if number.ours is None and number.paper is None:
        return NOTHING
    error = "" if number.error is None else f" ± {number.error:.1f}"
    ours = NOTHING if number.ours is None else f"{number.ours:.1f}{error}"
    return " · ".join([ours, one(number.paper), one(number.difference, sign="+")])


def one(value: float | None, sign: str = "") -> str:
    return NOTHING if value is None else f"{value:{sign}.1f}"


def latex(tables: Iterable[Table]) -> str:
    """Tabulars for \\usepackage{booktabs}: three columns for each of the table's, ours, the paper's, the difference."""
    return "\n".join(["% \\usepackage{booktabs}", *(tabular(table) for table in tables)])


def tabular(table: Table) -> str:
    heads, names = len(table.heads), list(table.columns)
    top = [f"\\multicolumn{{3}}{{c}}{{{escaped(title)}}}" for title in table.columns.values()]
    rules = [f"\\cmidrule(lr){{{heads + 3 * i + 1}-{heads + 3 * i + 3}}}" for i in range(len(names))]
    lines = [
        f"% Table {table.number}: {table.caption}. {table.note}",
        f"\\begin{{tabular}}{{{'l' * heads}{'rrr' * len(names)}}}",
        "\\toprule",
        row([""] * heads + top),
        "".join(rules),
        row([escaped(head) for head in table.heads] + ["ours", "paper", "$\\Delta$"] * len(names)),
        "\\midrule",
    ]
    for line in table.rows:
        numbers = [text for name in names for text in in_three(line.numbers[name])]
        lines.append(row([escaped(place) for place in line.place] + numbers))
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + " \\\\"


def in_three(number: Number) -> list[str]:
    error = "" if number.error is None else f" \\pm {number.error:.1f}"
    ours = "--" if number.ours is None else f"${number.ours:.1f}{error}$"
    rest = [
        "--" if value is None else f"${value:{sign}.1f}$"
        for value, sign in ((number.paper, ""), (number.difference, "+"))
    ]
    return [ours, *rest]


def escaped(text: str) -> str:
    return "".join(SPECIAL.get(letter, letter) for letter in text)


def as_csv(tables: Iterable[Table]) -> str:
    """One number a line, in percent; seeds as seed:accuracy pairs."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "row", "column", "ours", "error", "by_seed", "paper", "difference"])
    for table in tables:
        for line in table.rows:
            place = " ".join(f"{head}={value}" for head, value in zip(table.heads, line.place, strict=True) if value)
            for name in table.columns:
                number = line.numbers[name]
                seeds = " ".join(f"{seed}:{value:.3f}" for seed, value in (number.by_seed or {}).items())
                values = [number.ours, number.error, number.paper, number.difference]
                ours, error, paper, difference = ("" if value is None else f"{value:.3f}" for value in values)
                writer.writerow([table.number, place, name, ours, error, seeds, paper, difference])
    return text.getvalue()
