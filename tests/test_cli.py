"""The console command: what it prints, and the one line that wrong input gets."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tefusion import cli
from tefusion.cli import COMMANDS, main, run, usage

SMALL = ["n_input=4", "k=2", "size=32", "encoder=tiny", "decoder=tiny", "init=scratch", "steps=2", "batch=8"]


def test_no_words_print_the_usage(capsys, monkeypatch):
    for words in ([], ["help"], ["--help"]):
        monkeypatch.setattr(sys, "argv", ["tefusion", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        assert capsys.readouterr().out.strip() == usage().strip()
    assert all(f"  {name} " in usage() for name in ("list", "describe", "sweep", "train", "ask", "report"))
    assert all(command.__doc__ for command in COMMANDS.values())


def test_list_prints_the_zoo(capsys):
    assert run("list", []) == 0
    assert "| `te_fusion` | inside | group | yes |" in capsys.readouterr().out


def test_describe_prints_stage_tokens_parameters_and_flops(capsys):
    assert run("describe", ["compressor=te_fusion", "k=4", "frames=16"]) == 0
    text = capsys.readouterr().out
    for part in ("k = 4, inside the encoder", "decoder tokens", "4 groups of", "parameters", "FLOPs", "prefill"):
        assert part in text
    assert run("describe", ["compressor=none", "k=1", "frames=8", "recipe=paper"]) == 0
    assert "8 at" in capsys.readouterr().out


FOLDER = "{folder}"
BAD = [
    ("swep", [], "command 'swep' is unknown; did you mean 'sweep'?"),
    ("list", ["k=2"], "unknown key 'k'"),
    ("describe", ["k"], "not of the form key=value"),
    ("describe", ["k=four"], "k must be a whole number, got 'four'"),
    ("describe", ["k=0"], "k must be at least 1, got 0"),
    ("describe", ["k=-1"], "k must be at least 1, got -1"),
    ("describe", ["k=5", "frames=16"], "16 frames (n_input) do not divide into groups of k = 5"),
    ("describe", ["compressor=none", "k=4"], "none: k must be one of 1, got 4"),
    ("describe", ["frames=16", "n_input=8"], "'n_input' is given twice"),
    ("describe", ["k=2,4"], "k takes one value here, got 2"),
    ("describe", ["compressor=te_fuson"], "did you mean 'te_fusion'?"),
    ("describe", ["size=big"], "size must be pixels"),
    ("describe", ["recipe=papper"], "did you mean 'paper'?"),
    ("sweep", ["compressor=pllva"], "did you mean 'pllava'?"),
    ("sweep", ["kk=4"], "unknown key 'kk'"),
    ("sweep", ["data=/nowhere"], "neither a folder nor a generated set"),
    ("sweep", ["shard=3/2"], "shard must be i/n"),
    ("train", ["stps=4"], "did you mean 'steps'?"),
    ("train", ["data=/nowhere"], "neither a folder nor a generated set"),
    ("train", ["log_with=nobody", "init=scratch", "data={clips}", "home={folder}"], "log_with 'nobody' is unknown"),
    ("ask", ["model=x"], "ask needs video=..."),
    ("ask", ["model={folder}", "video=x", "question=a, b or c?"], "holds no run.json"),
    ("ask", ["tokens=many"], "tokens must be a whole number"),
    ("convert", ["out=x"], "convert needs path=..."),
    ("convert", ["path=x", "out=y"], "either from=... or to=..."),
    ("convert", ["from=glm4", "path=x", "out=y"], "from 'glm4' is unknown; did you mean 'glm4v'?"),
    ("convert", ["to=llava", "path=x", "out=y"], "to 'llava' is unknown"),
    ("convert", ["from=glm4v", "path=/nowhere", "out=y"], "/nowhere is no folder"),
    ("convert", ["from=glm4v", "path={folder}", "out=y"], "config.json cannot be read"),
    ("report", ["out=/nowhere"], "/nowhere holds no results.jsonl"),
    ("report", ["paper=yes"], "paper must be true or false, got 'yes'"),
]


@pytest.mark.parametrize(("command", "words", "says"), BAD)
def test_wrong_input_gets_one_line_and_exit_code_2(command, words, says, tmp_path, clips, capsys):
    words = [word.format(folder=tmp_path, clips=clips) for word in words]
    assert run(command, words) == 2
    out, err = capsys.readouterr()
    assert err.startswith("tefusion: ")
    assert says in err
    assert err.count("\n") == 1
    assert out == ""


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setitem(COMMANDS, "list", lambda words: {}["missing"])
    with pytest.raises(KeyError):
        run("list", [])


def test_the_installed_command_and_the_scripts_end_with_one_line():
    root = Path(cli.__file__).parents[1]
    command = Path(sys.executable).with_name("tefusion")
    starts = [
        [str(command), "train"],
        [sys.executable, str(root / "train.py")],
        [sys.executable, str(root / "sweep.py")],
    ]
    for start in starts:
        done = subprocess.run([*start, "k=four"], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "tefusion: k must be a whole number, got 'four'\n"


def test_train_then_ask(clips, home, tmp_path, capsys):
    words = [*SMALL, f"data={clips}", f"home={home}", f"out={tmp_path / 'run'}", "compressor=te_fusion"]
    assert run("train", words) == 0
    *progress, folder = capsys.readouterr().out.splitlines()
    assert folder == str(tmp_path / "run")
    assert progress[-1].startswith("step 2/2, loss ")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["k"] == 2
    video = next((clips / "test").rglob("*.mp4"))
    asked = [f"model={folder}", "question=Which way, left or right?", "tokens=3"]
    assert run("ask", [*asked, f"video={video}"]) == 0
    assert "video tokens" in capsys.readouterr().out
    assert run("ask", [*asked, "video=missing.mp4"]) == 2
    assert "missing.mp4" in capsys.readouterr().err


def test_only_the_first_process_prints(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    cli.say("twice")
    assert capsys.readouterr().out == ""
