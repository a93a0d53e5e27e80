"""Errors against closed forms, and intervals against simulated experiments whose truth is known."""

import numpy as np
import pytest

from tefusion.statistics import (
    Estimate,
    clustered_stderr,
    paired_difference,
    paired_over_seeds,
    student_quantile,
)


def test_clusters_of_one_give_the_ordinary_error_of_a_mean():
    values = np.random.default_rng(0).random(50)
    assert clustered_stderr(values, np.arange(50)) == pytest.approx(values.std(ddof=1) / np.sqrt(50))


def test_copies_of_a_question_add_nothing():
    values = np.random.default_rng(0).integers(0, 2, 50)
    once = clustered_stderr(values, np.arange(50))
    assert clustered_stderr(np.repeat(values, 5), np.repeat(np.arange(50), 5)) == pytest.approx(once)


def test_clusters_are_names_in_any_order():
    values, names = [1, 0, 1, 1, 0, 0], ["b", "a", "c", "b", "a", "c"]
    order = np.argsort(names)
    expected = clustered_stderr(np.array(values)[order], np.array(names)[order])
    assert clustered_stderr(values, names) == pytest.approx(expected)
    # By hand: mean 1/2, cluster sums of residuals -1, 1, 0.
    assert expected == pytest.approx(np.sqrt(3 / 2 * 2) / 6)


def test_clustered_error_is_the_spread_over_repeated_experiments():
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(60), np.resize([1, 2, 5], 60))  # unequal clusters
    means, errors = [], []
    for _ in range(400):
        values = rng.normal(size=60)[groups] + rng.normal(size=len(groups))
        means.append(values.mean())
        errors.append(clustered_stderr(values, groups))
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)


def test_student_quantiles_are_those_of_the_tables():
    table = {1: 12.7062, 2: 4.30265, 3: 3.18245, 10: 2.22814, 1000: 1.96234, 100_000: 1.95999}
    for freedom, quantile in table.items():
        assert student_quantile(0.975, freedom) == pytest.approx(quantile, rel=1e-4)
    assert student_quantile(0.5, 3) == pytest.approx(0, abs=1e-9)


def test_pairing_removes_what_both_runs_share():
    rng = np.random.default_rng(2)
    base = (rng.random(400) < 0.5).astype(float)
    better = np.where(np.arange(400) < 20, 1.0, base)
    estimate = paired_difference(better, base, np.arange(400))
    assert estimate.value == pytest.approx(better.mean() - base.mean())
    assert estimate.low < estimate.value < estimate.high
    assert estimate.stderr < 0.3 * np.hypot(*(clustered_stderr(x, np.arange(400)) for x in (better, base)))
    half = estimate.stderr * 1.96593  # Student's t with 399 degrees of freedom
    assert (estimate.low, estimate.high) == pytest.approx((estimate.value - half, estimate.value + half), rel=1e-3)


def test_one_seed_says_what_is_missing():
    pair = (np.array([1.0, 1.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0, 1.0]))
    one = paired_over_seeds({7: pair}, list("abcd"))
    assert one == paired_difference(*pair, list("abcd"))
    assert not one.training_noise
    assert "training noise is not in it" in str(one)
    two = paired_over_seeds({0: pair, 1: pair}, list("abcd"))
    assert two.training_noise
    assert str(Estimate(0.1234, 0.05, 0.2, 0.03, seeds=3)) == "+12.3 [+5.0, +20.0]"


def test_more_noise_between_seeds_widens_the_interval():
    rng = np.random.default_rng(3)
    base = (rng.random(300) < 0.5).astype(float)
    quiet = {seed: ((rng.random(300) < 0.60).astype(float), base) for seed in range(3)}
    noisy = {seed: ((rng.random(300) < rate).astype(float), base) for seed, rate in enumerate((0.4, 0.6, 0.8))}
    widths = [est.high - est.low for est in (paired_over_seeds(p, np.arange(300)) for p in (quiet, noisy))]
    assert widths[1] > 3 * widths[0]


def experiment(rng, seeds, seed_noise, question_noise, answer_noise, questions=120, each=2):
    """Differences with two crossed sources of noise around a true value of 0.3."""
    groups = np.repeat(np.arange(questions // each), each)
    shared = rng.normal(0, seed_noise, (seeds, 1)) + rng.normal(0, question_noise, questions // each)[groups]
    values = 0.3 + shared + rng.normal(0, answer_noise, (seeds, questions))
    return {seed: (row, np.zeros(questions)) for seed, row in enumerate(values)}, groups


@pytest.mark.parametrize(
    ("seeds", "noise", "least", "most"),
    [
        (3, (0.2, 0.1, 0.3), 0.91, 0.985),  # training noise dominates: a plain bootstrap covers 75 to 80 %
        (2, (0.2, 0.1, 0.3), 0.91, 0.985),
        (6, (0.05, 0.3, 0.3), 0.91, 0.99),
        (3, (0.0, 0.3, 0.3), 0.93, 1.0),  # no training noise: on the wide side
        (1, (0.0, 0.3, 0.3), 0.91, 0.98),
    ],
)
def test_intervals_hold_the_truth_about_as_often_as_they_say(seeds, noise, least, most):
    rng = np.random.default_rng(seeds)
    held = 0
    for _ in range(300):
        pairs, groups = experiment(rng, seeds, *noise)
        estimate = paired_over_seeds(pairs, groups)
        held += estimate.low <= 0.3 <= estimate.high
    assert least <= held / 300 <= most


def test_error_over_seeds_is_the_spread_over_repeated_experiments():
    rng = np.random.default_rng(4)
    runs = [paired_over_seeds(*experiment(rng, 3, 0.2, 0.2, 0.3)) for _ in range(300)]
    spread = np.std([estimate.value for estimate in runs])
    assert np.sqrt(np.mean([estimate.stderr**2 for estimate in runs])) == pytest.approx(spread, rel=0.15)


def test_the_same_answers_give_the_same_interval():
    pairs, groups = experiment(np.random.default_rng(0), 3, 0.1, 0.1, 0.3)
    assert paired_over_seeds(pairs, groups) == paired_over_seeds(pairs, groups)


def test_what_cannot_be_estimated_is_refused():
    with pytest.raises(ValueError, match="at least two videos, got 1"):
        clustered_stderr([1, 0], ["v", "v"])
    with pytest.raises(ValueError, match="3 clusters for values of shape"):
        clustered_stderr([1, 0], ["v", "w", "x"])
    with pytest.raises(ValueError, match="same questions"):
        paired_difference([1, 0], [1, 0, 1], ["v", "w"])
    with pytest.raises(ValueError, match="at least one seed"):
        paired_over_seeds({}, ["v"])
    with pytest.raises(ValueError, match="different numbers"):
        paired_over_seeds({0: ([1, 0], [0, 0]), 1: ([1], [0])}, ["v", "w"])
