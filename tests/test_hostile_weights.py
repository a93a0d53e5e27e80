"""Checkpoints and models from strangers: one line, before memory is taken; nothing is executed."""

import json
import os
import pickle
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hostile import Executed, one_line, twice, write_model
from safetensors.torch import load_file, save, save_file
from test_weights import CONFIG, released_state, rewrite
from test_weights import P as PREFIX
from test_weights import write as write_glm

from tefusion.ask import ask, load_run, read_run
from tefusion.config import Run
from tefusion.decoder import create_decoder
from tefusion.encoders.weights import load_glm4v, read_boundaries

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


def test_a_tensor_that_comes_twice_in_one_file(glm, model):
    shard(glm).write_bytes(twice(shard(glm).read_bytes(), min(load_file(shard(glm)))))
    with one_line(f"file {shard(glm).name} is truncated or no safetensors file (a key comes twice"):
        load_glm4v(glm, image_size=20)
    weights = model / "model.safetensors"
    weights.write_bytes(twice(weights.read_bytes(), "boi"))
    with one_line("model.safetensors is truncated or no safetensors file (a key comes twice"):
        load_run(model)


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


def test_a_library_that_quotes_the_file_is_quoted_on_one_line(glm):
    file = shard(glm)
    file.write_bytes(file.read_bytes().replace(b'"F32"', b'"\\n "', 1))
    with one_line("unknown variant"):
        load_glm4v(glm, image_size=20)


def test_of_a_thousand_missing_tensors_a_hundred_are_named(glm):
    rewrite(glm, num_hidden_layers=1000)
    with pytest.raises(ValueError, match=r"; and 11888 more$") as raised:  # 12 a layer that is not there
        load_glm4v(glm, image_size=20)
    assert str(raised.value).count(" is missing") == 100


def test_a_tensors_name_may_hold_anything(glm):
    save_file(load_file(shard(glm)) | {PREFIX + "line\nbreak": torch.zeros(1)}, shard(glm))
    with one_line("line\\nbreak' is unexpected"):
        load_glm4v(glm, image_size=20)


# Kept models


@pytest.fixture(scope="module")
def small():
    return Run(compressor="te_fusion", k=2, n_input=4, size="32", encoder="tiny", init="scratch")


@pytest.fixture
def model(small, tmp_path):
    return write_model(tmp_path / "model", small)


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
