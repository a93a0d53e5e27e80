"""Scores on made folders equal those worked out by hand, the official script's quirks included."""

import json
import re

import benchmark_folders as folders
import pytest
from hostile import one_line

from tefusion.cli import run
from tefusion.data.benchmarks import BENCHMARKS, Source
from tefusion.official import ScriptFails, official
from tefusion.replies import first_letter, is_word, lmms_eval_letter
from tefusion.score import AnswersError
from tefusion.score_file import letters_of, mark, read_replies, score_file

ANSWERS = {"a0": "A", "b0": "C", "b1": "A", "c0": "B", "d0": "A", "e0": "A", "f0": "B."}


@pytest.fixture(scope="module")
def motionbench(tmp_path_factory):
    return folders.motionbench(tmp_path_factory.mktemp("motionbench") / "set", videos=False)


@pytest.fixture
def questions(motionbench):
    return BENCHMARKS["motionbench"].read(motionbench, None)


def test_motionbench_by_hand_and_by_the_official_script(questions):
    marks = mark(BENCHMARKS["motionbench"], questions, letters_of(ANSWERS, "paper"))
    assert (marks.accuracy, marks.questions, marks.unanswered, marks.secret) == (4 / 6, 6, 1, 2)
    shares = {"MR": (1 / 2, 2), "LM": (1, 1), "MO": (0, 1), "AO": (1, 1), "RC": (1, 1)}
    assert marks.by_category == shares
    found = official(questions, ANSWERS)
    assert (found.acc, found.answered_acc) == (3 / 6, 3 / 7)  # "B." is not exactly B; secret ones only in the second
    assert found.by_category == {"MR": 1.0, "LM": 1.0, "MO": 0.0, "AO": 1.0, "RC": 0.0}
    dev = {uid: letter for uid, letter in ANSWERS.items() if uid not in ("b1", "c0")}
    found = official(questions, dev)
    assert (found.acc, found.answered_acc) == (3 / 8, 3 / 5)  # secret ones that are not answered count in the first


def test_the_official_script_fails_on_a_second_known_answer_of_a_row(questions):
    with pytest.raises(ScriptFails, match="question a1 is the second that is answered in its row"):
        official(questions, ANSWERS | {"a1": "B"})
    assert official(questions, {**ANSWERS, "b1": "D"}).right == 3  # a secret one does no harm
    with pytest.raises(ScriptFails, match="no question is answered"):
        official(questions, {})


def test_mvbench_is_the_mean_of_its_tasks(tmp_path):
    folder = folders.mvbench(tmp_path, each=3, videos=False)
    file = folder / "json" / "action_count.json"
    file.write_text(json.dumps(json.loads(file.read_text())[:1]))
    questions = BENCHMARKS["mvbench"].read(folder, None)
    letters = {q.uid: "A" for q in questions} | {"action_count-0": "B", "state_change-1": None}
    marks = mark(BENCHMARKS["mvbench"], questions, letters)
    assert marks.accuracy == pytest.approx((18 + 0 + 2 / 3) / 20)  # over questions it would be 56 / 58
    assert (marks.questions, marks.unanswered, marks.stderr) == (58, 1, None)


def test_videomme_by_duration_and_lvbench_by_every_label(tmp_path):
    questions = BENCHMARKS["videomme"].read(folders.videomme(tmp_path / "v", videos=False), None)
    letters = {f"000-{i}": "ABC"[i] for i in range(3)} | {"001-0": "A", "001-1": "B", "001-2": "A"}
    marks = mark(BENCHMARKS["videomme"], questions, letters)
    assert marks.by_category == {"short": (1, 3), "medium": (2 / 3, 3), "long": (0, 3)}
    assert list(marks.by_category) == ["short", "medium", "long"]
    assert (marks.accuracy, marks.unanswered) == (5 / 9, 3)
    questions = BENCHMARKS["lvbench"].read(folders.lvbench(tmp_path / "l", videos=False), None)
    marks = mark(BENCHMARKS["lvbench"], questions, {"0": "A", "1": "A", "2": "B", "3": "B"})
    assert marks.accuracy == 2 / 4
    kinds = folders.LVBENCH_TYPES
    assert marks.by_category == {kinds[0]: (2 / 4, 4), kinds[1]: (1 / 3, 3), kinds[2]: (1, 1)}


@pytest.mark.parametrize(
    ("reply", "paper", "lmms", "word"),
    [
        ("B", "B", "B", False),
        ("the answer is (C).", "C", "C", False),
        ("The answer is D", "T", "D", True),
        ("I think B", "I", "B", True),
        ("A dog runs; so C", "A", "A", True),
        ("A. left", "A", "A", False),
        ("<think>A or B</think> c", "A", "C", True),
        ("none", None, "E", False),
        ("", None, None, False),
    ],
)
def test_who_reads_which_letter(reply, paper, lmms, word):
    assert (first_letter(reply), lmms_eval_letter(reply), is_word(reply)) == (paper, lmms, word)


def test_score_prints_both_and_writes_what_a_leaderboard_takes(motionbench, tmp_path, capsys):
    file, board = tmp_path / "answers.jsonl", tmp_path / "board.json"
    replies = ANSWERS | {"e0": "The letter A"}
    folders.lines(file, [{"uid": uid, "reply": reply} for uid, reply in replies.items()])
    assert run("score", [f"data=motionbench:{motionbench}", f"answers={file}", f"leaderboard={board}"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"\| all questions \| 50.0 ± [\d.]+ \| 6 \|", text)  # T is no option of e0
    assert "1 question unanswered, counted as wrong; 2 secret, not scored" in text
    assert "2 replies read by paper, version 1; in 1 the letter is a word's" in text
    assert "acc 33.3, 2 of 6" in text
    assert "answered_acc 28.6, of 7" in text
    assert json.loads(board.read_text()) == {**letters_of(ANSWERS, "paper"), "e0": "T"}
    assert run("score", [f"data=motionbench:{motionbench}", f"answers={file}", "parser=lmms-eval"]) == 0
    assert "| all questions | 66.7" in capsys.readouterr().out


def test_a_score_without_the_questions_that_training_has_seen(motionbench, tmp_path, capsys):
    (tmp_path / "a.json").write_text(json.dumps(ANSWERS))
    (tmp_path / "seen.json").write_text(json.dumps(["a0", "a1", "d0"]))
    words = [f"data=motionbench:{motionbench}", f"answers={tmp_path / 'a.json'}", f"without={tmp_path / 'seen.json'}"]
    assert run("score", words) == 0
    text = capsys.readouterr().out
    assert (
        text.index("| all questions | 66.7")
        < text.index("Without the 3 questions of")
        < text.index("| all questions | 100.0")
    )


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"uid": "a0", "reply": "A"}, {"uid": "a0", "reply": "B"}], "line 2: question 'a0' is answered a second time"),
        ([{"uid": "a0"}], "line 1: 'prediction' is missing"),
        ([{"uid": 3, "reply": "A"}], "line 1: 'uid' should be a str, found int"),
        ([{"uid": "zz", "reply": "A"}], "MotionBench has no question 'zz'"),
    ],
)
def test_answers_that_cannot_be_scored_are_one_line(motionbench, tmp_path, rows, says):
    folders.lines(tmp_path / "answers.jsonl", rows)
    with one_line(says, AnswersError):
        score_file(Source("motionbench", motionbench), tmp_path / "answers.jsonl", "paper")


def test_an_unanswered_row_and_a_file_of_letters(tmp_path):
    folders.lines(tmp_path / "a.jsonl", [{"uid": "1", "prediction": None}, {"uid": "2", "prediction": "B"}])
    assert letters_of(read_replies(tmp_path / "a.jsonl"), "paper") == {"1": None, "2": "B"}
    (tmp_path / "b.json").write_text('{"1": 2}')
    with one_line("b.json: the answer to '1' should be text, found 2", AnswersError):
        read_replies(tmp_path / "b.json")


def test_a_benchmark_whose_answers_are_all_secret_has_no_score(questions):
    with one_line("keeps all its answers secret"):
        mark(BENCHMARKS["motionbench"], [q for q in questions if q.answer is None], {})
