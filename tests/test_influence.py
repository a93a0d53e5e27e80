"""The pages of the zoo's families: their tables are what the code measures, and that is what the classes declare."""

import re
import sys
from pathlib import Path

import pytest
import torch
from contract import reached

from tefusion.compressors import COMPRESSORS

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from influence import FAMILIES, GROUPS, K, filled, influence, members, percent, table  # noqa: E402


def page(family):
    return (ROOT / "docs" / f"{family}.md").read_text(encoding="utf-8")


def test_every_method_stands_on_the_page_of_its_stage():
    assert sorted(name for family in FAMILIES for name in members(family)) == sorted(COMPRESSORS.keys() - {"none"})
    for family in FAMILIES:
        assert all(f"`{name}`" in page(family).split("## What mixes")[0] for name in members(family))
        assert (ROOT / "docs" / f"influence-{family}.png").is_file()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pages_tables_are_what_is_measured(family):
    """But for a percent, since sums round otherwise on another machine."""
    shown = re.search(r"<!-- influence -->\n(.*)\n<!-- /influence -->", page(family), re.DOTALL)[1]
    words = [re.split(r"[|\s]+", text) for text in (shown, table(family))]
    assert len(words[0]) == len(words[1])
    for one, other in zip(*words, strict=True):
        near = one.isdigit() and other.isdigit() and abs(int(one) - int(other)) <= 1
        assert one == other or near, (one, other)


@pytest.mark.parametrize("name", ["te_fusion", "te_interleave", "pvc", "ssm", "tpool", "fewer_frames"])
def test_what_moves_is_what_a_method_declares(name):
    found = influence(name).unflatten(0, (GROUPS, -1)).unflatten(-1, (GROUPS, K))
    torch.testing.assert_close(found.sum((-2, -1)), torch.ones(GROUPS, found.shape[1]))
    for group in range(GROUPS):
        may = reached(COMPRESSORS[name].reach, group, GROUPS)
        moved = {other for other in range(GROUPS) if found[other, :, group].any()}
        assert moved == may
    frames = {"pvc": [4, 3, 2, 1], "fewer_frames": [1] * 4}.get(name, [4] * 4)  # of its own group, for each token
    assert (found[1, :, 1] > 0).sum(-1).tolist() == frames


def test_a_page_without_its_place_is_refused():
    with pytest.raises(ValueError, match="no <!-- influence --> block"):
        filled("# Before", "")
    assert percent(0.0) == "-"
    assert percent(1e-9) == "0"
