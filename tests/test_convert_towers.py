"""Towers of others become ours: the same features, bit by bit the same numbers, and any compressor around them."""

import json
from random import Random

import pytest
import timm
import torch
from mutate import damage_json
from safetensors.torch import load_file, save_file
from test_weights import CONFIG, P, released_forward, released_state
from transformers import AutoConfig, AutoModel, SiglipConfig, SiglipModel, SiglipVisionConfig, SiglipVisionModel

from tefusion.convert import convert, sources, targets
from tefusion.convert.chatglm import decoder_config
from tefusion.hub import TEFusionConfig, TEFusionVisionConfig, TEFusionVisionModel
from tefusion.hub.loading import load_tower

QUIET = lambda text: None  # noqa: E731
COGVLM2 = {name: value for name, value in CONFIG.items() if name != "ffn_hidden_size"} | {"intermediate_size": 40}
COGVLM2["vision_config"] = {n: v for n, v in CONFIG["vision_config"].items() if n != "scaling_factor"}
SIGLIP = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 52}
SIGLIP |= {"image_size": 32, "patch_size": 8}
TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def save(folder, state, config):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    return folder


def perturbed(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def cogvlm2(folder):
    """The tower's names below `model.vision.`, with the projector and a decoder's tensor that stay where they are."""
    state = released_state()
    theirs = {name.replace(P, "model.vision."): tensor for name, tensor in state.items()}
    theirs["model.vision.conv.weight"] = torch.zeros(16, 16, 2, 2)
    theirs["model.vision.linear_proj.linear_proj.weight"] = torch.zeros(24, 16)
    theirs["model.layers.0.self_attn.q_proj.weight"] = torch.full((2, 2), torch.nan)

    return save(folder, theirs, COGVLM2), lambda images: released_features(state, images)


def released_features(state, images):
    """The released forward up to the merge, read from what its convolution would see."""
    seen = []
    honest = torch.nn.functional.conv2d

    def spy(x, *args, **kwargs):
        seen.append(x)
        return honest(x, *args, **kwargs)

    torch.nn.functional.conv2d = spy
    try:
        released_forward(state, images, state[P + "patch_embedding.position_embedding.weight"])
    finally:
        torch.nn.functional.conv2d = honest
    return seen[1].flatten(2).transpose(1, 2)


def timms(name, **args):
    def make(folder):
        model = perturbed(timm.create_model(name, num_classes=5, **args))
        config = {"architecture": f"{name}.some_tag", "model_args": args, "num_classes": 5, "pretrained_cfg": {}}
        save(folder, model.state_dict(), config)
        return folder, lambda images: model.forward_features(images)[:, model.num_prefix_tokens :]

    return make


def siglip_tower(folder):
    model = perturbed(SiglipVisionModel(SiglipVisionConfig(**SIGLIP)))
    model.save_pretrained(folder)
    return folder, lambda images: model(images).last_hidden_state


def siglip_whole(folder):
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 40}
    model = perturbed(SiglipModel(SiglipConfig(vision_config=SIGLIP, text_config=text | {"vocab_size": 20})))
    model.save_pretrained(folder)
    return folder, lambda images: model.vision_model(images).last_hidden_state


MADE = {
    "cogvlm2_video": ("cogvlm2_video", cogvlm2, 20),
    "timm": ("timm", timms("vit_tiny_patch16_224", **TIMM), 32),
    "timm with registers": ("timm", timms("vit_small_patch14_reg4_dinov2", **TIMM), 32),
    "timm siglip": ("timm", timms("vit_base_patch16_siglip_224", **TIMM), 32),
    "siglip": ("siglip", siglip_tower, 32),
    "whole siglip": ("siglip", siglip_whole, 32),
}


@pytest.fixture(params=MADE)
def made(request, tmp_path):
    kind, make, size = MADE[request.param]
    folder, features = make(tmp_path / "theirs")
    return kind, folder, features, size


@torch.no_grad()
def test_a_tower_gives_its_features_and_takes_a_compressor(made, tmp_path):
    kind, folder, features, size = made
    convert(sources()[kind], folder, tmp_path / "ours", QUIET)
    model = AutoModel.from_pretrained(tmp_path / "ours")
    assert type(model) is TEFusionVisionModel
    images = torch.randn(4, 3, size, size)
    expected = features(images)
    got = model(images[None]).last_hidden_state[0]
    assert got.shape == expected.shape
    assert (got - expected).norm() < 1e-5 * expected.norm()
    encoder = model.video_encoder("qwen2_vl", 2)
    still = encoder.encode(images[:1, None].expand(1, 4, 3, size, size))[0, :, 0].flatten(1, 2)
    assert (still - expected[:1]).norm() < 1e-5 * still.norm()


def test_every_number_is_the_same_and_goes_back(made, tmp_path):
    kind, folder, _, _ = made
    convert(sources()[kind], folder, tmp_path / "ours", QUIET)
    theirs, ours = load_file(folder / "model.safetensors"), load_file(tmp_path / "ours/model.safetensors")
    plan = sources()[kind](folder)
    returned = {}
    for move in plan.moves:
        tensors = move.back.carry([ours[slot.name] for slot in move.targets])
        returned |= {slot.name: tensor for slot, tensor in zip(move.sources, tensors, strict=True)}
    assert all(torch.equal(returned[name], theirs[name]) for name in returned)
    inside = {name for name in theirs if name.startswith(plan.checkpoint.prefix)}
    assert {name for name in inside - returned.keys() if not plan.left_out(name)} == set()
    assert ours.keys() == load_tower(tmp_path / "ours").state_dict().keys()


def test_one_error_names_what_does_not_fit(made, tmp_path):
    kind, folder, _, _ = made
    file = folder / "model.safetensors"
    state = load_file(file)
    moved = [slot.name for move in sources()[kind](folder).moves for slot in move.sources]
    del state[moved[0]]
    state[moved[1]] = state[moved[1]] * torch.nan
    state[moved[2]] = torch.zeros(2, 3, 5)
    state[sources()[kind](folder).checkpoint.prefix + "surprise"] = torch.zeros(1)
    save_file(state, file)
    with pytest.raises(ValueError, match="does not fit") as error:
        convert(sources()[kind], folder, tmp_path / "ours", QUIET)
    said = (f"{moved[0]} is missing", f"{moved[1]} is not finite", f"{moved[2]} is (2, 3, 5) instead", "unexpected")
    assert all(part in str(error.value) for part in said)
    assert str(error.value).count("; ") == 3
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("kind", "config", "says"),
    [
        ("timm", {"architecture": "resnet50"}, "only timm's VisionTransformer"),
        ("timm", {"architecture": 5}, "names no architecture"),
        (
            "timm",
            {"architecture": "vit_tiny_patch16_224", "model_args": {"num_heads": 5}},
            "of these sizes: dim should be divisible",
        ),
        (
            "timm",
            {"architecture": "vit_tiny_patch16_224", "model_args": {"class_token": False}},
            "model_args class_token = False cannot be taken over",
        ),
        ("timm", {"architecture": "vit_tiny_patch16_224", "model_args": {"depth": 1 << 30}}, "depth = 1073741824"),
        ("siglip", {"model_type": "clip"}, "its model_type is 'clip'"),
        ("siglip", {"model_type": "siglip", "vision_config": {"hidden_act": "gelu"}}, "hidden_act = 'gelu'"),
        ("siglip", {"model_type": "siglip", "vision_config": {"hidden_size": "big"}}, "does not describe a SigLIP"),
        ("cogvlm2_video", COGVLM2 | {"intermediate_size": None}, "ffn_hidden_size = None"),
    ],
)
def test_a_configuration_of_something_else_is_refused(tmp_path, kind, config, says):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=says):
        sources()[kind](tmp_path)


def test_a_tower_that_was_saved_again_is_the_same(tmp_path):
    folder, _ = timms("vit_tiny_patch16_224", **TIMM)(tmp_path / "theirs")
    convert(sources()["timm"], folder, tmp_path / "ours", QUIET)
    model = load_tower(tmp_path / "ours")
    model.save_pretrained(tmp_path / "again")
    assert AutoConfig.from_pretrained(tmp_path / "again").sizes == model.config.sizes
    again = load_tower(tmp_path / "again").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())
    state = load_file(tmp_path / "again/model.safetensors")
    save_file({n: t for n, t in state.items() if "tower.norm" not in n}, tmp_path / "again/model.safetensors")
    with pytest.raises(ValueError, match=r"tower\.norm\.weight is missing"):
        load_tower(tmp_path / "again")


@pytest.mark.parametrize("kind", ["glm4v", "cogvlm2_video", "timm", "siglip", "back"])
def test_a_damaged_configuration_is_one_line_or_a_plan(tmp_path, kind):
    """Twenty of each; `make fuzz` damages the weights of the same reader."""
    from test_convert import GLM4V  # it needs this file too

    rng = Random(7)
    glm4v = json.loads(json.dumps(GLM4V))
    good = {"glm4v": glm4v, "cogvlm2_video": COGVLM2, "timm": {"architecture": "vit_tiny_patch16_224"}}
    good["timm"] |= {"model_args": TIMM}
    good["siglip"] = {"model_type": "siglip_vision_model", **SIGLIP}
    plan = targets()["glm4v"] if kind == "back" else sources()[kind]
    if kind == "back":
        vision = TEFusionVisionConfig(embed_dim=24, glu=40)
        text = decoder_config(glm4v, "config.json")
        TEFusionConfig(vision_config=vision, text_config=text).save_pretrained(tmp_path)
        good["back"] = json.loads((tmp_path / "config.json").read_text())
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    refused = 0
    for _ in range(20):
        (tmp_path / "config.json").write_bytes(damage_json(rng, json.dumps(good[kind]).encode()))
        try:
            assert plan(tmp_path).moves
        except ValueError:
            refused += 1
    assert 0 < refused < 20
