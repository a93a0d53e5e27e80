"""linear is torch.nn.functional.linear, whoever computes it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from tefusion.kernels import LINEAR_BACKENDS, Linear, cpu_linear, linear

pytestmark = pytest.mark.skipif(not cpu_linear.works(), reason="no oneDNN on this machine")

ROWS, INPUTS, OUT = 300, 96, 80  # enough multiply-adds for oneDNN


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def operands(rows=(ROWS,), inputs=INPUTS, out=OUT):
    tensors = drawn(*rows, inputs), drawn(out, inputs, seed=1), drawn(out, seed=2)
    return [t.requires_grad_() for t in tensors]


def close(got, expected):
    assert got.shape == expected.shape
    assert (got - expected).norm() <= 1e-5 * expected.norm()


def gradients(f, x, weight, bias, cotangent=None):
    """The output and what flows back to each operand that asks for it."""
    y = f(x, weight, bias)
    cotangent = drawn(*y.shape, seed=3) if cotangent is None else cotangent
    return [y, *torch.autograd.grad(y, [t for t in (x, weight, bias) if t is not None and t.requires_grad], cotangent)]


def agree(*operands_, **cotangent):
    pairs = zip(gradients(linear, *operands_, **cotangent), gradients(F.linear, *operands_, **cotangent), strict=True)
    for got, expected in pairs:
        close(got, expected)
        assert got.is_contiguous()  # as a parameter's gradient should lie


@pytest.fixture
def served(monkeypatch):
    """One entry for every product that oneDNN computed: the shapes of its operands."""
    served, product = [], cpu_linear.product

    def spy(x, weight, bias):
        served.append((tuple(x.shape), tuple(weight.shape)))
        return product(x, weight, bias)

    monkeypatch.setattr(cpu_linear, "product", spy)
    return served


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("inputs", "out"), [(96, 80), (64, 192), (256, 32)])
@pytest.mark.parametrize("rows", [(400,), (20, 20), (2, 10, 20)])
def test_output_and_gradients_are_pytorchs(rows, inputs, out, with_bias, served):
    x, weight, bias = operands(rows, inputs, out)
    agree(x, weight, bias if with_bias else None)
    assert len(served) == 3


STRANGE = {
    "transposed": lambda x: x.mT.contiguous().mT,
    "expanded rows": lambda x: x[:1].expand_as(x),
    "expanded columns": lambda x: x[:, :1].expand_as(x),
    "every second": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
    "offset": lambda x: F.pad(x, (3, 0))[:, 3:],
}


@pytest.mark.parametrize("strange", STRANGE)
def test_any_strides_will_do(strange, served):
    bend, (x, weight, bias) = STRANGE[strange], (t.detach() for t in operands())
    cotangent = drawn(ROWS, OUT)
    for changed in ({"x": bend(x)}, {"weight": bend(weight)}, {"cotangent": bend(cotangent)}):
        here = {"x": x, "weight": weight, "cotangent": cotangent} | changed
        agree(here["x"].requires_grad_(), here["weight"].requires_grad_(), bias, cotangent=here["cotangent"])
    agree(x, weight, bias[:1].expand_as(bias).requires_grad_())
    assert len(served) == 3 * 3 + 3


@pytest.mark.parametrize("strange", STRANGE)
def test_onednn_never_gets_a_weight_that_it_walks_slowly(strange):
    """A weight with gaps or repeats costs it 600 times the time."""
    strides = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            if "_linear_pointwise" in str(op):
                strides.append(args[1].stride())
            return op(*args, **(kwargs or {}))

    with Watch():
        cpu_linear.product(drawn(ROWS, INPUTS), STRANGE[strange](drawn(OUT, INPUTS)), None)
    assert strides == [(1, OUT) if strange == "transposed" else (INPUTS, 1)]


def test_one_row_and_no_rows(monkeypatch):
    agree(*operands((), 1500, 1500))
    monkeypatch.setenv("TEFUSION_LINEAR", "onednn")
    for rows in [(0,), (3, 0)]:
        x, weight, bias = operands(rows)
        y, *slopes = gradients(linear, x, weight, bias)
        assert y.shape == (*rows, OUT)
        assert all(torch.equal(s, torch.zeros_like(t)) for s, t in zip(slopes, (x, weight, bias), strict=True))


def test_a_map_used_twice_gets_both_gradients():
    x, weight, bias = operands(out=INPUTS)
    agree(x, weight, bias)
    twice = [torch.autograd.grad(f(f(x, weight, bias), weight, bias).sum(), weight)[0] for f in (linear, F.linear)]
    close(*twice)


def test_gradients_have_gradients():
    def curvature(f):
        x, weight, bias = operands()
        (slope,) = torch.autograd.grad(f(x, weight, bias).square().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), (x, weight, bias))

    for got, expected in zip(curvature(linear), curvature(F.linear), strict=True):
        close(got, expected)


@pytest.mark.parametrize("frozen", ["x", "weight", "both"])
def test_nothing_is_computed_or_kept_for_the_frozen(frozen, served):
    x, weight, bias = operands()
    x.requires_grad_(frozen == "weight")
    weight.requires_grad_(frozen == "x")
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        linear(x, weight, bias)
    served.clear()
    assert kept == {"x": [x.shape], "weight": [weight.shape], "both": []}[frozen]
    agree(x, weight, bias)
    assert len(served) == (1 if frozen == "both" else 2)


def test_without_gradients_nothing_is_recorded(served):
    x, weight, bias = operands()
    with torch.inference_mode():
        y = linear(x, weight, bias)
    assert len(served) == 1
    assert torch.equal(y, linear(x, weight, bias))
    assert not y.requires_grad


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_of_both_kinds(reentrant, served):
    def slopes(f):
        tensors = operands()
        y = f(*tensors)
        y.backward(drawn(*y.shape, seed=3))
        return [y, *(t.grad for t in tensors)]

    again = slopes(lambda *tensors: checkpoint(linear, *tensors, use_reentrant=reentrant))
    assert len(served) == 4  # forward twice
    assert all(torch.equal(a, b) for a, b in zip(slopes(linear), again, strict=True))


def test_a_row_is_alone():
    x, weight, bias = (t.detach() for t in operands())
    before = linear(x, weight, bias)[7]
    x[:7], x[8:] = float("nan"), float("inf")
    assert torch.equal(linear(x, weight, bias)[7], before)


def along(f, x, *rest):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, x), *rest)).tangent


def without_onednn(f, *operands_):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "enabled", False)
        return f(*operands_)


OTHERS = {  # calls that are PyTorch's own, to the bit, and what the refusal of an explicit "onednn" says
    "float64": (lambda f, o: f(*(t.double() for t in o)), "torch.float64"),
    "bfloat16": (lambda f, o: f(*(t.bfloat16() for t in o)), "torch.bfloat16"),
    "autocast": (lambda f, o: torch.autocast("cpu", torch.bfloat16)(f)(*o), "autocast"),
    "vmap": (lambda f, o: vmap(lambda row: f(row, *o[1:]))(o[0]), "transforms"),
    "grad": (lambda f, o: grad(lambda x: f(x, *o[1:]).sum())(o[0]), "transforms"),
    "jvp": (lambda f, o: torch.func.jvp(lambda x: f(x, *o[1:]), (o[0],), (o[0],))[1], "transforms"),
    "forward mode": (lambda f, o: along(f, *o), "transforms"),
    "trace": (lambda f, o: torch.jit.trace(lambda x: f(x, *o[1:]), o[0], check_trace=False)(o[0]), "transforms"),
    "subclass": (lambda f, o: f(*o[:2], o[2].as_subclass(nn.Buffer)), "Buffer"),
    "broadcast bias": (lambda f, o: f(*o[:2], o[2][:1]), "do not fit"),
    "switched off": (lambda f, o: without_onednn(f, *o), "no oneDNN"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("other", OTHERS)
def test_other_calls_are_pytorchs_own(other, served, monkeypatch):
    call, reason = OTHERS[other]
    operands_ = [t.detach() for t in operands()]
    assert torch.equal(call(linear, operands_), call(F.linear, operands_))
    assert served == []
    monkeypatch.setenv("TEFUSION_LINEAR", "onednn")
    with pytest.raises(ValueError, match=f"'onednn' cannot serve this call: .*{reason}"):
        call(linear, operands_)


def test_meta_tensors_have_shapes_only():
    x, weight, bias = (t.detach().to("meta") for t in operands())
    assert linear(x, weight, bias).shape == (ROWS, OUT)


@pytest.mark.parametrize("counted", ["both", "forward", "backward"])
def test_flops_are_counted(counted):
    x, weight, bias = operands()
    with FlopCounterMode(display=False) as forward:
        y = linear(x, weight, bias)
    y = y if counted != "backward" else linear(x, weight, bias)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    assert (forward.get_total_flops(), backward.get_total_flops()) == (2 * ROWS * INPUTS * OUT, 4 * ROWS * INPUTS * OUT)


@pytest.mark.usefixtures("unchecked")
def test_it_compiles_in_one_piece_for_any_number_of_rows(served, monkeypatch):
    layer = Linear(INPUTS, OUT)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in (ROWS, 3):
            x = drawn(rows, INPUTS)
            assert torch.equal(compiled(x), F.linear(x, layer.weight, layer.bias))
    assert served == []
    monkeypatch.setenv("TEFUSION_LINEAR", "onednn")
    with pytest.raises((ValueError, torch._dynamo.exc.TorchDynamoException), match="cannot serve this call"):
        torch.compile(Linear(INPUTS, OUT), fullgraph=True, backend="eager")(x)


def test_small_calls_stay_with_pytorch(served, monkeypatch):
    x, weight, bias = operands((3,))
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    assert served == []
    monkeypatch.setenv("TEFUSION_LINEAR", "onednn")
    close(linear(x, weight, bias), F.linear(x, weight, bias))
    assert len(served) == 1


def test_the_environment_chooses(served, monkeypatch):
    operands_ = operands()
    monkeypatch.setenv("TEFUSION_LINEAR", "torch")
    assert torch.equal(linear(*operands_), F.linear(*operands_))
    assert served == []
    monkeypatch.setenv("TEFUSION_LINEAR", "mkl")
    with pytest.raises(ValueError, match=f"'mkl' is unknown; known: {', '.join(LINEAR_BACKENDS)}"):
        linear(*operands_)


@pytest.mark.parametrize("broken", [AttributeError, RuntimeError, TypeError, None])
def test_an_op_that_is_gone_or_wrong_is_not_used(broken, monkeypatch):
    def product(x, weight, bias):
        if broken:
            raise broken
        return F.linear(x, weight, bias) + 1e-3

    monkeypatch.setattr(cpu_linear, "product", product)
    monkeypatch.setattr(cpu_linear, "works", cpu_linear.works.__wrapped__)
    operands_ = operands()
    assert torch.equal(linear(*operands_), F.linear(*operands_))
    monkeypatch.setenv("TEFUSION_LINEAR", "onednn")
    with pytest.raises(ValueError, match="no oneDNN that agrees"):
        linear(*operands_)


def test_where_pytorchs_private_names_are_gone_the_call_is_pytorchs_own(monkeypatch, served):
    monkeypatch.delattr(torch._C, "_len_torch_dispatch_stack")
    operands_ = [t.detach() for t in operands()]
    assert torch.equal(linear(*operands_), F.linear(*operands_))
    assert served == []


def test_the_module_is_nn_linear():
    torch.manual_seed(0)
    ours = Linear(INPUTS, OUT)
    torch.manual_seed(0)
    theirs = nn.Linear(INPUTS, OUT)
    assert isinstance(ours, nn.Linear)
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    x = drawn(ROWS, INPUTS)
    close(ours(x), theirs(x))
    assert functional_call(ours, {"bias": torch.zeros(OUT)}, x).shape == (ROWS, OUT)
