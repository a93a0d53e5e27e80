"""Broken and hostile input, door by door: one line that says what and where; nothing is executed, nothing lost."""

import json
import os
import pickle
import resource
import shutil
import tarfile
import zipfile
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file
from test_motionbench import qa, row
from test_weights import CONFIG, released_state, rewrite
from test_weights import P as PREFIX
from test_weights import write as write_glm

from tefusion.ask import ask, load_run, read_run
from tefusion.cells import Sweep, plan
from tefusion.cli import Train, run, single_run
from tefusion.compressors import COMPRESSORS, create_compressor
from tefusion.config import Run, fields, parse
from tefusion.data.motion import MotionSettings, write_motion
from tefusion.data.motion_files import write_video
from tefusion.data.motion_truth import TruthError, load_truth
from tefusion.data.motionbench import MotionBenchError, read_motionbench
from tefusion.data.prompt import prompt
from tefusion.data.source import load_split
from tefusion.decoder import create_decoder
from tefusion.encoders.weights import load_glm4v, read_boundaries
from tefusion.json_files import LONGEST_LINE
from tefusion.score import Answer, AnswersError, read_answers, write_answers
from tefusion.train import create_vlm
from tefusion.video import Request, VideoError, decode
from tefusion.vision import create_video_encoder


@contextmanager
def one_line(says, error=ValueError):
    with pytest.raises(error) as raised:
        yield
    assert says in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert len(str(raised.value)) < 2000


class Executed:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


# Settings

BAD_K = ["0", "-1", "four", "4.0", "True", "nan", "1e99", "", "４", "٤", "1_6", " 4", "4 ", "0x4", "4\n", "9" * 5000]


@pytest.mark.parametrize("k", BAD_K)
def test_k_from_the_command_line(k, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in ("describe", "sweep", "train"):
        assert run(command, [f"k={k}"]) == 2
        out, err = capsys.readouterr()
        assert (out, len(err.splitlines())) == ("", 1)
        assert err.startswith("tefusion: k must be")
        assert len(err) < 300
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("k", [0, -1, "four", "4", 4.0, True, float("nan"), 1e99, None, 10**30, [4]])
def test_k_from_python(k, unchecked):
    with one_line("k must be"):
        Run(k=k)
    for name in COMPRESSORS:
        with one_line("k must be"):
            create_compressor(name, k=k, width=8, embed_dim=8, depth=1, heads=1, grid=(2, 2))
        with one_line("k must be"):
            create_video_encoder("tiny", name, k)


def test_k_that_does_not_divide_the_frames():
    with one_line("5 frames do not divide into groups of k = 2"):
        create_video_encoder("tiny", "te_fusion", 2).tokens_out(5, 32, 32)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["lr=nan"], "lr must be a number, got 'nan'"),
        (["lr=inf"], "lr must be a number"),
        (["lr=1_0"], "lr must be a number"),
        (["lr=1e999"], "lr must be a number below 2**32, got inf"),
        (["seed=4294967296"], "seed must be a whole number below 2**32"),
        (["n_input=65540"], "n_input must be at most 65536"),
        (["compressor=" + "x" * 100_000], "is unknown"),
        (["x" * 100_000], "is not of the form key=value"),
        (["x" * 100_000 + "=1"], "unknown key"),
        (["compressor=a\nb"], "compressor 'a\\nb' is unknown"),
        (["decoder=" + "x" * 5000], "is unknown"),
        (["shard=²/3"], "shard must be i/n"),
        (["shard=0/0"], "shard must be i/n"),
        (["freeze=all_but_compressor", "auxiliary=0", "compressor=pllava", "controls=false"], "has no parameters"),
    ],
)
def test_settings_that_cannot_be(words, says):
    with one_line(says):
        plan(words)


def test_a_frozen_model_needs_something_to_train():
    frozen = ["freeze=all_but_compressor", "k=2"]
    with one_line("compressor=qwen2_vl leaves nothing to train"):
        single_run([*frozen, "auxiliary=0", "compressor=qwen2_vl"], Train)
    single_run([*frozen, "auxiliary=1", "compressor=qwen2_vl"], Train)
    for compressor in ("te_fusion", "kangaroo", "qformer"):
        single_run([*frozen, "auxiliary=0", f"compressor={compressor}"], Train)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU says")
@pytest.mark.parametrize("command", ["sweep", "train"])
def test_a_backend_that_needs_a_gpu(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(command, ["precision=fp16"]) == 2
    assert "precision=fp16 needs a GPU" in capsys.readouterr().err
    for backend, says in (("xformers", "'xformers' needs a CUDA tensor"), ("flsh", "'flsh' is unknown")):
        monkeypatch.setenv("TEFUSION_ATTENTION", backend)
        assert run(command, ["k=2"]) == 2
        err = capsys.readouterr().err
        assert says in err
        assert len(err.splitlines()) == 1
    assert [*tmp_path.iterdir()] == []
    monkeypatch.delenv("TEFUSION_ATTENTION")
    assert run("describe", ["precision=fp16"]) == 0  # which runs nothing


WORD = st.one_of(
    st.text(max_size=30),
    st.tuples(st.sampled_from([*fields(Run, Sweep), "kk", ""]), st.text(max_size=12)).map("=".join),
    st.tuples(st.sampled_from([*fields(Run, Sweep)]), st.from_regex(r"[-+0-9.e_,]{0,6}")).map("=".join),
)


@given(st.lists(WORD, max_size=4))
def test_parse_types_its_values_or_says_one_line(words):
    known = fields(Run, Sweep)
    try:
        parsed = parse(words, Run, Sweep)
    except ValueError as error:
        said = error
    else:
        assert all(type(value) is known[key] for key, values in parsed.items() for value in values)
        return
    assert type(said) is ValueError
    assert len(str(said).splitlines()) == 1


@given(
    st.sampled_from(sorted(COMPRESSORS)),
    st.sampled_from([1, 2, 3]),
    st.integers(1, 3),
    st.integers(16, 60),
    st.integers(16, 60),
)
def test_tokens_out_tells_the_truth_for_any_size(name, k, groups, height, width):
    k = k if k in COMPRESSORS[name].valid_k else 1
    if name == "qformer":  # its queries are made for one grid
        height, width = 32 + height % 8, 32 + width % 8
    encoder = create_video_encoder("tiny", name, k)
    with torch.no_grad():
        embeds = encoder(torch.zeros(1, k * groups, 3, height, width))
    assert embeds.shape[:2] == (1, groups)
    assert embeds.shape[1] * embeds.shape[2] == encoder.tokens_out(k * groups, height, width)


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


# Released checkpoints


@pytest.fixture(scope="module")
def weights():
    return {name: tensor for name, tensor in released_state().items() if "layers.1." not in name}


@pytest.fixture
def glm(tmp_path, weights):
    return write_glm(tmp_path / "glm", weights, 2, sized(num_hidden_layers=1))


def sized(**vision):
    return CONFIG | {"vision_config": CONFIG["vision_config"] | vision}


def shard(folder):
    return min(folder.glob("*.safetensors"))


def test_a_shard_swapped_for_a_pickle_is_not_executed(glm, tmp_path):
    marker = tmp_path / "executed"
    shard(glm).write_bytes(pickle.dumps(Executed(marker)))
    with one_line("is truncated or no safetensors file"):
        load_glm4v(glm, image_size=20)
    torch.save({"x": Executed(marker)}, shard(glm))
    with one_line("is truncated or no safetensors file"):
        load_glm4v(glm, image_size=20)
    shutil.copy(shard(glm), glm / "pytorch_model.bin")
    shard(glm).unlink()
    with one_line("is absent"):
        load_glm4v(glm, image_size=20)
    assert not marker.exists()


def test_a_shard_cut_by_four_bytes_or_replaced_by_a_pipe(glm):
    shard(glm).write_bytes(shard(glm).read_bytes()[:-4])
    for load in (load_glm4v, read_boundaries):
        with one_line(f"file {shard(glm).name} is truncated"):
            load(glm)
    pipe = shard(glm)
    pipe.unlink()
    os.mkfifo(pipe)
    with one_line(f"file {pipe.name} is absent"):
        load_glm4v(glm, image_size=20)


@pytest.mark.parametrize("name", ["../out.safetensors", "/tmp/out.safetensors", "a\0.safetensors", "weights.bin", ""])
def test_an_index_may_name_files_of_its_folder_only(glm, weights, name):
    save_file(weights, glm.parent / "out.safetensors")
    index = glm / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(weights, name)}))
    with one_line("is not the name of a safetensors file in the folder"):
        load_glm4v(glm, image_size=20)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"weight_map": {"' + PREFIX + 'boi": 3}}', "has no weight_map"),
        ("[]", "is not a JSON object"),
    ],
)
def test_a_malformed_index(glm, content, says):
    (glm / "model.safetensors.index.json").write_text(content)
    with one_line(says):
        load_glm4v(glm, image_size=20)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000"),
        ({"num_hidden_layers": True}, "num_hidden_layers = True"),
        ({"num_hidden_layers": 1.0}, "num_hidden_layers = 1.0"),
        ({"hidden_size": 10**30}, "hidden_size = 1000"),
        ({"hidden_size": 2**19, "intermediate_size": 2**20}, "the files hold"),
        ({"num_hidden_layers": 1000, "intermediate_size": 2**20}, "the files hold"),
        ({"num_heads": 3}, "config.json does not describe GLM-4V-9B's tower: 3 heads do not divide"),
        ({"scaling_factor": True}, "scaling_factor = True"),
        ({"scaling_factor": 1e308}, "scaling_factor = 1e+308"),
        ({"layer_norm_eps": "1e-6"}, "layer_norm_eps = '1e-6'"),
        ({"hidden_act": ["x"] * 100_000}, "hidden_act = ['x'"),
        ({"patch_size": 2**19}, "is smaller than 2x2 patches"),
    ],
)
def test_sizes_that_no_file_holds(glm, change, says):
    rewrite(glm, num_hidden_layers=1, **{name: value for name, value in change.items() if name != "num_hidden_layers"})
    if "num_hidden_layers" in change:
        rewrite(glm, **change)
    for compressor in ("none", "qformer"):
        with one_line(says):
            load_glm4v(glm, compressor, image_size=20)


def test_a_tensors_name_may_hold_anything(glm):
    save_file(load_file(shard(glm)) | {PREFIX + "line\nbreak": torch.zeros(1)}, shard(glm))
    with one_line("line\\nbreak' is unexpected"):
        load_glm4v(glm, image_size=20)


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
    for wrong in (data[:-4], b"", pickle.dumps(Executed(tmp_path / "executed"))):
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


# Kept models


@pytest.fixture(scope="module")
def small():
    return Run(compressor="te_fusion", k=2, n_input=4, size="32", encoder="tiny", init="scratch")


@pytest.fixture
def model(small, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "run.json").write_text(json.dumps(asdict(small)))
    save_file({n: t.clone() for n, t in create_vlm(small).state_dict().items()}, tmp_path / "model/model.safetensors")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"k": "four"}, "k must be a whole number, got 'four'"),
        ({"k": 2.0}, "k must be a whole number, got 2.0"),
        ({"k": True}, "k must be a whole number, got True"),
        ({"augment": 1}, "augment must be true or false, got 1"),
        ({"size": 32}, "size must be text, got 32"),
        ({"compressor": ["te_fusion"]}, "compressor must be text"),
        ({"lr": None}, "lr must be a number, got None"),
        ({"a\nb": 1}, "'a\\nb' is unknown"),
        ({"k": None}, "k must be"),
        ({"compressor": "x" * 10_000}, "is unknown"),
        ({"n_input": 2**31}, "n_input must be at most"),
        ({"size": "99999x99999"}, "more than the decoder's context"),
        ({"n_input": 65536}, "more than the decoder's context"),
        ({"decoder": "/etc"}, "decoder '/etc' cannot be loaded"),
    ],
)
def test_a_run_from_elsewhere(model, small, change, says, tmp_path):
    (model / "run.json").write_text(json.dumps(asdict(small) | change))
    with one_line(says):
        ask(model, tmp_path / "video.mp4", "Which way?", 3)


def test_a_run_that_lacks_a_setting(model, small):
    (model / "run.json").write_text(json.dumps({n: v for n, v in asdict(small).items() if n != "lr"}))
    with one_line("run.json is no run of this version: 'lr' is missing"):
        read_run(model / "run.json")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("boi") is None, "boi is missing"),
        (lambda s: s.update(extra=torch.zeros(1)), "extra is unexpected"),
        (lambda s: s.update(boi=torch.zeros(2, 64)), "boi is (2, 64) instead of (1, 64)"),
        (lambda s: s.update(boi=torch.full((1, 64), float("nan"))), "boi is not finite"),
        (lambda s: s.update(boi=torch.zeros(1, 64, dtype=torch.int64)), "boi is stored as torch.int64"),
    ],
)
def test_weights_that_do_not_fit_their_run(model, change, says):
    file = model / "model.safetensors"
    state = load_file(file)
    change(state)
    file.write_bytes(save(state))
    with one_line(f"model.safetensors does not fit: {says}"):
        load_run(model)


def test_a_model_swapped_for_a_pickle_is_not_executed(model, tmp_path):
    (model / "model.safetensors").write_bytes(pickle.dumps(Executed(tmp_path / "executed")))
    with one_line("model.safetensors is truncated or no safetensors file"):
        load_run(model)
    assert not (tmp_path / "executed").exists()


def test_a_question_needs_room_for_a_reply(model):
    for tokens in (0, -1):
        with one_line(f"tokens must be at least 1, got {tokens}"):
            ask(model, Path("video.mp4"), "Which way?", tokens)


def test_a_decoders_folder_runs_no_code_and_no_pickle(tmp_path):
    folder, marker = tmp_path / "decoder", tmp_path / "executed"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto}))
    with one_line("cannot be loaded"):
        create_decoder(str(folder))
    (folder / "config.json").write_text(json.dumps({"model_type": "glm", "num_hidden_layers": 1}))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Executed(marker)))
    with one_line("cannot be loaded"):
        create_decoder(str(folder))
    assert not marker.exists()


# YAML, archives, pickles: none is read


@pytest.fixture
def foreign(tmp_path):
    """A YAML file with an object tag, archives with members that escape, and a pickle; all would leave a file."""
    folder, inner = tmp_path / "foreign", tmp_path / "inner"
    folder.mkdir()
    inner.write_text("x")
    (folder / "a.yaml").write_text(f"!!python/object/apply:os.system ['touch {tmp_path / 'executed'}']\n")
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.write(inner, "../executed")
    with tarfile.open(folder / "a.tar", "w") as archive:
        archive.add(inner, "../executed")
    (folder / "a.pt").write_bytes(pickle.dumps(Executed(tmp_path / "executed")))
    return folder


@pytest.mark.parametrize("name", ["a.yaml", "a.zip", "a.tar", "a.pt"])
def test_yaml_archives_and_pickles_are_refused_unread(foreign, model, name, tmp_path, capsys):
    file = foreign / name
    before = sorted(tmp_path.rglob("*"))
    says = {
        "train": (
            [f"data={file}", f"home={tmp_path / 'home'}"],
            "is neither a folder nor a generated set; known: motion",
        ),
        "sweep": (
            [f"data={file}", f"home={tmp_path / 'home'}"],
            "is neither a folder nor a generated set; known: motion",
        ),
        "ask": ([f"model={file}", "video=x", "question=x"], f"{name} holds no run.json"),
        "report": ([f"out={file}"], f"{name} holds no results.jsonl"),
        "describe": ([f"decoder={file}"], "is unknown; known: glm-4-9b, small, tiny"),
    }
    for command, (words, said) in says.items():
        assert run(command, words) == 2
        out, err = capsys.readouterr()
        assert said in err
        assert (out, len(err.splitlines())) == ("", 1)
    with one_line(f"{name}: not a video", VideoError):
        ask(model, file, "Which way?", 3)
    assert sorted(tmp_path.rglob("*")) == before


# Disks


@contextmanager
def full_disk(size):
    """No file may grow beyond `size` bytes: the same error at the same place as where a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_set_that_finds_the_disk_full_leaves_nothing(tmp_path):
    for size, name in ((1000, "train-000000.mp4"), (20_000, "truth.safetensors")):
        with full_disk(size), one_line(name, OSError):
            write_motion(tmp_path / "motion", MotionSettings(train=24, dev=1, test=1))
        assert [*tmp_path.iterdir()] == []
    write_motion(tmp_path / "motion", MotionSettings(train=1, dev=1, test=1))


def test_a_report_that_finds_the_disk_full_keeps_the_old_one(tmp_path, capsys):
    done = {"id": "a", "status": "done", "compressor": "none", "k": 1, "n_input": 16, "l_decoder": 64, "seed": 0}
    done |= {"accuracy": 0.5, "stderr": 0.1, "by_category": {}, "questions": 4}
    (tmp_path / "results.jsonl").write_text(json.dumps(done) + "\n")
    assert run("report", [f"out={tmp_path}"]) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "results.jsonl").write_text(json.dumps(done | {"accuracy": 0.7}) + "\n")
    capsys.readouterr()
    with full_disk(100):
        assert run("report", [f"out={tmp_path}"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {**after, "results.jsonl": b""} == {**before, "results.jsonl": b""}


WORDS = ["compressor=none", "k=1", "n_input=0", "init=scratch", "steps=1", "batch=4", "encoder=tiny", "auxiliary=0"]


def test_a_run_that_finds_the_disk_full_keeps_the_old_one(clips, tmp_path, capsys):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "model.safetensors").write_bytes(b"old")
    with full_disk(100_000):
        words = [*WORDS, f"data={clips}", f"home={tmp_path / 'home'}", f"out={kept}"]
        assert run("train", words) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert (kept / "model.safetensors").read_bytes() == b"old"
    assert {path.name for path in kept.iterdir()} == {"model.safetensors", "cells"}
    assert not [*kept.rglob(".*.partial")]


@pytest.mark.parametrize("command", ["sweep", "train", "report"])
def test_a_folder_that_cannot_be_written(command, clips, tmp_path, capsys):
    """Under a file, where nobody can write, root neither."""
    file = tmp_path / "file"
    file.write_text("kept")
    words = {"report": [f"out={file / 'out'}"]}.get(command, [*WORDS, f"data={clips}", f"out={file / 'out'}"])
    home = [f"home={tmp_path / 'home'}"] if command != "report" else []
    assert run(command, [*words, *home]) == 2
    out, err = capsys.readouterr()
    assert str(file) in err
    assert (out, len(err.splitlines())) == ("", 1)
    with one_line(str(file), OSError):
        write_motion(file / "motion", MotionSettings(train=1, dev=1, test=1))
    assert file.read_text() == "kept"
    assert {path.name for path in tmp_path.iterdir()} <= {"file", "home"}
