"""The readers of all benchmarks: true layouts become questions, and what cannot be read is one line with its place."""

import json
import sys

import benchmark_folders as folders
import numpy as np
import pytest
from hostile import one_line

from tefusion.data.annotation import AnnotationError
from tefusion.data.benchmarks import BENCHMARKS, chosen, parse_source, parse_sources
from tefusion.data.mvbench import CLIPS, SOURCES, WHOLE, layout
from tefusion.data.videomme import read_videomme
from tefusion.video import Request, VideoError, decode

QUESTIONS = {"motionbench": 8, "mvbench": 40, "videomme": 9, "lvbench": 4}


@pytest.fixture(scope="module", params=BENCHMARKS)
def made(request, tmp_path_factory):
    name = request.param
    return name, getattr(folders, name)(tmp_path_factory.mktemp(name) / "set")


def test_every_benchmarks_layout_is_read_and_its_videos_decode(made):
    name, folder = made
    questions = BENCHMARKS[name].read(folder, None)
    assert len(questions) == QUESTIONS[name]
    assert len({q.uid for q in questions}) == len(questions)
    for q in questions:
        assert q.video.exists(), q.video
        assert q.answer is None or q.answer in "ABCD"[: len(q.options)]
        assert not any(option.startswith(("A", "(")) for option in q.options)
    q = questions[-1]
    assert len(decode(q.video, Request(4, start=q.start, end=q.end)).frames) == 4


def test_a_benchmark_that_is_not_there_and_one_without_questions(tmp_path):
    for name, benchmark in BENCHMARKS.items():
        empty = tmp_path / name
        empty.mkdir()
        with one_line(f"{empty} is no {benchmark.title} folder", AnnotationError):
            benchmark.read(empty, None)


def test_mvbench_tells_its_layouts_apart(tmp_path):
    whole, clips = folders.mvbench(tmp_path / "whole"), folders.mvbench(tmp_path / "clips", clips=True)
    assert (layout(whole), layout(clips)) == (WHOLE, CLIPS)
    by_task = {q.category: q for q in BENCHMARKS["mvbench"].read(whole, None)}
    assert len(by_task) == len(SOURCES) == 20
    assert (by_task["action_sequence"].start, by_task["action_sequence"].end) == (0.4, 0.9)
    assert by_task["action_sequence"].uid == "action_sequence-1"
    assert by_task["state_change"].start is None
    assert by_task["episodic_reasoning"].video.is_dir()
    cut = {q.category: q for q in BENCHMARKS["mvbench"].read(clips, None)}
    assert cut["action_sequence"].start is None  # bounds of the whole video would cut the clip again
    assert cut["episodic_reasoning"].video.is_file()
    assert "Charades_segment" in str(cut["action_sequence"].video)
    (clips / "star" / "Charades_v1_480").mkdir()
    with one_line("mixes MVBench's two layouts: star/Charades_v1_480 and nturgbd_convert; keep one", AnnotationError):
        layout(clips)


def test_pictures_are_a_video_of_the_rate_that_their_folder_names(tmp_path):
    folder = folders.pictures(tmp_path / "frames_fps3_hq" / "clip")
    shown = decode(folder, Request(3, start=0.4, end=1.9))
    assert shown.frames[:, 0, 0, 0].tolist() == [40, 120, 200]  # pictures 1 to 5 are on screen
    assert shown.seconds == pytest.approx((1 / 3, 1, 5 / 3))
    assert decode(folder, Request(2, size=(12, 16))).frames.shape == (2, 12, 16, 3)
    with one_line("ends before second 2, where the clip should start", VideoError):
        decode(folder, Request(2, start=2.0, end=3.0))
    (folder / "00003.jpg").write_bytes(b"no picture")
    with one_line("00003.jpg: not a picture", VideoError):
        decode(folder, Request(6))
    with one_line("needs their rate in its or its parent's name", VideoError):
        decode(folders.pictures(tmp_path / "nameless"), Request(2))


def test_pictures_come_in_the_order_of_their_numbers(tmp_path):
    folder = folders.pictures(tmp_path / "fps1" / "clip", frames=2)
    (folder / "00001.jpg").rename(folder / "9.jpg")
    (folder / "00002.jpg").rename(folder / "10.jpg")
    assert np.diff(decode(folder, Request(2)).frames[:, 0, 0, 0].astype(int)).tolist() == [40]


def test_videomme_is_grouped_by_duration_and_lvbench_by_all_its_labels(tmp_path):
    by_duration = [q.category for q in BENCHMARKS["videomme"].read(folders.videomme(tmp_path / "v", False), None)]
    assert by_duration == [name for name in ("short", "medium", "long") for _ in range(3)]
    first, *_, last = BENCHMARKS["lvbench"].read(folders.lvbench(tmp_path / "l", False), None)
    assert (first.labels, last.labels) == (("entity recognition",), tuple(folders.LVBENCH_TYPES))
    assert (last.category, last.seconds) == ("entity recognition", pytest.approx(1.0))
    assert last.options == ("he", "she", "they", "it")
    assert (last.start, last.end) == (None, None)


def refused(read, *says):
    """One line that says all of these."""
    with pytest.raises(AnnotationError) as raised:
        read()
    assert all(part in str(raised.value) for part in says), str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert len(str(raised.value)) < 2000


def change(row, changes):
    return row | changes if isinstance(changes, dict) else changes


MVBENCH = [
    ({"answer": "down"}, "answer 'down' is none of its candidates"),
    ({"candidates": ["left", "left"]}, "answer 'left' is more than one of its candidates"),
    ({"candidates": []}, "'candidates' should be a list of texts"),
    ({"candidates": [str(i) for i in range(11)], "answer": "0"}, "'candidates' should be at most 10, found 11"),
    ({"video": "../a.mp4"}, "video '../a.mp4' is not a name inside the folder"),
    ({"video": "x" * 5000}, "cannot be looked up: File name too long"),
    ({"start": 2, "end": 1}, "'end' of uid 'action_sequence-1' should come after its start"),
    ({"question": 3}, "'question' should be a str, found int"),
    ([1], "expected an object, found list"),
]


@pytest.mark.parametrize(("changes", "says"), MVBENCH, ids=range(len(MVBENCH)))
def test_mvbenchs_malformed_rows(tmp_path, changes, says):
    folder = folders.mvbench(tmp_path, videos=False)
    file = folder / "json" / "action_sequence.json"
    rows = json.loads(file.read_text())
    file.write_text(json.dumps([rows[0], change(rows[1], changes)]))
    refused(lambda: BENCHMARKS["mvbench"].read(folder, None), f"{file}, row 2: ", says)
    problems = []
    assert len(BENCHMARKS["mvbench"].read(folder, problems)) == 39
    assert [says in problem for problem in problems] == [True]


@pytest.mark.parametrize(("text", "says"), [("{}", "is not a JSON list"), ("[", "is not JSON"), ("[NaN]", "NaN is no")])
def test_mvbenchs_files_that_are_no_list(tmp_path, text, says):
    file = folders.mvbench(tmp_path, videos=False) / "json" / "action_sequence.json"
    file.write_text(text)
    with one_line(says, AnnotationError):
        BENCHMARKS["mvbench"].read(tmp_path, None)
    file.rename(file.with_name("acton_sequence.json"))
    with one_line("acton_sequence.json is no task of MVBench; did you mean 'action_sequence'?", AnnotationError):
        BENCHMARKS["mvbench"].read(tmp_path, None)


LVBENCH = [
    ({"key": "../one"}, "key '../one' is not a name inside the folder"),
    ({"qa": [{"uid": "0"}]}, "uid '0' occurs twice"),
    (
        {"qa": [{"uid": "9", "question": "Who?\n(A) he", "answer": "B", "question_type": ["x"]}]},
        "none of its 1 options",
    ),
    ({"qa": [{"uid": 9, "question": "Who?\n(A) he", "answer": "A", "question_type": "x"}]}, "should be a list"),
    ({"qa": [{"uid": 9, "question": "Who?", "answer": "A", "question_type": ["x"]}]}, "needs a stem and options"),
    ({"video_info": {"duration_minutes": "long"}}, "'duration_minutes' should be a number"),
]


@pytest.mark.parametrize(("changes", "says"), LVBENCH, ids=range(len(LVBENCH)))
def test_lvbenchs_malformed_rows(tmp_path, changes, says):
    file = folders.lvbench(tmp_path, videos=False) / "video_info.meta.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    folders.lines(file, [rows[0], change(rows[1], changes)])
    refused(lambda: BENCHMARKS["lvbench"].read(tmp_path, None), f"{file}, line 2: ", says)


VIDEOMME = [
    ({"duration": "brief"}, "'duration' should be one of short, medium, long, found 'brief'"),
    ({"options": ["A. one", "C. two"]}, "do not begin with A., B., ... in this order"),
    ({"answer": "E"}, "answer 'E' of uid '000-1' is none of its 4 options"),
    ({"question_id": "000-0"}, "uid '000-0' occurs twice"),
    ({"question": None}, "'question' should be a str, found NoneType"),
    ({"videoID": "/etc/x"}, "videoID '/etc/x' is not a name inside the folder"),
]


@pytest.mark.parametrize(("changes", "says"), VIDEOMME, ids=range(len(VIDEOMME)))
def test_videommes_malformed_rows(tmp_path, changes, says):
    import pyarrow
    from pyarrow import parquet

    folder = folders.videomme(tmp_path, videos=False)
    file = folder / "videomme" / "test-00000-of-00001.parquet"
    rows = parquet.read_table(file).to_pylist()
    rows[1] |= changes
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    refused(lambda: read_videomme(folder), f"{file}, row 2: ", says)


def test_videommes_file_that_is_none_lacks_a_column_or_has_no_reader(tmp_path, monkeypatch):
    import pyarrow
    from pyarrow import parquet

    file = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"videoID": ["a"]}), file)
    with one_line("x.parquet lacks the column question_id", AnnotationError):
        read_videomme(tmp_path)
    file.write_bytes(b"PAR1 no parquet")
    with one_line("x.parquet is damaged or no parquet file", AnnotationError):
        read_videomme(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with one_line("x.parquet can only be read with pyarrow: pip install 'tefusion[parquet]'", AnnotationError):
        read_videomme(tmp_path)


def test_a_link_may_leave_no_benchmarks_folder(tmp_path):
    folder = folders.lvbench(tmp_path / "set")
    (folder / "videos" / "one.mp4").rename(tmp_path / "secret.mp4")
    (folder / "videos" / "one.mp4").symlink_to(tmp_path / "secret.mp4")
    with one_line("line 1: key 'one' is a link that leaves the folder", AnnotationError):
        BENCHMARKS["lvbench"].read(folder, None)


def test_sources_are_named_with_their_benchmark(tmp_path):
    folder = folders.lvbench(tmp_path / "set", videos=False)
    (source, other) = parse_sources("eval", f"lvbench:{folder},motionbench:{tmp_path}")
    assert (source.name, source.folder, other.name) == ("lvbench", folder, "motionbench")
    before = source.content()
    with (folder / "video_info.meta.jsonl").open("a") as file:
        file.write("\n")
    assert source.content() != before
    for word, says in (
        ("lvbench", "eval 'lvbench' is not of the form <benchmark>:<folder>"),
        (f"lvbnch:{folder}", "eval: benchmark 'lvbnch' is unknown; did you mean 'lvbench'?"),
        ("lvbench:/nowhere", "eval: '/nowhere' is no folder"),
        ("lvbench:" + "x" * 5000, "is no folder"),
    ):
        with one_line(says):
            parse_source("eval", word)
    with one_line("eval names one benchmark twice"):
        parse_sources("eval", f"lvbench:{folder},lvbench:{tmp_path}")


def test_a_subset_is_drawn_by_seed_and_uid_alone(tmp_path):
    questions = BENCHMARKS["mvbench"].read(folders.mvbench(tmp_path, each=5, videos=False), None)
    uids = [q.uid for q in questions]
    assert [q.uid for q in chosen(questions, limit=7)] == uids[:7]
    assert [q.uid for q in chosen(questions)] == uids
    drawn = [q.uid for q in chosen(questions, subset=30, seed=1)]
    assert len(drawn) == 30
    assert drawn == [uid for uid in uids if uid in drawn]
    assert {q.uid for q in chosen(questions[::-1], subset=30, seed=1)} == set(drawn)
    assert {q.uid for q in chosen(questions, subset=10, seed=1)} < set(drawn)
    assert {q.uid for q in chosen(questions, subset=30, seed=2)} != set(drawn)
    with one_line("give limit or subset, not both"):
        chosen(questions, limit=1, subset=1)
