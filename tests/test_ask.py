"""One run kept with its model, and a question to it."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForImageTextToText

from tefusion.ask import ask, load_run
from tefusion.cell import train_and_keep
from tefusion.cells import Cell, content
from tefusion.config import Run
from tefusion.hub.loading import load_pretrained
from tefusion.rows import read_results
from tefusion.video import decode


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
    run_files = {"cells", "model.safetensors", "run.json", "results.jsonl"}
    transformers_own = {"config.json", "generation_config.json", "processor_config.json", "chat_template.jinja"}
    transformers_own |= {"tokenizer.json", "tokenizer_config.json", "README.md"}
    assert {path.name for path in kept.iterdir()} == run_files | transformers_own


def test_the_model_comes_back_as_it_was(run, kept, tmp_path, home):
    loaded, vlm = load_run(kept)
    assert loaded == run
    assert not vlm.training
    again = load_run(train_and_keep(run, tmp_path / "again", home, "", lambda line: None))[1]
    assert all(torch.equal(a, b) for a, b in zip(vlm.parameters(), again.parameters(), strict=True))


def test_a_question_gets_a_reply_and_its_cost(kept, video):
    reply, cost = ask(kept, video, "Which way, left or right?", 5).rsplit("\n", 1)
    assert re.fullmatch(r"\(4 frames, 12 video tokens, \d+ text tokens, \d+ ms, \d+ MB\)", cost)
    # 2 groups of 4 tokens, boi and eoi
    assert len(reply) < 200


def test_a_model_of_the_text_alone_is_asked_without_a_video(run, video, tmp_path, home):
    blind = train_and_keep(replace(run, compressor="none", k=1, n_input=0), tmp_path, home, "", lambda line: None)
    assert "(0 frames, 0 video tokens" in ask(blind, video, "Which way?", 3)


@torch.no_grad()
def test_a_kept_run_is_a_model_of_transformers(run, kept, video):
    vlm = load_run(kept)[1]
    model, processor = load_pretrained(kept)
    assert type(AutoModelForImageTextToText.from_pretrained(kept)) is type(model)
    inputs = processor.question("Which way?", video)
    frames = decode(video, processor.request())
    (embeds,) = vlm.encode([torch.from_numpy(frames.frames)], [torch.tensor(frames.seconds)])
    expected = vlm.decode(vlm.splice([embeds], [vlm.ids("Which way?\n")]), 1)
    torch.testing.assert_close(dict(model.state_dict()), dict(vlm.state_dict()), rtol=0, atol=0)
    assert torch.allclose(model(**inputs, logits_to_keep=1, use_cache=False).logits, expected, atol=1e-5)


def test_the_card_says_what_the_row_knows_and_its_snippet_runs(run, kept, video, capsys, monkeypatch, tmp_path):
    text = (kept / "README.md").read_text()
    (row,) = read_results(kept)
    for said in ("`te_fusion`", "acts inside", "2 frames become one", "4 frames of 32 px", run.data, "2 steps"):
        assert said in text
    assert f"| all 24 of `test` | {100 * row['accuracy']:.1f} ± {100 * row['stderr']:.1f} |" in text
    assert f"| {row['l_decoder']}, and 4 of boi and eoi |" in text
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.mp4").symlink_to(video)
    exec(snippet, {"folder": kept})
    assert (
        capsys.readouterr().out.strip() == ask(kept, video, "How does the object move?", 16).rsplit("\n", 1)[0].strip()
    )


def test_a_card_of_somebody_elses_stays(kept, tmp_path):
    model, _ = load_pretrained(kept)
    (tmp_path / "README.md").write_text("mine")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    (tmp_path / "README.md").unlink()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == (kept / "README.md").read_text()


def test_a_saved_model_is_asked_without_its_run(kept, video, tmp_path):
    folder = broken(kept, tmp_path / "model", run=None)
    answer = ask(folder, video, "Which way, <eos> or right?", 5)
    assert answer.rsplit("(", 1)[0] == ask(kept, video, "Which way, <eos> or right?", 5).rsplit("(", 1)[0]
    assert "(4 frames, 12 video tokens," in answer


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "glm"}, "holds no model of tefusion: its model_type is 'glm'"),
        ({"k": "two"}, "cannot be loaded: .*'k'"),
        ({"k": 3}, "instead of"),
        ({"compressor": "te"}, "is unknown"),
        ({"video_token_id": 1 << 40}, "1 of 1 videos have no place in the text"),
    ],
)
def test_a_saved_model_from_elsewhere(kept, video, tmp_path, change, says):
    folder = broken(kept, tmp_path / "model", run=None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=says) as raised:
        ask(folder, video, "Which way?", 3)
    assert "\n" not in str(raised.value)


def test_a_video_that_is_too_long_says_which_k_would_fit(kept, video, tmp_path):
    folder = broken(kept, tmp_path / "model", run=None)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 10
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="15 tokens are 5 more than the decoder's context of 10; k = 4 would fit"):
        ask(folder, video, "Which way?", 3)
    with pytest.raises(ValueError, match="no k would fit"):
        ask(folder, video, "Which way?", 9)


def broken(kept, folder, **files):
    shutil.copytree(kept, folder)
    for name, data in files.items():
        path = folder / {"run": "run.json", "model": "model.safetensors", "config": "config.json"}[name]
        path.unlink() if data is None else path.write_bytes(data)
    return folder


def test_a_folder_that_holds_no_run_gets_one_line(run, kept, tmp_path, video):
    settings = json.loads((kept / "run.json").read_text())
    weights = (kept / "model.safetensors").read_bytes()
    other = json.dumps(settings | {"compressor": "kangaroo"}).encode()
    newer = json.dumps(settings | {"colour": "red"}).encode()
    cases = {
        "holds no model.safetensors": broken(kept, tmp_path / "1", model=None),
        "holds no run.json": broken(kept, tmp_path / "2", run=None, config=None),
        "does not fit": broken(kept, tmp_path / "3", run=other),
        "model.safetensors is truncated": broken(kept, tmp_path / "4", model=weights[: len(weights) // 2]),
        "run.json": broken(kept, tmp_path / "5", run=newer),
        "run.json is": broken(kept, tmp_path / "6", run=b"{"),
    }
    for says, folder in cases.items():
        with pytest.raises(ValueError, match=says) as raised:
            ask(folder, video, "Which way?", 3)
        assert "\n" not in str(raised.value), says
