"""Long videos: a five-minute one, made by copying an encoded minute, against PyAV read in order."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from tefusion.containers import probe
from tefusion.video import Request, decode

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from long_video import RATE, in_order, repeat_minute, write_minute

MINUTES = 5


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    folder = tmp_path_factory.mktemp("film")
    return repeat_minute(write_minute(folder / "minute.mp4", 96, 160), folder / "long.mp4", MINUTES)


def test_a_copied_minute_is_a_film_of_constant_rate(film):
    clip = probe(film)
    assert (clip.total, clip.fps, clip.not_decord) == (MINUTES * 60 * RATE, pytest.approx(RATE), None)
    assert clip.second(clip.total - 1) == pytest.approx(MINUTES * 60 - 1 / RATE)


@pytest.mark.parametrize(("frames", "backend"), [(32, "pyav"), (4, "decord")])
def test_frames_of_a_film_are_those_in_order(film, frames, backend):
    decoded = decode(film, Request(frames))
    if importlib.util.find_spec("decord"):
        assert decoded.backend == backend
    assert decoded.indices[-1] == MINUTES * 60 * RATE - 1
    expected = in_order(film, decoded.indices)
    assert len({frame.tobytes() for frame in expected}) > 1
    assert np.array_equal(decoded.frames, expected)
