"""Paired differences over seeds and videos: variances, intervals, p-values, and how often they are right."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.sandwich_covariance import cov_cluster_2groups

from tefusion.estimate import Estimate, Noise
from tefusion.resolution import resolution, resolvable
from tefusion.statistics import clustered_stderr
from tefusion.two_way import paired, variances

# Not by its name, which is also that of a tool which pytest may have loaded.
SPEC = importlib.util.spec_from_file_location(
    "simulated_coverage", Path(__file__).parents[1] / "benchmarks" / "coverage.py"
)
coverage = sys.modules["simulated_coverage"] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(coverage)


def made(rng, seeds, training=0.05, questions=0.2, answers=0.3, videos=60):
    """Differences around 0.3 with crossed noise, and their videos."""
    clusters = np.repeat(np.arange(videos), np.resize([1, 2, 3], videos))
    shared = rng.normal(0, training, (seeds, 1)) + rng.normal(0, questions, videos)[clusters]
    return 0.3 + shared + rng.normal(0, answers, (seeds, len(clusters))), clusters


def pairs(by_seed):
    return {seed: (row, np.zeros(len(row))) for seed, row in enumerate(by_seed)}


def test_the_variances_are_those_of_two_way_clustering():
    by_seed, clusters = made(np.random.default_rng(0), seeds=5)
    found = variances(by_seed, clusters)
    fitted = sm.OLS(by_seed.ravel(), np.ones(by_seed.size)).fit()
    seeds, videos = np.repeat(np.arange(5), by_seed.shape[1]), np.tile(clusters, 5)
    _, by_seeds, by_videos = cov_cluster_2groups(fitted, seeds, videos, use_correction=False)
    assert found.seed == pytest.approx(by_seeds.item() * 5 / 4)
    assert found.video == pytest.approx(by_videos.item() * 60 / 59)


def test_the_variances_are_those_that_made_the_differences():
    rng = np.random.default_rng(1)
    found = [variances(*made(rng, 6)) for _ in range(400)]
    questions = len(made(rng, 1)[1])
    sizes = np.bincount(made(rng, 1)[1])
    video = 0.2**2 * np.sum(sizes**2) / questions**2
    both = 0.3**2 / questions / 6
    assert np.mean([one.both for one in found]) == pytest.approx(both, rel=0.1)
    assert np.mean([one.video for one in found]) == pytest.approx(video + both, rel=0.1)
    assert np.mean([one.seed for one in found]) == pytest.approx(0.05**2 / 6 + both, rel=0.1)


def test_one_seed_has_the_noise_of_its_questions_only():
    by_seed, clusters = made(np.random.default_rng(2), seeds=1)
    one = paired(pairs(by_seed), clusters)
    assert one.value == pytest.approx(by_seed.mean())
    assert one.stderr == pytest.approx(clustered_stderr(by_seed[0], clusters))
    assert (one.seeds, one.training_noise) == (1, False)
    assert one.high - one.value == pytest.approx(stats.t.ppf(0.975, 59) * one.stderr, rel=1e-4)
    assert one.p == pytest.approx(2 * stats.t.sf(one.value / one.stderr, 59), rel=1e-3)
    assert "training noise is not in it" in str(one)


def test_seeds_alone_give_the_paired_t_test():
    """Questions that all seeds answer alike but for a shift carry no noise of their own."""
    shifts = np.array([0.1, 0.3, 0.2, 0.5, 0.2])
    estimate = paired(pairs(np.repeat(shifts[:, None], 50, axis=1)), np.arange(50))
    assert estimate.p == pytest.approx(stats.ttest_1samp(shifts, 0).pvalue, rel=1e-3)
    interval = stats.ttest_1samp(shifts, 0).confidence_interval()
    assert (estimate.low, estimate.high) == pytest.approx((interval.low, interval.high), rel=1e-3)


def test_seeds_that_answer_alike_leave_the_noise_of_the_videos():
    row, clusters = made(np.random.default_rng(7), seeds=1)
    estimate = paired(pairs(np.repeat(row, 5, axis=0)), clusters)
    assert estimate.stderr == pytest.approx(clustered_stderr(row[0], clusters))
    assert estimate.half == pytest.approx(stats.t.ppf(0.975, 59) * estimate.stderr, rel=1e-3)


def test_noise_is_the_sum_of_two_students():
    noise = Noise(video=0.02, videos=40, seed=0.03, seeds=5)
    rng = np.random.default_rng(3)
    drawn = 0.03 * rng.standard_t(4, 1_000_000) + 0.02 * rng.standard_t(39, 1_000_000)
    for distance in (0.0, 0.02, 0.06, 0.12):
        assert noise.tail(distance) == pytest.approx(np.mean(drawn > distance), rel=0.02)
    assert noise.tail(noise.exceeded(0.025)) == pytest.approx(0.025, rel=1e-3)
    assert noise.tail(0.01) + noise.tail(-0.01) == pytest.approx(1)


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_an_interval_excludes_zero_just_where_p_is_small(seeds):
    rng = np.random.default_rng(seeds)
    for _ in range(10):
        by_seed, clusters = made(rng, seeds, training=0.2)
        estimate = paired(pairs(by_seed - rng.uniform(0, 0.6)), clusters)
        assert (estimate.low > 0 or estimate.high < 0) == (estimate.p < 0.05)


def test_identical_answers_are_no_difference():
    same = paired({0: ([1, 0, 1], [1, 0, 1]), 1: ([1, 1, 0], [1, 1, 0])}, list("abc"))
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_more_noise_between_seeds_widens_the_interval():
    rng = np.random.default_rng(4)
    quiet, noisy = (paired(pairs(made(rng, 5, training)[0]), made(rng, 5)[1]) for training in (0.01, 0.3))
    assert noisy.half > 3 * quiet.half


@pytest.mark.parametrize("name", coverage.WORLDS)
def test_intervals_hold_the_truth_about_as_often_as_they_say(name, monkeypatch):
    """A hundred sweeps of five comparisons; benchmarks/coverage.py makes thousands."""
    monkeypatch.setattr(coverage, "bootstrap", lambda *args: (0.0, 0.0))
    row = coverage.simulate(name, coverage.WORLDS[name], sweeps=60)
    assert row["covered"] > (0.7 if row["plateau"] else 0.91)
    assert row["false_alarms"] <= 0.17


def test_resolvable_differences_are_found_as_often_as_the_power_says():
    rng = np.random.default_rng(6)
    world = {"training": 0.1, "videos": 200}
    known = np.median([resolvable(paired(pairs(d), c).noise) for d, c in (made(rng, 20, **world) for _ in range(60))])
    seen = [paired(pairs(d - 0.3 + known), c).p < 0.05 for d, c in (made(rng, 20, **world) for _ in range(300))]
    assert np.mean(seen) == pytest.approx(0.8, abs=0.08)


def test_the_line_below_a_table_names_both_sources():
    quiet, loud = (Estimate(0.0, Noise(0.01, 1000, seed, 5)) for seed in (0.01, 0.02))
    said = resolution([quiet, loud])
    assert "in the median of 2 comparisons" in said
    assert "training 1.5, questions 1.0" in said
    alone = resolution([Estimate(0.0, Noise(0.01, 1001))])
    assert "2.8 points" in alone  # 1.96 and 0.84 standard errors of one point
    assert "one seed cannot show training noise" in alone


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="same questions"):
        paired({0: ([1, 0], [1, 0, 1])}, ["v", "w"])
    with pytest.raises(ValueError, match="at least one seed"):
        paired({}, ["v"])
    with pytest.raises(ValueError, match="different numbers"):
        paired({0: ([1, 0], [0, 0]), 1: ([1], [0])}, ["v", "w"])
