"""The Triton kernels are the reference, whatever lies around them. Run by test_triton_attention.py."""

import math
import mmap

import interpreter
import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from tefusion.kernels import configs, triton_attention

interpreter.repair()
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # rows behind the end overflow unseen

DOUBLE, SINGLE, HALF, BRAIN = torch.float64, torch.float32, torch.float16, torch.bfloat16
# relative RMS, forward and backward; fp64 is as near as its scale, which is rounded to fp32
TOLERANCE = {DOUBLE: (1e-6, 1e-6), SINGLE: (1e-5, 1e-5), HALF: (1e-3, 1e-3), BRAIN: (6e-3, 1e-2)}
GUARD = 40  # rows of NaN on both sides of the inputs


@pytest.fixture(autouse=True)
def poisoned():
    """Memory that nobody wrote is NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.ones(1).new_empty(3).isnan().all()
    assert torch.empty_like(torch.ones(3)).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def drawn(*shape, dtype=SINGLE, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(dtype)


def guarded(rows):
    """The same numbers between rows of NaN."""
    buffer = rows.new_full((GUARD + len(rows) + GUARD, *rows.shape[1:]), math.nan)
    buffer[GUARD:-GUARD] = rows
    return buffer[GUARD:-GUARD]


def starts(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def attention(qkv, scale):
    """(tokens, 3, heads, dim) of one group -> (tokens, heads, dim)."""
    q, k, v = qkv.permute(1, 2, 0, 3)
    return (torch.softmax(q @ k.mT * scale, -1) @ v).transpose(0, 1)


def fused(qkv, scale):
    q, k, v = qkv.permute(1, 2, 0, 3)
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(0, 1)


def by_group(function, qkv, dout, lengths, scale):
    """(out, dqkv) of a function of one group."""
    qkv = qkv.detach().requires_grad_()
    out = torch.cat([function(group, scale) for group in qkv.split(list(lengths))])
    return out.detach(), torch.autograd.grad(out, qkv, dout)[0]


def kernels(qkv, dout, lengths, scale, dense=False):
    """(out, dqkv, lse) of ours, flat."""
    args = (None if dense else starts(lengths), scale, max(lengths))
    qkv = qkv.view(len(lengths), -1, *qkv.shape[1:]) if dense else qkv
    out, lse = triton_attention.forward(qkv, *args)
    dqkv = triton_attention.backward(dout.view(out.shape) if dense else dout, qkv, out, lse, *args)
    return (out.flatten(0, 1), dqkv.flatten(0, 1), lse) if dense else (out, dqkv, lse)


def far(got, expected, floor=0.0):
    """Relative RMS."""
    return (got.double() - expected).norm().item() / max(expected.norm().item(), floor)


def agree(dim, lengths, dtype, *, heads=2, dense=False, factor=1.0, slack=1):
    scale = dim**-0.5
    qkv = guarded(factor * drawn(sum(lengths), 3, heads, dim, dtype=dtype))
    dout = guarded(drawn(sum(lengths), heads, dim, dtype=dtype, seed=1))
    out, dqkv, lse = kernels(qkv, dout, lengths, scale, dense)
    assert out.dtype == dqkv.dtype == dtype
    exact, slopes = by_group(attention, qkv.double(), dout.double(), lengths, scale)
    theirs = by_group(fused, qkv.contiguous(), dout, lengths, scale)
    forward, backward = (slack * tolerance for tolerance in TOLERANCE[dtype])
    floor = slopes.norm().item() if max(lengths) == 1 else 0.0  # where slopes of q and k are zero
    assert far(out, exact) <= forward
    assert far(out, exact) <= max(2 * far(theirs[0], exact), forward / 10)
    for ours, their, slope in zip(dqkv.unbind(1), theirs[1].unbind(1), slopes.unbind(1), strict=True):
        mine, fused_one = far(ours, slope, floor), far(their, slope, floor)
        assert mine <= max(backward, 1.1 * fused_one)  # slopes of a pair are differences: its format bounds both
        assert mine <= max(2 * fused_one, backward / 10)
    for group, mass in zip(qkv.double().split(list(lengths)), lse.split(list(lengths), 1), strict=True):
        scores = torch.einsum("ihd, jhd -> hij", group[:, 0], group[:, 1]) * scale
        torch.testing.assert_close(mass.double(), scores.logsumexp(-1) / math.log(2), rtol=1e-4, atol=1e-4)


@triton.jit
def product(a, b, out, SIZE: tl.constexpr):
    places = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    c = tl.dot(tl.load(a + places), tl.load(b + places))
    tl.store(out + places, c.to(out.dtype.element_ty))


def test_the_repaired_interpreter_multiplies_bf16_and_rounds_to_nearest():
    a, b = (drawn(16, 16, dtype=BRAIN, seed=seed) for seed in (0, 1))
    for dtype in (SINGLE, BRAIN):
        out = torch.empty(16, 16, dtype=dtype)
        product[(1,)](a, b, out, 16)
        torch.testing.assert_close(out, (a.float() @ b.float()).to(dtype), rtol=1e-6, atol=1e-6)
    for number in (1.00390625, 1.01171875, 3.4e38, -1e-40, math.inf, -math.inf, math.nan):  # two ties, an overflow
        bits = interpreter.nearest_bf16(torch.tensor([number]).numpy()).astype("int16")
        torch.testing.assert_close(torch.from_numpy(bits).view(BRAIN), torch.tensor([number]).to(BRAIN), equal_nan=True)


@pytest.mark.parametrize("dtype", [SINGLE, HALF, BRAIN])
def test_the_length_of_glm4v_agrees(dtype):
    agree(112, [257], dtype, heads=1, dense=True)


@pytest.mark.parametrize("dim", [16, 64, 72, 88, 128])
@pytest.mark.parametrize("length", [1, 2, 17, 33])
def test_small_groups_agree(dim, length):
    agree(dim, [length] * 2, SINGLE, dense=True)


@pytest.mark.parametrize("dtype", [HALF, BRAIN, DOUBLE])
@pytest.mark.parametrize("dim", [64, 112])
def test_other_precisions_agree(dim, dtype):
    agree(dim, [65, 16], dtype)


@pytest.mark.parametrize("lengths", [[130, 1, 33], [5, 0, 64, 0], [16, 15, 2]])
def test_groups_of_unequal_length_agree(lengths):
    agree(80, lengths, SINGLE)


@pytest.mark.heavy
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 33, 65, 257])
@pytest.mark.parametrize("dim", range(16, 129, 8))
def test_every_head_dim_agrees(dim, length):
    agree(dim, [length] * 2, SINGLE, heads=1, dense=True)


@pytest.mark.heavy
@pytest.mark.parametrize("dtype", [HALF, BRAIN, DOUBLE])
@pytest.mark.parametrize("lengths", [[1], [2], [15], [16], [17], [33], [65], [257, 514], [300, 40, 129, 128, 255]])
@pytest.mark.parametrize("dim", [64, 72, 96, 112])
def test_every_precision_agrees(dim, lengths, dtype):
    agree(dim, lengths, dtype, heads=1)


@pytest.mark.heavy
def test_a_group_of_four_frames_agrees():
    agree(112, [4 * 257, 257], BRAIN, heads=1)


@pytest.mark.parametrize("dtype", [SINGLE, HALF, BRAIN])
def test_large_scores_neither_overflow_nor_vanish(dtype):
    agree(64, [40, 17], dtype, factor=6.0, slack=20)  # a score of 300 is rounded by 1.8e-5, its weight too


@pytest.mark.parametrize("sign", [-1, 1])
def test_scores_far_below_and_above_zero(sign):
    """All scores of a query near sign * 4000: exp alone would give 0 / 0 or inf / inf."""
    qkv, lengths = drawn(70, 3, 1, 32), [70]
    qkv[:, 0], qkv[:, 1] = 50 + qkv[:, 0] / 50, sign * (14 + qkv[:, 1] / 50)
    dout = drawn(70, 1, 32, seed=1)
    out, dqkv, lse = kernels(qkv, dout, lengths, 32**-0.5)
    exact, slopes = by_group(attention, qkv.double(), dout.double(), lengths, 32**-0.5)
    assert (lse * sign > 5000).all()
    assert far(out, exact) <= 2e-3  # scores of 4000 are known to 2e-4 in fp32
    assert far(dqkv, slopes) <= 2e-3


def test_one_key_that_wins_takes_all():
    qkv = torch.zeros(40, 3, 1, 16)
    qkv[:, 0, 0, 0], qkv[39, 1, 0, 0], qkv[:, 2] = 1e3, 1e3, drawn(40, 1, 16)
    out, dqkv, _ = kernels(qkv, drawn(40, 1, 16, seed=1), [40], 1.0)
    assert torch.equal(out, qkv[39:, 2].expand(40, 1, 16))
    assert dqkv.isfinite().all()


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("poison", [math.inf, math.nan])
def test_a_group_is_alone(dense, poison):
    lengths = [33] * 3
    qkv, dout = drawn(99, 3, 2, 72), drawn(99, 2, 72, seed=1)
    before = kernels(qkv, dout, lengths, 0.1, dense)
    for rows in (slice(0, 33), slice(66, 99)):
        qkv[rows] = dout[rows] = poison
    after = kernels(qkv, dout, lengths, 0.1, dense)
    for a, b in zip(after, before, strict=True):
        rows = (slice(33, 66),) if a.ndim > 2 else (slice(None), slice(33, 66))
        assert torch.equal(a[rows], b[rows])
        assert a[rows].isfinite().all()


def test_heads_are_alone():
    qkv, dout = drawn(20, 3, 3, 24), drawn(20, 3, 24, seed=1)
    before = kernels(qkv, dout, [20], 0.2)
    qkv[:, :, [0, 2]] = dout[:, [0, 2]] = math.inf
    after = kernels(qkv, dout, [20], 0.2)
    assert torch.equal(after[0][:, 1], before[0][:, 1])
    assert torch.equal(after[1][:, :, 1], before[1][:, :, 1])


@pytest.mark.parametrize("kind", ["expanded", "columns", "transposed"])
def test_incoming_slopes_of_any_strides(kind):
    qkv, shape = drawn(34, 3, 2, 24).view(2, 17, 3, 2, 24), (2, 17, 2, 24)
    dout = {
        "expanded": lambda: torch.ones(()).expand(shape),
        "columns": lambda: drawn(2, 17, 2, 32)[..., 8:],
        "transposed": lambda: drawn(2, 2, 24, 17).movedim(-1, 1),
    }[kind]()
    assert not dout.is_contiguous()
    out, lse = triton_attention.forward(qkv, None, 0.2, 17)
    got, expected = (triton_attention.backward(d, qkv, out, lse, None, 0.2, 17) for d in (dout, dout.contiguous()))
    assert torch.equal(got, expected)


@pytest.mark.parametrize("kind", ["columns", "odd columns", "groups", "heads"])
def test_packed_inputs_of_any_strides(kind):
    qkv = {
        "columns": lambda: drawn(2, 17, 3, 2, 40)[..., 8:32],
        "odd columns": lambda: drawn(2, 17, 3, 2, 25)[..., :24],
        "groups": lambda: drawn(2, 20, 3, 2, 24)[:, :17],
        "heads": lambda: drawn(2, 17, 3, 5, 24)[:, :, :, ::4],
    }[kind]()
    out, lse = triton_attention.forward(qkv, None, 0.2, 17)
    plain = triton_attention.forward(qkv.contiguous(), None, 0.2, 17)
    assert torch.equal(out, plain[0])
    assert torch.equal(lse, plain[1])
    dqkv = triton_attention.backward(out, qkv, out, lse, None, 0.2, 17)
    assert torch.equal(dqkv, triton_attention.backward(out, qkv.contiguous(), out, lse, None, 0.2, 17))
    assert dqkv.is_contiguous()


def far_apart(rows, stride):
    """The same numbers, `stride` elements from token to token: pages in between that nobody touches take no memory."""
    memory = mmap.mmap(-1, len(rows) * stride * rows.itemsize)
    far = torch.frombuffer(memory, dtype=rows.dtype).as_strided(rows.shape, (stride, *rows.stride()[1:]))
    return far.copy_(rows)


@pytest.mark.parametrize(("lengths", "stride"), [([258], 1 << 23), ([129, 129], 1 << 23), ([70], 1 << 25)])
def test_places_beyond_32_bits_are_reached(lengths, stride):
    """Between groups, between tiles, and inside one."""
    qkv, dout = drawn(sum(lengths), 3, 1, 16, dtype=HALF), drawn(sum(lengths), 1, 16, dtype=HALF, seed=1)
    assert sum(lengths) * stride > 1 << 31
    near = kernels(qkv, dout, lengths, 0.25)
    for got, expected in zip(kernels(far_apart(qkv, stride), dout, lengths, 0.25), near, strict=True):
        assert torch.equal(got, expected)


class Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, cu_seqlens, scale, length):
        out, lse = triton_attention.forward(qkv, cu_seqlens, scale, length)
        ctx.save_for_backward(qkv, out, lse)
        ctx.rest = (cu_seqlens, scale, length)
        return out

    @staticmethod
    def backward(ctx, dout):
        return triton_attention.backward(dout, *ctx.saved_tensors, *ctx.rest), None, None, None


@pytest.mark.parametrize(("dim", "lengths"), [(16, [3, 18]), (24, [35])])
def test_slopes_are_slopes_of_the_forward(dim, lengths):
    qkv = drawn(sum(lengths), 3, 1, dim, dtype=DOUBLE).requires_grad_()
    args = (starts(lengths), dim**-0.5, max(lengths))
    assert torch.autograd.gradcheck(lambda x: Attention.apply(x, *args), qkv, fast_mode=True, eps=1e-4, atol=1e-4)


def test_nothing_is_launched_for_nothing():
    for qkv in (drawn(0, 17, 3, 2, 24), drawn(2, 17, 3, 0, 24)):
        out, lse = triton_attention.forward(qkv, None, 0.2, 17)
        assert out.shape == (*qkv.shape[:2], *qkv.shape[3:])
        assert triton_attention.backward(out, qkv, out, lse, None, 0.2, 17).shape == qkv.shape


def test_a_negative_scale_is_refused():
    with pytest.raises(ValueError, match=r"scale must not be negative, got -0\.1"):
        triton_attention.forward(drawn(1, 4, 3, 1, 16), None, -0.1, 4)


def test_tuning_takes_the_fastest_and_keeps_it(monkeypatch, tmp_path):
    """A clock that likes tiles of 64 x 64 best; what is launched afterwards are those."""
    monkeypatch.setattr(configs, "TUNED", {})
    qkv, launched = drawn(1, 70, 3, 1, 16), []
    monkeypatch.setattr(triton_attention, "launch", lambda *args: launched.append(args[-1]))

    def timed(run):
        run()
        return abs(launched[-1].block_m - 64) + abs(launched[-1].block_n - 64) + launched[-1].warps

    found = triton_attention.tune(qkv, None, 0.25, 70, timed)
    assert [key.partition("/")[0] for key in found] == list(triton_attention.KERNELS)
    best = configs.pick("forward", 90, 16, 4, 100)
    assert best == configs.Config(64, 64, 4, 2) != configs.pick("forward", 90, 16, 4, 200)
    configs.export(tmp_path / "tuned.json")
    monkeypatch.setattr(configs, "TUNED", {})
    assert configs.pick("forward", 90, 16, 4, 100) != best
    configs.load(tmp_path / "tuned.json")
    assert found == configs.TUNED
