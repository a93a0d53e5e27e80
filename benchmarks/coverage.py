"""How often the report's intervals hold the truth, and how often its primary family raises a false alarm.

    python benchmarks/coverage.py [sweeps=2000]

Simulated sweeps: five methods and their control answer the same questions, with paired seeds. A right answer is a coin
whose chance adds up from the method's true accuracy, its training's luck, the video's difficulty, and how well the
method takes to the video; so the true differences are known. Writes results/coverage.json and results/coverage.md.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tefusion.config import one_each, parse
from tefusion.estimate import Estimate
from tefusion.family import LEVEL, SEEDS
from tefusion.files import replace_file
from tefusion.holm import holm
from tefusion.statistics import Array, student_quantile
from tefusion.two_way import noise
from tefusion.wording import grid

ROOT = Path(__file__).parents[1]
METHODS, EFFECT = 5, 0.03
DRAWS = 400  # of the bootstrap that the intervals are compared with


@dataclass(frozen=True)
class Settings:
    sweeps: int = 2000


@dataclass(frozen=True)
class World:
    """Standard deviations of the chance of a right answer, between trainings, videos, and methods on a video.

    `plateau` is the share of trainings that never leave it; the others share what is gained, so that the spread over
    trainings is the same.
    """

    training: float
    video: float = 0.14
    taste: float = 0.05
    videos: int = 300
    plateau: float = 0.0


WORLDS = {
    "training noise dominates": World(0.07, video=0.10, taste=0.03),
    "training noise as usual": World(0.03),
    "both alike": World(0.015, taste=0.09),
    "questions dominate": World(0.003, taste=0.09),
    "no training noise": World(0.0),
    "fifty videos": World(0.03, videos=50),
    "one training in four stays on the plateau": World(0.10, video=0.10, taste=0.03, plateau=0.25),
}


def luck(rng: np.random.Generator, world: World, shape: tuple[int, ...]) -> Array:
    """Of mean 0 and the world's standard deviation, bounded so that chances stay chances."""
    if world.plateau:
        stays = rng.random(shape) < world.plateau
        spread = np.sqrt(world.plateau * (1 - world.plateau))
        return world.training * (world.plateau - stays) / spread
    return world.training * np.clip(rng.normal(size=shape), -3, 3)


def sweep(rng: np.random.Generator, world: World, effect: float) -> tuple[Array, Array]:
    """Differences to the control (methods, seeds, questions), and each question's video."""
    clusters = np.repeat(np.arange(world.videos), rng.integers(1, 4, world.videos))
    runs = METHODS + 1
    spread = np.sqrt(3)  # of a uniform variable between -1 and 1, inverted
    video = world.video * spread * rng.uniform(-1, 1, world.videos)
    taste = world.taste * spread * rng.uniform(-1, 1, (runs, 1, world.videos))
    chance = 0.5 + luck(rng, world, (runs, SEEDS, 1)) + (video + taste)[..., clusters]
    chance[1:] += effect
    right = (rng.random(chance.shape) < chance).astype(float)
    return right[1:] - right[0], clusters


def estimates(rng: np.random.Generator, world: World, effect: float) -> Iterator[tuple[Estimate, Array, Array]]:
    differences, clusters = sweep(rng, world, effect)
    for by_seed in differences:
        yield Estimate(float(by_seed.mean()), noise(by_seed, clusters)), by_seed, clusters


def bootstrap(rng: np.random.Generator, by_seed: Array, clusters: Array) -> tuple[float, float]:
    """The plain two-way bootstrap: seeds and videos both drawn with replacement."""
    sums = np.stack([np.bincount(clusters, row) for row in by_seed])
    seeds, videos = sums.shape
    seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS)
    video = rng.multinomial(videos, np.full(videos, 1 / videos), DRAWS)
    means = np.einsum("ds,sv,dv->d", seed, sums, video, optimize=True) / (seeds * video @ np.bincount(clusters))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def seeds_alone(by_seed: Array) -> tuple[float, float]:
    """Student's t over the seeds' means, as if the videos were all there are."""
    means = by_seed.mean(axis=1)
    half = float(student_quantile(0.975, len(means) - 1)) * means.std(ddof=1) / np.sqrt(len(means))
    return float(means.mean() - half), float(means.mean() + half)


def simulate(name: str, world: World, sweeps: int) -> dict[str, object]:
    rng = np.random.default_rng([list(WORLDS).index(name), 2501])
    held, alarms, width = np.zeros(3), 0, 0.0
    for _ in range(sweeps):
        for estimate, by_seed, clusters in estimates(rng, world, EFFECT):
            # The interval holds the truth just where noise may well be as large as the error is.
            held[0] += 2 * estimate.noise.tail(abs(estimate.value - EFFECT)) >= LEVEL
            width += estimate.stderr
            for place, (low, high) in enumerate((bootstrap(rng, by_seed, clusters), seeds_alone(by_seed)), start=1):
                held[place] += low <= EFFECT <= high
        null = [estimate.p for estimate, _, _ in estimates(rng, world, 0.0)]
        alarms += min(holm(null)) <= LEVEL
    intervals = sweeps * METHODS
    return {
        "world": name,
        **asdict(world),
        "sweeps": sweeps,
        "intervals": intervals,
        "covered": held[0] / intervals,
        "covered_bootstrap": held[1] / intervals,
        "covered_seeds_alone": held[2] / intervals,
        "false_alarms": alarms / sweeps,
        "stderr": width / intervals,
    }


def markdown(rows: list[dict]) -> str:
    heads = ["simulated sweeps", "interval holds the truth", "two-way bootstrap", "seeds alone", "false alarms"]
    heads += ["standard error, points"]
    names = ["covered", "covered_bootstrap", "covered_seeds_alone", "false_alarms"]
    body = [[r["world"], *(f"{100 * r[n]:.1f} %" for n in names), f"{100 * r['stderr']:.2f}"] for r in rows]
    first = rows[0]
    text = (
        f"{first['sweeps']:,} simulated sweeps of each kind with a true difference of {100 * EFFECT:.0f} points, and as"
    )
    text += (
        f" many with none; {METHODS} methods against their control, {SEEDS} paired seeds, a third of the videos with"
    )
    text += " one, two and three questions each. Nominal: 95 % and at most 5 %. False alarms: sweeps without any"
    text += f" difference whose primary family, after Holm, claims one at {LEVEL}."
    misses = [r for r in rows if not 0.93 <= r["covered"] <= 0.97 or r["false_alarms"] > 0.06]
    said = [f"- Outside 93 to 97 %, or above 6 % false alarms: {r['world']}." for r in misses]
    return "\n".join(
        ["# Coverage of the intervals", "", text, "", *grid(heads, body), *([""] if said else []), *said, ""]
    )


def main(words: list[str]) -> None:
    sweeps = one_each(parse(words, Settings), ["sweeps"]).get("sweeps", Settings.sweeps)
    rows = [simulate(name, world, sweeps) for name, world in WORLDS.items()]
    replace_file(ROOT / "results" / "coverage.json", (json.dumps(rows, indent=2) + "\n").encode())
    replace_file(ROOT / "results" / "coverage.md", markdown(rows).encode())
    print(markdown(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
