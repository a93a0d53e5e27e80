"""One run kept with its model, and a question to it."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch

from tefusion.ask import ask, load_run
from tefusion.cell import train_and_keep
from tefusion.cells import Cell, content
from tefusion.config import Run
from tefusion.rows import read_results


@pytest.fixture(scope="module")
def run(clips):
    small = Run(compressor="te_fusion", k=2, n_input=4, size="32", encoder="tiny", decoder="tiny", init="scratch")
    return replace(small, data=str(clips), steps=2, batch=8)


@pytest.fixture(scope="module")
def kept(run, home):
    return train_and_keep(run, None, home, "", lambda line: None)


@pytest.fixture(scope="module")
def video(clips):
    return next((clips / "test").rglob("*.mp4"))


def test_a_kept_run_has_its_settings_row_answers_log_and_weights(run, kept, clips, home):
    name = Cell(run).id(content(clips))
    assert kept == home / "train" / name
    (row,) = read_results(kept)
    assert (row["id"], row["status"], row["settings"]["k"]) == (name, "done", 2)
    assert len((kept / "cells" / name / "answers.jsonl").read_text().splitlines()) == 24
    assert {path.name for path in kept.iterdir()} == {"cells", "model.safetensors", "run.json", "results.jsonl"}


def test_the_model_comes_back_as_it_was(run, kept, tmp_path, home):
    loaded, vlm = load_run(kept)
    assert loaded == run
    assert not vlm.training
    again = load_run(train_and_keep(run, tmp_path / "again", home, "", lambda line: None))[1]
    assert all(torch.equal(a, b) for a, b in zip(vlm.parameters(), again.parameters(), strict=True))


def test_a_question_gets_a_reply_and_its_cost(kept, video):
    reply, cost = ask(kept, video, "Which way, left or right?", 5).rsplit("\n", 1)
    assert re.fullmatch(r"\(4 frames, 12 video tokens, \d+ ms\)", cost)  # 2 groups of 4 tokens, boi and eoi
    assert len(reply) < 200


def test_a_model_of_the_text_alone_is_asked_without_a_video(run, video, tmp_path, home):
    blind = train_and_keep(replace(run, compressor="none", k=1, n_input=0), tmp_path, home, "", lambda line: None)
    assert "(0 frames, 0 video tokens" in ask(blind, video, "Which way?", 3)


def broken(kept, folder, **files):
    shutil.copytree(kept, folder)
    for name, data in files.items():
        path = folder / {"run": "run.json", "model": "model.safetensors"}[name]
        path.unlink() if data is None else path.write_bytes(data)
    return folder


def test_a_folder_that_holds_no_run_gets_one_line(run, kept, tmp_path, video):
    settings = json.loads((kept / "run.json").read_text())
    weights = (kept / "model.safetensors").read_bytes()
    other = json.dumps(settings | {"compressor": "kangaroo"}).encode()
    newer = json.dumps(settings | {"colour": "red"}).encode()
    cases = {
        "holds no model.safetensors": broken(kept, tmp_path / "1", model=None),
        "holds no run.json": broken(kept, tmp_path / "2", run=None),
        "does not fit": broken(kept, tmp_path / "3", run=other),
        "model.safetensors is truncated": broken(kept, tmp_path / "4", model=weights[: len(weights) // 2]),
        "run.json": broken(kept, tmp_path / "5", run=newer),
        "run.json is": broken(kept, tmp_path / "6", run=b"{"),
    }
    for says, folder in cases.items():
        with pytest.raises(ValueError, match=says) as raised:
            ask(folder, video, "Which way?", 3)
        assert "\n" not in str(raised.value), says
