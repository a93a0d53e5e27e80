"""Answers: what counts as right, what the summary says, what a file may hold."""

import json

import pytest

from tefusion.data.paper import BENCHMARKS, paper_table3, paper_tables, printed
from tefusion.score import Answer, AnswersError, category_order, read_answers, summarise, write_answers


def answer(uid, prediction="A", right="A", category="Camera Motion", cluster=None, options=4):
    return Answer(uid, cluster or uid, category, options, prediction, right)


def test_summary_counts_and_groups():
    answers = [answer("1"), answer("2", "B"), answer("3", None), answer("4", category="Action Order")]
    summary = summarise(answers)
    assert summary["accuracy"] == 0.5
    assert summary["questions"] == 4
    assert summary["by_category"] == {"Camera Motion": pytest.approx(1 / 3), "Action Order": 1.0}


def test_questions_about_one_video_are_not_independent():
    right = [index % 2 for index in range(40)]
    alone = summarise([answer(str(i), "A" if yes else "B") for i, yes in enumerate(right)])
    pairs = summarise([answer(str(i), "A" if yes else "B", cluster=f"v{i % 20}") for i, yes in enumerate(right)])
    assert pairs["stderr"] == pytest.approx(alone["stderr"] * 2**0.5, rel=0.02)


def test_one_video_gives_no_error_and_no_answer_is_an_error():
    assert summarise([answer("1", cluster="v"), answer("2", "B", cluster="v")])["stderr"] is None
    with pytest.raises(ValueError, match="no answer"):
        summarise([])


def test_any_category_names_work_and_the_papers_come_first():
    assert category_order(["zoo", "Repetition Count", "apple", "Motion Recognition", "zoo"]) == [
        "Motion Recognition",
        "Repetition Count",
        "apple",
        "zoo",
    ]


def test_answers_survive_the_file(tmp_path):
    answers = [answer("1", None), answer("2", "B", options=3), answer("ü", category="x")]
    write_answers(tmp_path / "cells" / "c" / "answers.jsonl", answers)
    assert read_answers(tmp_path / "cells" / "c" / "answers.jsonl") == answers
    assert [path.name for path in (tmp_path / "cells" / "c").iterdir()] == ["answers.jsonl"]


GOOD = {"uid": "1", "cluster": "v", "category": "c", "options": 4, "prediction": "A", "answer": "A", "correct": True}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": 0}, "options must be a count"),
        ({"correct": False}, "correct contradicts"),
        ({"prediction": 3}, "must be letters"),
        ({"answer": None}, "must be letters"),
        ({"uid": "0"}, "a second time"),
        (None, "category missing"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, change, message):
    row = {**GOOD, **change} if change else {name: value for name, value in GOOD.items() if name != "category"}
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({**GOOD, "uid": "0"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(AnswersError, match=rf"answers\.jsonl, line 2: .*{message}"):
        read_answers(path)


def test_a_line_that_is_not_json_is_named(tmp_path):
    (tmp_path / "answers.jsonl").write_text(json.dumps(GOOD) + '\n{"uid": "2", "clu')
    with pytest.raises(AnswersError, match=r"answers\.jsonl, line 2: "):
        read_answers(tmp_path / "answers.jsonl")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "answers.jsonl"
    write_answers(path, [answer("1")])

    def broken():
        yield answer("2")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_answers(path, broken())
    assert read_answers(path) == [answer("1")]


def test_the_papers_numbers_are_those_it_prints():
    assert len(paper_tables()) == 43
    assert len(paper_table3()) == 14
    assert printed("te_fusion", 4, 16) == (51.0,)
    assert printed("none", 1, 16) == (50.5,)
    assert printed("te_fusion", 6, 16) == ()
    # Tables 7 and 8 disagree on three cells, all of them PLLaVA's.
    assert printed("pllava", 4, 16, "lvbench") == (34.3, 31.9)
    cells = {(row["method"], int(row["k"]), int(row["n_input"])) for row in paper_tables()}
    double = [(cell[0], name) for cell in cells for name in BENCHMARKS if len(printed(*cell, name)) > 1]
    assert sorted(double) == [("pllava", "lvbench"), ("pllava", "videomme_long"), ("pllava", "videomme_medium")]
    with pytest.raises(ValueError, match="motionbench_dev"):
        printed("none", 1, 16, "motionbench")
