"""Annotations, answers and generated sets from strangers: one line that names file and row."""

import json
import pickle
import shutil

import pytest
import torch
from fuzz_targets import write_videos
from hostile import Executed, one_line, twice
from safetensors.torch import load_file, save_file
from test_motionbench import qa, row

from tefusion.config import Run
from tefusion.data.motion import MotionSettings, write_motion
from tefusion.data.motion_files import write_video
from tefusion.data.motion_truth import TruthError, load_truth
from tefusion.data.motionbench import MotionBenchError, read_motionbench
from tefusion.data.prompt import prompt
from tefusion.data.source import load_split
from tefusion.json_files import LONGEST_LINE
from tefusion.score import Answer, AnswersError, read_answers, write_answers
from tefusion.train import create_vlm
from tefusion.video import Request, VideoError, decode

# Annotations


FIRST = json.dumps(qa(uid="first")).encode()


def annotated(folder, line, first=FIRST):
    folder.mkdir(exist_ok=True)
    (folder / "video_info.meta.jsonl").write_bytes(first + b"\n" + line + b"\n")
    return folder


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (json.dumps(row()).encode("utf-16"), "'utf-8' codec can't decode"),
        (json.dumps(qa(question="Wié?\nA. é"), ensure_ascii=False).encode("latin-1"), "'utf-8' codec can't decode"),
        (b'{"a": "' + b"x" * (10 << 20) + b'"}', f"longer than {LONGEST_LINE:,} bytes"),
        (json.dumps(qa(question="x" * 500_000)).encode(), "needs a stem and options"),
        (json.dumps(row()).encode().replace(b"What", b"Wh\0at"), "Invalid control character"),
        (json.dumps(row(video_path="a\0b.mp4")).encode(), "is not a name inside the folder"),
        (json.dumps(row(video_path="a/../../b.mp4")).encode(), "is not a name inside the folder"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"qa": ' * 100_000, "nested too deeply"),
        (b"null", "expected an object, found NoneType"),
        (b"!!python/object/apply:os.system ['touch x']", "Expecting value"),
        (json.dumps(row()).encode()[:-1] + b', "key": "k"}', "a key comes twice"),
        (json.dumps(qa(question="\ud800?\nA. a")).encode(), "'question' holds half a character"),
        (json.dumps(qa(answer="")).encode(), "is neither NA nor one of its 4 options"),
        (json.dumps(qa(answer="AB")).encode(), "is neither NA nor one of its 4 options"),
        (json.dumps(qa(answer=3)).encode(), "'answer' should be a str, found int"),
        (json.dumps(qa(uid=7)).encode(), "'uid' should be a str, found int"),
        (json.dumps(qa(question="")).encode(), "needs a stem and options"),
        (json.dumps(qa(question="\nA. a\nB. b")).encode(), "needs a stem and options"),
        (json.dumps(qa(start=3, end=1)).encode(), "'end' of uid 'u1' should come after its start: 1 after 3"),
        (json.dumps(qa(start=-1, end=1)).encode(), "'start' should be a number of seconds of at least 0"),
        (json.dumps(qa(start=float("nan"))).encode(), "NaN is no JSON"),
        (json.dumps(qa(end=10**400)).encode(), "'end' should be a number of seconds"),
        (json.dumps(qa(end=True)).encode(), "'end' should be a number of seconds"),
    ],
    ids=range(24),
)
def test_annotations_that_cannot_be_read(tmp_path, line, says):
    with one_line(says, MotionBenchError):
        read_motionbench(annotated(tmp_path, line))
    with one_line("video_info.meta.jsonl, line 2: ", MotionBenchError):
        read_motionbench(tmp_path)


def test_a_byte_order_mark_crlf_and_1_to_10_options_are_read(tmp_path):
    options = "\n".join(f"{letter}. {letter.lower()}" for letter in "ABCDEFG")
    text = "\r\n".join(json.dumps(r) for r in (row(), qa(uid="7", question=f"Q?\n{options}", answer="G")))
    (tmp_path / "video_info.meta.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    four, seven = read_motionbench(tmp_path)
    assert (four.answer, four.options) == ("C", ("one", "two", "three", "four"))
    assert (seven.answer, len(seven.options)) == ("G", 7)
    (only,) = read_motionbench(annotated(tmp_path, b"", json.dumps(qa(question="Q?\nA. a", answer="A")).encode()))
    assert only.options == ("a",)


def test_a_link_may_not_leave_the_dataset(tmp_path):
    folder, outside = annotated(tmp_path / "set", b""), tmp_path / "secret.mp4"
    outside.touch()
    (folder / "self-collected").mkdir()
    video = folder / "self-collected" / "a.mp4"
    video.symlink_to(outside)
    with one_line("line 1: video_path 'a.mp4' is a link that leaves the folder", MotionBenchError):
        read_motionbench(folder)
    video.unlink()
    (folder / "self-collected" / "b.mp4").touch()
    video.symlink_to("b.mp4")
    assert read_motionbench(folder)[0].video == video
    (folder / "self-collected").rename(tmp_path / "elsewhere")
    (folder / "public-dataset").symlink_to(tmp_path / "elsewhere")
    with one_line("is a link that leaves the folder", MotionBenchError):
        read_motionbench(folder)


def test_text_that_names_special_tokens_is_text(tmp_path):
    text = "<pad><eos><|begin_of_image|><|endoftext|> moves how?"
    line = json.dumps(qa(question=f"{text}\nA. <eos>\nB. <|end_of_image|>", answer="B")).encode()
    question = read_motionbench(annotated(tmp_path, line))[1]
    assert (question.text, question.options) == (text, ("<eos>", "<|end_of_image|>"))
    vlm = create_vlm(Run(compressor="none", k=1, encoder="tiny"))
    ids = vlm.ids(prompt(question))
    assert not {vlm.tokenizer.pad_token_id, vlm.tokenizer.eos_token_id} & {*ids}
    assert vlm.tokenizer.decode(ids, clean_up_tokenization_spaces=False) == prompt(question)


def test_fewer_frames_than_k_and_clips_beyond_the_end(tmp_path):
    video = tmp_path / "short.mp4"
    write_video(video, torch.randint(256, (3, 32, 32, 3), dtype=torch.uint8).numpy(), fps=8)
    short = decode(video, Request(4, multiple_of=4))
    assert (len(short.frames), short.repeated) == (4, 1)
    assert len(decode(video, Request(4, multiple_of=4, start=0.1, end=99.0)).frames) == 4
    with one_line("short.mp4: ends before second 2", VideoError):
        decode(video, Request(4, multiple_of=4, start=2.0, end=3.0))


@pytest.mark.parametrize("backend", ["auto", "pyav", "decord"])
def test_a_header_that_counts_billions_of_frames(tmp_path, backend):
    """decord makes room for them all and takes the process down: found by fuzzing."""
    write_videos(tmp_path / "clips")
    data = (tmp_path / "clips" / "b-frames.mp4").read_bytes()
    counts = data.index(b"stts") + 12
    assert data[counts : counts + 4] == (24).to_bytes(4, "big")
    video = tmp_path / "counts.mp4"
    video.write_bytes(data[:counts] + b"\x99\x2d\x0e\x1b" + data[counts + 4 :])
    request = Request(4, backend=backend)
    if backend == "decord":
        with one_line("a header that counts other frames", VideoError):
            decode(video, request)
    else:
        assert decode(video, request).indices == (0, 8, 15, 23)


# Answers

ANSWER = {"uid": "1", "cluster": "v", "category": "c", "options": 4, "prediction": "A", "answer": "A", "correct": True}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"uid": 1}, "uid must be text"),
        ({"cluster": None, "category": []}, "cluster and category must be text"),
        ({"options": True}, "options must be a count"),
        ({"options": 1e9}, "options must be a count"),
        ({"options": 2, "answer": "C", "prediction": "C"}, "one of the 2 options"),
        ({"prediction": "AB", "correct": False}, "must be letters"),
        ({"prediction": "x" * 100_000, "correct": False}, "must be letters"),
        ({"correct": 1}, "correct contradicts"),
    ],
)
def test_answers_that_cannot_be_scored(tmp_path, change, says):
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps(ANSWER) + "\n" + json.dumps(ANSWER | {"uid": "2"} | change) + "\n")
    with one_line(says, AnswersError):
        read_answers(path)
    with one_line("answers.jsonl, line 2: ", AnswersError):
        read_answers(path)


def test_answers_that_are_no_text_and_names_that_look_like_line_ends(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_bytes(json.dumps(ANSWER).encode() + b'\n{"uid": "\xff"}\n')
    with one_line("answers.jsonl, line 2: 'utf-8' codec", AnswersError):
        read_answers(path)
    kept = [Answer("one\u2028two\x85", "v", "c", 4, "I", "A")]
    write_answers(path, kept)
    assert read_answers(path) == kept


# The generated set


@pytest.fixture
def motion(clips, tmp_path):
    shutil.copytree(clips, tmp_path / "motion")
    return tmp_path / "motion"


def change_truth(folder, **changes):
    file = folder / "test" / "truth.safetensors"
    tensors = load_file(file) | {name: value for name, value in changes.items() if value is not None}
    save_file({n: t.contiguous() for n, t in tensors.items() if changes.get(n, t) is not None}, file)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("flash", lambda t: None, "flash is missing"),
        ("extra", lambda t: torch.zeros(1), "'extra' is unexpected"),
        ("positions", lambda t: t[:-1], "positions is (23, 16, 4, 2) torch.float32 instead of (24, 16, 4, 2)"),
        ("positions", lambda t: t.double(), "torch.float64 instead of"),
        ("masks", lambda t: t[..., :16], "masks are (24, 16, 32, 16) instead of"),
        ("masks", lambda t: t[:0], "masks are (0, 16, 32, 32) instead of"),
        ("angles", lambda t: t / 0, "angles is not finite"),
        ("colours", lambda t: t + 6, "colours goes from 6 to"),
        ("category", lambda t: t - 1, "category goes from -1"),
        ("category", lambda t: t.flip(0), "in video_info.meta.jsonl"),
        ("answer", lambda t: 3 - t, "in video_info.meta.jsonl"),
    ],
)
def test_a_truth_that_is_none(motion, name, change, says):
    tensor = load_file(motion / "test" / "truth.safetensors").get(name)
    change_truth(motion, **{name: change(tensor)})
    with one_line(says):
        load_split(motion, "test")


def test_a_truth_that_is_cut_absent_or_of_other_clips(motion, tmp_path):
    file = motion / "test" / "truth.safetensors"
    data = file.read_bytes()
    for wrong in (data[:-4], b"", twice(data, "masks"), pickle.dumps(Executed(tmp_path / "executed"))):
        file.write_bytes(wrong)
        with one_line("truth.safetensors is truncated or no safetensors file", TruthError):
            load_truth(motion / "test")
    assert not (tmp_path / "executed").exists()
    shutil.copy(motion / "train" / "truth.safetensors", file)
    with one_line("knows 96 clips, video_info.meta.jsonl asks about 24"):
        load_split(motion, "test")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "settings.json is not JSON"),
        ("[]", "settings.json is not a JSON object"),
        ("{}", "settings.json: shuffled must be true or false, got None"),
        ('{"shuffled": 1, "frames": 16}', "settings.json: shuffled must be true or false, got 1"),
        ('{"shuffled": false, "frames": 8}', "settings.json: frames is 8, truth.safetensors has 16 a clip"),
        (None, "settings.json cannot be read"),
    ],
)
def test_settings_of_a_set_that_are_none(motion, content, says):
    file = motion / "settings.json"
    file.unlink() if content is None else file.write_text(content)
    with one_line(says):
        load_split(motion, "test")
    if content:
        with one_line("settings.json is not" if "is not" in says else "holds a motion set with"):
            write_motion(motion, MotionSettings())
