"""The primary family: Holm's correction, and what it takes to claim something."""

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from tefusion.estimate import Estimate, Noise
from tefusion.family import primary_family
from tefusion.holm import holm


@pytest.mark.parametrize("size", [0, 1, 2, 7, 20])
def test_holm_is_that_of_statsmodels(size):
    p = np.random.default_rng(size).random(size) ** 3
    expected = multipletests(p, method="holm")[1] if size else []
    assert holm(list(p)) == pytest.approx(list(expected))


def test_ties_and_certainties():
    assert holm([0.03, 0.03, 0.01]) == pytest.approx([0.06, 0.06, 0.03])
    assert holm([1.0, 0.9]) == [1.0, 1.0]


def line(value, seeds=5):
    return {"over_same_tokens": Estimate(value, Noise(0.005, 400, 0.005 * (seeds > 1), seeds))}


@pytest.mark.parametrize(
    ("value", "seeds", "verdict"),
    [
        (0.1, 5, "better"),
        (-0.1, 7, "worse"),
        (0.001, 5, "no difference shown"),
        (0.1, 4, "no claim: 4 of 5 seeds"),
        (0.1, 1, "no claim: 1 of 5 seeds"),
    ],
)
def test_a_claim_needs_seeds_and_a_small_p(value, seeds, verdict):
    (one,) = primary_family([line(value, seeds), {"over_same_tokens": None}])
    assert one.verdict == verdict


def test_what_one_comparison_may_claim_many_may_not():
    single = line(0.022)
    assert primary_family([single])[0].verdict == "better"
    assert primary_family([single] * 10)[0].verdict == "no difference shown"
