"""The design's contract over every entry of COMPRESSORS, and proof that each check can fail."""

import json
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import contract
import pytest
import torch
from broken import BROKEN, COPIES
from contract import ROUNDING, WIDE, Create, check_distinct, distance, refusal, video

from tefusion.compressors import COMPRESSORS, Clip, create_compressor, trained
from tefusion.resize import resize_pixels
from tefusion.sampling import sample
from tefusion.vision import VideoEncoder

CHECKS = [
    contract.check_tokens,
    contract.check_wrong_k,
    contract.check_locality,
    contract.check_one_frame,
    contract.check_still,
    contract.check_stage,
    contract.check_order,
    contract.check_gradients,
    contract.check_batch,
    contract.check_division,
    contract.check_recompute,
    contract.check_bf16,
]


@pytest.fixture
def registered(monkeypatch):
    """A class under its own name, as one line in the registry would put it there."""

    def register(made):
        if issubclass(made, VideoEncoder):
            return Create("pllava", made)
        monkeypatch.setitem(COMPRESSORS, made.__name__, made)
        return Create(made.__name__)

    return register


SETTINGS = [  # every value of every option that makes another method of it
    "te_fusion:readout=mean:temporal_position=none",
    "te_fusion:readout=last",
    "te_fusion:readout=attention",
    "te_fusion:readout=registers:temporal_position=rope3d",
    "te_fusion:readout=mean:temporal_position=sincos",
    "te_interleave:every=1:last=1",
    "te_factor:weights=shared",
    "pvc:last=2",
    "wap:weights=activation",
]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("check", [check for check in CHECKS if check is not contract.check_wrong_k])
def test_every_setting_keeps(check, name):
    check(Create(name))


@pytest.mark.parametrize("name", COMPRESSORS)
@pytest.mark.parametrize("check", CHECKS)
def test_every_method_keeps(check, name):
    check(Create(name))


@pytest.mark.parametrize(("check", "made", "reason"), BROKEN)
@pytest.mark.usefixtures("unchecked")
def test_a_broken_copy_is_rejected(check, made, reason, registered):
    with pytest.raises(AssertionError, match=reason):
        check(registered(made))


@pytest.mark.parametrize(("one", "two"), combinations(COMPRESSORS, 2))
def test_no_two_methods_are_one_function(one, two):
    check_distinct(Create(one), Create(two))


@pytest.mark.parametrize(("made", "original"), COPIES.items())
def test_a_copy_under_a_new_name_is_found(made, original, registered):
    with pytest.raises(AssertionError, match="are one function"):
        check_distinct(Create(original), registered(made))


COMPILE = """
import json, sys, torch
from broken import GraphBreak
from contract import Create, check_compiles
from tefusion.compressors import COMPRESSORS
COMPRESSORS["graph_break"] = GraphBreak
said = {}
part = int(sys.argv[1])
for name in [*list(COMPRESSORS)[part:-1:2], "graph_break"]:
    torch._dynamo.reset()
    try:
        check_compiles(Create(name))
    except AssertionError as error:
        said[name] = str(error)
json.dump(said, sys.stdout)
"""


@pytest.mark.parametrize("part", ["0", "1"])
def test_every_method_is_one_graph(part):
    """Every other one in a process of its own: the run-time shape checks are no part of a graph."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, part],
        env={**os.environ, "JAXTYPING_DISABLE": "1", "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert list(json.loads(done.stdout)) == ["graph_break"], done.stdout


def test_all_methods_cost_the_decoder_the_same():
    for k in (2, 4, 16):
        costs = {Create(name)(k).tokens_out(16, 40, 56) for name in COMPRESSORS if Create(name).ks(k)}
        assert costs == {16 // k * 2 * 3}


@torch.no_grad()
def test_the_controls_are_the_baseline_on_less():
    """On what `sampling.py` and the sweep would give it: the centres of the groups, frames of half the width."""
    baseline, clip = contract.perturb(Create("none")(1, WIDE)), video(8, WIDE)
    fewer, lower = Create("fewer_frames").perturbed(4, WIDE), Create("lower_resolution").perturbed(2, WIDE)
    assert torch.equal(fewer(clip), baseline(clip[:, sample("centres", 8, 2, 1.0)]))
    small = resize_pixels(clip[0], (32, 32))[None]
    assert distance(lower(clip).flatten(1, 2), baseline(small).flatten(1, 2)) < ROUNDING


def test_a_control_that_cannot_share_its_tokens_keeps_them_evenly():
    """Three tokens for two frames, and for eight."""
    for k, seen in ((2, {0, 1}), (8, {0, 2, 5})):
        encoder, clip = Create("lower_resolution")(k, (24, 56)), video(k, (24, 56))
        clip.requires_grad_()
        encoder(clip).square().sum().backward()
        assert {frame for frame in range(k) if clip.grad[0, frame].any()} == seen


def test_every_class_says_what_it_is():
    assert [name for name, method in COMPRESSORS.items() if method.control] == ["fewer_frames", "lower_resolution"]
    assert len(trained()) == len(COMPRESSORS) - 2 >= 20
    for name, method in COMPRESSORS.items():
        assert method.stage in ("before", "inside", "after") or name == "none"
        assert method.reach in ("group", "neighbours", "past", "clip")
        assert len(method.source) > 3


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: create_compressor("te_fusoin", k=2, width=8, embed_dim=8), "'te_fusion'"),
        (lambda: create_compressor("te_fusion", k=2, width=8, embed_dim=8, positions=1), "no option 'positions'"),
        (lambda: create_compressor("te_fusion", k=2, width=8, embed_dim=8, positon_std=1.0), "'position_std'"),
        (lambda: create_compressor("qformer", k=2, width=8, embed_dim=8), "needs grid"),
        (lambda: create_compressor("kangaroo", k=2, width=8, embed_dim=8, init="zero"), "'zero'"),
        (lambda: Create("qformer")(2)(video(2, (40, 56))), "2x2 tokens a group, this video has 2x3"),
        (lambda: Create("lower_resolution")(2)(video(2, (32, 48))), "show 4x4 patches as 4x2, these frames have 4x3"),
    ],
)
def test_what_cannot_be_built_is_refused_in_a_line(call, said):
    assert said in refusal(call)


def test_frames_that_nothing_reads_out_are_refused():
    encoder = Create("none")(1)
    with pytest.raises(ValueError, match="2 frames are left in a group"):
        encoder.compressor.project(torch.zeros(1, 1, 2, 4, 4, 32), encoder.projector, Clip(4, 4, torch.zeros(1, 2)))
