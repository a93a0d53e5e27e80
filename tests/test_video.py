"""Every frame carries its own index as eight readable blocks: a wrong frame cannot pass for a right one."""

import importlib.util
import itertools
import re
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from einops import reduce, repeat
from hypothesis import given
from hypothesis import strategies as st

from tefusion import video
from tefusion.containers import probe
from tefusion.video import VideoError, decode, parse_size, read_video, sample

needs_decord = pytest.mark.skipif(importlib.util.find_spec("decord") is None, reason="decord has no wheel here")
X265 = "log-level=none:keyint=12:min-keyint=12:scenecut=0"


def picture(index, height=32, width=32):
    """Bit b of the index is block b, bright or dark, of a grid of 2 x 4."""
    bits = np.array([40 + 180 * (index >> bit & 1) for bit in range(8)], np.uint8).reshape(2, 4)
    whole = repeat(bits, "y x -> (y h) (x w) c", h=-(-height // 2), w=-(-width // 4), c=3)
    return np.ascontiguousarray(whole[:height, :width])


def index_of(frame):
    height, width = (frame.shape[0] + 1) // 2, (frame.shape[1] + 3) // 4
    padded = np.pad(frame, ((0, 2 * height - frame.shape[0]), (0, 4 * width - frame.shape[1]), (0, 0)), mode="edge")
    bright = reduce(padded.astype(float), "(y h) (x w) c -> (y x)", "mean", y=2, x=4) > 130
    return sum(1 << bit for bit in range(8) if bright[bit])


def write(path, codec="libx264", *, frames=48, rate=30, size=(32, 32), pix="yuv420p", pts=None, gop=12, b=0, **more):
    """more: the encoder's options; container: the muxer's."""
    with av.open(str(path), "w", options=more.pop("container", {})) as container:
        stream = container.add_stream(
            codec, rate=rate, options={key.replace("_", "-"): text for key, text in more.items()}
        )
        stream.height, stream.width, stream.pix_fmt = *size, pix
        stream.gop_size, stream.max_b_frames = gop, b
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(index, *size), format="rgb24")
            frame.pts, frame.time_base = pts[index] if pts else index, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


VFR = list(itertools.accumulate([0] + [1, 3, 2, 9, 1] * 9 + [4, 7]))
FILES = {
    "plain.mp4": {},
    "b_frames.mp4": {"b": 3},
    "b_frames.mkv": {"b": 3},
    "open_gop.mp4": {"x264_params": "open-gop=1:bframes=3:keyint=12:min-keyint=12:scenecut=0"},
    "intra_refresh.mp4": {"x264_params": "intra-refresh=1:keyint=12:bframes=0"},
    "fragmented.mp4": {"b": 2, "container": {"movflags": "frag_keyframe+empty_moov"}},
    "variable_rate.mp4": {"b": 2, "pts": VFR},
    "variable_rate.mkv": {"b": 2, "pts": VFR},
    "transport.ts": {"b": 3},
    "mpeg4.avi": {"codec": "mpeg4", "b": 2, "size": (64, 64)},
    "h264.avi": {"b": 3},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "vp8.webm": {"codec": "libvpx", "auto_alt_ref": "1", "lag_in_frames": "16"},
    "animation.gif": {"codec": "gif", "pix": "rgb8", "rate": 25},
    "h265_open_gop.mp4": {"codec": "libx265", "size": (64, 64), "x265_params": X265 + ":open-gop=1:bframes=3"},
    "av1.mp4": {"codec": "libsvtav1", "size": (64, 64)},
    "mpeg2.mpg": {"codec": "mpeg2video", "b": 2, "rate": 25},
    "flash.flv": {"b": 2},
    "raw.h264": {"b": 2},
    "odd.mp4": {"size": (33, 35), "pix": "yuv444p"},
    "odd_subsampled.webm": {"codec": "libvpx-vp9", "size": (37, 45)},
    "ten_bit.mp4": {"pix": "yuv420p10le"},
    "lossless.mkv": {"codec": "ffv1"},
    "one_frame.mp4": {"frames": 1},
}


@pytest.fixture(scope="session")
def movies(tmp_path_factory):
    """name -> path, written when first asked for."""
    folder, written = tmp_path_factory.mktemp("movies"), {}

    def movie(name):
        if name not in written:
            settings = dict(FILES[name])
            try:
                av.codec.Codec(settings.get("codec", "libx264"), "w")
            except av.codec.codec.UnknownCodecError:
                pytest.skip(f"this PyAV cannot write {name}")
            written[name] = write(folder / name, **settings)
        return written[name]

    return movie


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("policy", ["linspace", "centres"])
def test_auto_returns_the_frames_it_names(movies, name, policy):
    decoded = decode(movies(name), 7, policy, None, "auto")
    total = FILES[name].get("frames", 48)
    assert decoded.total == total
    assert list(decoded.indices) == sample(policy, total, 7, 30.0)
    assert [index_of(frame) for frame in decoded.frames] == list(decoded.indices)
    assert decoded.frames.shape == (7, *FILES[name].get("size", (32, 32)), 3)
    assert decoded.frames.dtype == np.uint8


@pytest.mark.parametrize("name", FILES)
def test_every_frame_is_right(movies, name):
    total = FILES[name].get("frames", 48)
    assert [index_of(frame) for frame in read_video(movies(name), total)] == list(range(total))


@pytest.mark.parametrize("name", ["variable_rate.mp4", "variable_rate.mkv"])
def test_seconds_of_a_variable_rate(movies, name):
    decoded = decode(movies(name), 48, "linspace", None, "auto")
    np.testing.assert_allclose(decoded.seconds, np.array(VFR) / 30, atol=1e-3)


@pytest.mark.parametrize("name", ["b_frames.mp4", "b_frames.mkv", "transport.ts", "h264.avi", "mpeg2.mpg"])
def test_seconds_count_from_the_first_frame(movies, name):
    rate = FILES[name].get("rate", 30)
    decoded = decode(movies(name), 48, "linspace", None, "auto")
    np.testing.assert_allclose(decoded.seconds, np.arange(48) / rate, atol=1e-3)


def test_packets_in_mp4_that_an_edit_list_hides_are_not_frames(tmp_path):
    """A cut by stream copy keeps the frames before the cut for reference and hides them."""
    write(tmp_path / "whole.mp4", b=2, gop=48)
    with av.open(str(tmp_path / "whole.mp4")) as source, av.open(str(tmp_path / "cut.mp4"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.pts, packet.dts, packet.stream = packet.pts - 10 * 512, packet.dts - 10 * 512, stream
                target.mux(packet)
    decoded = decode(tmp_path / "cut.mp4", 38, "linspace", None, "auto")
    assert [index_of(frame) for frame in decoded.frames] == list(range(10, 48))
    assert decoded.seconds[0] == 0
    assert probe(tmp_path / "cut.mp4").total == 38
    with pytest.raises(VideoError, match="decord cannot read it exactly"):
        decode(tmp_path / "cut.mp4", 4, "linspace", None, "decord")


def test_few_frames_repeat_and_say_so(movies):
    decoded = decode(movies("one_frame.mp4"), 4, "linspace", None, "auto")
    assert (decoded.indices, decoded.repeated, decoded.total) == ((0, 0, 0, 0), 3, 1)
    assert decode(movies("plain.mp4"), 48, "centres", None, "auto").repeated == 0
    assert decode(movies("plain.mp4"), 64, "centres", None, "auto").repeated == 16


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0.5, 1.0, range(15, 30)), (1.4, None, range(42, 48)), (None, 0.1, range(3)), (0.51, 0.52, [15])],
)
def test_start_and_end_cut_first(movies, start, end, expected):
    decoded = decode(movies("b_frames.mp4"), len(expected), "linspace", None, "auto", start=start, end=end)
    assert list(decoded.indices) == list(expected)
    assert [index_of(frame) for frame in decoded.frames] == list(expected)
    assert decoded.repeated == 0


def test_two_a_second(movies):
    decoded = decode(movies("b_frames.mp4"), 16, "fps:10", None, "auto", multiple_of=4)
    assert len(decoded.indices) == 16
    assert len(decode(movies("b_frames.mkv"), 99, "fps:10", None, "auto").indices) == 16
    assert len(decode(movies("b_frames.mp4"), 16, "fps:2", None, "auto", multiple_of=2).indices) == 2


MATRICES = {  # the four entries of mp4's track matrix, and what a player shows
    "upright": ((1, 0, 0, 1), lambda x: x),
    "clockwise": ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),
    "half_turn": ((-1, 0, 0, -1), lambda x: np.rot90(x, 2)),
    "anticlockwise": ((0, -1, 1, 0), lambda x: np.rot90(x, 1)),
    "mirrored": ((-1, 0, 0, 1), lambda x: x[:, ::-1]),
    "transposed": ((0, 1, 1, 0), lambda x: x.swapaxes(0, 1)),
}


def turned(path, turn):
    (a, b, c, d), shown = MATRICES[turn]
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0: the matrix follows 40 bytes
    for place, entry in ((0, a), (4, b), (12, c), (16, d)):
        data[at + place : at + place + 4] = (entry * 65536).to_bytes(4, "big", signed=True)
    path.write_bytes(data)
    return shown


@pytest.mark.parametrize("turn", MATRICES)
def test_rotation_is_applied(tmp_path, turn):
    path = write(tmp_path / "phone.mp4", frames=3, size=(32, 48))
    upright = read_video(path, 3)
    shown = turned(path, turn)
    np.testing.assert_array_equal(read_video(path, 3), np.stack([shown(frame) for frame in upright]))


@needs_decord
def test_decord_reads_nothing_rotated(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "SEEK_PIXELS", 0)
    path = write(tmp_path / "phone.mp4", gop=1, size=(32, 48))
    turned(path, "clockwise")
    assert decode(path, 4, "centres", None, "auto").backend == "pyav"
    with pytest.raises(VideoError, match="rotated"):
        decode(path, 4, "centres", None, "decord")


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
    assert decode(path, 8, "centres", None, "auto").backend == "pyav"  # too short for a seek to pay
    monkeypatch.setattr(video, "SEEK_PIXELS", 0)
    sparse, dense = decode(path, 8, "centres", None, "auto"), decode(path, 20, "centres", None, "auto")
    assert (sparse.backend, dense.backend) == ("decord", "pyav")
    np.testing.assert_array_equal(sparse.frames, decode(path, 8, "centres", None, "pyav").frames)
    assert [index_of(frame) for frame in sparse.frames] == list(sparse.indices)


@pytest.mark.parametrize(
    "name", ["transport.ts", "mpeg4.avi", "h265_open_gop.mp4", "open_gop.mp4", "variable_rate.mp4"]
)
def test_decord_is_refused_where_it_is_not_exact(movies, name):
    with pytest.raises(VideoError, match="decord cannot read it exactly"):
        decode(movies(name), 4, "linspace", None, "decord")


def test_decord_missing(movies, monkeypatch):
    monkeypatch.setattr(video, "_version", lambda name: "absent")
    with pytest.raises(VideoError, match="not installed"):
        decode(movies("plain.mp4"), 4, "linspace", None, "decord")


def test_every_frame_memory_is_bounded_by_what_is_sampled(tmp_path):
    """A kept frame must not be a view that holds the others."""
    decoded = decode(write(tmp_path / "a.mp4"), 2, "linspace", None, "pyav")
    assert decoded.frames.base is None
    assert decoded.frames.nbytes == 2 * 32 * 32 * 3


@pytest.mark.parametrize("name", ["plain.mp4", "b_frames.mkv", "vp9.webm", "mpeg4.avi", "animation.gif"])
@pytest.mark.parametrize("part", [0.2, 0.5, 0.8])
def test_truncated(movies, tmp_path, name, part):
    whole = movies(name).read_bytes()
    path = tmp_path / name
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(VideoError, match=re.escape(str(path))) as caught:
        read_video(path, 4)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["front.mp4", "b_frames.mkv", "vp9.webm", "mpeg4.avi", "animation.gif"])
def test_truncated_between_two_packets(movies, tmp_path, name):
    """No packet is damaged, the demuxer just stops: only what the container declares can tell."""
    path = tmp_path / name
    if name == "front.mp4":
        write(path, container={"movflags": "faststart"})
    else:
        path.write_bytes(movies(name).read_bytes())
    with av.open(str(path)) as container:
        at = [packet.pos for packet in container.demux(video=0)][30]
    path.write_bytes(path.read_bytes()[:at])
    with pytest.raises(VideoError, match="truncated"):
        read_video(path, 4)


def test_truncated_within_the_last_fragment(movies, tmp_path):
    whole = movies("fragmented.mp4").read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole[: whole.rindex(b"mdat") + 10])
    with pytest.raises(VideoError, match="truncated"):
        read_video(path, 4)


def test_a_decoder_that_stops_early_is_an_error(movies, monkeypatch):
    shown = video._shown
    monkeypatch.setattr(video, "_shown", lambda clip: itertools.islice(shown(clip), 40))
    with pytest.raises(VideoError, match="only 40 of 48"):
        read_video(movies("plain.mp4"), 4)


@pytest.mark.parametrize("name", ["plain.mp4", "raw.h264"])
@pytest.mark.parametrize("frames", [2, 43])
def test_a_wrong_promise_is_corrected_by_counting(movies, monkeypatch, name, frames):
    """With two frames the positions would exist under the wrong count as well, and show something else."""
    shown = video._shown
    dropped = 5 if name == "plain.mp4" else 1
    monkeypatch.setattr(video, "_shown", lambda clip: itertools.islice(shown(clip), dropped, None))
    decoded = decode(movies(name), frames, "centres", None, "auto")
    assert decoded.total == 48 - dropped
    assert [index_of(frame) for frame in decoded.frames] == [dropped + index for index in decoded.indices]


def song_with_cover(path):
    """A black picture as mp4's cover: what is in it hardly matters, it is no video."""
    no_video(path)
    png = av.CodecContext.create("png", "w")
    png.width = png.height = 16
    png.pix_fmt, png.time_base = "rgb24", Fraction(1, 1)
    cover = b"".join(bytes(packet) for packet in png.encode(av.VideoFrame(16, 16, "rgb24")) + png.encode(None))

    def box(name, content):
        return (8 + len(content)).to_bytes(4, "big") + name + content

    image = box(b"covr", box(b"data", (14).to_bytes(4, "big") + bytes(4) + cover))
    handler = box(b"hdlr", bytes(8) + b"mdirappl" + bytes(9))
    udta = box(b"udta", box(b"meta", bytes(4) + handler + box(b"ilst", image)))
    data = bytearray(path.read_bytes())
    at = data.index(b"moov") - 4
    length = int.from_bytes(data[at : at + 4], "big")
    data[at + length : at + length] = udta
    data[at : at + 4] = (length + len(udta)).to_bytes(4, "big")
    path.write_bytes(data)


def no_video(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def list_of_others(path):
    write(path.with_name("other.mp4"))
    path.write_text("ffconcat version 1.0\nfile other.mp4\n")


def header_alone(path):
    data = write(path, container={"movflags": "frag_keyframe+empty_moov"}).read_bytes()
    path.write_bytes(data[: data.index(b"moof") - 4])


MALFORMED = {
    "missing": (lambda path: None, "No such file"),
    "folder": (lambda path: path.mkdir(), "a folder"),
    "empty": (lambda path: path.touch(), "empty"),
    "text": (lambda path: path.write_text("hello\n" * 50), "not a video"),
    "noise": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)), "not a video"),
    "playlist": (lambda path: path.write_text("#EXTM3U\n#EXTINF:1,\nother.ts\n#EXT-X-ENDLIST\n"), "not a video"),
    "list": (list_of_others, "not a video"),
    "image": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64)), "not a video"),
    "audio": (no_video, "no video stream"),
    "cover": (song_with_cover, "no video stream"),
    "no_frames": (header_alone, "no frames"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed(tmp_path, kind):
    path = tmp_path / f"{kind}.mp4"
    make, words = MALFORMED[kind]
    make(path)
    with pytest.raises(VideoError, match=re.escape(words)) as caught:
        read_video(path, 4)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"frames": 0},
        {"frames": -1},
        {"frames": True},
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
    request = {"frames": 4, "policy": "linspace", "size": None, "backend": "auto"} | wrong
    with pytest.raises(VideoError) as caught:
        decode(movies("plain.mp4"), **request)
    assert "\n" not in str(caught.value)


def test_names_with_colons_are_files(tmp_path, monkeypatch):
    path = write(tmp_path / "concat:plain%20é.mp4", frames=3)
    monkeypatch.chdir(tmp_path)
    assert len(read_video(path.name, 3)) == 3


def test_probe_counts_without_decoding(movies, monkeypatch):
    monkeypatch.setattr(video, "_shown", lambda clip: pytest.fail("decoded"))
    assert probe(movies("b_frames.mp4")).total == 48


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
