"""A made sweep whose truth is known: what the report reads, computes, says and draws."""

import csv
import io
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tefusion.figure import curve_panels, draw, protocol_panels, spread_out
from tefusion.ranking import open_ranks, ranked
from tefusion.report import ResultsError, live_table, markdown, read_results, table, write_report
from tefusion.results import difference
from tefusion.rows import append, is_set_aside
from tefusion.score import CATEGORIES, Answer, summarise, write_answers
from tefusion.statistics import clustered_stderr
from tefusion.two_way import paired

QUESTIONS = 240
BASE = {"encoder": "tiny", "decoder": "tiny", "data": "motion", "steps": 400, "protocol": 1, "commit": "abc1234"}
BASE |= {"machine": "2 cores", "date": "2026-01-02", "versions": {"torch": "2.11"}, "n_per_k": None, "size": "32"}
BASE |= {"params": 300_000, "compressor_params": 0, "flops": 1.5e8, "encoder_ms": 1.25, "compressor_ms": 0.01}
BASE |= {"prefill_ms": 2.0, "peak_memory_mb": 812.0, "seconds": 60.0, "unreadable_videos": [], "repeated": 0}


def cell(folder, compressor="none", k=1, n_input=16, seed=0, rate=0.5, **fields):
    """One finished cell: right answers drawn at `rate`, written beside its row."""
    row = {**BASE, "compressor": compressor, "k": k, "n_input": n_input, "seed": seed, "status": "done", "control": ""}
    row |= {"l_decoder": n_input // k * 4, **fields}
    keys = ("compressor", "k", "n_input", "n_per_k", "seed", "control", "size")
    further = "".join(f"-{name}={value}" for name, value in row.get("settings", {}).items()).replace(":", ".")
    row.setdefault("id", "-".join(str(row[key]) for key in keys) + further)
    right = np.random.default_rng([seed, k, n_input, len(compressor), int(1000 * rate)]).random(QUESTIONS) < rate
    names = list(CATEGORIES)
    answers = [Answer(f"q{i:03}", f"v{i // 2}", names[i % 6], 4, "AB"[not yes], "A") for i, yes in enumerate(right)]
    write_answers(Path(folder) / "cells" / row["id"] / "answers.jsonl", answers)
    return {**row, **summarise(answers)}


def write_rows(folder, rows, name="results.jsonl"):
    (Path(folder) / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


RATES = {"qwen2_vl": 0.6, "te_fusion": 0.9, "kangaroo": 0.8, "pllava": 0.45, "qformer": 0.4}


def sweep_rows(folder, seeds=(0, 1, 2), ratios=(2, 4, 8, 16)):
    rows = []
    for seed in seeds:
        rows += [cell(folder, seed=seed)]
        rows += [cell(folder, m, k, seed=seed, rate=rate) for (m, rate), k in itertools.product(RATES.items(), ratios)]
        rows += [cell(folder, n_input=0, seed=seed, rate=0.25, control="text_only")]
        rows += [cell(folder, n_input=16 // k, seed=seed, rate=0.3, control="fewer_frames") for k in ratios if k < 16]
        rows += [cell(folder, n_input=1, seed=seed, rate=0.26, control="one_frame,fewer_frames")]
        rows += [cell(folder, seed=seed, rate=0.35, control="lower_resolution", size="16", l_decoder=16)]
    return rows


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    rows = sweep_rows(folder)
    failed = {"id": "broken", "status": "failed", "reason": "out of memory | tried\n3 GB"}
    rows.append({**BASE, **failed, "compressor": "pllava", "k": 4, "seed": 3, "n_input": 16, "control": ""})
    next(row for row in rows if row["compressor"] == "te_fusion")["unreadable_videos"] = ["self-collected/bad.mp4"]
    for row in rows[:2]:
        row["unreadable_training_videos"] = ["train/worse.mp4"]
    write_rows(folder, rows)
    return folder


@pytest.fixture(scope="module")
def lines(sweep):
    return table(read_results(sweep))


def find(lines, compressor, k, control=""):
    return next(line for line in lines if (line["compressor"], line["k"], line["control"]) == (compressor, k, control))


# reading


def test_the_last_done_row_of_an_id_counts(tmp_path):
    good, bad = cell(tmp_path, id="a"), {**BASE, "id": "a", "status": "failed", "compressor": "none", "k": 1, "seed": 0}
    bad["reason"] = "killed"
    write_rows(tmp_path, [bad, good, {**good, "accuracy": 0.75}, bad])
    (row,) = read_results(tmp_path)
    assert (row["status"], row["accuracy"]) == ("done", 0.75)


def test_shards_and_folders_are_merged(tmp_path):
    first, second = tmp_path / "one", tmp_path / "two"
    write_answers(first / "x", [])
    write_answers(second / "x", [])
    write_rows(first, [cell(first, seed=0)], "results-1of2.jsonl")
    write_rows(first, [cell(first, seed=1)], "results-2of2.jsonl")
    write_rows(second, [cell(second, seed=2)])
    rows = read_results([first, second])
    assert sorted(row["seed"] for row in rows) == [0, 1, 2]
    (line,) = table(rows)
    assert len(line["by_seed"]) == 3
    assert all(line["marks"].values())  # each folder's own answers were found


def test_a_torn_line_is_named_and_ignored(tmp_path):
    rows = [cell(tmp_path, seed=0), cell(tmp_path, seed=1)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "results.jsonl").write_text(text[:-40])
    with pytest.warns(UserWarning, match=r"results\.jsonl:2 is a torn line"):
        assert [row["seed"] for row in read_results(tmp_path)] == [0]


def test_a_line_torn_at_any_byte_costs_itself_alone(tmp_path):
    rows = [cell(tmp_path, seed=seed, machine="Kerne, zwölf — 十二") for seed in (0, 1)]
    path = tmp_path / "results.jsonl"
    append(path, rows[0])
    whole = path.read_bytes()
    line = json.dumps(rows[1], ensure_ascii=False).encode()  # as another program may have written it
    for cut in range(1, len(line)):
        path.write_bytes(whole + line[:cut])
        append(path, rows[1])
        with pytest.warns(UserWarning, match=r"results\.jsonl:2 is a torn line"):
            assert [row["seed"] for row in read_results(tmp_path)] == [0, 1]
    path.write_bytes(whole + line)  # whole but for its end
    append(path, rows[0])
    assert path.read_bytes() == whole + line + b"\n" + whole


def test_a_row_holds_one_line_whatever_is_in_it(tmp_path):
    (tmp_path / "results.jsonl").write_bytes(
        json.dumps(cell(tmp_path, machine="a\u2028b"), ensure_ascii=False).encode()
    )
    assert [row["machine"] for row in read_results(tmp_path)] == ["a\u2028b"]


def test_failures_are_counted_over_all_files_until_the_cell_is_done(tmp_path):
    failed = {**BASE, "id": "a", "status": "failed", "compressor": "none", "k": 1, "seed": 0, "reason": "no"}
    write_rows(tmp_path, [failed], "results-0of2.jsonl")
    write_rows(tmp_path, [failed, {**failed, "id": "b"}], "results-1of2.jsonl")
    first, other = read_results(tmp_path)
    assert (first["failures"], other["failures"]) == (2, 1)
    assert not is_set_aside(first)
    write_rows(tmp_path, [{**failed, "reason": "last"}])
    (first, _) = read_results(tmp_path)
    assert is_set_aside(first)
    text = markdown([first, other])
    assert "| none | 1 |  | 0 | 3, set aside | last | `cells/a/error.log` |" in text
    assert "| none | 1 |  | 0 | 1 | no | `cells/b/error.log` |" in text
    assert "`retry=true`" in text
    assert "`retry=true`" not in markdown([other])
    append(tmp_path / "results.jsonl", cell(tmp_path, id="a"))
    assert not is_set_aside(read_results(tmp_path)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accuracy": 1.2}, "accuracy must lie between 0 and 1"),
        ({"accuracy": float("nan")}, "accuracy must lie between 0 and 1"),
        ({"by_category": {"MR": "high"}}, "MR must lie between 0 and 1"),
        ({"status": "running"}, "status must be done or failed"),
        ({"id": None}, "it needs an id"),
        ({"k": ...}, "lacks k"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, change, message):
    row = {name: value for name, value in {**cell(tmp_path), **change}.items() if value is not ...}
    write_rows(tmp_path, [cell(tmp_path, seed=1), row])
    with pytest.raises(ResultsError, match=rf"results\.jsonl:2: .*{message}"):
        read_results(tmp_path)


def test_a_folder_without_results_is_an_error(tmp_path):
    with pytest.raises(ResultsError, match=r"holds no results\.jsonl"):
        read_results(tmp_path)


# computing


def test_one_line_a_setting_over_its_seeds(lines):
    assert len(lines) == 1 + 5 * 4 + 1 + 4 + 1
    line = find(lines, "te_fusion", 4)
    values = list(line["by_seed"].values())
    assert sorted(line["by_seed"]) == [0, 1, 2]
    assert line["accuracy"] == pytest.approx(np.mean(values))
    assert line["spread"] == pytest.approx(np.std(values, ddof=1))
    averaged = np.mean([marks.correct for marks in line["marks"].values()], axis=0)
    assert line["stderr"] == pytest.approx(clustered_stderr(averaged, line["marks"][0].clusters))
    assert line["error"] == pytest.approx(np.hypot(line["spread"] / 3**0.5, line["stderr"]))
    assert line["chance"] == 0.25
    assert np.mean(list(line["by_category"].values())) == pytest.approx(line["accuracy"])


def test_differences_pair_seeds_and_questions(lines):
    ours, base = find(lines, "te_fusion", 4), find(lines, "none", 1)
    pairs = {seed: (ours["marks"][seed].correct, base["marks"][seed].correct) for seed in (0, 1, 2)}
    assert ours["over_baseline"] == paired(pairs, base["marks"][0].clusters)
    assert ours["over_baseline"].value == pytest.approx(ours["accuracy"] - base["accuracy"])
    assert base["over_baseline"] is None


def test_fewer_frames_stand_at_the_ratio_of_equal_tokens(lines):
    for k, control in ((2, "fewer_frames"), (16, "one_frame,fewer_frames")):
        ours = find(lines, "kangaroo", k)
        short = next(x for x in lines if x["control"] == control and x["l_decoder"] == ours["l_decoder"])
        assert short["n_input"] == 16 // k
        assert ours["over_same_tokens"].value == pytest.approx(ours["accuracy"] - short["accuracy"])


def test_only_seeds_that_both_have_are_paired(tmp_path):
    rows = [cell(tmp_path, seed=0), cell(tmp_path, seed=1)]
    rows += [cell(tmp_path, "pllava", 4, seed=seed) for seed in (1, 2)]
    write_rows(tmp_path, rows)
    line = find(table(read_results(tmp_path)), "pllava", 4)
    assert line["over_baseline"].seeds == 1
    assert "do not contain training noise" in markdown(read_results(tmp_path))


def test_other_questions_are_never_paired(tmp_path):
    rows = [cell(tmp_path), cell(tmp_path, "pllava", 4)]
    answers = tmp_path / "cells" / rows[1]["id"] / "answers.jsonl"
    answers.write_text(answers.read_text().replace('"q000"', '"other"'))
    write_rows(tmp_path, rows)
    rows = read_results(tmp_path)
    line = find(table(rows), "pllava", 4)
    assert line["over_baseline"] is None
    assert "1 line could not be compared" in markdown(rows)
    assert difference(line, line).value == 0


def test_answers_that_are_gone_cost_the_intervals_only(tmp_path):
    rows = [cell(tmp_path, seed=0), cell(tmp_path, "pllava", 4, seed=0)]
    (tmp_path / "cells" / rows[0]["id"] / "answers.jsonl").unlink()
    base = find(table([{**row, "folder": str(tmp_path)} for row in rows]), "none", 1)
    assert base["stderr"] == pytest.approx(rows[0]["stderr"])
    assert base["chance"] is None


def test_a_further_axis_of_the_sweep_keeps_its_lines_apart(tmp_path):
    base = cell(tmp_path, settings={"lr": 0.001})
    both = [cell(tmp_path, "pllava", 4, id=f"p{lr}", rate=lr * 100, settings={"lr": lr}) for lr in (0.001, 0.005)]
    write_rows(tmp_path, [base, *both])
    rows = read_results(tmp_path)
    found = [line for line in table(rows) if line["compressor"] == "pllava"]
    assert [line["settings"]["lr"] for line in found] == [0.001, 0.005]
    assert all(line["over_baseline"] for line in found)
    assert "pllava lr=0.005" in markdown(rows)


def test_two_cells_of_a_seed_are_not_two_seeds(tmp_path):
    write_rows(tmp_path, [cell(tmp_path, id="a", rate=0.2), cell(tmp_path, id="b", rate=0.7)])
    rows = read_results(tmp_path)
    (line,) = table(rows)
    assert len(line["by_seed"]) == 1
    assert "1 left out: it differs from another cell" in markdown(rows)


def test_fixed_decoder_length_has_its_own_table(tmp_path):
    rows = [cell(tmp_path, n_input=4, n_per_k=4, rate=0.3)]
    rows += [cell(tmp_path, "te_fusion", k, 4 * k, n_per_k=4, rate=0.2 + 0.1 * k) for k in (2, 4)]
    write_rows(tmp_path, rows)
    lines, text = table(rows := read_results(tmp_path)), markdown(rows)
    assert {line["l_decoder"] for line in lines} == {16}
    assert find(lines, "te_fusion", 4)["over_same_tokens"].value == pytest.approx(0.3, abs=0.12)
    assert "Accuracy, 4·k input frames" in text
    assert "over the baseline" in text
    assert "Accuracy, 16 input frames" not in text
    assert [panel.title for panel in protocol_panels(lines)] == ["4·k input frames, the same decoder tokens at every k"]


def test_a_run_of_both_protocols_is_reported_under_both(tmp_path):
    write_rows(tmp_path, [cell(tmp_path, "te_fusion", 4, 16, n_per_k=[0, 4])])
    text = markdown(read_results(tmp_path))
    fixed_input, fixed_length = text.split("## Accuracy, ")[1:]
    assert fixed_input.startswith("16 input frames")
    assert fixed_length.startswith("4·k input frames")
    assert fixed_input.count("| te_fusion | 4 | 16 | **") == fixed_length.count("| te_fusion | 4 | 16 | **") == 1


# fair training


FLOPS = "flops:none:1:16:32"


def fair_rows(folder, settings, seeds=(0, 1), shift=0.0, **fields):
    """A method, the baseline and the control with as many tokens, trained as `settings` say."""
    fields |= {"settings": settings}
    rows = []
    for seed in seeds:
        rows += [cell(folder, seed=seed, rate=0.4 + shift, **fields)]
        rows += [cell(folder, "te_fusion", 4, seed=seed, rate=0.6 + shift, **fields)]
        rows += [cell(folder, n_input=4, seed=seed, rate=0.3 + shift, control="fewer_frames", **fields)]
    return rows


def section(text, title):
    (found,) = [part for part in text.split("\n## ") if part.startswith(title)]
    return found


PRIMARY = ("What may be claimed", "Accuracy, 16 input frames", "Cost, 16 input frames", "Controls")
OTHERS = {
    "times": {"times": 4},
    "equal": {"equal": FLOPS},
    "both": {"times": 4, "equal": FLOPS},
    "trial": {"lr_scale": 0.5, "split": "dev"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_primary_changes_no_primary_table(tmp_path, name):
    plain = fair_rows(tmp_path, {"lr": 0.001})
    more = fair_rows(tmp_path, {"lr": 0.001} | OTHERS[name], shift=0.2, seeds=(0, 1, 2))
    if name == "trial":
        more = [row | {"control": "trial"} for row in more]
    write_rows(tmp_path, plain + more)
    rows = read_results(tmp_path)
    alone, text = markdown(rows[: len(plain)]), markdown(rows)
    for title in PRIMARY:
        assert section(text, title) == section(alone, title)
    assert [p.title for p in protocol_panels(table(rows))] == ["16 input frames"]
    assert len(table(rows)) == len(plain) / 2 * (1 if name == "trial" else 2)


def test_only_lines_that_are_trained_alike_are_compared(tmp_path):
    """A baseline that was not trained so is none, even where it is the only one."""
    rows = [cell(tmp_path, settings={"lr": 0.001}), cell(tmp_path, n_input=4, control="fewer_frames")]
    fair = [{"init": "scratch"}, {"times": 4}, {"equal": FLOPS}]
    rows += [cell(tmp_path, "te_fusion", 4, settings={"lr": 0.001} | settings) for settings in fair]
    write_rows(tmp_path, rows)
    lines = [line for line in table(read_results(tmp_path)) if line["k"] == 4]
    assert len(lines) == 3
    assert not any(line["over_baseline"] or line["over_same_tokens"] or line["unpaired"] for line in lines)


def test_a_row_that_is_older_than_a_setting_has_its_default(tmp_path):
    rows = [cell(tmp_path, seed=0, settings={"lr": 0.001})]
    rows += [cell(tmp_path, seed=1, settings={"lr": 0.001, "times": 1, "equal": "samples", "lr_scale": 1.0})]
    write_rows(tmp_path, rows)
    assert [sorted(line["by_seed"]) for line in table(read_results(tmp_path))] == [[0, 1]]


def test_a_tuned_learning_rate_neither_parts_nor_renames_a_method(tmp_path):
    """Baseline and methods each have their own; where a ratio has two, they are told apart."""
    rates = [("none", 1, 16, 0.5), ("none", 1, 4, 2.0), ("none", 1, 8, 1.0), ("te_fusion", 2, 16, 2.0)]
    rates += [("te_fusion", 4, 16, 1.0)]
    rows = [
        cell(tmp_path, name, k, n, control="fewer_frames" * (n < 16), settings={"lr_scale": scale})
        for name, k, n, scale in rates
    ]
    write_rows(tmp_path, rows)
    lines = table(read_results(tmp_path))
    assert all(line["over_baseline"] and line["over_same_tokens"] for line in lines if line["k"] > 1)
    assert "lr_scale" not in markdown(read_results(tmp_path))
    rows += [cell(tmp_path, "te_fusion", 4, settings={"lr_scale": 2.0})]
    write_rows(tmp_path, rows)
    assert "te_fusion lr_scale=2.0" in markdown(read_results(tmp_path))


def test_equal_flops_stand_beside_equal_samples(tmp_path):
    rows = fair_rows(tmp_path, {"batch": 8}, trained_steps=400, training_flops=4e12)
    rows += fair_rows(tmp_path, {"batch": 8, "equal": FLOPS}, shift=0.1, trained_steps=1234, training_flops=6e12)
    write_rows(tmp_path, rows)
    rows = read_results(tmp_path)
    lines, text = table(rows), section(markdown(rows), "At equal training FLOPs, those of `none`, k = 1, 16 frames")
    plain, equal = (find([x for x in lines if x["settings"]["equal"] == e], "te_fusion", 4) for e in ("samples", FLOPS))
    (row,) = [x for x in text.splitlines() if x.startswith("| te_fusion | 4 | 16 |")]
    cells = [x.strip() for x in row.split("|")[4:-1]]
    assert [x.split()[0] for x in cells[:2]] == [f"**{100 * x['accuracy']:.1f}**" for x in (plain, equal)]
    assert cells[2] == str(difference(equal, plain))
    assert cells[3] == str(equal["over_same_tokens"])
    assert cells[4:] == ["400", "1,234", "4", "6"]
    assert "| fewer frames (N/k) | 1 | 4 |" in text
    assert "At equal training FLOPs" not in markdown(rows[:6])


def test_learning_curves_have_a_column_a_number_of_samples_and_a_panel(tmp_path):
    rows = fair_rows(tmp_path, {"batch": 8})
    for times in (4, 16):
        rows += fair_rows(tmp_path, {"batch": 8, "times": times}, shift=times / 50)
    rows += fair_rows(tmp_path, {"batch": 8, "times": 4, "equal": FLOPS})  # on another axis
    write_rows(tmp_path, rows)
    rows = read_results(tmp_path)
    lines, text = table(rows), section(markdown(rows), "Learning curves")
    assert "| 3,200 samples | 12,800 samples | 51,200 samples |" in text
    mine = [x for x in lines if x["compressor"] == "te_fusion" and x["settings"]["equal"] == "samples"]
    points = sorted(mine, key=lambda line: line["settings"]["times"])
    (row,) = [x for x in text.splitlines() if x.startswith("| te_fusion | 4 | 16 |")]
    cells = [x.strip() for x in row.split("|")[4:-1]]
    assert [x.split()[0] for x in cells[:3]] == [f"**{100 * line['accuracy']:.1f}**" for line in points]
    assert cells[3] == str(difference(points[-1], points[0]))
    assert sum(x.startswith("| ") for x in text.splitlines()) == 2 + 3  # heads, rule, baseline, method, control
    (panel,) = curve_panels(lines)
    assert (panel.title, len(panel.methods), len(panel.behind)) == ("16 input frames, k = 4", 1, 2)
    drawn, bars = draw(lines).axes[0], [100 * line["error"] for line in points]
    (method,) = [bar for bar in drawn.containers if bar.get_children()[0].get_linewidth() == 1.8]
    assert method[0].get_xdata().tolist() == [3200, 12800, 51200]
    assert method[0].get_ydata().tolist() == pytest.approx([100 * line["accuracy"] for line in points])
    for segment, bar in zip(method[2][0].get_segments(), bars, strict=True):
        assert np.ptp(segment[:, 1]) == pytest.approx(2 * bar)
    assert not curve_panels(table(rows[:6]))
    assert "Learning curves" not in markdown(rows[:6])


def test_benchmarks_have_equal_flops_and_learning_curves_of_their_own(tmp_path):
    rows = fair_rows(tmp_path, {"batch": 8}, seeds=(0,), trained_steps=400, training_flops=4e12)
    for more in ({"times": 4}, {"equal": FLOPS}):
        rows += fair_rows(tmp_path, {"batch": 8} | more, seeds=(0,), shift=0.2, trained_steps=900, training_flops=6e12)
    counts = {"secret": 0, "unanswered": 0, "missing": 0, "replies": 0, "words": 0}
    for row in rows:
        answers = tmp_path / "cells" / row["id"]
        shutil.copytree(answers, answers / "mvbench")
        score = {name: row[name] for name in ("accuracy", "stderr", "by_category", "questions")}
        score["asked"] = dict.fromkeys(row["by_category"], 10)
        row |= {"scores": {"mvbench": score | counts}, "evaluation": {"prompt": "likelihood"}}
    write_rows(tmp_path, rows)
    text = markdown(read_results(tmp_path))
    for title in ("At equal training FLOPs, those of `none`, k = 1, 16 frames at 32 px", "Learning curves"):
        own, asked = (section(text, title + where) for where in ("\n", ", MVBench\n"))
        assert own.split("\n", 1)[1] == asked.split("\n", 1)[1]
    assert text.count("| te_fusion | 4 | 16 | **") == 6  # accuracy, FLOPs, curve: once each, on both


def test_each_init_has_tables_and_a_panel_of_its_own(tmp_path):
    rows = [row for init in ("image", "scratch") for row in fair_rows(tmp_path, {"init": init, "lr": 0.001})]
    write_rows(tmp_path, rows)
    rows = read_results(tmp_path)
    text = markdown(rows)
    for title in ("Accuracy, 16 input frames", "Cost, 16 input frames", "Controls"):
        for init in ("image", "scratch"):
            assert "init" not in section(text, f"{title}, init={init}").split("\n", 1)[1]
    more = [
        row for init in ("image", "scratch") for row in fair_rows(tmp_path, {"init": init, "times": 4, "lr": 0.001})
    ]
    for init in ("image", "scratch"):
        assert "init" not in section(markdown(rows + more), f"Learning curves, init={init}").split("\n", 1)[1]
    claims = section(text, "What may be claimed")
    assert "| te_fusion init=image | 4 |" in claims
    assert "| te_fusion init=scratch | 4 |" in claims
    panels = protocol_panels(table(rows))
    assert [panel.title for panel in panels] == ["16 input frames, init=image", "16 input frames, init=scratch"]
    assert all(len(panel.methods) == len(panel.base) == len(panel.controls) == 1 for panel in panels)


def test_the_live_table_keeps_apart_what_is_trained_otherwise(tmp_path):
    settings = [{}, {"times": 4}, {"equal": FLOPS}, {"init": "scratch"}]
    rows = [cell(tmp_path, "pllava", 4, settings={"lr": 0.001} | more) for more in settings]
    assert list(live_table(rows).columns[0].cells) == ["pllava", "pllava 4x", "pllava = FLOPs", "pllava scratch"]


# saying


def test_the_report_says_what_the_rows_say(sweep, lines):
    text = write_report(sweep, paper=True).read_text()
    line = find(lines, "te_fusion", 4)
    (row,) = [x for x in text.splitlines() if x.startswith("| te_fusion | 4 | 16 | **")]
    cells = [x.strip() for x in row.split("|")[1:-1]]
    assert cells[3] == f"**{100 * line['accuracy']:.1f}** ± {100 * line['spread']:.1f}"
    assert cells[4:7] == [f"{100 * value:.1f}" for value in line["by_seed"].values()]
    assert cells[7] == str(line["over_baseline"])
    assert cells[9:15] == [f"{100 * value:.1f}" for value in line["by_category"].values()]
    assert cells[15] == "51.0"
    assert "| te_fusion | 4 | 16 | 1.25 | 0.01 | 2 | 0.15 | 812 | 300,000 | 0 | 60 |" in text  # cost
    assert "out of memory \\| tried 3 GB" in text
    assert "Every question about these counts as wrong:\n\n- `self-collected/bad.mp4` in 1 cell" in text
    assert "Left out of training:\n\n- `train/worse.mp4` in 2 cells" in text
    assert "![Accuracy with its errors](figure.png)" in text


def test_what_may_be_claimed_is_the_primary_family_with_enough_seeds(tmp_path, sweep):
    text = markdown(read_results(sweep))
    assert "over all 20 comparisons of this table" in text
    assert text.count("| no claim: 3 of 5 seeds |") == 20
    rows = sweep_rows(tmp_path, seeds=range(5), ratios=(4, 8))
    write_rows(tmp_path, rows)
    claims = markdown(read_results(tmp_path)).split("## What may be claimed")[1].split("##")[0]
    (row,) = [line for line in claims.splitlines() if line.startswith("| te_fusion | 4 |")]
    assert row.endswith("| 5 | better |")


def test_a_ranking_leaves_open_what_the_seeds_leave_open(tmp_path):
    """Two methods of the same answers share their ranks; those far apart have one each."""
    rows = [cell(tmp_path, name, 4, seed=seed, rate=0.9) for name in ("a1", "b1") for seed in range(6)]
    rows += [cell(tmp_path, name, 4, seed=seed, rate=rate) for name, rate in RATES.items() for seed in range(6)]
    write_rows(tmp_path, [row for row in rows if row["compressor"] in ("a1", "b1", "kangaroo", "qformer")])
    found = ranked(table(read_results(tmp_path)))
    assert {one.line["compressor"]: one.together for one in found} == {
        "a1": (1, 2),
        "b1": (1, 2),
        "kangaroo": (3, 3),
        "qformer": (4, 4),
    }
    assert found[0].behind is None
    assert found[2].behind.value == pytest.approx(found[2].line["accuracy"] - found[0].line["accuracy"])


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_ranks_that_all_pairs_leave_open_are_never_fewer(tmp_path, seeds):
    write_rows(tmp_path, sweep_rows(tmp_path, seeds, ratios=(4,)))
    found = ranked([line for line in table(read_results(tmp_path)) if line["k"] == 4])
    accuracies = [one.line["accuracy"] for one in found]
    assert accuracies == sorted(accuracies, reverse=True)
    for i, one in enumerate(found):
        assert one.together[0] <= one.alone[0] <= i + 1 <= one.alone[1] <= one.together[1]


def test_nothing_told_apart_leaves_every_rank_open(lines):
    chosen = [line for line in lines if line["k"] == 4]
    pairs = {(i, j): difference(b, a) for (i, a), (j, b) in itertools.combinations(enumerate(chosen), 2)}
    assert open_ranks(len(chosen), pairs, [1.0] * len(pairs)) == [(1, len(chosen))] * len(chosen)
    sure = open_ranks(len(chosen), pairs, [0.0] * len(pairs))
    assert sorted(best for best, _ in sure) == list(range(1, len(chosen) + 1))
    assert all(best == worst for best, worst in sure)


def test_a_ranking_is_reported_of_one_ratio_alone(tmp_path, sweep):
    assert "Ranking" not in markdown(read_results(sweep))
    text = write_and_read(tmp_path, sweep_rows(tmp_path, ratios=(4,)))
    rows = [row.split("|")[1].strip() for row in section(text, "Ranking, 16 input frames").splitlines() if "|" in row]
    assert rows[2:4] == ["te_fusion", "kangaroo"]


def test_the_smallest_resolvable_difference_stands_under_each_table(tmp_path, sweep):
    for text in (
        markdown(read_results(sweep)),
        write_and_read(tmp_path, [cell(tmp_path), cell(tmp_path, "pllava", 4)]),
    ):
        for section in text.split("## Accuracy, ")[1:]:
            assert "\n\nSmallest resolvable difference" in section.split("##")[0]
    lone = [cell(tmp_path, "pllava", 4), cell(tmp_path, "te_fusion", 4)]  # no baseline: the lines themselves
    assert "Smallest resolvable difference" in write_and_read(tmp_path, lone)


def write_and_read(folder, rows):
    write_rows(folder, rows)
    return markdown(read_results(folder))


def test_every_table_is_rectangular(sweep):
    blocks = write_report(sweep, paper=True).read_text().split("\n\n")
    tables = [block.splitlines() for block in blocks if block.startswith("|")]
    assert len(tables) == 7
    for rows in tables:
        assert len({row.replace("\\|", "").count("|") for row in rows}) == 1


def test_caveats_come_from_the_numbers(tmp_path, sweep):
    many = markdown(read_results(sweep))
    assert "Seeds behind a line: 3. ± is the standard deviation over seeds." in many
    assert "contain training noise." in many
    assert "1 cell failed" in many
    rows = [cell(tmp_path, commit="aaa"), cell(tmp_path, "pllava", 4, machine="other", commit="bbb", repeated=2)]
    rows += [cell(tmp_path, n_input=0, rate=0.6, control="text_only")]
    write_rows(tmp_path, rows)
    one = markdown(read_results(tmp_path))
    assert "one seed says nothing about training noise" in one
    assert "do not contain training noise" in one
    assert "± is" not in one
    for words in ("different machines", "different commits", "Up to 2 clips", "Text only is"):
        assert words in one
        assert words not in many


def test_any_categories_work_and_keep_their_names(tmp_path):
    row = {**cell(tmp_path), "by_category": {"counting | hard": 0.5, "Action Order": 0.25}}
    write_rows(tmp_path, [row])
    assert "| AO | counting \\| hard |" in markdown(read_results(tmp_path))


def test_a_run_in_which_everything_failed_still_reports(tmp_path):
    row = {**BASE, "id": "a", "status": "failed", "reason": "no", "compressor": "none", "k": 1, "seed": 0}
    write_rows(tmp_path, [row])
    text = write_report(tmp_path).read_text()
    assert "No cell is done" in text
    assert "figure.png" not in text
    assert not (tmp_path / "figure.png").exists()


def test_csv_holds_every_cell(sweep):
    write_report(sweep)
    with (sweep / "results.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    rows = read_results(sweep)
    assert [row["id"] for row in written] == [row["id"] for row in rows]
    assert float(written[0]["accuracy Camera Motion"]) == rows[0]["by_category"]["Camera Motion"]
    assert json.loads(written[0]["versions"]) == {"torch": "2.11"}
    assert not list(sweep.glob(".*partial"))


# drawing


def test_the_figure_is_written_twice_the_same(sweep):
    write_report(sweep)
    first = [(sweep / name).read_bytes() for name in ("figure.png", "figure.svg")]
    write_report(sweep)
    assert first == [(sweep / name).read_bytes() for name in ("figure.png", "figure.svg")]
    assert first[0].startswith(b"\x89PNG")


def test_names_touch_neither_lines_nor_each_other(lines):
    figure = draw(lines)
    figure.canvas.draw()
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    names = [text.get_text() for text in axes.texts]
    assert {"te_fusion", "baseline, 16 frames", "text only", "one frame", "fewer frames (N/k)", "chance"} <= set(names)
    assert len(names) == len(set(names)) == 11
    assert all(box.x0 > axes.get_window_extent().x1 for box in boxes)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_bars_show_seeds_and_questions(lines):
    (axes,) = draw(lines).axes
    line = find(lines, "te_fusion", 8)
    heights = [segment[:, 1] for bars in axes.containers for bar in bars[2] for segment in bar.get_segments()]
    expected = 100 * (line["accuracy"] + np.array([-1, 1]) * line["error"])
    assert any(np.allclose(height, expected) for height in heights)


def test_methods_at_one_ratio_are_rows_in_the_order_of_their_accuracy(tmp_path):
    write_rows(tmp_path, sweep_rows(tmp_path, ratios=(4,)))
    lines = table(read_results(tmp_path))
    figure = draw(lines)
    figure.canvas.draw()
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[-2:] == ["kangaroo", "te_fusion"]
    controls = {"text only", "one frame, fewer frames (N/k)", "fewer frames (N/k)", "lower resolution"}
    assert set(names) == {*RATES, "baseline", *controls}
    means = [bars[0].get_xdata()[0] for bars in axes.containers]
    assert means == sorted(means)
    assert len(means) == len(names)
    beside = [text for text in axes.texts if text.get_text() != " chance"]
    assert all(text.get_window_extent().x0 > axes.get_window_extent().x1 for text in beside)
    assert not any(a.overlaps(b) for a, b in itertools.combinations([t.get_window_extent() for t in beside], 2))


@pytest.mark.parametrize("ends", [[0.5] * 5, [0.1, 0.11, 0.5, 0.52, 0.9], [0.0], [0.0, 1.0]])
def test_names_move_apart_and_no_further(ends):
    places = spread_out(ends, gap=0.1)
    assert np.all(np.diff(places) >= 0.1 - 1e-9)
    assert np.mean(places) == pytest.approx(np.mean(ends))
    if len(ends) < 2 or min(np.diff(ends)) >= 0.1:
        assert places == ends


# while it runs


def test_the_live_table_fills_up(sweep):
    from rich.console import Console

    rows = read_results(sweep)
    waiting = [{"compressor": "te_fusion", "k": 4, "control": "", "seed": 3, "n_input": 16, "size": "32"}]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(live_table(rows, waiting))
    text = console.export_text()
    assert ["te_fusion", "4", "3/4"] in [line.split()[:3] for line in text.splitlines()]
    assert "1 failed" in text
    assert {"MR", "RC", "tok"} <= set(text.split())
    assert "…" not in text
    assert live_table([], waiting).row_count == 1


def test_reading_results_imports_no_plotting_and_no_torch():
    code = "import sys, tefusion.report; print([m for m in ('torch', 'matplotlib', 'rich', 'av') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
