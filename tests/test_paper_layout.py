"""`report layout=paper`: the tables' numbers, their three forms, and the figures."""

import contextlib
import csv
import io
import itertools
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from test_report import QUESTIONS, RATES, cell, write_rows

from tefusion import cli
from tefusion.data.paper import paper_tables, printed
from tefusion.drawing import save
from tefusion.paper import cost, figure6
from tefusion.paper.benchmarks import lines_by_benchmark
from tefusion.paper.missed import draw as draw_missed
from tefusion.paper.missed import missed
from tefusion.paper.tables import Number, tables
from tefusion.rows import read_results
from tefusion.score import read_answers, write_answers

BENCH = {"data": "/data/MotionBench", "generated": False}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Both protocols on MotionBench, three seeds; k = 6 and a method that the paper does not know."""
    out = tmp_path_factory.mktemp("bench")
    rows = []
    for seed in range(3):
        rows += [cell(out, seed=seed, **BENCH), cell(out, n_input=4, seed=seed, n_per_k=[0, 4], rate=0.3, **BENCH)]
        grid = [(method, k, 16, rate) for (method, rate), k in itertools.product(RATES.items(), (2, 4, 8, 16))]
        rows += [cell(out, m, k, n, seed=seed, rate=r, n_per_k=[0, 4] if k == 4 else 0, **BENCH) for m, k, n, r in grid]
        rows += [cell(out, "te_fusion", 2, 8, seed=seed, rate=0.85, n_per_k=4, **BENCH)]
        rows += [cell(out, "te_fusion", 6, n, seed=seed, rate=0.7, n_per_k=p, **BENCH) for n, p in ((24, 4), (48, 0))]
        rows += [cell(out, "timesformer", 4, seed=seed, rate=0.65, **BENCH)]
        rows += [cell(out, n_input=0, seed=seed, rate=0.25, control="text_only", **BENCH)]
    write_rows(out, rows)
    return out


@pytest.fixture(scope="module")
def found(swept):
    return lines_by_benchmark(read_results(swept))


@pytest.fixture(scope="module")
def laid(found):
    return {table.number: table for table in tables(found)}


@pytest.fixture(scope="module")
def written(swept):
    """The folder, and what the command printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert cli.run("report", [f"out={swept}", "layout=paper"]) == 0
    return swept / "paper", printed.getvalue()


def rows_of(table, *place):
    return [row for row in table.rows if row.place == place]


def test_ours_stand_beside_the_papers_with_the_difference(laid, found):
    (row,) = rows_of(laid["7"], "4", "16", "4", "te_fusion")
    number = row.numbers["motionbench_dev"]
    (line,) = [x for x in found["motionbench_dev"] if (x["compressor"], x["k"], x["n_input"]) == ("te_fusion", 4, 16)]
    assert number.ours == pytest.approx(100 * line["accuracy"])
    assert number.error == pytest.approx(100 * line["error"])
    assert sorted(number.by_seed) == [0, 1, 2]
    assert number.paper == 51.0
    assert number.difference == pytest.approx(number.ours - 51.0)
    assert row.numbers["mvbench"] == Number(paper=72.1)


@pytest.mark.parametrize("number", ["7", "8"])
def test_every_printed_number_is_there_once(laid, number):
    table = laid[number]
    for row in paper_tables():
        if row["table"] != number:
            continue
        length = [row["n_input_over_k"], row["n_input"], row["k"], row["method"]]
        place = tuple(length) if number == "7" else (row["n_input"], row["method"], row["k"])
        (shown,) = rows_of(table, *place)
        assert {name: shown.numbers[name].paper for name in table.columns} == {n: float(row[n]) for n in table.columns}
    assert len({row.place for row in table.rows}) == len(table.rows)


def test_where_the_papers_tables_disagree_each_shows_its_own(laid):
    values = printed("pllava", 4, 16, "lvbench")
    seven = rows_of(laid["7"], "4", "16", "4", "pllava")[0].numbers["lvbench"].paper
    eight = rows_of(laid["8"], "16", "pllava", "4")[0].numbers["lvbench"].paper
    assert (seven, eight) == values == (34.3, 31.9)


def test_table_4_is_table_7_at_four_without_lvbench(laid):
    four, seven = laid["4"], laid["7"]
    assert [row.place for row in four.rows] == [row.place for row in seven.rows if row.place[0] == "4"]
    assert "lvbench" in seven.columns
    assert "lvbench" not in four.columns


def test_what_only_we_have_gets_a_row(laid):
    assert rows_of(laid["7"], "4", "24", "6", "te_fusion")[0].numbers["motionbench_dev"].paper is None
    assert rows_of(laid["8"], "48", "te_fusion", "6")[0].numbers["motionbench_dev"].ours > 50
    assert rows_of(laid["8"], "16", "timesformer", "4")[0].numbers["motionbench_dev"].paper is None
    assert not any("text_only" in row.place or row.place[0] == "0" for row in laid["8"].rows)


def test_table_3_sets_te_fusion_beside_the_papers_model(laid):
    (own,) = rows_of(laid["3"], "TE Fusion (k=4)", "GLM4-9B", "16")
    assert (own.numbers["dev"].paper, own.numbers["RC"].paper) == (pytest.approx(58), pytest.approx(39))
    assert own.numbers["AO"].difference == pytest.approx(own.numbers["AO"].ours - 41.0)
    assert own.numbers["test"] == Number(paper=own.numbers["dev"].paper)  # MotionBench keeps these answers
    assert sum(row.numbers["dev"].ours is not None for row in laid["3"].rows) == 1 + 5 * 4 + 2 + 2 + 1


def test_the_generated_set_is_never_compared_with_motionbench(tmp_path):
    write_rows(tmp_path, [cell(tmp_path, "te_fusion", 4, rate=0.9), cell(tmp_path, rate=0.5)])
    laid = tables(lines_by_benchmark(read_results(tmp_path)))
    numbers = [number for table in laid for row in table.rows for number in row.numbers.values()]
    assert any(number.ours for number in numbers)
    assert not any(number.difference for number in numbers)
    (row,) = rows_of(laid[3], "16", "te_fusion", "4")
    assert row.numbers["generated"].ours > 80
    assert row.numbers["motionbench_dev"] == Number(paper=51.0)


def test_a_further_setting_has_a_row_of_its_own_beside_the_same_paper(tmp_path):
    both = [cell(tmp_path, "pllava", 4, id=f"p{lr}", settings={"lr": lr}, **BENCH) for lr in (0.1, 0.2)]
    write_rows(tmp_path, both)
    eight = tables(lines_by_benchmark(read_results(tmp_path)))[3]
    found = [row for row in eight.rows if row.place[1].startswith("pllava") and row.place[2] == "4"]
    assert [row.place[1] for row in found] == ["pllava lr=0.1", "pllava lr=0.2"]
    assert [row.numbers["motionbench_dev"].paper for row in found] == [50.5, 50.5]


def test_the_three_forms_say_the_same(written, laid):
    folder, text = written
    assert text == (folder / "paper.md").read_text() + "\n"
    number = rows_of(laid["8"], "16", "kangaroo", "2")[0].numbers["motionbench_dev"]
    said = f"{number.ours:.1f} ± {number.error:.1f} · 49.5 · {number.difference:+.1f}"
    assert f"| 16 | kangaroo | 2 | {said} |" in text
    latex = (folder / "tables.tex").read_text()
    assert (
        f"16 & kangaroo & 2 & ${number.ours:.1f} \\pm {number.error:.1f}$ & $49.5$ & ${number.difference:+.1f}$ &"
        in latex
    )
    with (folder / "tables.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    (row,) = [
        r
        for r in rows
        if (r["table"], r["row"], r["column"]) == ("8", "frames=16 method=kangaroo k=2", "motionbench_dev")
    ]
    assert float(row["difference"]) == pytest.approx(number.difference, abs=1e-3)
    assert row["by_seed"] == " ".join(f"{seed}:{value:.3f}" for seed, value in number.by_seed.items())
    assert len(rows) == sum(len(table.rows) * len(table.columns) for table in laid.values())
    assert text.count("Smallest resolvable difference") == 4


def test_latex_is_rectangular_and_escaped(written):
    latex = (written[0] / "tables.tex").read_text()
    for body in re.findall(r"\\begin\{tabular\}\{(.*?)\}\n(.*?)\\end\{tabular\}", latex, re.DOTALL):
        columns, lines = len(body[0]), [line for line in body[1].splitlines() if line.endswith("\\\\")]
        assert {line.count(" & ") + 1 + 2 * line.count("multicolumn") for line in lines} == {columns}
        assert not re.search(r"(?<!\\)[_%#]", "".join(lines).replace("$", ""))
    assert "te\\_fusion" in latex


def test_figure_6_has_a_panel_a_benchmark_with_ours_and_the_papers(found):
    figure = figure6.draw(found, 16)
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_visible()}
    assert list(panels) == [
        "MotionBench dev",
        "MVBench",
        "LVBench",
        "Video-MME short",
        "Video-MME medium",
        "Video-MME long",
    ]
    lines = [line for line in panels["MotionBench dev"].get_lines() if line.get_linestyle() == "--"]
    assert [51.0 in line.get_ydata() for line in lines].count(True) == 1
    solid = [bars[0] for bars in panels["MotionBench dev"].containers]
    assert len(solid) == 6
    assert not panels["MVBench"].containers
    wide = figure6.draw(found, 48)  # nothing is printed there
    assert [axes.get_title(loc="left") for axes in wide.axes if axes.get_visible()] == ["MotionBench dev"]


def test_costs_are_those_of_the_lines(found):
    figure = cost.draw(found["motionbench_dev"], "MotionBench dev")
    assert [axes.get_xlabel().split(",")[0] for axes in figure.axes] == [name.split(",")[0] for name in cost.COSTS]
    times = {x for bars in figure.axes[0].containers for x in bars[0].get_xdata()}
    assert times == {1.25 + 0.01 + 2.0}
    tokens = {x for bars in figure.axes[1].containers for x in bars[0].get_xdata()}
    assert {64, 16, 4} <= tokens


def test_questions_that_all_miss_are_counted_by_category_and_duration(tmp_path):
    rows = [cell(tmp_path, rate=0.3, **BENCH), cell(tmp_path, "pllava", 4, rate=0.4, **BENCH)]
    rows += [cell(tmp_path, n_input=0, rate=0.9, control="text_only", **BENCH)]
    wrong = np.ones(QUESTIONS, dtype=bool)
    for row in rows:
        path = tmp_path / "cells" / row["id"] / "answers.jsonl"
        answers = [replace(a, seconds=[2.0, 5.0, None, 5000.0][i % 4]) for i, a in enumerate(read_answers(path))]
        write_answers(path, answers)
        if not row["control"]:
            wrong &= [not answer.correct for answer in answers]
    write_rows(tmp_path, rows)
    found = missed(lines_by_benchmark(read_results(tmp_path))["motionbench_dev"])
    assert found.models == 2
    for place, share in enumerate(found.by_category):
        assert share.missed == pytest.approx(wrong[place::6].mean())
        assert (share.questions, share.guessing) == (QUESTIONS // 6, pytest.approx(0.75**2))
    assert [share.group for share in found.by_duration] == ["0 to 3 s", "3 to 6 s", "3600 s or more"]
    assert [share.missed for share in found.by_duration] == pytest.approx([wrong[i::4].mean() for i in (0, 1, 3)])
    assert len(draw_missed(found, "").axes) == 2


def test_one_model_alone_misses_nothing_together_with_others(tmp_path):
    write_rows(tmp_path, [cell(tmp_path)])
    assert missed(lines_by_benchmark(read_results(tmp_path))["generated"]) is None


def test_every_figure_is_there_as_png_and_svg(written):
    names = ["figure6-16", "figure6-48", "cost-motionbench_dev", "figure7-motionbench_dev"]
    assert {path.name for path in written[0].iterdir()} == {
        *(f"{name}.{kind}" for name in names for kind in ("png", "svg")),
        *("paper.md", "tables.csv", "tables.tex"),
    }


def test_a_figure_is_the_same_twice(found, tmp_path):
    draw = partial(figure6.draw, found, 48)
    first, second = ([path.read_bytes() for path in save(draw, tmp_path / "figure")] for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["layout=papper"], "layout 'papper' is unknown; did you mean 'paper'?"),
        (["layout=paper", "paper=true"], "leave paper=true out"),
    ],
)
def test_a_wrong_layout_gets_one_line(swept, words, says, capsys):
    assert cli.run("report", [f"out={swept}", *words]) == 2
    assert says in capsys.readouterr().err
