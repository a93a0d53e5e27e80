"""One cell of a sweep: start from the image stage, train, answer the questions, count and measure -> a row."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from safetensors.torch import load_file

from tefusion.cells import PROTOCOL, Cell, content
from tefusion.checkpoint import save_whole
from tefusion.config import Run
from tefusion.cost import PeakMemory, count, measure
from tefusion.data.source import data_folder, load_split
from tefusion.encoders.weights import load_image_weights
from tefusion.evaluate import answer_questions
from tefusion.image_stage import image_model, image_weights
from tefusion.launch import is_first
from tefusion.machine import provenance
from tefusion.objective import Loss
from tefusion.score import replace_file, summarise, write_answers
from tefusion.train import accelerator, create_vlm, frame_cache, reader, train_videos
from tefusion.video import parse_size
from tefusion.vlm import VLM

EVERY = 10  # steps between two lines of the log

split_of = lru_cache(maxsize=4)(load_split)


def run_cell(cell: Cell, name: str, out: Path, home: Path, log_with: str, send: Callable) -> dict[str, object]:
    """The cell's row, complete but for its status."""
    return train_cell(cell, name, out, home, log_with, send)[1]


def train_cell(
    cell: Cell, name: str, out: Path, home: Path, log_with: str, send: Callable
) -> tuple[VLM, dict[str, object]]:
    """Trains and scores; writes cells/<name>/log.jsonl and answers.jsonl under `out`."""
    run, folder = cell.run, data_folder(cell.run.data, home)
    peak, start = PeakMemory(), time.perf_counter()
    image = image_weights(run, home)
    acc, cache = accelerator(run, log_with, out / "cells" / name), frame_cache(home)
    vlm = create_vlm(run)
    if image:
        load_image_weights(vlm, load_file(image))
    notes = Log(out / "cells" / name / "log.jsonl", acc, send, run.steps)
    skipped = train_videos(vlm, run, split_of(folder, "train"), cache, acc, notes)
    notes.close()
    acc.end_training()
    asked = split_of(folder, run.split)
    read = reader(run, cache, parse_size(run.size), asked.length)
    answers, videos = answer_questions(vlm, asked.questions, read, run.batch)
    if acc.is_main_process:
        write_answers(out / "cells" / name / "answers.jsonl", answers)
    row = (
        describe(cell, name)
        | summarise(answers)
        | videos
        | {"unreadable_training": len(skipped), "unreadable_training_videos": skipped}
        | {"loss": notes.loss, "learning_accuracy": notes.right}
        | count(run)
        | measure(vlm, run)
        | {"peak_memory_mb": peak.read(), "seconds": time.perf_counter() - start}
        | provenance()
    )
    return vlm, row


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
        "protocol": PROTOCOL,
    }


def clear_checkpoints(out: Path, name: str) -> None:
    """For a cell whose row is on disk: nobody will take it up again."""


class Log:
    """Training's JSONL, the tracker if there is one, and the progress that is sent to who watches."""

    def __init__(self, path: Path, acc, send: Callable, steps: int):
        self.acc, self.send, self.steps = acc, send, steps
        self.loss = self.right = float("nan")
        self.sums = [0.0, 0.0, 0.0, 0]
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("w", encoding="utf-8") if acc.is_main_process else None

    def __call__(self, step: int, loss: Loss) -> None:
        terms = (loss.answer, loss.auxiliary, loss.right)
        self.sums = [s + v for s, v in zip(self.sums, [*(t.item() for t in terms), 1], strict=True)]
        if (step + 1) % EVERY and step + 1 < self.steps:
            return
        answer, auxiliary, right = (s / self.sums[3] for s in self.sums[:3])
        self.sums, self.loss, self.right = [0.0, 0.0, 0.0, 0], answer, right
        line = {"step": step + 1, "loss": answer, "auxiliary": auxiliary, "accuracy": right}
        self.acc.log(line, step=step + 1)
        self.send(line | {"steps": self.steps})
        if self.file:
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()

    def close(self) -> None:
        if self.file:
            self.file.close()


def run_images(run: Run, home: Path, send: Callable) -> str:
    """The image model that a run's cells start from."""

    def seen(step: int, loss: Loss) -> None:
        if (step + 1) % EVERY == 0:
            line = {"step": step + 1, "steps": run.steps, "loss": loss.answer.item(), "accuracy": loss.right.item()}
            send(line)

    return str(image_model(run, home, accelerator(run), seen))


def train_and_keep(run: Run, out: Path | None, home: Path, log_with: str, send: Callable) -> Path:
    """One run outside a sweep: its row, log, answers, weights and settings in one folder, which is returned."""
    name = Cell(run).id(content(data_folder(run.data, home)))
    out = out or home / "train" / name
    vlm, row = train_cell(Cell(run), name, out, home, log_with, send)
    if is_first():
        save_whole(vlm.state_dict(), out / "model.safetensors")
        replace_file(out / "run.json", json.dumps(asdict(run), indent=2).encode())
        replace_file(out / "results.jsonl", (json.dumps(row | {"status": "done"}) + "\n").encode())
    return out
