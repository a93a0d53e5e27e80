"""The operator around the Triton kernels, with the definition in their place: PyTorch's machinery sees one right op.

With TRITON_INTERPRET=1 in the environment the same tests run on the kernels themselves.
"""

import os
import subprocess
import sys
from pathlib import Path

import interpreter
import pytest
import torch
from standin import stand_in
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from tefusion.kernels import backends, group_attention, reference
from tefusion.kernels.trial import TOLERANCES, errors

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BOUNDS = {"dense": None, "ragged": [0, 3, 4, 10]}
pytestmark = pytest.mark.usefixtures("triton_on_cpu")


@pytest.fixture
def triton_on_cpu(monkeypatch):
    if INTERPRETED:
        interpreter.repair()
    else:
        stand_in(monkeypatch)


@pytest.fixture(params=BOUNDS)
def cu_seqlens(request):
    bounds = BOUNDS[request.param]
    return bounds and torch.tensor(bounds, dtype=torch.int32)


def packed(cu_seqlens, dtype=torch.float32, dim=16):
    shape = (2, 5, 3, 2, dim) if cu_seqlens is None else (10, 3, 2, dim)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def attend(qkv, cu_seqlens=None, scale=None):
    return group_attention(qkv, cu_seqlens=cu_seqlens, scale=scale, backend="triton")


def gradient(function, qkv, cotangent=None):
    qkv = qkv.detach().requires_grad_()
    out = function(qkv)
    out.backward(torch.sin(out.detach()) if cotangent is None else cotangent)
    return out.detach(), qkv.grad


@pytest.mark.parametrize("scale", [None, 0.3])
def test_it_is_the_definition(cu_seqlens, scale):
    ours, definition = (lambda x, f=f: f(x, cu_seqlens, scale) for f in (attend, reference.group_attention))
    assert max(errors(ours, definition, packed(cu_seqlens))) <= TOLERANCES[torch.float32][1]


def test_gradcheck(cu_seqlens):
    qkv = packed(cu_seqlens, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: attend(x, cu_seqlens), qkv, fast_mode=INTERPRETED)


def test_opcheck(cu_seqlens):
    op = torch.ops.tefusion.group_attention
    qkv = packed(cu_seqlens)
    torch.library.opcheck(op.default, (qkv.requires_grad_(), cu_seqlens, 0.25))
    out, lse = op(qkv.detach(), cu_seqlens, 0.25)
    torch.library.opcheck(
        torch.ops.tefusion.group_attention_backward.default, (out, qkv.detach(), out, lse, cu_seqlens, 0.25)
    )


@pytest.mark.parametrize("dynamic", [False, True])
def test_it_compiles_into_one_graph(cu_seqlens, dynamic):
    torch._dynamo.reset()

    def doubled(x):
        name = backends.pick(x, cu_seqlens is not None, "triton")
        return 2 * backends.BACKENDS[name].run(x, cu_seqlens, None)

    qkv, compiled = packed(cu_seqlens), torch.compile(doubled, fullgraph=True, dynamic=dynamic)
    for ours, theirs in zip(gradient(compiled, qkv), gradient(doubled, qkv), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputing_gives_the_same_gradients(cu_seqlens, reentrant):
    qkv = packed(cu_seqlens)
    plain = gradient(lambda x: attend(x, cu_seqlens), qkv)
    again = gradient(lambda x: checkpoint(attend, x, cu_seqlens, use_reentrant=reentrant), qkv)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.parametrize(("given", "taken"), [(torch.float32, torch.bfloat16), (torch.float64, torch.float64)])
def test_autocast_casts_as_it_does_for_pytorchs_own(given, taken):
    qkv = packed(None, given)
    with torch.autocast("cpu", torch.bfloat16):
        out, slope = gradient(attend, qkv)
        assert out.dtype == group_attention(qkv, backend="sdpa").dtype == taken
    assert slope.dtype == given
    assert torch.equal(out, attend(qkv.to(taken)))


def test_gradients_may_arrive_expanded_or_permuted(cu_seqlens):
    qkv = packed(cu_seqlens)
    shape = attend(qkv, cu_seqlens).shape
    expanded = torch.tensor(0.5).expand(shape)
    permuted = torch.randn(shape[::-1]).permute(*range(len(shape))[::-1])
    for cotangent in (expanded, permuted):
        ours = gradient(lambda x: attend(x, cu_seqlens), qkv, cotangent)[1]
        theirs = gradient(lambda x: reference.group_attention(x, cu_seqlens), qkv, cotangent)[1]
        torch.testing.assert_close(ours, theirs)


def test_qkv_may_be_a_view_with_any_strides():
    qkv = packed(None)
    views = (
        qkv.movedim(1, 0).contiguous().movedim(0, 1),
        torch.stack([qkv, qkv], -1)[..., 0],
        qkv.expand(2, *[-1] * 4),
    )
    for view in views[:2]:
        for ours, theirs in zip(gradient(attend, view), gradient(attend, qkv), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_no_groups_give_nothing():
    out, slope = gradient(attend, torch.zeros(0, 5, 3, 2, 16))
    assert (out.shape, slope.shape) == ((0, 5, 2, 16), (0, 5, 3, 2, 16))


def test_a_second_derivative_is_refused():
    qkv = packed(None).requires_grad_()
    (slope,) = torch.autograd.grad(attend(qkv).square().sum(), qkv, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(slope.sum(), qkv)


def test_flops_are_two_products_forward_and_five_backward():
    def counted(cu_seqlens, backend):
        qkv = packed(cu_seqlens).requires_grad_()
        with FlopCounterMode(display=False) as forward:
            out = group_attention(qkv, cu_seqlens=cu_seqlens, backend=backend)
        with FlopCounterMode(display=False) as backward:
            out.sum().backward()
        return forward.get_total_flops(), backward.get_total_flops()

    assert counted(None, "triton") == (4 * 2 * 5 * 5 * 2 * 16, 10 * 2 * 5 * 5 * 2 * 16)
    assert counted(None, "triton")[0] == counted(None, "sdpa-math")[0]
    pairs = 3**2 + 1 + 6**2
    assert counted(torch.tensor(BOUNDS["ragged"], dtype=torch.int32), "triton")[0] == 4 * pairs * 2 * 16


def test_the_layers_of_a_tower_read_the_bounds_once(monkeypatch):
    bounds = torch.tensor(BOUNDS["ragged"], dtype=torch.int32)
    read, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr("tefusion.kernels.varlen.read", lambda t: read.append(1) or tolist(t))
    for _ in range(3):
        gradient(lambda x: attend(x, bounds), packed(bounds))
    assert len(read) == 1
    bounds[1] = 2  # the same tensor, other groups
    attend(packed(bounds), bounds)
    assert len(read) == 2


DDP = """
import os, sys, torch
from unittest.mock import patch
import torch.distributed as dist
rank, meeting = int(sys.argv[1]), sys.argv[2]
if sys.argv[3] == "stand-in":
    import standin
    from types import SimpleNamespace
    from tefusion.kernels import attention_op
    attention_op.kernels = lambda: SimpleNamespace(forward=standin.forward, backward=standin.backward)
from tefusion.encoders.vit import Attention
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
torch.manual_seed(0)
layer = Attention(32, 2)
x = torch.randn(2, 5, 32)
layer(x).square().mean().backward()
expected = [p.grad.clone() for p in layer.parameters()]
layer.zero_grad()
wrapped = torch.nn.parallel.DistributedDataParallel(layer)
wrapped(x[rank:rank + 1]).square().mean().backward()
for p, wanted in zip(layer.parameters(), expected):
    torch.testing.assert_close(p.grad, wanted)
"""


def test_two_processes_average_their_gradients(tmp_path):
    environment = os.environ | {"TRITON_INTERPRET": "1", "TEFUSION_ATTENTION": "triton"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    how = "kernels" if INTERPRETED else "stand-in"
    command = [sys.executable, "-c", DDP]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "meeting"), how], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=400)[1].decode() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
