"""x + norm(y) in one kernel, in Triton's interpreter: right, alone in its row, and one op for all of PyTorch."""

import math
import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tefusion.encoders.vit import ViTBlock
from tefusion.kernels import NORM_BACKENDS, ResidualLayerNorm, layer_norm_op, reference, residual_layer_norm
from tefusion.kernels.trial import TOLERANCES, errors

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="run once more with TRITON_INTERPRET=1 by the test below")


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


def test_the_definition_is_pytorchs_norm_and_an_addition():
    x, y, weight, bias = given()
    assert torch.equal(residual_layer_norm(x, y, weight, bias, 1e-6), x + F.layer_norm(y, (24,), weight, bias, 1e-6))
    norm = ResidualLayerNorm(24, eps=1e-6)
    assert torch.equal(norm(x, y), x + F.layer_norm(y, (24,), eps=1e-6))
    assert list(norm.state_dict()) == list(torch.nn.LayerNorm(24).state_dict())


@interpreted
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize(("rows", "width"), [((1,), 5), ((2, 3), 7), ((5,), 256), ((300,), 24), ((3,), 1792)])
def test_the_kernel_is_the_definition(dtype, rows, width):
    out, *slopes = errors(fused, definition, *given(rows, width, dtype))
    forward, backward = TOLERANCES[dtype]
    assert out <= forward
    assert max(slopes) <= backward


@interpreted
def test_rows_far_from_zero_keep_their_digits():
    x, y, weight, bias = given()
    assert errors(fused, definition, x, y + 1000, weight, bias)[0] <= 1e-4
    still = torch.full_like(y, 3.0)  # no spread at all
    assert errors(fused, definition, x, still, weight, bias)[0] <= 1e-5


@interpreted
def test_gradcheck():
    tensors = [t.requires_grad_() for t in given((4,), 12, torch.float64)]
    assert torch.autograd.gradcheck(fused, tensors)


@interpreted
def test_opcheck():
    ops, tensors = torch.ops.tefusion, given()
    for dtype in (torch.float32, torch.bfloat16):
        x = tensors[0].to(dtype)
        call = (*(t.detach().requires_grad_() for t in (x, *tensors[1:])), 1e-6, torch.float32)
        torch.library.opcheck(ops.residual_layer_norm.default, call)
    _, mean, rstd = ops.residual_layer_norm(*tensors, 1e-6, torch.float32)
    call = (tensors[0], tensors[1], tensors[2], mean, rstd)
    torch.library.opcheck(ops.residual_layer_norm_backward.default, call)


@interpreted
def test_it_compiles_into_one_graph(unchecked):
    torch._dynamo.reset()
    compiled = torch.compile(lambda *tensors: fused(*tensors) * 2, fullgraph=True)
    plain = gradients(lambda *tensors: fused(*tensors) * 2, given())
    for ours, theirs in zip(gradients(compiled, given()), plain, strict=True):
        torch.testing.assert_close(ours, theirs)


@interpreted
@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputing_gives_the_same_gradients(reentrant):
    again = gradients(lambda *tensors: checkpoint(fused, *tensors, use_reentrant=reentrant), given())
    assert all(torch.equal(a, b) for a, b in zip(gradients(fused, given()), again, strict=True))


@interpreted
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


@interpreted
def test_strides_and_expanded_gradients():
    x, y, weight, bias = given((4, 6))
    views = [x.mT.contiguous().mT, torch.stack([y, y], -1)[..., 0], weight.expand(2, -1)[1], bias]
    half = torch.tensor(0.5).expand(x.shape)
    for ours, theirs in zip(
        gradients(fused, views, half), gradients(definition, [x, y, weight, bias], half), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@interpreted
def test_a_row_is_alone_and_every_number_is_written(monkeypatch):
    tensors = given((3,))
    before = fused(*tensors)[1]
    tensors[1][0], tensors[1][2] = math.nan, math.inf
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **options: empty(*a, **options).fill_(math.nan))
    assert torch.equal(fused(*tensors)[1], before)
    assert not any(t.isnan().any() for t in gradients(fused, given((300,))))


@interpreted
def test_the_same_bits_every_time():
    first = gradients(fused, given((300,), 112, torch.float16))
    for _ in range(2):
        assert all(
            torch.equal(a, b) for a, b in zip(first, gradients(fused, given((300,), 112, torch.float16)), strict=True)
        )


@interpreted
def test_no_rows_give_nothing():
    out, _, _, dweight, dbias = gradients(fused, given((0,)))
    assert out.shape == (0, 24)
    assert not dweight.any()
    assert not dbias.any()


@interpreted
def test_a_tower_on_the_kernel_is_the_tower(monkeypatch):
    torch.manual_seed(0)
    block, x = ViTBlock(24, 3, 40, 1e-6), torch.randn(2, 2, 5, 24)
    theirs = block(x)
    monkeypatch.setenv("TEFUSION_NORM", "triton")
    torch.testing.assert_close(block(x), theirs)


def test_on_a_cpu_pytorchs_own_runs(monkeypatch):
    monkeypatch.setattr(layer_norm_op, "fused", lambda *_: pytest.fail("the kernel ran"))
    residual_layer_norm(*given())


def test_on_a_gpu_it_runs_where_it_may_and_is_trusted(monkeypatch, unchecked):
    class OnGpu:
        is_cuda, is_meta, device = True, False, torch.device("cuda", 0)

        def __init__(self, *shape, dtype=torch.bfloat16):
            self.shape, self.dtype = torch.Size(shape), dtype

    row, column = OnGpu(2, 24), OnGpu(24)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(layer_norm_op, "trusted", lambda *_: True)
    assert layer_norm_op.wins(row, row, column, column)
    assert not layer_norm_op.wins(OnGpu(2, 8200), OnGpu(2, 8200), OnGpu(8200), OnGpu(8200))
    monkeypatch.setattr(layer_norm_op, "trusted", lambda *_: False)
    assert not layer_norm_op.wins(row, row, column, column)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "it needs a CUDA tensor, got one on cpu"),
        ({"dtype": torch.float64}, "bfloat16, float16 and float32, got torch.float64"),
        ({"width": 8200}, "it takes widths from 1 to 8192, got 8200"),
    ],
)
@pytest.mark.skipif(INTERPRETED, reason="the interpreter serves a CPU")
def test_what_the_kernel_cannot_serve_is_refused(monkeypatch, change, said):
    monkeypatch.setenv("TEFUSION_NORM", "triton")
    with pytest.raises(ValueError, match=f"norm backend 'triton' cannot serve this call: .*{said}"):
        residual_layer_norm(*given(**change))


def test_shapes_that_do_not_fit_are_refused(monkeypatch, unchecked):
    x, y, weight, bias = given()
    monkeypatch.setenv("TEFUSION_NORM", "triton")
    for wrong in ((x[:1], y, weight, bias), (x, y, weight[:5], bias), (x, y, weight, bias[:1])):
        with pytest.raises(ValueError, match="the shapes do not fit"):
            residual_layer_norm(*wrong)


def test_a_norm_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setenv("TEFUSION_NORM", "tritn")
    with pytest.raises(ValueError, match=f"'tritn' is unknown; known: {', '.join(NORM_BACKENDS)}"):
        residual_layer_norm(*given())


@pytest.mark.skipif(INTERPRETED, reason="this is it")
def test_all_of_it_in_the_interpreter():
    """In a process of its own: the variable has to be set before Triton is imported."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]
