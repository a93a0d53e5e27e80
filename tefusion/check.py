"""`tefusion check`: what is wrong with a benchmark on disk, before anything runs on it, and what it holds."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tefusion.containers import Clip, VideoError, opened, probe
from tefusion.data.benchmarks import Source, missing
from tefusion.data.mvbench import layout
from tefusion.data.overlap import overlap, videos_below
from tefusion.data.question import Question
from tefusion.files import replace_file
from tefusion.pictures import is_pictures, picture_clip
from tefusion.score import category_order
from tefusion.wording import grid, number

SLACK = 0.5  # seconds by which a declared length may differ, or a twentieth of it
SHOWN = 10  # findings of one kind that are printed


@dataclass
class Findings:
    """What is wrong, one line each."""

    rows: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    header: list[str] = field(default_factory=list)  # counts other frames than the file has
    length: list[str] = field(default_factory=list)  # the annotation declares another one than the file has

    def __bool__(self) -> bool:
        return any(vars(self).values())


TITLES = {
    "rows": "rows that cannot be read (duplicate ids and answers outside the options among them)",
    "missing": "videos that are not there",
    "unreadable": "videos that cannot be read",
    "header": "videos whose header counts other frames than there are",
    "length": "videos whose length is not the one declared",
}


def check(source: Source, training: Sequence[Path] = (), shared: Path | None = None) -> tuple[str, bool]:
    """The text of `tefusion check`, and whether nothing is wrong. Videos that training shares are no error; the uids of
    their questions are written to `shared`, so that a score can be given without them."""
    findings = Findings()
    questions = source.benchmark.read(source.folder, findings.rows)
    seconds = look_at_videos(questions, findings)
    text = [f"{source.benchmark.title} in {source.folder}"]
    if source.name == "mvbench":
        text[0] += f" ({layout(source.folder).name})"
    text += ["", *statistics(questions, seconds), "", *problems(findings)]
    if training or shared:
        text += ["", *overlapping(questions, training, shared)]
    return "\n".join(text), not findings


def look_at_videos(questions: Sequence[Question], findings: Findings) -> dict[Path, float]:
    """Seconds of each readable video. Packets are read, nothing is decoded."""
    seconds, gone = {}, dict.fromkeys(missing(questions))
    findings.missing += map(str, gone)
    for video, declared in {question.video: question.seconds for question in questions}.items():
        if video in gone:
            continue
        try:
            clip = picture_clip(video) if is_pictures(video) else probe(video)
            promised = header_frames(clip)
        except VideoError as error:
            findings.unreadable.append(str(error))
            continue
        seconds[video] = length = clip.total / clip.fps
        if promised not in (0, clip.total):
            findings.header.append(f"{video}: {promised} in its header, {clip.total} in the file")
        if declared is not None and abs(declared - length) > max(SLACK, declared / 20):
            findings.length.append(f"{video}: {declared:.1f} s declared, {length:.1f} s in the file")
    return seconds


def header_frames(clip: Clip) -> int:
    """0 where the header does not say."""
    if is_pictures(clip.path):
        return 0
    with opened(clip.path) as (_, stream):
        return int(stream.frames)


def statistics(questions: Sequence[Question], seconds: dict[Path, float]) -> list[str]:
    """The annotation density is the paper's equation 1: the length of all questions over that of all videos. The paper
    leaves open what a question's length is counted in: characters and words are given, stems without options."""
    videos = Counter(question.video for question in questions)
    labels = Counter(label for question in questions for label in question.labels or (question.category,))
    options = Counter(len(question.options) for question in questions)
    lengths = [*seconds.values()]
    rows = [
        ["questions", f"{len(questions)}, {sum(q.answer is None for q in questions)} of them secret"],
        ["videos", str(len(videos))],
    ]
    if questions:
        several = f"{len(questions) / len(videos):.2f} in the mean, {max(videos.values())} at most"
        rows += [["questions a video", several]]
        rows += [["categories", ", ".join(f"{name} {labels[name]}" for name in category_order(labels))]]
        rows += [["options", ", ".join(f"{size} x {options[size]}" for size in sorted(options, reverse=True))]]
    if lengths:
        middle = f"{number(min(lengths))}, {number(median(lengths))}, {number(max(lengths))}"
        seen = [question.text for question in questions if question.video in seconds]
        density = f"{sum(map(len, seen)) / sum(lengths):.1f} characters, "
        density += f"{sum(len(text.split()) for text in seen) / sum(lengths):.1f} words"
        rows += [["seconds: least, median, most", middle], ["annotation density, a second", density]]
    return grid(["what it holds", ""], rows)


def problems(findings: Findings) -> list[str]:
    found = {TITLES[name]: lines for name, lines in vars(findings).items()}
    text = grid(["what is wrong", "count"], [[title, len(lines)] for title, lines in found.items()])
    for title, lines in found.items():
        if lines:
            text += ["", f"{title}:", *(f"  {line}" for line in lines[:SHOWN])]
            text += [f"  and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return text


def overlapping(questions: Sequence[Question], training: Iterable[Path], shared: Path | None) -> list[str]:
    below = [video for folder in training for video in videos_below(folder)]
    found = overlap(dict.fromkeys(question.video for question in questions), below)
    uids = [question.uid for question in questions if question.video in found]
    text = [f"{len(found)} videos are among the {len(below)} of training; {len(uids)} questions are about them"]
    text += [f"  {video}: same {how}" for video, how in [*found.items()][:SHOWN]]
    text += [f"  and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    if shared:
        replace_file(shared, json.dumps(uids, indent=2, ensure_ascii=False).encode())
        text.append(f"their uids: {shared}")
    return text
