"""Video-MME: one parquet file of questions, `data/<videoID>.mp4`; a question's category is its video's duration."""

from functools import partial
from pathlib import Path
from typing import Any

from tefusion.data.annotation import AnnotationError, bare_options, check_text, field, find, letter, texts, unique
from tefusion.data.question import Question
from tefusion.json_files import parsed
from tefusion.score import DURATIONS

SUFFIXES = (".mp4", ".MP4", ".mkv", ".webm")
COLUMNS = ("videoID", "question_id", "duration", "domain", "sub_category", "task_type", "question", "options", "answer")


def read_videomme(folder: str | Path, problems: list[str] | None = None) -> list[Question]:
    """Raises AnnotationError naming file and row, or collects these lines in `problems`."""
    folder = Path(folder)
    files = sorted({*folder.glob("*.parquet"), *folder.glob("*/*.parquet")})
    if not files:
        raise AnnotationError(f"{folder} is no Video-MME folder: neither it nor a folder in it holds a .parquet file")
    questions, uids = [], set[str]()
    for file in files:
        rows = ((f"{file}, row {number}", row) for number, row in enumerate(read_parquet(file), 1))
        parse = partial(parse_row, folder=folder, uids=uids)
        questions += parsed(rows, parse, AnnotationError, problems)
    if not questions and not problems:
        raise AnnotationError(f"{files[0]} holds no question")
    return questions


def read_parquet(file: Path) -> list[dict[str, Any]]:
    """The columns that a question needs, as rows."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise AnnotationError(f"{file} can only be read with pyarrow: pip install 'tefusion[parquet]'") from None
    try:
        with parquet.ParquetFile(file) as opened:
            if missing := [column for column in COLUMNS if column not in opened.schema_arrow.names]:
                raise AnnotationError(f"{file} lacks the column {missing[0]}")
            return opened.read(columns=list(COLUMNS)).to_pylist()
    except (ArrowException, OSError) as error:
        raise AnnotationError(f"{file} is damaged or no parquet file: {' '.join(str(error).split())[:200]}") from None


def parse_row(row: Any, folder: Path, uids: set[str]) -> Question:
    name, uid, duration, text, answer = (
        field(row, key, str) for key in ("videoID", "question_id", "duration", "question", "answer")
    )
    if duration not in DURATIONS:
        raise ValueError(f"'duration' should be one of {', '.join(DURATIONS)}, found {duration!r}")
    options = bare_options(texts(row, "options"))
    check_text("question", text)
    unique(uid, uids)
    video = find("videoID", name, [folder / "data", folder], SUFFIXES, folder)
    return Question(uid, video, text, options, letter(answer.strip(), len(options), uid), duration, name)
