"""GLM-4V-9B's checkpoint: the released forward, complete, one tensor at a time; image weights for any method."""

import json
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from tefusion.compressors import COMPRESSORS
from tefusion.decoder import create_decoder
from tefusion.encoders import VisionConfig, released
from tefusion.encoders.patchify import resample_positions
from tefusion.encoders.weights import load_glm4v, load_image_weights, read_boundaries
from tefusion.tokenizer import byte_level_tokenizer
from tefusion.vision import create_video_encoder
from tefusion.vlm import VLM

P = "transformer.vision."
CONFIG = {
    "hidden_size": 24,
    "ffn_hidden_size": 40,
    "vision_config": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_heads": 2,
        "intermediate_size": 20,
        "patch_size": 4,
        "image_size": 20,
        "num_positions": 26,
        "in_channels": 3,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "scaling_factor": 8,
        "dropout_prob": 0.0,
    },
}


def released_state(config: dict = CONFIG) -> dict[str, torch.Tensor]:
    """Random tensors under the released names, at the shapes that the released table has at these sizes."""
    torch.manual_seed(0)
    vision, embed, glu = config["vision_config"], config["hidden_size"], config["ffn_hidden_size"]
    d, mlp, p = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    shapes = {
        "patch_embedding.proj.weight": (d, 3, p, p),
        "patch_embedding.proj.bias": (d,),
        "patch_embedding.cls_embedding": (1, d),
        "patch_embedding.position_embedding.weight": (vision["num_positions"], d),
        "conv.weight": (embed, d, 2, 2),
        "conv.bias": (embed,),
        "linear_proj.linear_proj.weight": (embed, embed),
        "linear_proj.norm1.weight": (embed,),
        "linear_proj.norm1.bias": (embed,),
        "linear_proj.gate_proj.weight": (glu, embed),
        "linear_proj.dense_h_to_4h.weight": (glu, embed),
        "linear_proj.dense_4h_to_h.weight": (embed, glu),
        "boi": (1, 1, embed),
        "eoi": (1, 1, embed),
    }
    for i in range(vision["num_hidden_layers"]):
        layer = f"transformer.layers.{i}."
        linears = {"attention.query_key_value": (3 * d, d), "attention.dense": (d, d)}
        linears |= {"mlp.fc1": (mlp, d), "mlp.fc2": (d, mlp)}
        for name, shape in linears.items():
            shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes |= {f"{layer}{name}.weight": (d,), f"{layer}{name}.bias": (d,)}
    return {P + name: torch.randn(shape) / math.sqrt(shape[-1]) for name, shape in shapes.items()}


def released_forward(state: dict[str, torch.Tensor], images: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The definition, written out with convolutions and functional ops: (n, 3, h, w) -> (n, boi + tokens + eoi, e)."""
    w = {name.removeprefix(P): tensor for name, tensor in state.items()}
    vision = CONFIG["vision_config"]
    d, heads = vision["hidden_size"], vision["num_heads"]

    def linear(x, name):
        return F.linear(x, w[name + ".weight"], w.get(name + ".bias"))

    x = F.conv2d(images, w["patch_embedding.proj.weight"], w["patch_embedding.proj.bias"], stride=vision["patch_size"])
    n, _, height, width = x.shape
    x = torch.cat([w["patch_embedding.cls_embedding"].expand(n, 1, d), x.flatten(2).transpose(1, 2)], 1) + positions
    for i in range(vision["num_hidden_layers"]):
        layer = f"transformer.layers.{i}."
        q, k, v = linear(x, layer + "attention.query_key_value").view(n, -1, 3, heads, d // heads).unbind(2)
        weights = torch.einsum("nqhd,nkhd->nhqk", q, k).div(math.sqrt(d // heads)).softmax(-1)
        y = linear(torch.einsum("nhqk,nkhd->nqhd", weights, v).flatten(2), layer + "attention.dense")
        for norm, name in ((y, "input_layernorm"), (None, "post_attention_layernorm")):
            y = linear(F.gelu(linear(x, layer + "mlp.fc1")), layer + "mlp.fc2") if norm is None else norm
            x = x + F.layer_norm(y, (d,), w[f"{layer}{name}.weight"], w[f"{layer}{name}.bias"], 1e-6)
    x = x[:, 1:].transpose(1, 2).reshape(n, d, height, width)
    x = F.conv2d(x, w["conv.weight"], w["conv.bias"], stride=2).flatten(2).transpose(1, 2)
    x = linear(x, "linear_proj.linear_proj")
    x = F.gelu(F.layer_norm(x, x.shape[-1:], w["linear_proj.norm1.weight"], w["linear_proj.norm1.bias"], 1e-5))
    x = F.silu(linear(x, "linear_proj.gate_proj")) * linear(x, "linear_proj.dense_h_to_4h")
    x = linear(x, "linear_proj.dense_4h_to_h")
    return torch.cat([w["boi"].expand(n, 1, -1), x, w["eoi"].expand(n, 1, -1)], 1) / vision["scaling_factor"]


def write(folder, state, shards=3, config=CONFIG):
    """A folder as it is released: config.json, shards and their index, with decoder tensors among the vision ones."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    state = state | {"transformer.encoder.layers.0.mlp.weight": torch.full((3,), torch.nan)}
    parts = [dict(list(state.items())[i::shards]) for i in range(shards)]
    index = {}
    for i, part in enumerate(parts, 1):
        name = f"model-{i:05}-of-{shards:05}.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in part.items()}, folder / name)
        index |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def close(ours, theirs, relative=1e-5):
    assert ours.shape == theirs.shape
    assert (ours - theirs).norm() <= relative * theirs.norm()


@pytest.fixture(scope="module")
def state():
    return released_state()


@pytest.fixture
def folder(tmp_path, state):
    return write(tmp_path / "glm4v", state)


@torch.no_grad()
def test_equals_the_released_forward(folder, state):
    images = torch.randn(2, 3, 20, 20)
    theirs = released_forward(state, images, state[P + "patch_embedding.position_embedding.weight"])
    boi, eoi = read_boundaries(folder)
    ours = load_glm4v(folder, image_size=20)(images[None])[0]
    close(torch.cat([boi.expand(2, 1, -1), ours, eoi.expand(2, 1, -1)], 1), theirs)


@pytest.mark.parametrize("size", [8, 12, 28])
@torch.no_grad()
def test_resampled_positions_equal_an_independent_resize(folder, state, size):
    images = torch.randn(1, 3, size, size)
    table = state[P + "patch_embedding.position_embedding.weight"]
    grid = table[1:].view(1, 5, 5, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (size // 4, size // 4), mode="bicubic", align_corners=False, antialias=True)
    positions = torch.cat([table[:1], grid.flatten(2)[0].T])
    encoder = load_glm4v(folder, image_size=size)
    assert encoder.tower.patchify.position.shape == (1 + (size // 4) ** 2, 16)
    close(encoder(images[None])[0], released_forward(state, images, positions)[:, 1:-1])


def test_positions_of_the_released_table_keep_cls_and_a_plane():
    """80 x 80 -> 16 x 16, and an oblong odd grid: a table that is linear in row and column stays so inside."""
    row, column = torch.meshgrid(torch.arange(80.0), torch.arange(80.0), indexing="ij")
    table = torch.cat([torch.tensor([[7.0, 9.0]]), torch.stack([row.flatten(), column.flatten()], 1)])
    for new in ((16, 16), (13, 7)):
        resampled = resample_positions(table, (80, 80), new)
        assert torch.equal(resampled[0], table[0])
        centres = [(torch.arange(n) + 0.5) * 80 / n - 0.5 for n in new]
        plane = torch.stack(torch.meshgrid(*centres, indexing="ij"), -1)[2:-2, 2:-2]
        torch.testing.assert_close(resampled[1:].view(*new, 2)[2:-2, 2:-2], plane, rtol=0, atol=2e-3)


@pytest.mark.parametrize(("compressor", "k"), [("te_fusion", 4), ("qwen2_vl", 4), ("pllava", 3), ("kangaroo", 2)])
@torch.no_grad()
def test_a_still_video_is_the_image(folder, compressor, k):
    image = torch.randn(1, 1, 3, 20, 20)
    baseline = load_glm4v(folder, image_size=20)(image)
    close(
        load_glm4v(folder, compressor, k, image_size=20)(image.expand(1, 2 * k, 3, 20, 20)),
        baseline.expand(1, 2, -1, -1),
    )


@pytest.mark.parametrize("compressor", sorted(COMPRESSORS))
def test_nothing_stays_on_meta_and_the_method_keeps_its_initial_values(folder, compressor):
    k = 1 if compressor == "none" else 2
    torch.manual_seed(5)
    encoder = load_glm4v(folder, compressor, k, image_size=20)
    assert {p.device.type for p in encoder.parameters()} == {"cpu"}
    assert all(p.requires_grad and p.isfinite().all() for p in encoder.parameters())
    torch.manual_seed(5)
    again = load_glm4v(folder, compressor, k, image_size=20)
    for name, parameter in encoder.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))


def test_precision_is_the_stored_one_or_the_asked_one(tmp_path, state):
    folder = write(tmp_path / "half", {key: t.bfloat16() for key, t in state.items()})
    for asked, given in ((None, torch.bfloat16), (torch.float32, torch.float32)):
        encoder = load_glm4v(folder, "te_fusion", 2, 20, asked)
        assert {p.dtype for p in encoder.parameters()} == {given}
        assert encoder(torch.randn(1, 2, 3, 20, 20).to(given)).dtype == given
        assert read_boundaries(folder, asked)[0].dtype == given


def test_one_file_without_an_index_does_as_well(tmp_path, folder, state):
    single = write(tmp_path / "single", state, shards=1)
    (single / "model.safetensors.index.json").unlink()
    (single / "model-00001-of-00001.safetensors").rename(single / "model.safetensors")
    ours, theirs = load_glm4v(single, image_size=20), load_glm4v(folder, image_size=20)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_one_error_names_every_tensor_that_does_not_fit(tmp_path, state):
    layer = P + "transformer.layers.1."
    broken = dict(state)
    del broken[P + "boi"], broken[layer + "mlp.fc1.bias"]
    broken[P + "surprise"] = torch.zeros(1)
    broken[P + "transformer.layers.2.mlp.fc1.bias"] = torch.zeros(20)
    broken[P + "conv.weight"] = torch.zeros(24, 16, 2, 3)
    broken[P + "eoi"] = torch.full((1, 1, 24), math.inf)
    broken[layer + "attention.dense.weight"] = torch.full((16, 16), math.nan)
    broken[P + "linear_proj.norm1.bias"] = torch.zeros(24, dtype=torch.int8)
    with pytest.raises(ValueError, match="does not fit") as error:
        load_glm4v(write(tmp_path / "broken", broken), image_size=20)
    for said in (
        f"{P}boi is missing",
        f"{layer}mlp.fc1.bias is missing",
        f"{P}surprise is unexpected",
        f"{P}transformer.layers.2.mlp.fc1.bias is unexpected",
        f"{P}conv.weight is (24, 16, 2, 3) instead of (24, 16, 2, 2)",
        f"{P}eoi is not finite",
        f"{layer}attention.dense.weight is not finite",
        f"{P}linear_proj.norm1.bias is stored as I8",
    ):
        assert said in str(error.value)
    assert str(error.value).count("; ") == 7  # and nothing else
    with pytest.raises(ValueError, match=r"boi is missing; .*eoi is not finite"):
        read_boundaries(tmp_path / "broken")


def test_what_is_wrong_with_files_is_said_in_the_same_error(folder, state):
    first, second, third = sorted(folder.glob("*.safetensors"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-9])
    kept = load_file(third)
    with pytest.raises(ValueError, match="is missing") as error:
        load_glm4v(folder, image_size=20)
    assert f"{first.name} is absent" in str(error.value)
    assert f"{second.name} is truncated" in str(error.value)
    assert str(error.value).count("is missing") == len(set(state) - kept.keys())


def test_a_tensor_in_two_shards_is_refused(folder, state):
    first = min(folder.glob("*.safetensors"))
    save_file(load_file(first) | {P + "eoi": state[P + "eoi"], P + "boi": state[P + "boi"]}, first)
    with pytest.raises(ValueError, match=r"vision\.\woi is both in model-0000\d.* and in model-0000\d"):
        load_glm4v(folder, image_size=20)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: (f / "config.json").unlink(), r"config\.json cannot be read"),
        (lambda f: (f / "config.json").write_text("{"), "is not JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "not a JSON object"),
        (lambda f: (f / "config.json").write_text('{"hidden_size": 1}'), "no vision_config"),
        (lambda f: rewrite(f, num_heads="two"), r"vision_config\.num_heads = 'two'"),
        (lambda f: rewrite(f, num_heads=3), "3 heads do not divide the width 16"),
        (lambda f: rewrite(f, scaling_factor=0), r"vision_config\.scaling_factor = 0"),
        (lambda f: rewrite(f, in_channels=1), r"vision_config\.in_channels = 1"),
        (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": 3}'), "no weight_map"),
    ],
)
def test_a_folder_that_is_no_glm4v(folder, change, said):
    change(folder)
    with pytest.raises(ValueError, match=said):
        load_glm4v(folder, image_size=20)


def rewrite(folder, **changes):
    config = CONFIG | {"vision_config": CONFIG["vision_config"] | changes}
    (folder / "config.json").write_text(json.dumps(config))


def test_an_image_smaller_than_a_merge_is_refused(folder):
    with pytest.raises(ValueError, match="image_size 7 is smaller"):
        load_glm4v(folder, image_size=7)


MEASURE = """
import sys, torch
from tefusion.encoders.weights import load_glm4v
def anonymous():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 2**10
def now():
    return int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0]) / 2**10
load_glm4v(sys.argv[1], image_size=20)  # what loading costs besides the parameters
open("/proc/self/clear_refs", "w").write("5")
before = now()
encoder = load_glm4v(sys.argv[2], image_size=20)
size = sum(p.numel() * p.element_size() for p in encoder.parameters()) / 2**20
largest = max(p.numel() * p.element_size() for p in encoder.parameters()) / 2**20
print(size, largest, anonymous() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_is_one_copy_and_one_tensor(tmp_path, folder):
    vision = CONFIG["vision_config"] | {"hidden_size": 256, "intermediate_size": 4096, "num_hidden_layers": 10}
    config = {"hidden_size": 256, "ffn_hidden_size": 512, "vision_config": vision}
    large = write(tmp_path / "large", released_state(config), config=config)
    run = subprocess.run([sys.executable, "-c", MEASURE, folder, large], capture_output=True, text=True, check=True)
    size, largest, peak = map(float, run.stdout.split())
    assert size > 80
    assert peak < size + largest + 12


def image_model(compressor="none", k=1):
    torch.manual_seed(1)
    encoder = create_video_encoder("tiny", compressor, k)
    return VLM(encoder, create_decoder("tiny"), byte_level_tokenizer([]))


@pytest.mark.parametrize("compressor", sorted(COMPRESSORS))
@torch.no_grad()
def test_any_method_starts_as_the_trained_image_model(compressor):
    k = 1 if compressor == "none" else 2
    image, video = image_model(), image_model(compressor, k)
    for parameter in image.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    own = {name: t.clone() for name, t in video.encoder.compressor.state_dict().items()}
    load_image_weights(video, image.state_dict())
    assert all(torch.equal(t, own[name]) for name, t in video.encoder.compressor.state_dict().items())
    assert torch.equal(video.boi, image.boi)
    assert all(torch.equal(*pair) for pair in zip(video.decoder.parameters(), image.decoder.parameters(), strict=True))
    method = video.encoder.compressor
    if method.starts_as_image and not method.never_still:
        still = torch.randn(1, 1, 3, 32, 32)
        close(video.encoder(still.expand(1, k, 3, 32, 32)), image.encoder(still))


def test_image_weights_that_do_not_fit_change_nothing():
    video, state = image_model("te_fusion", 2), image_model().state_dict()
    state = {name: torch.zeros_like(t) for name, t in state.items()}
    del state["boi"]
    state["extra"] = torch.zeros(1)
    state["encoder.tower.patchify.proj.weight"] = torch.zeros(64, 2 * 192)
    before = {name: t.clone() for name, t in video.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit") as error:
        load_image_weights(video, state)
    for said in ("boi is missing", "extra is unexpected", "proj.weight is (64, 384) instead of (64, 192)"):
        assert said in str(error.value)
    assert all(torch.equal(t, before[name]) for name, t in video.state_dict().items())


def test_released_names_are_those_of_the_table():
    """Every parameter of the full-size tower, by the released table's name and shape: 4.51 B parameters."""
    with torch.device("meta"):
        encoder = create_video_encoder("glm4v-9b")
    config = VisionConfig(1120, 14, 1792, 63, 16, 15360, 4096, 13696)
    shapes = {}
    for name, parameter in encoder.named_parameters():
        shapes[released.released_name(name)] = released.released_shape(name, parameter, config)
    assert len(shapes) == 63 * 12 + 12
    assert shapes[P + "transformer.layers.62.attention.query_key_value.weight"] == (5376, 1792)
    assert shapes[P + "transformer.layers.0.post_attention_layernorm.bias"] == (1792,)
    assert shapes[P + "patch_embedding.position_embedding.weight"] == (6401, 1792)
    assert shapes[P + "linear_proj.dense_4h_to_h.weight"] == (4096, 13696)
    total = sum(math.prod(shape) for shape in shapes.values())
    assert round(total / 1e9, 2) == 4.51
