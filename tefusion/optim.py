"""Muon for the matrices, AdamW for the rest; one schedule for both."""

import math

import torch
from torch import nn

from tefusion.config import Run
from tefusion.muon import Muon
from tefusion.vlm import VLM


def freeze(vlm: VLM, what: str) -> None:
    """Leaves only what `what` (a choice of Run.freeze) does not name to be trained."""
    frozen = {
        "none": [],
        "encoder": [vlm.encoder.tower],
        "decoder": [vlm.decoder],
        "all_but_compressor": [vlm],
    }[what]
    for module in frozen:
        module.requires_grad_(False)
    if what == "all_but_compressor":
        vlm.encoder.compressor.requires_grad_(True)


def optimizers(model: nn.Module, vlm: VLM, run: Run) -> list[torch.optim.Optimizer]:
    """Muon takes the matrices of blocks, projector and compressor; embeddings, positions, queries, the patch map and
    the head stay with AdamW, whose steps do not equalise all directions."""
    matrices = muon_matrices(vlm) if run.optimizer == "muon" else []
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    made: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=run.lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=run.weight_decay)
    ]
    if matrices:
        made.append(Muon(matrices, lr=run.muon_lr, momentum=0.95, weight_decay=run.muon_decay))
    return made


def muon_matrices(vlm: VLM) -> list[torch.Tensor]:
    parts = [vlm.encoder.tower.blocks, vlm.encoder.projector, vlm.encoder.compressor, vlm.decoder]
    heads = {id(vlm.decoder.get_output_embeddings()), id(vlm.decoder.get_input_embeddings())}
    linears = [m for part in parts for m in part.modules() if isinstance(m, nn.Linear) and id(m) not in heads]
    return [m.weight for m in linears if m.weight.requires_grad]


def schedule(optimizer: torch.optim.Optimizer, steps: int, warmup: int, final: float, done: int = 0):
    """Linear warm-up, then a cosine down to the share `final` of the learning rate. It is a function of the step alone:
    a run that goes on after `done` steps needs nothing else to find its place."""
    warmup = min(warmup, max(1, steps // 4))

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2

    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return torch.optim.lr_scheduler.LambdaLR(optimizer, share, last_epoch=done - 1)
