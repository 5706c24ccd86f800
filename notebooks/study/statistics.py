"""Intervals and tests, over few seeds. The arithmetic is SciPy's."""

import numpy as np
from scipy import stats


def mean_interval(values, confidence=0.95):
    """Mean and t-interval of independent values.

    A bootstrap of three to five values covers 76 to 84 % instead of 95 %, so it is not used.

    Args:
        values: at least one number.
        confidence: coverage, between 0 and 1. Default 0.95.

    Returns:
        (mean, low, high); of a single value both bounds are nan.
    """
    values = np.asarray(values, "float64")
    if values.ndim != 1 or not len(values) or not 0 < confidence < 1:
        raise ValueError(f"Expected values and a confidence in (0, 1). Received: {values!r}, {confidence!r}")
    mean = float(values.mean())
    if len(values) == 1:
        return mean, float("nan"), float("nan")
    error = stats.sem(values)
    if error == 0:
        return mean, mean, mean
    low, high = stats.t.interval(confidence, len(values) - 1, mean, error)
    return mean, float(low), float(high)


def steps_to_target(steps, accuracy, target):
    """The first measured step at which the accuracy reaches the target; inf if it never does.

    Args:
        steps, accuracy: of the same length, the steps ascending.
        target: fraction.
    """
    steps, accuracy = np.asarray(steps), np.asarray(accuracy)
    if steps.shape != accuracy.shape:
        raise ValueError(f"Expected as many steps as accuracies. Received: {steps.shape} and {accuracy.shape}")
    reached = np.flatnonzero(accuracy >= target)
    return float(steps[reached[0]]) if len(reached) else float("inf")
