"""Files as strangers write them: many valid forms, each frame the one it claims to be, and malformed ones refused."""

import contextlib
import importlib.util
import os
import re
import resource
import socket
from fractions import Fraction

import av
import numpy as np
import pytest
from children import drop_privileges, forked
from forms import FORMS, MATRICES, Movies, add_video, drawn, in_order, index_of, sound_alone, write

from tefusion import containers, video
from tefusion.frame_cache import FrameCache
from tefusion.video import Request, VideoError, decode, read_video

DECORD = importlib.util.find_spec("decord") is not None
needs_decord = pytest.mark.skipif(not DECORD, reason="decord has no wheel here")
COUNTS = (5, 16, 64)
INEXACT = [  # what decord 0.6 shows wrong frames of, cannot open, or counts otherwise
    *("transport.ts", "mpeg4.avi", "h264.avi", "raw.h264", "flash.flv", "mpeg2.mpg", "animation.gif", "av1.mp4"),
    *("h265_open_gop.mp4", "open_gop.mp4", "intra_refresh.mp4", "variable_rate.mp4", "edit_list.mp4", "rotated.mp4"),
]


@pytest.fixture(scope="session")
def movies(tmp_path_factory):
    return Movies(tmp_path_factory.mktemp("forms"))


def shown(movies, name):
    """Every frame as the oracle shows it, upright; the oracle itself must show what was drawn."""
    frames = in_order(movies(name))
    assert [index_of(frame) for frame in frames] == list(drawn(name))
    return np.stack([MATRICES["clockwise"][1](frame) for frame in frames]) if name == "rotated.mp4" else frames


@pytest.mark.parametrize("name", FORMS)
def test_auto_is_the_oracle(movies, name, monkeypatch):
    """As it chooses by itself, and where decord's seeks are said to cost nothing, so that it is taken where it may."""
    frames = shown(movies, name)
    for seek in (video.SEEK_PIXELS, 0):
        monkeypatch.setattr(video, "SEEK_PIXELS", seek)
        for count in {*COUNTS, len(frames)}:
            for policy in ("linspace", "centres"):
                decoded = decode(movies(name), Request(count, policy))
                assert decoded.total == len(frames)
                assert list(decoded.indices) == video.sample(policy, len(frames), count, 30.0)
                np.testing.assert_array_equal(decoded.frames, frames[list(decoded.indices)])


@needs_decord
@pytest.mark.parametrize("name", FORMS)
def test_decord_is_exact_or_refuses(movies, name):
    path, frames = movies(name), shown(movies, name)
    if name in INEXACT:
        with pytest.raises(VideoError, match="decord cannot read it exactly"):
            decode(path, Request(5, backend="decord"))
    for count in COUNTS:
        with contextlib.suppress(VideoError):
            decoded = decode(path, Request(count, backend="decord"))
            np.testing.assert_array_equal(decoded.frames, frames[list(decoded.indices)])


@needs_decord
@pytest.mark.parametrize("width", [16, 24, 48, 50, 72, 90, 202])
def test_decord_pads_the_rows_of_narrow_frames(tmp_path, width):
    path = write(tmp_path / "narrow.mp4", size=(32, width), b=2)
    if width in (16, 24, 48, 72):  # then rows of 64 bytes' multiples pass for pixels of four or six bytes
        with pytest.raises(VideoError, match="decord cannot read it exactly"):
            decode(path, Request(5, backend="decord"))
    else:
        decoded = decode(path, Request(5, backend="decord"))
        np.testing.assert_array_equal(decoded.frames, read_video(path, 5))


@pytest.mark.parametrize("name", ["plain.mp4", "b_frames.mkv", "vp9.webm", "animation.gif"])
@pytest.mark.parametrize("suffix", [".gif", ".avi", ".jpg", ".txt", ".h264", ""])
def test_the_content_decides_and_not_the_name(movies, tmp_path, name, suffix):
    path = tmp_path / f"renamed{suffix}"
    path.write_bytes(movies(name).read_bytes())
    assert [index_of(frame) for frame in read_video(path, 64)] == video.sample("linspace", 72, 64, 30.0)


def test_names_with_colons_are_files(tmp_path, monkeypatch):
    path = write(tmp_path / "concat:plain%20é.mp4", frames=3)
    monkeypatch.chdir(tmp_path)
    assert len(read_video(path.name, 3)) == 3


@pytest.mark.parametrize("backend", ["pyav", pytest.param("decord", marks=needs_decord)])
def test_processes_fork_between_reads(movies, monkeypatch, backend):
    """A reader that was opened before a fork hangs in the child. Ours are opened and closed inside a call."""
    monkeypatch.setattr(video, "THREADED_PIXELS", 0)  # with the decoder's own threads
    request = Request(16, size=24, backend=backend)
    before = decode(movies("b_frames.mp4"), request)
    for _ in range(2):
        np.testing.assert_array_equal(forked(lambda: decode(movies("b_frames.mp4"), request).frames), before.frames)
    np.testing.assert_array_equal(decode(movies("b_frames.mp4"), request).frames, before.frames)


# Malformed


def noise(path):
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def playlist(path):
    path.write_text("#EXTM3U\n#EXTINF:1,\nother.ts\n#EXT-X-ENDLIST\n")


def song_with_cover(path):
    """A black picture as mp4's cover: what is in it hardly matters, it is no video."""
    sound_alone(path)
    png = av.CodecContext.create("png", "w")
    png.width = png.height = 16
    png.pix_fmt, png.time_base = "rgb24", Fraction(1, 1)
    cover = b"".join(bytes(packet) for packet in png.encode(av.VideoFrame(16, 16, "rgb24")) + png.encode(None))
    image = box(b"covr", box(b"data", (14).to_bytes(4, "big") + bytes(4) + cover))
    handler = box(b"hdlr", bytes(8) + b"mdirappl" + bytes(9))
    udta = box(b"udta", box(b"meta", bytes(4) + handler + box(b"ilst", image)))
    data = bytearray(path.read_bytes())
    at = data.index(b"moov") - 4
    length = int.from_bytes(data[at : at + 4], "big")
    data[at + length : at + length] = udta
    data[at : at + 4] = (length + len(udta)).to_bytes(4, "big")
    path.write_bytes(data)


def box(name, content):
    return (8 + len(content)).to_bytes(4, "big") + name + content


def list_of_others(path):
    write(path.with_name("other.mp4"))
    path.write_text("ffconcat version 1.0\nfile other.mp4\n")


def without_moov(path):
    data = write(path).read_bytes()
    path.write_bytes(data[: data.index(b"moov") - 4])


def header_alone(path):
    data = write(path, container={"movflags": "frag_keyframe+empty_moov"}).read_bytes()
    path.write_bytes(data[: data.index(b"moof") - 4])


def no_frames(path):
    with av.open(str(path), "w", format="avi") as file:
        add_video(file)
        file.start_encoding()


WIDE, HIGH, CLAIMED = ((size).to_bytes(2, "big") for size in (288, 272, 32767))


def replaced(path, before, after):
    data = path.read_bytes()
    assert before in data
    path.write_bytes(data.replace(before, after))


def gif_of_32k(path):
    write(path, "gif", frames=3, pix="rgb8", container={"format": "gif"})
    data = bytearray(path.read_bytes())
    data[6:10] = CLAIMED[::-1] * 2
    path.write_bytes(data)


def matroska_of_32k(path):
    """ffv1 has no size of its own: the decoder would allocate what Matroska says."""
    write(path, "ffv1", frames=3, size=(272, 288), container={"format": "matroska"})
    replaced(path, b"\xb0\x82" + WIDE + b"\xba\x82" + HIGH, b"\xb0\x82" + CLAIMED + b"\xba\x82" + CLAIMED)


def mjpeg_of_32k(path):
    write(path, "mjpeg", frames=3, size=(272, 288), pix="yuvj420p", container={"format": "avi"})
    replaced(path, b"\x08" + HIGH + WIDE, b"\x08" + CLAIMED + CLAIMED)


def h264_too_large(path):
    """A real one, black, of 30 kB: its frames would take 110 MB each."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 8448, 4352, "yuv420p"
        file.mux(stream.encode(av.VideoFrame(8448, 4352, "yuv420p")))
        file.mux(stream.encode())


def samples_of_nothing(path):
    """Ten million samples of one byte each, in a file of some thousand bytes."""
    data = bytearray(write(path, frames=3, b=0).read_bytes())
    at = data.index(b"stsz") + 8
    data[at : at + 8] = (1).to_bytes(4, "big") + (10_000_000).to_bytes(4, "big")
    path.write_bytes(data)


def fragment_of_nothing(path):
    data = bytearray(write(path, frames=3, container={"movflags": "frag_keyframe+empty_moov"}).read_bytes())
    at = data.index(b"trun") + 8
    data[at : at + 4] = (1 << 30).to_bytes(4, "big")
    path.write_bytes(data)


def shown_again_and_again(path):
    """An edit list of two thousand entries, each of which shows the whole video."""
    data = bytearray(write(path, b=0).read_bytes())
    at, edits = data.index(b"elst"), 2000
    entry = data[at + 12 : at + 24]
    for name in (b"moov", b"trak", b"edts", b"elst"):
        begin = data.index(name) - 4
        data[begin : begin + 4] = (int.from_bytes(data[begin : begin + 4], "big") + 12 * (edits - 1)).to_bytes(4, "big")
    data[at + 8 : at + 24] = edits.to_bytes(4, "big") + entry * edits
    path.write_bytes(data)


def device(path):
    path.symlink_to("/dev/zero")


MALFORMED = {
    "missing": (lambda path: None, "No such file"),
    "folder": (lambda path: path.mkdir(), "a folder"),
    "pipe": (os.mkfifo, "not a file"),
    "device": (device, "not a file"),
    "socket": (lambda path: socket.socket(socket.AF_UNIX).bind(str(path)), "not a file"),
    "loop": (lambda path: path.symlink_to(path), "symbolic links"),
    "empty": (lambda path: path.touch(), "empty"),
    "text": (lambda path: path.write_text("hello\n" * 50), "not a video"),
    "noise": (noise, "not a video"),
    "playlist": (playlist, "not a video"),
    "list": (list_of_others, "not a video"),
    "image": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64)), "not a video"),
    "audio": (sound_alone, "no video stream"),
    "cover": (song_with_cover, "no video stream"),
    "without_moov": (without_moov, "not a video"),
    "header_alone": (header_alone, "no frames"),
    "no_frames": (no_frames, "no frames"),
    "gif_of_32k": (gif_of_32k, ""),
    "matroska_of_32k": (matroska_of_32k, ""),
    "mjpeg_of_32k": (mjpeg_of_32k, ""),
    "h264_too_large": (h264_too_large, "claims frames of 8448 x 4352"),
    "samples_of_nothing": (samples_of_nothing, "promises 10000000 frames"),
    "shown_again_and_again": (shown_again_and_again, "promises 144000 frames"),
    "fragment_of_nothing": (fragment_of_nothing, "promises 1073741824 frames"),
}


def refusal(read, path):
    """What it says, and how many MB the process grew by while it said so."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(VideoError) as caught:
        read(path)
    return str(caught.value), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed(tmp_path, kind):
    """In a child, since some of them would hang or take all memory; through the cache as well, which looks first."""
    make, words = MALFORMED[kind]
    path = tmp_path / "film.mp4"
    make(path)
    cache = FrameCache(tmp_path / "cache", 1 << 20)
    for read in (lambda path: read_video(path, 4), lambda path: cache.decode(path, Request(4))):
        message, grown = forked(lambda read=read: refusal(read, path))
        assert str(path) in message
        assert words in message
        assert "\n" not in message
        assert grown < 100
    assert not cache.folder.exists()


def test_the_decoder_refuses_what_the_header_kept_quiet(tmp_path, monkeypatch):
    h264_too_large(tmp_path / "film.mp4")
    monkeypatch.setattr(containers, "_check_header", lambda path, stream: None)
    with pytest.raises(VideoError, match=r"film\.mp4"):
        read_video(tmp_path / "film.mp4", 4, size=16)


def test_frames_that_do_not_fit_into_memory(movies, monkeypatch):
    path = movies("plain.mp4")
    with pytest.raises(VideoError, match=r"plain.mp4: 16 frames of 99999 x 99999 pixels do not fit into 4 GiB"):
        read_video(path, 16, size=99999)
    monkeypatch.setattr(video, "MOST_BYTES", 16 * 32 * 32 * 3)
    assert len(read_video(path, 16)) == 16
    with pytest.raises(VideoError, match="17 frames of 32 x 32"):
        read_video(path, 17)


def test_no_permission(movies, tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(movies("plain.mp4").read_bytes())
    path.chmod(0)

    def read():
        drop_privileges()
        return refusal(lambda path: read_video(path, 4), path)[0]

    assert forked(read) == f"{path}: Permission denied"


@pytest.mark.parametrize("name", ["plain.mp4", "b_frames.mkv", "vp9.webm", "mpeg4.avi", "animation.gif"])
@pytest.mark.parametrize("part", [0.2, 0.5, 0.8, 0.99])
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
