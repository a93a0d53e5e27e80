"""Words -> cells: which runs a sweep has, what each stands for, and what it is called."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from tefusion.cells import METHODS, Cell, check, content, lower_resolution, my_part, patch_size, plan
from tefusion.compressors import COMPRESSORS, trained
from tefusion.config import Run
from tefusion.video import parse_size

WORLD = ["n_input=16", "size=32", "encoder=tiny"]  # the tests' own: the defaults may change


def cells(*words):
    return plan([*words])[1]


def find(cells, control):
    return [cell.run for cell in cells if control in cell.control.split(",")]


def test_the_default_grid():
    grid = cells("k=2,4,8,16", *WORLD)
    assert len({cell.run for cell in grid}) == len(grid)
    methods = [cell for cell in grid if not cell.control]
    assert Counter(cell.run.compressor for cell in methods) == {"none": 1} | {m: 4 for m in METHODS if m != "none"}
    assert {cell.run.k for cell in methods if cell.run.compressor == "none"} == {1}
    assert all(cell.run.compressor == "none" and cell.run.k == 1 for cell in grid if cell.control)
    assert [run.n_input for run in find(grid, "text_only")] == [0]
    assert [run.n_input for run in find(grid, "one_frame")] == [1]
    assert sorted(run.n_input for run in find(grid, "fewer_frames")) == [1, 2, 4, 8]
    assert [run.size for run in find(grid, "lower_resolution")] == ["32x16", "16"]  # m = 4 tokens: k <= 4


def test_a_run_that_plays_two_parts_is_one_cell():
    (both,) = [cell for cell in cells(*WORLD) if "one_frame" in cell.control]
    assert both.control == "one_frame,fewer_frames"


def test_a_control_that_is_also_the_baseline_is_the_baseline():
    grid = cells("n_per_k=4", "k=4", "size=32", "encoder=tiny")
    (base,) = [cell for cell in grid if cell.run.compressor == "none" and cell.run.n_input == 4]
    assert base.control == ""


def test_fixed_decoder_length_gives_each_k_its_frames_and_one_baseline():
    methods = [cell.run for cell in cells("n_per_k=4", "k=2,4,8") if not cell.control]
    assert {(run.k, run.n_input) for run in methods} == {(1, 4), (2, 8), (4, 16), (8, 32)}
    assert len([run for run in methods if run.compressor == "none"]) == 1


def test_both_protocols_in_one_sweep():
    grid = cells("n_per_k=0,4", "k=2", "controls=false", "compressor=pllava")
    assert {(cell.run.k, cell.run.n_input) for cell in grid} == {(2, Run.n_input), (2, 8)}


def test_a_run_of_both_protocols_is_one_cell_that_says_so():
    grid = cells("n_per_k=0,4", "k=4", "compressor=none,pllava", *WORLD[1:])
    assert len({cell.run for cell in grid}) == len(grid)
    belongs = {(cell.run.compressor, cell.run.n_input): cell.n_per_k for cell in grid if not cell.control}
    # Four frames without compression are a control of one protocol, and the baseline of the other.
    assert belongs == {("none", 16): (0,), ("pllava", 16): (0, 4), ("none", 4): (4,)}


def test_every_list_is_an_axis():
    grid = cells("seed=0,1", "lr=1e-3,2e-3", "n_input=8,16", "k=2", "compressor=pllava", "controls=false")
    assert len(grid) == 8
    assert {(cell.run.seed, cell.run.lr, cell.run.n_input) for cell in grid} == {
        (seed, lr, n) for seed in (0, 1) for lr in (1e-3, 2e-3) for n in (8, 16)
    }


def test_k_may_be_six():
    grid = cells("k=6", "n_input=24")
    assert {cell.run.k for cell in grid if not cell.control} == {1, 6}
    assert [run.n_input for run in find(grid, "fewer_frames")] == [4]
    assert find(grid, "lower_resolution") == []


@pytest.mark.parametrize("n_input", [24, 48])
def test_generated_clips_are_as_long_as_n_input_asks_for_the_controls_too(n_input):
    grid = cells("k=2", f"n_input=16,{n_input}", "budget=smoke", "compressor=none,te_fusion")
    for data, frames in (("motion-smoke", 16), (f"motion-smoke-{n_input}", n_input)):
        mine = [cell for cell in grid if cell.run.data == data]
        assert {cell.run.n_input for cell in mine} == {0, 1, frames // 2, frames}
        assert {part for cell in mine for part in cell.control.split(",")} >= {"text_only", "one_frame", "fewer_frames"}
    assert {cell.run.data for cell in cells("k=6", f"n_input={n_input}", "data=motion-48")} == {"motion-48"}


def test_a_fixed_decoder_length_keeps_all_k_on_the_same_clips():
    assert {cell.run.data for cell in cells("n_per_k=4", "k=2,4,6")} == {"motion"}


def test_controls_can_be_left_out():
    assert not [cell for cell in cells("controls=false") if cell.control]


def test_budgets_and_recipes_are_defaults_that_words_override():
    smoke = cells("budget=smoke", "steps=9", "controls=false")
    assert {(cell.run.data, cell.run.steps) for cell in smoke} == {("motion-smoke", 9)}
    assert {cell.run.seed for cell in cells("budget=full")} == {0, 1, 2}
    paper = cells("recipe=paper", "batch=96", "controls=false")
    assert {(cell.run.optimizer, cell.run.lr, cell.run.batch) for cell in paper} == {("adamw", 8e-6, 96)}


def test_all_stands_for_the_whole_registry():
    grid = cells("compressor=pllava,all", "k=4", "controls=false")
    assert Counter(cell.run.compressor for cell in grid) == dict.fromkeys(trained(), 1)


def test_a_control_in_the_place_of_a_method_is_the_run_that_every_sweep_has():
    asked = cells("compressor=pllava,fewer_frames,lower_resolution", "k=2,4", "controls=false", *WORLD)
    beside = cells("compressor=pllava", "k=2,4", *WORLD)
    assert set(asked) == {cell for cell in beside if cell.control not in ("text_only", "one_frame")}
    assert set(cells("compressor=pllava,fewer_frames", "k=2,4", *WORLD)) == set(beside)
    assert {method for method in COMPRESSORS if find(beside, method)} == set(COMPRESSORS) - set(trained())


@pytest.mark.parametrize("budget", ["zoo", "zoo-gpu"])
def test_the_zoo_is_compared_where_space_can_be_told_apart(budget):
    grid = cells(f"budget={budget}")
    seeds = {cell.run.seed for cell in grid}
    assert seeds >= {0, 1, 2}
    methods = Counter(cell.run.compressor for cell in grid if not cell.control)
    assert methods == dict.fromkeys(trained(), len(seeds))
    assert {cell.run.k for cell in grid if cell.run.compressor != "none"} == {4}
    for control in ("text_only", "one_frame", "fewer_frames", "lower_resolution"):
        assert {run.seed for run in find(grid, control)} == seeds
    assert min(parse_size(Run().size)) // patch_size(grid[0].run.encoder) >= 8
    assert {cell.run.encoder for cell in grid} == {"fine"}


def test_lower_resolution_costs_a_kth_of_the_tokens():
    run = Run(compressor="none", k=1, size="64", encoder="tiny")  # 16 tokens a frame
    assert [lower_resolution(run, k) for k in (2, 4, 8, 16, 32, 6)] == ["64x32", "32", "32x16", "16", None, None]
    assert lower_resolution(replace(run, encoder="timm:vit_tiny_patch16_224", size="64"), 4) == "32"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["compressor=te_fuson"], "did you mean 'te_fusion'"),
        (["compressor="], "compressor '' is unknown"),
        (["k=0"], "k must be at least 1, got 0"),
        (["k=-1"], "k must be at least 1, got -1"),
        (["k=3", "n_input=16"], "16 frames (n_input) do not divide into groups of k = 3"),
        (["k=512", "n_per_k=1"], "k must be one of 1 to 256"),
        (["size=big"], "size must be pixels"),
        (["size=0"], "size must be pixels"),
        (["size=8", "encoder=tiny"], "smaller than"),
        (["policy=random"], "policy must be"),
        (["policy=fps:0"], "policy must be"),
        (["encoder=tinny"], "encoder 'tinny' is unknown; did you mean 'tiny'"),
        (["encoder=timm:vit_tiny_patch16_223"], "vit_tiny_patch16_223"),
        (["decoder=tinny"], "decoder 'tinny' is unknown; did you mean 'tiny'"),
        (["budget=smok"], "budget 'smok' is unknown; did you mean 'smoke'"),
        (["recipe=papper"], "did you mean 'paper'"),
        (["shard=2/2"], "shard must be i/n"),
        (["shard=one"], "shard must be i/n"),
        (["jobs=-1"], "jobs must not be negative"),
        (["minutes=-1"], "minutes must not be negative"),
        (["compressor=lower_resolution", "k=4"], "there is none of 16 frames of 32 px in micro at k = 4"),
        (["compressor=fewer_frames", "k=3"], "there is none of 16 frames"),
        (["compressor=lower_resolution", "encoder=tinny"], "encoder 'tinny' is unknown"),
        (["k=3", "compressor=all", "n_input=6"], "image_grid: k must be one of 1, 2, 4, 8, 16, got 3"),
        (["jobs=1,2"], "jobs takes one value here"),
        (["n_per_k=4", "n_input=16"], "not both"),
        (["n_input=96", "k=6"], "data 'motion-96': generated clips have 8 to 64 frames"),
        (["data=motion-smoke-7"], "generated clips have 8 to 64 frames"),
        (["n_per_k=-4"], "n_input must not be negative"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(words, says):
    with pytest.raises(ValueError, match=r"\w") as raised:
        plan(words)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_check_passes_what_the_models_can_do():
    check(Run(policy="fps:2", size="32x48", encoder="tiny"))
    check(Run(compressor="none", k=1, encoder="timm:vit_tiny_patch16_224", size="224"))


def test_an_id_is_stable_and_told_apart_by_settings_and_data():
    cell = Cell(Run())
    assert cell.id("abc") == Cell(Run(), "text_only").id("abc")  # the same run, whatever it stands for
    grid = [cell.id(data) for cell in cells("seed=0,1") for data in ("abc", "def")]
    assert len(set(grid)) == len(grid)


def test_content_follows_annotations_and_settings(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "video_info.meta.jsonl").write_text(split)
    first = content(tmp_path)
    assert content(tmp_path) == first
    (tmp_path / "settings.json").write_text(json.dumps({"noise": 1}))
    second = content(tmp_path)
    (tmp_path / "test" / "video_info.meta.jsonl").write_text("other")
    assert len({first, second, content(tmp_path)}) == 3
    with pytest.raises(ValueError, match="holds no"):
        content(tmp_path / "train")


@pytest.mark.parametrize("n", [1, 2, 3, 7, 100])
def test_shards_are_disjoint_and_complete(n):
    grid = cells("seed=0,1")
    shards = [my_part(grid, f"{i}/{n}") for i in range(n)]
    assert Counter(cell for shard in shards for cell in shard) == Counter(grid)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
