"""Which benchmarks a trained model is asked beside its own questions, which of their questions, and in whose words."""

import hashlib
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from tefusion.config import choose
from tefusion.data.benchmarks import Source, chosen, missing, parse_sources
from tefusion.data.prompt import PROMPTS, Prompt
from tefusion.data.question import Question
from tefusion.replies import VERSIONS
from tefusion.wording import plural


@dataclass(frozen=True)
class Evaluation:
    """`eval` is a list as in motionbench:<folder>,mvbench:<folder>; `limit` and `subset` count questions of each, 0 is
    all. One drawing by `subset_seed` serves all cells, whatever their own seed: they are compared by question. Raises
    ValueError."""

    eval: str = ""
    limit: int = 0
    subset: int = 0
    subset_seed: int = 0
    prompt: str = "likelihood"

    def __post_init__(self) -> None:
        choose("prompt", self.prompt, PROMPTS)
        for name in ("limit", "subset", "subset_seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.limit and self.subset:
            raise ValueError("give limit or subset, not both: each says how many questions are asked")
        if given := [name for name, value in asdict(self).items() if value != getattr(Evaluation, name)]:
            if not self.eval:
                raise ValueError(f"{given[0]} says how eval= is asked: name a benchmark, eval=motionbench:<folder>")
            if self.subset_seed and not self.subset:
                raise ValueError("subset_seed draws the questions of subset=: say how many")
        self.sources()

    def sources(self) -> list[Source]:
        return parse_sources("eval", self.eval)

    def questions(self, source: Source) -> list[Question]:
        return chosen(source.questions(), self.limit, self.subset, self.subset_seed)

    def words(self, source: Source) -> Prompt:
        return PROMPTS[self.prompt][source.name]

    @cached_property
    def identity(self) -> tuple[dict[str, Any], ...]:
        """What a run's id has to know, once for all cells: what the benchmarks hold, which of their videos are absent,
        what is asked and how replies are read, wherever the folders lie. Nothing where nothing is asked."""
        if not self.eval:
            return ()
        drawn = {name: value for name in SAID if (value := getattr(self, name)) != getattr(Evaluation, name)}
        held = {s.name: [s.content(), self.absent(s), self.words(s).version] for s in self.sources()}
        return ({**drawn, "benchmarks": held, "reader": VERSIONS.get(self.prompt)},)

    def absent(self, source: Source) -> str:
        """A hash of the questions whose video is not there; a score without these videos is another score."""
        questions = self.questions(source)
        gone = set(missing(questions))
        uids = sorted(question.uid for question in questions if question.video in gone)
        return hashlib.blake2b("\n".join(uids).encode(), digest_size=8).hexdigest() if uids else ""

    @property
    def settings(self) -> dict[str, Any]:
        """What tells two scores of one run on one benchmark apart."""
        return {name: getattr(self, name) for name in SAID} if self.eval else {}

    def at_the_door(self) -> list[str]:
        """One line for each benchmark that lacks videos. Raises ValueError where one cannot be read, lacks them all or
        has no known answer."""
        said = []
        for source in self.sources():
            questions = self.questions(source)
            named = f"{source.name}:{source.folder}"
            if not any(question.answer for question in questions):
                raise ValueError(f"eval: {named} keeps the answers of all that is asked secret: nothing can be scored")
            gone, videos = set(missing(questions)), {question.video for question in questions}
            if gone == videos:
                raise ValueError(f"eval: {named} has none of its {plural(len(videos), 'video')}")
            if gone:
                wrong = plural(sum(question.video in gone for question in questions), "question")
                said.append(
                    f"{source.name}: {len(gone)} of {len(videos)} videos are missing, {wrong} about them will count as "
                    f"wrong (tefusion check data={named} names them)"
                )
        return said


SAID = ("limit", "subset", "subset_seed", "prompt")
UNASKED = Evaluation()
