import errno
import itertools
import json
import multiprocessing
import os
import resource
import shutil
import signal
import time
import warnings
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from children import drop_privileges, forked
from safetensors.numpy import load_file

from tefusion import frame_cache
from tefusion.frame_cache import FrameCache
from tefusion.video import Request, VideoError, decode

REQUEST = Request(4, "linspace", 16, backend="pyav")


def write(path, seed=0, frames=6):
    generator = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height = stream.width = 32
        stream.pix_fmt = "yuv420p"
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(generator.integers(0, 256, (32, 32, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture
def movie(tmp_path):
    return write(tmp_path / "movie.mp4")


@pytest.fixture
def cache(tmp_path):
    return FrameCache(tmp_path / "cache", 1 << 20)


@pytest.fixture
def decodes(monkeypatch):
    """The paths that were really decoded."""
    paths = []

    def counted(path, request):
        paths.append(path)
        return decode(path, request)

    monkeypatch.setattr(frame_cache, "decode", counted)
    return paths


def entries(cache):
    return sorted(cache.folder.rglob("*.safetensors"))


def same(one, other):
    assert one.frames.dtype == other.frames.dtype
    np.testing.assert_array_equal(one.frames, other.frames)
    names = ("indices", "seconds", "total", "repeated", "backend")
    assert [getattr(one, name) for name in names] == [getattr(other, name) for name in names]


def test_a_hit_is_what_was_decoded(cache, movie, decodes):
    same(cache.decode(movie, REQUEST), decode(movie, REQUEST))
    again = FrameCache(cache.folder, 1 << 20).decode(movie, REQUEST)
    same(again, decode(movie, REQUEST))
    assert decodes == [movie]
    again.frames[:] = 0  # whoever holds the frames may write to them
    same(cache.decode(movie, REQUEST), decode(movie, REQUEST))
    assert not list(cache.folder.rglob("*.tmp"))


@pytest.mark.parametrize(
    "other",
    [
        {"frames": 5},
        {"policy": "centres"},
        {"size": (16, 8)},
        {"size": None},
        {"backend": "auto"},
        {"multiple_of": 3},
        {"start": 0.1},
        {"end": 0.1},
    ],
)
def test_another_request_is_another_entry(cache, movie, other):
    cache.decode(movie, REQUEST)
    same(cache.decode(movie, replace(REQUEST, **other)), decode(movie, replace(REQUEST, **other)))
    assert len(entries(cache)) == 2


def test_content_is_the_key(cache, movie, tmp_path, decodes):
    cache.decode(movie, REQUEST)
    copy = shutil.copy(movie, tmp_path / "copy.mp4")
    cache.decode(copy, REQUEST)
    assert decodes == [movie]
    write(movie, seed=1)
    same(cache.decode(movie, REQUEST), decode(movie, REQUEST))
    assert decodes == [movie, movie]


def test_the_content_is_hashed_once(cache, movie, monkeypatch):
    opened = []

    def counted(path, mode):
        opened.append(os.fspath(path))
        return open(path, mode)  # noqa: PTH123

    monkeypatch.setattr(frame_cache, "open", counted, raising=False)
    cache.decode(movie, REQUEST)
    assert opened.count(str(movie)) == 2  # a file as young as this may change within the same tick of the clock
    monkeypatch.setattr(frame_cache, "TICK_NS", 0)
    for _ in range(3):
        cache.decode(movie, REQUEST)
    assert opened.count(str(movie)) == 3


def test_another_version_of_the_decoder_is_another_entry(cache, movie, decodes, monkeypatch):
    cache.decode(movie, REQUEST)
    monkeypatch.setattr(frame_cache, "versions", lambda backend: "av=0.1")
    cache.decode(movie, REQUEST)
    assert len(decodes) == 2


def test_a_file_changed_behind_its_size_and_time(cache, movie, tmp_path):
    """Within one tick of the clock not even the time of the last change to its node tells."""
    films = [write(tmp_path / f"{seed}.mp4", seed).read_bytes() for seed in range(4)]
    films = [film + box(b"free", bytes(max(map(len, films)) - len(film))) for film in films]
    for film in films:
        movie.write_bytes(film)
        os.utime(movie, ns=(0, 0))
        status = movie.stat()
        assert (status.st_size, status.st_mtime_ns) == (len(films[0]), 0)
        same(cache.decode(movie, REQUEST), decode(movie, REQUEST))
    assert len(entries(cache)) == len(films)


def box(name, content):
    return (8 + len(content)).to_bytes(4, "big") + name + content


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGE = {
    "empty": lambda data: b"",
    "cut": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "pixel": lambda data: flipped(data, len(data) - 100),
    "zeros": lambda data: bytes(len(data)),
    "text": lambda data: b"not an entry at all",
    "seconds": lambda data: data.replace(b"0.1", b"0.2", 1),
    "length": lambda data: b"\xff" * 8 + data[8:],
    "nested": lambda data: (1 << 20).to_bytes(8, "little") + b"[" * (1 << 20),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_rebuilt(cache, movie, decodes, damage):
    cache.decode(movie, REQUEST)
    (entry,) = entries(cache)
    good = entry.read_bytes()
    entry.write_bytes(DAMAGE[damage](good))
    assert entry.read_bytes() != good
    same(cache.decode(movie, REQUEST), decode(movie, REQUEST))
    same(cache.decode(movie, REQUEST), decode(movie, REQUEST))
    assert len(decodes) == 2


def test_every_flipped_bit_and_every_cut_is_found(cache, movie):
    cache.decode(movie, Request(2, size=4))
    (entry,) = entries(cache)
    good = entry.read_bytes()
    key = json.loads(good[8 : 8 + int.from_bytes(good[:8], "little")])["__metadata__"]["key"]
    assert frame_cache._read(entry, key) is not None
    for at, bit in itertools.product(range(len(good)), range(8)):
        entry.write_bytes(good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :])
        assert frame_cache._read(entry, key) is None, (at, bit)
    for length in range(len(good)):
        entry.write_bytes(good[:length])
        assert frame_cache._read(entry, key) is None, length


def test_an_entry_is_a_safetensors_file(cache, movie):
    cache.decode(movie, REQUEST)
    (entry,) = entries(cache)
    np.testing.assert_array_equal(load_file(entry)["frames"], decode(movie, REQUEST).frames)


def test_the_entry_of_another_request_is_not_believed(cache, movie, decodes):
    cache.decode(movie, REQUEST)
    (first,) = entries(cache)
    cache.decode(movie, replace(REQUEST, frames=5))
    (second,) = set(entries(cache)) - {first}
    shutil.copy(first, second)
    assert len(cache.decode(movie, replace(REQUEST, frames=5)).frames) == 5
    assert len(decodes) == 3


def test_the_folder_stays_within_its_limit_and_the_longest_unread_goes(tmp_path, decodes):
    movies = [write(tmp_path / f"{seed}.mp4", seed) for seed in range(14)]
    cache = FrameCache(tmp_path / "cache", 1 << 20)
    cache.decode(movies[0], REQUEST)
    (tmp_path / "cache" / "aa").mkdir(exist_ok=True)
    (tmp_path / "cache" / "aa" / "gone").symlink_to("nowhere")  # listed, then not there: another process deleted it
    size = entries(cache)[0].stat().st_size
    cache = FrameCache(tmp_path / "cache", 8 * size + 100)
    for movie in movies:
        cache.decode(movie, REQUEST)
        cache.decode(movies[0], REQUEST)  # read all the time: it must stay
        assert sum(entry.stat().st_size for entry in entries(cache)) <= cache.limit_bytes
    assert len(entries(cache)) >= 7
    assert decodes.count(movies[0]) == 1
    found = {cache_hit(cache, movie) for movie in (movies[0], movies[-1], movies[-2])}
    assert found == {True}
    assert not cache_hit(cache, movies[1])


def cache_hit(cache, movie):
    before = entries(cache)
    reader = FrameCache(cache.folder, 1 << 30)
    reader.decode(movie, REQUEST)
    return entries(cache) == before


def test_reading_never_measures_the_folder(cache, movie, monkeypatch):
    cache.decode(movie, REQUEST)
    monkeypatch.setattr(frame_cache, "_entries", lambda folder: pytest.fail("measured"))
    cache.decode(movie, REQUEST)
    cache.decode(movie, replace(REQUEST, frames=5))  # nor does every write


def test_what_is_larger_than_the_limit_is_not_kept(tmp_path, movie):
    cache = FrameCache(tmp_path / "cache", 100)
    same(cache.decode(movie, REQUEST), decode(movie, REQUEST))
    assert not cache.folder.exists()


def test_what_dead_processes_left_is_swept(cache, movie):
    cache.decode(movie, REQUEST)
    left, working = (entries(cache)[0].with_name(f"{name}.tmp") for name in ("left", "working"))
    left.write_bytes(b"x")
    working.write_bytes(b"x")
    hours_ago = time.time() - 9999
    os.utime(left, (hours_ago, hours_ago))
    FrameCache(cache.folder, 1 << 20).decode(movie, replace(REQUEST, frames=5))
    assert not left.exists()
    assert working.exists()


def test_a_file_replaced_while_it_is_decoded_is_not_kept(cache, movie, monkeypatch):
    def slow(path, request):
        decoded = decode(path, request)
        write(movie, seed=1)
        return decoded

    monkeypatch.setattr(frame_cache, "decode", slow)
    cache.decode(movie, REQUEST)
    assert not entries(cache)


def test_errors_are_those_of_decode(cache, movie, tmp_path):
    (tmp_path / "empty.mp4").touch()
    for path in (tmp_path / "missing.mp4", tmp_path / "empty.mp4", tmp_path):
        with pytest.raises(VideoError) as expected:
            decode(path, REQUEST)
        with pytest.raises(VideoError) as caught:
            cache.decode(path, REQUEST)
        assert str(caught.value) == str(expected.value)
    assert not entries(cache)
    with pytest.raises(ValueError, match="at least 1 byte"):
        FrameCache(tmp_path, 0)


def hammer(folder, movies, limit, own):
    warnings.simplefilter("error")
    cache = FrameCache(folder, limit)
    requests = [REQUEST, replace(REQUEST, frames=own)]
    expected = {(movie, request): decode(movie, request).frames for movie in movies for request in requests}
    for _ in range(20):
        for (movie, request), frames in expected.items():
            np.testing.assert_array_equal(cache.decode(movie, request).frames, frames)


@pytest.mark.parametrize("limit", [13_000, 1 << 20], ids=["too_small", "large"])
def test_processes_share_a_folder(tmp_path, limit):
    """They write the same entries and others, and delete each other's at the same time where it is too small."""
    movies = [write(tmp_path / f"{seed}.mp4", seed) for seed in range(4)]
    folder, context = tmp_path / "cache", multiprocessing.get_context("fork")
    workers = [context.Process(target=hammer, args=(folder, movies, limit, own), daemon=True) for own in range(1, 5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(200)
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    assert not list(folder.rglob("*.tmp"))
    assert not damaged(folder)


def damaged(folder):
    """Entries whose own key does not open them."""
    found = []
    for entry in folder.rglob("*.safetensors"):
        data = entry.read_bytes()
        key = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["key"]
        if frame_cache._read(entry, key) is None:
            found.append(entry)
    return found


def write_until_killed(folder, movie, start, moment):
    """moment: which of a writer's steps it dies in, or None to die from outside."""
    whole = Path.write_bytes
    if moment == "half_written":
        Path.write_bytes = lambda path, data: (whole(path, data[: len(data) // 2]), os.kill(os.getpid(), 9))
    elif moment == "not_renamed":
        Path.replace = lambda path, entry: os.kill(os.getpid(), 9)
    cache = FrameCache(folder, 1 << 22)
    start.set()
    for frames in itertools.cycle(range(1, 65)):
        cache.decode(movie, replace(REQUEST, frames=frames, size=64))
        for entry in entries(cache):  # so that there is always more to write
            entry.unlink()


@pytest.mark.parametrize("moment", ["half_written", "not_renamed", None])
def test_a_killed_writer_leaves_no_damage(tmp_path, movie, moment):
    folder, context = tmp_path / "cache", multiprocessing.get_context("fork")
    for wait in [0.0] if moment else [0.001 * step for step in range(1, 16)]:
        start = context.Event()
        worker = context.Process(target=write_until_killed, args=(folder, movie, start, moment), daemon=True)
        worker.start()
        assert start.wait(60)
        if moment is None:
            time.sleep(wait)
            worker.kill()
        worker.join(60)
        assert worker.exitcode == -9
        assert not damaged(folder)
    left = list(folder.rglob("*.tmp"))
    assert left or moment is None
    for file in left:
        os.utime(file, (0, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(FrameCache(folder, 1 << 22).decode(movie, REQUEST), decode(movie, REQUEST))
    assert not list(folder.rglob("*.tmp"))


def test_an_unfinished_file_of_another_process_is_never_deleted(tmp_path, movie):
    cache = FrameCache(tmp_path / "cache", 5000)
    cache.decode(movie, REQUEST)
    working = entries(cache)[0].with_name("working.tmp")
    working.write_bytes(bytes(4999))
    os.utime(working, (time.time() - 60,) * 2)
    for frames in range(1, 4):
        cache.decode(movie, replace(REQUEST, frames=frames))
    assert working.exists()


def full_disk(cache):
    """No file may grow beyond 1000 bytes, which fails in the middle of a write as a full disk does."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


def read_only(cache):
    for folder in (*cache.folder.iterdir(), cache.folder):
        folder.chmod(0o500)
    drop_privileges()


def a_file_in_its_place(cache):
    shutil.rmtree(cache.folder)
    cache.folder.touch()


@pytest.mark.parametrize("trouble", [full_disk, read_only, a_file_in_its_place])
def test_a_cache_that_cannot_be_written_to_warns_once(cache, movie, trouble):
    cache.decode(movie, REQUEST)
    kept = entries(cache)

    def work():
        trouble(cache)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for frames in (4, 5, 6, 5):
                request = replace(REQUEST, frames=frames)
                same(cache.decode(movie, request), decode(movie, request))
        return [str(warning.message) for warning in caught]

    (said,) = forked(work)
    assert said.startswith(f"{cache.folder}: frames are decoded anew each time, ")
    assert "\n" not in said
    cache.folder.chmod(0o700)
    assert entries(cache) == (kept if trouble is not a_file_in_its_place else [])
    assert not list(cache.folder.rglob("*.tmp"))


def test_a_disk_that_is_full_for_a_while(cache, movie, monkeypatch, decodes):
    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.warns(UserWarning, match="No space left on device"):
            cache.decode(movie, REQUEST)
    cache.decode(movie, REQUEST)
    cache.decode(movie, REQUEST)
    assert len(decodes) == 2
    assert len(entries(cache)) == 1
