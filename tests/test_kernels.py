"""Every backend is the reference; the reference is the formula."""

import math

import pytest
import torch

from tefusion.kernels import ATTENTION_BACKENDS, group_attention, reference


def packed(rows=2, length=17, heads=3, dim=8, dtype=torch.float32):
    return torch.randn(rows, length, 3, heads, dim, generator=torch.Generator().manual_seed(0)).to(dtype)


def test_the_reference_is_the_formula():
    qkv = packed(2, 5, 2, 4, torch.float64)
    out = reference.group_attention(qkv)
    for row in range(2):
        for head in range(2):
            q, k, v = qkv[row, :, :, head].unbind(1)
            for i in range(5):
                weights = torch.tensor([math.exp((q[i] @ k[j]).item() / 2) for j in range(5)], dtype=torch.float64)
                expected = (weights / weights.sum()) @ v
                assert torch.allclose(out[row, i, head], expected, atol=1e-12)


@pytest.mark.parametrize("length", [1, 17, 257])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_sdpa_is_the_reference_in_both_directions(length, scale, dtype, tolerance):
    exact = packed(length=length, dtype=torch.float64).requires_grad_()
    qkv = packed(length=length, dtype=dtype).requires_grad_()
    cotangent = torch.randn(2, length, 3, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = reference.group_attention(exact, scale)
    out = group_attention(qkv, scale=scale, backend="sdpa")
    assert out.dtype == dtype
    (slopes,) = torch.autograd.grad((expected * cotangent).sum(), exact)
    (got,) = torch.autograd.grad((out * cotangent.to(dtype)).sum(), qkv)
    for a, b in ((out, expected), (got, slopes)):
        assert (a.double() - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_a_row_is_alone(backend):
    qkv = packed(3)
    before = group_attention(qkv, backend=backend)[1]
    qkv[0], qkv[2] = math.nan, math.inf
    assert torch.equal(group_attention(qkv, backend=backend)[1], before)


def test_the_environment_overrides_auto_and_nothing_else(monkeypatch):
    called = []
    monkeypatch.setattr(reference, "group_attention", lambda qkv, scale: called.append(scale) or qkv[:, :, 0])
    group_attention(packed())
    monkeypatch.setenv("TEFUSION_ATTENTION", "reference")
    group_attention(packed(), backend="sdpa")
    assert called == []
    group_attention(packed(), scale=0.3)
    assert called == [0.3]


def test_a_backend_that_is_not_there_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=f"'flash' is unknown; known: {', '.join(ATTENTION_BACKENDS)}"):
        group_attention(packed(), backend="flash")
    monkeypatch.setenv("TEFUSION_ATTENTION", "xformer")
    with pytest.raises(ValueError, match="'xformer' is unknown"):
        group_attention(packed())


def test_xformers_is_never_replaced_in_silence():
    with pytest.raises(ValueError, match="needs a CUDA tensor, got one on cpu"):
        group_attention(packed(), backend="xformers")
