"""Two checkpoints: the tests against scipy's and statsmodels'."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as reference

from tefusion import permutation
from tefusion.permutation import mcnemar, sign_flip


def answers(rng, videos, each, gain=0.1):
    clusters = np.repeat(np.arange(videos), each)
    a, b = (rng.random(len(clusters)) < rate for rate in (0.5 + gain, 0.5))
    return a, b, clusters


def test_few_videos_are_enumerated():
    a, b, clusters = answers(np.random.default_rng(0), 10, 3)
    sums = np.bincount(clusters, a.astype(float) - b)
    exact = stats.permutation_test((sums,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(a, b, clusters) == pytest.approx(exact.pvalue)


def test_many_videos_are_drawn(monkeypatch):
    a, b, clusters = answers(np.random.default_rng(1), 13, 2)
    exact = sign_flip(a, b, clusters)
    monkeypatch.setattr(permutation, "EXACT", 0)
    assert sign_flip(a, b, clusters) == pytest.approx(exact, abs=0.015)
    assert sign_flip(b, a, clusters) == pytest.approx(exact, abs=0.015)
    assert sign_flip(a, a, clusters) == 1


def test_videos_are_exchanged_as_a_whole():
    """Five videos of twenty questions, all won: five coins, not a hundred."""
    clusters = np.repeat(np.arange(5), 20)
    assert sign_flip(np.ones(100), np.zeros(100), clusters) == pytest.approx(2 / 2**5)
    with pytest.raises(ValueError, match="100 questions about 5 videos"):
        mcnemar(np.ones(100), np.zeros(100), clusters)


@pytest.mark.parametrize("gain", [0.0, 0.2])
def test_mcnemar_is_that_of_statsmodels(gain):
    a, b, clusters = answers(np.random.default_rng(2), 80, 1, gain)
    table = [[np.sum(a & b), np.sum(a & ~b)], [np.sum(~a & b), np.sum(~a & ~b)]]
    assert mcnemar(a, b, clusters) == pytest.approx(reference(table, exact=True).pvalue)


def test_no_difference_is_found_as_rarely_as_promised():
    rng = np.random.default_rng(3)
    found = [sign_flip(*answers(rng, 12, 3, gain=0)) <= 0.05 for _ in range(300)]
    assert np.mean(found) <= 0.09
