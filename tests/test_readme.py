"""What README and CONTRIBUTING say: every command and snippet runs, tables are what the code prints, paths exist."""

import json
import os
import re
import shlex
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from contract import Create, check_distinct
from test_contract import CHECKS
from test_report import cell, write_rows
from test_weights import released_state, write

import tefusion
from tefusion import cli
from tefusion.cells import BUDGETS, plan
from tefusion.compressors import COMPRESSORS
from tefusion.config import RECIPES, Run
from tefusion.cost import count
from tefusion.data.motion_files import create_clip, write_video
from tefusion.data.source import MOTION_SETS
from tefusion.decoder import DECODERS
from tefusion.encoders import PRESETS

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from readme import BLOCK, blocks, filled, results  # noqa: E402

README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def fences(text, language):
    """Blocks of one language; all are matched, so that what closes one cannot open the next."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [body for name, body in blocks if name == language]


COMMANDS = [
    line.partition("  #")[0].strip()
    for text in (README, CONTRIBUTING)
    for block in fences(text, "bash")
    for line in block.splitlines()
]
NOT_RUN = {  # how a command begins -> why it is only checked
    "git clone ": "needs the network",
    "pip install ": "needs the network; test_packaging.py reads what would be installed",
    "make ": "makes a virtual environment from the network; its target is looked up",
    "accelerate launch --config_file ": "needs GPUs; configuration and words are parsed",
}
SMALL = {  # what a command is given beside, to be over in a minute
    "accelerate launch sweep.py": ["budget=smoke"],
    "tefusion sweep": ["budget=smoke"],
    "accelerate launch train.py": ["data=motion-smoke", "steps=6", "image_steps=6", "batch=16"],
    "tefusion train": ["data=motion-smoke", "steps=6", "image_steps=6", "batch=16"],
}
INSTEAD = {"runs/default": "runs/smoke", "runs/data/motion/": "runs/data/motion-smoke/"}


def only_checked(command):
    return any(command.startswith(beginning) for beginning in NOT_RUN)


def small(command):
    """The same command at the size of a test."""
    for long, short in INSTEAD.items():
        command = command.replace(long, short)
    beside = [word for beginning, words in SMALL.items() if command.startswith(beginning) for word in words]
    given = {word.partition("=")[0] for word in beside}
    return [word for word in shlex.split(command) if word.partition("=")[0] not in given] + beside


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder where README's relative paths hold, and the commands of this environment."""
    for name in ("sweep.py", "train.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"])
    return tmp_path


def run(words):
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.heavy
@pytest.mark.timeout(1800)  # minutes on two idle cores
def test_every_command_runs(here):
    commands = [command for command in COMMANDS if not only_checked(command)]
    said = {command: run(small(command)) for command in commands}
    assert len(said) >= 6
    for command, text in said.items():
        if "sweep" in command:
            assert "report: runs/smoke/report.md" in text
        if command.startswith("tefusion train"):
            assert text.splitlines()[-1] == "runs/mine"
        if command.startswith("tefusion ask"):
            tokens = count(Run())["l_decoder"] + 2 * Run().n_input // Run().k  # boi and eoi of each group
            assert re.search(rf"\({Run().n_input} frames, {tokens} video tokens, \d+ ms\)$", text.strip())
        if command.startswith("tefusion report"):
            assert "The paper's" in text
    rows = [line for line in Path("runs/smoke/results.jsonl").read_text().splitlines() if '"failed"' in line]
    assert rows == []


def test_what_is_not_run_is_there_for_a_reason(here):
    checked = [command for command in COMMANDS if only_checked(command)]
    unused = [beginning for beginning in NOT_RUN if not any(command.startswith(beginning) for command in checked)]
    assert unused == []
    targets = {command.split()[1] for command in checked if command.startswith("make ")}
    assert {"sweep", "test", "test-all"} <= targets
    targets |= set(re.findall(r"`make ([\w-]+)`", README + CONTRIBUTING))
    for target in targets:
        run(["make", "-n", "-C", str(ROOT), target])


def script_of(command):
    """What stands before the script, the script, and its words."""
    words = shlex.split(command)
    place = next(i for i, word in enumerate(words) if word.endswith(".py"))
    return words[2:place], words[place], words[place + 1 :]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(("accelerate launch", "tefusion sweep"))])
def test_words_of_launches_are_words_of_ours(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    if command.startswith("tefusion"):
        plan(shlex.split(command)[2:])
        return
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    before, script, words = script_of(command)
    if "--config_file" in before:
        read = _validate_launch_command(launch_command_parser().parse_args([*before, script, *words]))[0]
        assert read.training_script_args == words
        if "--num_processes" in before:
            assert read.num_processes == int(before[before.index("--num_processes") + 1])
    assert (ROOT / script).is_file()
    if script == "sweep.py":
        plan(words)
    else:
        cli.single_run(words, cli.Train)


def test_console_blocks_show_what_is_printed(capsys):
    sessions = [block for block in fences(README, "console") if block.startswith("$ ")]
    assert sessions
    for session in sessions:
        command, _, shown = session.partition("\n")
        program, *words = shlex.split(command.removeprefix("$ "))
        assert (program, cli.run(words[0], words[1:])) == ("tefusion", 0)
        assert capsys.readouterr().out == shown


def test_make_sweep_is_the_command_that_readme_shows():
    command = re.search(r"accelerate launch sweep\.py .*", (ROOT / "Makefile").read_text(encoding="utf-8"))[0]
    assert command in COMMANDS


@pytest.mark.parametrize("name", [*PRESETS, *DECODERS, *BUDGETS, *RECIPES, *COMPRESSORS, *cli.COMMANDS])
def test_readme_knows_every_name_there_is(name):
    assert re.search(rf"\b{name}\b", README)


def test_python_snippets_run(here):
    write(Path("glm-4v-9b").absolute(), released_state())
    write_video(Path("clip.mp4"), create_clip(MOTION_SETS["motion-smoke"], "test", 0)[1], fps=8)
    snippets = fences(README, "python")
    example, clip, released = map(execute, snippets)
    assert example["embeds"].shape == (1, 4, 4, 64)
    assert clip["video"].shape == (1, 16, 3, 224, 224)
    frames = torch.rand(1, 1, 3, 56, 56).expand(1, 4, 3, 56, 56)
    one = tefusion.load_glm4v("glm-4v-9b", image_size=224)(frames[:, :1])
    assert torch.allclose(released["encoder"](frames), one, atol=1e-5)  # four equal frames give the embeds of one


def execute(snippet, names=()):
    names = dict(names)
    exec(compile(snippet, "snippet", "exec"), names)
    return names


def test_the_example_fits_in_six_lines():
    assert len(fences(README, "python")[0].splitlines()) == 6


def test_the_added_compressor_keeps_the_contract(monkeypatch):
    module, line = fences(CONTRIBUTING, "python")
    assert module == (ROOT / "tefusion/compressors/tpool.py").read_text(encoding="utf-8")
    registry = {}
    execute(line, execute(module) | {"COMPRESSORS": registry})
    ((name, method),) = registry.items()
    monkeypatch.setitem(COMPRESSORS, name, method)
    for check in CHECKS:
        check(Create(name))
    for other in COMPRESSORS.keys() - {name}:
        check_distinct(Create(name), Create(other))


def test_blocks_are_what_the_code_prints():
    printed = blocks(ROOT)
    assert {match[1]: match[2] for match in BLOCK.finditer(README)} == printed, "run: python benchmarks/readme.py"


def test_a_recorded_result_becomes_table_source_and_figure(tmp_path):
    folder = tmp_path / "results" / "default"
    folder.mkdir(parents=True)
    write_rows(folder, [cell(folder), cell(folder, "te_fusion", k=4, rate=0.9)])
    (folder / "figure.png").write_bytes(b"")
    text = results(tmp_path, "default")
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for row in rows:
        assert re.search(rf"^{row['compressor']} +{row['k']} +1/1 {100 * row['accuracy']:.1f} ", text, re.MULTILINE)
    assert max(map(len, text.split("```")[1].splitlines())) <= 80
    assert "2 cells of 240 questions" in text
    assert "commit abc1234; machine 2 cores; date 2026-01-02" in text
    assert "](results/default/figure.png)" in text


def test_a_text_without_its_markers_is_refused():
    with pytest.raises(ValueError, match="instead of"):
        filled(README.replace("<!-- zoo -->", ""), blocks(ROOT))


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text(encoding="utf-8")):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def tree():
    """Path -> its line, for every entry of README's file tree."""
    (block,) = (b for b in fences(README, "") if b.startswith("sweep.py"))
    paths, folders = {}, []
    for line in block.splitlines():
        name, said = line.split(maxsplit=1) if len(line.split()) > 1 else (line.strip(), "")
        depth = (len(line) - len(line.lstrip())) // 2
        folders = [*folders[:depth], name]
        paths["".join(folders)] = said
    return paths


def test_the_file_tree_is_the_tree():
    shown = tree()
    for path in shown:
        assert any(ROOT.glob(path.rstrip("/"))), f"README's tree shows {path}, which is not there"
    assert all(said for path, said in shown.items() if path != "tefusion/")
    package = [path.relative_to(ROOT).as_posix() for path in (ROOT / "tefusion").rglob("*.py")]
    whole = [path for path in shown if path.endswith("/") and path.count("/") > 1]  # a folder may be one line
    listed = [path for path in shown if not path.endswith("/")]
    for path in package:
        named = any(fnmatch(path, pattern) for pattern in listed)
        inside = any(path.startswith(folder) and not any(p.startswith(folder) for p in listed) for folder in whole)
        assert named or inside or path.endswith("__init__.py"), f"README's tree lacks {path}"


def test_files_that_contributing_names_exist():
    for name in re.findall(r"`([\w/*]+\.(?:py|md|toml))`", CONTRIBUTING):
        if name == "utils.py":
            continue
        assert [*ROOT.glob(name), *(ROOT / "tefusion").glob(name)], name


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_are_accelerates(path):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.utils import DistributedType

    kinds = {"gpu": "NO", "gpus": "MULTI_GPU", "nodes": "MULTI_GPU", "fsdp2": "FSDP", "deepspeed": "DEEPSPEED"}
    read = load_config_from_file(str(path))
    assert read.distributed_type == DistributedType(kinds[path.stem])
    assert (read.num_machines > 1) == (path.stem == "nodes")
    assert (read.num_processes > 1) == (path.stem != "gpu")
    assert f"configs/{path.name}" in README
    if path.stem == "fsdp2":
        from transformers.models.glm.modeling_glm import GlmDecoderLayer

        from tefusion.encoders.vit import ViTBlock

        assert read.fsdp_config["fsdp_version"] == 2
        wrapped = read.fsdp_config["fsdp_transformer_layer_cls_to_wrap"].split(",")
        assert wrapped == [ViTBlock.__name__, GlmDecoderLayer.__name__]
