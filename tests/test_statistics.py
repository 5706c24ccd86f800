"""Intervals and tests, against SciPy's own and against cases worked by hand."""

import numpy as np
import pytest
from scipy import stats

from study import statistics

# --- intervals ----------------------------------------------------------------------------------------------------


def test_the_interval_is_scipys(rng):
    values = rng.normal(size=7)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.9)
    assert statistics.mean_interval(values, 0.9) == pytest.approx((values.mean(), *expected))


def test_the_interval_covers_as_often_as_it_says(rng):
    samples = rng.normal(1.0, 2.0, size=(4_000, 3))
    bounds = [statistics.mean_interval(sample)[1:] for sample in samples]
    covered = np.mean([low <= 1.0 <= high for low, high in bounds])
    assert covered == pytest.approx(0.95, abs=0.012)


def test_one_value_has_no_interval():
    mean, low, high = statistics.mean_interval([0.5])
    assert mean == 0.5
    assert np.isnan([low, high]).all()


def test_equal_values_have_an_empty_interval():
    assert statistics.mean_interval([0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5)


# --- paired differences -------------------------------------------------------------------------------------------


def test_the_paired_interval_is_scipys(rng):
    a, b = rng.normal(0.3, 1, size=(2, 6))
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert statistics.paired_difference(a, b)[:3] == pytest.approx((np.mean(a - b), *expected))


@pytest.mark.parametrize("n", [2, 5, 9])
@pytest.mark.parametrize("shift", [0.0, 0.8])
def test_the_sign_flip_p_is_scipys_exact_one(n, shift, rng):
    a, b = rng.normal(size=(2, n))
    ours = statistics.paired_difference(a + shift, b).p
    theirs = stats.permutation_test(
        (a + shift, b),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    )
    assert ours == pytest.approx(theirs.pvalue)


def test_sign_flips_by_hand():
    # Differences 1, 2, 3: of the sums of +-1 +-2 +-3 only 6 and -6 are as large.
    assert statistics.paired_difference([1, 2, 3], [0, 0, 0]).p == 2 / 8
    # Differences 1, 2, -3 add up to 0: every way is as large.
    assert statistics.paired_difference([1, 2, 0], [0, 0, 3]).p == 1


def test_round_off_does_not_hide_a_tie():
    # 0.1 is the smallest of the sums, but one of the ways that give it comes out one unit in the last place lower.
    assert statistics.paired_difference([0.1, 0.2, -0.2], [0, 0, 0]).p == 1


def test_one_pair_settles_nothing():
    difference = statistics.paired_difference([0.9], [0.8])
    assert difference.p == 1
    assert np.isnan(difference.low)


def test_the_largest_number_of_pairs_is_enumerated_whole():
    n = statistics.MAX_ENUMERATED
    assert statistics.paired_difference(np.arange(1.0, n + 1), np.zeros(n)).p == 2 / 2**n


def test_superiority_counts_ties_by_half():
    assert statistics.paired_difference([1, 2, 3, 4], [0, 2, 4, 3]).superiority == (1 + 0.5 + 0 + 1) / 4


def test_what_pairs_share_cancels(rng):
    seeds = rng.normal(0, 100, size=8)
    noise = rng.normal(0, 0.1, size=8)
    assert statistics.paired_difference(seeds + 1 + noise, seeds).low > 0.8


# --- equivalence --------------------------------------------------------------------------------------------------


def test_equivalence_is_two_one_sided_tests_of_scipy(rng):
    a, b = rng.normal(0, 0.1, size=(2, 6))
    above = stats.ttest_rel(a, b - 0.2, alternative="greater").pvalue
    below = stats.ttest_rel(a, b + 0.2, alternative="less").pvalue
    assert statistics.equivalence(a, b, 0.2).p == pytest.approx(max(above, below))


@pytest.mark.parametrize(
    ("a", "verdict"),
    [
        ([0.1, -0.1, 0.0, 0.05], "equivalent"),
        ([2.1, 1.9, 2.0, 2.05], "different"),
        ([-2.1, -1.9, -2.0, -2.05], "different"),
        ([2.0, -2.0, 1.0, 0.5], "not settled"),
        ([0.2, 0.2, 0.2, 0.2], "equivalent"),
        ([1.0, 1.0, 1.0, 1.0], "different"),  # as far apart as the margin is not within it
    ],
)
def test_the_verdict(a, verdict):
    assert statistics.equivalence(a, np.zeros(4), margin=1.0).verdict == verdict


def test_the_interval_and_p_never_disagree(rng):
    seen = set()
    for a in rng.normal(rng.uniform(-0.5, 0.5, size=(300, 1)), 0.4, size=(300, 5)):
        result = statistics.equivalence(a, np.zeros(5), margin=0.5, alpha=0.1)
        within = max(-result.low, result.high) < 0.5
        assert (result.verdict == "equivalent") == within == (result.p < 0.1)
        seen.add(within)
    assert seen == {True, False}


def test_equivalence_is_rarely_claimed_at_the_margin(rng):
    samples = rng.normal(1.0, 1.0, size=(4_000, 20))  # the true difference is the margin
    claimed = [statistics.equivalence(s, np.zeros(20), 1.0).verdict == "equivalent" for s in samples]
    assert np.mean(claimed) == pytest.approx(0.05, abs=0.012)


# --- several hypotheses -------------------------------------------------------------------------------------------


def test_holm_by_hand():
    # Ascending: 0.01 * 4, 0.02 * 3, 0.03 * 2 (raised to 0.06), 0.5.
    np.testing.assert_allclose(statistics.holm([0.03, 0.01, 0.5, 0.02]), [0.06, 0.04, 0.5, 0.06])
    np.testing.assert_allclose(statistics.holm([0.7, 0.6]), [1, 1])


def test_holm_keeps_the_chance_of_any_false_finding(rng):
    p_values = rng.uniform(size=(4_000, 3))
    found = [statistics.holm(row).min() < 0.05 for row in p_values]
    assert np.mean(found) == pytest.approx(0.05, abs=0.012)


# --- steps to a target --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "expected"), [(0.5, 20), (0.6, 20), (0.1, 10), (0.9, np.inf)], ids=str)
def test_steps_to_target_is_the_first_that_reaches_it(target, expected):
    assert statistics.steps_to_target([10, 20, 30], [0.1, 0.6, 0.5], target) == expected


def test_a_run_that_diverged_reaches_nothing():
    assert statistics.steps_to_target([10, 20], [np.nan, np.nan], 0.0) == np.inf


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: statistics.mean_interval([]), r"one or more finite numbers. Received: \[\]"),
        (lambda: statistics.mean_interval([[1.0, 2.0]]), r"finite numbers. Received: \[\[1.0, 2.0\]\]"),
        (lambda: statistics.mean_interval([1.0, np.inf]), r"finite numbers. Received: \[1.0, inf\]"),
        (lambda: statistics.mean_interval([1.0], 95), "between 0 and 1. Received: confidence=95"),
        (lambda: statistics.paired_difference([1, 2], [1]), "as many a as b. Received: 2 and 1"),
        (lambda: statistics.paired_difference([1, np.nan], [1, 2]), r"Expected a: .* Received: \[1.0, nan\]"),
        (lambda: statistics.paired_difference(np.ones(17), np.ones(17)), "at most 16 pairs. Received: 17"),
        (lambda: statistics.equivalence([1], [1], 0.1), "at least 2 pairs. Received: 1"),
        (lambda: statistics.equivalence([1, 2], [1, 2], 0), "margin above 0. Received: margin=0"),
        (lambda: statistics.equivalence([1, 2], [1, 2], np.nan), "margin above 0. Received: margin=nan"),
        (lambda: statistics.equivalence([1, 2], [1, 2], 1, 0.5), "0 and 0.5. Received: alpha=0.5"),
        (lambda: statistics.holm([]), r"Received: \[\]"),
        (lambda: statistics.holm([0.1, 1.1]), r"from 0 to 1. Received: \[0.1, 1.1\]"),
        (lambda: statistics.steps_to_target([1], [0.1, 0.2], 0.5), r"Received: \(1,\) and \(2,\)"),
        (lambda: statistics.steps_to_target([2, 1], [0.1, 0.2], 0.5), r"ascending steps. Received: \[2, 1\]"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_mean_over_steps_does_not_depend_on_where_it_was_measured():
    steps = np.array([100, 200, 300, 400, 500, 900])
    line = 0.5 + steps / 1_000
    assert statistics.mean_over_steps(steps, line) == pytest.approx(1.0)
    assert statistics.mean_over_steps(steps[[0, 5]], line[[0, 5]]) == pytest.approx(1.0)
    assert statistics.mean_over_steps([7], [0.3]) == 0.3
