"""The benchmarks by name: how each is read, and what its headline is. `motionbench:<folder>` names one on disk."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tefusion.choices import brief, nearest
from tefusion.data.lvbench import read_lvbench
from tefusion.data.motionbench import read_motionbench
from tefusion.data.mvbench import read_mvbench
from tefusion.data.question import Question
from tefusion.data.videomme import read_videomme

Reader = Callable[[str | Path, list[str] | None], list[Question]]


@dataclass(frozen=True)
class Benchmark:
    """`read` takes a folder, and a list in which it collects what is wrong instead of raising. `files` are the patterns
    of its annotations. The headline is the mean over questions, or that over categories."""

    title: str
    read: Reader
    files: tuple[str, ...]
    mean_of_categories: bool = False


BENCHMARKS = {
    "motionbench": Benchmark("MotionBench", read_motionbench, ("video_info.meta.jsonl",)),
    "mvbench": Benchmark("MVBench", read_mvbench, ("json/*.json",), mean_of_categories=True),
    "videomme": Benchmark("Video-MME", read_videomme, ("*.parquet", "*/*.parquet")),
    "lvbench": Benchmark("LVBench", read_lvbench, ("video_info.meta.jsonl",)),
}


@dataclass(frozen=True)
class Source:
    """A benchmark on disk."""

    name: str
    folder: Path

    @property
    def benchmark(self) -> Benchmark:
        return BENCHMARKS[self.name]

    def content(self) -> str:
        """A hash of its annotations."""
        files = sorted({file for pattern in self.benchmark.files for file in self.folder.glob(pattern)})
        whole = hashlib.blake2b(digest_size=8)
        for file in files:
            whole.update(file.read_bytes())
        return whole.hexdigest()

    def questions(self) -> list[Question]:
        return self.benchmark.read(self.folder, None)


def parse_source(key: str, word: str) -> Source:
    """`key` is what the word stands behind, for the error's sentence. Raises ValueError where it names no benchmark, or
    no folder."""
    name, colon, folder = word.partition(":")
    if not colon or not folder:
        raise ValueError(
            f"{key} {brief(word)} is not of the form <benchmark>:<folder>, as in motionbench:/data/MotionBench"
        )
    if name not in BENCHMARKS:
        raise ValueError(f"{key}: benchmark {brief(name)} is unknown{nearest(name, BENCHMARKS)}")
    try:
        there = Path(folder).is_dir()
    except (OSError, ValueError):  # a name too long for a file system
        there = False
    if not there:
        raise ValueError(f"{key}: {brief(folder)} is no folder")
    return Source(name, Path(folder))


def parse_sources(key: str, words: str) -> list[Source]:
    """Of a list with commas. A benchmark comes once: rows and files go by its name."""
    sources = [parse_source(key, word) for word in words.split(",")] if words else []
    if len({source.name for source in sources}) < len(sources):
        raise ValueError(f"{key} names one benchmark twice: {brief(words)}")
    return sources


def missing(questions: Iterable[Question]) -> list[Path]:
    """The videos that are not there, each once."""
    return [video for video in dict.fromkeys(question.video for question in questions) if not video.exists()]


def chosen(questions: Sequence[Question], limit: int = 0, subset: int = 0, seed: int = 0) -> list[Question]:
    """The first `limit` questions, or a `subset` that the seed and the questions' uids alone determine, in the file's
    order; 0 takes all. Of one seed, a smaller subset lies inside a larger one."""
    if limit and subset:
        raise ValueError("give limit or subset, not both: each says how many questions are asked")
    if subset:
        drawn = sorted(questions, key=lambda q: hashlib.blake2b(f"{seed} {q.uid}".encode()).digest())[:subset]
        kept = {question.uid for question in drawn}
        return [question for question in questions if question.uid in kept]
    return list(questions[: limit or None])
