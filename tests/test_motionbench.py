"""The reader takes the benchmark's own rows as they are, and names the line of one it cannot take."""

import json

import pytest

from tefusion.data.motionbench import MotionBenchError, read_motionbench, split_options

QA = {"uid": "u1", "question": "What?\nA. one\nB. two\nC. three\nD. four", "answer": "C", "start": 1, "end": 2.5}
ROW = {
    "question_type": "Action Order",
    "video_type": "x",
    "key": "k",
    "video_path": "a.mp4",
    "video_info": {"duration": 8.38, "fps": 60.0},
    "qa": [QA],
}
NEEDED, NEEDED_QA = ("question_type", "video_path", "qa"), ("uid", "question", "answer")


def write(folder, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "video_info.meta.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def row(**changes):
    return {**ROW, **changes}


def qa(**changes):
    return row(qa=[{**QA, **changes}])


def test_a_row_becomes_its_questions(tmp_path):
    second = {"uid": "u2", "question": "Which\none?\nA. yes\nB. no, or\nrarely\nC. maybe", "answer": "NA"}
    for source, name in (("self-collected", "a.MP4"), ("public-dataset", "b_58_59.mp4")):
        (tmp_path / source).mkdir()
        (tmp_path / source / name).touch()
    other = row(question_type="Camera Motion", video_path="b_58_59.mp4", qa=[{**QA, "uid": "u3"}])
    first, hidden, public = read_motionbench(write(tmp_path, row(qa=[QA, second]), "", other))
    assert (first.uid, first.text, first.options) == ("u1", "What?", ("one", "two", "three", "four"))
    assert (first.answer, first.category, first.start, first.end) == ("C", "AO", 1, 2.5)
    assert first.video == tmp_path / "self-collected" / "a.MP4"
    assert hidden.answer is None
    assert hidden.start is None
    assert (hidden.text, hidden.options) == ("Which\none?", ("yes", "no, or\nrarely", "maybe"))
    assert first.cluster == hidden.cluster != public.cluster
    assert public.video == tmp_path / "public-dataset" / "b_58_59.mp4"


def test_a_video_that_is_not_there_keeps_its_question(tmp_path):
    (question,) = read_motionbench(write(tmp_path, ROW))
    assert question.video.name == "a.mp4"
    assert not question.video.exists()


@pytest.mark.parametrize("options", [1, 2, 3])
def test_the_number_of_options_varies(options):
    text = "\n".join(["Q?", "A. a", "B. b", "C. c"][: options + 1])
    assert split_options(text) == ("Q?", ("a", "b", "c")[:options])


def test_a_letter_out_of_order_is_no_option():
    assert split_options("Q?\nA. a\nC. c") == ("Q?", ("a\nC. c",))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ('{"question_type": ', "line 2: Expecting value"),
        ("[1]", "expected an object, found list"),
        *(({k: v for k, v in ROW.items() if k != name}, f"'{name}' is missing") for name in NEEDED),
        *((row(qa=[{k: v for k, v in QA.items() if k != name}]), f"'{name}' is missing") for name in NEEDED_QA),
        (row(question_type="Dancing"), "unknown question_type 'Dancing'"),
        (row(question_type=None), "'question_type' should be a str, found NoneType"),
        (row(video_path="../a.mp4"), "'../a.mp4' is not a name inside the folder"),
        (row(video_path="/a.mp4"), "'/a.mp4' is not a name inside the folder"),
        (row(qa={}), "'qa' should be a list"),
        (row(qa=["x"]), "expected an object, found str"),
        (qa(uid="first"), "uid 'first' occurs twice"),
        (qa(answer="E"), "answer 'E' of uid 'u1' is neither NA nor one of its 4 options"),
        (qa(answer=None), "'answer' should be a str"),
        (qa(question="What?"), "needs a stem and options"),
        (qa(question="A. one\nB. two"), "needs a stem and options"),
        (qa(start="now"), "'start' should be a number of seconds of at least 0, found 'now'"),
    ],
)
def test_a_malformed_row_gives_one_line_with_its_place(tmp_path, bad, reason):
    with pytest.raises(MotionBenchError) as error:
        read_motionbench(write(tmp_path, row(qa=[{**QA, "uid": "first"}]), bad))
    message = str(error.value)
    assert f"{tmp_path / 'video_info.meta.jsonl'}, line 2: " in message
    assert reason in message
    assert "\n" not in message


def test_a_folder_without_questions_is_an_error(tmp_path):
    with pytest.raises(MotionBenchError, match=r"has no video_info\.meta\.jsonl"):
        read_motionbench(tmp_path)
    with pytest.raises(MotionBenchError, match="holds no question"):
        read_motionbench(write(tmp_path, ""))
