"""Data-dependent length: what is kept, how many, where it stands, and that no fixed-length table holds it."""

from dataclasses import replace

import pytest
import torch
from test_report import cell, write_rows
from test_vlm import build

from tefusion.cells import Cell, plan
from tefusion.cli import run as command
from tefusion.compare import of_method
from tefusion.config import Run
from tefusion.cost import count
from tefusion.decoder import create_decoder
from tefusion.describe import describe_run
from tefusion.live import live_tables
from tefusion.pruners import PRUNERS, create_pruner
from tefusion.report import markdown, read_results, table
from tefusion.results import pruner
from tefusion.tokenizer import byte_level_tokenizer
from tefusion.train import create_vlm
from tefusion.watch import label

DROPS = (0, 0.3, 0.5, 0.75, 0.99)


def embeds(groups=4, tokens=6, width=8):
    return torch.randn(groups, tokens, width, generator=torch.Generator().manual_seed(groups))


def by_hand(x, drop):
    """vLLM's rule, token by token."""
    groups, tokens, _ = x.shape
    left = max(tokens, int(groups * tokens * (1 - drop)))
    news = []
    for g in range(groups):
        for m in range(tokens):
            cosine = torch.dot(x[g, m], x[g - 1, m]) / (x[g, m].norm() * x[g - 1, m].norm())
            news.append((-255.0 if g == 0 else -(1 - cosine).item(), g * tokens + m))
    return {place for _, place in sorted(news)[:left]}


@pytest.mark.parametrize("drop", DROPS)
@pytest.mark.parametrize("groups", [1, 2, 5])
def test_the_tokens_that_change_most_are_kept_and_as_many_as_promised(groups, drop):
    x, made = embeds(groups), create_pruner(f"frame_difference:drop={drop}")
    kept = made.keep(x)
    assert set(kept.flatten().nonzero().flatten().tolist()) == by_hand(x, drop)
    assert kept[0].all()
    assert kept.sum() == made.tokens_out(groups, 6) == max(6, int(groups * 6 * (1 - drop)))


def test_of_a_still_video_the_first_frame_is_kept_and_then_what_comes_first():
    kept = create_pruner("frame_difference:drop=0.5").keep(torch.eye(6, 8).expand(4, 6, 8))
    assert kept.sum(1).tolist() == [6, 6, 0, 0]


@pytest.fixture
def vlms():
    torch.manual_seed(0)
    plain = build(create_decoder("tiny"), byte_level_tokenizer(["Which way?", "left"]), "none", 1)
    pruned = build(plain.decoder, plain.tokenizer, "none", 1)
    pruned.load_state_dict(plain.state_dict())
    pruned.pruner = create_pruner("frame_difference:drop=0.6")
    return plain, pruned


@torch.no_grad()
def test_what_is_left_stands_where_it_stood_with_every_frames_boi_and_eoi(vlms):
    plain, pruned = vlms
    clip = torch.randint(0, 256, (4, 40, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    (x,) = plain.encode([clip])
    whole, rest = (vlm.splice([x], [[5, 6, 7]]) for vlm in (plain, pruned))
    stays = torch.nn.functional.pad(pruned.pruner.keep(x), (1, 1), value=True).flatten()
    stays = torch.cat([stays, torch.ones(3, dtype=torch.bool)])
    assert torch.equal(rest.embeds, whole.embeds[:, stays])
    assert torch.equal(rest.positions, whole.positions[:, stays])
    assert rest.embeds.shape[1] - 3 == pruned.tokens_out(4, 40, 48) < plain.tokens_out(4, 40, 48)
    assert pruned.embeds_out(4, 40, 48) == int(4 * 6 * 0.4)
    pruned.pruner = PRUNERS["none"]()
    assert torch.equal(pruned.splice([x], [[5, 6, 7]]).embeds, whole.embeds)


def test_trained_with_and_test_only(vlms):
    _, pruned = vlms
    x = [embeds(4, 4, 64)]
    for always, mode, length in ((True, True, 6), (True, False, 6), (False, True, 16), (False, False, 6)):
        pruned.prunes_training = always
        pruned.train(mode)
        assert pruned.splice(x, [[5]]).embeds.shape[1] == length + 2 * 4 + 1
    pruned.train()
    pruned.prunes_training = True
    leaf = x[0].clone().requires_grad_()
    pruned.splice([leaf], [[5]]).embeds.square().sum().backward()
    assert torch.equal(leaf.grad.abs().sum(-1) > 0, pruned.pruner.keep(leaf))


def test_a_run_counts_what_it_keeps_and_old_runs_keep_their_names():
    run = Run(compressor="none", k=1, n_input=8, size="32", encoder="tiny", pruner="frame_difference:drop=0.75")
    cost, plain = count(run), count(replace(run, pruner="none"))
    assert (plain["l_decoder"], cost["l_decoder"]) == (32, 8)
    assert cost["prefill_flops"] < plain["prefill_flops"]
    assert cost["params"] == plain["params"]
    assert "8 of the 32 of 8 groups, chosen by frame_difference:drop=0.75" in describe_run(run)
    assert create_vlm(run).pruner.drop == 0.75
    assert not create_vlm(replace(run, pruned="test")).prunes_training
    assert replace(run, pruner="frame_difference:drop=0.50") == replace(run, pruner="frame_difference")
    assert Cell(replace(run, pruner="none", pruned="test")).id("x") == Cell(replace(run, pruner="none")).id("x")
    ids = {Cell(replace(run, pruner=p, pruned=w)).id("x") for p in ("none", run.pruner) for w in ("always", "test")}
    assert len(ids) == 3


def test_a_sweep_prunes_methods_and_never_their_controls():
    _, cells = plan(["compressor=none,te_fusion", "k=4", "pruner=frame_difference", "encoder=tiny"])
    assert {cell.run.pruner for cell in cells if not cell.control} == {"frame_difference"}
    assert {cell.run.pruner for cell in cells if cell.control} == {"none"}


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("frame_diference", "pruner 'frame_diference' is unknown; did you mean 'frame_difference'"),
        ("frame_difference:drop=1", "drop must be from 0 to below 1, got 1.0"),
        ("frame_difference:drop=-0.1", "drop must be from 0"),
        ("frame_difference:drop=half", "drop must be a number, got 'half'"),
        ("frame_difference:q=0.5", "frame_difference has no option 'q'"),
        ("none:drop=0.5", "none has no option 'drop'"),
    ],
)
def test_what_cannot_be_is_refused(word, says):
    with pytest.raises(ValueError, match=r"\w") as raised:
        Run(pruner=word)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_model_that_is_kept_cannot_prune(capsys):
    assert command("train", ["pruner=frame_difference"]) == 2
    assert "pruner= is for sweeps" in capsys.readouterr().err


def test_no_fixed_length_table_holds_a_pruned_run(tmp_path):
    settings = {"pruner": "frame_difference", "pruned": "test"}
    rows = [cell(tmp_path, seed=s) for s in (0, 1)]
    rows += [cell(tmp_path, seed=s, id=f"p{s}", rate=0.7, settings=settings, l_decoder=32) for s in (0, 1)]
    rows += [cell(tmp_path, n_input=8, seed=s, rate=0.3, control="fewer_frames") for s in (0, 1)]
    write_rows(tmp_path, rows)
    rows = read_results(tmp_path)
    fixed, (line,) = table(rows), table(rows, pruned=True)
    assert [one["compressor"] for one in fixed if pruner(one) != "none"] == []
    assert len(fixed) == 2
    assert line["over_baseline"].value == pytest.approx(line["accuracy"] - fixed[0]["accuracy"])
    assert line["over_same_tokens"] is None
    said = markdown(rows)
    before, own = said.split("## Data-dependent length")
    assert "frame_difference" not in before
    assert "| none | 1 | 16 | `frame_difference` | no | 32 |" in own.replace("  ", " ")
    assert [one.row_count for one in live_tables(rows)] == [2, 1]
    assert len(live_tables(rows[:2])) == 1
    assert of_method("none:1", rows) == [row for row in rows if not row["control"] and pruner(row) == "none"]
    assert "frame_difference (test)" in label(line | {"control": "", "seed": 0})
