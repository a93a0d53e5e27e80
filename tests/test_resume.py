"""A run that was killed, stopped or moved and started again gives, bit for bit, what it would have given."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.utils import set_seed

from tefusion import cell, cli, evaluate, lock, snapshot, training
from tefusion.cell import Log, clear_checkpoints, train_cell
from tefusion.cells import Cell
from tefusion.checkpoint import Checkpoints
from tefusion.config import Run, changed
from tefusion.data.order import Order
from tefusion.data.source import load_split
from tefusion.stop import STOPPED
from tefusion.train import accelerator, create_vlm, frame_cache, train_videos
from tefusion.training import Progress, Training

ROOT = Path(cli.__file__).parents[1]
SMALL = Run(compressor="te_fusion", k=2, n_input=4, init="scratch", steps=6, batch=8, warmup=2)


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture(scope="module")
def split(clips):
    return load_split(clips, "train")


@pytest.fixture
def few(split):
    """So few that six steps are more than two epochs."""
    return replace(split, questions=split.questions[:20], targets=split.targets[:20])


class Life:
    """One process's part of a run: trains until `dies` steps are done."""

    def __init__(self, run, split, home, folder, dies=None):
        self.run, self.dies, self.draws = run, dies, []
        self.vlm, acc = create_vlm(run), accelerator(run)
        self.log = Log(folder / "log.jsonl", acc, lambda line: None, run.steps)
        self.checkpoints = Checkpoints(folder / "checkpoints", 2, changed(run))
        self.training = Training(run, acc, self.seen, self.checkpoints)
        self.progress = self.training.progress
        train_videos(self.vlm, split, frame_cache(home), self.training)

    def seen(self, progress, loss):
        self.log(progress, loss)  # random.random() is not among the draws: beartype itself draws from it
        self.draws.append((np.random.rand(), torch.rand(1).item()))  # noqa: NPY002
        if progress.step == self.dies:
            raise Killed


def lives(run, split, home, folder, deaths):
    for dies in deaths:
        with pytest.raises(Killed):
            Life(run, split, home, folder, dies)
    return Life(run, split, home, folder)


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


KINDS = {
    "muon": {},
    "accumulated": {"accumulate": 2},
    "workers": {"workers": 2},
    "adamw, frozen": {"optimizer": "adamw", "freeze": "encoder"},
    "text alone": {"compressor": "none", "k": 1, "n_input": 0},
    "bf16": {"precision": "bf16"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_died_twice_ends_as_one_that_never_did(kind, few, home, tmp_path, monkeypatch):
    monkeypatch.setattr(cell, "EVERY", 3)  # a line's means reach over a checkpoint
    run = replace(SMALL, **KINDS[kind])
    whole = lives(run, few, home, tmp_path / "whole", [])
    again = lives(run, few, home, tmp_path / "again", [3, 5])
    assert same_weights(whole.vlm, again.vlm)
    assert (again.checkpoints.resumed, whole.checkpoints.resumed) == (2, 0)
    assert again.draws == whole.draws[4:]  # whatever draws at random goes on as well
    assert again.progress.order == whole.progress.order
    assert again.progress.notes == whole.progress.notes
    logs = [(tmp_path / name / "log.jsonl").read_bytes() for name in ("whole", "again")]
    assert logs[0] == logs[1]
    assert [json.loads(line)["step"] for line in logs[0].splitlines()] == [3, 6]


def test_random_states_go_through_a_checkpoint_and_others_are_drawn_for_other_processes():
    def draws():
        return [random.random(), random.gauss(0, 1), np.random.randn(), torch.rand(1).item()]  # noqa: NPY002

    set_seed(0)
    draws()  # gauss and randn keep the second of a pair
    states = snapshot.random_states()
    first = draws()
    snapshot.set_random_states(states)
    assert draws() == first
    others = []
    for step, rank in ((4, 0), (4, 1), (5, 0), (4, 0)):
        snapshot.draw_anew(0, step, rank)
        others.append(draws())
    assert others[0] == others[3]
    assert len({tuple(other) for other in others}) == 3


def test_a_death_before_the_first_checkpoint_begins_anew(few, home, tmp_path):
    whole, again = lives(SMALL, few, home, tmp_path / "a", []), lives(SMALL, few, home, tmp_path / "b", [1])
    assert same_weights(whole.vlm, again.vlm)
    assert again.checkpoints.resumed == 0


def test_the_order_is_that_of_the_examples_trained_on(few, home, tmp_path):
    life = lives(SMALL, few, home, tmp_path, [5])
    told = Progress()
    for batch in Order(20, 8, 6, SMALL.seed):
        told.advance(batch)
    assert life.progress.order == told.order
    twice = Progress()  # a batch twice, another left out
    for batch in [*Order(20, 8, 5, SMALL.seed), next(iter(Order(20, 8, 6, SMALL.seed)))]:
        twice.advance(batch)
    assert life.progress.order != twice.order


def test_a_finished_run_that_is_taken_up_trains_no_step(few, home, tmp_path):
    whole = lives(SMALL, few, home, tmp_path, [])
    again = Life(SMALL, few, home, tmp_path, dies=-1)
    assert again.draws == []
    assert same_weights(whole.vlm, again.vlm)
    assert not again.vlm.training
    assert again.progress.notes == whole.progress.notes


def test_unread_videos_and_seconds_are_remembered(few, home, tmp_path, monkeypatch):
    monkeypatch.setattr("tefusion.data.examples.BAD_VIDEOS", 0.5)
    missing = str(tmp_path / "missing.mp4")
    first, _, third = ([place for _, place in batch] for batch in Order(20, 8, 3, SMALL.seed))
    once = next(place for place in first if place not in third)
    few.questions[once] = replace(few.questions[once], video=Path(missing))
    again = lives(replace(SMALL, steps=3), few, home, tmp_path, [3])
    assert again.progress.unread == {missing}
    assert again.progress.seconds > 0


def test_a_damaged_checkpoint_costs_two_steps_and_one_that_does_not_fit_changes_nothing(few, home, tmp_path, caplog):
    with pytest.raises(Killed):
        Life(SMALL, few, home, tmp_path, 5)
    shard = tmp_path / "checkpoints/step-00000004/shard-00000-of-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4])
    assert same_weights(Life(SMALL, few, home, tmp_path).vlm, lives(SMALL, few, home, tmp_path / "whole", []).vlm)
    assert sum("going on from step-00000002" in line for line in caplog.messages) == 1
    for shard in tmp_path.glob("checkpoints/*/shard*"):
        shard.write_bytes(b"")
    vlm, acc = create_vlm(SMALL), accelerator(SMALL)
    refused = Training(SMALL, acc, checkpoints=Checkpoints(tmp_path / "checkpoints", 2, changed(SMALL)))
    with pytest.raises(ValueError, match="no checkpoint can be loaded"):
        train_videos(vlm, few, frame_cache(home), refused)
    assert same_weights(vlm, create_vlm(SMALL))
    assert refused.progress.step == 0


def test_the_log_is_cut_back_and_a_torn_line_goes(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 10}\n{"step": 20}\n{"step": 30}\n{"st')
    Log(path, accelerator(SMALL), lambda line: None, 40).cut_back(21)
    assert path.read_bytes() == b'{"step": 10}\n{"step": 20}\n'
    path.write_bytes(b'{"step": 10}\n{"step": 20}')
    Log(path, accelerator(SMALL), lambda line: None, 40).cut_back(21)
    assert path.read_bytes() == b'{"step": 10}\n'


@pytest.fixture
def asked(monkeypatch):
    """Asks the run to end after so many looks."""

    def after(looks):
        left = iter([False] * looks)
        for module in (training, evaluate, lock):
            monkeypatch.setattr(module, "asked", lambda: next(left, True))

    return after


def outcome(out):
    """What two folders of one cell must agree in."""
    (row,) = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    own = ("encoder_ms", "compressor_ms", "prefill_ms", "peak_memory_mb", "seconds", "resumed", "commit", "date")
    files = [*out.glob("cells/*/*.jsonl"), out / "model.safetensors"]
    return {key: row[key] for key in row if key not in own}, {f.relative_to(out): f.read_bytes() for f in files}


def words(clips, home, out, **more):
    run = {"steps": 5, "image_steps": 4, "batch": 8, "n_input": 4, "k": 2, "save_every": 3, "warmup": 2}
    run |= {"data": clips, "home": home, "out": out} | more
    return [f"{key}={value}" for key, value in run.items()]


def test_a_run_that_is_asked_to_end_says_how_to_go_on_and_does(clips, tmp_path, asked, capsys):
    """Once in the image stage, once in training, once while it answers: each time it saves and is taken up."""
    before = signal.getsignal(signal.SIGINT)
    assert cli.run("train", words(clips, tmp_path / "home", tmp_path / "a")) == 0
    for looks, says in ((1, "at step 2 of 4"), (2 + 2, "at step 3 of 5"), (2 + 1, "after 8 of 24 questions")):
        asked(looks)
        capsys.readouterr()
        assert cli.run("train", words(clips, tmp_path / "other", tmp_path / "b")) == STOPPED
        out, err = capsys.readouterr()
        assert err == f"tefusion: stopped {says}, run the same command to go on\n"
        assert str(tmp_path) not in out
    asked(99)
    assert cli.run("train", words(clips, tmp_path / "other", tmp_path / "b")) == 0
    assert signal.getsignal(signal.SIGINT) is before  # a command listens, its caller need not
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")
    row = json.loads((tmp_path / "b/results.jsonl").read_text())
    assert row["resumed"] == 2
    assert len(row["order"]) == 32
    images = [next(tmp_path.glob(f"{home}/images/*.safetensors")).read_bytes() for home in ("home", "other")]
    assert images[0] == images[1]
    assert not list(tmp_path.rglob("step-*"))  # nobody needs them any more


def test_a_cells_checkpoints_are_cleared_when_its_row_is_kept(clips, home, tmp_path):
    run = replace(SMALL, data=str(clips), steps=2)
    train_cell(Cell(run), "cell", tmp_path, home, "", lambda line: None)
    (kept,) = tmp_path.glob("cells/cell/checkpoints/step-00000002/manifest.json")
    assert json.loads(kept.read_bytes())["settings"] == changed(run)  # a setting that comes later leaves it good
    clear_checkpoints(tmp_path, "cell")
    clear_checkpoints(tmp_path, "cell")
    assert sorted(path.name for path in (tmp_path / "cells/cell").iterdir()) == ["answers.jsonl", "log.jsonl"]


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_negative_interval_is_refused(command, tmp_path, capsys):
    assert cli.run(command, [f"home={tmp_path}", f"out={tmp_path}", "save_every=-1"]) == 2
    assert capsys.readouterr().err == "tefusion: save_every must not be negative, got -1\n"


def started(words):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )


def latest(folder):
    """What each pointer to a newest checkpoint says; none where one is being cleared."""
    with suppress(FileNotFoundError):
        return {path: path.read_bytes() for path in folder.rglob("latest")}
    return {}


@pytest.mark.heavy
def test_processes_killed_at_random_moments_give_the_same_files(clips, tmp_path):
    """Each is killed a moment after it has saved once more than the one before it, so that all come forward."""
    mine = {"steps": 20, "image_steps": 10, "save_every": 4, "workers": 1}
    plain = started(words(clips, tmp_path / "home", tmp_path / "a", **mine))
    assert plain.wait() == 0, plain.stderr.read()
    rng, kills, before = random.Random(0), 0, latest(tmp_path)
    process = started(words(clips, tmp_path / "other", tmp_path / "b", **mine))
    while kills < 4 and process.poll() is None:
        if latest(tmp_path) in (before, {}):
            time.sleep(0.01)
            continue
        time.sleep(rng.uniform(0, 0.1))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills, before = kills + 1, latest(tmp_path)
        process = started(words(clips, tmp_path / "other", tmp_path / "b", **mine))
    assert process.wait() == 0, process.stderr.read()
    assert kills >= 2
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")


@pytest.mark.heavy
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_of_a_run_saves_the_step_it_came_in(number, clips, tmp_path):
    process = started(words(clips, tmp_path / "home", tmp_path / "out", init="scratch", steps=5000, workers=2))
    while not list(tmp_path.glob("out/cells/*/checkpoints/latest")):
        time.sleep(0.1)
        assert process.poll() is None, process.stderr.read()
    os.killpg(process.pid, number)
    err = process.communicate()[1]
    assert process.returncode == STOPPED
    (latest,) = tmp_path.glob("out/cells/*/checkpoints/latest")
    saved = int(json.loads(latest.read_text())["checkpoint"].removeprefix("step-"))
    assert err == f"tefusion: stopped at step {saved} of 5000, run the same command to go on\n"


LISTENS = """
import time
from contextlib import suppress
from tefusion.stop import asked, listen
listen()
print("listening", flush=True)
while not asked():
    time.sleep(0.01)
print("asked", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(number):
    command = [sys.executable, "-c", LISTENS]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    for says in ("listening", "asked"):
        assert process.stdout.readline() == says + "\n"
        process.send_signal(number)
    assert process.wait(timeout=30) == 128 + number
