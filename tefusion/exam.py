"""A trained model sits a benchmark: what it replies, what that is worth, and the files that keep both."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from tefusion.config import Run
from tefusion.cost import count
from tefusion.data.benchmarks import Source
from tefusion.data.question import Question
from tefusion.decoder import config_of
from tefusion.evaluate import Read, Reply, ask_questions, length, marked, respond
from tefusion.evaluation import Evaluation
from tefusion.files import replace_file
from tefusion.frame_cache import FrameCache
from tefusion.launch import is_first
from tefusion.replies import PARSERS, is_word
from tefusion.score import write_answers
from tefusion.score_file import mark, write_leaderboard
from tefusion.train import load_tokenizer, reader
from tefusion.video import Decoded, parse_size
from tefusion.vlm import VLM, check_length, text_ids


@lru_cache(maxsize=4)
def questions_of(evaluation: Evaluation, source: Source) -> list[Question]:
    return evaluation.questions(source)


def door(evaluation: Evaluation, runs: Iterable[Run]) -> list[str]:
    """Before anything trains: a line for each benchmark that lacks videos. Raises ValueError where one cannot be asked
    or scored."""
    said = evaluation.at_the_door()
    check_room(evaluation, runs)
    return said


def check_room(evaluation: Evaluation, runs: Iterable[Run]) -> None:
    """Raises ValueError where a question does not fit into the context of a run's decoder."""
    asked: dict[str, list[Run]] = {}
    for run in dict.fromkeys(replace(run, seed=0) for run in runs):
        asked.setdefault(run.decoder, []).append(run)
    for decoder, of_it in asked.items():
        tokenizer, config = load_tokenizer(decoder), config_of(decoder)
        video = max(count(run)["l_decoder"] + 2 * run.n_input // run.k for run in of_it)
        for source in evaluation.sources():
            words = evaluation.words(source)
            longest = max(len(text_ids(tokenizer, words.text(q))) for q in questions_of(evaluation, source))
            try:
                check_length(config, video + longest + words.tokens)
            except ValueError as error:
                parts = f"{video} of video, {longest} of the longest question, {words.tokens} of the reply"
                raise ValueError(f"eval: {source.name} with decoder={decoder}: {error} ({parts})") from None


def examine(
    vlm: VLM, run: Run, evaluation: Evaluation, cache: FrameCache, folder: Path, send: Callable
) -> dict[str, dict[str, Any]]:
    """The scores by benchmark. Writes <benchmark>/replies.jsonl (all questions), answers.jsonl (those with a known
    answer) and, where some are secret, leaderboard.json into `folder`. Raises Stopped where it is asked to end."""
    scores = {}
    for source in evaluation.sources():
        questions, words = questions_of(evaluation, source), evaluation.words(source)
        read = reader(run, cache, parse_size(run.size))
        respond_to = respond(vlm, words, PARSERS.get(evaluation.prompt))
        batch = max(1, run.batch // run.accumulate)
        replies, videos = ask_questions(questions, read and heard(read, len(questions), send), batch, respond_to, send)
        said = dict(zip([question.uid for question in questions], replies, strict=True))
        if is_first():
            write(folder / source.name, questions, said)
        scores[source.name] = score(source, questions, said, evaluation.prompt) | split_missing(videos)
    return scores


def heard(read: Read, questions: int, send: Callable) -> Read:
    """A sign of life before each video: a batch of long ones takes a while."""
    done = 0

    def reading(question: Question) -> Decoded:
        nonlocal done
        send({"answered": done, "questions": questions})
        done += 1
        return read(question)

    return reading


def write(folder: Path, questions: Sequence[Question], said: Mapping[str, Reply]) -> None:
    """What `tefusion score` reads again, and `tefusion compare`."""
    known = [marked(question, said[question.uid].letter) for question in questions if question.answer]
    text = "".join(json.dumps(row_of(q, said[q.uid]), ensure_ascii=False) + "\n" for q in questions)
    replace_file(folder / "replies.jsonl", text.encode())
    write_answers(folder / "answers.jsonl", known)
    if len(known) < len(questions):
        write_leaderboard(folder / "leaderboard.json", {uid: reply.letter for uid, reply in said.items()})


def row_of(question: Question, reply: Reply) -> dict[str, Any]:
    return {"uid": question.uid, "prediction": reply.letter, "reply": reply.text, "seconds": length(question)}


def score(source: Source, questions: Sequence[Question], said: Mapping[str, Reply], prompt: str) -> dict[str, Any]:
    """What the row keeps: `asked` counts the questions by category, `words` the replies whose letter is a word's."""
    marks = mark(source.benchmark, questions, {uid: reply.letter for uid, reply in said.items()})
    spoken = [reply.text for reply in said.values() if reply.text is not None]
    return {
        "accuracy": marks.accuracy,
        "stderr": marks.stderr,
        "by_category": {name: share for name, (share, _) in marks.by_category.items()},
        "asked": {name: asked for name, (_, asked) in marks.by_category.items()},
        "questions": marks.questions,
        "unanswered": marks.unanswered,
        "secret": marks.secret,
        "replies": len(spoken),
        "words": sum(map(is_word, spoken)) if prompt == "paper" else 0,
    }


def split_missing(videos: Mapping[str, Any]) -> dict[str, Any]:
    """A benchmark may lack thousands of videos: those are counted, the unreadable are named."""
    there = [video for video in videos["unreadable_videos"] if Path(video).exists()]
    gone = len(videos["unreadable_videos"]) - len(there)
    return {"missing": gone, "unreadable_videos": there, "repeated": videos["repeated"]}
