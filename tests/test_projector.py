"""The linear maps are the convolutions of the sources, and widening them keeps still videos still."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange, repeat

from tefusion.encoders.inflate import inflate, inflated_linear
from tefusion.projector import GLU, Merge, Projector


@pytest.mark.parametrize(("h", "w"), [(2, 2), (4, 6), (5, 4), (3, 7)])
def test_the_merge_is_a_convolution(h, w):
    merge, x = Merge(6, 10), torch.randn(2, 3, h, w, 6)
    kernel = merge.proj.weight.unflatten(1, (6, 2, 2))
    expected = F.conv2d(rearrange(x, "b s h w d -> (b s) d h w"), kernel, merge.proj.bias, stride=2)
    assert torch.allclose(merge(x), rearrange(expected, "(b s) e h w -> b s h w e", b=2), atol=1e-6)


@pytest.mark.parametrize("k", [2, 3])
def test_te_fusions_read_out_is_a_convolution_in_space_and_time(k):
    """kernel = stride = (k, 2, 2) over frames that lie side by side in the width: MotionBench's v2 and v1 agree."""
    merge, x = Merge(6, 10, frames=k), torch.randn(2, k, 5, 4, 6)
    kernel = rearrange(merge.proj.weight, "e (k d p q) -> e d k p q", k=k, p=2, q=2)
    expected = F.conv3d(rearrange(x, "b k h w d -> b d k h w"), kernel, merge.proj.bias, stride=(k, 2, 2))
    got = merge(rearrange(x, "b k h w d -> b h w (k d)"))
    assert torch.allclose(got, rearrange(expected, "b e 1 h w -> b h w e"), atol=1e-6)


def test_the_gated_unit_is_glm4vs():
    glu, x = GLU(8, 12), torch.randn(3, 8)
    y = F.gelu(F.layer_norm(x @ glu.proj.weight.T, (8,), glu.norm.weight, glu.norm.bias, eps=1e-5))
    y = (F.silu(y @ glu.gate.weight.T) * (y @ glu.up.weight.T)) @ glu.down.weight.T
    assert torch.allclose(glu(x), y, atol=1e-6)


def test_the_projector_is_both_halves():
    projector, x = Projector(6, 8, 12), torch.randn(2, 1, 4, 4, 6)
    assert torch.equal(projector(x), projector.glu(projector.merge(x)))


@pytest.mark.parametrize("k", [1, 2, 3, 16])
def test_widened_weights_read_k_equal_frames_as_one(k):
    weight, x = torch.randn(5, 7), torch.randn(4, 7)
    wide = inflate(weight, k)
    assert wide.shape == (5, 7 * k)
    assert torch.allclose(repeat(x, "b d -> b (k d)", k=k) @ wide.T, x @ weight.T, atol=1e-5)


def test_widened_weights_read_frames_one_after_another():
    """Frame-major: the first block of inputs is the first frame."""
    weight, frames = torch.randn(5, 7), torch.randn(3, 7)
    assert torch.allclose(inflate(weight, 3) @ frames.flatten(), weight @ frames.mean(0), atol=1e-6)


def test_a_widened_map_draws_what_the_narrow_one_draws():
    maps = []
    for k in (1, 4):
        torch.manual_seed(0)
        maps.append(inflated_linear(7, k, 5))
    narrow, wide = maps
    assert torch.equal(wide.weight, inflate(narrow.weight, 4))
    assert torch.equal(wide.bias, narrow.bias)
    assert (wide.in_features, wide.out_features) == (28, 5)
