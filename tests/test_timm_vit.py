"""Any timm VisionTransformer as the tower: exactly timm's features with one frame, inflated with more."""

import pytest
import timm
import torch

from tefusion.encoders.timm_vit import create_vit, timm_config, timm_tower
from tefusion.vision import create_video_encoder

NAMES = [  # one of each kind: class token; none; registers, layer scale; two tokens; norm before; other blocks; qk norm
    "vit_tiny_patch16_224",
    "vit_base_patch16_siglip_224",
    "vit_small_patch14_reg4_dinov2",
    "deit_tiny_distilled_patch16_224",
    "vit_xsmall_patch16_clip_224",
    "vit_base_patch16_rpn_224",
    "deit3_small_patch16_224",
    "vit_pwee_patch16_reg1_gap_256",
]


@pytest.fixture
def small(monkeypatch):
    """timm's own models, with two blocks, a narrow width and small images."""
    create = timm.create_model
    sizes = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 64, "patch_size": 16, "mlp_ratio": 2}
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create(name, **options, **sizes))
    return timm.create_model


def perturbed(vit):
    torch.manual_seed(3)
    for parameter in vit.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return vit


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_one_frame_is_forward_features(small, monkeypatch, name):
    vit = perturbed(small(name, pretrained=False, num_classes=0)).eval()
    video = torch.randn(2, 3, 3, 64, 64)
    theirs = vit.forward_features(video.flatten(0, 1))[:, vit.num_prefix_tokens :]
    monkeypatch.setattr("tefusion.encoders.timm_vit.create_vit", lambda name: vit)
    encoder = create_video_encoder(f"timm:{name}").eval()
    ours = encoder.encode(video)
    assert torch.equal(ours.flatten(3, 4)[:, :, 0].flatten(0, 1), theirs)
    assert encoder(video).shape == (2, 3, encoder.tokens_out(1, 64, 64), 48)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_another_size_is_timm_at_that_size(small, monkeypatch, name):
    """Its positions resampled by timm itself, on an oblong odd grid with pixels to spare."""
    vit = perturbed(small(name, pretrained=False, num_classes=0)).eval()
    tower = timm_tower_of(monkeypatch, vit)
    frames = torch.randn(2, 3, 80, 50)
    ours = tower.norm(run(tower, frames[None]))[0]
    vit.set_input_size((80, 48))
    torch.testing.assert_close(ours, vit.forward_features(frames[..., :48]), rtol=1e-5, atol=1e-5)


def timm_tower_of(monkeypatch, vit, frames=1):
    monkeypatch.setattr("tefusion.encoders.timm_vit.create_vit", lambda name: vit)
    return timm_tower("this one")(timm_config("this one"), frames)


def run(tower, video):
    x = tower.patchify(video)
    for block in tower.blocks:
        x = torch.stack([block(frame[:, None])[:, 0] for frame in x.unbind(1)], 1)
    return x


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("compressor", ["qwen2_vl", "te_fusion", "pllava"])
@torch.no_grad()
def test_a_still_video_is_the_image(small, name, compressor):
    video = torch.randn(1, 1, 3, 64, 64).expand(1, 4, 3, 64, 64)
    images, videos = (seeded(name, method, k) for method, k in (("none", 1), (compressor, 4)))
    theirs = images(video[:, :1])
    assert (videos(video) - theirs).norm() <= 1e-5 * theirs.norm()


def seeded(name, compressor, k):
    torch.manual_seed(0)
    return create_video_encoder(f"timm:{name}", compressor, k).eval()


def test_te_fusion_attends_across_frames(small):
    encoder = seeded("vit_tiny_patch16_224", "te_fusion", 2)
    video = torch.randn(1, 2, 3, 64, 64)
    changed = torch.cat([torch.randn(1, 1, 3, 64, 64), video[:, 1:]], 1)
    ours, other = encoder.encode(video), encoder.encode(changed)
    assert not torch.equal(ours[:, :, 1], other[:, :, 1])


@pytest.mark.parametrize("recompute", ["reentrant", "non_reentrant"])
def test_recomputing_gives_the_same_gradients(small, recompute):
    encoder, video = seeded("vit_small_patch14_reg4_dinov2", "te_fusion", 2), torch.randn(1, 2, 3, 64, 64)
    gradients = []
    for how in (None, recompute):
        for block in encoder.tower.blocks:
            block.recompute = how
        encoder.zero_grad()
        encoder(video).square().sum().backward()
        gradients.append([p.grad for p in encoder.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_sizes_are_those_of_the_model():
    config = timm_config("vit_so400m_patch14_siglip_384")
    assert (config.image_size, config.patch_size, config.width, config.depth, config.heads) == (384, 14, 1152, 27, 16)
    assert config.mlp == 4304
    assert timm_config("vit_giant_patch14_dinov2").mlp == 4096  # a gated unit: what its second map takes


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vit_tiny_patch16_225", "did you mean 'vit_tiny_patch16_224'"),
        ("hf-hub:somebody/something", "timm has no model"),
        ("resnet18", "is a ResNet"),
        ("vit_base_r26_s32_224", "with HybridEmbed"),
        ("eva02_tiny_patch14_224", "is a Eva"),
    ],
)
def test_what_cannot_be_a_tower_is_refused_in_one_sentence(name, said):
    with torch.device("meta"), pytest.raises(ValueError, match=said):
        create_vit(name)
