"""How much a run trains: the same FLOPs for all where that is asked, the same samples else."""

import json
from dataclasses import replace

import pytest

from tefusion.cells import METHODS, plan
from tefusion.config import Run, digest
from tefusion.cost import count, training_flops
from tefusion.effort import effort, reference_of, trained
from tefusion.rows import read_results
from tefusion.sweep import sweep

TINY = Run(n_input=8, k=2, size="32", encoder="tiny", decoder="tiny", steps=1000, batch=8)


@pytest.mark.parametrize("compressor", [*METHODS, "te_pyramid", "stc", "ssm"])
def test_equal_flops_are_equal_to_half_a_step(compressor):
    k = 1 if compressor == "none" else 2
    run = replace(TINY, compressor=compressor, k=k, equal="flops:none:1:8", times=3)
    asked = 3000 * training_flops(reference_of(run))
    assert abs(trained(run).steps * training_flops(run) - asked) <= training_flops(run) / 2
    assert effort(run) == {
        "trained_steps": trained(run).steps,
        "training_flops": trained(run).steps * 8 * training_flops(run),
    }
    forward = count(run)["flops"]
    assert 2.5 * forward < training_flops(run) <= 3 * forward  # what enters the encoder needs no gradient


def test_what_is_frozen_costs_no_gradient_of_its_own():
    whole, encoder, decoder, most = (
        training_flops(replace(TINY, freeze=what)) for what in ("none", "encoder", "decoder", "all_but_compressor")
    )
    assert count(TINY)["flops"] < most < min(encoder, decoder) < max(encoder, decoder) < whole


def test_a_run_spends_what_its_reference_does():
    assert trained(replace(TINY, equal="flops:te_fusion:2:8")).steps == 1000
    text = replace(TINY, compressor="none", k=1, n_input=0)
    assert trained(text).steps == 1000 < trained(replace(text, equal="flops:none:1:8")).steps


def test_multiples_are_worked_out_once():
    run = replace(TINY, times=4, lr_scale=0.5, optimizer="adamw")
    plain = trained(run)
    assert (plain.steps, plain.lr, plain.muon_lr) == (4000, TINY.lr / 2, TINY.muon_lr / 2)
    assert trained(plain) == plain == replace(TINY, optimizer="adamw", steps=4000, lr=plain.lr, muon_lr=plain.muon_lr)
    assert trained(TINY) == TINY


def test_a_reference_has_one_spelling():
    spelled = ["flops", "flops:none:1:8", "flops:none:1:8:32"]
    assert {replace(TINY, equal=equal).equal for equal in spelled} == {"flops:none:1:8:32"}
    assert len({digest(replace(TINY, equal=equal)) for equal in spelled}) == 1
    method = replace(TINY, equal="flops:te_fusion:readout=mean:4:16")
    assert reference_of(method) == replace(TINY, compressor="te_fusion:readout=mean", k=4, n_input=16)
    assert reference_of(TINY) == TINY


@pytest.mark.parametrize(
    ("equal", "says"),
    [
        ("tokens", "equal must be samples, flops or flops:<compressor>:<k>:<n_input> such as flops:none:1:16"),
        ("flops:none", "equal must be"),
        ("flops:none:1:16:big", "equal must be"),
        ("flops:te_fuson:4:16", "did you mean 'te_fusion'"),
        ("flops:te_fusion:3:16", "16 frames (n_input) do not divide into groups of k = 3"),
        ("flops:none:1:16:1", "smaller than"),
    ],
)
def test_a_reference_that_cannot_be_is_refused_at_the_door(equal, says):
    with pytest.raises(ValueError, match=r"\w") as raised:
        plan([f"equal={equal}", "k=4", "encoder=tiny", "controls=false", "compressor=none"])
    assert says in str(raised.value)


@pytest.mark.parametrize("words", [["n_input=8,16", "k=2,4"], ["n_per_k=4", "k=2,4"]])
def test_all_cells_of_a_protocol_share_a_reference_which_is_the_baseline(words):
    grid = [cell.run for cell in plan([*words, "equal=flops", "compressor=none,te_fusion", "encoder=tiny"])[1]]
    bases = {run for run in grid if reference_of(run) == replace(run, equal="samples")}
    assert {run.n_input for run in bases} == ({4} if "n_per_k=4" in words else {8, 16})
    assert {run.equal for run in grid} == {run.equal for run in bases}
    assert all(run.compressor == "none" for run in bases)
    if "n_per_k=4" not in words:
        assert "32x16" in {run.size for run in grid}  # a smaller picture is no cheaper reference


def test_equal_and_times_are_axes():
    runs = [cell.run for cell in plan(["equal=samples,flops", "times=1,4,16", "init=image,scratch", "k=4"])[1]]
    made = {(run.equal, run.times, run.init) for run in runs if run.compressor == "te_fusion"}
    assert len(made) == 2 * 3 * 2
    assert len({digest(run) for run in runs}) == len(runs)


def test_a_cell_trains_the_steps_that_its_row_says(clips, home, tmp_path, monkeypatch):
    monkeypatch.setattr("tefusion.sweep.jobs_at_once", lambda asked: 0)  # here
    small = [f"data={clips}", f"home={home}", f"out={tmp_path}", "steps=2", "init=scratch", "batch=8", "n_input=4"]
    small += ["k=2", "size=32", "encoder=tiny", "decoder=tiny", "controls=false", "compressor=te_fusion"]
    sweep([*small, "times=2", "equal=flops:none:1:8", "lr_scale=0.5"])
    (row,) = read_results(tmp_path)
    run = Run(**row["settings"])
    assert (row["steps"], row["settings"]["times"], row["settings"]["equal"]) == (2, 2, "flops:none:1:8:32")
    assert row["trained_steps"] == trained(run).steps > 4
    assert row["training_flops"] == pytest.approx(4 * 8 * training_flops(reference_of(run)), rel=0.15)
    log = (tmp_path / "cells" / row["id"] / "log.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["step"] == row["trained_steps"]
