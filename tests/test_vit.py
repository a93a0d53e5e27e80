"""GLM-4V-9B's tower: patches, blocks, precision, gradient checkpointing, compilation."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from tefusion.encoders import PRESETS, VisionConfig, ViT
from tefusion.encoders.inflate import inflate, inflated_conv, inflated_linear
from tefusion.encoders.patchify import Patchify
from tefusion.encoders.vit import ViTBlock
from tefusion.projector import Merge
from tefusion.vision import create_video_encoder

CONFIG = VisionConfig(image_size=32, patch_size=8, width=24, depth=2, heads=3, mlp=40, embed_dim=16, glu=24)


def seeded(compressor="none", k=1, **options):
    torch.manual_seed(0)
    return create_video_encoder("tiny", compressor, k, **options)


@torch.no_grad()
def test_patchify_is_a_strided_convolution():
    """Of 3k channels, frame-major; rows and columns that fill no patch are dropped, as a convolution does."""
    patchify = Patchify(8, 24, (4, 5), frames=2)
    patchify.proj.weight.normal_(std=0.05)
    conv = nn.Conv2d(6, 24, 8, 8)
    conv.weight.copy_(patchify.proj.weight.view(24, 6, 8, 8))
    conv.bias.copy_(patchify.proj.bias)
    x = torch.randn(2, 3, 6, 39, 44)
    theirs = conv(x.flatten(0, 1)).flatten(2).mT.unflatten(0, (2, 3)) + patchify.position[1:]
    ours = patchify(x)
    torch.testing.assert_close(ours[:, :, 1:], theirs, rtol=1e-5, atol=1e-5)
    assert torch.equal(ours[:, :, 0], (patchify.cls + patchify.position[:1]).expand(2, 3, -1))


@torch.no_grad()
def test_merge_is_a_strided_convolution():
    merge = Merge(6, 10, frames=3)
    merge.proj.weight.normal_(std=0.05)
    x = torch.randn(2, 5, 7, 18)
    theirs = nn.functional.conv2d(x.permute(0, 3, 1, 2), merge.proj.weight.view(10, 18, 2, 2), merge.proj.bias, 2)
    torch.testing.assert_close(merge(x), theirs.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_inflated_maps_give_the_mean_over_frames():
    torch.manual_seed(0)
    one = nn.Linear(6, 4)
    torch.manual_seed(0)
    three = inflated_linear(6, 3, 4)
    frames = torch.randn(3, 5, 6)
    torch.testing.assert_close(three(torch.cat([*frames], -1)), one(frames).mean(0))
    conv = nn.Conv2d(3, 4, 2)
    images = torch.randn(3, 1, 3, 4, 4)
    mean = torch.stack([conv(image) for image in images]).mean(0)
    wide = inflated_conv(conv, 3)
    assert wide.in_channels == 9
    torch.testing.assert_close(wide(torch.cat([*images], 1)), mean)
    assert inflate(one.weight, 2).shape == (4, 12)


@torch.no_grad()
def test_the_norm_sits_on_the_sub_layers_output():
    """With both norms' weights at zero a block is the identity plus their biases, whatever it attends to."""
    block = ViTBlock(24, 3, 40, 1e-6)
    for norm, bias in ((block.norm1, 1.0), (block.norm2, 2.0)):
        norm.weight.zero_()
        norm.bias.fill_(bias)
    x = torch.randn(2, 3, 5, 24)
    torch.testing.assert_close(block(x), x + 3.0)


@torch.no_grad()
def test_a_row_attends_over_its_frames_and_over_nothing_else():
    block, x = ViTBlock(24, 3, 40, 1e-6), torch.randn(2, 3, 5, 24)
    assert torch.equal(block(x)[:1], block(x[:1]))
    changed = x.clone()
    changed[0, 2] += 1
    assert not torch.equal(block(changed)[0, 0], block(x)[0, 0])
    torch.testing.assert_close(block(x), block(x.flip(1)).flip(1))  # and knows no order of its own


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_precision(dtype):
    encoder, video = seeded("te_fusion", 2), torch.randn(1, 4, 3, 40, 24)
    exact = encoder(video)
    rough = encoder.to(dtype)(video.to(dtype))
    assert rough.dtype == dtype
    eps = torch.finfo(dtype).eps
    assert (rough - exact).norm() <= 8 * eps * exact.norm()


@pytest.mark.parametrize("recompute", ["reentrant", "non_reentrant"])
@pytest.mark.parametrize(("compressor", "k"), [("none", 1), ("te_fusion", 2)])
def test_recomputing_gives_the_same_gradients_and_runs_each_block_twice(recompute, compressor, k):
    encoder, video = seeded(compressor, k), torch.randn(1, 2, 3, 32, 32)
    gradients, runs = [], []
    for block in encoder.tower.blocks:
        block.register_forward_pre_hook(lambda *_: runs.append(1))
    for how in (None, recompute):
        for block in encoder.tower.blocks:
            block.recompute = how
        runs.clear()
        encoder.zero_grad()
        encoder(video).square().sum().backward()
        gradients.append([p.grad for p in encoder.parameters()])
        assert len(runs) == len(encoder.tower.blocks) * (1 if how is None else 2)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_full_size_counts():
    with torch.device("meta"):
        tower = ViT(PRESETS["glm4v-9b"])
    assert round(sum(p.numel() for p in tower.blocks[0].parameters()) / 1e6, 1) == 67.9
    with torch.device("meta"):
        base = ViT(PRESETS["base"])
    assert sum(p.numel() for p in base.parameters()) == 85_797_120  # ViT-B/16 without its last norm


@pytest.mark.parametrize("sizes", [{"width": 25}, {"heads": 0}])
def test_sizes_that_make_no_tower_are_refused(sizes):
    with pytest.raises(ValueError, match="heads"):
        replace(CONFIG, **sizes)


COMPILE = """
import sys, torch
from tefusion.vision import create_video_encoder
backend, preset, compressor, k = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
torch.manual_seed(0)
encoder = create_video_encoder(preset, compressor, k)
compiled = torch.compile(encoder, fullgraph=True, backend=backend)
size = encoder.tower.patchify.grid[0] * encoder.tower.patch_size
video = torch.randn(1, 2 * k, 3, size, size)
grads = []
for run in (encoder, compiled):
    out = run(video)
    grads.append([out, *torch.autograd.grad(out.square().sum(), list(encoder.parameters()))])
for ours, theirs in zip(*grads):
    assert (ours - theirs).norm() <= 1e-4 * ours.norm() + 1e-7, (ours - theirs).abs().max()
"""


def compile_fullgraph(*arguments):
    """In a process of its own: tracing meets no shape checks, as for users."""
    run = subprocess.run(
        [sys.executable, "-c", COMPILE, *map(str, arguments)], capture_output=True, text=True, env=os.environ
    )
    assert run.returncode == 0, run.stderr[-2000:]


def test_compiles_into_one_graph():
    compile_fullgraph("aot_eager", "tiny", "te_fusion", 2)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("backend", "preset", "compressor", "k"),
    [
        ("inductor", "tiny", "te_fusion", 2),
        ("inductor", "tiny", "none", 1),
        ("aot_eager", "tiny", "qwen2_vl", 2),
        ("aot_eager", "tiny", "kangaroo", 2),
        ("aot_eager", "tiny", "pllava", 2),
        ("aot_eager", "tiny", "qformer", 2),
        ("aot_eager", "timm:vit_tiny_patch16_224", "te_fusion", 2),
    ],
)
def test_compiles_into_one_graph_everywhere(backend, preset, compressor, k):
    compile_fullgraph(backend, preset, compressor, k)
