"""A sweep from words to the report: what it trains, what it leaves alone, what it survives."""

import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import benchmark_folders as folders
import pytest
from test_processes import finish, wait_for

from tefusion import cell, cli, stop
from tefusion import sweep as module
from tefusion.cells import plan
from tefusion.image_stage import image_run
from tefusion.report import read_results
from tefusion.sweep import jobs_at_once, sweep

ROOT = Path(__file__).parents[1]
ROW = ["compressor", "k", "n_input", "l_decoder", "seed", "status", "accuracy", "stderr", "by_category", "questions"]
ROW += ["params", "flops", "encoder_ms", "compressor_ms", "prefill_ms", "peak_memory_mb", "seconds", "commit"]
ROW += ["trained_steps", "training_flops"]


def words(clips, home, *more):
    """Two cells and their controls, as small as they can be."""
    small = [f"data={clips}", f"home={home}", "steps=2", "image_steps=2", "batch=8", "n_input=4", "k=2", "size=32"]
    return [*small, "encoder=tiny", "decoder=tiny", *more]


@pytest.fixture(scope="module")
def swept(clips, home, tmp_path_factory):
    out = tmp_path_factory.mktemp("swept")
    mine = words(clips, home, f"out={out}", "compressor=none,te_fusion,qformer")
    sweep([*mine, "jobs=2"])
    return out, mine


def untouched(*args, **kwargs):
    raise AssertionError("a cell was trained again")


def test_rows_carry_every_public_field(swept):
    out, mine = swept
    rows = read_results(out)
    assert len(rows) == len(plan(mine)[1]) == 7
    for row in rows:
        assert [name for name in ROW if name not in row] == []
        assert (row["status"], row["questions"], row["protocol"]) == ("done", 24, 4)
        assert set(row["by_category"]) == {"MR", "LM", "CM", "MO", "AO", "RC"}
        assert row["peak_memory_mb"] > 0
        assert 0 < row["seconds"] < 100
        folder = out / "cells" / row["id"]
        assert len((folder / "answers.jsonl").read_text().splitlines()) == 24
        assert json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["step"] == 2
    length = {(row["compressor"], row["control"], row["n_input"], row["size"]): row["l_decoder"] for row in rows}
    tokens = length["none", "one_frame", 1, "32"]
    assert length["none", "", 4, "32"] == 4 * tokens
    assert length["te_fusion", "", 4, "32"] == length["qformer", "", 4, "32"] == 2 * tokens
    assert length["none", "fewer_frames", 2, "32"] == length["none", "lower_resolution", 4, "32x16"] == 2 * tokens
    assert length["none", "text_only", 0, "32"] == 0


def test_report_table_and_figure_lie_beside_the_rows(swept):
    out, _ = swept
    assert "te_fusion" in (out / "report.md").read_text()
    assert len(list(csv.DictReader((out / "results.csv").open()))) == 7
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_sweep_trains_nothing_and_prints_the_report(swept, monkeypatch, capsys):
    out, mine = swept
    monkeypatch.setattr(module, "train_cells", untouched)
    before = (out / "results.jsonl").read_bytes()
    assert sweep(mine) == out / "report.md"
    assert (out / "results.jsonl").read_bytes() == before
    text = capsys.readouterr().out
    assert "te_fusion" in text
    assert str(out / "report.md") in text.replace("\n", "")


def test_one_image_model_serves_all_cells(swept):
    assert len({image_run(one.run) for one in plan(swept[1])[1]}) == 1


@pytest.fixture
def here(monkeypatch):
    """Cells in this process, each a row of its settings; `ran` holds them, `failing` names methods that raise,
    `stopping` those during which the sweep is asked to stop, `score` is what a run answers right."""

    here = SimpleNamespace(ran=[], failing=set(), stopping=set(), cleared=[], score=lambda run: 0.5)

    def run_cell(one, name, out, home, log_with, send, save_every):
        if one.run.compressor in here.stopping:
            stop._asked.append(15)
            raise stop.Stopped("at step 1")
        if one.run.compressor in here.failing:
            raise RuntimeError("it broke\nin detail")
        here.ran.append(name)
        row = cell.describe(one, name) | {"accuracy": here.score(one.run), "stderr": 0.1}
        row |= {"by_category": {"MR": 0.5}, "questions": 24}
        return row | {"l_decoder": 4, "seconds": 1.0}

    monkeypatch.setattr(cell, "run_cell", run_cell)
    monkeypatch.setattr(cell, "run_images", lambda run, home, send, save_every: "")
    monkeypatch.setattr(cell, "clear_checkpoints", lambda out, name: here.cleared.append((rows_of(out), name)))
    monkeypatch.setattr(module, "jobs_at_once", lambda asked: 0)
    monkeypatch.setattr(stop, "_asked", [])
    return here


def rows_of(out):
    return [file.read_text() for file in out.glob("results*.jsonl")]


def test_a_failed_cell_is_recorded_the_rest_go_on_and_it_is_tried_again(clips, home, tmp_path, here):
    mine = words(clips, home, f"out={tmp_path}", "compressor=none,te_fusion,pllava")
    here.failing = {"te_fusion"}
    sweep(mine)
    rows = read_results(tmp_path)
    (failed,) = [row for row in rows if row["status"] == "failed"]
    assert (failed["compressor"], failed["reason"]) == ("te_fusion", "RuntimeError: it broke")
    assert failed["commit"]
    assert "in detail" in (tmp_path / "cells" / failed["id"] / "error.log").read_text()
    assert len(rows) == len(here.ran) + 1 == 7
    assert "it broke" in (tmp_path / "report.md").read_text()
    here.failing, here.ran[:] = set(), []
    sweep(mine)
    assert here.ran == [failed["id"]]
    assert {row["status"] for row in read_results(tmp_path)} == {"done"}


def test_a_sweep_ends_after_its_minutes_and_goes_on_when_it_is_run_again(clips, home, tmp_path, here, monkeypatch):
    """Here every cell takes one."""
    monkeypatch.setattr(stop, "time", SimpleNamespace(monotonic=lambda: 60.0 * len(here.ran)))
    mine = words(clips, home, f"out={tmp_path}", "compressor=none,te_fusion,pllava")
    for ran, left in ((3, 4), (6, 1)):
        with pytest.raises(stop.Stopped, match=f"{left} of 7 cells are left"):
            sweep([*mine, "minutes=3"])
        assert len(here.ran) == ran
        assert not stop.asked()
    sweep([*mine, "minutes=3"])
    assert len(set(here.ran)) == len(read_results(tmp_path)) == 7


def test_all_cells_may_fail(clips, home, tmp_path, here):
    here.failing = {"none", "pllava"}
    path = sweep(words(clips, home, f"out={tmp_path}", "compressor=none,pllava"))
    assert "it broke" in path.read_text()


def test_a_torn_last_line_costs_its_own_cell_only(clips, home, tmp_path, here):
    mine = words(clips, home, f"out={tmp_path}", "compressor=none,pllava")
    sweep(mine)
    lines = (tmp_path / "results.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "results.jsonl").write_text("".join(lines)[: -len(lines[-1]) // 2])
    torn = json.loads(lines[-1])["id"]
    here.ran.clear()
    with pytest.warns(UserWarning, match="torn line"):
        sweep(mine)
    assert here.ran == [torn]
    with pytest.warns(UserWarning, match="torn line"):
        assert {row["id"] for row in read_results(tmp_path)} == {json.loads(line)["id"] for line in lines}


def test_a_cell_that_fails_three_times_is_set_aside_until_it_is_asked_for(clips, home, tmp_path, here, capsys):
    mine = words(clips, home, f"out={tmp_path}", "compressor=none,te_fusion")
    here.failing = {"te_fusion"}
    for _ in range(3):
        sweep(mine)
    here.failing = set()
    capsys.readouterr()
    sweep(mine)
    (failed,) = [row for row in read_results(tmp_path) if row["status"] == "failed"]
    assert failed["failures"] == 3
    log = tmp_path / "cells" / failed["id"] / "error.log"
    assert log.read_text().count("RuntimeError: it broke\nin detail") == 3
    said = capsys.readouterr().out
    assert "set aside after 3 failures" in said
    assert "RuntimeError: it broke" in said
    assert str(log) in said
    assert "| 3, set aside | RuntimeError: it broke |" in (tmp_path / "report.md").read_text()
    assert len(here.ran) == len(plan(mine)[1]) - 1
    sweep([*mine, "retry=true"])
    assert here.ran[-1] == failed["id"]
    assert {row["status"] for row in read_results(tmp_path)} == {"done"}
    assert "set aside" not in (tmp_path / "report.md").read_text()


def test_a_failed_image_model_fails_its_cells_without_training_them(clips, home, tmp_path, here, monkeypatch):
    def run_images(run, home, send, save_every):
        raise FloatingPointError("the loss is nan at step 3, of examples 4, 5")

    monkeypatch.setattr(cell, "run_images", run_images)
    sweep(words(clips, home, f"out={tmp_path}", "compressor=none,te_fusion"))
    assert not here.ran
    reasons = {row["reason"] for row in read_results(tmp_path)}
    assert reasons == {"image model: FloatingPointError: the loss is nan at step 3, of examples 4, 5"}


def test_a_sweep_that_is_asked_to_stop_reports_and_goes_on_later(clips, home, tmp_path, here):
    mine = words(clips, home, f"out={tmp_path}", "compressor=none,te_fusion,pllava")
    here.stopping = {"pllava"}  # after others of its length
    with pytest.raises(stop.Stopped, match=r"[1-6] of 7 cells are left"):
        sweep(mine)
    done = len(here.ran)
    assert len(read_results(tmp_path)) == done
    assert (tmp_path / "report.md").exists()
    assert cli.run("sweep", mine) == stop.STOPPED
    here.stopping.clear()
    stop._asked.clear()
    sweep(mine)
    assert len(here.ran) == len(set(here.ran)) == 7


def test_checkpoints_go_when_the_row_is_on_disk(clips, home, tmp_path, here):
    here.failing = {"te_fusion"}
    sweep(words(clips, home, f"out={tmp_path}", "compressor=none,te_fusion"))
    assert sorted(name for _, name in here.cleared) == sorted(here.ran)
    assert all(name in rows[0] for rows, name in here.cleared)


HOLDER = """
import sys
from pathlib import Path
from tefusion.lock import locked
with locked(Path(sys.argv[1])):
    print(flush=True)
    sys.stdin.read()
"""


def test_checkpoints_that_a_crash_left_go_with_the_next_sweep(clips, home, tmp_path, here):
    mine = words(clips, home, f"out={tmp_path}", "compressor=none,te_fusion")
    here.failing = {"te_fusion"}
    sweep(mine)
    cells = [row["id"] for row in read_results(tmp_path)]
    for name in cells:
        (tmp_path / "cells" / name / "checkpoints").mkdir(parents=True)
    done = sorted(row["id"] for row in read_results(tmp_path) if row["status"] == "done")
    here.cleared.clear()
    sweep(mine)
    assert sorted(name for _, name in here.cleared) == done  # a failed one may go on from them


def test_a_second_sweep_of_the_same_results_names_the_first(clips, home, tmp_path, here, capsys):
    mine = words(clips, home, f"out={tmp_path}", "compressor=none", "controls=false")
    holder = [sys.executable, "-c", HOLDER, str(tmp_path / "results.lock")]
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        first.stdout.readline()
        assert cli.run("sweep", mine) == 2
        assert f"results.lock is held by process {first.pid} on " in capsys.readouterr().err
        assert not here.ran
        assert cli.run("sweep", [*mine, "shard=0/2"]) == 0  # writes another file
        first.kill()
    assert len(here.ran) == 1
    assert cli.run("sweep", mine) == 0


def test_new_axes_train_new_cells_only(clips, home, tmp_path, here):
    mine = words(clips, home, f"out={tmp_path}", "compressor=none,pllava")
    sweep([*mine, "seed=0"])
    first = list(here.ran)
    sweep([*mine, "seed=0,1"])
    assert len(here.ran) == len(set(here.ran)) == 2 * len(first)


def test_shards_share_the_work_and_the_report_merges_them(clips, home, tmp_path, here, capsys):
    mine = words(clips, home, "compressor=none,te_fusion,pllava")
    for folder, shards in (("same", ("same", "same")), ("apart", ("left", "right"))):
        here.ran.clear()
        for i, name in enumerate(shards):
            sweep([*mine, f"out={tmp_path / name}", f"shard={i}/2"])
        assert len(here.ran) == len(set(here.ran)) == len(plan(mine)[1]), folder
    assert {path.name for path in (tmp_path / "same").glob("*.jsonl")} == {"results-0of2.jsonl", "results-1of2.jsonl"}
    assert len(read_results(tmp_path / "same")) == 7
    assert cli.run("report", [f"out={tmp_path / 'left'},{tmp_path / 'right'}"]) == 0
    assert len((tmp_path / "left" / "results.csv").read_text().splitlines()) == 8
    assert "pllava" in capsys.readouterr().out


def test_data_that_cannot_be_read_stops_a_sweep_at_the_door(home, tmp_path, here):
    with pytest.raises(ValueError, match="neither a folder nor a generated set"):
        sweep([f"home={home}", "data=nowhere", f"out={tmp_path}"])
    assert not here.ran


def test_jobs(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert [jobs_at_once(n) for n in (0, 1, 3)] == [6, 1, 3]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert [jobs_at_once(n) for n in (0, 2)] == [0, 2]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert jobs_at_once(4) == 0


def settings_of(out, control=None):
    """(compressor, learning rate, split, seed) of the rows on disk, in their order; of trials, or of all others."""
    lines = [json.loads(line) for file in sorted(out.glob("results*.jsonl")) for line in file.read_text().splitlines()]
    names = ("compressor", "lr_scale", "split", "seed")
    return [tuple(row["settings"][n] for n in names) for row in lines if (row["control"] == "trial") is bool(control)]


BEST = {"none": 0.5, "te_fusion": 2.0, "pllava": 1.0}


@pytest.fixture
def tuned(here, clips, home, tmp_path):
    """A sweep whose methods each do best at a learning rate of their own, and on the test questions at another."""

    def score(run):
        if run.split == "test":
            return 0.9 if run.lr_scale != BEST[run.compressor] else 0.1
        return 0.6 if run.lr_scale == BEST[run.compressor] else 0.5

    here.score = score
    return words(clips, home, f"out={tmp_path}", "recipe=tuned", "compressor=none,te_fusion,pllava", "controls=false")


def test_learning_rates_are_chosen_on_dev_and_the_rest_is_trained_with_them(tuned, tmp_path, here):
    sweep([*tuned, "seed=0,1"])
    tried, scored = settings_of(tmp_path, "trial"), settings_of(tmp_path)
    assert set(tried) == {(name, scale, "dev", 1000) for name in BEST for scale in (0.5, 1.0, 2.0)}
    assert set(scored) == {(name, scale, "test", seed) for name, scale in BEST.items() for seed in (0, 1)}
    assert len(here.ran) == len(set(here.ran)) == len(tried) + len(scored) == 15
    controls = [row["control"] for row in read_results(tmp_path)]
    assert controls == ["trial"] * 9 + [""] * 6  # nothing is scored before all is chosen
    report = (tmp_path / "report.md").read_text()
    assert "| te_fusion | 2 | 4 | 32 | 50.0 | 50.0 | 60.0 | 2 |" in report
    assert "| seed | 0, 1 |" in report
    assert "| cells | 6 done in 0.0 hours, 0 failed, after 9 trials of learning rates, their hours included |" in report
    assert (
        "At the edge of the grid, which may be too narrow (`lr_scale=`): none k=1 with 4 frames, te_fusion k=2"
        in report
    )
    assert report.count("| te_fusion | 2 | 4 | **10.0** ± 0.0 |") == 1
    here.score = lambda run: 0.9
    sweep([*tuned, "seed=0,1"])
    assert len(here.ran) == 15
    sweep([*tuned, "seed=0,1,2"])
    assert {(name, scale) for name, scale, _, seed in settings_of(tmp_path) if seed == 2} == set(BEST.items())
    assert len(here.ran) == 18


def test_controls_are_tuned_like_methods_and_the_grid_is_the_askers(tuned, tmp_path, here):
    mine = [word for word in tuned if word != "controls=false"]
    sweep([*mine, "lr_scale=1,2"])
    parts = [row["control"] for row in read_results(tmp_path)]
    assert (parts.count("trial"), len(parts) - parts.count("trial")) == (2 * 7, 7)
    assert {scale for _, scale, *_ in settings_of(tmp_path, "trial")} == {1.0, 2.0}


def test_a_tuned_sweep_that_is_stopped_goes_on_where_it_was(tuned, tmp_path, here):
    here.stopping = {"pllava"}
    with pytest.raises(stop.Stopped, match="of 9 cells are left"):
        sweep(tuned)
    assert not settings_of(tmp_path)
    here.stopping.clear()
    stop._asked.clear()
    sweep(tuned)
    assert len(here.ran) == len(set(here.ran)) == 9 + 3
    assert {(name, scale) for name, scale, *_ in settings_of(tmp_path)} == set(BEST.items())


def test_a_trial_that_fails_is_tried_again_before_the_choice_and_then_done_without(tuned, tmp_path, here):
    good, fails = here.score, []

    def score(run):
        flaky = run.compressor == "te_fusion" and run.lr_scale == 2.0 and run.split == "dev" and len(fails) < 2
        if flaky or (run.compressor == "pllava" and run.split == "dev"):
            fails.extend([run] * flaky)
            raise FloatingPointError("the loss is nan")
        return good(run)

    here.score = score
    sweep(tuned)
    assert {(name, scale) for name, scale, *_ in settings_of(tmp_path)} == {("none", 0.5), ("te_fusion", 2.0)}
    report = (tmp_path / "report.md").read_text()
    assert "| pllava | 2 | 4 | 32 | failed | failed | failed | none: all failed |" in report
    assert "pllava | 2 | trial | 1000 | 3, set aside |" in report
    ran = len(here.ran)
    sweep(tuned)
    assert len(here.ran) == ran


def test_shards_of_a_tuned_sweep_wait_for_each_others_trials(tuned, tmp_path, here):
    left, right = [*tuned, "shard=0/2"], [*tuned, "shard=1/2"]
    assert cli.run("sweep", left) == stop.STOPPED
    assert len(settings_of(tmp_path, "trial")) == 5
    assert not settings_of(tmp_path)
    sweep(right)
    assert len(settings_of(tmp_path)) == 1
    sweep(left)
    assert sorted(settings_of(tmp_path)) == sorted((name, scale, "test", 0) for name, scale in BEST.items())
    assert len(here.ran) == len(set(here.ran)) == 9 + 3


def test_a_tuned_sweep_has_a_folder_of_its_own_and_needs_dev_questions(tuned, home, clips, tmp_path, here):
    rest = [word for word in tuned if not word.startswith(("out=", "home="))]
    assert sweep([*rest, f"home={tmp_path}"]) == tmp_path / "default-tuned" / "report.md"
    shutil.copytree(clips, tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / "dev")
    here.ran.clear()
    with pytest.raises(ValueError, match=r"recipe=tuned needs a folder dev in .*set"):
        sweep([*[word for word in tuned if not word.startswith("data=")], f"data={tmp_path / 'set'}"])
    assert not here.ran


def launch(*words):
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *words], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.heavy
@pytest.mark.parametrize("more", [[], ["k=6", "n_input=24"], ["k=6", "n_input=48"]])
def test_the_smoke_budget_end_to_end(tmp_path, more):
    mine = [str(ROOT / "sweep.py"), "budget=smoke", f"home={tmp_path}", *more]
    first = launch("--cpu", "--num_processes=1", *mine)
    rows = read_results(tmp_path / "smoke")
    assert {row["status"] for row in rows} == {"done"}
    assert {row["compressor"] for row in rows} == {"none", "qwen2_vl", "te_fusion", "kangaroo", "pllava", "qformer"}
    assert {row["repeated"] for row in rows} == {0}
    assert "te_fusion" in first
    before = (tmp_path / "smoke" / "results.jsonl").read_bytes()
    launch("--cpu", "--num_processes=1", *mine)
    assert (tmp_path / "smoke" / "results.jsonl").read_bytes() == before


@pytest.mark.heavy
def test_the_smoke_budget_answers_benchmarks_in_a_minute_of_two_cores(tmp_path):
    """Counted in seconds of cores, which a busy machine does not change: the image model is trained alone."""
    asked = f"motionbench:{folders.motionbench(tmp_path / 'mb')},mvbench:{folders.mvbench(tmp_path / 'mv')}"
    before = spent()
    launch("--cpu", "--num_processes=1", str(ROOT / "sweep.py"), "budget=smoke", f"home={tmp_path}", f"eval={asked}")
    assert spent() - before < 120
    rows = read_results(tmp_path / "smoke")
    assert len(rows) == 15
    for row in rows:
        assert (row["status"], list(row["scores"])) == ("done", ["motionbench", "mvbench"])
        assert (row["scores"]["motionbench"]["questions"], row["scores"]["mvbench"]["questions"]) == (6, 40)
    assert "## MVBench, 16 input frames" in (tmp_path / "smoke" / "report.md").read_text()
    assert cli.run("report", [f"out={tmp_path / 'smoke'}", "layout=paper"]) == 0
    assert "Accuracy against cost, MVBench" in (tmp_path / "smoke" / "paper" / "paper.md").read_text()


def spent():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.heavy
def test_a_cell_that_hangs_is_a_failed_row_and_the_other_is_done(clips, tmp_path):
    """Its process is stopped as it trains; 60 seconds are beyond what a busy machine needs to load a model."""
    mine = words(clips, tmp_path / "home", f"out={tmp_path}", "compressor=te_fusion,qformer", "controls=false")
    mine = [*mine, "init=scratch", "jobs=2", "hang=60", "steps=400"]
    command = [sys.executable, ROOT / "sweep.py", *[w for w in mine if w != "steps=2"]]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for("cells/*/log.jsonl", tmp_path, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    stopped = next(int(pid) for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text())
    os.kill(stopped, signal.SIGSTOP)
    finish(process)
    assert not Path(f"/proc/{stopped}").exists()
    rows = {row["status"]: row for row in read_results(tmp_path)}
    assert set(rows) == {"done", "failed"}
    assert "no sign of life for 60 s" in rows["failed"]["reason"]


@pytest.mark.heavy
def test_two_processes_train_what_one_trains(clips, tmp_path):
    """One global batch, whoever computes its parts; text alone leaves the encoder out of the loss."""
    for n in (1, 2):
        mine = words(clips, tmp_path / f"home{n}", f"out={tmp_path / str(n)}", "compressor=te_fusion", "steps=4")
        launch("--cpu", f"--num_processes={n}", str(ROOT / "sweep.py"), *[w for w in mine if w != "steps=2"])
    one, two = ({row["id"]: row for row in read_results(tmp_path / str(n))} for n in (1, 2))
    assert one.keys() == two.keys()
    assert {row["status"] for row in two.values()} == {"done"}
    for name in one:
        logs = [json.loads((tmp_path / n / "cells" / name / "log.jsonl").read_text()) for n in ("1", "2")]
        assert logs[0]["step"] == logs[1]["step"] == 4
