"""Released checkpoints become our models and come back, bit by bit; the converted function is the released one."""

import base64
import json
import math
import re
import subprocess
import sys
import weakref
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from test_convert_towers import SIGLIP
from test_weights import CONFIG as VISION
from test_weights import P, released_forward, released_state
from transformers import AutoModelForImageTextToText, AutoProcessor, SiglipVisionConfig, SiglipVisionModel

from tefusion import cli
from tefusion.convert import convert, sources, stream, targets
from tefusion.convert.chatglm import decoder_config, decoder_moves
from tefusion.convert.glm4v import vision_moves
from tefusion.convert.tokenizer import PIECES, read_ranks, read_tokenizer
from tefusion.convert.writer import ShardWriter, record_of
from tefusion.encoders import VisionConfig
from tefusion.encoders.released import Checkpoint
from tefusion.hub import TEFusionConfig, TEFusionForConditionalGeneration, TEFusionVisionConfig
from tefusion.hub.loading import load_pretrained

QUIET = lambda text: None  # noqa: E731
GLM4V = VISION | {
    "architectures": ["ChatGLMModel"],
    "model_type": "chatglm",
    "auto_map": {"AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration"},
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "attention_softmax_in_fp32": True,
    "boi_token_id": 300,
    "eoi_token_id": 301,
    "eos_token_id": [266, 268],
    "pad_token_id": 266,
    "kv_channels": 8,
    "layernorm_epsilon": 1.5625e-07,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 4,
    "num_layers": 2,
    "original_rope": True,
    "padded_vocab_size": 280,
    "post_layer_norm": True,
    "rmsnorm": True,
    "rope_ratio": 50,
    "seq_length": 8192,
    "tie_word_embeddings": False,
}
SPECIAL = ["<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>"]


def chatglm_state(config=GLM4V):
    """Random tensors under ChatGLM's names."""
    torch.manual_seed(3)
    d, mlp, vocab = config["hidden_size"], config["ffn_hidden_size"], config["padded_vocab_size"]
    q, kv = (config["kv_channels"] * config[n] for n in ("num_attention_heads", "multi_query_group_num"))
    shapes = {"embedding.word_embeddings.weight": (vocab, d), "encoder.final_layernorm.weight": (d,)}
    shapes["output_layer.weight"] = (vocab, d)
    for i in range(config["num_layers"]):
        layer = f"encoder.layers.{i}."
        shapes |= {
            layer + "input_layernorm.weight": (d,),
            layer + "post_attention_layernorm.weight": (d,),
            layer + "self_attention.query_key_value.weight": (q + 2 * kv, d),
            layer + "self_attention.query_key_value.bias": (q + 2 * kv,),
            layer + "self_attention.dense.weight": (d, q),
            layer + "mlp.dense_h_to_4h.weight": (2 * mlp, d),
            layer + "mlp.dense_4h_to_h.weight": (d, mlp),
        }
    state = {f"transformer.{name}": torch.randn(shape) / math.sqrt(shape[-1]) for name, shape in shapes.items()}
    channels = config["kv_channels"] // 2
    state["transformer.rotary_pos_emb.inv_freq"] = 1 / 10000 ** (torch.arange(0, channels, 2).float() / channels)
    return state


def chatglm_forward(state, embeds, positions, config=GLM4V):
    """ChatGLM's decoder written out: (l, d) embeds at `positions` -> (l, vocab) logits."""
    w = {name.removeprefix("transformer."): tensor.to(embeds) for name, tensor in state.items()}
    dim, heads, groups = config["kv_channels"], config["num_attention_heads"], config["multi_query_group_num"]
    length = len(embeds)
    rotated = dim // 2
    theta = 1 / (10000 * config["rope_ratio"]) ** (torch.arange(0, rotated, 2).to(embeds) / rotated)
    angles = positions.to(embeds)[:, None] * theta
    turn = torch.polar(torch.ones_like(angles), angles)

    def norm(x, name):
        return w[name] * x * (x.pow(2).mean(-1, keepdim=True) + config["layernorm_epsilon"]).rsqrt()

    def rotate(x):
        pairs = torch.view_as_complex(x[..., :rotated].reshape(length, -1, rotated // 2, 2).contiguous())
        return torch.cat([torch.view_as_real(pairs * turn[:, None]).flatten(2), x[..., rotated:]], -1)

    x = embeds
    for i in range(config["num_layers"]):
        layer = f"encoder.layers.{i}."
        mixed = F.linear(
            norm(x, layer + "input_layernorm.weight"),
            w[layer + "self_attention.query_key_value.weight"],
            w[layer + "self_attention.query_key_value.bias"],
        )
        q, k, v = mixed.split([heads * dim, groups * dim, groups * dim], -1)
        q, k = rotate(q.view(length, heads, dim)), rotate(k.view(length, groups, dim))
        k, v = (t.view(length, groups, 1, dim).expand(-1, -1, heads // groups, -1).flatten(1, 2) for t in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(dim)
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
        attended = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)
        x = x + attended @ w[layer + "self_attention.dense.weight"].T
        gate, up = F.linear(
            norm(x, layer + "post_attention_layernorm.weight"), w[layer + "mlp.dense_h_to_4h.weight"]
        ).chunk(2, -1)
        x = x + (F.silu(gate) * up) @ w[layer + "mlp.dense_4h_to_h.weight"].T
    return norm(x, "encoder.final_layernorm.weight") @ w["output_layer.weight"].T


def write(folder: Path, state, config, shards=3):
    """As released: shards that cut through layers, their index, config.json."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    parts = [dict(list(state.items())[i::shards]) for i in range(shards)]
    index = {}
    for i, part in enumerate(parts, 1):
        name = f"model-{i:05}-of-{shards:05}.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in part.items()}, folder / name)
        index |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def write_tokenizer(folder: Path):
    """As GLM-4 ships it: ranks of byte strings, and the special tokens behind them."""
    words = [bytes([b]) for b in range(256)]
    words += [b" t", b"he", b" the", b"in", b"ing", b"th", b"the", b"wh", b"at", b"!!", b"xyzzy"]
    lines = [base64.b64encode(word).decode() + f" {rank}" for rank, word in enumerate(words)]
    (folder / "tokenizer.model").write_text("\n".join(reversed(lines)))
    added = {str(len(words) + i): {"content": token, "special": True} for i, token in enumerate(SPECIAL)}
    config = {"added_tokens_decoder": added, "pad_token": SPECIAL[0], "eos_token": SPECIAL[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def tensors(folder: Path):
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


@pytest.fixture(scope="module")
def state():
    return released_state() | chatglm_state()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, state):
    folder = write(tmp_path_factory.mktemp("released") / "glm-4v-9b", state, GLM4V)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def converted(tmp_path_factory, folder):
    out = tmp_path_factory.mktemp("ours") / "glm"
    convert(sources()["glm4v"], folder, out, QUIET)
    return out


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_converted_model_is_the_released_function(converted, state, dtype):
    """Logits of a text around two images, in the ids and at the positions of GLM-4V."""
    model = AutoModelForImageTextToText.from_pretrained(converted, dtype=dtype)
    videos = [torch.randn(1, 3, 20, 20, dtype=dtype), torch.randn(1, 3, 20, 20, dtype=dtype)]
    double = {name: tensor.to(dtype) for name, tensor in state.items()}
    table = double[P + "patch_embedding.position_embedding.weight"]
    place, text = model.config.video_token_id, torch.tensor([5, 9, 17, 40])
    shown = [released_forward(double, video, table)[0] for video in videos]
    words = double["transformer.embedding.word_embeddings.weight"][text]
    embeds = torch.cat([words[:1], shown[0], words[1:3], shown[1], words[3:]])
    block = [0, *[1] * (len(shown[0]) - 2), 2]
    positions = torch.tensor([0, *(1 + p for p in block), 4, 5, *(6 + p for p in block), 9])
    expected = chatglm_forward(double, embeds, positions)
    run = [place] * len(shown[0])
    ids = torch.tensor([[5, *run, 9, 17, *run, 40]])
    got = model(ids, pixel_values_videos=videos).logits[0]
    assert (got - expected).norm() < 2e-6 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_there_and_back_is_bit_exact(tmp_path, state, dtype):
    stored = {name: tensor.to(dtype) for name, tensor in state.items()}
    channels = GLM4V["kv_channels"] // 2
    stored["transformer.rotary_pos_emb.inv_freq"] = 1 / 10000 ** (torch.arange(0, channels, 2).to(dtype) / channels)
    there = write(tmp_path / "released", stored, GLM4V)
    stream.run(sources()["glm4v"](there), tmp_path / "ours", QUIET, shard=20_000)
    stream.run(targets()["glm4v"](tmp_path / "ours"), tmp_path / "back", QUIET, shard=30_000)
    back = tensors(tmp_path / "back")
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 2
    assert back.keys() == stored.keys()
    assert all(torch.equal(back[name], stored[name]) and back[name].dtype == dtype for name in stored)
    said, kept = json.loads((tmp_path / "back/config.json").read_text()), GLM4V
    known = said.keys() & kept.keys()
    assert {name: said[name] for name in known} == {name: kept[name] for name in known}
    assert known >= {"vision_config", "rope_ratio", "eos_token_id", "kv_channels", "padded_vocab_size"}
    stream.run(sources()["glm4v"](tmp_path / "back"), tmp_path / "again", QUIET)
    ours, again = tensors(tmp_path / "ours"), tensors(tmp_path / "again")
    assert ours.keys() == again.keys()
    assert all(torch.equal(ours[name], again[name]) for name in ours)


def test_the_folder_loads_with_its_processor(converted):
    model, processor = load_pretrained(converted)
    assert type(AutoProcessor.from_pretrained(converted)) is type(processor)
    assert model.config.vision_config.image_size == 20  # the table keeps the places that it had
    inputs = processor("[gMASK]<sop><|user|>\n<|video|>what?", videos=torch.zeros(2, 28, 20, 3, dtype=torch.uint8))
    assert inputs["input_ids"][0, 0] == 268
    new = model.generate(**processor.question("what?", torch.zeros(2, 28, 20, 3, dtype=torch.uint8)), max_new_tokens=3)
    assert new.shape[0] == 1
    asked = processor.apply_chat_template([{"role": "user", "content": "the thing"}], add_generation_prompt=True)
    assert asked == "[gMASK]<sop><|user|>\nthe thing<|assistant|>"
    assert (converted / "README.md").is_file()


def plain_bpe(ranks, text):
    """tiktoken's definition: in each piece the pair of lowest rank merges, until none has a rank."""
    regex = pytest.importorskip("regex")  # transformers brings it

    ids = []
    for piece in regex.findall(PIECES, text):
        parts = [bytes([b]) for b in piece.encode()]
        if piece.encode() in ranks:
            parts = [piece.encode()]
        while pairs := [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]:
            _, i = min(pairs)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [ranks[part] for part in parts]
    return ids


@pytest.mark.parametrize(
    "text",
    ["what is the thing!!", "thethe  in\n\n 12345 ing", "ÄÖ 漢字 it's", "whhewhat\tthing", "xyzzy xyzzy", "", " "],
)
def test_ranks_become_the_same_tokenizer(folder, text):
    tokenizer = read_tokenizer(folder)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids == plain_bpe(read_ranks(folder / "tokenizer.model"), text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode("<|user|>", add_special_tokens=False) == [270]


LAYER = "transformer.encoder.layers.1."


def test_one_error_names_every_tensor_and_nothing_is_left(tmp_path, state):
    broken = dict(state)
    del broken[P + "boi"], broken[LAYER + "mlp.dense_4h_to_h.weight"]
    broken["transformer.surprise"] = torch.zeros(1)
    broken[P + "conv.weight"] = torch.zeros(24, 16, 2, 3)
    broken[LAYER + "self_attention.query_key_value.bias"] = torch.zeros(63)
    broken["transformer.output_layer.weight"] = torch.full((280, 24), math.nan)
    broken[P + "eoi"] = torch.full((1, 1, 24), -math.inf)
    broken[P + "linear_proj.norm1.bias"] = torch.zeros(24, dtype=torch.int8)
    folder = write(tmp_path / "broken", broken, GLM4V)
    with pytest.raises(ValueError, match="does not fit") as error:
        convert(sources()["glm4v"], folder, tmp_path / "out", QUIET)
    for said in (
        f"{P}boi is missing",
        f"{LAYER}mlp.dense_4h_to_h.weight is missing",
        "transformer.surprise is unexpected",
        f"{P}conv.weight is (24, 16, 2, 3) instead of (24, 16, 2, 2)",
        f"{LAYER}self_attention.query_key_value.bias is (63,) instead of (64,)",
        "transformer.output_layer.weight is not finite",
        f"{P}eoi is not finite",
        f"{P}linear_proj.norm1.bias is stored as I8",
    ):
        assert said in str(error.value)
    assert str(error.value).count("; ") == 7  # and nothing else
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_a_number_found_not_finite_in_the_last_shard_leaves_nothing(tmp_path, state):
    """The headers are sound: shards were written before it is met."""
    broken = state | {LAYER + "mlp.dense_4h_to_h.weight": torch.full((24, 40), math.inf)}
    folder = write(tmp_path / "broken", broken, GLM4V)
    with pytest.raises(ValueError, match=r"dense_4h_to_h\.weight is not finite$"):
        stream.run(sources()["glm4v"](folder), tmp_path / "out", QUIET, shard=10_000)
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_boi_that_does_not_divide_exactly_is_refused(tmp_path, state):
    """The smallest number of half precision has no eighth."""
    half = {name: tensor.half() for name, tensor in state.items()}
    half[P + "boi"] = torch.full((1, 1, 24), 2.0**-24, dtype=torch.half)
    folder = write(tmp_path / "half", half, GLM4V)
    with pytest.raises(ValueError, match=r"boi divided by 8 is not exact in torch\.float16"):
        convert(sources()["glm4v"], folder, tmp_path / "out", QUIET)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"multi_query_attention": False}, "multi_query_attention = False"),
        ({"add_bias_linear": True}, "add_bias_linear = True"),
        ({"num_layers": 1 << 20}, "num_layers = 1048576"),
        ({"num_layers": "two"}, "num_layers = 'two'"),
        ({"kv_channels": 6}, "kv_channels = 6"),
        ({"multi_query_group_num": 3}, "multi_query_group_num = 3"),
        ({"rope_ratio": 0}, "rope_ratio = 0"),
        ({"vision_config": None}, "no vision_config"),
    ],
)
def test_a_configuration_of_something_else_is_refused(tmp_path, change, says):
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(GLM4V | change))
    with pytest.raises(ValueError, match=says):
        sources()["glm4v"](folder)


def test_hashes_are_held_against_what_is_known(tmp_path, folder, converted, state):
    shards = sorted(folder.glob("*.safetensors"))
    lines = [f"{record_of(path).sha256}  {path.name}\n" for path in shards]
    (tmp_path / "sums").write_text("".join(lines))
    convert(sources()["glm4v"], folder, tmp_path / "sound", QUIET, tmp_path / "sums")
    wrong = lines[1].replace(lines[1][0], "0" if lines[1][0] != "0" else "1", 1)
    for sums, says in (
        ([lines[0], wrong, lines[2]], f"{shards[1].name} is damaged"),
        (lines[:2], f"{shards[2].name} is not in the list"),
        (["nonsense"], "line 1: 'nonsense' is no line of sha256sum"),
    ):
        (tmp_path / "sums").write_text("".join(sums))
        with pytest.raises(ValueError, match=says):
            convert(sources()["glm4v"], folder, tmp_path / "out", QUIET, tmp_path / "sums")
    ours = tmp_path / "sound/model.safetensors"
    data = bytearray(ours.read_bytes())
    data[-2] ^= 1  # one bit of one number
    ours.write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        convert(targets()["glm4v"], tmp_path / "sound", tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_writes_something_else_is_noticed(tmp_path, folder, monkeypatch):
    honest = ShardWriter.close

    def forgetful(writer):
        record = honest(writer)
        path = Path(writer.file.name)
        path.write_bytes(path.read_bytes()[:-1] + b"\7")
        return record

    monkeypatch.setattr(ShardWriter, "close", forgetful)
    with pytest.raises(ValueError, match=r"model\.safetensors is not what was written"):
        convert(sources()["glm4v"], folder, tmp_path / "out", QUIET)
    assert not any(tmp_path.iterdir())


def test_a_folder_that_is_there_stays(tmp_path, folder):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("kept")
    with pytest.raises(ValueError, match="is there already"):
        convert(sources()["glm4v"], folder, tmp_path / "out", QUIET)
    assert (tmp_path / "out/mine").read_text() == "kept"


def test_only_glm4vs_parts_become_glm4v(tmp_path, converted):
    config = json.loads((converted / "config.json").read_text())
    for change, says in (
        ({"compressor": "te_fusion", "k": 4}, "compressor te_fusion, k = 4"),
        ({"model_type": "llava"}, "its model_type is 'llava'"),
        ({"text_config": config["text_config"] | {"attention_bias": False}}, "attention_bias = False"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=says):
            targets()["glm4v"](tmp_path)


def test_the_command_says_how_far_it_is(tmp_path, folder, capsys):
    assert cli.run("convert", ["from=glm4v", f"path={folder}", f"out={tmp_path / 'ours'}"]) == 0
    said = capsys.readouterr().out
    assert "hash 3/3 model-00003-of-00003.safetensors" in said
    assert "write 1/1 model.safetensors: " in said
    assert cli.run("convert", ["to=glm4v", f"path={tmp_path / 'ours'}", f"out={tmp_path / 'back'}"]) == 0
    theirs, back = tensors(folder), tensors(tmp_path / "back")
    assert all(torch.equal(theirs[name], back[name]) for name in theirs)


def test_the_guides_commands_run(tmp_path, folder, monkeypatch):
    guide = (Path(__file__).parents[1] / "docs/conversion.md").read_text(encoding="utf-8")
    (commands,) = re.findall(r"```bash\n(.*?)```", guide, re.DOTALL)
    (tmp_path / "glm-4v-9b").symlink_to(folder)
    SiglipVisionModel(SiglipVisionConfig(**SIGLIP)).save_pretrained(tmp_path / "siglip-base-patch16-224")
    monkeypatch.chdir(tmp_path)
    for command in commands.splitlines():
        program, name, *words = command.split()
        assert (program, cli.run(name, words)) == ("tefusion", 0)
    (snippet,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    names = {}
    exec(compile(snippet, "docs/conversion.md", "exec"), names)
    assert names["features"].shape == (1, 8, 16, 32)
    assert names["embeds"].shape == (1, 2, 4, 32)


MEASURE = """
import sys, torch
from pathlib import Path
from tefusion.convert import sources, stream
def read(name):
    return int(open("/proc/self/status").read().split(name)[1].split()[0]) / 2**10
small, large, out = map(Path, sys.argv[1:])
stream.run(sources()["glm4v"](small), out / "small", lambda text: None)
open("/proc/self/clear_refs", "w").write("5")
before = read("VmRSS:")
stream.run(sources()["glm4v"](large), out / "large", lambda text: None, shard=16 << 20)
print(read("VmHWM:") - before)
"""


def test_tensors_are_let_go_before_the_next_are_read(tmp_path, folder, monkeypatch):
    alive, most, read = [], [], Checkpoint.tensor

    def watched(checkpoint, key):
        tensor = read(checkpoint, key)
        alive[:] = [*(ref for ref in alive if ref() is not None), weakref.ref(tensor)]
        most.append(len(alive))
        return tensor

    monkeypatch.setattr(Checkpoint, "tensor", watched)
    convert(sources()["glm4v"], folder, tmp_path / "out", QUIET)
    assert len(most) > 40
    assert max(most) <= 2


@pytest.mark.heavy
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_holds_a_tensor_and_never_the_model(tmp_path, folder):
    config = GLM4V | {"hidden_size": 256, "ffn_hidden_size": 2048, "num_layers": 8}
    state = released_state(config) | chatglm_state(config)
    size = sum(t.nbytes for t in state.values()) / 2**20
    largest = max(t.nbytes for t in state.values()) / 2**20
    large = write(tmp_path / "large", state, config)
    command = [sys.executable, "-c", MEASURE, folder, large, tmp_path / "out"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert size > 50
    assert float(run.stdout) < 2 * largest + 12


def test_at_the_released_size_every_parameter_has_its_place():
    """13.9 B numbers in 1,213 tensors of ours, made of 1,053 of the release."""
    sizes = {"num_layers": 40, "hidden_size": 4096, "ffn_hidden_size": 13696, "num_attention_heads": 32}
    sizes |= {"multi_query_group_num": 2, "kv_channels": 128, "padded_vocab_size": 151552}
    vision, text = VisionConfig(1120, 14, 1792, 63, 16, 15360, 4096, 13696), decoder_config(GLM4V | sizes, "x")
    moves = [*vision_moves(vision), *decoder_moves(text)]
    ours = {slot.name: slot.shape for move in moves for slot in move.targets}
    theirs = {slot.name: slot.shape for move in moves for slot in move.sources}
    with torch.device("meta"):
        model = TEFusionForConditionalGeneration(
            TEFusionConfig(vision_config=TEFusionVisionConfig.of(vision), text_config=text)
        )
    assert ours == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert (len(ours), len(theirs)) == (1213, 1053)
    assert theirs["transformer.encoder.layers.39.self_attention.query_key_value.weight"] == (4608, 4096)
    assert theirs["transformer.encoder.layers.0.mlp.dense_h_to_4h.weight"] == (27392, 4096)
    assert round(sum(math.prod(shape) for shape in ours.values()) / 1e9, 1) == 13.9
