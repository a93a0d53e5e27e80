"""The chunked scan is the recurrence, forward and every gradient; which backend serves a call."""

import pytest
import torch

from tefusion.kernels import reference, scan, selective_scan


def inputs(length, rows=2, heads=3, dim=4, state=5):
    draw = torch.Generator().manual_seed(length)
    shapes = (rows, length, heads, dim), (rows, length, heads), (heads,), (rows, length, state), (rows, length, state)
    x, dt, a, b, c = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes)
    return [t.requires_grad_() for t in (x, dt.exp().detach(), -a.exp().detach(), b, c)]


@pytest.mark.parametrize(("length", "chunk"), [(1, 4), (4, 4), (13, 4), (32, 8), (7, 16)])
def test_chunks_are_the_recurrence(length, chunk):
    given = inputs(length)
    exact = reference.selective_scan(*given)
    weights = torch.randn_like(exact)
    expected = torch.autograd.grad((exact * weights).sum(), given)
    found = scan.chunked(*given, chunk=chunk)
    torch.testing.assert_close(found, exact)
    for mine, theirs in zip(torch.autograd.grad((found * weights).sum(), given), expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_what_comes_later_changes_nothing_before():
    x, *rest = inputs(20)
    later = x.detach().clone()
    later[:, 13:] += 1
    assert torch.equal(scan.chunked(x, *rest, chunk=8)[:, :13], scan.chunked(later, *rest, chunk=8)[:, :13])


def test_a_backend_that_cannot_serve_is_refused_in_a_line(monkeypatch):
    given = inputs(3)
    for name, said in (("mamba_ssm", "it runs on a GPU"), ("mamba", "is unknown")):
        monkeypatch.setenv("TEFUSION_SCAN", name)
        with pytest.raises(ValueError, match=said):
            selective_scan(*given)
