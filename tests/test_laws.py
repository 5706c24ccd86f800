"""The exact facts about normalization, on random shapes, epsilons, offsets and scales."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import normlib
from study import laws

SETTINGS = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
CASES = st.builds(
    laws.Case,
    seed=st.integers(0, 2**31),
    shape=st.tuples(st.integers(2, 6), st.integers(2, 5), st.integers(2, 5), st.sampled_from([2, 4, 6, 10])),
    epsilon=st.sampled_from([1e-8, 1e-5, 1e-3, 1.0]),
    mean=st.sampled_from([0.0, 1.0, -30.0]),
    std=st.sampled_from([0.1, 1.0, 20.0]),
)


@pytest.mark.parametrize("name", laws.LAWS)
@SETTINGS
@given(case=CASES)
def test_a_law_holds(name, case):
    claim, measure = laws.LAWS[name]
    assert measure(case) <= laws.TOLERANCE, claim


def test_a_law_that_all_but_one_method_keeps_fails_where_that_one_keeps_it(monkeypatch):
    """BN in inference is like the others: then what is said of BN in training is wrong."""
    for name in ("accumulation_is_exact_without_bn", "samples_are_independent_without_bn"):
        monkeypatch.setattr(laws, "call", lambda layer, x: layer(x))
        assert laws.LAWS[name][1](laws.Case()) == 1.0


def test_the_length_law_needs_epsilons_share(monkeypatch):
    monkeypatch.setattr(laws, "radial_gradient", lambda *_: 0.0)
    assert laws.LAWS["symmetries_conserve"][1](laws.Case()) > 10 * laws.TOLERANCE


@SETTINGS
@given(
    case=st.builds(
        laws.Case,
        seed=st.integers(0, 2**31),
        shape=st.tuples(*[st.integers(5, 7)] * 3, st.sampled_from([3, 6])),
        std=st.sampled_from([0.1, 1.0, 20.0]),
    )
)
def test_the_table_of_invariances(case):
    changes, expected = laws.invariance_table(case)
    assert np.all(changes[expected] < laws.TOLERANCE)
    assert np.all(changes[~expected] > 1e-4)


# --- planted faults: each law fails where what it speaks of is wrong ------------------------------------------------


def standardizing(fault):
    """`normlib.standardize` as the plain formula, differentiated by TensorFlow, with one fault; no masks."""

    def standardize(x, axes, epsilon, center=True, gamma=None, beta=None, groups=None, **_):
        if fault == "over the batch too":
            axes = tuple({0, *axes})
        if fault == "over an image's rows alone" and 0 not in axes:
            axes = axes[:1]

        def average(t):
            mean = tf.reduce_mean(t, axes, keepdims=True)
            pooled = None if fault == "without the group's channels" else groups
            mean = normlib._pool(normlib._Plan(axes, groups=pooled), mean, x, tf.reduce_mean)
            return mean[:1] if fault == "the first image's statistics" else mean

        if fault == "dx 1% too large":
            x = scaled_gradient(x)
        mean = average(x) if center and fault != "not centred" else tf.zeros([1] * x.shape.rank, x.dtype)
        deviation = x - (tf.stop_gradient(mean) if fault == "mean detached" else mean)
        variance = average(deviation**2)
        if fault == "unbiased variance":
            count = tf.cast(tf.size(x) / tf.size(variance), x.dtype)
            variance = variance * count / (count - 1)
        used = tf.stop_gradient(variance) if fault == "variance detached" else variance
        outside = fault == "epsilon outside the root"
        y = deviation / (tf.sqrt(used) + epsilon if outside else tf.sqrt(used + epsilon))
        y = y if gamma is None else y * gamma
        return (y if beta is None else y + beta), tf.stop_gradient(mean), tf.stop_gradient(variance)

    return standardize


@tf.custom_gradient
def scaled_gradient(x):
    return x, lambda dx: 1.01 * dx


def weight_normalizing(fault):
    """`normlib.weight_normalize` as the plain formula, with one fault."""

    def weight_normalize(v, g, axes):
        whole = tuple(range(v.shape.rank)) if fault == "length of all vectors together" else axes
        length = tf.sqrt(tf.reduce_sum(v**2, whole, keepdims=True))
        return g * v / (tf.stop_gradient(length) if fault == "length detached" else length)

    return weight_normalize


def folding(fault):
    right = normlib._fold

    def fold(layer, norm):
        *kernels, bias = right(layer, norm)
        return [*kernels, bias + norm.moving_mean.numpy() if fault == "the mean is added" else bias]

    return fold


def averaging(fault):
    def average(self, statistics):
        momentum = 1.0 - self.momentum if fault == "momentum reversed" else self.momentum
        for name, batch in zip(self._statistics, statistics, strict=True):
            moving = getattr(self, name)
            moving.assign(moving * momentum + tf.reshape(batch, moving.shape) * (1.0 - momentum))

    return average


# Where a fault is planted: the name in normlib, and what takes its place.
PLACES = {
    "standardize": standardizing,
    "weight_normalize": weight_normalizing,
    "_fold": folding,
    "BatchNormalization._average": averaging,
}
# law -> faults that break it, as (place, fault): of a law about several layers, one for each where there are some.
PLANTED = {
    "dx_sums_to_zero": [("standardize", "mean detached")],
    "dx_along_the_output_is_epsilons_share": [
        ("standardize", "variance detached"),
        ("standardize", "epsilon outside the root"),
    ],
    "weights_before_bn_feel_epsilon_alone": [("standardize", "dx 1% too large")],
    "scaled_weights_scale_epsilon": [("standardize", "epsilon outside the root")],
    "directions_only_turn": [("weight_normalize", "length detached")],
    "rank_of_the_jacobian": [("standardize", "mean detached"), ("standardize", "variance detached")],
    "tiny_batches_pass_nothing": [("standardize", "unbiased variance"), ("standardize", "variance detached")],
    "weight_normalization_is_bn_on_whitened_inputs": [
        ("standardize", "unbiased variance"),
        ("weight_normalize", "length of all vectors together"),
    ],
    "folding_is_exact": [("_fold", "the mean is added")],
    "ln_is_rms_of_the_centred": [("standardize", "not centred")],
    "gn_ends_in_ln_and_in": [("standardize", "without the group's channels")],
    "bn_of_one_image_is_in": [("standardize", "over an image's rows alone")],
    "accumulation_is_exact_without_bn": [("standardize", "over the batch too")],
    "samples_are_independent_without_bn": [("standardize", "over the batch too")],
    "permutations_pass_through": [("standardize", "the first image's statistics")],
    "bn_twice": [("standardize", "epsilon outside the root"), ("standardize", "unbiased variance")],
    "moving_averages_forget_their_start": [("BatchNormalization._average", "momentum reversed")],
    "moving_variance_is_biased": [("standardize", "unbiased variance")],
    "symmetries_conserve": [("standardize", "mean detached"), ("weight_normalize", "length detached")],
}


def test_every_law_is_planted_against():
    assert PLANTED.keys() == laws.LAWS.keys()
    assert all(PLANTED.values())


@pytest.mark.parametrize(
    ("name", "place", "fault"), [(name, *fault) for name, faults in PLANTED.items() for fault in faults]
)
def test_a_law_fails_on_a_planted_fault(name, place, fault, monkeypatch):
    """And holds with the plain formula in the same place, so that it is the fault that it fails on."""
    measure = laws.LAWS[name][1]
    monkeypatch.setattr(f"normlib.{place}", PLACES[place](None))
    assert measure(laws.Case()) <= laws.TOLERANCE
    monkeypatch.setattr(f"normlib.{place}", PLACES[place](fault))
    assert measure(laws.Case()) > laws.TOLERANCE
