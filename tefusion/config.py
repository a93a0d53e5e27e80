"""Run: one training run as scalars. `parse` turns key=value words into typed values; a list makes an axis."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tefusion.choices import brief, nearest


@dataclass(frozen=True)
class Run:
    """What one cell of a sweep is. Two runs with equal fields are the same run."""

    # what is compared
    compressor: str = "te_fusion"
    k: int = 4
    n_input: int = 16  # frames that enter the encoder; 0 asks from the text alone
    size: str = "32"  # pixels a side, or height x width as in 32x16
    policy: str = "centres"
    seed: int = 0
    # the model
    encoder: str = "micro"
    decoder: str = "tiny"
    init: str = "image"  # image: start from the image stage; scratch: from random weights
    position_std: float = 0.5  # spread of learned temporal positions at the start
    freeze: str = "none"
    pruner: str = "none"  # what of a video's tokens the decoder sees: then their number a group depends on the video
    pruned: str = "always"  # test: only where questions are answered, behind a training that saw all tokens
    # the data
    data: str = "motion"
    split: str = "test"  # which questions are scored
    augment: bool = True
    # the training
    steps: int = 300
    times: int = 1  # how often `steps` are taken: the points of a learning curve
    equal: str = "samples"  # or flops:<compressor>:<k>:<n_input>:<size>: as many steps as cost what that run's do
    image_steps: int = 400
    batch: int = 64
    accumulate: int = 1
    optimizer: str = "muon"
    muon_lr: float = 0.02
    lr: float = 1.5e-3
    lr_scale: float = 1.0  # a factor of both learning rates; the image stage keeps them as they are
    final_lr: float = 0.05  # share of the learning rate that is left at the last step
    warmup: int = 50
    weight_decay: float = 0.0
    muon_decay: float = 1.0  # without it Muon's matrices grow for ever, and learn ever less from a step
    clip: float = 1.0
    auxiliary: float = 1.0  # weight of the loss on known trajectories; 0 where data has none
    precision: str = "no"
    workers: int = 0

    def __post_init__(self):
        for name, kind in fields(Run).items():
            check_type(name, getattr(self, name), kind)
        if ":" in self.compressor:  # a method with options has one spelling, so that equal runs have equal names
            object.__setattr__(self, "compressor", with_options(self.compressor))
        if self.pruner != "none":
            object.__setattr__(self, "pruner", pruner(self.pruner))
        if self.equal != "samples":
            object.__setattr__(self, "equal", with_reference(self.equal, self.n_input, self.size))
        for name, valid in CHOICES.items():
            choose(name, getattr(self, name), valid)
        if self.pruner == "none":
            object.__setattr__(self, "pruned", "always")
        for name in ("k", "steps", "times", "batch", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "muon_lr", "lr_scale", "clip"):
            if not 0 < getattr(self, name) < float("inf"):  # NaN fails as well
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("n_input", "seed", "image_steps", "warmup", "workers", *FLOATS):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.n_input > MOST_FRAMES:
            raise ValueError(f"n_input must be at most {MOST_FRAMES}, got {self.n_input}")
        if self.n_input % self.k:
            raise ValueError(f"{self.n_input} frames (n_input) do not divide into groups of k = {self.k}")
        if self.batch % self.accumulate:
            raise ValueError(f"batch = {self.batch} does not divide into {self.accumulate} accumulated parts")


def with_options(compressor: str) -> str:
    """Raises ValueError on an option that the method has not, or that the run itself sets."""
    from tefusion.compressors import one_spelling

    for option in (setting.partition("=")[0] for setting in compressor.split(":")[1:]):
        if option in fields(Run):
            raise ValueError(f"{option} is a setting of the run: write {option}= beside compressor=, not within it")
    return one_spelling(compressor)


def pruner(word: str) -> str:
    """Raises ValueError on one that cannot be."""
    from tefusion.pruners import one_spelling

    return one_spelling(word)


def with_reference(equal: str, n_input: int, size: str) -> str:
    """`flops` alone means the baseline with the run's own frames and size; a reference without a size has the run's."""
    match = re.fullmatch(r"flops(?::(\w+(?::\w+=[^:]+)*):(\d{1,9}):(\d{1,9})(?::(\d+(?:x\d+)?))?)?", equal, re.ASCII)
    if not match:
        said = "samples, flops or flops:<compressor>:<k>:<n_input> such as flops:none:1:16"
        raise ValueError(f"equal must be {said}, got {brief(equal)}")
    method, k, frames, pixels = match.groups()
    return f"flops:{method or 'none'}:{k or 1}:{frames or n_input}:{pixels or size}"


MOST_FRAMES = 1 << 16  # more than the context of any decoder holds, one token a frame
LARGEST = 1 << 32  # seeds of NumPy end here; every other number is far smaller
FLOATS = ("position_std", "final_lr", "weight_decay", "muon_decay", "auxiliary")

CHOICES = {
    "init": ("image", "scratch"),
    "freeze": ("none", "encoder", "decoder", "all_but_compressor"),
    "pruned": ("always", "test"),
    "split": ("dev", "test"),
    "optimizer": ("muon", "adamw"),
    "precision": ("no", "bf16", "fp16"),
}

SAVE_EVERY = 50  # steps between two checkpoints; 0: only at the end, and where the run is asked to stop

# A recipe is a set of defaults. "paper" is table 5 of MotionBench (2501.02955); what it leaves open is written here.
RECIPES: dict[str, dict[str, Any]] = {
    "small": {},
    "tuned": {},  # small, at the best of LR_SCALES for each cell
    "paper": {
        "steps": 10_000,
        "warmup": 1_000,
        "batch": 768,
        "optimizer": "adamw",
        "lr": 8e-6,
        "final_lr": 0.125,
        "precision": "bf16",
        "auxiliary": 0.0,
    },
}
LR_SCALES = [0.5, 1.0, 2.0]


def choose(key: str, value: str, valid: Iterable[str]) -> None:
    """Raises ValueError where `value` is none of the `valid` ones."""
    if value not in valid:
        raise ValueError(f"{key} {brief(value)} is unknown{nearest(value, valid)}")


def fields(*schemas: type) -> dict[str, type]:
    """Every key that the dataclasses know, with its type."""
    return {field.name: type(field.default) for schema in schemas for field in dataclasses.fields(schema)}


def parse(words: Sequence[str], *schemas: type, whole: Collection[str] = ()) -> dict[str, list[Any]]:
    """`["k=2,4", "lr=1e-3"]` -> `{"k": [2, 4], "lr": [0.001]}`, typed by the dataclasses' defaults.

    The keys in `whole` keep their commas.

    Raises ValueError with one line: on a word without "=", a key twice, an unknown key, a value of the wrong type.
    """
    known, parsed = fields(*schemas), {}
    for word in words:
        key, equals, values = word.partition("=")
        if not equals:
            raise ValueError(f"{brief(word)} is not of the form key=value")
        if key not in known:
            raise ValueError(f"unknown key {brief(key)}{nearest(key, known)}")
        if key in parsed:
            raise ValueError(f"{key!r} is given twice")
        listed = [values] if key in whole else values.split(",")
        parsed[key] = list(dict.fromkeys(typed(key, value, known[key]) for value in listed))
    return parsed


def typed(key: str, value: str, kind: type) -> Any:
    """One value as its key's type, or one clear line. Numbers are ASCII: int() alone would take "1_6", " 4" and other
    scripts' digits."""
    if not re.fullmatch(WRITTEN[kind], value, re.ASCII | re.IGNORECASE | re.DOTALL):
        raise ValueError(f"{key} must be {NOUNS[kind]}, got {brief(value)}")
    made = value.lower() == "true" if kind is bool else kind(value)
    check_type(key, made, kind)
    return made


NOUNS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
WRITTEN = {
    bool: r"true|false",
    int: r"[+-]?\d{1,40}",
    float: r"[+-]?(\d{1,40}\.?\d{0,40}|\.\d{1,40})(e[+-]?\d{1,3})?",
    str: r".*",
}


def check_type(key: str, value: object, kind: type) -> None:
    """Raises ValueError where a value is not exactly of its key's type (a whole number may stand for a number), or is
    a number beyond any that a run has; NaN is."""
    if type(value) is not kind and (kind, type(value)) != (float, int):
        raise ValueError(f"{key} must be {NOUNS[kind]}, got {brief(value)}")
    if isinstance(value, int | float) and not abs(value) < LARGEST:
        raise ValueError(f"{key} must be {NOUNS[kind]} below 2**32, got {brief(value)}")


def one_each(parsed: dict[str, list[Any]], keys: Iterable[str]) -> dict[str, Any]:
    """The single values of `keys`. Raises ValueError where one of them has a list."""
    for key in keys:
        if len(parsed.get(key, [])) > 1:
            raise ValueError(f"{key} takes one value here, got {len(parsed[key])}")
    return {key: parsed[key][0] for key in keys if key in parsed}


def changed(run: Run) -> dict[str, Any]:
    """The settings that differ from their defaults."""
    return {name: value for name, value in asdict(run).items() if value != getattr(type(run), name)}


def digest(run: Run, *beside: object) -> str:
    """A short name for a run and what belongs to it: equal settings, equal name.

    Settings at their defaults do not enter it, so that one that comes later renames no recorded run. A default that
    changes must raise the protocol's version, which stands beside the run.
    """
    text = json.dumps([changed(run), *beside], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
