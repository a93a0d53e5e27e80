"""Which parameters each optimizer takes, what a freeze mode leaves alone, and the schedule."""

import pytest
import torch
from contract import perturb

from tefusion.compressors import COMPRESSORS
from tefusion.config import Run
from tefusion.muon import Muon
from tefusion.objective import VideoObjective
from tefusion.optim import freeze, muon_matrices, optimizers, schedule
from tefusion.train import create_vlm

CLIP = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def runs(compressor, **settings):
    k = 1 if compressor == "none" else 4
    return Run(compressor=compressor, k=k, n_input=4, encoder="tiny", decoder="tiny", **settings)


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_muon_takes_matrices_of_layers_only(compressor):
    vlm = create_vlm(runs(compressor))
    names = {id(p): name for name, p in vlm.named_parameters()}
    matrices = {names[id(p)]: p for p in muon_matrices(vlm)}
    assert all(p.ndim == 2 for p in matrices.values())
    for part in ("encoder.tower.blocks", "encoder.projector", "decoder.model.layers"):
        assert any(name.startswith(part) for name in matrices), part
    others = ("embed_tokens", "lm_head", "patchify", "position", "boi", "eoi", "norm", "bias")
    assert not [name for name in matrices if any(other in name for other in others)]
    linears = {f"{name}.weight" for name, m in vlm.encoder.compressor.named_modules() if isinstance(m, torch.nn.Linear)}
    assert {name.removeprefix("encoder.compressor.") for name in matrices if "compressor" in name} == linears


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_every_parameter_has_exactly_one_optimizer(optimizer):
    run = runs("qformer", optimizer=optimizer)
    vlm = create_vlm(run)
    objective = VideoObjective(vlm, 3, 1.0)
    made = optimizers(objective, vlm, run)
    assert [type(o).__name__ for o in made] == ["AdamW", "Muon"][: 2 if optimizer == "muon" else 1]
    taken = [id(p) for o in made for group in o.param_groups for p in group["params"]]
    assert sorted(taken) == sorted(id(p) for p in objective.parameters())


KEPT = {
    "none": [],
    "encoder": ["encoder.tower."],
    "decoder": ["decoder."],
    "all_but_compressor": ["encoder.tower.", "encoder.projector.", "decoder.", "boi", "eoi"],
}


@pytest.mark.parametrize("what", KEPT)
@pytest.mark.parametrize("compressor", ["te_fusion", "kangaroo"])
def test_one_step_changes_what_the_freeze_mode_leaves_and_nothing_else(what, compressor):
    run = runs(compressor, weight_decay=0.1)
    vlm = perturb(create_vlm(run))
    freeze(vlm, what)
    objective = VideoObjective(vlm, 3, 1.0)
    made = optimizers(objective, vlm, run)
    before = {name: p.detach().clone() for name, p in vlm.named_parameters()}
    vlm([CLIP], ["Which way?"], ["A"]).loss.backward()
    for optimizer in made:
        optimizer.step()
    same = {name for name, p in vlm.named_parameters() if torch.equal(p, before[name])}
    frozen = {name for name in before if name.startswith(tuple(KEPT[what]))}
    assert same == frozen
    assert frozen < set(before)


def test_the_schedule_warms_up_and_ends_at_its_share():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=2.0)
    plan = schedule(optimizer, steps=100, warmup=10, final=0.1)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        plan.step()
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[55] == pytest.approx(2.0 * 0.55)  # half-way down the cosine
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2)


@pytest.mark.parametrize("done", [1, 7, 10, 60, 99])
def test_the_schedule_goes_on_after_any_step(done):
    rates = []
    for first in (0, done):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
        plan = schedule(optimizer, 100, 10, 0.1, first)
        rates.append([])
        for _ in range(first, 100):
            rates[-1].append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            plan.step()
    assert rates[0][done:] == rates[1]


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_a_short_run_still_reaches_its_rate(steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    plan = schedule(optimizer, steps, warmup=50, final=0.1)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        plan.step()
    assert max(rates) == 1.0


def stepped(made, weight, gradients):
    """The weight after a step with each of the gradients."""
    parameter = torch.nn.Parameter(weight.clone())
    optimizer = made([parameter], lr=0.1, momentum=0.95, weight_decay=0.5)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("shape", [(48, 16), (16, 48), (16, 16)])
def test_muon_is_that_of_torch_without_its_rounding(shape, monkeypatch):
    weight, *gradients = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    ours = stepped(Muon, weight, gradients)
    assert (ours - stepped(torch.optim.Muon, weight, gradients)).norm() < 1e-2 * (ours - weight).norm()
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    torch.testing.assert_close(ours, stepped(torch.optim.Muon, weight, gradients), rtol=0, atol=1e-6)


def test_the_last_bits_of_a_gradient_stay_small():
    """They are what a sum in another order changes; torch's own Muon rounds them to bits of bfloat16."""
    weight, gradient, noise = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))
    gradients = gradient, gradient + 1e-5 * noise
    ours, theirs = [[stepped(made, weight, [g]) for g in gradients] for made in (Muon, torch.optim.Muon)]
    assert 20 * (ours[0] - ours[1]).norm() < (theirs[0] - theirs[1]).norm()


def test_muon_survives_a_gradient_of_zeros_and_leaves_its_own_alone():
    weight = torch.ones(4, 8)
    assert stepped(Muon, weight, [torch.zeros(4, 8)]).isfinite().all()
    parameter = torch.nn.Parameter(weight)
    parameter.grad = torch.ones(4, 8)
    Muon([parameter]).step()
    assert torch.equal(parameter.grad, torch.ones(4, 8))
