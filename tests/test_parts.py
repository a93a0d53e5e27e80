"""Parts published elsewhere, under their names: ours give what the published modules give."""

import json
from types import SimpleNamespace

import pytest
import torch
from contract import perturb
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import nn

from tefusion.compressors import Clip
from tefusion.convert.parts import load_moonvit, load_qwen2_vl, load_stc

WIDTH, EMBED = 32, 20


def save(folder, state, config=None):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {}))
    save_file(
        {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}, folder / "model.safetensors"
    )
    return folder


def near(ours, theirs, relative=1e-5):
    assert ours.shape == theirs.shape
    assert (ours - theirs).norm() <= relative * theirs.norm()


def neighbours(tensor, heads):
    """From transformers' order of a head's channels, all first halves of pairs before all second, to the published."""
    return rearrange(tensor, "(heads two pairs) ... -> (heads pairs two) ...", heads=heads, two=2)


@pytest.fixture
def kimi(tmp_path):
    kimi = pytest.importorskip("transformers.models.kimi_k25.modeling_kimi_k25", reason="came with transformers 5.2x")
    config = kimi.Kimi_K25VisionConfig(
        patch_size=4,
        pos_emb_height=6,
        pos_emb_width=6,
        num_attention_heads=2,
        num_hidden_layers=2,
        hidden_size=WIDTH,
        intermediate_size=52,
    )
    text = SimpleNamespace(hidden_size=EMBED)
    sizes = SimpleNamespace(
        vision_config=config, projection_hidden_size=WIDTH, projection_layer_norm_eps=1e-5, text_config=text
    )
    torch.manual_seed(0)
    tower, projector = kimi.Kimi_K25VisionModel(config), kimi.Kimi_K25MultimodalProjection(sizes)
    perturb(tower).eval(), perturb(projector)
    state = {"language_model.model.norm.weight": torch.full((3,), torch.nan)}
    own = dict(tower.named_parameters())
    for i in range(2):
        for leaf in ("weight", "bias"):
            q, k, v = (own.pop(f"layers.{i}.attn.{part}_proj.{leaf}") for part in "qkv")
            fused = torch.cat([neighbours(q, 2), neighbours(k, 2), v])
            state[f"vision_tower.encoder.blocks.{i}.wqkv.{leaf}"] = fused
    for name, tensor in own.items():
        for ours, published in (
            ("layers.", "encoder.blocks."),
            ("final_layernorm", "encoder.final_layernorm"),
            (".norm1", ".norm0"),
            (".norm2", ".norm1"),
            (".attn.proj", ".wo"),
            ("mlp.fc1", "mlp.fc0"),
            ("mlp.fc2", "mlp.fc1"),
            ("pos_emb.position_embeddings", "pos_emb.weight"),
        ):
            name = name.replace(ours, published)
        state[f"vision_tower.{name}"] = tensor
    for name, tensor in projector.named_parameters():
        state["mm_projector." + name.replace("in_proj", "proj.0").replace("out_proj", "proj.2")] = tensor
    folder = save(tmp_path / "kimi", state, {"vision_config": {"vt_num_attention_heads": 2}})

    def run(frames):
        """(t, 3, height, width) in one group -> the embeds of its patches."""
        patches = rearrange(frames, "t c (h p) (w q) -> (t h w) c p q", p=4, q=4)
        grid = torch.tensor([[len(frames), frames.shape[2] // 4, frames.shape[3] // 4]])
        return projector(tower(patches, grid_thw=grid).pooler_output).squeeze(1)

    return folder, run


@pytest.mark.parametrize("size", [(24, 24), (16, 24), (40, 32)])
@pytest.mark.parametrize("k", [1, 3, 4])
@torch.no_grad()
def test_kimis_tower_is_a_setting_of_te_fusion(kimi, k, size):
    folder, published = kimi
    encoder = load_moonvit(folder, k)
    video = torch.randn(1, 2 * k, 3, *size)
    expected = torch.stack([published(group) for group in video[0].split(k)])
    near(encoder(video)[0], expected.flatten(1, -2))


@torch.no_grad()
def test_the_size_of_another_video_leaves_no_trace(kimi):
    encoder = load_moonvit(kimi[0], 2)
    video = torch.randn(1, 2, 3, 16, 24)
    before = encoder(video)
    encoder(torch.randn(1, 2, 3, 24, 16))
    assert torch.equal(encoder(video), before)


def test_gradients_under_checkpointing_are_those_without(kimi):
    encoder = load_moonvit(kimi[0], 2)
    wide, tall = torch.randn(1, 2, 3, 16, 24), torch.randn(1, 2, 3, 24, 16)

    def gradients(recompute):
        encoder.zero_grad()
        for block in encoder.tower.blocks:
            block.recompute = recompute
        (encoder(wide).square().sum() + encoder(tall).square().sum()).backward()
        return [parameter.grad.clone() for parameter in encoder.parameters()]

    plain = gradients(None)
    for recompute in ("reentrant", "non_reentrant"):
        for a, b in zip(gradients(recompute), plain, strict=True):
            torch.testing.assert_close(a, b)


@pytest.fixture
def qwen(tmp_path):
    from transformers.models.qwen2_vl.modeling_qwen2_vl import PatchEmbed, PatchMerger

    torch.manual_seed(0)
    embed, merger = perturb(PatchEmbed(4, 2, 3, WIDTH)), perturb(PatchMerger(EMBED, WIDTH))
    state = {f"visual.patch_embed.{name}": tensor for name, tensor in embed.state_dict().items()}
    state |= {f"visual.merger.{name}": tensor for name, tensor in merger.state_dict().items()}
    state |= {"visual.blocks.0.norm1.weight": torch.ones(3), "model.norm.weight": torch.full((3,), torch.nan)}
    return save(tmp_path / "qwen", state), embed, merger


@torch.no_grad()
def test_qwen2_vls_patches_and_merger(qwen):
    folder, embed, merger = qwen
    parts = load_qwen2_vl(folder)
    video = torch.randn(1, 4, 3, 16, 24)
    # Qwen's processor puts the four patches of a merge behind each other.
    patches = rearrange(video[0], "(g k) c (h m p) (w n q) -> (g h w m n) (c k p q)", k=2, m=2, n=2, p=4, q=4)
    expected = embed(patches)
    ours = rearrange(parts.compressor.pixels(video), "1 g kc (h p) (w q) -> g h w (kc p q)", p=4, q=4)
    ours = parts.patches(ours)
    near(rearrange(ours, "g (h m) (w n) d -> (g h w m n) d", m=2, n=2), expected)
    near(rearrange(parts.merger(ours), "g h w e -> (g h w) e"), merger(expected))


class Connector(nn.Module):
    """VideoLLaMA2's STC as its paper's code describes it, with VideoLLaMA2.1's padding of none."""

    def __init__(self, k, layers=2):
        from timm.layers import LayerNorm2d
        from timm.models.regnet import RegStage

        super().__init__()
        kind = {"stride": 1, "dilation": 1, "act_layer": nn.SiLU, "norm_layer": LayerNorm2d}
        self.s1 = RegStage(layers, WIDTH, EMBED, **kind)
        self.sampler = nn.Sequential(nn.Conv3d(EMBED, EMBED, (k, 2, 2), (k, 2, 2)), nn.SiLU())
        self.s2 = RegStage(layers, EMBED, EMBED, **kind)
        self.readout = nn.Sequential(nn.Linear(EMBED, EMBED), nn.GELU(), nn.Linear(EMBED, EMBED))

    def forward(self, x):
        batch = len(x)
        x = self.s1(rearrange(x, "b t h w d -> (b t) d h w"))
        x = self.sampler(rearrange(x, "(b t) d h w -> b d t h w", b=batch))
        x = self.s2(rearrange(x, "b d t h w -> (b t) d h w"))
        return self.readout(rearrange(x, "(b t) d h w -> b t h w d", b=batch))


@pytest.fixture
def stc(request, tmp_path):
    """`request.param` frames are joined, two where nothing is said."""
    torch.manual_seed(0)
    k = getattr(request, "param", 2)
    connector = perturb(Connector(k)).eval()
    state = {f"model.mm_projector.{name}": tensor for name, tensor in connector.state_dict().items()}
    return save(tmp_path / "stc", state | {"model.norm.weight": torch.full((3,), torch.nan)}), connector, k


@torch.no_grad()
@pytest.mark.parametrize("stc", [1, 2, 4], indirect=True)
def test_videollama2s_connector(stc):
    folder, connector, k = stc
    compressor, readout = load_stc(folder)
    assert compressor.k == k
    x = torch.randn(2, 2, k, 5, 6, WIDTH)
    clip = Clip(5, 6, torch.arange(2.0 * k).expand(2, -1))
    near(compressor.project(x, readout, clip), connector(rearrange(x, "b g k h w d -> b (g k) h w d")), 1e-4)


@pytest.mark.parametrize(
    ("load", "made", "prefix"),
    [
        (load_moonvit, "kimi", "vision_tower."),
        (load_qwen2_vl, "qwen", "visual.merger."),
        (load_stc, "stc", "model.mm_projector.s2."),
    ],
)
def test_one_error_names_every_tensor_that_does_not_fit(load, made, prefix, request):
    folder = request.getfixturevalue(made)[0]
    state = load_file(folder / "model.safetensors")
    first, second, third = sorted(name for name in state if name.startswith(prefix) and name.endswith("bias"))[:3]
    del state[first]
    state[second] *= torch.inf
    state[third] = torch.zeros(3, 3)
    state[prefix + "surprise"] = torch.zeros(1)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match="does not fit") as error:
        load(folder)
    for said in (
        f"{first} is missing",
        f"{second} is not finite",
        f"{third} is (3, 3) instead of",
        f"{prefix}surprise is unexpected",
    ):
        assert said in str(error.value)
    assert str(error.value).count("; ") == 3


def test_what_says_nothing_of_sizes_is_refused(kimi):
    folder, _ = kimi
    for heads in (None, 3, "two"):
        (folder / "config.json").write_text(json.dumps({"vision_config": {"vt_num_attention_heads": heads}}))
        with pytest.raises(ValueError, match="attention heads do not divide 32 channels"):
            load_moonvit(folder)
    for name, value in (("projector_ln_eps", 1e-6), ("mm_projector_type", "patchmergerv2"), ("merge_type", 3)):
        said = {"vt_num_attention_heads": 2, "merge_kernel_size": [2, 2], name: value}
        (folder / "config.json").write_text(json.dumps({"vision_config": said}))
        with pytest.raises(ValueError, match=f"does not describe Kimi K2.5's tower: {name} = "):
            load_moonvit(folder)
    (folder / "config.json").write_text(json.dumps({"vision_config": {"vt_num_attention_heads": 2}}))
    state = load_file(folder / "model.safetensors")
    del state["vision_tower.patch_embed.pos_emb.weight"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"pos_emb\.weight is missing"):
        load_moonvit(folder)
