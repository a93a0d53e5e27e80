"""One typed row of any benchmark: what is asked about which video."""

from dataclasses import dataclass
from pathlib import Path

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Question:
    """A multiple-choice question; `answer` is a letter, or None where the benchmark keeps it secret.

    Questions about one video share a `cluster`: their errors are not independent. `labels` are all its categories where
    it belongs to several, `seconds` is the length of the whole video as its annotation declares it, and questions of
    one row of the annotation share a `row`.
    """

    uid: str
    video: Path
    text: str
    options: tuple[str, ...]
    answer: str | None
    category: str
    cluster: str
    start: float | None = None
    end: float | None = None
    labels: tuple[str, ...] = ()
    seconds: float | None = None
    row: str = ""
