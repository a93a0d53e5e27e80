"""Answers: one for every question, among its own letters, and none where there is no video."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tefusion.config import Run
from tefusion.data.prompt import prompt
from tefusion.data.source import load_split
from tefusion.evaluate import answer_questions
from tefusion.score import summarise
from tefusion.train import create_vlm, frame_cache, reader

RUN = Run(compressor="te_fusion", k=2, n_input=4, size="32", encoder="tiny", decoder="tiny")


@pytest.fixture(scope="module")
def questions(clips):
    return load_split(clips, "test").questions


@pytest.fixture(scope="module")
def read(home):
    return reader(RUN, frame_cache(home), (32, 32))


class Oracle:
    """Answers the letters it is told, one question after another; remembers what it was shown."""

    def __init__(self, letters):
        self.letters, self.seen = iter(letters), []

    def likelihoods(self, videos, prompts, answers, seconds):
        self.seen += zip(videos, prompts, seconds, strict=True)
        told = [ord(next(self.letters)) for _ in prompts]
        return torch.tensor([[-float(abs(ord(answer) - letter)) for answer in answers] for letter in told])


def test_a_model_that_knows_is_all_right_whatever_the_batch(questions, read):
    for batch in (1, 7, 100):
        oracle = Oracle(q.answer for q in questions)
        answers, videos = answer_questions(oracle, questions, read, batch)
        assert [answer.uid for answer in answers] == [question.uid for question in questions]
        assert all(answer.correct for answer in answers)
        assert videos == {"unreadable": 0, "unreadable_videos": [], "repeated": 0}
    video, asked, seconds = oracle.seen[3]
    assert asked == prompt(questions[3])
    assert torch.equal(video, torch.from_numpy(read(questions[3]).frames))
    assert seconds.tolist() == pytest.approx(read(questions[3]).seconds)


def test_who_watches_hears_of_every_batch(questions, read):
    told = []
    answer_questions(Oracle(q.answer for q in questions[:9]), questions[:9], read, 4, told.append)
    assert told == [{"answered": n, "questions": 9} for n in (4, 8, 9)]


def test_the_letter_and_the_right_answer_are_kept_apart(questions, read):
    wrong = ["ABCD"["BCDA".index(q.answer)] for q in questions]
    answers, _ = answer_questions(Oracle(wrong), questions, read, 8)
    assert not any(answer.correct for answer in answers)
    assert [answer.prediction for answer in answers] == wrong


def test_only_a_questions_own_letters_are_chosen(questions, read):
    few = replace(questions[0], options=questions[0].options[:2], answer="A")
    many = replace(questions[1], options=tuple("abcdefgh"), answer="A")
    answers, _ = answer_questions(Oracle("HH"), [few, many], read, 8)
    assert [answer.prediction for answer in answers] == ["B", "H"]
    assert [answer.options for answer in answers] == [2, 8]


def test_an_unreadable_video_stays_unanswered_counts_as_wrong_and_is_named(questions, read, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"not a video" * 50)
    asked = [replace(questions[0], video=tmp_path / "bad.mp4", uid="0"), *questions[1:5]]
    asked += [replace(questions[5], video=tmp_path / "bad.mp4", uid="5")]
    oracle = Oracle(q.answer for q in asked[1:5])
    answers, videos = answer_questions(oracle, asked, read, 3)
    by_uid = {answer.uid: answer for answer in answers}
    assert by_uid["0"].prediction is None
    assert by_uid["5"].prediction is None
    assert (len(answers), len(oracle.seen)) == (6, 4)  # never asked from the text alone
    assert summarise(answers)["accuracy"] == pytest.approx(4 / 6)
    assert videos["unreadable_videos"] == [str(tmp_path / "bad.mp4")]
    assert videos["unreadable"] == 1


def test_repeated_frames_are_counted(questions, home):
    read = reader(replace(RUN, n_input=32), frame_cache(home), (32, 32))
    _, videos = answer_questions(Oracle("AAA"), questions[:3], read, 2)
    assert videos["repeated"] == 3


def test_text_alone_shows_no_video(questions):
    oracle = Oracle("AAA")
    answer_questions(oracle, questions[:3], None, 2)
    assert [video for video, *_ in oracle.seen] == [None] * 3


def test_a_secret_answer_cannot_be_scored(questions, read):
    secret = SimpleNamespace(**{**vars(questions[0]), "answer": None})
    with pytest.raises(ValueError, match="is secret"):
        answer_questions(Oracle("A"), [secret], read, 1)


def test_a_real_model_answers_the_same_in_any_batch(questions, read):
    vlm = create_vlm(RUN).eval()
    one, many = (answer_questions(vlm, questions[:9], read, batch)[0] for batch in (1, 9))
    assert one == many
