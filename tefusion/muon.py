"""Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon) as torch has it, but precise where that is free.

torch orthogonalises in bfloat16, which turns the last bit of a gradient into 0.4 % of a step: two processes, which add
their gradients in another order than one, then part by 5e-4 within twenty steps. A CPU multiplies float32 no slower
than bfloat16; accelerators do not, and keep it.
"""

from math import sqrt

import torch
from torch import Tensor


class Muon(torch.optim.Muon):
    """With Nesterov's momentum, and the learning rate scaled by sqrt(rows / columns) where a matrix is tall."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, parameter.grad, group)
        return loss

    def update(self, parameter: Tensor, gradient: Tensor, group: dict) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        direction = gradient.lerp(momentum, group["momentum"])
        dtype = torch.float32 if gradient.device.type == "cpu" else torch.bfloat16
        direction = orthogonalised(direction.to(dtype), group["ns_coefficients"], group["ns_steps"], group["eps"])
        rows, columns = parameter.shape
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(direction, alpha=-group["lr"] * sqrt(max(1, rows / columns)))


def orthogonalised(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Its singular values driven towards one by Newton and Schulz's iteration, in the dtype of `matrix`."""
    a, b, c = coefficients
    tall = matrix.size(0) > matrix.size(1)
    x = matrix.T if tall else matrix  # the smaller Gram matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
