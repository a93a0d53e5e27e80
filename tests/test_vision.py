"""The tower is GLM-4V's, the methods before and inside it are the sources' formulas, one seed makes one tower."""

import pytest
import torch
import torch.nn.functional as F
from contract import SIZES, TINY, Create, perturb, video
from einops import rearrange, repeat

import tefusion
from tefusion.compressors import COMPRESSORS, Compressor
from tefusion.encoders.patchify import resample_positions
from tefusion.encoders.weights import widened
from tefusion.vision import MEAN, STD, clip_of, create_video_encoder, pixels


def glm4v(weights, x, heads, frames=1, grid=(4, 4)):
    """The released forward pass in plain functions, over rows of `frames` frames: b t 3 H W -> b t h w d."""
    p, batch = TINY["patch_size"], len(x)
    kernel = rearrange(weights["patchify.proj.weight"], "d (c p q) -> d c p q", p=p, q=p)
    x = F.conv2d(x.flatten(0, 1), kernel, weights["patchify.proj.bias"], stride=p)
    h, w = x.shape[-2:]
    x = torch.cat([repeat(weights["patchify.cls"], "1 d -> s 1 d", s=len(x)), x.flatten(2).mT], dim=1)
    x = rearrange(x + weights["patchify.position"], "(r f) n d -> r (f n) d", f=frames)
    for i in range(TINY["depth"]):
        block = {name.removeprefix(f"blocks.{i}."): value for name, value in weights.items()}
        x = x + norm(block, "norm1", attention(block, x, heads))
        y = F.gelu(linear(block, "mlp.0", x))
        x = x + norm(block, "norm2", linear(block, "mlp.2", y))
    x = rearrange(x, "r (f n) d -> (r f) n d", f=frames)[:, 1:]
    return rearrange(x, "(b t) (h w) d -> b t h w d", b=batch, h=h, w=w)


def linear(weights, name, x):
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def norm(weights, name, x):
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6)


def attention(weights, x, heads):
    """qkv is (three, heads, head width); no mask; scale head width ** -0.5."""
    q, k, v = linear(weights, "attention.qkv", x).unflatten(-1, (3, heads, -1)).unbind(2)
    scores = torch.einsum("rihd,rjhd->rhij", q, k) * q.shape[-1] ** -0.5
    return linear(weights, "attention.out", torch.einsum("rhij,rjhd->rihd", scores.softmax(-1), v).flatten(2))


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
def test_the_tower_is_glm4vs(size):
    encoder, clip = Create("none").perturbed(1, size), video(3, size, batch=2)
    features = glm4v(encoder.tower.state_dict(), clip, TINY["heads"])
    assert torch.allclose(encoder.encode(clip).squeeze(2), features, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_te_fusion_is_glm4v_over_rows_of_k_frames():
    encoder, clip = Create("te_fusion")(4), video(8, batch=2)
    perturb(encoder).compressor.position.zero_()
    features = glm4v(encoder.tower.state_dict(), clip, TINY["heads"], frames=4)
    assert torch.allclose(encoder.encode(clip).flatten(1, 2), features, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_te_fusions_position_is_added_to_every_token_of_its_frame():
    encoder, x = Create("te_fusion").perturbed(4), torch.randn(1, 8, 5, TINY["width"])
    seen = encoder.compressor.encode(x, torch.nn.ModuleList(), clip_of(x, 8, (2, 2), None))
    assert torch.equal(seen - x, (x + repeat(encoder.compressor.position, "k 1 d -> 1 (g k) n d", g=2, n=5)) - x)


@torch.no_grad()
@pytest.mark.parametrize("k", [2, 4])
def test_qwen2_vl_is_a_convolution_in_space_and_time(k):
    encoder, clip, p = Create("qwen2_vl").perturbed(k), video(2 * k), TINY["patch_size"]
    patchify = encoder.tower.patchify
    patchify.position.zero_()
    kernel = rearrange(patchify.proj.weight, "d (k c p q) -> d c k p q", k=k, p=p, q=p)
    expected = F.conv3d(rearrange(clip, "b t c h w -> b c t h w"), kernel, patchify.proj.bias, stride=(k, p, p))
    tokens = patchify(encoder.compressor.pixels(clip))[:, :, 1:]
    assert torch.allclose(tokens, rearrange(expected, "b d g h w -> b g (h w) d"), atol=1e-5)


@torch.no_grad()
def test_the_methods_after_the_encoder_are_their_formulas():
    x = torch.randn(2, 3, 4, 5, 4, TINY["width"])
    clip = clip_of(x, 12, (5, 4), None)
    pllava, kangaroo = (Create(name).perturbed(4) for name in ("pllava", "kangaroo"))
    frames = torch.stack([pllava.projector(x[:, :, i]) for i in range(4)])
    assert torch.allclose(pllava.compressor.project(x, pllava.projector, clip), frames.mean(0), atol=1e-5)
    first, _, second = kangaroo.compressor.mlp
    side_by_side = torch.cat([x[:, :, i] for i in range(4)], dim=-1)
    expected = kangaroo.projector(second(F.gelu(first(side_by_side))))
    assert torch.allclose(kangaroo.compressor.project(x, kangaroo.projector, clip), expected, atol=1e-5)


@torch.no_grad()
def test_embeds_are_divided_by_the_scale():
    encoder, clip = Create("none")(1), video(2)
    divided = encoder(clip)
    assert encoder.scale == 8
    encoder.scale = 1.0
    assert torch.allclose(encoder(clip), 8 * divided)


def state_of(name, k):
    torch.manual_seed(0)
    encoder = create_video_encoder("tiny", name, k)
    return encoder.state_dict(), torch.rand(1)


@pytest.mark.parametrize("name", [name for name in COMPRESSORS if name != "none"])
def test_one_seed_makes_one_tower_whatever_the_method(name):
    """State dicts differ in `compressor.*` and in the one map that a method widens; even the next draw is the same."""
    baseline, drawn = state_of("none", 1)
    state, drawn_here = state_of(name, 4)
    method = create_video_encoder("tiny", name, 4).compressor
    own_merge = {key for key in baseline if key.startswith("projector.merge.") and method.owns_merge}
    assert torch.equal(drawn_here, drawn)
    shared = set(baseline) - own_merge
    assert {key for key in state if not key.startswith("compressor.")} == shared
    assert {key for key in shared if not torch.equal(state[key], baseline[key])} == set(widened(method))


@torch.no_grad()
def test_other_sizes_than_the_one_it_was_made_for():
    encoder = create_video_encoder("tiny", "te_fusion", 2)
    for size in ((48, 48), (24, 40), (33, 47)):
        assert encoder(video(4, size)).shape[1:3] == (2, size[0] // 16 * (size[1] // 16))
        assert encoder.tokens_out(4, *size) == 2 * (size[0] // 16) * (size[1] // 16)


def test_resampled_positions_keep_the_class_row_and_the_picture():
    table = torch.cat([torch.full((1, 2), 9.0), torch.linspace(0, 1, 6)[:, None].repeat_interleave(6, 0).expand(36, 2)])
    assert resample_positions(table, (6, 6), (6, 6)) is table
    for new in ((3, 3), (4, 12), (9, 5)):
        resampled = resample_positions(table, (6, 6), new)
        assert torch.equal(resampled[0], table[0])
        rows = rearrange(resampled[1:, 0], "(h w) -> h w", h=new[0])
        assert torch.allclose(rows, rows[:, :1].expand_as(rows), atol=1e-6)  # it varies down, not across
        assert (rows[:, 0].diff() > 0).all()
        assert rows.mean() == pytest.approx(0.5, abs=1e-3)
    assert resample_positions(table.bfloat16(), (6, 6), (3, 3)).dtype == torch.bfloat16


def test_pixels_are_normalised_as_clip_does():
    frames = torch.tensor([0, 255, 51], dtype=torch.uint8).expand(2, 4, 5, 3)
    out = pixels(frames)
    assert out.shape == (2, 3, 4, 5)
    for channel, value in enumerate((0, 1, 0.2)):
        assert torch.allclose(out[:, channel], torch.tensor((value - MEAN[channel]) / STD[channel]), atol=1e-6)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda e: e(video(4, (8, 32))), "8x32 frame is smaller than 2x2 patches of 8"),
        (lambda e: e.tokens_out(2, 32, 15), "32x15 frame is smaller"),
        (lambda e: e(video(3)), "3 frames do not divide into groups of k = 2"),
        (lambda e: create_video_encoder("tny"), "did you mean 'tiny'"),
        (lambda e: create_video_encoder("tiny", "pllavva", 2), "did you mean 'pllava'"),
        (lambda e: create_video_encoder("tiny", "none", 2), "none: k must be one of 1, got 2"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(call, said):
    with pytest.raises(ValueError, match=said):
        call(create_video_encoder("tiny", "te_fusion", 2))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("k", [0, -1, True, 4.0, "four", None, 257])
def test_a_wrong_k_is_refused_at_the_public_door(k):
    with pytest.raises(ValueError, match="te_fusion: k must be one of 1 to 256, got"):
        tefusion.create_video_encoder("tiny", "te_fusion", k)


def test_the_width_of_the_embeds_can_be_the_decoders():
    assert create_video_encoder("tiny", "qformer", 2, embed_dim=48)(video(4)).shape == (1, 2, 4, 48)


def test_the_public_names():
    assert tefusion.create_video_encoder is create_video_encoder
    with pytest.raises(AttributeError, match="no attribute 'create_encoder'"):
        tefusion.create_encoder  # noqa: B018


class Told(Compressor):
    """Keeps what it was told of the clips."""

    source, stage = "nowhere", "after"

    def __init__(self, k: int):
        super().__init__(k)
        self.told = []

    def encode(self, x, blocks, clip):
        self.told.append(clip)
        return super().encode(x, blocks, clip)

    def project(self, x, projector, clip):
        self.told.append(clip)
        return super().project(x, projector, clip)


@torch.no_grad()
def test_a_method_is_told_the_grid_and_when_each_frame_is_shown(monkeypatch):
    monkeypatch.setitem(COMPRESSORS, "told", Told)
    encoder = create_video_encoder("tiny", "told", 1)
    encoder(video(3, (40, 24), batch=2), seconds := torch.rand(2, 3))
    encoder(video(3, (40, 24), batch=2))
    for clip, expected in zip(
        encoder.compressor.told, [seconds, seconds, *[torch.tensor([[0.0, 1, 2]] * 2)] * 2], strict=True
    ):
        assert (clip.height, clip.width) == (5, 3)
        assert torch.equal(clip.seconds, expected)


@pytest.mark.usefixtures("unchecked")
def test_seconds_of_other_frames_are_refused():
    encoder = create_video_encoder("tiny")
    with pytest.raises(ValueError, match=r"seconds \(2, 4\) are not those of 2 videos of 3 frames"):
        encoder(video(3, batch=2), torch.rand(2, 4))
