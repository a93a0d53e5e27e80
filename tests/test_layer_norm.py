"""x + norm(y): who computes it, and what is refused. The kernel itself is tested in `interpreted_layer_norm.py`."""

import interpreter
import pytest
import torch
from torch.nn import functional as F

from tefusion.kernels import NORM_BACKENDS, ResidualLayerNorm, layer_norm_op, residual_layer_norm


def given(rows=(3, 5), width=24, dtype=torch.float32):
    random = torch.Generator().manual_seed(0)
    shapes = [(*rows, width), (*rows, width), (width,), (width,)]
    return [torch.randn(shape, generator=random, dtype=torch.float64).to(dtype) for shape in shapes]


def test_the_definition_is_pytorchs_norm_and_an_addition():
    x, y, weight, bias = given()
    assert torch.equal(residual_layer_norm(x, y, weight, bias, 1e-6), x + F.layer_norm(y, (24,), weight, bias, 1e-6))
    norm = ResidualLayerNorm(24, eps=1e-6)
    assert torch.equal(norm(x, y), x + F.layer_norm(y, (24,), eps=1e-6))
    assert list(norm.state_dict()) == list(torch.nn.LayerNorm(24).state_dict())


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
    assert not layer_norm_op.wins(OnGpu(2, 4104), OnGpu(2, 4104), OnGpu(4104), OnGpu(4104))
    monkeypatch.setattr(layer_norm_op, "trusted", lambda *_: False)
    assert not layer_norm_op.wins(row, row, column, column)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "it needs a CUDA tensor, got one on cpu"),
        ({"dtype": torch.float64}, "bfloat16, float16 and float32, got torch.float64"),
        ({"width": 4104}, "it takes widths from 1 to 4096, got 4104"),
    ],
)
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


def test_the_kernel():
    interpreter.run("interpreted_layer_norm.py")
