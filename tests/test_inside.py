"""What the methods inside the encoder do to whom: which blocks fuse, how far a frame reaches, what time means."""

import csv
import math
import sys
from pathlib import Path

import pytest
import torch
from contract import TINY, Create, distance, video

from tefusion.compressors.base import Clip
from tefusion.compressors.pvc import owners
from tefusion.compressors.sincos import sincos
from tefusion.compressors.te_interleave import TEInterleave
from tefusion.compressors.te_pyramid import TEPyramid
from tefusion.kernels import rotate

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import inside  # noqa: E402


class Watched(torch.nn.Module):
    """A block that notes how many frames met in it."""

    def __init__(self):
        super().__init__()
        self.met = []

    def forward(self, x):
        self.met.append(x.shape[1])
        return x


@pytest.mark.parametrize(
    ("options", "fusing"),
    [({}, [0, 4, 8]), ({"every": 2}, [0, 2, 4, 6, 8]), ({"every": 1, "last": 2}, [7, 8]), ({"last": 5}, [4, 8])],
)
def test_the_blocks_that_fuse_are_counted_from_the_last(options, fusing):
    blocks = torch.nn.ModuleList(Watched() for _ in range(9))
    method = TEInterleave(k=4, width=8, depth=9, **options)
    method.run(torch.zeros(1, 8, 5, 8), blocks, 4, Clip(2, 2, torch.zeros(1, 8)))
    assert [i for i, block in enumerate(blocks) if block.met == [4]] == fusing
    assert all(block.met == [1] for i, block in enumerate(blocks) if i not in fusing)


@torch.no_grad()
def test_a_shifted_border_carries_over_to_the_neighbours_alone_with_two_blocks():
    encoder, clip = Create("te_shift").perturbed(2), video(8)
    before = encoder(clip)
    for frame, reached in ((0, {0, 1}), (2, {0, 1, 2}), (5, {1, 2, 3}), (7, {2, 3})):
        changed = clip.clone()
        changed[0, frame] = -changed[0, frame]
        after = encoder(changed)
        assert {g for g in range(4) if not torch.equal(after[0, g], before[0, g])} == reached


def test_a_pyramid_merges_where_it_is_told():
    assert TEPyramid(k=4, width=8, depth=63).after == [16, 32]  # a quarter and a half
    assert TEPyramid(k=16, width=8, depth=8).after == [1, 2, 3, 4]
    assert TEPyramid(k=4, width=8, depth=8, depths="0+1").after == [0, 8]
    for wrong in ("0.5", "0.5+0.25", "0.5+2", "a+b", "0.25+0.5+0.75", "nan+0.5"):
        with pytest.raises(ValueError, match="ascending shares"):
            TEPyramid(k=4, width=8, depth=8, depths=wrong)


def test_sincos_is_kimis_table_at_a_frame_a_second():
    table = sincos(torch.arange(4.0), 6)
    for t in range(4):
        angles = [t / 10_000 ** (i / 3) for i in range(3)]
        assert table[t].tolist() == pytest.approx([*map(math.sin, angles), *map(math.cos, angles)], abs=1e-6)
    assert sincos(torch.arange(4.0), 7).shape == (4, 7)


def test_rotated_products_know_the_differences_alone():
    qkv, positions = torch.randn(2, 5, 3, 2, 16).double(), 9 * torch.rand(2, 5, 3).double()
    turned, later = rotate(qkv, positions), rotate(qkv, positions + torch.tensor([7.0, 2.0, 3.0]))

    def products(x):
        return torch.einsum("rihd,rjhd->rhij", x[:, :, 0], x[:, :, 1])

    torch.testing.assert_close(products(turned), products(later))
    assert distance(products(turned), products(qkv)) > 0.01
    assert torch.equal(turned[:, :, 2], qkv[:, :, 2])  # values are not turned
    for axis in range(3):  # each of the three matters
        moved = positions.clone()
        moved[:, 0, axis] += 1
        assert distance(products(rotate(qkv, moved)), products(turned)) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("position", ["sincos", "rope3d"])
def test_real_time_matters_and_its_origin_does_not(position):
    encoder, clip = Create(f"te_fusion:temporal_position={position}").perturbed(2), video(4)
    seconds = torch.tensor([[0.0, 0.5, 1.0, 1.5]])
    shown = encoder(clip, seconds)
    assert distance(encoder(clip, seconds + 64), shown) < 1e-5
    assert distance(encoder(clip, 4 * seconds), shown) > 1e-4


@torch.no_grad()
def test_pvc_hears_time_and_each_frame_keeps_its_own_places():
    encoder, clip = Create("pvc").perturbed(2), video(4)
    assert distance(encoder(clip, torch.tensor([[0.0, 3.0, 5.0, 9.0]])), encoder(clip)) > 1e-4
    kept = owners(3, 5, 4, torch.device("cpu")).flatten()
    assert sorted(torch.bincount(kept).tolist()) == [3, 4, 4, 4]
    assert owners(1, 1, 4, torch.device("cpu")).item() == 3  # the last one has seen the others


@torch.no_grad()
def test_registers_cost_one_frame_more_and_are_all_that_is_left():
    encoder = Create("te_fusion:readout=registers")(4)
    assert encoder.encode(video(8)).shape[1:3] == (2, 1)
    seen = []
    encoder.tower.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    encoder.encode(video(8))
    assert seen == [(2, 5, 17, TINY["width"])]


def test_the_benchmark_compares_pairs_and_its_record_says_where_time_follows_flops():
    times = [{"none": 1.0, "te_fusion": 1.1}, {"none": 2.0, "te_fusion": 2.4}, {"none": 1.0, "te_fusion": 1.3}]
    rows = inside.table(times, {"none": 100, "te_fusion": 120}, 4)
    assert [row["time"] for row in rows] == [1.0, 1.2]
    assert rows[1]["time_over_flops"] == 1.0
    with pytest.raises(SystemExit, match="multiple of 4"):
        inside.parse(["frames=6"])
    with (ROOT / "results" / "inside.csv").open(encoding="utf-8") as file:
        recorded = {row["method"]: row for row in csv.DictReader(file)}
    assert recorded.keys() == set(inside.METHODS)
    assert all(abs(float(row["time_over_flops"]) - 1) < 0.15 for row in recorded.values())
