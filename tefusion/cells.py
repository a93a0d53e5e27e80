"""Words on the command line -> the cells of a sweep: every list is an axis, equal runs are one cell."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain, product
from pathlib import Path
from typing import Any, TypeVar

from tefusion.choices import brief
from tefusion.compressors import Compressor, check_k, method_of, trained
from tefusion.config import LR_SCALES, RECIPES, SAVE_EVERY, Run, choose, digest, one_each, parse
from tefusion.data.motion_sets import long_enough
from tefusion.decoder import DECODERS
from tefusion.effort import reference_of
from tefusion.encoders import PRESETS, VisionConfig
from tefusion.evaluation import UNASKED, Evaluation
from tefusion.video import parse_size, sample

Part = TypeVar("Part")

PROTOCOL = 4  # raise it when equal settings would give other results, and when a default changes
METHODS = ["none", "qwen2_vl", "te_fusion", "kangaroo", "pllava", "qformer"]


@dataclass(frozen=True)
class Sweep:
    """What a sweep has beside its runs."""

    n_per_k: int = 0  # frames for each group: n_input = n_per_k * k, the decoder's length is fixed; 0 leaves n_input
    budget: str = "default"
    recipe: str = "small"
    controls: bool = True
    jobs: int = 0  # cells at once; 0: one a core on a CPU, one on a GPU
    shard: str = "0/1"  # i/n: every n-th cell from the i-th on, for job arrays
    out: str = ""  # the run folder; by default runs/<budget>, and runs/<budget>-tuned
    home: str = "runs"  # where data, frames and image models are kept
    log_with: str = ""  # a tracker of Accelerate's, beside the JSONL that is always written
    minutes: float = 0.0  # after which it saves and ends, as if it were asked to; 0: no limit
    hang: int = 600  # seconds without a sign of life, loading data and model included, after which a cell is ended
    retry: bool = False  # cells that were set aside, since they failed too often, are tried again
    save_every: int = SAVE_EVERY


ZOO: dict[str, list[Any]] = {"compressor": ["all"], "k": [4], "seed": [0, 1, 2], "encoder": ["fine"]}

# A budget is a set of axes that words on the command line override.
BUDGETS: dict[str, dict[str, list[Any]]] = {
    "smoke": {"data": ["motion-smoke"], "steps": [6], "image_steps": [6], "batch": [16], "k": [2, 4]},
    "default": {},
    "full": {"seed": [0, 1, 2], "steps": [600], "image_steps": [800]},
    "zoo": ZOO | {"n_input": [8], "batch": [32], "steps": [400], "image_steps": [800]},
    "zoo-gpu": ZOO | {"seed": [0, 1, 2, 3, 4], "steps": [1600], "image_steps": [1600]},
}


@dataclass(frozen=True)
class Cell:
    """One run, the parts it plays as a control ("" for a method or the baseline), and the protocols it belongs to."""

    run: Run
    control: str = ""
    n_per_k: tuple[int, ...] = (0,)
    evaluation: Evaluation = UNASKED

    def id(self, content: str) -> str:
        """`content` says what the data holds: the same settings on other data are another cell, and so is the same
        model asked other benchmarks."""
        return digest(self.run, content, PROTOCOL, *self.asked.identity)

    @property
    def asked(self) -> Evaluation:
        """Trials choose a learning rate on dev: no benchmark is asked of them."""
        return UNASKED if "trial" in self.control.split(",") else self.evaluation

    def joined(self, control: str, n_per_k: int) -> "Cell":
        """In one more part. A method or the baseline is no control, whatever else it serves as."""
        if control and not self.control:
            return self
        if self.control and not control:
            return replace(self, control="", n_per_k=(n_per_k,))
        parts = dict.fromkeys([*self.control.split(","), control])
        return replace(self, control=",".join(parts), n_per_k=tuple(dict.fromkeys([*self.n_per_k, n_per_k])))


def plan(words: Sequence[str]) -> tuple[Sweep, list[Cell]]:
    """The sweep's own settings and its cells; those of recipe=tuned at every learning rate that they may get. Raises
    ValueError with one line on anything that cannot be."""
    parsed = parse(words, Run, Sweep, Evaluation, whole=["eval"])
    own = [field.name for field in fields(Sweep) if field.name != "n_per_k"]
    sweep = Sweep(**one_each(parsed, own))
    asked = [field.name for field in fields(Evaluation)]
    evaluation = Evaluation(**one_each(parsed, asked))
    choose("budget", sweep.budget, BUDGETS)
    choose("recipe", sweep.recipe, RECIPES)
    my_part([], sweep.shard)
    if sweep.jobs < 0:
        raise ValueError(f"jobs must not be negative, got {sweep.jobs}")
    if sweep.hang < 1:
        raise ValueError(f"hang must be at least 1 second, got {sweep.hang}")
    if sweep.minutes < 0:
        raise ValueError(f"minutes must not be negative, got {sweep.minutes}")
    if sweep.save_every < 0:
        raise ValueError(f"save_every must not be negative, got {sweep.save_every}")
    lengths = parsed.pop("n_per_k", [0])
    if "n_input" in parsed and any(lengths):
        raise ValueError("give n_input or n_per_k, not both: each says how many frames enter the encoder")
    axes: dict[str, list[Any]] = {"compressor": METHODS, "k": [2, 4, 8, 16]}
    axes |= {key: [value] for key, value in RECIPES[sweep.recipe].items()}
    if sweep.recipe == "tuned":
        axes["lr_scale"] = LR_SCALES
    axes |= BUDGETS[sweep.budget] | {key: values for key, values in parsed.items() if key not in own + asked}
    axes["compressor"] = named(axes["compressor"])
    cells: dict[Run, Cell] = {}
    for run, control, n_per_k in runs(axes, lengths, sweep.controls):
        if run not in cells:
            check(run)
            check(reference_of(run))
            check_machine(run)
            cells[run] = Cell(run, control, (n_per_k,), evaluation)
        cells[run] = cells[run].joined(control, n_per_k)
    return sweep, list(cells.values())


def named(methods: list[str]) -> list[str]:
    """With the whole registry, but for its controls, in the place of "all"."""
    return list(dict.fromkeys(chain.from_iterable(trained() if name == "all" else [name] for name in methods)))


def check(run: Run) -> None:
    """Raises ValueError where no model of these names, or no video of this size, can be: before anything is trained."""
    check_k(run.compressor, run.k)
    sizes(run.encoder)
    if not os.path.isdir(run.decoder):  # noqa: PTH112, Path.is_dir raises where a name is too long
        choose("decoder", run.decoder, DECODERS)
    sample(run.policy, total=1, frames=1, fps=1.0)
    unit, size = 2 * patch_size(run.encoder), parse_size(run.size)
    if min(size) < unit:
        raise ValueError(f"size {run.size!r} is smaller than the {unit} pixels of one decoder token of {run.encoder}")
    parameters = list(method(run).parameters())
    if run.freeze == "all_but_compressor" and not run.auxiliary and not parameters:
        said = f"freeze=all_but_compressor auxiliary=0 with compressor={run.compressor}"
        raise ValueError(f"{said} leaves nothing to train: the method has no parameters")


def method(run: Run) -> Compressor:
    """The run's method without memory. Raises ValueError on options that it, or the encoder, cannot serve."""
    import torch

    from tefusion.vision import method_for

    with torch.device("meta"):
        return method_for(sizes(run.encoder), run.compressor, run.k)


def check_machine(run: Run) -> None:
    """Raises ValueError where the run can be described, but not trained on this machine."""
    import torch

    from tefusion.data.source import check_data
    from tefusion.kernels import group_attention

    check_data(run.data)
    if torch.cuda.is_available():
        return
    if run.precision == "fp16":
        raise ValueError("precision=fp16 needs a GPU, and this machine has none; no and bf16 do without")
    if "TEFUSION_ATTENTION" in os.environ:
        group_attention(torch.zeros(1, 1, 3, 1, 8))  # says itself what it needs


def sizes(encoder: str) -> VisionConfig:
    """Raises ValueError on an unknown preset, or a timm ViT that is none or cannot be a tower."""
    if not encoder.startswith("timm:"):
        choose("encoder", encoder, [*PRESETS, "timm:<name>"])
        return PRESETS[encoder]
    from tefusion.encoders.timm_vit import timm_config

    return timm_config(encoder.removeprefix("timm:"))


def patch_size(encoder: str) -> int:
    return sizes(encoder).patch_size


def runs(axes: dict[str, list[Any]], lengths: list[int], controls: bool) -> Iterator[tuple[Run, str, int]]:
    """Every run with the part it plays and its n_per_k; the same run may come more than once.

    Generated clips are as long as n_input asks, for its controls too; n_per_k compares all k on the same clips.
    """
    names = [name for name in axes if name not in ("compressor", "k")]
    for values in product(*(axes[name] for name in names)):
        settings = dict(zip(names, values, strict=True))
        if "n_input" in settings:
            settings["data"] = long_enough(settings.get("data", Run.data), settings["n_input"])
        for n_per_k, k in product(lengths, axes["k"]):
            if k < 1:
                raise ValueError(f"k must be at least 1, got {k}")
            n_input = n_per_k * k or settings.get("n_input", Run.n_input)
            plain = n_per_k or n_input
            # One reference for all methods and controls of a protocol: the baseline.
            reference = {"equal": f"flops:none:1:{plain}"} if settings.get("equal") == "flops" else {}
            members = group(axes["compressor"], k, settings | reference | {"n_input": n_input}, plain, controls)
            yield from ((run, control, n_per_k) for run, control in members)


def group(
    methods: list[str], k: int, settings: dict[str, Any], plain: int, controls: bool
) -> Iterator[tuple[Run, str]]:
    """The methods at one k, the baseline over `plain` frames, and the controls that cost the decoder no more."""
    alone = Run(**settings | {"compressor": "none", "k": 1, "pruner": "none"})
    for method in methods:
        if method == "none":
            yield Run(**settings | {"compressor": "none", "k": 1, "n_input": plain}), ""
        elif not method_of(method).control:
            yield Run(**settings | {"compressor": method, "k": k}), ""
        elif method in (found := plain_runs(alone, k)):
            yield found[method], method
        else:
            said = f"{alone.n_input} frames of {alone.size} px in {alone.encoder}"
            raise ValueError(f"{method}: there is none of {said} at k = {k}")
    if not controls:
        return
    yield replace(alone, n_input=0), "text_only"
    yield replace(alone, n_input=1), "one_frame"
    yield from ((run, control) for control, run in plain_runs(alone, k).items())


def plain_runs(alone: Run, k: int) -> dict[str, Run]:
    """What the registry's controls are at this k: runs of `none`, the same for every method that is compared."""
    if k == 1 or alone.n_input % k:
        return {}
    size = lower_resolution(alone, k)
    fewer = {"fewer_frames": replace(alone, n_input=alone.n_input // k)}
    return fewer | ({"lower_resolution": replace(alone, size=size)} if size else {})


def lower_resolution(run: Run, k: int) -> str | None:
    """All frames at a size that costs 1/k of the tokens: width and height halved in turn; None where they run out."""
    if k & (k - 1):
        return None
    unit = 2 * patch_size(run.encoder)  # pixels a side of one decoder token
    height, width = parse_size(run.size)
    for halving in range(k.bit_length() - 1):
        height, width = (height, width // 2) if halving % 2 == 0 else (height // 2, width)
    if min(height, width) < unit:
        return None
    return f"{height}x{width}" if height != width else str(height)


def content(folder: Path) -> str:
    """What a data folder holds, as a hash of its annotations and settings."""
    found = sorted([*folder.glob("*/video_info.meta.jsonl"), *folder.glob("settings.json")])
    files = [file for file in found if file.is_file()]
    if not files:
        raise ValueError(f"{folder} holds no */video_info.meta.jsonl")
    return hashlib.blake2b(b"".join(file.read_bytes() for file in files), digest_size=8).hexdigest()


def my_part(cells: list[Part], shard: str) -> list[Part]:
    """The cells of shard "i/n". Every shard knows its own from the settings alone."""
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", shard, re.ASCII)
    if not match or int(match[1]) >= int(match[2]):
        raise ValueError(f"shard must be i/n with 0 <= i < n, got {brief(shard)}")
    return cells[int(match[1]) :: int(match[2])]
