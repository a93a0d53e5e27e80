"""Errors and quantiles against closed forms, a well-kept library, and repeated experiments."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from tefusion.statistics import clustered_stderr, student_quantile, student_tail


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


def test_clustered_error_is_that_of_statsmodels():
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(40), rng.integers(1, 6, 40))
    values = (rng.random(len(groups)) < 0.3 + 0.4 * (groups % 2)).astype(float)
    fitted = sm.OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": groups})
    assert clustered_stderr(values, groups) == pytest.approx(fitted.bse[0], rel=1e-9)


def test_clustered_error_is_the_spread_over_repeated_experiments():
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(60), np.resize([1, 2, 5], 60))  # unequal clusters
    means, errors = [], []
    for _ in range(400):
        values = rng.normal(size=60)[groups] + rng.normal(size=len(groups))
        means.append(values.mean())
        errors.append(clustered_stderr(values, groups))
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 10, 1000, 100_000])
def test_students_t_is_scipys(freedom):
    quantiles = np.array([0.0005, 0.025, 0.2, 0.5, 0.975])
    assert student_quantile(quantiles, freedom) == pytest.approx(stats.t.ppf(quantiles, freedom), rel=1e-4, abs=1e-9)
    places = np.array([-20.0, -1.0, 0.0, 0.5, 2.0, 3.0, 6.0])
    assert student_tail(places, freedom) == pytest.approx(stats.t.sf(places, freedom), rel=1e-3, abs=1e-9)


def test_what_cannot_be_estimated_is_refused():
    with pytest.raises(ValueError, match="at least two videos, got 1"):
        clustered_stderr([1, 0], ["v", "v"])
    with pytest.raises(ValueError, match="3 clusters for values of shape"):
        clustered_stderr([1, 0], ["v", "w", "x"])
