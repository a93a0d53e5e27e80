"""What is fuzzed: for each kind of input the good files, how they are damaged, who reads them, what must come out."""

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import mutate
import numpy as np

SWEEPS = [
    ["k=2,4", "compressor=te_fusion,pllava", "n_input=16", "size=32", "seed=0,1", "lr=1e-3", "augment=true"],
    ["n_per_k=4", "k=2", "policy=fps:2", "size=64x32", "encoder=tiny", "decoder=small", "controls=false", "shard=0/2"],
    ["budget=smoke", "steps=9", "precision=bf16", "freeze=encoder", "split=dev", "optimizer=adamw", "data=motion"],
]
TRAININGS = [
    ["recipe=paper", "batch=96", "accumulate=2", "warmup=10", "clip=0.5", "auxiliary=0", "workers=1", "init=scratch"],
    ["compressor=kangaroo", "k=8", "n_input=32", "size=48x64", "encoder=small", "freeze=all_but_compressor", "out=x"],
]


@dataclass
class Target:
    """`damage` leaves a damaged input in `folder`, `read` reads it, `check` raises AssertionError on a wrong result.
    A clean error is an `error` of one line that holds one of `names`."""

    good: Path
    folder: Path
    error: type[ValueError] = ValueError
    names: tuple[str, ...] = ()
    said: dict[str, Any] = field(default_factory=dict)  # what this input asks beside the file

    def prepare(self) -> None:
        """Once, before the first input."""

    def damage(self, rng: Random) -> None:
        raise NotImplementedError

    def read(self) -> Any:
        raise NotImplementedError

    def check(self, result: Any) -> None:
        raise NotImplementedError

    def replace(self, name: str, rng: Random, how: Callable[[Random, bytes], bytes]) -> None:
        """The file `name` becomes a damaged copy of the good one."""
        (self.folder / name).write_bytes(how(rng, (self.good / name).read_bytes()))


class Video(Target):
    def prepare(self) -> None:
        import tefusion.resize  # noqa: F401, PyTorch, which a reader loads only where it resizes
        from tefusion.video import VideoError

        self.error, self.names = VideoError, ("clip.mp4",)

    def damage(self, rng: Random) -> None:
        good = rng.choice(sorted(self.good.glob("*.mp4")))
        (self.folder / "clip.mp4").write_bytes(mutate.damage_mp4(rng, good.read_bytes()))
        self.said = {
            "frames": rng.choice([1, 4, 16]),
            "policy": rng.choice(["linspace", "centres"]),
            "size": rng.choice([(16, 24), (16, 24), None]),
            "backend": rng.choice(["auto", "pyav", "decord"]),
        }

    def read(self) -> Any:
        from tefusion.video import Request, decode

        return decode(self.folder / "clip.mp4", Request(**self.said))

    def check(self, result: Any) -> None:
        n, size = self.said["frames"], self.said["size"]
        assert result.frames.dtype == np.uint8
        assert result.frames.ndim == 4
        assert result.frames.shape[0] == len(result.indices) == len(result.seconds) == n
        assert result.frames.shape[1:] == (*size, 3) if size else result.frames.shape[3] == 3
        assert all(0 <= index < result.total for index in result.indices)
        assert list(result.indices) == sorted(result.indices)
        assert all(map(math.isfinite, result.seconds))
        assert list(result.seconds) == sorted(result.seconds)
        assert 0 <= result.repeated < n


class Annotations(Target):
    def prepare(self) -> None:
        from tefusion.data.motionbench import MotionBenchError

        shutil.copytree(self.good, self.folder, dirs_exist_ok=True)
        self.error, self.names = MotionBenchError, ("video_info.meta.jsonl, line", "holds no question")

    def damage(self, rng: Random) -> None:
        self.replace("video_info.meta.jsonl", rng, mutate.damage_rows)

    def read(self) -> Any:
        from tefusion.data.motionbench import read_motionbench

        return read_motionbench(self.folder)

    def check(self, result: Any) -> None:
        from tefusion.data.prompt import prompt
        from tefusion.data.question import LETTERS

        assert result
        assert len({question.uid for question in result}) == len(result)
        for question in result:
            assert isinstance(question.uid, str)
            assert 1 <= len(question.options) <= len(LETTERS)
            assert question.answer is None or question.answer in LETTERS[: len(question.options)]
            assert question.category in {"MR", "LM", "CM", "MO", "AO", "RC"}
            assert question.video.resolve().is_relative_to(self.folder.resolve())
            assert question.text
            assert prompt(question).encode()
            assert question.end is None or 0 <= (question.start or 0) < question.end < 1e9


class Settings(Target):
    def damage(self, rng: Random) -> None:
        sweep = rng.random() < 0.5
        self.said = {"words": mutate.damage_words(rng, rng.choice(SWEEPS if sweep else TRAININGS)), "sweep": sweep}

    def read(self) -> Any:
        from tefusion.cells import plan
        from tefusion.cli import Train, single_run

        if self.said["sweep"]:
            return [cell.run for cell in plan(self.said["words"])[1]]
        return [single_run(self.said["words"], Train)[0]]

    def check(self, result: Any) -> None:
        check_runs(result)


def check_runs(runs: list[Any]) -> None:
    from tefusion.compressors import COMPRESSORS
    from tefusion.config import Run, fields
    from tefusion.video import parse_size

    assert runs
    for run in runs:
        for name, kind in fields(Run).items():
            value = getattr(run, name)
            assert type(value) is kind or (kind is float and type(value) is int), name
            assert not isinstance(value, float) or math.isfinite(value), name
        assert run.k in COMPRESSORS[run.compressor].valid_k
        assert run.n_input % run.k == 0
        assert min(parse_size(run.size)) >= 1


class Config(Target):
    """config.json of a released checkpoint, run.json of a kept model, settings.json of a generated set."""

    def prepare(self) -> None:
        shutil.copytree(self.good, self.folder, dirs_exist_ok=True)

    def damage(self, rng: Random) -> None:
        which = rng.choice(["glm/config.json", "model/run.json", "motion/settings.json"])
        for name in ("glm/config.json", "model/run.json", "motion/settings.json"):
            shutil.copyfile(self.good / name, self.folder / name)
        self.replace(which, rng, mutate.damage_json)
        self.said, self.names = {"which": which}, (which, str(self.folder / "glm"))

    def read(self) -> Any:
        match self.said["which"]:
            case "glm/config.json":
                from tefusion.encoders.weights import load_glm4v

                return load_glm4v(self.folder / "glm", "te_fusion", k=2, image_size=20)
            case "model/run.json":
                from tefusion.ask import read_run

                return read_run(self.folder / "model/run.json")
            case _:
                from tefusion.data.source import load_split

                return load_split(self.folder / "motion", "test")

    def check(self, result: Any) -> None:
        match self.said["which"]:
            case "glm/config.json":
                check_encoder(result)
            case "model/run.json":
                check_runs([result])
            case _:
                check_split(result)


class Weights(Target):
    def prepare(self) -> None:
        shutil.copytree(self.good, self.folder / "glm", dirs_exist_ok=True)
        self.names = (str(self.folder / "glm"),)
        self.files = sorted(path.name for path in self.good.iterdir() if path.name != "config.json")

    def damage(self, rng: Random) -> None:
        for name in self.files:
            shutil.copyfile(self.good / name, self.folder / "glm" / name)
        name = rng.choice([self.files[0], *self.files])
        how = mutate.damage_json if name.endswith(".json") else mutate.damage_safetensors
        (self.folder / "glm" / name).write_bytes(how(rng, (self.good / name).read_bytes()))

    def read(self) -> Any:
        from tefusion.encoders.weights import load_glm4v, read_boundaries

        boi, eoi = read_boundaries(self.folder / "glm")
        assert boi.shape == eoi.shape == (1, 24)
        return load_glm4v(self.folder / "glm", "te_fusion", k=2, image_size=20)

    def check(self, result: Any) -> None:
        check_encoder(result)


def check_encoder(encoder: Any) -> None:
    import torch

    parameters = list(encoder.parameters())
    assert all(not p.is_meta and p.is_floating_point() for p in parameters)
    assert all(p.isfinite().all() for p in parameters)
    with torch.no_grad():
        out = encoder(torch.zeros(1, 2, 3, 20, 20, dtype=parameters[0].dtype))
    assert out.shape == (1, 1, 4, 24)


class Truth(Target):
    def prepare(self) -> None:
        shutil.copytree(self.good, self.folder / "motion", dirs_exist_ok=True)
        self.names = (str(self.folder / "motion"),)

    def damage(self, rng: Random) -> None:
        data = mutate.damage_safetensors(rng, (self.good / "test/truth.safetensors").read_bytes())
        (self.folder / "motion/test/truth.safetensors").write_bytes(data)

    def read(self) -> Any:
        from tefusion.data.source import load_split

        return load_split(self.folder / "motion", "test")

    def check(self, result: Any) -> None:
        check_split(result)


def check_split(split: Any) -> None:
    n, t = len(split.questions), split.length
    assert (n, t) == (24, 16)
    assert split.shuffled in (True, False)
    assert split.truth.masks.shape == (n, t, 32, 32)
    assert split.truth.positions.shape == (n, t, 4, 2)
    assert split.targets.shape[:2] == (n, t)
    assert split.targets.isfinite().all()


def complain(text: str) -> None:
    raise ValueError(text)


PLANTS: list[tuple[str, Callable[[], Any]]] = [
    ("ok", lambda: "right"),
    ("ok", lambda: Path("stray").touch() or "right"),
    ("clean", lambda: complain("file: cannot be read")),
    ("wrong", lambda: "left"),
    ("wrong", lambda: complain("file: two\nlines")),
    ("wrong", lambda: complain("names nothing")),
    ("wrong", lambda: {}["missing"]),
    ("crash", os.abort),
    ("hang", lambda: time.sleep(1000)),
    ("memory", lambda: bytearray(1 << 34)),
]


class Planted(Target):
    """Every outcome, by which the harness itself is tested."""

    def prepare(self) -> None:
        self.names, self.turn = ("file",), -2  # the first one is read before limits hold

    def damage(self, rng: Random) -> None:
        self.turn += 1
        self.said = {"plant": rng.randrange(len(PLANTS)) if self.turn >= 0 else 0}

    def read(self) -> Any:
        return PLANTS[self.said["plant"]][1]()

    def check(self, result: Any) -> None:
        assert result == "right"


TARGETS: dict[str, type[Target]] = {
    "video": Video,
    "annotations": Annotations,
    "settings": Settings,
    "config": Config,
    "weights": Weights,
    "truth": Truth,
    "planted": Planted,
}
KINDS = [kind for kind in TARGETS if kind != "planted"]


def write_good(folder: Path) -> None:
    """The undamaged input of every kind, each in its own folder."""
    from dataclasses import asdict

    from test_weights import released_state
    from test_weights import write as write_glm

    from tefusion.config import Run
    from tefusion.data.motion import MotionSettings, write_motion

    motion = write_motion(folder / "truth", MotionSettings(train=1, dev=1, test=24))
    shutil.copytree(motion / "test", folder / "annotations")
    write_videos(folder / "video")
    shutil.copyfile(sorted((motion / "test").rglob("*.mp4"))[0], folder / "video/generated.mp4")
    state = {name: tensor for name, tensor in released_state().items() if "layers.1." not in name}
    write_glm(folder / "weights", state, shards=2, config=config_of(depth=1))
    (folder / "settings").mkdir()
    shutil.copytree(folder / "weights", folder / "config/glm")
    shutil.copytree(motion, folder / "config/motion")
    (folder / "config/model").mkdir()
    (folder / "config/model/run.json").write_text(json.dumps(asdict(Run()), indent=2))


def config_of(depth: int) -> dict[str, Any]:
    from test_weights import CONFIG

    return CONFIG | {"vision_config": CONFIG["vision_config"] | {"num_hidden_layers": depth}}


def write_videos(folder: Path) -> None:
    """One with B-frames, one of an older codec."""
    import av

    folder.mkdir()
    rng = np.random.default_rng(0)
    forms = {"b-frames": ("libx264", {"bf": "2", "g": "8"}), "mpeg4": ("mpeg4", {"g": "6"})}
    for name, (codec, options) in forms.items():
        with av.open(str(folder / f"{name}.mp4"), "w") as container:
            stream = container.add_stream(codec, rate=12, options=options)
            stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
            for _ in range(24):
                image = rng.integers(0, 256, (32, 64, 3), np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
