"""Intervals and tests over few seeds. The distributions are SciPy's.

Methods share seeds (initial weights, batches), so they are compared by their differences, seed by seed.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

MAX_ENUMERATED = 16  # pairs; their 65,536 signs are enumerated at once


class Difference(NamedTuple):
    """How much larger the values a are than the values b, pair by pair.

    Attributes:
        mean, low, high: mean difference a - b and its t-interval.
        p: two-sided p of the sign-flip test; never under 2^(1 - n).
        superiority: probability that a is larger than b, ties counted by half.
        pairs: how many.
    """

    mean: float
    low: float
    high: float
    p: float
    superiority: float
    pairs: int


class Equivalence(NamedTuple):
    """Whether the values a and b differ by less than a margin.

    Attributes:
        mean, low, high: mean difference a - b and its t-interval of confidence 1 - 2 alpha, which decides.
        p: of the two one-sided tests, the larger.
        verdict: "equivalent" (the interval lies within the margin), "different" (wholly outside) or "not settled".
    """

    mean: float
    low: float
    high: float
    p: float
    verdict: str


def mean_interval(values, confidence=0.95):
    """Mean and t-interval of independent values (Student, 1908).

        mean -+ t[(1 + confidence) / 2, n - 1] * s / sqrt(n)

    A bootstrap of three to five values covers 76 to 84 % instead of 95 %, so it is not used.

    Args:
        values: at least one finite number.
        confidence: coverage, between 0 and 1. Default 0.95.

    Returns:
        (mean, low, high); of a single value both bounds are nan.

    Raises:
        ValueError: if there is no value, one is not finite, or the confidence is not between 0 and 1.
    """
    values = _finite("values", values)
    if not 0 < confidence < 1:
        raise ValueError(f"Expected a confidence between 0 and 1. Received: confidence={confidence!r}")
    if len(values) == 1:
        return float(values[0]), float("nan"), float("nan")
    half_width = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * stats.sem(values)
    mean = values.mean()
    return float(mean), float(mean - half_width), float(mean + half_width)


def paired_difference(a, b):
    """Compare two methods over the same seeds.

    The sign-flip test (Fisher, 1935; Pitman, 1937) asks how many of the 2^n ways to swap a and b within the pairs give
    a mean difference as large as the one seen, and assumes no distribution. Under 6 pairs it cannot reach p = 0.05.
    The probability of superiority is that of Bouthillier et al. (2021), arXiv:2103.03098.

    Args:
        a, b: values of the two methods, the same seed at the same place; 1 to 16 pairs.

    Returns:
        A Difference, its interval the 95 % t-interval.

    Raises:
        ValueError: if a and b are not pairs of finite numbers, or are more than 16.
    """
    differences = _differences(a, b)
    n = len(differences)
    if n > MAX_ENUMERATED:
        raise ValueError(f"Expected at most {MAX_ENUMERATED} pairs. Received: {n} pairs")
    signs = 1 - 2 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)  # [2^n, n]: every way to swap
    sums = np.abs(signs @ differences)
    round_off = 1e-12 * np.abs(differences).sum()
    p = np.mean(sums >= sums[0] - round_off)  # sums[0] swaps nothing
    superiority = np.mean(differences > 0) + np.mean(differences == 0) / 2
    return Difference(*mean_interval(differences), float(p), float(superiority), n)


def equivalence(a, b, margin, alpha=0.05):
    """Test whether two methods over the same seeds differ by less than a margin: two one-sided tests.

        p = max(P(T >= (margin + mean) / se), P(T >= (margin - mean) / se)),  T ~ t[n - 1]

    That no difference was found is no proof that there is none; this is the test that can show it (Schuirmann, 1987).

    Args:
        a, b: values of the two methods, the same seed at the same place; at least 2 pairs.
        margin: the smallest difference that matters, in the unit of a and b; above 0.
        alpha: level of each one-sided test, between 0 and 0.5. Default 0.05.

    Returns:
        An Equivalence; its verdict is "equivalent" exactly if p < alpha.

    Raises:
        ValueError: if a and b are not at least 2 pairs of finite numbers, or margin or alpha are out of range.
    """
    differences = _differences(a, b)
    if len(differences) < 2:
        raise ValueError(f"Expected at least 2 pairs. Received: {len(differences)} pair")
    if not 0 < margin < np.inf:
        raise ValueError(f"Expected a margin above 0. Received: margin={margin!r}")
    if not 0 < alpha < 0.5:
        raise ValueError(f"Expected alpha between 0 and 0.5. Received: alpha={alpha!r}")
    mean, low, high = mean_interval(differences, 1 - 2 * alpha)
    with np.errstate(divide="ignore", invalid="ignore"):  # equal differences have no error
        distances = np.array([margin + mean, margin - mean]) / stats.sem(differences)
    p = float(np.nan_to_num(stats.t.sf(distances, len(differences) - 1), nan=1.0).max())
    outside = low >= margin or high <= -margin
    verdict = "equivalent" if p < alpha else "different" if outside else "not settled"
    return Equivalence(mean, low, high, p, verdict)


def holm(p_values):
    """Adjust p values for testing several hypotheses at once, so that the chance of any false finding stays at alpha.

    In ascending order, p[k] becomes the largest of (m - j) * p[j] for j = 0 .. k, and at most 1 (Holm, 1979).

    Args:
        p_values: m numbers from 0 to 1.

    Returns:
        float [m], in the order given.

    Raises:
        ValueError: if there is none, or one is not between 0 and 1.
    """
    p_values = _finite("p_values", p_values)
    if p_values.min() < 0 or p_values.max() > 1:
        raise ValueError(f"Expected p values from 0 to 1. Received: {p_values.tolist()}")
    order = np.argsort(p_values)
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * p_values[order]), 1)
    return adjusted


def mean_over_steps(steps, accuracy):
    """The mean of a curve from its first measurement to its last, by the trapezoidal rule: measurements that lie closer
    together count no more for it.

    Args:
        steps: when it was measured, ascending.
        accuracy: at each of the steps.

    Returns:
        The mean; of a single measurement its value.
    """
    if len(steps) == 1:
        return float(accuracy[0])
    return float(np.trapezoid(accuracy, steps) / (steps[-1] - steps[0]))


def steps_to_target(steps, accuracy, target):
    """The first measured step at which the accuracy reaches the target.

    Args:
        steps: when it was measured, ascending.
        accuracy: at each of the steps, a fraction; nan reaches nothing.
        target: fraction.

    Returns:
        The step; inf if the target is never reached, so that medians over seeds stay right.

    Raises:
        ValueError: if steps and accuracy differ in length, or the steps do not ascend.
    """
    steps, accuracy = np.asarray(steps), np.asarray(accuracy)
    if steps.shape != accuracy.shape:
        raise ValueError(f"Expected an accuracy a step. Received: {steps.shape} and {accuracy.shape}")
    if (np.diff(steps) <= 0).any():
        raise ValueError(f"Expected ascending steps. Received: {steps.tolist()}")
    reached = np.flatnonzero(accuracy >= target)
    return float(steps[reached[0]]) if len(reached) else float("inf")


def _differences(a, b):
    a, b = _finite("a", a), _finite("b", b)
    if len(a) != len(b):
        raise ValueError(f"Expected pairs, as many a as b. Received: {len(a)} and {len(b)}")
    return a - b


def _finite(name, values):
    values = np.asarray(values, "float64")
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"Expected {name}: one or more finite numbers. Received: {values.tolist()}")
    return values
