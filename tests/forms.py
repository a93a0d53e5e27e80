"""Video files of many forms, written when a test asks. Every frame carries its own index as eight large bright or dark
cells, which survive any codec: a wrong frame cannot pass for a right one."""

import itertools

import av
import numpy as np
import pytest
from einops import reduce, repeat

FRAMES = 72  # more than any test samples


def picture(index, height=32, width=32):
    """Bit b of the index is cell b, bright or dark, of a grid of 2 x 4."""
    bits = np.array([40 + 180 * (index >> bit & 1) for bit in range(8)], np.uint8).reshape(2, 4)
    whole = repeat(bits, "y x -> (y h) (x w) c", h=-(-height // 2), w=-(-width // 4), c=3)
    return np.ascontiguousarray(whole[:height, :width])


def index_of(frame):
    height, width = (frame.shape[0] + 1) // 2, (frame.shape[1] + 3) // 4
    padded = np.pad(frame, ((0, 2 * height - frame.shape[0]), (0, 4 * width - frame.shape[1]), (0, 0)), mode="edge")
    bright = reduce(padded.astype(float), "(y h) (x w) c -> (y x)", "mean", y=2, x=4) > 130
    return sum(1 << bit for bit in range(8) if bright[bit])


def add_video(container, codec="libx264", *, rate=30, size=(32, 32), pix="yuv420p", gop=12, b=0, **options):
    options = {key.replace("_", "-"): text for key, text in options.items()}
    stream = container.add_stream(codec, rate=rate, options=options)
    stream.height, stream.width, stream.pix_fmt = *size, pix
    stream.gop_size, stream.max_b_frames = gop, b
    return stream


def encoded(stream, index, pts):
    frame = av.VideoFrame.from_ndarray(picture(index, stream.height, stream.width), format="rgb24")
    frame.pts, frame.time_base = pts, 1 / stream.codec_context.framerate
    return stream.encode(frame)


def write(path, codec="libx264", *, frames=FRAMES, pts=None, container=None, **settings):
    """settings: add_video's and the encoder's own; container: the muxer's, and its name where the suffix says less."""
    options = dict(container or {})
    with av.open(str(path), "w", format=options.pop("format", None), options=options) as file:
        stream = add_video(file, codec, **settings)
        for index in range(frames):
            file.mux(encoded(stream, index, pts[index] if pts else index))
        file.mux(stream.encode())
    return path


def several_streams(path):
    """Sound and two pictures; the larger one is what a player shows, the other counts from 100."""
    with av.open(str(path), "w") as file:
        sound = file.add_stream("aac", rate=16000, layout="mono")
        other, shown = add_video(file, size=(16, 16)), add_video(file, size=(64, 64), b=2)
        other.disposition, shown.disposition = av.stream.Disposition(0), av.stream.Disposition.default
        for index in range(FRAMES):
            file.mux(encoded(other, 100 + index, index))
            file.mux(encoded(shown, index, index))
            file.mux(sound.encode(silence(index)))
        for stream in (other, shown, sound):
            file.mux(stream.encode())
    return path


def silence(index):
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 512), np.float32), format="fltp", layout="mono")
    frame.sample_rate, frame.pts = 16000, 512 * index
    return frame


def sound_alone(path):
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=16000, layout="mono")
        for index in range(8):
            file.mux(stream.encode(silence(index)))
        file.mux(stream.encode())
    return path


def cut_by_copy(path):
    """Without encoding again: ten frames stay for reference, and an edit list hides them."""
    whole = write(path.with_name(f"whole_{path.name}"), b=2, gop=FRAMES)
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.pts, packet.dts, packet.stream = packet.pts - 10 * 512, packet.dts - 10 * 512, stream
                target.mux(packet)
    return path


MATRICES = {  # the four entries of mp4's track matrix, and what a player shows
    "upright": ((1, 0, 0, 1), lambda x: x),
    "clockwise": ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),
    "half_turn": ((-1, 0, 0, -1), lambda x: np.rot90(x, 2)),
    "anticlockwise": ((0, -1, 1, 0), lambda x: np.rot90(x, 1)),
    "mirrored": ((-1, 0, 0, 1), lambda x: x[:, ::-1]),
    "transposed": ((0, 1, 1, 0), lambda x: x.swapaxes(0, 1)),
    "five_degrees": ((0.996, 0.087, -0.087, 0.996), lambda x: x),
    "zeros": ((0, 0, 0, 0), lambda x: x),
    "one_zero": ((0, 0, 0, 1), lambda x: x),
    "sheared": ((1, 1, 1, 1), lambda x: x),
}


def turn(path, name):
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0: the matrix follows 40 bytes
    for place, entry in zip((0, 4, 12, 16), MATRICES[name][0], strict=True):
        data[at + place : at + place + 4] = int(entry * 65536).to_bytes(4, "big", signed=True)
    path.write_bytes(data)
    return path


def clockwise(path):
    return turn(write(path, size=(32, 48), b=2), "clockwise")


VFR = list(itertools.accumulate([0] + [1, 3, 2, 9, 1] * 13 + [4, 7, 1, 1, 2, 5]))
X264 = "keyint=12:min-keyint=12:scenecut=0"
# With a bit rate one file in some hundreds blurs its last pictures beyond telling.
X265 = f"log-level=none:qp=10:{X264}"
FORMS = {  # name -> settings of write, or who writes it
    "plain.mp4": {},
    "b_frames.mp4": {"b": 3},
    "b_frames.mov": {"b": 3},
    "b_frames.mkv": {"b": 3},
    "open_gop.mp4": {"x264_params": f"open-gop=1:bframes=3:{X264}"},
    "intra_only.mp4": {"gop": 1},
    "intra_refresh.mp4": {"x264_params": "intra-refresh=1:keyint=12:bframes=0"},
    "long_gop.mp4": {"b": 3, "x264_params": "keyint=9999:scenecut=0"},
    "fragmented.mp4": {"b": 2, "container": {"movflags": "frag_keyframe+empty_moov"}},
    "variable_rate.mp4": {"b": 2, "pts": VFR},
    "variable_rate.mkv": {"b": 2, "pts": VFR},
    "late_start.mp4": {"b": 2, "pts": [45 + index for index in range(FRAMES)]},
    "late_start.mkv": {"b": 2, "pts": [45 + index for index in range(FRAMES)]},
    "edit_list.mp4": cut_by_copy,
    "rotated.mp4": clockwise,
    "several_streams.mkv": several_streams,
    "several_streams.mp4": several_streams,
    "one_frame.mp4": {"frames": 1},
    "odd.mp4": {"size": (33, 35), "pix": "yuv444p"},
    "odd_subsampled.webm": {"codec": "libvpx-vp9", "size": (37, 45)},
    "ten_bit.mp4": {"pix": "yuv420p10le", "b": 2},
    "transport.ts": {"b": 3},
    "flash.flv": {"b": 2},
    "h264.avi": {"b": 3},
    "raw.h264": {"b": 2},
    "h265.mp4": {"codec": "libx265", "size": (64, 64), "x265_params": f"{X265}:open-gop=0:bframes=3"},
    "h265_open_gop.mp4": {"codec": "libx265", "size": (64, 64), "x265_params": f"{X265}:open-gop=1:bframes=3"},
    "av1.mp4": {"codec": "libsvtav1", "size": (64, 64)},
    "vp8.webm": {"codec": "libvpx", "auto_alt_ref": "1", "lag_in_frames": "16"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "mpeg2.mpg": {"codec": "mpeg2video", "b": 2, "rate": 25},
    "mpeg4.avi": {"codec": "mpeg4", "b": 2, "size": (64, 64)},
    "mjpeg.avi": {"codec": "mjpeg", "pix": "yuvj420p"},
    "windows.wmv": {"codec": "wmv2", "size": (64, 64)},
    "prores.mov": {"codec": "prores_ks", "pix": "yuv422p10le", "size": (64, 64)},
    "lossless.mkv": {"codec": "ffv1"},
    "animation.gif": {"codec": "gif", "pix": "rgb8", "rate": 25},
}
DRAWN = {"one_frame.mp4": range(1), "edit_list.mp4": range(10, FRAMES)}


def drawn(name):
    """The indices in the pictures of a form, in order."""
    return DRAWN.get(name, range(FRAMES))


class Movies:
    """name -> path, written when first asked for."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, name):
        path, form = self.folder / name, FORMS[name]
        if not path.exists():
            settings = {} if callable(form) else form
            try:
                av.codec.Codec(settings.get("codec", "libx264"), "w")
            except av.codec.codec.UnknownCodecError:
                pytest.skip(f"this PyAV cannot write {name}")
            (form if callable(form) else write)(path, **settings)
        return path


def in_order(path):
    """Every frame, as PyAV shows them one after the other: the oracle."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
