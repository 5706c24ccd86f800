"""The hand-derived gradients against autodiff of the plain formula and against central differences."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from references import (
    assert_close,
    build,
    call,
    gradients,
    layer_cases,
    plain_layer,
    plain_standardize,
    random,
)

import normlib

CASES = [pytest.param(*case[1:], id=case[0]) for case in layer_cases()]
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("make", "arguments", "shape"), CASES)
def test_output_and_gradients_equal_autodiff_of_the_plain_formula(make, arguments, shape, dtype, rng):
    layer = build(make, arguments, shape, dtype, rng)
    x, dy = random(rng, shape, dtype), random(rng, shape, dtype, mean=0.0)
    variables = layer.trainable_variables
    y, actual = gradients(lambda x: call(layer, x), x, variables, dy)
    expected_y, expected = gradients(lambda x: plain_layer(layer, x), x, variables, dy)
    assert_close(y, expected_y, TOLERANCE[dtype])
    for ours, theirs in zip(actual, expected, strict=True):
        assert_close(ours, theirs, TOLERANCE[dtype])


@pytest.mark.parametrize("shape", [(6, 5, 4), (40, 32, 30)])  # operation by operation, and compiled
@pytest.mark.parametrize("arguments", [{}, {"scale": False}, {"center": False, "axis": 1}])
def test_inference_has_the_derivatives_of_its_formula(arguments, shape, rng):
    layer = build(normlib.BatchNormalization, arguments, shape, "float64", rng)
    x, variables = tf.constant(random(rng, shape)), layer.variables

    def formula(x):
        mean, variance, gamma, beta = (
            p if p is None else tf.reshape(p, [-1, 1] if arguments.get("axis") else [-1])
            for p in (layer.moving_mean, layer.moving_variance, layer.gamma, layer.beta)
        )
        x_hat = (x - mean) / tf.sqrt(variance + layer.epsilon)
        return x_hat * (1 if gamma is None else gamma) + (0 if beta is None else beta)

    def derivatives(function):
        sources = [x, *(variable.value for variable in variables)]
        with tf.GradientTape() as outer:
            outer.watch(sources)
            with tf.GradientTape() as inner:
                inner.watch(sources)
                loss = tf.reduce_sum(tf.sin(function(x)))
            first = inner.gradient(loss, sources)
            slope = tf.add_n([tf.reduce_sum(tf.sin(gradient)) for gradient in first])
        return [*first, *outer.gradient(slope, sources)]

    expected = derivatives(formula)
    for run in (derivatives, tf.function(derivatives, autograph=False)):
        for ours, theirs in zip(run(lambda x: layer(x, training=False)), expected, strict=True):
            assert_close(ours, theirs, 1e-11)


@st.composite
def any_case(draw):
    """A layer, arguments that suit the shape, the shape, a dtype, how it is called, an input's moments, a seed."""
    rank = draw(st.integers(2, 5))
    sizes = st.integers(2, 6) | st.sampled_from([1, 8, 17, 32])
    shape = tuple(draw(sizes) for _ in range(rank))
    assume(math.prod(shape) < 2 * normlib.COMPILE_FROM)
    kinds = ["BatchNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization"]
    kind = draw(st.sampled_from([*kinds, "InstanceNormalization"] if rank > 2 else kinds))
    arguments = {"epsilon": draw(st.sampled_from([1e-5, 1e-3, 1.0]))}
    if kind == "BatchNormalization":
        arguments["axis"] = draw(st.integers(-rank, rank - 1))
    elif kind == "GroupNormalization":
        arguments["groups"] = draw(st.sampled_from([g for g in range(1, 7) if shape[-1] % g == 0]))
    elif kind != "InstanceNormalization":
        axes = draw(st.sets(st.integers(1, rank - 1), min_size=1))
        arguments["axis"] = draw(st.permutations([a if draw(st.booleans()) else a - rank for a in axes]))
    if kind != "RMSNormalization":
        arguments |= {option: draw(st.booleans()) for option in ("center", "scale")}
    dtype = draw(st.sampled_from(list(OF_OUTPUT)))
    run = draw(st.sampled_from(["eager", "graph", "compiled", "open batch", "open sizes"]))
    moments = draw(st.sampled_from([0.0, 1.0, -30.0])), draw(st.sampled_from([0.1, 1.0, 20.0]))
    return getattr(normlib, kind), arguments, shape, dtype, run, moments, draw(st.integers(0, 2**31))


# Half a unit in the last place of what is stored, and some units of what is computed with.
OF_OUTPUT = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 1e-5, "float64": 1e-12}


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(any_case())
def test_any_layer_equals_the_plain_formula_in_float64(case):
    make, arguments, shape, dtype, run, (mean, std), seed = case
    rng = np.random.default_rng(seed)
    layer = build(make, arguments, shape, dtype, rng)
    x, dy = random(rng, shape, dtype, mean, std), random(rng, shape, dtype, mean=0.0)
    variables = layer.trainable_variables

    def own(x):
        return gradients(lambda x: call(layer, x), x, variables, dy)

    if run == "eager":
        y, actual = own(x)
    else:
        features, all_axes = layer._features(len(shape)), range(len(shape))
        known = {"open batch": [*features, *all_axes[1:]], "open sizes": features}.get(run, all_axes)
        signature = [tf.TensorSpec([n if a in known else None for a, n in enumerate(shape)], dtype)]
        y, actual = tf.function(own, signature, autograph=False, jit_compile=run == "compiled")(x)
    exact = [tf.cast(t, "float64") for t in (x, dy)]
    expected_y, expected = gradients(lambda x: plain_layer(layer, x), exact[0], variables, exact[1])
    for ours, truth in zip([y, *actual], [expected_y, *expected], strict=True):
        assert ours.dtype == dtype
        assert_close(ours, truth, OF_OUTPUT[dtype])


@pytest.mark.parametrize(("make", "arguments", "shape"), [c for c in CASES if "compiled" not in c.id])
def test_dx_equals_central_differences(make, arguments, shape, rng):
    layer = build(make, arguments, shape, "float64", rng)
    x, dy = random(rng, shape), random(rng, shape, mean=0.0)
    _, (dx, *_) = gradients(lambda x: call(layer, x), x, [], dy)
    direction, h = rng.normal(size=shape), 1e-5
    change = tf.reduce_sum((call(layer, x + h * direction) - call(layer, x - h * direction)) * dy) / (2 * h)
    assert float(change) == pytest.approx(float(tf.reduce_sum(dx * direction)), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("size", [(2, 1, 4), (2, 5, 4), (1, 5, 1), (1, 1, 4)])
@pytest.mark.parametrize("axes", [(2,), (-1,), (1, 2)])
def test_gamma_and_beta_of_any_shape_have_their_gradients(size, axes, rng):
    x, gamma, beta, dy = (random(rng, shape) for shape in ((2, 5, 4), size, size, (2, 5, 4)))

    def both(function):
        with tf.GradientTape() as tape:
            tape.watch([x, gamma, beta])
            y = function(x, axes, 1e-3, gamma=gamma, beta=beta)
        return tape.gradient(y, [x, gamma, beta], dy)

    own = both(lambda *given, **parameters: normlib.standardize(*given, **parameters)[0])
    for ours, theirs in zip(own, both(plain_standardize), strict=True):
        assert_close(ours, theirs, 1e-12)


@pytest.mark.parametrize(("make", "arguments", "shape"), CASES)
def test_second_derivatives_equal_autodiff_of_the_plain_formula(make, arguments, shape, rng):
    layer = build(make, arguments, shape, "float64", rng)
    x, weights = random(rng, shape), random(rng, shape)

    def second(function):
        return penalty_gradients(function, x, layer.trainable_variables, weights)

    expected = second(lambda x: plain_layer(layer, x))
    for run in (lambda f, x: f(x), lambda f, x: tf.function(f)(x)):
        for ours, theirs in zip(
            second(lambda x, r=run: r(lambda x: call(layer, x), x)), expected, strict=True
        ):
            assert_close(ours, theirs, 1e-10)


def penalty_gradients(function, x, variables, weights):
    """The gradients of a gradient penalty, with respect to x and the variables."""
    watched = [x, *(v.value for v in variables)]
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            loss = tf.reduce_sum(weights * tf.sin(function(x)))
        penalty = sum(tf.reduce_sum(gradient**2) for gradient in inner.gradient(loss, watched))
    return outer.gradient(penalty, watched, unconnected_gradients="zero")


@pytest.mark.parametrize("shape", [(6, 5, 3), (64, 128, 5)])  # operation by operation, and compiled
def test_a_masked_batch_is_right_to_second_order(shape, rng):
    mask = rng.random(shape[:-1]) < 0.6
    layer = build(normlib.BatchNormalization, {}, shape, "float64", rng)
    x, weights, counts = random(rng, shape), random(rng, shape), tf.constant(mask[..., None], "float64")

    def plain(x):
        mean = tf.reduce_sum(counts * x, (0, 1)) / tf.reduce_sum(counts)
        variance = tf.reduce_sum(counts * (x - mean) ** 2, (0, 1)) / tf.reduce_sum(counts)
        x_hat = (x - mean) / tf.sqrt(variance + layer.epsilon)
        return layer.gamma.value * x_hat + layer.beta.value

    both = (lambda x: layer(x, training=True, mask=tf.constant(mask))), plain
    found = (penalty_gradients(function, x, layer.trainable_variables, weights) for function in both)
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs, 1e-10)


KERNELS = [
    (keras.layers.Dense, {"units": 4}, (3, 5), (0,)),
    (keras.layers.Conv1D, {"filters": 4, "kernel_size": 2}, (2, 5, 3), (0, 1)),
    (keras.layers.Conv2D, {"filters": 4, "kernel_size": 2}, (2, 5, 5, 3), (0, 1, 2)),
    (keras.layers.Conv3D, {"filters": 4, "kernel_size": 2}, (2, 4, 4, 4, 3), (0, 1, 2, 3)),
    (keras.layers.Conv2DTranspose, {"filters": 4, "kernel_size": 2}, (2, 5, 5, 3), (0, 1, 3)),
    (keras.layers.DepthwiseConv2D, {"kernel_size": 2}, (2, 5, 5, 3), (0, 1)),
    (keras.layers.EinsumDense, {"equation": "abc,cd->abd", "output_shape": (None, 4)}, (2, 5, 3), (0,)),
]


@pytest.mark.parametrize(
    ("make", "arguments", "shape", "axes"), KERNELS, ids=lambda v: getattr(v, "__name__", "")
)
def test_weight_normalization_gradients_equal_autodiff(make, arguments, shape, axes, rng):
    wrapped = normlib.WeightNormalization(make(**arguments, dtype="float64"), dtype="float64")
    x = random(rng, shape)
    wrapped(x)
    (v, found_axes, g), *_ = wrapped._parts()
    assert found_axes == axes
    g.assign(rng.uniform(0.5, 1.5, g.shape))

    def plain(x):
        length = tf.reshape(g.value, [1 if a in axes else s for a, s in enumerate(v.shape)])
        kernel = length * v.value / tf.sqrt(tf.reduce_sum(v.value**2, axes, keepdims=True))
        trainable = [kernel if w is v else w for w in wrapped.layer.trainable_variables]
        return wrapped.layer.stateless_call(trainable, [], x)[0]

    dy = random(rng, wrapped(x).shape)
    y, actual = gradients(wrapped, x, [g, v], dy)
    expected_y, expected = gradients(plain, x, [g, v], dy)
    assert_close(y, expected_y, 1e-13)
    for ours, theirs in zip(actual, expected, strict=True):
        assert_close(ours, theirs, 1e-12)
    to_second_order = (penalty_gradients(function, x, [g, v], dy) for function in (wrapped, plain))
    for ours, theirs in zip(*to_second_order, strict=True):
        assert_close(ours, theirs, 1e-10)


@pytest.mark.parametrize("shape", [(6, 4), (700, 60)])
def test_weight_normalize_is_right_to_second_order(shape, rng):
    v, g = random(rng, shape), random(rng, (1, shape[1]), mean=2.0, std=0.1)
    target = random(rng, shape)

    def second(function):
        with tf.GradientTape() as outer:
            outer.watch((v, g))
            with tf.GradientTape() as inner:
                inner.watch((v, g))
                loss = tf.reduce_sum(target * tf.sin(function(v, g)))
            dv, dg = inner.gradient(loss, (v, g))
            penalty = tf.reduce_sum(dv**2) + tf.reduce_sum(dg**3)
        return outer.gradient(penalty, (v, g))

    plain = second(lambda v, g: g * v / tf.sqrt(tf.reduce_sum(v**2, 0, keepdims=True)))
    for ours, theirs in zip(second(lambda v, g: normlib.weight_normalize(v, g, (0,))), plain, strict=True):
        assert_close(ours, theirs, 1e-12)


@pytest.mark.parametrize("shape", [(6, 4), (700, 60)])
def test_a_vector_of_length_zero_does_not_spoil_second_derivatives(shape, rng):
    v, direction, target = (rng.normal(size=shape) for _ in range(3))
    v[:, 1] = 0.0

    def hessian_product(columns):
        x, along, aim = (tf.constant(t[:, columns]) for t in (v, direction, target))
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                loss = tf.reduce_sum(aim * tf.sin(normlib.weight_normalize(x, tf.ones_like(x[:1]), (0,))))
            product = tf.reduce_sum(along * inner.gradient(loss, x))
        return outer.gradient(product, x).numpy()

    others = [column for column in range(shape[1]) if column != 1]
    found = hessian_product(range(shape[1]))
    assert_close(found[:, others], hessian_product(others), 1e-12)
    np.testing.assert_array_equal(found[:, 1], 0.0)


def test_detached_statistics_would_be_seen(rng):
    """The trap: with statistics cut off from the gradient, training still goes down, and this test would fail."""
    x = random(rng, (8, 3))
    layer = build(normlib.BatchNormalization, {}, (8, 3), "float64", rng)
    bias = tf.zeros([3], "float64")
    with tf.GradientTape() as tape:
        tape.watch(bias)
        loss = tf.reduce_sum(tf.sin(layer(x + bias, training=True)))
    assert np.max(np.abs(tape.gradient(loss, bias))) < 1e-13
