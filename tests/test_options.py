"""A method and its options in one word: what is taken, what it is called, and what is refused at the door."""

import pytest
import torch

from tefusion.cells import Cell, check, plan
from tefusion.compare import of_method
from tefusion.compressors import COMPRESSORS, create_compressor, one_spelling
from tefusion.compressors.options import WRITTEN, defaults
from tefusion.config import Run
from tefusion.train import create_vlm
from tefusion.vision import create_video_encoder

SIZES = {"k": 4, "width": 32, "embed_dim": 48, "depth": 4, "heads": 2, "grid": (4, 4)}


def test_defaults_have_no_spelling_and_the_rest_one_order():
    assert one_spelling("te_fusion:readout=concat:temporal_position=learned") == "te_fusion"
    assert (
        one_spelling("te_fusion:temporal_position=none:readout=mean") == "te_fusion:readout=mean:temporal_position=none"
    )
    assert one_spelling("te_interleave:every=04") == "te_interleave"


def test_equal_methods_are_one_run_and_recorded_ids_stay():
    assert Run(compressor="te_fusion:readout=concat") == Run()
    assert Cell(Run()).id("data") == Cell(Run(compressor="te_fusion:temporal_position=learned")).id("data")
    words = ["compressor=te_fusion,te_fusion:readout=mean,te_fusion:readout=concat", "k=4", "controls=false"]
    assert [cell.run.compressor for cell in plan(words)[1]] == ["te_fusion", "te_fusion:readout=mean"]


def test_options_reach_the_method_and_stand_beside_the_runs_own():
    made = create_vlm(Run(compressor="te_fusion:readout=mean", position_std=0.5)).encoder.compressor
    assert made.out_frames == 1
    assert made.position.std() > 0.3
    assert create_compressor("te_interleave:every=2:last=3", **SIZES).last == 3


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("te_fuson:readout=mean", "compressor 'te_fuson' is unknown; did you mean 'te_fusion'"),
        ("te_fusion:", "te_fusion: '' is not of the form option=value"),
        ("te_fusion:mean", "'mean' is not of the form option=value"),
        ("te_fusion:redout=mean", "te_fusion has no option 'redout'; did you mean 'readout'"),
        ("te_fusion:readout=mean:readout=last", "'readout' is given twice"),
        ("te_fusion:readout=meen", "readout 'meen' is unknown; did you mean 'mean'"),
        ("te_fusion:temporal_position=rope", "temporal_position 'rope' is unknown; did you mean 'rope3d'"),
        ("te_fusion:position_std=0.1", "position_std is a setting of the run"),
        ("te_interleave:every=two", "every must be a whole number, got 'two'"),
        ("te_interleave:every=0", "every must be at least 1, got 0"),
        ("te_interleave:last=9", "last must be 0 to 4"),
        ("te_pyramid:depths=0.5", "2 ascending shares of the depth, one a merge, such as 0.25+0.5, got '0.5'"),
        ("te_factor:weights=mine", "te_factor: weights 'mine' is unknown"),
        ("pvc:last=5", "pvc: last must be 0 to 4"),
        ("kangaroo:init=scratch", "init is a setting of the run"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(word, says):
    with pytest.raises(ValueError, match=r"\w") as raised:
        check(Run(compressor=word))
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("word", ["te_fusion:temporal_position=rope3d", "te_factor:weights=shared"])
def test_a_tower_of_closed_blocks_refuses_at_construction(word):
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match="reaches inside the blocks, and a timm tower's are closed"),
    ):
        create_video_encoder("timm:vit_tiny_patch16_224", word, 4)
    with pytest.raises(ValueError, match="reaches inside the blocks"):
        check(Run(compressor=word, encoder="timm:vit_tiny_patch16_224", size="224"))


@pytest.mark.parametrize("word", ["te_fusion:readout=registers", "te_factor", "pvc", "te_shift", "te_pyramid"])
def test_others_work_in_any_tower(word):
    with torch.device("meta"):
        encoder = create_video_encoder("timm:vit_tiny_patch16_224", word, 2)
        assert encoder(torch.empty(1, 4, 3, 32, 32)).shape[:3] == (1, 2, 1)


def test_a_method_with_options_can_be_named_to_compare():
    row = {"compressor": "te_fusion:readout=mean", "k": 4, "n_input": 16, "control": ""}
    plain = row | {"compressor": "te_fusion"}
    assert of_method("te_fusion:readout=mean:4", [row, plain]) == [row]
    assert of_method("te_fusion:readout=mean:4:16", [row, plain]) == [row]
    assert of_method("te_fusion:4", [row, plain]) == [plain]


@pytest.mark.parametrize("name", COMPRESSORS)
def test_every_option_can_be_written(name):
    assert {type(value) for value in defaults(COMPRESSORS[name]).values()} <= set(WRITTEN)
