"""results -> tables, caveats, figure: everything said is computed from the rows, what is missing included."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from tefusion.budgets import equal_flops, learning_curves
from tefusion.caveats import caveats, standard_errors_from_chance
from tefusion.data.paper import BENCHMARKS, paper_table3, printed
from tefusion.family import LEVEL, SEEDS, primary_family
from tefusion.figure import matched, write_figure
from tefusion.files import replace_file
from tefusion.live import live_table
from tefusion.naming import TITLES, method_name
from tefusion.paper.benchmarks import TITLES as BENCHMARK_TITLES
from tefusion.paper.benchmarks import asked_lines
from tefusion.paper.benchmarks import scored as benchmark_lines
from tefusion.ranking import ranking
from tefusion.resolution import resolution
from tefusion.results import WORLD, by_start, difference, is_primary, is_trial, method_order, parts, pruner, table
from tefusion.rows import ResultsError, is_set_aside, log_of, read_results
from tefusion.score import CATEGORIES, category_order
from tefusion.tuning import learning_rates
from tefusion.wording import NOTHING, count, grid, interval, mean_spread, number, p_value, percent, plural, short

__all__ = ["ResultsError", "live_table", "markdown", "read_results", "table", "write_report"]

COMPARED = {
    "over_baseline": "over the baseline (exploratory)",
    "over_same_tokens": "over fewer frames (primary)",
}  # column of a line: its heading
OWN = "the run's own"
MATCHED = {"over_same_tokens": "over the baseline (primary)"}


def write_report(folder: str | Path, more: Sequence[str | Path] = (), paper: bool = False) -> Path:
    """Writes results.csv (one line a cell), report.md, figure.png and figure.svg into `folder`; returns report.md.

    `more` names further run folders whose rows are merged in, `paper` sets the paper's printed numbers beside.
    """
    rows = read_results([folder, *more])
    lines = table(rows)
    folder = Path(folder)
    replace_file(folder / "results.csv", _csv(rows).encode())
    pictures = write_figure(lines, folder)
    picture = pictures[0].name if pictures else None
    replace_file(folder / "report.md", markdown(rows, lines, paper=paper, picture=picture).encode())
    return folder / "report.md"


def markdown(
    rows: Sequence[Mapping], lines: Sequence[Mapping] | None = None, paper: bool = False, picture: str | None = None
) -> str:
    """The report as GitHub Markdown; `lines` is `table(rows)` where it is at hand already."""
    lines, asked = table(rows) if lines is None else lines, asked_lines(rows)
    primary = [line for line in lines if is_primary(line)]
    scored = [row for row in rows if not is_trial(row)]
    sections = [
        ("# Temporal compressors, side by side", _ran(rows)),
        ("", [f"![Accuracy with its errors]({picture})"] if picture else []),
        ("## What may be claimed", _claims(primary, asked)),
        *_results(primary, paper),
        *((f"## Controls{start}", _controls(chosen)) for start, chosen in by_start(primary).items()),
        ("## Data-dependent length", _pruned(table(rows, pruned=True))),
        *_asked(scored, asked, paper),
        *_beside(lines, rows),
        ("## Learning rates", learning_rates(rows)),
        ("## The paper's numbers", _paper(lines) if paper else []),
        ("## Failed cells", _failed(rows)),
        ("## Videos that could not be decoded", _unreadable(rows)),
        ("## How to read these numbers", [f"- {caveat}" for caveat in caveats(scored, lines)]),
    ]
    blocks = ["\n".join([heading, "", *body]).strip("\n") for heading, body in sections if body]
    return "\n\n".join(blocks) + "\n"


def _beside(lines: Sequence[Mapping], rows: Sequence[Mapping]) -> Iterator[tuple[str, list[str]]]:
    """Equal FLOPs and learning curves, on the run's own questions and on every benchmark."""
    asked = {f", {BENCHMARK_TITLES[name]}": found for name, found in asked_lines(rows, every=True).items()}
    for where, found in ({"": lines} | asked).items():
        for start, chosen in by_start(found).items():
            sections = (*equal_flops(chosen), *learning_curves(chosen))
            yield from ((heading + where + start, body) for heading, body in sections)


def _ran(rows: Sequence[Mapping]) -> list[str]:
    scored = [row for row in rows if not is_trial(row)]
    done = [row for row in scored if row["status"] == "done"]
    versions = sorted({f"{name} {number}" for row in rows for name, number in (row.get("versions") or {}).items()})
    dates = sorted(str(row["date"]) for row in rows if row.get("date"))
    facts = [(name, _values(scored, name)) for name in ("budget", *WORLD, "size", "seed", "commit", "machine")]
    facts += [("versions", ", ".join(versions)), ("date", " to ".join(dict.fromkeys([*dates[:1], *dates[-1:]])))]
    hours = sum(row.get("seconds") or 0 for row in rows if row["status"] == "done") / 3600
    counts = f"{len(done)} done in {hours:.1f} hours, {len(scored) - len(done)} failed"
    if tried := len(rows) - len(scored):
        counts += f", after {plural(tried, 'trial')} of learning rates, their hours included"
    facts += [("cells", counts), ("questions a cell", _values(done, "questions"))]
    return grid(["what was run", ""], [[name, value] for name, value in facts if value])


def _values(rows: Iterable[Mapping], name: str) -> str:
    found = {row[name] for row in rows if row.get(name) not in (None, "")}
    return ", ".join(str(value) for value in sorted(found, key=lambda value: (str(type(value)), value)))


def _claims(lines: Sequence[Mapping], asked: Mapping[str, Sequence[Mapping]]) -> list[str]:
    """The primary family, corrected as one, whatever the questions are."""
    named = [(OWN, line, lines) for line in lines]
    named += [(BENCHMARK_TITLES[name], line, own) for name, own in asked.items() for line in own]
    family = primary_family([line for _, line, _ in named])
    if not family:
        return []
    places = {id(line): (name, own) for name, line, own in named}
    heads = ["method", *["questions"] * bool(asked), "k", "frames", "difference", "standard error", "p", "Holm's p"]
    heads += ["seeds", "verdict"]
    body = []
    for one in family:
        line, found = one.line, one.estimate
        name, own = places[id(line)]
        cells = [method_name(line, own), *[name] * bool(asked), line["k"], line["n_input"]]
        cells += [interval(found), percent(found.stderr)]
        body.append([*cells, p_value(found.p), p_value(one.adjusted), found.seeds, one.verdict])
    text = "The primary family: each method against `none` with its frames divided by k, which leaves the decoder as"
    text += f" many tokens. Holm's correction is over all {plural(len(family), 'comparison')} of this table; a claim"
    text += (
        f" needs p <= {LEVEL} after it and {SEEDS} paired seeds. Every other difference in this report is exploratory."
    )
    return [text, "", *grid(heads, body)]


def _results(lines: Sequence[Mapping], paper: bool) -> list[tuple[str, list[str]]]:
    """For each init, the tables of every protocol that was run."""
    sections = []
    for start, title, chosen, compared in _protocols(lines):
        table = _accuracy(chosen, compared, BENCHMARKS[0] if paper else None)
        sections += [(f"## Accuracy, {title}{start}", table), (f"## Ranking, {title}{start}", ranking(chosen))]
        sections.append((f"## Cost, {title}{start}", _cost(chosen)))
    return sections


def _asked(rows: Sequence[Mapping], asked: Mapping[str, Sequence[Mapping]], paper: bool) -> list[tuple[str, list[str]]]:
    """What was scored, then the tables of every benchmark's own protocols."""
    sections = [("## Benchmarks", [f"- {line}." for line in benchmark_lines(rows)])] if asked else []
    for name, lines in asked.items():
        for start, title, chosen, compared in _protocols(lines):
            body = _accuracy(chosen, compared, name if paper and name in BENCHMARKS else None)
            sections.append((f"## {BENCHMARK_TITLES[name]}, {title}{start}", body))
        for start, chosen in by_start(lines).items():
            sections.append((f"## Controls, {BENCHMARK_TITLES[name]}{start}", _controls(chosen)))
    return sections


def _protocols(lines: Sequence[Mapping]) -> Iterator[tuple[str, str, Sequence[Mapping], Mapping[str, str]]]:
    """For each init, fixed input frames and fixed decoder length: the heading's end and title, the lines, and what they
    are compared with."""
    for start, chosen in by_start(lines).items():
        for title, of_it, compared in _of_one_start(chosen):
            yield start, title, of_it, compared


def _of_one_start(lines: Sequence[Mapping]) -> Sequence[tuple[str, Sequence[Mapping], Mapping[str, str]]]:
    methods = [line for line in lines if not parts(line)]
    frames = sorted({line["n_input"] for line in methods if line["by_input"]})
    lengths = sorted({length for line in methods for length in line["n_per_k"]})
    protocols = [(f"{n} input frames", [line for line in methods if line["n_input"] == n], COMPARED) for n in frames]
    for length in lengths:
        chosen = [line for line in lines if matched(line, length)]
        protocols.append((f"{length}·k input frames: the same number of decoder tokens at every k", chosen, MATCHED))
    return protocols


def _accuracy(lines: Sequence[Mapping], compared: Mapping[str, str], paper: str | None) -> list[str]:
    """`paper` names the benchmark whose printed numbers stand beside."""
    seeds = sorted({seed for line in lines for seed in line["by_seed"]})
    names = category_order(name for line in lines for name in line["by_category"])
    heads = ["method", "k", "frames", "accuracy", *(f"seed {seed}" for seed in seeds)]
    compared = {name: head for name, head in compared.items() if any(line[name] for line in lines)}
    heads += compared.values()
    heads += [CATEGORIES.get(name, name) for name in names] + ["paper"] * bool(paper)
    body = []
    for line in lines:
        cells = [method_name(line, lines), line["k"], line["n_input"], mean_spread(line)]
        cells += [percent(line["by_seed"].get(seed)) for seed in seeds]
        cells += [interval(line[name]) for name in compared]
        cells += [percent(line["by_category"].get(name)) for name in names]
        body.append([*cells, _printed(line, paper)] if paper else cells)
    return [*grid(heads, body), *_resolution(lines, compared)]


def _resolution(lines: Sequence[Mapping], compared: Iterable[str]) -> list[str]:
    """From the table's own comparisons; where it has none, from those of any two of its lines."""
    estimates = [line[name] for line in lines for name in compared if line[name]]
    estimates = estimates or [found for pair in combinations(lines, 2) if (found := difference(*pair))]
    return ["", resolution(estimates)] if estimates else []


def _cost(lines: Sequence[Mapping]) -> list[str]:
    heads = ["method", "k", "decoder tokens", "encoder ms", "compressor ms", "prefill ms", "GFLOPs", "peak MB"]
    heads += ["parameters", "of the compressor", "seconds"]
    names = ["encoder_ms", "compressor_ms", "prefill_ms", "flops", "peak_memory_mb"]
    body = []
    for line in lines:
        numbers = [line[name] for name in names]
        numbers[3] = numbers[3] and numbers[3] / 1e9
        cells = [method_name(line, lines), line["k"], line["l_decoder"], *(number(value) for value in numbers)]
        body.append([*cells, count(line["params"]), count(line["compressor_params"]), number(line["seconds"])])
    return grid(heads, body)


def _controls(lines: Sequence[Mapping]) -> list[str]:
    """One line a control and part it plays, at the ratio whose decoder tokens it matches."""
    chosen = [(part, line) for part in TITLES for line in lines if part in parts(line)]
    ratios = {line["l_decoder"]: line["k"] for line in lines if not parts(line) and line["k"] > 1}
    names = category_order(name for _, line in chosen for name in line["by_category"])
    heads = [
        "control",
        "tokens as k",
        "frames",
        "size",
        "decoder tokens",
        "accuracy",
        "chance",
        "standard errors from chance",
    ]
    body = []
    for part, line in chosen:
        matches = ratios.get(line["l_decoder"], NOTHING) if part in ("fewer_frames", "lower_resolution") else NOTHING
        cells = [TITLES[part], matches, line["n_input"], line["size"], line["l_decoder"], mean_spread(line)]
        cells += [percent(line["chance"]), _from_chance(line)]
        body.append(cells + [percent(line["by_category"].get(name)) for name in names])
    return grid(heads + [CATEGORIES.get(name, name) for name in names], body) if chosen else []


def _pruned(lines: Sequence[Mapping]) -> list[str]:
    """Runs whose tokens were chosen by content: how many are left is fixed, of which moment is not."""
    if not lines:
        return []
    names = category_order(name for line in lines for name in line["by_category"])
    heads = [
        "method",
        "k",
        "frames",
        "pruner",
        "trained with it",
        "decoder tokens",
        "accuracy",
        COMPARED["over_baseline"],
    ]
    body = []
    for line in lines:
        with_it = "no" if line["settings"].get("pruned") == "test" else "yes"
        cells = [line["compressor"], line["k"], line["n_input"], f"`{pruner(line)}`", with_it, line["l_decoder"]]
        cells += [mean_spread(line), interval(line["over_baseline"])]
        body.append(cells + [percent(line["by_category"].get(name)) for name in names])
    return grid(heads + [CATEGORIES.get(name, name) for name in names], body)


def _from_chance(line: Mapping) -> str:
    distance = standard_errors_from_chance(line)
    return NOTHING if distance is None else f"{distance:+.1f}"


def _paper(lines: Sequence[Mapping]) -> list[str]:
    """Table 3's row of the paper's own model; tables 7 and 8 stand in the column `paper`."""
    text = "Column `paper`: MotionBench dev in percent, tables 7 and 8, same method, k and input frames. "
    text += "The paper states no seeds and no errors. Table 3, by category:"
    chosen = [row for row in paper_table3() if row["model"].startswith(("Random", "TE Fusion"))]
    names = ["dev", "test", *CATEGORIES.values()]
    return [
        text,
        "",
        *grid(["model", *names], [[row["model"], *(percent(float(row[n])) for n in names)] for row in chosen]),
    ]


def _failed(rows: Sequence[Mapping]) -> list[str]:
    """A sweep tries them again, but for those that are set aside."""
    failed = sorted((row for row in rows if row["status"] == "failed"), key=method_order)
    heads = ["method", "k", "control", "seed", "failures", "reason", "log"]
    body = []
    for row in failed:
        times = f"{row.get('failures', 1)}" + ", set aside" * is_set_aside(row)
        cells = [row["compressor"], row["k"], row.get("control") or "", row["seed"], times, short(row["reason"])]
        body.append([*cells, f"`{log_of(row)}`"])
    aside = "A cell that is set aside is tried again with `retry=true` only."
    return [*grid(heads, body), *(["", aside] if any(map(is_set_aside, failed)) else [])] if failed else []


def _unreadable(rows: Sequence[Mapping]) -> list[str]:
    """Named once each, with the number of cells that met them."""
    scores = [score for row in rows for score in (row.get("scores") or {}).values()]
    asked = _counted([*rows, *scores], "unreadable_videos", "Every question about these counts as wrong:")
    trained = _counted(rows, "unreadable_training_videos", "Left out of training:")
    return [*asked, *([""] if asked and trained else []), *trained]


def _counted(rows: Sequence[Mapping], field: str, text: str) -> list[str]:
    names = [str(name) for row in rows for name in row.get(field) or ()]
    counted = {name: names.count(name) for name in sorted(set(names))}
    return [text, "", *(f"- `{name}` in {plural(number, 'cell')}" for name, number in counted.items())] if names else []


def _csv(rows: Sequence[Mapping]) -> str:
    """Every field of every cell, categories one a column, other nested values as JSON."""
    flat = []
    for row in rows:
        shares = {f"accuracy {name}": value for name, value in (row.get("by_category") or {}).items()}
        plain = {name: value for name, value in row.items() if name not in ("by_category", "folder")}
        nested = {name: json.dumps(value) for name, value in plain.items() if isinstance(value, dict | list)}
        shares |= {f"accuracy on {name}": score["accuracy"] for name, score in (row.get("scores") or {}).items()}
        flat.append({**plain, **nested, **shares})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in flat for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _printed(line: Mapping, benchmark: str) -> str:
    values = printed(line["compressor"], line["k"], line["n_input"], benchmark)
    return " / ".join(f"{value:.1f}" for value in values) or NOTHING
