"""A trained model answers questions: by the likelihood of the option letters, one prefill a question."""

from collections.abc import Callable, Sequence

import torch

from tefusion.data.prompt import prompt
from tefusion.data.question import LETTERS, Question
from tefusion.score import Answer
from tefusion.video import Decoded, VideoError
from tefusion.vlm import VLM


@torch.no_grad()
def answer_questions(
    vlm: VLM, questions: Sequence[Question], read: Callable[[Question], Decoded] | None, batch: int
) -> tuple[list[Answer], dict[str, object]]:
    """Answers, and what the videos were like: unreadable ones stay unanswered, which counts as wrong."""
    answers: list[Answer] = []
    unreadable: dict[str, str] = {}
    repeated = 0
    for start in range(0, len(questions), batch):
        asked, videos = [], []
        for question in questions[start : start + batch]:
            try:
                decoded = read(question) if read else None
            except VideoError as error:
                unreadable[str(question.video)] = str(error)
                answers.append(reply(question, None))
                continue
            asked.append(question)
            videos.append(None if decoded is None else torch.from_numpy(decoded.frames))
            repeated += bool(decoded and decoded.repeated)
        if asked:
            answers += [reply(q, letter) for q, letter in zip(asked, letters(vlm, asked, videos), strict=True)]
    return answers, {
        "unreadable": len(unreadable),
        "unreadable_videos": sorted(unreadable),
        "repeated": repeated,
    }


def letters(vlm: VLM, questions: Sequence[Question], videos: list[torch.Tensor | None]) -> list[str]:
    """The likeliest letter among each question's own options."""
    offered = max(len(q.options) for q in questions)
    likelihoods = vlm.likelihoods(videos, [prompt(q) for q in questions], list(LETTERS[:offered]))
    return [LETTERS[int(row[: len(q.options)].argmax())] for q, row in zip(questions, likelihoods, strict=True)]


def reply(question: Question, letter: str | None) -> Answer:
    if question.answer is None:
        raise ValueError(f"the answer to {question.uid} is secret: it cannot be scored")
    return Answer(question.uid, question.cluster, question.category, len(question.options), letter, question.answer)
