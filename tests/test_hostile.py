"""Broken and hostile input at the console: one line that says what and where; nothing is executed, nothing lost."""

import io
import json
import pickle
import shutil
import tarfile
import tracemalloc
import zipfile
from contextlib import redirect_stderr
from functools import partial

import pytest
import torch
from children import drop_privileges, forked
from hostile import Executed, full_disk, one_line, write_model
from hypothesis import given
from hypothesis import strategies as st

from tefusion.ask import ask, load_run
from tefusion.cells import Sweep, plan
from tefusion.cli import Train, run, single_run
from tefusion.compressors import COMPRESSORS, create_compressor
from tefusion.config import Run, fields, parse
from tefusion.data.motion import MotionSettings, write_motion
from tefusion.data.source import load_split
from tefusion.kernels.backends import BACKENDS
from tefusion.video import VideoError
from tefusion.vision import create_video_encoder

# Settings

BAD_K = ["0", "-1", "four", "4.0", "True", "nan", "1e99", "", "４", "٤", "1_6", " 4", "4 ", "0x4", "4\n", "9" * 5000]


@pytest.mark.parametrize("k", BAD_K)
def test_k_from_the_command_line(k, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in ("describe", "sweep", "train"):
        assert run(command, [f"k={k}"]) == 2
        out, err = capsys.readouterr()
        assert (out, len(err.splitlines())) == ("", 1)
        assert err.startswith("tefusion: k must be")
        assert len(err) < 300
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("k", [0, -1, "four", "4", 4.0, True, float("nan"), 1e99, None, 10**30, [4]])
def test_k_from_python(k, unchecked):
    with one_line("k must be"):
        Run(k=k)
    for name in COMPRESSORS:
        with one_line("k must be"):
            create_compressor(name, k=k, width=8, embed_dim=8, depth=1, heads=1, grid=(2, 2))
        with one_line("k must be"):
            create_video_encoder("tiny", name, k)


def test_k_that_does_not_divide_the_frames():
    with one_line("5 frames do not divide into groups of k = 2"):
        create_video_encoder("tiny", "te_fusion", 2).tokens_out(5, 32, 32)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["lr=nan"], "lr must be a number, got 'nan'"),
        (["lr=inf"], "lr must be a number"),
        (["lr=1_0"], "lr must be a number"),
        (["lr=1e999"], "lr must be a number below 2**32, got inf"),
        (["seed=4294967296"], "seed must be a whole number below 2**32"),
        (["n_input=65540"], "n_input must be at most 65536"),
        (["compressor=" + "x" * 100_000], "is unknown"),
        (["x" * 100_000], "is not of the form key=value"),
        (["x" * 100_000 + "=1"], "unknown key"),
        (["compressor=a\nb"], "compressor 'a\\nb' is unknown"),
        (["decoder=" + "x" * 5000], "is unknown"),
        (["shard=²/3"], "shard must be i/n"),
        (["shard=0/0"], "shard must be i/n"),
        (["freeze=all_but_compressor", "auxiliary=0", "compressor=pllava", "controls=false"], "has no parameters"),
    ],
)
def test_settings_that_cannot_be(words, says):
    with one_line(says):
        plan(words)


def test_a_frozen_model_needs_something_to_train():
    frozen = ["freeze=all_but_compressor", "k=2"]
    with one_line("compressor=qwen2_vl leaves nothing to train"):
        single_run([*frozen, "auxiliary=0", "compressor=qwen2_vl"], Train)
    single_run([*frozen, "auxiliary=1", "compressor=qwen2_vl"], Train)
    for compressor in ("te_fusion", "kangaroo", "qformer"):
        single_run([*frozen, "auxiliary=0", f"compressor={compressor}"], Train)


GPU_ONLY = {name for name, backend in BACKENDS.items() if backend.refusal(torch.zeros(1, 1, 3, 1, 8), False)}


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU says")
@pytest.mark.parametrize("command", ["sweep", "train"])
def test_a_backend_that_needs_a_gpu(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(command, ["precision=fp16"]) == 2
    assert "precision=fp16 needs a GPU" in capsys.readouterr().err
    assert {"triton", "xformers", "varlen", "sdpa-cudnn"} <= GPU_ONLY
    for backend, says in (*((name, f"{name!r} cannot serve this call: ") for name in GPU_ONLY), ("flsh", "is unknown")):
        monkeypatch.setenv("TEFUSION_ATTENTION", backend)
        assert run(command, ["k=2"]) == 2
        err = capsys.readouterr().err
        assert says in err
        assert len(err.splitlines()) == 1
    assert [*tmp_path.iterdir()] == []
    monkeypatch.delenv("TEFUSION_ATTENTION")
    assert run("describe", ["precision=fp16"]) == 0  # which runs nothing


WORD = st.one_of(
    st.text(max_size=30),
    st.tuples(st.sampled_from([*fields(Run, Sweep), "kk", ""]), st.text(max_size=12)).map("=".join),
    st.tuples(st.sampled_from([*fields(Run, Sweep)]), st.from_regex(r"[-+0-9.e_,]{0,6}")).map("=".join),
)


@given(st.lists(WORD, max_size=4))
def test_parse_types_its_values_or_says_one_line(words):
    known = fields(Run, Sweep)
    try:
        parsed = parse(words, Run, Sweep)
    except ValueError as error:
        said = error
    else:
        assert all(type(value) is known[key] for key, values in parsed.items() for value in values)
        return
    assert type(said) is ValueError
    assert len(str(said).splitlines()) == 1


@given(
    st.sampled_from(sorted(COMPRESSORS)),
    st.sampled_from([1, 2, 3]),
    st.integers(1, 3),
    st.integers(16, 60),
    st.integers(16, 60),
)
def test_tokens_out_tells_the_truth_for_any_size(name, k, groups, height, width):
    k = k if k in COMPRESSORS[name].valid_k else 1
    if name in ("qformer", "resampler3d", "lower_resolution"):  # which are made for one grid
        height, width = 32 + height % 8, 32 + width % 8
    encoder = create_video_encoder("tiny", name, k)
    with torch.no_grad():
        embeds = encoder(torch.zeros(1, k * groups, 3, height, width))
    assert embeds.shape[:2] == (1, groups)
    assert embeds.shape[1] * embeds.shape[2] == encoder.tokens_out(k * groups, height, width)


def test_a_name_with_a_line_break_is_one_line(capsys):
    assert run("report", ["out=no\nwhere"]) == 2
    assert capsys.readouterr().err == "tefusion: no where holds no results.jsonl\n"


# YAML, archives, pickles: none is read


@pytest.fixture
def foreign(tmp_path):
    """A YAML file with an object tag, archives with members that escape, links and devices, a bomb, and a pickle: to
    open one would leave a file, or fill the memory."""
    folder, inner = tmp_path / "foreign", tmp_path / "inner"
    folder.mkdir()
    inner.write_text("x")
    (folder / "a.yaml").write_text(f"!!python/object/apply:os.system ['touch {tmp_path / 'executed'}']\n")
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.write(inner, "../executed")
    with zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("run.json", bytes(50 << 20))
    with tarfile.open(folder / "a.tar", "w") as archive:
        archive.add(inner, "../executed")
        for name, kind in (("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("device", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "../executed"
            archive.addfile(member)
    (folder / "a.pt").write_bytes(pickle.dumps(Executed(tmp_path / "executed")))
    return folder


FOREIGN = ["a.yaml", "a.zip", "bomb.zip", "a.tar", "a.pt"]


@pytest.mark.parametrize("name", FOREIGN)
def test_yaml_archives_and_pickles_are_refused_unread(foreign, name, tmp_path, capsys):
    file, model = foreign / name, write_model(tmp_path / "model", Run(k=2, n_input=4, encoder="tiny"))
    before = sorted(tmp_path.rglob("*"))
    says = {
        "train": (
            [f"data={file}", f"home={tmp_path / 'home'}"],
            "is neither a folder nor a generated set; known: motion",
        ),
        "sweep": (
            [f"data={file}", f"home={tmp_path / 'home'}"],
            "is neither a folder nor a generated set; known: motion",
        ),
        "ask": ([f"model={file}", "video=x", "question=x"], f"{name} holds no run.json"),
        "report": ([f"out={file}"], f"{name} holds no results.jsonl"),
        "describe": ([f"decoder={file}"], "is unknown; known: glm-4-9b, small, tiny"),
    }
    for command, (words, said) in says.items():
        assert run(command, words) == 2
        out, err = capsys.readouterr()
        assert said in err
        assert (out, len(err.splitlines())) == ("", 1)
    with one_line(f"{name}: not a video", VideoError):
        ask(model, file, "Which way?", 3)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", FOREIGN)
def test_yaml_archives_and_pickles_under_the_names_of_ours(foreign, name, clips, tmp_path):
    """In place of every file that is read: one line that names it, and no more memory than the file itself takes."""
    whole = shutil.copytree(clips, tmp_path / "set")
    model = write_model(tmp_path / "model", Run(k=2, n_input=4, encoder="tiny"))
    reads = {whole / "settings.json": partial(load_split, whole, "test")}
    reads |= {
        whole / "test" / name: partial(load_split, whole, "test")
        for name in ("video_info.meta.jsonl", "truth.safetensors")
    }
    reads |= {model / name: partial(load_run, model) for name in ("run.json", "model.safetensors")}
    before = set(tmp_path.rglob("*"))
    for path, read in reads.items():
        kept = path.read_bytes()
        path.write_bytes((foreign / name).read_bytes())
        tracemalloc.start()
        with one_line(path.name):
            read()
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
        tracemalloc.stop()
        path.write_bytes(kept)
        read()
    assert set(tmp_path.rglob("*")) == before


# Disks


def test_a_set_that_finds_the_disk_full_leaves_nothing(tmp_path):
    for size, name in ((1000, "train-000000.mp4"), (20_000, "truth.safetensors")):
        with full_disk(size), one_line(name, OSError):
            write_motion(tmp_path / "motion", MotionSettings(train=24, dev=1, test=1))
        assert [path.name for path in tmp_path.iterdir()] == [".motion.lock"]
    write_motion(tmp_path / "motion", MotionSettings(train=1, dev=1, test=1))


def test_a_report_that_finds_the_disk_full_keeps_the_old_one(tmp_path, capsys):
    done = {"id": "a", "status": "done", "compressor": "none", "k": 1, "n_input": 16, "l_decoder": 64, "seed": 0}
    done |= {"accuracy": 0.5, "stderr": 0.1, "by_category": {}, "questions": 4}
    (tmp_path / "results.jsonl").write_text(json.dumps(done) + "\n")
    assert run("report", [f"out={tmp_path}"]) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "results.jsonl").write_text(json.dumps(done | {"accuracy": 0.7}) + "\n")
    capsys.readouterr()
    with full_disk(100):
        assert run("report", [f"out={tmp_path}"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {**after, "results.jsonl": b""} == {**before, "results.jsonl": b""}


WORDS = ["compressor=none", "k=1", "n_input=0", "init=scratch", "steps=1", "batch=4", "encoder=tiny", "auxiliary=0"]


def test_a_run_that_finds_the_disk_full_keeps_the_old_one(clips, tmp_path, capsys):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "model.safetensors").write_bytes(b"old")
    with full_disk(100_000):
        words = [*WORDS, f"data={clips}", f"home={tmp_path / 'home'}", f"out={kept}"]
        assert run("train", words) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert (kept / "model.safetensors").read_bytes() == b"old"
    assert {path.name for path in kept.iterdir()} == {"model.safetensors", "cells"}
    assert not [*kept.rglob(".*.partial")]


@pytest.mark.parametrize("command", ["sweep", "train", "report"])
def test_a_folder_that_is_read_only(command, clips, tmp_path):
    """By its permissions, for somebody who is not root."""
    out = tmp_path / "out"
    out.mkdir()
    done = {"id": "a", "status": "done", "compressor": "none", "k": 1, "n_input": 16, "l_decoder": 64, "seed": 0}
    done |= {"accuracy": 0.5, "stderr": 0.1, "by_category": {}, "questions": 4}
    (out / "results.jsonl").write_text(json.dumps(done) + "\n")
    words = {"report": [f"out={out}"]}.get(command, [*WORDS, f"data={clips}", f"home={out}", f"out={out}"])
    out.chmod(0o500)

    def work():
        drop_privileges()
        said = io.StringIO()
        with redirect_stderr(said):
            return run(command, words), said.getvalue()

    code, said = forked(work)
    out.chmod(0o700)
    assert code == 2
    assert len(said.splitlines()) == 1
    assert "Permission denied" in said
    assert str(out) in said
    assert [path.name for path in out.iterdir()] == ["results.jsonl"]


@pytest.mark.parametrize("command", ["sweep", "train", "report"])
def test_a_folder_that_cannot_be_written(command, clips, tmp_path, capsys):
    """Under a file, where nobody can write, root neither."""
    file = tmp_path / "file"
    file.write_text("kept")
    words = {"report": [f"out={file / 'out'}"]}.get(command, [*WORDS, f"data={clips}", f"out={file / 'out'}"])
    home = [f"home={tmp_path / 'home'}"] if command != "report" else []
    assert run(command, [*words, *home]) == 2
    out, err = capsys.readouterr()
    assert str(file) in err
    assert (out, len(err.splitlines())) == ("", 1)
    with one_line(str(file), OSError):
        write_motion(file / "motion", MotionSettings(train=1, dev=1, test=1))
    assert file.read_text() == "kept"
    assert {path.name for path in tmp_path.iterdir()} <= {"file", "home"}
