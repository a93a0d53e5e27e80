"""Several processes do what one does: the same losses, the same answers, one writer; and one that dies ends them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tefusion import train

ROOT = Path(train.__file__).parents[1]

LOSSES = """
import json, sys, os, torch
from dataclasses import replace
from pathlib import Path
from tefusion.config import Run
from tefusion.data.source import load_split
from tefusion.evaluate import answer_questions
from tefusion.score import write_answers
from tefusion.launch import is_first, leave
from tefusion.train import accelerator, create_vlm, frame_cache, reader, train_videos
from tefusion.training import Training

torch.set_num_threads(1)
clips, out, settings = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
run = Run(compressor="te_fusion", k=2, n_input=4, init="scratch", steps=20, batch=16, warmup=5, **settings)
losses, vlm, cache = [], create_vlm(run), frame_cache(out / "frames")
split = load_split(clips, "test")
asked = replace(split, questions=[replace(q, uid=str(i)) for i, q in enumerate(split.questions * 2)][:41])
read = reader(run, cache, (32, 32), split.length)
answers, videos = answer_questions(vlm.eval(), asked.questions, read, 6)  # 41 questions, 7 batches: uneven for 2, 3
seen = lambda progress, loss: losses.append([loss.total.item(), loss.answer.item(), loss.auxiliary.item()])
training = Training(run, accelerator(run), seen)
train_videos(vlm, load_split(clips, "train"), cache, training)
if is_first():
    write_answers(out / "answers.jsonl", answers)
    (out / "said.json").write_text(json.dumps([losses, training.progress.order, videos]))
leave()
"""


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}


def torchrun(n, *words):
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n}"] if n > 1 else []
    command = [sys.executable, *several, *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment(), **pipes)


def finish(process, code=0, timeout=500):
    """What it printed; who does not end in time is ended."""
    try:
        out, _ = process.communicate(timeout=timeout)
    finally:
        process.terminate()
    assert bool(process.returncode) == bool(code), out[-3000:]
    return out


def said(n, clips, folder, settings):
    out = folder / f"{n}"
    out.mkdir(parents=True)
    (folder / "losses.py").write_text(LOSSES)
    finish(torchrun(n, folder / "losses.py", clips, out, json.dumps(settings)))
    return json.loads((out / "said.json").read_text()), (out / "answers.jsonl").read_bytes()


@pytest.mark.heavy
@pytest.mark.parametrize("settings", [{}, {"accumulate": 2}, {"optimizer": "adamw"}])
def test_the_first_twenty_losses_and_the_answers_are_those_of_one_process(settings, clips, tmp_path):
    (one, order, videos), answers = said(1, clips, tmp_path, settings)
    (two, again, seen), answered = said(2, clips, tmp_path, settings)
    assert len(one) == 20
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    assert order == again
    assert (answers, videos) == (answered, seen)
    assert one[-1][0] < one[0][0]


def words(clips, folder, out, **more):
    run = {"init": "scratch", "steps": 12, "batch": 8, "n_input": 4, "k": 2, "save_every": 3}
    run |= {"warmup": 2, "data": clips, "home": folder / "home", "out": folder / out} | more
    return [ROOT / "train.py", *(f"{key}={value}" for key, value in run.items())]


def wait_for(pattern, folder, process):
    while not list(folder.glob(pattern)):
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()[0][-3000:]


def children(process):
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in found if "train.py" in Path(f"/proc/{pid}/cmdline").read_text()]


def die(n, mine, folder):
    """One of the run's `n` processes is killed after a checkpoint; all have to end within a minute."""
    process = torchrun(n, *mine)
    wait_for("out/cells/*/checkpoints/latest", folder, process)
    start = time.monotonic()
    os.kill(children(process)[-1] if n > 1 else process.pid, signal.SIGKILL)
    finish(process, code=1, timeout=60)
    assert time.monotonic() - start < 60


@pytest.mark.heavy
@pytest.mark.parametrize(("before", "after"), [(2, 1), (2, 2), (1, 2)])
def test_one_that_dies_ends_the_run_within_a_minute_and_any_number_goes_on(before, after, clips, tmp_path):
    finish(torchrun(1, *words(clips, tmp_path, "whole")))
    mine = words(clips, tmp_path, "out")
    die(before, mine, tmp_path)
    (folder, *_) = tmp_path.glob("out/cells/*/checkpoints/step-*[369]")
    names = [f"shard-0000{i}-of-0000{before}.safetensors" for i in range(before)]
    assert sorted(p.name for p in folder.glob("shard*")) == names
    sizes = [path.stat().st_size for path in folder.glob("shard*")]
    assert max(sizes) < 1.2 / before * sum(sizes)
    finish(torchrun(after, *mine))
    one, two = (json.loads((tmp_path / name / "results.jsonl").read_text()) for name in ("whole", "out"))
    assert (one["order"], one["questions"]) == (two["order"], two["questions"])
    assert two["resumed"] == 1
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    states = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out")]
    assert max((states[0][name] - states[1][name]).abs().max().item() for name in states[0]) < 1e-3


@pytest.mark.heavy
def test_as_many_processes_go_on_to_the_last_bit(clips, tmp_path):
    """With parts of a batch, and workers that read ahead of the step at which the others died."""
    more = {"accumulate": 2, "workers": 1, "steps": 30, "save_every": 4}
    finish(torchrun(2, *words(clips, tmp_path, "whole", **more)))
    mine = words(clips, tmp_path, "out", **more)
    die(2, mine, tmp_path)
    finish(torchrun(2, *mine))
    rows = [json.loads((tmp_path / name / "results.jsonl").read_text()) for name in ("whole", "out")]
    assert [row["resumed"] for row in rows] == [0, 1]
    assert rows[0]["order"] == rows[1]["order"]
    for pattern in ("model.safetensors", "cells/*/answers.jsonl", "cells/*/log.jsonl"):
        one, two = (next((tmp_path / name).glob(pattern)).read_bytes() for name in ("whole", "out"))
        assert one == two, pattern


@pytest.mark.heavy
def test_all_stop_at_the_same_step_whoever_was_asked(clips, tmp_path):
    process = torchrun(2, *words(clips, tmp_path, "out", steps=5000))
    wait_for("out/cells/*/checkpoints/latest", tmp_path, process)
    os.kill(children(process)[-1], signal.SIGTERM)
    out = finish(process, code=1, timeout=60)
    assert out.count("run the same command to go on") == 1
    assert "exitcode  : 75" in out
    (latest,) = tmp_path.glob("out/cells/*/checkpoints/latest")
    step = int(json.loads(latest.read_text())["checkpoint"].removeprefix("step-"))
    assert f"stopped at step {step} of 5000" in out


@pytest.mark.heavy
def test_a_sweep_in_two_processes_has_the_rows_of_one(clips, tmp_path):
    """Image stage, cells and controls, one after another in both; the text alone leaves the encoder out of the loss."""
    rows = []
    for n in (1, 2):
        _, *mine = words(
            clips, tmp_path / f"home{n}", "out", init="image", image_steps=4, steps=4, compressor="te_fusion"
        )
        finish(torchrun(n, ROOT / "sweep.py", *mine, "jobs=1"))
        lines = (tmp_path / f"home{n}" / "out" / "results.jsonl").read_text().splitlines()
        rows.append({row["id"]: row for row in map(json.loads, lines)})
        assert len(lines) == len(rows[-1]) > 3
    one, two = rows
    assert one.keys() == two.keys()
    for name, row in one.items():
        assert row["status"] == two[name]["status"] == "done"
        assert row["order"] == two[name]["order"]
        assert row["loss"] == pytest.approx(two[name]["loss"], rel=1e-4)


def test_processes_that_do_not_find_together_are_refused(tmp_path):
    """Each would train alone and write over the other."""
    code = "from tefusion.launch import gather; gather([1])"
    alone = environment() | {"WORLD_SIZE": "2", "RANK": "0", "CUDA_VISIBLE_DEVICES": ""}
    del alone["ACCELERATE_USE_CPU"]
    done = subprocess.run([sys.executable, "-c", code], env=alone, capture_output=True, text=True)
    assert "ValueError: 2 processes were started and see 1; set ACCELERATE_USE_CPU=1 without a GPU" in done.stderr


@pytest.mark.parametrize("world", ["1", "2"])
def test_who_leaves_has_said_everything_and_one_of_several_takes_nothing_down(world):
    """What is taken down meets Gloo's threads, which may hold tensors still."""
    code = """
import atexit
from tefusion.launch import leave
class Held:
    def __del__(self, write=print):
        write("taken down")
held = Held()
atexit.register(print, "at exit")
print("done")
leave(75)
"""
    env = environment() | {"WORLD_SIZE": world}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 75
    assert done.stdout.split("\n") == ["done", "at exit", *(["taken down"] if world == "1" else []), ""]
