"""A trained model answers questions: by the likelihood of the option letters, one prefill a question, or in words."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from tefusion.data.prompt import Prompt, prompt
from tefusion.data.question import LETTERS, Question
from tefusion.launch import gather, rank, world
from tefusion.score import Answer
from tefusion.stop import Stopped, asked
from tefusion.video import Decoded, VideoError
from tefusion.vlm import VLM

Read = Callable[[Question], Decoded]
Send = Callable[[dict[str, int]], None]


@dataclass(frozen=True)
class Reply:
    """`letter` is None where the video or what was said could not be read, `text` is what was said, None where nothing
    was: there was no video, or letters were compared by their likelihood."""

    letter: str | None = None
    text: str | None = None


Respond = Callable[[Sequence[Question], Sequence[Decoded | None]], list[Reply]]


@dataclass
class Sheet:
    """One batch's replies, and what its videos were like."""

    replies: list[Reply] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    repeated: int = 0


def unheard(said: dict[str, int]) -> None:
    """Nobody watches."""


def answer_questions(
    vlm: VLM, questions: Sequence[Question], read: Read | None, batch: int, send: Send = unheard
) -> tuple[list[Answer], dict[str, object]]:
    """Answers by likelihood in the words that training uses, and what the videos were like."""
    replies, videos = ask_questions(questions, read, batch, partial(likeliest, vlm, prompt), send)
    return [marked(question, reply.letter) for question, reply in zip(questions, replies, strict=True)], videos


def respond(vlm: VLM, words: Prompt, parse: Callable[[str], str | None] | None) -> Respond:
    """How a model is asked in these words; `parse` reads a letter from what it says."""
    if not words.tokens or parse is None:
        return partial(likeliest, vlm, words.text)
    return partial(spoken, vlm, words, parse)


def ask_questions(
    questions: Sequence[Question], read: Read | None, batch: int, respond: Respond, send: Send = unheard
) -> tuple[list[Reply], dict[str, object]]:
    """A reply to every question, in their order, and what the videos were like: unreadable ones stay unanswered, which
    counts as wrong.

    Whole batches go round the processes, so that any number of them makes the same ones; all processes get all the
    replies. Raises Stopped between two batches where the run was asked to end.
    """
    starts = range(0, len(questions), batch)
    mine = []
    for start in starts[rank() :: world()]:
        if asked():
            raise Stopped(f"stopped after {start} of {len(questions)} questions")
        mine.append((start, ask_batch(questions[start : start + batch], read, respond)))
        send({"answered": min(start + batch, len(questions)), "questions": len(questions)})
    sheets = [sheet for _, sheet in sorted(gather(mine), key=lambda placed: placed[0])]
    unreadable = sorted({video for sheet in sheets for video in sheet.unreadable})
    return [reply for sheet in sheets for reply in sheet.replies], {
        "unreadable": len(unreadable),
        "unreadable_videos": unreadable,
        "repeated": sum(sheet.repeated for sheet in sheets),
    }


@torch.no_grad()
def ask_batch(questions: Sequence[Question], read: Read | None, respond: Respond) -> Sheet:
    sheet, places, clips = Sheet([Reply()] * len(questions)), [], []
    for place, question in enumerate(questions):
        try:
            decoded = read(question) if read else None
        except VideoError:
            sheet.unreadable.append(str(question.video))
            continue
        places.append(place)
        clips.append(decoded)
        sheet.repeated += bool(decoded and decoded.repeated)
    if places:
        for place, reply in zip(places, respond([questions[i] for i in places], clips), strict=True):
            sheet.replies[place] = reply
    return sheet


def likeliest(
    vlm: VLM, words: Callable[[Question], str], questions: Sequence[Question], clips: Sequence[Decoded | None]
) -> list[Reply]:
    """The likeliest letter among each question's own options."""
    offered = max(len(q.options) for q in questions)
    likelihoods = vlm.likelihoods(frames(clips), [words(q) for q in questions], [*LETTERS[:offered]], seconds(clips))
    best = [int(row[: len(q.options)].argmax()) for q, row in zip(questions, likelihoods, strict=True)]
    return [Reply(LETTERS[place]) for place in best]


def spoken(
    vlm: VLM,
    words: Prompt,
    parse: Callable[[str], str | None],
    questions: Sequence[Question],
    clips: Sequence[Decoded | None],
) -> list[Reply]:
    """What is said, each word the likeliest, and the letter that is read from it."""
    said = vlm.generate(
        frames(clips), [words.text(q) for q in questions], words.tokens, seconds(clips), do_sample=False, num_beams=1
    )
    return [Reply(parse(text), text) for text in said]


def frames(clips: Sequence[Decoded | None]) -> list[torch.Tensor | None]:
    return [None if clip is None else torch.from_numpy(clip.frames) for clip in clips]


def seconds(clips: Sequence[Decoded | None]) -> list[torch.Tensor | None]:
    return [None if clip is None else torch.tensor(clip.seconds) for clip in clips]


def marked(question: Question, letter: str | None) -> Answer:
    if question.answer is None:
        raise ValueError(f"the answer to {question.uid} is secret: it cannot be scored")
    place = question.uid, question.cluster, question.category, len(question.options)
    return Answer(*place, letter, question.answer, length(question))


def length(question: Question) -> float | None:
    """Seconds of what is asked about, as far as its annotation declares them."""
    end = question.seconds if question.end is None else question.end
    return None if end is None else max(0.0, end - (question.start or 0))
