import multiprocessing
import os
import shutil
import time
from fractions import Fraction

import av
import numpy as np
import pytest

from tefusion import frame_cache
from tefusion.frame_cache import FrameCache
from tefusion.video import VideoError, decode

REQUEST = {"frames": 4, "policy": "linspace", "size": 16, "backend": "pyav"}


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

    def counted(path, *request):
        paths.append(path)
        return decode(path, *request)

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
    same(cache.decode(movie, **REQUEST), decode(movie, **REQUEST))
    again = FrameCache(cache.folder, 1 << 20).decode(movie, **REQUEST)
    same(again, decode(movie, **REQUEST))
    assert decodes == [movie]
    again.frames[:] = 0  # whoever holds the frames may write to them
    same(cache.decode(movie, **REQUEST), decode(movie, **REQUEST))
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
    cache.decode(movie, **REQUEST)
    same(cache.decode(movie, **REQUEST | other), decode(movie, **REQUEST | other))
    assert len(entries(cache)) == 2


def test_content_is_the_key(cache, movie, tmp_path, decodes):
    cache.decode(movie, **REQUEST)
    copy = shutil.copy(movie, tmp_path / "copy.mp4")
    cache.decode(copy, **REQUEST)
    assert decodes == [movie]
    write(movie, seed=1)
    same(cache.decode(movie, **REQUEST), decode(movie, **REQUEST))
    assert decodes == [movie, movie]


def test_the_content_is_hashed_once(cache, movie, monkeypatch):
    opened = []

    def counted(path, mode):
        opened.append(os.fspath(path))
        return open(path, mode)  # noqa: PTH123

    monkeypatch.setattr(frame_cache, "open", counted, raising=False)
    for _ in range(3):
        cache.decode(movie, **REQUEST)
    assert opened.count(str(movie)) == 1


def test_another_version_of_the_decoder_is_another_entry(cache, movie, decodes, monkeypatch):
    cache.decode(movie, **REQUEST)
    monkeypatch.setattr(frame_cache, "versions", lambda backend: "av=0.1")
    cache.decode(movie, **REQUEST)
    assert len(decodes) == 2


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
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_rebuilt(cache, movie, decodes, damage):
    cache.decode(movie, **REQUEST)
    (entry,) = entries(cache)
    good = entry.read_bytes()
    entry.write_bytes(DAMAGE[damage](good))
    assert entry.read_bytes() != good
    same(cache.decode(movie, **REQUEST), decode(movie, **REQUEST))
    same(cache.decode(movie, **REQUEST), decode(movie, **REQUEST))
    assert len(decodes) == 2


def test_the_entry_of_another_request_is_not_believed(cache, movie, decodes):
    cache.decode(movie, **REQUEST)
    (first,) = entries(cache)
    cache.decode(movie, **REQUEST | {"frames": 5})
    (second,) = set(entries(cache)) - {first}
    shutil.copy(first, second)
    assert len(cache.decode(movie, **REQUEST | {"frames": 5}).frames) == 5
    assert len(decodes) == 3


def test_the_folder_stays_within_its_limit_and_the_longest_unread_goes(tmp_path, decodes):
    movies = [write(tmp_path / f"{seed}.mp4", seed) for seed in range(14)]
    cache = FrameCache(tmp_path / "cache", 1 << 20)
    cache.decode(movies[0], **REQUEST)
    (tmp_path / "cache" / "aa").mkdir(exist_ok=True)
    (tmp_path / "cache" / "aa" / "gone").symlink_to("nowhere")  # listed, then not there: another process deleted it
    size = entries(cache)[0].stat().st_size
    cache = FrameCache(tmp_path / "cache", 8 * size + 100)
    for movie in movies:
        cache.decode(movie, **REQUEST)
        cache.decode(movies[0], **REQUEST)  # read all the time: it must stay
        assert sum(entry.stat().st_size for entry in entries(cache)) <= cache.limit_bytes
    assert len(entries(cache)) >= 7
    assert decodes.count(movies[0]) == 1
    found = {cache_hit(cache, movie) for movie in (movies[0], movies[-1], movies[-2])}
    assert found == {True}
    assert not cache_hit(cache, movies[1])


def cache_hit(cache, movie):
    before = entries(cache)
    reader = FrameCache(cache.folder, 1 << 30)
    reader.decode(movie, **REQUEST)
    return entries(cache) == before


def test_reading_never_measures_the_folder(cache, movie, monkeypatch):
    cache.decode(movie, **REQUEST)
    monkeypatch.setattr(frame_cache, "_entries", lambda folder: pytest.fail("measured"))
    cache.decode(movie, **REQUEST)
    cache.decode(movie, **REQUEST | {"frames": 5})  # nor does every write


def test_what_is_larger_than_the_limit_is_not_kept(tmp_path, movie):
    cache = FrameCache(tmp_path / "cache", 100)
    same(cache.decode(movie, **REQUEST), decode(movie, **REQUEST))
    assert not cache.folder.exists()


def test_what_dead_processes_left_is_swept(cache, movie):
    cache.decode(movie, **REQUEST)
    left, working = (entries(cache)[0].with_name(f"{name}.tmp") for name in ("left", "working"))
    left.write_bytes(b"x")
    working.write_bytes(b"x")
    hours_ago = time.time() - 9999
    os.utime(left, (hours_ago, hours_ago))
    FrameCache(cache.folder, 1 << 20).decode(movie, **REQUEST | {"frames": 5})
    assert not left.exists()
    assert working.exists()


def test_a_file_replaced_while_it_is_decoded_is_not_kept(cache, movie, monkeypatch):
    def slow(path, *request):
        decoded = decode(path, *request)
        write(movie, seed=1)
        return decoded

    monkeypatch.setattr(frame_cache, "decode", slow)
    cache.decode(movie, **REQUEST)
    assert not entries(cache)


def test_errors_are_those_of_decode(cache, movie, tmp_path):
    (tmp_path / "empty.mp4").touch()
    for path, wrong in [
        (tmp_path / "missing.mp4", {}),
        (tmp_path / "empty.mp4", {}),
        (tmp_path, {}),
        (movie, {"frames": 0}),
        (movie, {"backend": "opencv"}),
        (movie, {"size": 0}),
    ]:
        with pytest.raises(VideoError) as expected:
            decode(path, **REQUEST | wrong)
        with pytest.raises(VideoError) as caught:
            cache.decode(path, **REQUEST | wrong)
        assert str(caught.value) == str(expected.value)
    assert not entries(cache)
    with pytest.raises(ValueError, match="at least 1 byte"):
        FrameCache(tmp_path, 0)


def hammer(folder, movies, limit, wrong):
    cache = FrameCache(folder, limit)
    expected = {movie: decode(movie, **REQUEST).frames for movie in movies}
    for _ in range(20):
        for movie in movies:
            if not (cache.decode(movie, **REQUEST).frames == expected[movie]).all():
                wrong.value += 1


def test_processes_share_a_folder_that_is_too_small(tmp_path):
    """They write the same entries and delete each other's at the same time."""
    movies = [write(tmp_path / f"{seed}.mp4", seed) for seed in range(4)]
    context = multiprocessing.get_context("fork")
    wrong = context.Value("i", 0)
    limit = 13_000  # about three entries
    workers = [context.Process(target=hammer, args=(tmp_path / "cache", movies, limit, wrong)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    assert wrong.value == 0
    assert not list((tmp_path / "cache").rglob("*.tmp"))
