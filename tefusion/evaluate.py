"""A trained model answers questions: by the likelihood of the option letters, one prefill a question."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from tefusion.data.prompt import prompt
from tefusion.data.question import LETTERS, Question
from tefusion.launch import gather, rank, world
from tefusion.score import Answer
from tefusion.stop import Stopped, asked
from tefusion.video import Decoded, VideoError
from tefusion.vlm import VLM


@dataclass
class Sheet:
    """One batch's answers, and what its videos were like."""

    answers: list[Answer] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    repeated: int = 0


def answer_questions(
    vlm: VLM,
    questions: Sequence[Question],
    read: Callable[[Question], Decoded] | None,
    batch: int,
    send: Callable[[dict[str, int]], None] = lambda said: None,
) -> tuple[list[Answer], dict[str, object]]:
    """Answers, and what the videos were like: unreadable ones stay unanswered, which counts as wrong.

    Whole batches go round the processes, so that any number of them makes the same ones; all processes get all the
    answers. Raises Stopped between two batches where the run was asked to end.
    """
    starts = range(0, len(questions), batch)
    mine = []
    for start in starts[rank() :: world()]:
        if asked():
            raise Stopped(f"stopped after {start} of {len(questions)} questions")
        mine.append((start, answer_batch(vlm, questions[start : start + batch], read)))
        send({"answered": min(start + batch, len(questions)), "questions": len(questions)})
    sheets = [sheet for _, sheet in sorted(gather(mine), key=lambda placed: placed[0])]
    unreadable = sorted({video for sheet in sheets for video in sheet.unreadable})
    return [answer for sheet in sheets for answer in sheet.answers], {
        "unreadable": len(unreadable),
        "unreadable_videos": unreadable,
        "repeated": sum(sheet.repeated for sheet in sheets),
    }


@torch.no_grad()
def answer_batch(vlm: VLM, questions: Sequence[Question], read: Callable[[Question], Decoded] | None) -> Sheet:
    sheet, asked_of, clips = Sheet(), [], []
    for question in questions:
        try:
            decoded = read(question) if read else None
        except VideoError:
            sheet.unreadable.append(str(question.video))
            sheet.answers.append(reply(question, None))
            continue
        asked_of.append(question)
        clips.append(decoded)
        sheet.repeated += bool(decoded and decoded.repeated)
    if asked_of:
        sheet.answers += [reply(q, letter) for q, letter in zip(asked_of, letters(vlm, asked_of, clips), strict=True)]
    return sheet


def letters(vlm: VLM, questions: Sequence[Question], clips: list[Decoded | None]) -> list[str]:
    """The likeliest letter among each question's own options."""
    offered = max(len(q.options) for q in questions)
    videos = [None if clip is None else torch.from_numpy(clip.frames) for clip in clips]
    seconds = [None if clip is None else torch.tensor(clip.seconds) for clip in clips]
    likelihoods = vlm.likelihoods(videos, [prompt(q) for q in questions], list(LETTERS[:offered]), seconds)
    return [LETTERS[int(row[: len(q.options)].argmax())] for q, row in zip(questions, likelihoods, strict=True)]


def reply(question: Question, letter: str | None) -> Answer:
    if question.answer is None:
        raise ValueError(f"the answer to {question.uid} is secret: it cannot be scored")
    return Answer(question.uid, question.cluster, question.category, len(question.options), letter, question.answer)
