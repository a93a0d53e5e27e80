"""What `tefusion check` finds in folders that are broken on purpose, and what it says of sound ones."""

import json
import shutil

import benchmark_folders as folders
import pytest

from tefusion.cli import run
from tefusion.data.benchmarks import BENCHMARKS
from tefusion.data.overlap import source_id


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_sound_folder_has_statistics_and_exit_code_0(name, tmp_path, capsys):
    folder = getattr(folders, name)(tmp_path / "set")
    assert run("check", [f"data={name}:{folder}"]) == 0
    text = capsys.readouterr().out
    for title in ("questions", "categories", "options", "seconds: least, median, most", "annotation density"):
        assert f"| {title}" in text
    assert "| videos that are not there | 0 |" in text
    if name == "mvbench":
        assert "(whole videos with bounds)" in text


def test_the_density_is_the_length_of_questions_over_that_of_videos(tmp_path, capsys):
    """Four questions of 4 characters, 1 word, about two videos of 1 second."""
    assert run("check", [f"data=lvbench:{folders.lvbench(tmp_path)}"]) == 0
    assert "| 8.0 characters, 2.0 words |" in capsys.readouterr().out


def break_motionbench(folder):
    file = folder / "video_info.meta.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[3]["qa"][0]["answer"] = "E"
    rows[4]["qa"][0]["uid"] = "a0"
    rows[5]["video_info"]["duration"] = 9.0
    folders.lines(file, rows)
    (folder / "self-collected" / "a.mp4").unlink()
    video = folder / "public-dataset" / "c_58_59.mp4"
    video.write_bytes(video.read_bytes()[:-40])
    other = folder / "self-collected" / "b.MP4"
    data = other.read_bytes()
    at = data.index(b"stts") + 12  # how many frames the header counts
    assert data[at : at + 4] == (8).to_bytes(4, "big")
    other.write_bytes(data[:at] + (9).to_bytes(4, "big") + data[at + 4 :])
    return folder


def test_everything_that_is_wrong_is_counted_and_named(tmp_path, capsys):
    folder = break_motionbench(folders.motionbench(tmp_path / "set"))
    assert run("check", [f"data=motionbench:{folder}"]) == 1
    text = capsys.readouterr().out
    assert "answers outside the options among them) | 2 |" in text
    assert "line 4: answer 'E' of uid 'd0' is neither NA nor one of its 4 options" in text
    assert "line 5: uid 'a0' occurs twice" in text
    assert "| videos that are not there | 1 |" in text
    assert "| videos that cannot be read | 1 |" in text
    assert "c_58_59.mp4: truncated" in text
    assert "b.MP4: 9 in its header, 8 in the file" in text
    assert "f.mp4: 9.0 s declared, 1.0 s in the file" in text


def test_what_training_has_seen_is_found_by_source_and_by_content(tmp_path, capsys):
    folder = folders.motionbench(tmp_path / "set")
    train = tmp_path / "train" / "deep"
    folders.clip(train / "C_1_2.mp4", seed=1)  # the same source as c_58_59
    shutil.copy(folder / "self-collected" / "a.mp4", train / "another.mp4")
    shutil.copy(folder / "self-collected" / "d.mp4", train / "d.mp4")
    words = [f"data=motionbench:{folder}", f"train={tmp_path / 'train'}", f"shared={tmp_path / 'seen.json'}"]
    assert run("check", words) == 0
    text = capsys.readouterr().out
    assert "3 videos are among the 3 of training; 4 questions are about them" in text
    for line in ("a.mp4: same content", "c_58_59.mp4: same source", "d.mp4: same source and content"):
        assert line in text
    assert json.loads((tmp_path / "seen.json").read_text()) == ["a0", "a1", "c0", "d0"]


def test_a_source_is_the_name_before_the_cut(tmp_path):
    names = ("abc_58_59.mp4", "ABC_1.5_2.mkv", "abc.mp4", "12_58_59.mp4", "v-x_1.mp4")
    assert [source_id(tmp_path / name) for name in names] == ["abc", "abc", "abc", "12_58_59", "v-x_1"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "check needs data=<benchmark>:<folder>"),
        (["data=/tmp"], "data '/tmp' is not of the form <benchmark>:<folder>"),
        (["data=mvbnch:/tmp"], "data: benchmark 'mvbnch' is unknown; did you mean 'mvbench'?"),
        (["data=mvbench:{folder}"], "is no MVBench folder"),
        (["data=mvbench:{folder}", "train=/nowhere"], "train: '/nowhere' is no folder"),
    ],
)
def test_wrong_words_are_one_line_and_exit_code_2(words, says, tmp_path, capsys):
    assert run("check", [word.format(folder=tmp_path) for word in words]) == 2
    assert says in capsys.readouterr().err
