import ctypes
import gc
import importlib.util
import itertools
import resource
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from forms import FORMS, FRAMES, MATRICES, VFR, Movies, index_of, turn, write
from hypothesis import given
from hypothesis import strategies as st

from tefusion import video
from tefusion.containers import probe
from tefusion.sampling import MOST_FRAMES
from tefusion.video import Request, VideoError, decode, parse_size, read_video, sample

needs_decord = pytest.mark.skipif(importlib.util.find_spec("decord") is None, reason="decord has no wheel here")


@pytest.fixture(scope="session")
def movies(tmp_path_factory):
    return Movies(tmp_path_factory.mktemp("movies"))


@pytest.mark.parametrize("name", ["variable_rate.mp4", "variable_rate.mkv"])
def test_seconds_of_a_variable_rate(movies, name):
    decoded = decode(movies(name), Request(FRAMES))
    np.testing.assert_allclose(decoded.seconds, np.array(VFR) / 30, atol=1e-3)


@pytest.mark.parametrize("name", ["b_frames.mp4", "b_frames.mkv", "transport.ts", "h264.avi", "mpeg2.mpg"])
def test_seconds_count_from_the_first_frame(movies, name):
    rate = FORMS[name].get("rate", 30)
    decoded = decode(movies(name), Request(FRAMES))
    np.testing.assert_allclose(decoded.seconds, np.arange(FRAMES) / rate, atol=1e-3)


def test_few_frames_repeat_and_say_so(movies):
    decoded = decode(movies("one_frame.mp4"), Request(4, "linspace"))
    assert (decoded.indices, decoded.repeated, decoded.total) == ((0, 0, 0, 0), 3, 1)
    assert decode(movies("plain.mp4"), Request(FRAMES, "centres")).repeated == 0
    assert decode(movies("plain.mp4"), Request(80, "centres")).repeated == 80 - FRAMES


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0.5, 1.0, range(15, 30)), (2.2, None, range(66, 72)), (None, 0.1, range(3)), (0.51, 0.52, [15])],
)
def test_start_and_end_cut_first(movies, start, end, expected):
    decoded = decode(movies("b_frames.mp4"), Request(len(expected), "linspace", start=start, end=end))
    assert list(decoded.indices) == list(expected)
    assert [index_of(frame) for frame in decoded.frames] == list(expected)
    assert decoded.repeated == 0


def test_two_a_second(movies):
    decoded = decode(movies("b_frames.mp4"), Request(16, "fps:10", multiple_of=4))
    assert len(decoded.indices) == 16
    assert len(decode(movies("b_frames.mkv"), Request(99, "fps:10")).indices) == 24
    assert len(decode(movies("b_frames.mp4"), Request(16, "fps:2", multiple_of=2)).indices) == 4


@pytest.mark.parametrize("matrix", MATRICES)
def test_frames_come_upright(tmp_path, matrix):
    path = write(tmp_path / "phone.mp4", frames=3, size=(32, 48))
    stored, shown = read_video(path, 3), MATRICES[matrix][1]
    np.testing.assert_array_equal(read_video(turn(path, matrix), 3), np.stack([shown(frame) for frame in stored]))


@needs_decord
def test_decord_reads_nothing_rotated(movies, monkeypatch):
    monkeypatch.setattr(video, "SEEK_PIXELS", 0)
    path = turn(write(movies.folder / "phone.mp4", gop=1, size=(32, 48)), "clockwise")
    assert decode(path, Request(4)).backend == "pyav"
    with pytest.raises(VideoError, match="rotated"):
        decode(path, Request(4, backend="decord"))


def test_size_resizes_without_cropping(movies):
    path = movies("odd.mp4")
    raw = read_video(path, 3)
    assert read_video(path, 3, size=16).shape == (3, 16, 16, 3)
    tensor = torch.from_numpy(raw).permute(0, 3, 1, 2).float()
    expected = torch.nn.functional.interpolate(tensor, (20, 24), mode="bicubic", antialias=True).round().clamp(0, 255)
    np.testing.assert_array_equal(read_video(path, 3, size=(20, 24)), expected.permute(0, 2, 3, 1).byte().numpy())
    np.testing.assert_array_equal(read_video(path, 3, size=(33, 35)), raw)


@needs_decord
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_decord_where_sparse_reads_pay_gives_the_same_bytes(tmp_path, suffix, monkeypatch):
    path = write(tmp_path / f"long.{suffix}", frames=120, gop=4, b=2, size=(48, 64))
    assert decode(path, Request(8, "centres")).backend == "pyav"  # too short for a seek to pay
    monkeypatch.setattr(video, "SEEK_PIXELS", 0)
    sparse, dense = decode(path, Request(8, "centres")), decode(path, Request(20, "centres"))
    assert (sparse.backend, dense.backend) == ("decord", "pyav")
    np.testing.assert_array_equal(sparse.frames, decode(path, Request(8, "centres", backend="pyav")).frames)
    assert [index_of(frame) for frame in sparse.frames] == list(sparse.indices)


def test_decord_missing(movies, monkeypatch):
    monkeypatch.setattr(video, "_version", lambda name: "absent")
    with pytest.raises(VideoError, match="not installed"):
        decode(movies("plain.mp4"), Request(4, "linspace", backend="decord"))


def test_every_frame_memory_is_bounded_by_what_is_sampled(tmp_path):
    """A kept frame must not be a view that holds the others."""
    decoded = decode(write(tmp_path / "a.mp4"), Request(2, "linspace", backend="pyav"))
    assert decoded.frames.base is None
    assert decoded.frames.nbytes == 2 * 32 * 32 * 3


@pytest.mark.heavy
def test_a_read_that_stops_early_leaves_nothing_behind(movies):
    """Measured without what the allocator keeps for itself: 1 kB a read where the demuxer was not closed first."""
    libc, path = ctypes.CDLL(None), movies("plain.mp4")

    def left():
        gc.collect()
        libc.malloc_trim(0)
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    def read(times):
        for _ in range(times):
            decode(path, Request(4, end=1.0, backend="pyav"))

    read(200)
    before = left()
    read(1000)
    assert left() - before < 400_000


def test_a_decoder_that_stops_early_is_an_error(movies, monkeypatch):
    shown = video._shown
    monkeypatch.setattr(video, "_shown", lambda clip: itertools.islice(shown(clip), 40))
    with pytest.raises(VideoError, match="only 40 of 72"):
        read_video(movies("plain.mp4"), 4)


@pytest.mark.parametrize("name", ["plain.mp4", "raw.h264"])
@pytest.mark.parametrize("frames", [2, 43])
def test_a_wrong_promise_is_corrected_by_counting(movies, monkeypatch, name, frames):
    """With two frames the positions would exist under the wrong count as well, and show something else."""
    shown = video._shown
    dropped = 5 if name == "plain.mp4" else 1
    monkeypatch.setattr(video, "_shown", lambda clip: itertools.islice(shown(clip), dropped, None))
    decoded = decode(movies(name), Request(frames, "centres"))
    assert decoded.total == FRAMES - dropped
    assert [index_of(frame) for frame in decoded.frames] == [dropped + index for index in decoded.indices]


@pytest.mark.parametrize(
    "wrong",
    [
        {"frames": 0},
        {"frames": -1},
        {"frames": True},
        {"frames": 2.0},
        {"frames": MOST_FRAMES + 1},
        {"policy": "uniform"},
        {"policy": "fps:0"},
        {"policy": "fps:"},
        {"size": 0},
        {"size": (3, 0)},
        {"backend": "opencv"},
        {"multiple_of": 0},
        {"start": -1.0},
        {"start": 9.0},
        {"start": 1.0, "end": 1.0},
        {"end": float("nan")},
    ],
)
def test_wrong_requests(movies, wrong):
    with pytest.raises(VideoError) as caught:
        decode(movies("plain.mp4"), Request(**{"frames": 4} | wrong))
    assert "\n" not in str(caught.value)


def test_probe_counts_without_decoding(movies, monkeypatch):
    monkeypatch.setattr(video, "_shown", lambda clip: pytest.fail("decoded"))
    assert probe(movies("b_frames.mp4")).total == FRAMES


POLICIES = st.sampled_from(["linspace", "centres", "fps:2", "fps:0.5", "fps:29.97"])


@given(POLICIES, st.integers(1, 500), st.integers(1, 64), st.floats(1, 120), st.integers(1, 16))
def test_sample_properties(policy, total, frames, fps, multiple_of):
    indices = sample(policy, total, frames, fps, multiple_of)
    assert indices == sorted(indices)
    assert all(0 <= index < total for index in indices)
    assert len(indices) % multiple_of == 0
    assert multiple_of <= len(indices) <= max(frames, multiple_of)
    assert len(set(indices)) == min(total, len(indices))  # no frame repeats while another is left out
    steps = {after - before for before, after in itertools.pairwise(indices)}
    assert not steps or max(steps) - min(steps) <= 1


@given(st.integers(2, 500), st.integers(2, 64))
def test_linspace_has_both_ends_and_is_nearest(total, frames):
    indices = sample("linspace", total, frames, 30.0)
    assert (indices[0], indices[-1]) == (0, total - 1)
    assert np.abs(np.array(indices) - np.linspace(0, total - 1, frames)).max() <= 0.5 + 1e-9


@given(st.integers(1, 500), st.integers(1, 64))
def test_centres_are_the_centres(total, frames):
    expected = [int(Fraction(2 * i + 1, 2) * total / frames) for i in range(frames)]
    assert sample("centres", total, frames, 30.0) == expected


@given(st.integers(1, 100), st.sampled_from([10, 24, 30, 60]), st.integers(1, 4))
def test_fps_counts_seconds(seconds, fps, multiple_of):
    indices = sample("fps:2", seconds * fps, 1000, float(fps), multiple_of)
    assert len(indices) == max(2 * seconds // multiple_of * multiple_of, multiple_of)


def test_fps_keeps_its_distance_and_its_limit():
    assert sample("fps:2", 60, 16, 30.0) == [7, 22, 37, 52]
    assert sample("fps:2", 3000, 16, 30.0) == sample("centres", 3000, 16, 30.0)
    assert sample("fps:2", 300, 99, 30.001) == sample("centres", 300, 20, 30.0)  # timestamps rounded to milliseconds


@pytest.mark.parametrize(("text", "size"), [("32", (32, 32)), ("32x16", (32, 16)), ("1", (1, 1))])
def test_parse_size(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-3", "32x", "x32", "32X16", "3.5", "32x0", "32x16x8", " 32", "٣٢", "32\n"])
def test_parse_size_refuses(text):
    with pytest.raises(VideoError, match="size must be"):
        parse_size(text)
