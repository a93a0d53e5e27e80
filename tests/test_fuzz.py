"""A short run of the fuzzer over every kind, and the fuzzer's own eyes: planted crashes, hangs and wrong results."""

from random import Random

import fuzz
import pytest
from fuzz_targets import KINDS, PLANTS, write_good
from mutate import boxes, damage_json, damage_mp4, damage_safetensors


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "good"
    write_good(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_inputs_give_a_right_result_or_one_line(kind, good, tmp_path):
    counts = fuzz.fuzz(kind, good, tmp_path / kind, range(100), seed=1)
    assert counts["findings"] == []
    assert counts["strays"] == []
    assert counts["ok"] + counts["clean"] == 100
    assert counts["ok"] >= 2  # the readers are reached, not only their doors
    assert counts["different_errors"] >= 4


def test_every_outcome_is_told_apart_and_blamed_on_its_input(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "WALL_SECONDS", 2)
    planted = [PLANTS[Random(f"planted 0 {index}").randrange(len(PLANTS))][0] for index in range(30)]
    assert {*planted} == {*fuzz.OUTCOMES}
    counts = fuzz.fuzz("planted", tmp_path, tmp_path / "planted", range(30), seed=0)
    assert {name: counts[name] for name in fuzz.OUTCOMES} == {name: planted.count(name) for name in fuzz.OUTCOMES}
    blamed = {finding["index"]: finding["outcome"] for finding in counts["findings"]}
    assert counts["strays"] == ["stray"]
    assert blamed == {index: name for index, name in enumerate(planted) if name not in ("ok", "clean")}


def test_a_seed_gives_the_same_damage_again(good):
    clip = (good / "video" / "b-frames.mp4").read_bytes()
    truth = (good / "truth/test/truth.safetensors").read_bytes()
    run = (good / "config/model/run.json").read_bytes()
    for damage, data in ((damage_mp4, clip), (damage_safetensors, truth), (damage_json, run)):
        made = [damage(Random(i), data) for i in range(20)]
        assert made == [damage(Random(i), data) for i in range(20)]
        assert sum(one != data for one in made) >= 15
    inner = {clip[begin + 4 : begin + 8] for begin, _ in boxes(clip, 0, len(clip))}
    assert {b"moov", b"tkhd", b"stsz", b"stts"} <= inner  # down to the sample tables
