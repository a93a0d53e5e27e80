"""How a head and a length are cut, what that costs, and which launch serves which call."""

import json
import subprocess
import sys

import pytest

from tefusion.kernels import configs, tiling
from tefusion.kernels.configs import Config

DIMS = range(16, 129, 8)


@pytest.mark.parametrize(
    ("dim", "widths"),
    [(16, (16,)), (64, (64,)), (72, (64, 16)), (80, (64, 16)), (88, (64, 32)), (96, (64, 32)), (112, (64, 32, 16))],
)
def test_heads_are_cut_into_powers_of_two(dim, widths):
    assert tiling.chunks(dim) == widths


@pytest.mark.parametrize("dim", DIMS)
def test_chunks_cover_a_head_and_less_than_a_narrowest_chunk_more(dim):
    widths = tiling.chunks(dim)
    assert all(width >= 16 and width.bit_count() == 1 for width in widths)
    assert dim <= sum(widths) < dim + 16
    for wider in (tiling.padded(widths), tiling.single(dim)):
        assert dim <= sum(wider) <= 128
        assert all(width.bit_count() == 1 for width in wider)
    assert tiling.padded(tiling.chunks(112)) == (128,)


@pytest.mark.parametrize("block", [32, 64, 128])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 33, 65, 128, 257, 514, 1028, 2056, 4112, 16448])
def test_tiles_cover_a_length(length, block):
    full, narrow = tiling.covered(length, block)
    assert length <= full + narrow < length + block
    assert full % block == 0
    assert tiling.tail(length, block) in (16, 32, 64, 128)
    assert tiling.tiles(length, block) == full // block + (narrow > 0)


@pytest.mark.parametrize("k", range(1, 17))
def test_one_narrow_tile_is_enough_for_any_group_of_257_tokens(k):
    for block in (32, 64, 128):
        assert tiling.tail(257 * k, block) == 16


@pytest.mark.parametrize(("k", "ratio"), [(1, 1.20), (2, 1.13), (4, 1.10), (8, 1.08), (16, 1.07)])
def test_what_is_executed_is_mostly_useful(k, ratio):
    for chip in (80, 90, 100):
        config = configs.pick("forward", chip, 112, 2, 257 * k)
        assert round(tiling.executed_over_useful(257 * k, 112, config), 2) == ratio


def test_the_ratio_counts_what_tiles_hold():
    plain = Config(128, 128, 8, 2)
    assert tiling.executed_over_useful(256, 64, plain) == 1
    assert tiling.executed_over_useful(128, 80, plain) == 1
    assert tiling.executed_over_useful(128, 112, plain) == 240 / 224
    assert tiling.executed_over_useful(200, 64, plain) == (256 / 200) ** 2  # 72 rows need a whole tile
    assert tiling.executed_over_useful(144, 64, plain) == 1


@pytest.mark.parametrize("kernel", configs.KERNELS)
@pytest.mark.parametrize("chip", [80, 86, 89, 90, 100, 103, 120])
def test_every_call_has_a_launch(kernel, chip):
    for dim in DIMS:
        for size in (2, 4, 8):
            for length in (1, 64, 65, 257, 16448):
                config = configs.pick(kernel, chip, dim, size, length)
                assert config.warps in (4, 8)
                assert {config.block_m, config.block_n} <= {16, 32, 64, 128}


def test_a_chip_that_is_too_old_is_refused():
    with pytest.raises(ValueError, match=r"compute capability 8\.0 or newer, got 7\.5"):
        configs.pick("forward", 75, 64, 2, 257)


def test_what_was_tuned_comes_first_and_survives_a_file(monkeypatch, tmp_path):
    mine, path = Config(64, 32, 4, 4), tmp_path / "tuned.json"
    monkeypatch.setattr(configs, "TUNED", {configs.key("queries", 90, 112, 2, 1028): mine})
    assert configs.pick("queries", 90, 112, 2, 2000) == mine
    assert configs.pick("queries", 90, 112, 2, 1000) != mine != configs.pick("keys", 90, 112, 2, 1028)
    configs.export(path)
    assert [child.name for child in tmp_path.iterdir()] == ["tuned.json"]
    monkeypatch.setattr(configs, "TUNED", {})
    configs.load(path)
    assert configs.pick("queries", 90, 112, 2, 1028) == mine


@pytest.mark.parametrize("text", ["", "[]", '{"a": 3}', '{"a": [1, 2]}', json.dumps({"a": [1, 2, 3, "x"]})])
def test_a_file_of_something_else_is_refused(monkeypatch, tmp_path, text):
    monkeypatch.setattr(configs, "TUNED", {})
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match=r"other\.json holds no launch configurations"):
        configs.load(tmp_path / "other.json")
    assert configs.TUNED == {}


def test_the_environment_names_a_file_of_tuned_launches(tmp_path):
    (tmp_path / "tuned.json").write_text(json.dumps({"forward/x": [64, 32, 4, 4]}))
    code = "from tefusion.kernels import configs; print(configs.TUNED)"
    environment = {"TEFUSION_ATTENTION_CONFIGS": str(tmp_path / "tuned.json"), "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "'forward/x': Config(block_m=64, block_n=32, warps=4, stages=4)" in done.stdout
