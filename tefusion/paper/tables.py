"""Tables 3, 4, 7 and 8 of the paper as data: ours, the paper's, and the difference, cell by cell."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tefusion.data.paper import BENCHMARKS, paper_table3, paper_tables
from tefusion.estimate import Estimate
from tefusion.figure import matched, method_name
from tefusion.paper.benchmarks import GENERATED, TITLES
from tefusion.resolution import resolution
from tefusion.results import METHODS, parts
from tefusion.score import CATEGORIES

OWN_MODEL = (16, 4, "te_fusion")  # table 3's last row, "TE Fusion (k=4)"


@dataclass(frozen=True)
class Number:
    """Percent; `error` is ours, of seeds and questions. None where a number was not run, or not printed."""

    ours: float | None = None
    error: float | None = None
    by_seed: Mapping[int, float] | None = None
    paper: float | None = None

    @property
    def difference(self) -> float | None:
        return None if self.ours is None or self.paper is None else self.ours - self.paper


@dataclass(frozen=True)
class Row:
    """`place` says which row this is, `numbers` holds one for every column."""

    place: tuple[str, ...]
    numbers: Mapping[str, Number]


@dataclass(frozen=True)
class Table:
    number: str
    caption: str
    heads: tuple[str, ...]
    columns: Mapping[str, str]
    rows: Sequence[Row]
    note: str


Key = tuple[int, int, str]  # input frames, k, method


def tables(found: Mapping[str, list[dict]]) -> list[Table]:
    """`found` holds the lines of each benchmark."""
    return [table3(found), table4(found), table7(found), table8(found)]


def table7(found: Mapping[str, list[dict]]) -> Table:
    """A fixed number of decoder tokens: input frames / k stays, k grows."""
    return by_length("7", found, lambda length: True, columns(found, BENCHMARKS))


def table4(found: Mapping[str, list[dict]]) -> Table:
    """Table 7 at four, without LVBench."""
    shown = [name for name in BENCHMARKS if name != "lvbench"]
    return by_length("4", found, lambda length: length == 4, columns(found, shown))


def by_length(
    number: str, found: Mapping[str, list[dict]], keep: Callable[[int], bool], shown: Mapping[str, str]
) -> Table:
    printed = {key: row for length, key, row in cells("7") if keep(length)}
    lengths = {key[0] // key[1] for key in printed}
    lengths |= {length for lines in found.values() for line in lines for length in line["n_per_k"]}
    lengths = {length for length in lengths if keep(length)}
    chosen = {
        name: [line for line in lines if any(matched(line, length) for length in lengths)]
        for name, lines in found.items()
    }
    rows = [
        Row((str(key[0] // key[1]), str(key[0]), str(key[1]), label), numbers)
        for key, label, numbers in sorted(
            merged(chosen, printed, shown), key=lambda row: (row[0][0] // row[0][1], row[0][1], order(row[0]))
        )
    ]
    caption = "the same number of decoder tokens: input frames divided by k stay the same"
    heads = ("frames / k", "frames", "k", "method")
    return Table(number, caption, heads, shown, rows, note(chosen, "over_same_tokens"))


def table8(found: Mapping[str, list[dict]]) -> Table:
    """A fixed number of input frames."""
    printed = {key: row for _, key, row in cells("8")}
    chosen = {name: [line for line in lines if line["by_input"] and not parts(line)] for name, lines in found.items()}
    shown = columns(found, BENCHMARKS)
    rows = [
        Row((str(key[0]), label, str(key[1])), numbers)
        for key, label, numbers in sorted(
            merged(chosen, printed, shown), key=lambda row: (row[0][0], order(row[0]), row[0][1])
        )
    ]
    caption = "the same number of input frames"
    return Table("8", caption, ("frames", "method", "k"), shown, rows, note(chosen, "over_baseline"))


def table3(found: Mapping[str, list[dict]]) -> Table:
    """One model a row. The generated set asks the same six categories, which makes its numbers no MotionBench."""
    name = next((name for name in (BENCHMARKS[0], GENERATED) if name in found), None)
    lines = [line for line in found.get(name or "", []) if not parts(line)]
    shown = {"dev": "dev", "test": "test"} | {short: short for short in CATEGORIES.values()}
    rows = []
    for row in paper_table3():
        ours = [line for line in lines if row["model"].startswith("TE Fusion") and key_of(line) == OWN_MODEL]
        line = ours[0] if len(ours) == 1 and name != GENERATED else None
        numbers = {head: replace(ours_of(line, head), paper=100 * float(row[head])) for head in shown}
        rows.append(Row((row["model"], row["llm"], row["frames"]), numbers))
        lines = [other for other in lines if other is not line]
    for line in lines:
        place = (f"{method_name(line, lines)} (k={line['k']})", str(line["decoder"]), str(line["n_input"]))
        rows.append(Row(place, {head: ours_of(line, head) for head in shown}))
    caption = f"by category; ours on {TITLES[name]}" if name else "by category"
    if name == GENERATED:
        caption += ", which is not the paper's benchmark: no differences"
    chosen = {"": [line for line in lines if line["by_input"]]}
    return Table("3", caption, ("model", "decoder", "frames"), shown, rows, note(chosen, "over_baseline"))


def ours_of(line: Mapping | None, head: str) -> Number:
    """One of table 3's columns; MotionBench keeps the answers of its test split."""
    if line is None or head == "test":
        return Number()
    if head == "dev":
        return of_line(line)
    share = next((line["by_category"][name] for name in (head, LONG[head]) if name in line["by_category"]), None)
    return Number(None if share is None else 100 * share)


LONG = {short: name for name, short in CATEGORIES.items()}


def of_line(line: Mapping) -> Number:
    error = None if line["error"] is None else 100 * line["error"]
    return Number(100 * line["accuracy"], error, {seed: 100 * value for seed, value in line["by_seed"].items()})


def merged(
    chosen: Mapping[str, list[dict]], printed: Mapping[Key, Mapping[str, str]], shown: Mapping[str, str]
) -> Iterable[tuple[Key, str, dict[str, Number]]]:
    """Every row that is ours or the paper's. Lines that differ in a further setting are rows of their own."""
    ours: dict[tuple[Key, str], dict[str, Mapping]] = {(key, key[2]): {} for key in printed}
    for name, lines in chosen.items():
        for line in lines:
            ours.setdefault((key_of(line), method_name(line, lines)), {})[name] = line
    for key, label in list(ours):
        if not ours[key, label] and any(other == key and lines for (other, _), lines in ours.items()):
            del ours[key, label]  # the paper's number stands beside each of ours
    for (key, label), lines_of in ours.items():
        numbers = {}
        for name in shown:
            value = printed.get(key, {}).get(name)
            mine = of_line(lines_of[name]) if name in lines_of else Number()
            numbers[name] = replace(mine, paper=float(value) if value else None)
        yield key, label, numbers


def columns(found: Mapping[str, list[dict]], shown: Sequence[str]) -> dict[str, str]:
    """The paper's, after those that only we have."""
    return {name: title for name, title in TITLES.items() if name in shown or (name == GENERATED and name in found)}


def cells(number: str) -> Iterable[tuple[int, Key, dict[str, str]]]:
    for row in paper_tables():
        if row["table"] == number:
            yield int(row["n_input_over_k"] or 0), (int(row["n_input"]), int(row["k"]), row["method"]), row


def key_of(line: Mapping) -> Key:
    return line["n_input"], line["k"], line["compressor"]


def order(key: Key) -> tuple[int, str]:
    return (METHODS.index(key[2]) if key[2] in METHODS else len(METHODS)), key[2]


def note(chosen: Mapping[str, list[dict]], compared: str) -> str:
    found: list[Estimate] = [line[compared] for lines in chosen.values() for line in lines if line[compared]]
    return resolution(found) if found else ""
