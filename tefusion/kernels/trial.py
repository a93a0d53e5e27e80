"""Whether a fast version agrees with its definition: the question that tests, benchmarks and `auto` ask alike."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from tefusion.kernels.cpu_linear import intercepted

# relative RMS against the definition in fp64, forward and backward
TOLERANCES = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 1e-5),
    torch.float16: (1e-3, 1e-3),
    torch.bfloat16: (6e-3, 1e-2),
}


def errors(ours: Callable[..., Tensor], definition: Callable[..., Tensor], *inputs: Tensor) -> list[float]:
    """Relative RMS of the output, then of each input's gradient, against the definition in fp64 on the same inputs."""
    exact, given = ([t.detach().to(d).requires_grad_() for t in inputs] for d in (torch.float64, inputs[0].dtype))
    out, theirs = ours(*given), definition(*exact)
    cotangent = torch.sin(1 + torch.arange(out.numel(), device=out.device)).view(out.shape).to(out.dtype)
    found = [out, *torch.autograd.grad(out, given, cotangent)]
    wanted = [theirs, *torch.autograd.grad(theirs, exact, cotangent.double())]
    return [distance(a, b) for a, b in zip(found, wanted, strict=True)]


def distance(found: Tensor, wanted: Tensor) -> float:
    """NaN where `found` has one; an absolute length where nothing but zeros is wanted."""
    length = wanted.norm().item()
    return (found.double() - wanted).norm().item() / (length or 1.0)


_verdicts: dict[tuple, bool] = {}


def trusted(question: tuple, trial: Callable[[], bool]) -> bool:
    """Tried once a process: a driver or a compiler may break a kernel that was right.

    A graph under capture or a mode that records the call leaves no room for a trial: until there was one, no trust.
    """
    if question not in _verdicts:
        if intercepted() or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
            return False
        _verdicts[question] = trial()
    return _verdicts[question]


def agrees(ours: Callable[..., Tensor], definition: Callable[..., Tensor], *inputs: Tensor) -> bool:
    """Forward and backward, whatever mode the caller is in. Warns where the answer is no."""
    device, dtype = inputs[0].device, inputs[0].dtype
    forward, backward = TOLERANCES[dtype]
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        try:
            out, *gradients = errors(ours, definition, *(t.clone() for t in inputs))
        except Exception as error:  # a compiler's or a driver's: of many classes
            warnings.warn(f"a kernel of tefusion is not used on {device} in {dtype}: {error}", stacklevel=2)
            return False
    right = out <= forward and all(gradient <= backward for gradient in gradients)
    if not right:
        warnings.warn(
            f"a kernel of tefusion is not used on {device} in {dtype}: its errors are {out:.1e} and {gradients}",
            stacklevel=2,
        )
    return right
