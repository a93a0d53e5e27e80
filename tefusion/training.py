"""The loop: optimizer steps over parts of a batch, in any number of processes, kept and taken up at any step."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from einops import rearrange
from torch import nn
from torch.optim import Optimizer

from tefusion import snapshot
from tefusion.checkpoint import Checkpoints
from tefusion.config import Run
from tefusion.data.examples import Key
from tefusion.launch import gather
from tefusion.objective import Loss
from tefusion.optim import optimizers, schedule
from tefusion.stop import Stopped, asked
from tefusion.vlm import VLM


@dataclass
class Progress:
    """How far a run has come; goes through its checkpoints as JSON.

    `step` counts the steps that were taken, `order` is a digest of every (epoch, place) that they saw, in order,
    `notes` is for whoever watches the run. `seconds` are those of earlier lives, this one's begin at `start`.
    """

    step: int = 0
    order: str = ""
    seconds: float = 0.0
    unread: set[str] = field(default_factory=set)
    notes: dict[str, Any] = field(default_factory=dict)
    start: float = field(default_factory=time.perf_counter)

    def advance(self, keys: Sequence[Key]) -> None:
        self.step += 1
        self.order = hashlib.blake2b((self.order + json.dumps(keys)).encode(), digest_size=16).hexdigest()

    def elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self.start

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "order": self.order,
            "seconds": self.elapsed(),
            "unread": sorted(set(gather(sorted(self.unread)))),
            "notes": self.notes,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.step, self.order, self.seconds = state["step"], state["order"], state["seconds"]
        self.unread |= set(state["unread"])
        self.notes |= state["notes"]


Seen = Callable[[Progress, Loss], None]  # told of every step and its loss
Feed = Callable[[int], Iterable[Any]]


def unseen(progress: Progress, loss: Loss) -> None:
    """Nobody watches."""


@dataclass
class Training:
    """A run under way: in which processes, who is told of it, where it is kept and taken up again."""

    run: Run
    accelerator: Accelerator
    seen: Seen = unseen
    checkpoints: Checkpoints | None = None
    progress: Progress = field(default_factory=Progress)

    def take_up(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """From the newest good checkpoint, where there is one."""
        found = self.checkpoints and self.checkpoints.load(partial(snapshot.expected, model, optimizers))
        if found:
            snapshot.restore(model, optimizers, found.shared)
            self.progress.restore(found.state["progress"])
            if self.accelerator.scaler:
                self.accelerator.scaler.load_state_dict(found.state["scaler"])
            if found.own:
                snapshot.set_random_states(found.own)
            else:
                snapshot.draw_anew(self.run.seed, self.progress.step, self.accelerator.process_index)

    def keep(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """Saves where it is time to. Raises Stopped, in all processes at once, where one of them was asked to end."""
        step, steps = self.progress.step, self.run.steps
        word = torch.tensor(float(asked()), device=self.accelerator.device)
        ending = bool(self.accelerator.reduce(word, "sum"))
        if self.checkpoints and (ending or step == steps or self.checkpoints.due(step)):
            scaler = self.accelerator.scaler
            state = {"progress": self.progress.state(), "scaler": scaler.state_dict() if scaler else None}
            shared = snapshot.tensors(model, optimizers)
            self.checkpoints.save(step, shared, snapshot.random_states(), state)
        if ending:
            raise Stopped(f"stopped at step {step} of {steps}")


def fit(objective: nn.Module, vlm: VLM, feed: Feed, training: Training) -> None:
    """`feed(step)` gives run.accumulate batches for every step after the first `step` ones."""
    run, accelerator, progress = training.run, training.accelerator, training.progress
    model, *made = accelerator.prepare(objective, *optimizers(objective, vlm, run))  # together: sharding wants both
    bare = [o.optimizer for o in made]
    training.take_up(objective, bare)
    plans = [schedule(o, run.steps, run.warmup, run.final_lr, progress.step) for o in made]
    model.train()
    for parts in zip(*[iter(feed(progress.step))] * run.accumulate, strict=True):
        loss, keys = backward(model, objective, parts, accelerator)
        if not loss.total.isfinite():
            raise FloatingPointError(f"the loss is {loss.total.item()} at step {progress.step + 1}, on {named(keys)}")
        accelerator.clip_grad_norm_(model.parameters(), run.clip)
        for optimizer, plan in zip(made, plans, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            plan.step()
        progress.advance(keys)
        training.seen(progress, loss)
        training.keep(objective, bare)
    model.eval()


def backward(
    model: nn.Module, objective: Any, parts: Sequence[Any], accelerator: Accelerator
) -> tuple[Loss, list[Key]]:
    """Gradients of the loss over the whole of a step's batch, whose parts lie one after another and in all processes;
    this loss, and what the batch holds in its order."""
    counts = torch.stack([objective.counts(part) for part in parts]).to(accelerator.device)
    shares = counts / accelerator.reduce(counts.sum(0), "sum").clamp(min=1)
    losses = []
    for part, share in zip(parts, shares, strict=True):
        with nullcontext() if part is parts[-1] else accelerator.no_sync(model):
            with accelerator.autocast():
                loss = model(part, share)
            accelerator.backward(loss.total * accelerator.num_processes)  # DDP takes the mean over processes
        losses.append(torch.stack([loss.total, loss.answer, loss.auxiliary, loss.right]).detach())
    keys = accelerator.gather(torch.tensor([part.keys for part in parts], device=accelerator.device))
    keys = rearrange(keys, "(world parts) b two -> (parts world b) two", parts=len(parts)).tolist()
    return Loss(*accelerator.reduce(torch.stack(losses).sum(0), "sum")), [(epoch, place) for epoch, place in keys]


def named(keys: Sequence[Key]) -> str:
    epochs = {epoch: ", ".join(str(place) for e, place in keys if e == epoch) for epoch, _ in keys}
    return "; ".join(f"epoch {epoch}, examples {places}" for epoch, places in epochs.items())
