"""x + norm(y) in one kernel: right, alone in its row, one op for all of PyTorch. Run by test_layer_norm.py."""

import math

import interpreter
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tefusion.encoders.vit import ViTBlock
from tefusion.kernels import layer_norm_op, reference
from tefusion.kernels.trial import TOLERANCES, errors

interpreter.repair()


def given(rows=(3, 5), width=24, dtype=torch.float32):
    random = torch.Generator().manual_seed(0)
    shapes = [(*rows, width), (*rows, width), (width,), (width,)]
    return [torch.randn(shape, generator=random, dtype=torch.float64).to(dtype) for shape in shapes]


def fused(*tensors):
    return layer_norm_op.fused(*tensors, 1e-6)


def definition(*tensors):
    return reference.residual_layer_norm(*tensors, 1e-6)


def gradients(function, tensors, cotangent=None):
    tensors = [t.detach().requires_grad_() for t in tensors]
    out = function(*tensors)
    out.backward(torch.sin(out.detach()) if cotangent is None else cotangent)
    return [out.detach(), *(t.grad for t in tensors)]


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize(("rows", "width"), [((1,), 5), ((2, 3), 7), ((5,), 256), ((300,), 24), ((3,), 1792)])
def test_the_kernel_is_the_definition(dtype, rows, width):
    out, *slopes = errors(fused, definition, *given(rows, width, dtype))
    forward, backward = TOLERANCES[dtype]
    assert out <= forward
    assert max(slopes) <= backward


def test_rows_far_from_zero_keep_their_digits():
    x, y, weight, bias = given()
    assert errors(fused, definition, x, y + 1000, weight, bias)[0] <= 1e-4
    still = torch.full_like(y, 3.0)  # no spread at all
    assert errors(fused, definition, x, still, weight, bias)[0] <= 1e-5


def test_gradcheck():
    tensors = [t.requires_grad_() for t in given((4,), 12, torch.float64)]
    assert torch.autograd.gradcheck(fused, tensors)


def test_opcheck():
    ops, tensors = torch.ops.tefusion, given()
    for dtype in (torch.float32, torch.bfloat16):
        x = tensors[0].to(dtype)
        call = (*(t.detach().requires_grad_() for t in (x, *tensors[1:])), 1e-6, torch.float32)
        torch.library.opcheck(ops.residual_layer_norm.default, call)
    _, mean, rstd = ops.residual_layer_norm(*tensors, 1e-6, torch.float32)
    call = (tensors[0], tensors[1], tensors[2], mean, rstd)
    torch.library.opcheck(ops.residual_layer_norm_backward.default, call)


def test_it_compiles_into_one_graph(unchecked):
    torch._dynamo.reset()
    compiled = torch.compile(lambda *tensors: fused(*tensors) * 2, fullgraph=True)
    plain = gradients(lambda *tensors: fused(*tensors) * 2, given())
    for ours, theirs in zip(gradients(compiled, given()), plain, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputing_gives_the_same_gradients(reentrant):
    again = gradients(lambda *tensors: checkpoint(fused, *tensors, use_reentrant=reentrant), given())
    assert all(torch.equal(a, b) for a, b in zip(gradients(fused, given()), again, strict=True))


@pytest.mark.parametrize("residual", [torch.float32, torch.bfloat16])
def test_autocast_gives_the_dtypes_that_pytorch_gives(residual):
    tensors = given()
    tensors[0], tensors[1] = tensors[0].to(residual), tensors[1].bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        half = torch.full_like(tensors[1], 0.5)
        ours, theirs = (gradients(function, tensors, half.to(residual)) for function in (fused, definition))
    assert [t.dtype for t in ours] == [t.dtype for t in theirs]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=5e-2)


def test_strides_and_expanded_gradients():
    x, y, weight, bias = given((4, 6))
    views = [x.mT.contiguous().mT, torch.stack([y, y], -1)[..., 0], weight.expand(2, -1)[1], bias]
    half = torch.tensor(0.5).expand(x.shape)
    for ours, theirs in zip(
        gradients(fused, views, half), gradients(definition, [x, y, weight, bias], half), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_row_is_alone_and_every_number_is_written(monkeypatch):
    tensors = given((3,))
    before = fused(*tensors)[1]
    tensors[1][0], tensors[1][2] = math.nan, math.inf
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **options: empty(*a, **options).fill_(math.nan))
    assert torch.equal(fused(*tensors)[1], before)
    assert not any(t.isnan().any() for t in gradients(fused, given((300,))))


def test_the_same_bits_every_time():
    first = gradients(fused, given((300,), 112, torch.float16))
    for _ in range(2):
        assert all(
            torch.equal(a, b) for a, b in zip(first, gradients(fused, given((300,), 112, torch.float16)), strict=True)
        )


def test_no_rows_give_nothing():
    out, _, _, dweight, dbias = gradients(fused, given((0,)))
    assert out.shape == (0, 24)
    assert not dweight.any()
    assert not dbias.any()


def test_a_tower_on_the_kernel_is_the_tower(monkeypatch):
    torch.manual_seed(0)
    block, x = ViTBlock(24, 3, 40, 1e-6), torch.randn(2, 2, 5, 24)
    theirs = block(x)
    monkeypatch.setenv("TEFUSION_NORM", "triton")
    torch.testing.assert_close(block(x), theirs)
