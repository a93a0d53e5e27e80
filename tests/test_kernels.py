"""Every backend is the reference; the reference is the formula; what cannot be served is refused in one sentence."""

import math
from functools import partial
from types import SimpleNamespace

import interpreter
import pytest
import torch
from standin import stand_in
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from tefusion.compressors.base import Clip
from tefusion.compressors.te_fusion import TEFusion
from tefusion.encoders.vit import ViTBlock
from tefusion.kernels import ATTENTION_BACKENDS, backends, group_attention, reference, trial
from tefusion.kernels.backends import AUTO, Rule
from tefusion.kernels.trial import agrees, errors

ON_A_CPU = ["auto", "sdpa", "sdpa-flash", "sdpa-math", "reference", "triton"]
ON_A_GPU = ["triton", "xformers", "sdpa-cudnn", "sdpa-efficient", "varlen"]


def packed(rows=2, length=17, heads=3, dim=8, dtype=torch.float32):
    return torch.randn(rows, length, 3, heads, dim, generator=torch.Generator().manual_seed(0)).to(dtype)


def bounds(*values):
    return torch.tensor(values, dtype=torch.int32)


@pytest.fixture
def triton_on_cpu(monkeypatch):
    stand_in(monkeypatch)


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


def test_ragged_groups_are_dense_ones_side_by_side():
    qkv = packed(1, 12, dtype=torch.float64)[0]
    out = reference.group_attention(qkv, bounds(0, 5, 6, 12))
    for start, end in ((0, 5), (5, 6), (6, 12)):
        assert torch.equal(out[start:end], reference.group_attention(qkv[None, start:end])[0])
    assert reference.group_attention(qkv.requires_grad_(), bounds(0, 5, 6, 12)).requires_grad


@pytest.mark.parametrize("backend", ON_A_CPU)
@pytest.mark.parametrize("length", [1, 17, 257])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_a_backend_is_the_reference_in_both_directions(triton_on_cpu, backend, length, scale, dtype, tolerance):
    qkv = packed(length=length, dtype=dtype, dim=16)
    out = group_attention(qkv, scale=scale, backend=backend)
    assert (out.dtype, out.shape) == (dtype, (2, length, 3, 16))
    found = errors(
        lambda x: group_attention(x, scale=scale, backend=backend),
        lambda x: reference.group_attention(x, scale=scale),
        qkv,
    )
    assert max(found) <= tolerance


@pytest.mark.parametrize("backend", ON_A_CPU)
@pytest.mark.parametrize("ends", [(4, 8, 12, 17), (17,), (1, 2, 3, 17), (16, 17)])
def test_a_backend_is_the_reference_on_ragged_groups(triton_on_cpu, backend, ends):
    cu_seqlens = bounds(0, *ends)
    found = errors(
        lambda x: group_attention(x, cu_seqlens=cu_seqlens, scale=0.2, backend=backend),
        lambda x: reference.group_attention(x, cu_seqlens, 0.2),
        packed(1, dim=16)[0],
    )
    assert max(found) <= 1e-5


@pytest.mark.parametrize("backend", ON_A_CPU)
def test_a_group_is_alone(triton_on_cpu, backend):
    qkv = packed(3, dim=16)
    before = group_attention(qkv, backend=backend)[1]
    qkv[0], qkv[2] = math.nan, math.inf
    if backend == "triton":  # the stand-in is one dense product
        pytest.skip("the kernels' own tests")
    assert torch.equal(group_attention(qkv, backend=backend)[1], before)
    ragged = group_attention(qkv.flatten(0, 1), cu_seqlens=bounds(0, 17, 34, 51), backend=backend)
    assert torch.equal(ragged[17:34], before)


def test_the_environment_overrides_auto_and_nothing_else(monkeypatch):
    called = []
    monkeypatch.setattr(reference, "group_attention", lambda qkv, _, scale: called.append(scale) or qkv[:, :, 0])
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


@pytest.mark.parametrize("backend", ON_A_GPU)
@pytest.mark.parametrize("ragged", [False, True])
def test_a_backend_of_a_gpu_is_never_replaced_in_silence(backend, ragged):
    qkv, cu_seqlens = packed(dim=16, dtype=torch.bfloat16), bounds(0, 17, 34) if ragged else None
    with pytest.raises(ValueError, match=f"'{backend}' cannot serve this call: it needs a CUDA tensor, got one on cpu"):
        group_attention(qkv.flatten(0, 1) if ragged else qkv, cu_seqlens=cu_seqlens, backend=backend)


REFUSED = [
    ("triton", {"dim": 12}, "its head dims are the multiples of 8 from 16 to 128, got 12"),
    ("triton", {"dim": 8}, "from 16 to 128, got 8"),
    ("triton", {"dim": 136}, "from 16 to 128, got 136"),
    ("triton", {"dtype": torch.float64, "dim": 16}, "bfloat16, float16 and float32, got torch.float64"),
    ("varlen", {"dtype": torch.float32}, "it takes bfloat16 and float16, got torch.float32"),
    ("varlen", {"dtype": torch.float16, "dim": 12}, "its head dims are multiples of 8, got 12"),
]


@pytest.mark.parametrize(("backend", "call", "said"), REFUSED)
def test_what_a_backend_cannot_serve_it_says(monkeypatch, backend, call, said):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=f"^attention backend '{backend}' cannot serve this call: .*{said}$"):
        group_attention(packed(**call), backend=backend)


def total_of(qkv):
    return qkv.flatten(0, 1)


WRONG = [
    (lambda q: (q.long(), None), "qkv must hold floating-point numbers, got torch.int64"),
    (lambda q: (q[0], None), r"qkv must be \(groups, length, 3, heads, dim\), got \(17, 3, 3, 16\)"),
    (lambda q: (q[:, :, :2], None), "qkv must be"),
    (lambda q: (q, bounds(0, 34)), r"qkv must be \(total, 3, heads, dim\)"),
    (lambda q: (total_of(q), bounds(0, 34).long()), r"\(groups \+ 1,\) in int32, got \(2,\) in torch.int64"),
    (lambda q: (total_of(q), bounds(0, 34)[None]), r"in int32, got \(1, 2\)"),
    (lambda q: (total_of(q), bounds(0)), r"got \(1,\) in torch.int32"),
    (lambda q: (total_of(q), bounds(1, 34)), "cu_seqlens must start at 0, got 1"),
    (lambda q: (total_of(q), bounds(0, 9, 9, 34)), "cu_seqlens must increase, got 9 and then 9 at 2"),
    (lambda q: (total_of(q), bounds(0, 9, 4, 34)), "got 9 and then 4 at 2"),
    (lambda q: (total_of(q), bounds(0, 9, 33)), "cu_seqlens ends at 33, but qkv holds 34 tokens"),
    (lambda q: (total_of(q), bounds(0, 9, 35)), "ends at 35"),
    (lambda q: (total_of(q), torch.empty(3, dtype=torch.int32, device="meta")), "cu_seqlens is on meta, qkv on cpu"),
]


@pytest.mark.parametrize("backend", ["auto", "triton", "reference"])
@pytest.mark.parametrize(("call", "said"), WRONG)
def test_wrong_input_is_refused_before_anything_runs(triton_on_cpu, unchecked, backend, call, said):
    """As users see it: without the shape checks of the tests."""
    qkv, cu_seqlens = call(packed(dim=16))
    with pytest.raises(ValueError, match=said):
        group_attention(qkv, cu_seqlens=cu_seqlens, backend=backend)


def test_inference_tensors_are_read_each_time_and_not_remembered():
    with torch.inference_mode():
        qkv, cu_seqlens = packed()[0], bounds(0, 9, 17)
        first = group_attention(qkv, cu_seqlens=cu_seqlens)
        cu_seqlens[1] = 3
        assert torch.equal(group_attention(qkv, cu_seqlens=cu_seqlens)[:3], group_attention(qkv[None, :3])[0])
        assert not torch.equal(first, group_attention(qkv, cu_seqlens=cu_seqlens))


class OnGpu:
    """What `auto` looks at, of a tensor that is nowhere."""

    is_cuda, is_meta, device = True, False, torch.device("cuda", 0)

    def __init__(self, length, dim, dtype=torch.bfloat16):
        self.shape, self.dtype = (4, length, 3, 2, dim), dtype


@pytest.fixture
def gpu(monkeypatch, unchecked):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(backends.attention_op, "trusted", lambda *_: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_auto_reads_its_table(gpu, monkeypatch):
    assert backends.pick(OnGpu(257, 112)) == "triton"
    assert backends.pick(OnGpu(514, 112)) == "sdpa"
    assert backends.pick(OnGpu(257, 128)) == "sdpa"
    assert backends.pick(OnGpu(257, 112, torch.float32)) == "sdpa"
    assert backends.pick(OnGpu(514, 112), ragged=True) == "varlen"
    assert backends.pick(OnGpu(514, 112, torch.float32), ragged=True) == "sdpa"
    monkeypatch.setattr(backends, "AUTO", (Rule("xformers", False, (torch.float32,), (64,), 9), *AUTO))
    assert [backends.pick(OnGpu(n, 64, torch.float32)) for n in (9, 10)] == ["xformers", "sdpa"]


def test_auto_leaves_out_what_cannot_serve_or_is_not_trusted(gpu, monkeypatch):
    monkeypatch.setattr(backends.attention_op, "trusted", lambda *_: False)
    assert backends.pick(OnGpu(257, 112)) == "sdpa"
    assert backends.pick(OnGpu(257, 112), backend="triton") == "triton"  # who names it gets it
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert backends.pick(OnGpu(514, 112), ragged=True) == "sdpa"
    with pytest.raises(ValueError, match=r"needs compute capability 8.0 or newer, got 7.5"):
        backends.pick(OnGpu(257, 112), backend="triton")


def test_shapes_without_numbers_are_counted_the_same_for_every_backend():
    with torch.device("meta"):
        qkv = torch.empty(2, 17, 3, 3, 8)
    assert {group_attention(qkv, backend=name).shape for name in ATTENTION_BACKENDS} == {(2, 17, 3, 8)}


@pytest.fixture
def untried(monkeypatch):
    monkeypatch.setattr(trial, "_verdicts", {})


def test_a_kernel_that_agrees_is_trusted_in_any_mode_and_tried_once(triton_on_cpu, untried, monkeypatch):
    op = backends.attention_op
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert op.trusted(torch.device("cpu"), torch.float32, 16)
    monkeypatch.setattr(op, "kernels", lambda: pytest.fail("a second trial"))
    assert op.trusted(torch.device("cpu"), torch.float32, 16)


@pytest.mark.parametrize("broken", [lambda right, *a: right(*a) * 1.001, lambda right, *a: 1 / 0])
def test_a_kernel_that_is_wrong_or_breaks_is_not_trusted(triton_on_cpu, untried, monkeypatch, broken):
    op = backends.attention_op
    right = op.kernels()
    wrong = SimpleNamespace(forward=right.forward, backward=partial(broken, right.backward))
    monkeypatch.setattr(op, "kernels", lambda: wrong)
    with pytest.warns(UserWarning, match="a kernel of tefusion is not used on cpu in torch.float32"):
        assert not op.trusted(torch.device("cpu"), torch.float32, 16)


def test_a_capture_or_a_counter_allows_no_trial_and_leaves_no_verdict(untried, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not trial.trusted(("question",), lambda: pytest.fail("a trial"))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with FlopCounterMode(display=False):  # it would count the trial
        assert not trial.trusted(("question",), lambda: pytest.fail("a trial"))
    assert trial.trusted(("question",), lambda: True)


def test_nan_agrees_with_nothing():
    with pytest.warns(UserWarning, match="its errors are nan"):
        assert not agrees(lambda x: x * math.nan, lambda x: x, torch.ones(3))


COPIES = {"aten::copy_", "aten::clone", "aten::contiguous", "aten::_to_copy", "aten::cat", "aten::stack"}


def copied(call, numel):
    """The copies of at least `numel` numbers that a call makes, but for what a linear map does inside."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        call()
    copies = [e for e in recorded.events() if e.name in COPIES and "aten::linear" not in parents(e)]
    return [e.name for e in copies if max(map(size, e.input_shapes), default=0) >= numel]


def parents(event):
    return {event.cpu_parent.name} | parents(event.cpu_parent) if event.cpu_parent else set()


def size(shape):
    return math.prod(shape) if shape and all(isinstance(n, int) for n in shape) else 0


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_attention_reads_the_projections_output_where_it_is(triton_on_cpu, monkeypatch, backend):
    """No copy of q, k or v in a tower's attention over k frames."""
    monkeypatch.setenv("TEFUSION_ATTENTION", backend)
    method, x = TEFusion(k=4, width=48), torch.randn(1, 8, 17, 48)
    clip = Clip(4, 4, torch.zeros(1, 8))
    seen = []
    blocks = torch.nn.ModuleList([ViTBlock(48, 3, 64, 1e-6)])
    if backend == "triton":  # by construction: the kernel gets the projection's memory itself
        right, outputs = backends.attention_op.kernels(), []
        blocks[0].attention.qkv.register_forward_hook(lambda *a: outputs.append(a[2].data_ptr()))
        inside = type("K", (), {"forward": lambda qkv, *a: seen.append(qkv.data_ptr()) or right.forward(qkv, *a)})
        monkeypatch.setattr(backends.attention_op, "kernels", lambda: inside)
        method.encode(x, blocks, clip)
        assert seen == outputs
        assert len(seen) == 1
    else:
        assert copied(lambda: method.encode(x, blocks, clip), 8 * 17 * 48) == []
        spoiled = torch.randn(2, 68, 3, 3, 16)
        assert copied(lambda: group_attention(spoiled.clone()), 8 * 17 * 48) == ["aten::clone", "aten::copy_"]


@pytest.mark.heavy
def test_the_operators_tests_pass_on_the_kernels_too():
    """Everything in test_attention_op.py once more, with the kernels instead of the stand-in."""
    interpreter.run("test_attention_op.py")
