"""One cell of a sweep: start from the image stage, train, answer the questions, count and measure -> a row."""

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from accelerate import Accelerator
from safetensors.torch import load_file

from tefusion.cells import PROTOCOL, Cell, content
from tefusion.checkpoint import Checkpoints, clear, save_whole
from tefusion.config import SAVE_EVERY, Run, changed
from tefusion.cost import PeakMemory, count, measure
from tefusion.data.source import data_folder, load_split
from tefusion.effort import effort, trained
from tefusion.encoders.weights import load_image_weights
from tefusion.evaluate import answer_questions
from tefusion.evaluation import UNASKED, Evaluation
from tefusion.exam import examine
from tefusion.files import replace_file
from tefusion.image_stage import image_model, image_weights
from tefusion.launch import is_first
from tefusion.machine import provenance
from tefusion.objective import Loss
from tefusion.score import summarise, write_answers
from tefusion.train import accelerator, create_vlm, frame_cache, reader, train_videos
from tefusion.training import Progress, Training
from tefusion.video import parse_size
from tefusion.vlm import VLM

EVERY = 10  # steps between two lines of the log

split_of = lru_cache(maxsize=4)(load_split)


def run_cell(
    cell: Cell, name: str, out: Path, home: Path, log_with: str, send: Callable, save_every: int = SAVE_EVERY
) -> dict[str, object]:
    """The cell's row, complete but for its status."""
    return train_cell(cell, name, out, home, log_with, send, save_every)[1]


def train_cell(
    cell: Cell, name: str, out: Path, home: Path, log_with: str, send: Callable, save_every: int = SAVE_EVERY
) -> tuple[VLM, dict[str, object]]:
    """Trains and scores; writes cells/<name>/log.jsonl and answers.jsonl under `out`, and a folder for each benchmark.
    Goes on where an earlier attempt left off, and raises Stopped where it is asked to end."""
    run, spent, folder = cell.run, trained(cell.run), data_folder(cell.run.data, home)
    peak, progress = PeakMemory(), Progress()
    image = image_weights(run, home, save_every)
    acc, cache = accelerator(run, log_with, out / "cells" / name), frame_cache(home)
    vlm = create_vlm(run)
    if image:
        load_image_weights(vlm, load_file(image))
    checkpoints = Checkpoints(checkpoint_folder(out, name), save_every, changed(spent))
    notes = Log(out / "cells" / name / "log.jsonl", acc, send, spent.steps)
    train_videos(vlm, split_of(folder, "train"), cache, Training(spent, acc, notes, checkpoints, progress))
    for tracker in acc.trackers:
        tracker.finish()  # acc.end_training() would part the processes as well
    asked = split_of(folder, run.split)
    read = reader(run, cache, parse_size(run.size), asked.length)
    answers, videos = answer_questions(vlm, asked.questions, read, run.batch, send)
    if acc.is_main_process:
        write_answers(out / "cells" / name / "answers.jsonl", answers)
    row = (
        describe(cell, name)
        | {"generated": asked.truth is not None}
        | summarise(answers)
        | videos
        | {"unreadable_training": len(progress.unread), "unreadable_training_videos": sorted(progress.unread)}
        | {"loss": progress.notes["loss"], "learning_accuracy": progress.notes["right"]}
        | {"order": progress.order, "resumed": checkpoints.resumed}
        | count(run)
        | effort(run)
        | measure(vlm, run)
        | {"peak_memory_mb": peak.read(), "seconds": progress.elapsed()}  # without the benchmarks
        | provenance()
    )
    scores = examine(vlm, run, cell.asked, cache, out / "cells" / name, send)
    return vlm, row | ({"scores": scores} if scores else {})


def checkpoint_folder(out: Path, name: str) -> Path:
    return out / "cells" / name / "checkpoints"


def clear_checkpoints(out: Path, name: str) -> None:
    """For a cell whose row is on disk: nobody will take it up again."""
    if is_first():
        clear(checkpoint_folder(out, name))


def describe(cell: Cell, name: str) -> dict[str, object]:
    """What a row says of its cell whether the cell worked or not."""
    run = cell.run
    return {
        "id": name,
        "compressor": run.compressor,
        "k": run.k,
        "n_input": run.n_input,
        "n_per_k": cell.n_per_k,  # 0 where the frames that enter are fixed, not the decoder's length
        "control": cell.control,
        "size": run.size,
        "seed": run.seed,
        "encoder": run.encoder,
        "decoder": run.decoder,
        "data": run.data,
        "steps": run.steps,
        "settings": asdict(run),
        "evaluation": cell.asked.settings,
        "protocol": PROTOCOL,
    }


class Log:
    """Training's JSONL, the tracker if there is one, and the progress that is sent to who watches.

    A line holds the means since the one before. What these need lies in progress.notes, which goes through checkpoints:
    a run that is taken up cuts its JSONL back to where it goes on.
    """

    def __init__(self, path: Path, acc: Accelerator, send: Callable, steps: int):
        self.path, self.acc, self.send, self.steps = path, acc, send, steps
        self.cut = False

    def __call__(self, progress: Progress, loss: Loss) -> None:
        if not self.cut and self.acc.is_main_process:
            self.cut_back(progress.step)
        self.cut = True
        notes = progress.notes
        terms = [loss.answer.item(), loss.auxiliary.item(), loss.right.item(), 1]
        notes["sums"] = [s + v for s, v in zip(notes.get("sums", [0.0] * 4), terms, strict=True)]
        if progress.step % EVERY and progress.step < self.steps:
            return
        *sums, steps = notes.pop("sums")
        notes["loss"], auxiliary, notes["right"] = (s / steps for s in sums)
        line = {"step": progress.step, "loss": notes["loss"], "auxiliary": auxiliary, "accuracy": notes["right"]}
        self.acc.log(line, step=progress.step)
        self.send(line | {"steps": self.steps})
        if self.acc.is_main_process:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def cut_back(self, step: int) -> None:
        """To the lines before `step`; one that a crash tore is among those that go."""
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        kept = [line for line in lines if line.endswith(b"}\n") and json.loads(line)["step"] < step]
        replace_file(self.path, b"".join(kept))


def run_images(run: Run, home: Path, send: Callable, save_every: int = SAVE_EVERY) -> str:
    """The image model that a run's cells start from."""

    def seen(progress: Progress, loss: Loss) -> None:
        if progress.step % EVERY == 0:
            line = {"step": progress.step, "steps": run.steps}
            send(line | {"loss": loss.answer.item(), "accuracy": loss.right.item()})

    def waiting(held: str) -> None:
        send({"waiting": held})

    return str(image_model(run, home, save_every, seen, waiting))


def train_and_keep(
    run: Run,
    out: Path | None,
    home: Path,
    log_with: str,
    send: Callable,
    save_every: int = SAVE_EVERY,
    evaluation: Evaluation = UNASKED,
) -> Path:
    """One run outside a sweep: its row, log, answers, weights and settings in one folder, which is returned."""
    cell = Cell(run, evaluation=evaluation)
    name = cell.id(content(data_folder(run.data, home)))
    out = out or home / "train" / name
    vlm, row = train_cell(cell, name, out, home, log_with, send, save_every)
    if is_first():
        from tefusion.hub.export import export, write_beside

        save_whole(vlm.state_dict(), out / "model.safetensors")
        write_beside(out, *export(run, vlm, row))
        replace_file(out / "run.json", json.dumps(asdict(run), indent=2).encode())
        replace_file(out / "results.jsonl", (json.dumps(row | {"status": "done"}) + "\n").encode())
    clear_checkpoints(out, name)
    return out
