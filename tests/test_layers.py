"""What a layer does beside its formula: modes, statistics, saving, errors, and the traps of other implementations."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from references import assert_close, build, call, gradients, has_mode, random

import normlib

LAYERS = [
    pytest.param(normlib.BatchNormalization, {}, id="batch"),
    pytest.param(normlib.LayerNormalization, {"axis": [1, 2, 3]}, id="layer"),
    pytest.param(normlib.GroupNormalization, {"groups": 2}, id="group"),
    pytest.param(normlib.InstanceNormalization, {}, id="instance"),
    pytest.param(normlib.RMSNormalization, {}, id="rms"),
]
SHAPE = (3, 5, 4, 6)


# --- traps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [1e4, 1e6])
@pytest.mark.parametrize("run", ["eager", "graph", "compiled"])
@pytest.mark.parametrize(("make", "arguments"), LAYERS[:4])
def test_a_large_offset_leaves_float32_statistics_right(make, arguments, run, offset, rng):
    shape = (16, 28, 28, 6)
    x = (offset + rng.normal(size=shape)).astype("float32")
    layer = make(**arguments, epsilon=1e-5)
    layer.build(shape)
    exact = make(**arguments, epsilon=1e-5, dtype="float64")
    expected = call(exact, tf.constant(x, "float64"))
    function = {
        "eager": lambda f: f,
        "graph": tf.function,
        "compiled": lambda f: tf.function(f, jit_compile=True),
    }
    actual = function[run](lambda x: call(layer, x))(tf.constant(x))
    assert np.max(np.abs(actual - tf.cast(expected, "float32"))) <= 1e-5


@pytest.mark.parametrize("shape", [(784, 6), (4000, 6), (8, 26, 26, 6)])
@pytest.mark.parametrize("make", [normlib.BatchNormalization, normlib.MeanOnlyBatchNormalization])
def test_a_large_offset_leaves_long_sums_of_small_tensors_right(make, shape):
    """Added up in one chain, what an offset has made coarse rounds in one direction."""
    for seed in range(8):
        x = np.random.default_rng(seed).normal(1e6, 1, shape).astype("float32")
        exact = call(make(dtype="float64"), tf.constant(x, "float64"))
        assert np.max(np.abs(call(make(), tf.constant(x)) - tf.cast(exact, "float32"))) <= 1e-5


def test_moving_statistics_after_no_and_one_step(rng):
    x = random(rng, (64, 3), "float32")
    layer = normlib.BatchNormalization(momentum=0.9, epsilon=1e-3)
    layer.build(x.shape)
    assert_close(layer(x, training=False), x / np.sqrt(1.001), 1e-6)
    layer(x, training=True)
    assert_close(layer.moving_mean, 0.1 * np.mean(x, axis=0), 1e-6)
    assert_close(layer.moving_variance, 0.9 + 0.1 * np.var(x, axis=0), 1e-6)


def test_batch_normalization_of_one_image_is_instance_normalization(rng):
    x = random(rng, (1, 5, 4, 6), "float32")
    assert_close(normlib.BatchNormalization()(x, training=True), normlib.InstanceNormalization()(x), 1e-6)


def test_batch_normalization_of_one_row_gives_beta(rng):
    layer = build(normlib.BatchNormalization, {}, (1, 4), "float32", rng)
    assert_close(layer(random(rng, (1, 4), "float32"), training=True)[0], layer.beta, 1e-6)


def test_group_normalization_of_one_group_is_layer_normalization(rng):
    x = random(rng, SHAPE)
    group = normlib.GroupNormalization(1, dtype="float64")
    layer = normlib.LayerNormalization([1, 2, 3], dtype="float64")
    assert_close(group(x), layer(x), 1e-13)


def test_layer_normalization_is_rms_normalization_of_centred_input(rng):
    x = random(rng, (5, 7))
    centred = x - tf.reduce_mean(x, -1, keepdims=True)
    rms = normlib.RMSNormalization(epsilon=1e-3, dtype="float64")
    assert_close(normlib.LayerNormalization(dtype="float64")(x), rms(centred), 1e-13)


# --- modes --------------------------------------------------------------------------------------------------------


def test_not_trainable_means_inference(rng):
    layer = build(normlib.BatchNormalization, {}, (8, 3), "float32", rng)
    layer.trainable = False
    before = layer.get_weights()
    x = random(rng, (8, 3), "float32")
    np.testing.assert_array_equal(layer(x, training=True), layer(x, training=False))
    for a, b in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_masked_positions_do_not_count(rng):
    x = rng.normal(size=(4, 6, 3)).astype("float32")
    mask = np.array([[True] * 4 + [False] * 2] * 4)
    layer = normlib.BatchNormalization(momentum=0.0, epsilon=1e-3)
    y = layer(tf.constant(x), training=True, mask=mask)
    counted = x[:, :4].reshape(-1, 3)
    assert_close(layer.moving_mean, counted.mean(0), 1e-6)
    assert_close(layer.moving_variance, counted.var(0), 1e-6)
    assert_close(y, (x - counted.mean(0)) / np.sqrt(counted.var(0) + 1e-3), 1e-5)


# Operation by operation, and compiled.
MASKED = [(4, 6, 3), (64, 128, 5)]


@pytest.mark.parametrize("shape", MASKED)
@pytest.mark.parametrize("mode", [{}, {"jit_compile": False}, {"jit_compile": True}], ids=str)
def test_masked_gradient_equals_autodiff(shape, mode, rng):
    layer = build(normlib.BatchNormalization, {}, shape, "float64", rng)

    def own(x, mask, weights):
        return layer(x, training=True, mask=mask)

    def plain(x, mask, weights):
        count = tf.reduce_sum(weights, (0, 1))
        mean = tf.reduce_sum(weights * x, (0, 1)) / count
        variance = tf.reduce_sum(weights * (x - mean) ** 2, (0, 1)) / count
        return layer.gamma.value * (x - mean) / tf.sqrt(variance + layer.epsilon) + layer.beta.value

    def results(function):
        def step(x, dy, *given):
            with tf.GradientTape() as tape:
                watched = [x, layer.gamma.value, layer.beta.value]
                tape.watch(watched)
                y = function(x, *given)
            return y, *tape.gradient(y, watched, dy)

        return tf.function(step, **mode) if mode else step

    both = results(own), results(plain)
    for _ in range(2):  # what was compiled with one mask is given the next
        x, dy, mask = random(rng, shape), random(rng, shape), tf.constant(rng.random(shape[:-1]) > 0.3)
        found = (function(x, dy, mask, tf.cast(mask, x.dtype)[..., None]) for function in both)
        for a, b in zip(*found, strict=True):
            assert_close(a, b, 1e-12)


@pytest.mark.parametrize("shape", MASKED)
@pytest.mark.parametrize("value", [np.nan, np.inf, np.finfo("float32").min])
def test_what_a_masked_position_holds_is_as_good_as_0(value, shape, rng):
    x, weights, direction = (rng.normal(size=shape).astype("float32") for _ in range(3))
    mask = rng.random(shape[:-1]) < 0.6
    mask[0, 5] = False

    def derivatives(value):
        """The moving statistics, and the first and second derivatives of a loss that does not see what is masked."""
        x[0, 5] = value
        layer, inputs = normlib.BatchNormalization(momentum=0.0), tf.constant(x)
        layer.build(x.shape)
        watched = [inputs, layer.gamma.value, layer.beta.value]
        with tf.GradientTape() as outer:
            outer.watch(watched)
            with tf.GradientTape() as inner:
                inner.watch(watched)
                y = layer(inputs, training=True, mask=mask)
                loss = tf.reduce_sum(tf.boolean_mask(weights * y**3, mask))
            first = inner.gradient(loss, watched)
            along = tf.reduce_sum(direction * first[0]) + sum(tf.reduce_sum(f) for f in first[1:])
        return [layer.moving_mean, layer.moving_variance, *first, *outer.gradient(along, watched)]

    for found, expected in zip(derivatives(value), derivatives(0.0), strict=True):
        assert np.isfinite(expected).all()
        np.testing.assert_array_equal(found, expected)


def test_statistics_that_are_not_finite_are_not_averaged_in(rng):
    layer = build(normlib.BatchNormalization, {}, (2, 4), "float32", rng)
    before = layer.get_weights()[2:]
    # 1e20 has a finite mean, but no finite variance.
    y = layer(tf.constant([[np.nan, 1.0, np.inf, 1e20], [1.0, 2.0, 1.0, -3e20]], "float32"), training=True)
    assert np.isnan(y.numpy()[:, 0]).all()
    after = layer.get_weights()[2:]
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a[[0, 2, 3]], b[[0, 2, 3]])
        assert a[1] != b[1]


def test_an_empty_batch_changes_no_statistics(rng):
    layer = build(normlib.BatchNormalization, {}, (4, 3), "float32", rng)
    before = layer.get_weights()
    assert layer(tf.zeros([0, 3]), training=True).shape == (0, 3)
    for a, b in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("shape", [SHAPE, (3, 48, 48, 6)], ids=["small", "compiled"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("make", "arguments"), LAYERS[1:])
def test_what_is_not_finite_stays_in_its_sample(make, arguments, value, shape, rng):
    x, dy = rng.normal(size=shape).astype("float32"), random(rng, shape, "float32")
    clean_y, (clean_dx,) = gradients(make(**arguments), tf.constant(x), [], dy)
    x[1, 2, 3, 4] = value
    y, (dx,) = gradients(make(**arguments), tf.constant(x), [], dy)
    for dirty, clean in ((y, clean_y), (dx, clean_dx)):
        np.testing.assert_array_equal(dirty.numpy()[[0, 2]], clean.numpy()[[0, 2]])
        assert np.isnan(dirty[1]).any()


@pytest.mark.parametrize(("make", "arguments"), LAYERS[1:])
def test_an_empty_batch_gives_nothing_and_gradients_of_0(make, arguments, rng):
    layer, x = build(make, arguments, SHAPE, "float32", rng), tf.zeros([0, *SHAPE[1:]])
    y, (dx, *others) = gradients(layer, x, layer.trainable_variables, x)
    assert y.shape == dx.shape == x.shape
    for gradient, variable in zip(others, layer.trainable_variables, strict=True):
        np.testing.assert_array_equal(gradient, np.zeros(variable.shape))


@pytest.mark.parametrize(("make", "arguments"), LAYERS)
def test_constant_input_gives_finite_output_and_gradient(make, arguments):
    x = tf.fill(SHAPE, 3.0)
    layer = make(**arguments)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = call(layer, x)
    assert np.isfinite(y).all()
    assert np.isfinite(tape.gradient(y, x)).all()


# --- dtype, saving, shapes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["float32", "float64", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize(("make", "arguments"), LAYERS)
def test_dtype_policy(make, arguments, policy, rng):
    layer = make(**arguments, dtype=policy)
    y = call(layer, rng.normal(size=SHAPE).astype("float32"))
    assert y.dtype == layer.compute_dtype
    assert all(w.dtype == layer.variable_dtype for w in layer.weights)
    exact = call(make(**arguments, dtype="float64"), tf.constant(rng.normal(size=SHAPE), "float64"))
    assert exact.dtype == "float64"


@pytest.mark.parametrize(("make", "arguments"), LAYERS)
def test_float16_inputs_near_the_largest_stay_finite(make, arguments, rng):
    x = tf.constant(rng.uniform(-6e4, 6e4, SHAPE), "float16")
    layer = make(**arguments, dtype="mixed_float16")
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = call(layer, x)
    assert np.isfinite(y).all()
    assert np.isfinite(tape.gradient(y, x)).all()
    assert np.max(np.abs(y)) > 0.5


@pytest.mark.parametrize("policy", ["float32", "float64", "mixed_float16"])
@pytest.mark.parametrize(("make", "arguments"), LAYERS)
def test_a_saved_model_is_the_same_when_loaded(make, arguments, policy, tmp_path, rng):
    model = keras.Sequential(
        [
            keras.Input(SHAPE[1:]),
            normlib.WeightNormalization(
                keras.layers.Conv2D(6, 3, padding="same", dtype=policy), dtype=policy
            ),
            make(**arguments, dtype=policy),
        ]
    )
    model.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in model.get_weights()])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = rng.normal(size=SHAPE).astype("float32")
    np.testing.assert_array_equal(model(x), loaded(x))
    assert loaded.layers[-1].get_config() == model.layers[-1].get_config()


SHARED = {
    "axis": 1,
    "epsilon": 0.25,
    "center": False,
    "scale": False,
    "beta_initializer": keras.initializers.Constant(2.0),
    "gamma_initializer": keras.initializers.Constant(3.0),
    "beta_regularizer": keras.regularizers.L2(0.5),
    "gamma_regularizer": keras.regularizers.L1(0.25),
    "beta_constraint": keras.constraints.NonNeg(),
    "gamma_constraint": keras.constraints.UnitNorm(0),
}


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (normlib.LayerNormalization, SHARED),
        (normlib.InstanceNormalization, SHARED),
        (normlib.GroupNormalization, SHARED | {"groups": 5}),
        (
            normlib.BatchNormalization,
            SHARED
            | {
                "momentum": 0.5,
                "synchronized": True,
                "moving_mean_initializer": keras.initializers.Constant(4.0),
                "moving_variance_initializer": keras.initializers.Constant(5.0),
            },
        ),
        (
            normlib.MeanOnlyBatchNormalization,
            {"axis": 1, "momentum": 0.5, "center": False, "synchronized": True},
        ),
        (normlib.RMSNormalization, {"axis": [1, 2], "epsilon": 0.25}),
    ],
)
def test_every_option_survives_the_configuration(make, options):
    config = make(**options).get_config()
    again = make.from_config(config)
    for name, value in options.items():
        if isinstance(value, (int, float, list)):
            assert getattr(again, name) == value
        else:
            assert type(getattr(again, name)) is type(value)
            assert getattr(again, name).get_config() == value.get_config()


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        *LAYERS,
        (normlib.LayerNormalization, {"axis": -1}),
        (normlib.LayerNormalization, {"axis": [-1, -2]}),
        (normlib.GroupNormalization, {"groups": 2, "axis": -1}),
    ],
)
def test_building_does_not_change_the_configuration(make, arguments):
    layer = make(**arguments)
    before = layer.get_config()
    layer.build(SHAPE)
    assert layer.get_config() == before
    assert make.from_config(before).get_config() == before


@pytest.mark.parametrize(("make", "arguments"), LAYERS)
def test_unknown_batch_and_image_sizes(make, arguments, rng):
    if isinstance(arguments.get("axis"), list):
        arguments = {"axis": -1}
    layer = make(**arguments)
    inputs = keras.Input((None, None, 6))
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == (None, None, None, 6)
    for shape in ((2, 5, 4, 6), (7, 40, 40, 6)):
        x = rng.normal(size=shape).astype("float32")
        assert_close(model.predict(x, verbose=0), layer(x), 1e-6)


@pytest.mark.parametrize("make", [normlib.LayerNormalization, keras.layers.LayerNormalization])
def test_without_parameters_any_size_will_do(make, rng):
    layer = make(axis=1, center=False, scale=False)
    layer.build((None, None, 4))
    for size in (3, 60):
        x = rng.normal(size=(2, size, 4)).astype("float32")
        assert_close(layer(x), (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-3), 1e-5)


@pytest.mark.parametrize(("make", "arguments"), LAYERS)
def test_numpy_arrays_in_a_stateless_call(make, arguments, rng):
    layer = build(make, arguments, SHAPE, "float32", rng)
    x = rng.normal(size=SHAPE).astype("float32")
    for mode in ({"training": True}, {"training": False}) if has_mode(layer) else ({},):
        y, _ = layer.stateless_call(layer.trainable_variables, layer.non_trainable_variables, x, **mode)
        np.testing.assert_array_equal(y, layer(x, **mode))


@pytest.mark.parametrize(("make", "arguments"), LAYERS)
def test_an_exported_model_gives_the_same_outputs(make, arguments, tmp_path, rng):
    model = keras.Sequential(
        [keras.Input(SHAPE[1:]), make(**arguments), normlib.WeightNormalization(keras.layers.Conv2D(4, 2))]
    )
    model.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in model.get_weights()])
    model.export(tmp_path, verbose=False)
    exported = tf.saved_model.load(tmp_path)
    for batch in (2, 700):  # small, and large enough for the compiled path
        x = rng.normal(size=(batch, *SHAPE[1:])).astype("float32")
        assert_close(exported.serve(x), model(x), 1e-5)


@pytest.mark.parametrize(
    "run", [{"run_eagerly": True}, {"jit_compile": False}, {"jit_compile": True}], ids=str
)
@pytest.mark.parametrize(("make", "arguments"), LAYERS)
def test_fit_goes_down(make, arguments, run, rng):
    keras.utils.set_random_seed(0)
    x, y = rng.normal(size=(32, *SHAPE[1:])), rng.normal(size=(32, 1))
    model = keras.Sequential(
        [keras.Input(SHAPE[1:]), make(**arguments), keras.layers.Flatten(), keras.layers.Dense(1)]
    )
    model.compile("sgd", "mse", **run)
    losses = model.fit(x, y, epochs=4, batch_size=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


# --- weight normalization -----------------------------------------------------------------------------------------


def test_wrapping_changes_nothing_at_first(rng):
    dense = keras.layers.Dense(4)
    x = random(rng, (3, 5), "float32")
    before = dense(x)
    assert_close(normlib.WeightNormalization(dense)(x), before, 1e-6)


def test_the_kernel_is_left_alone_in_a_call_and_folded_by_remove(rng):
    wrapped = normlib.WeightNormalization(keras.layers.Dense(4))
    x = random(rng, (3, 5), "float32")
    wrapped(x)
    kernel = wrapped.layer.kernel.numpy()
    wrapped.g.assign(wrapped.g * 2.0)
    y = wrapped(x)
    np.testing.assert_array_equal(wrapped.layer.kernel, kernel)
    assert_close(wrapped.remove()(x), y, 1e-6)


def test_a_wrapper_is_the_same_after_a_removal_whatever_the_sign_of_g(rng):
    wrapped = normlib.WeightNormalization(keras.layers.Dense(4))
    x = random(rng, (3, 5), "float32")
    wrapped(x)
    wrapped.g.assign(wrapped.g * [1.0, -2.0, 3.0, -0.5])
    y = wrapped(x)
    assert_close(wrapped.remove()(x), y, 1e-6)
    assert_close(wrapped(x), y, 1e-6)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (keras.layers.Dense(4), (3, 5)),
        (keras.layers.EinsumDense("abc,cde->abde", (None, 2, 3)), (2, 5, 4)),
        (keras.layers.Conv1D(4, 2), (2, 5, 3)),
        (keras.layers.Conv2D(6, 2, groups=3), (2, 5, 5, 3)),
        (keras.layers.Conv3D(4, 2), (2, 4, 4, 4, 3)),
        (keras.layers.Conv1DTranspose(4, 2), (2, 5, 3)),
        (keras.layers.Conv2DTranspose(4, 2), (2, 5, 5, 3)),
        (keras.layers.Conv3DTranspose(4, 2), (2, 3, 3, 3, 3)),
        (keras.layers.DepthwiseConv1D(2, depth_multiplier=2), (2, 5, 3)),
        (keras.layers.DepthwiseConv2D(2, depth_multiplier=2), (2, 5, 5, 3)),
        (keras.layers.SeparableConv1D(4, 2), (2, 5, 3)),
        (keras.layers.SeparableConv2D(4, 2), (2, 5, 5, 3)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_every_layer_with_a_kernel_can_be_wrapped_and_unwrapped(layer, shape, rng):
    """Each output unit has its own length g; the outputs stay when g and v become a plain kernel again."""
    wrapped = normlib.WeightNormalization(layer)
    x = random(rng, shape, "float32")
    y = wrapped(x)
    for v, axes, g in wrapped._parts():
        assert g.shape == tuple(size for axis, size in enumerate(v.shape) if axis not in axes)
        g.assign(rng.uniform(0.5, 1.5, g.shape))
    for kernel, (_, axes, g) in zip(wrapped.kernels(), wrapped._parts(), strict=True):
        assert_close(np.sqrt(np.sum(np.square(kernel), axis=axes)), g, 1e-5)
    changed = wrapped(x)
    assert np.max(np.abs(changed - y)) > 1e-3
    assert_close(wrapped.remove()(x), changed, 1e-5)


def test_a_vector_of_length_zero_gives_zero():
    v, g = tf.zeros([3, 2]), tf.ones([1, 2])
    with tf.GradientTape() as tape:
        tape.watch((v, g))
        w = normlib.weight_normalize(v, g, (0,))
    for value in (w, *tape.gradient(w, (v, g))):
        np.testing.assert_array_equal(value, np.zeros(value.shape))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: normlib.standardize(tf.ones([2, 3]), (2,), 0.1), ValueError, "Axis 2 is out of bounds"),
        (lambda: normlib.standardize(tf.ones([2, 3]), (1, -1), 0.1), ValueError, "each axis once"),
        (lambda: normlib.standardize(tf.ones([2, 3]), (1,), -0.1), ValueError, "`epsilon`"),
        (lambda: normlib.standardize(tf.ones([2, 3], "int32"), (1,), 0.1), TypeError, "floating-point"),
        (lambda: normlib.standardize(tf.ones([2, 4, 6]), (1,), 0.1, groups=(2, 4)), ValueError, "groups"),
        (lambda: normlib.standardize(tf.ones([2, 4, 6]), (1,), 0.1, groups=(2, 0)), ValueError, "groups"),
        (lambda: normlib.standardize(tf.ones([2, 4, 6]), (1,), 0.1, groups=(3, 2)), ValueError, "Axis 3"),
        (
            lambda: normlib.standardize(tf.ones([2, 3]), (1,), 0.1, mask=[[True], [True]]),
            ValueError,
            "a mask of",
        ),
        (lambda: normlib.weight_normalize(tf.ones([2, 3]), tf.ones([1, 3]), (2,)), ValueError, "Axis 2"),
        (
            lambda: normlib.weight_normalize(tf.ones([2, 3]), tf.ones([1, 3]), (0, 0)),
            ValueError,
            "each axis once",
        ),
        (
            lambda: normlib.weight_normalize(tf.ones([2, 3], "int32"), tf.ones([1, 3]), (0,)),
            TypeError,
            "floating-point",
        ),
    ],
)
def test_the_maps_refuse_bad_arguments(call, error, message):
    with pytest.raises(error, match=rf"{message}.*Received"):
        call()


def test_the_maps_take_what_becomes_a_tensor(rng):
    x = random(rng, (4, 5, 6), "float32")
    expected = normlib.standardize(tf.constant(x), (1,), 0.1, groups=(2, 3))[0]
    for given in (np.asarray(x), keras.Variable(x)):
        assert_close(normlib.standardize(given, (-2,), 0.1, groups=(-1, 3))[0], expected, 1e-6)
    g = np.ones((1, 5, 6))
    expected = tf.math.l2_normalize(tf.constant(x), 0)
    assert_close(normlib.weight_normalize(np.asarray(x), g, (0,)), expected, 1e-6)


def test_a_g_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"Expected a g of shape \(1, 2\). Received: g.shape=\(1, 1\)"):
        normlib.weight_normalize(tf.ones([3, 2]), tf.ones([1, 1]), (0,))


def test_no_channels_are_no_error():
    assert normlib.InstanceNormalization()(tf.ones([2, 3, 0])).shape == (2, 3, 0)


def test_a_layer_without_a_kernel_is_refused():
    with pytest.raises(ValueError, match=r"Expected a layer that contains a `kernel`.*Received"):
        normlib.WeightNormalization(keras.layers.Embedding(3, 2))


# --- errors: what was expected, what was received -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "arguments", "error", "message"),
    [
        (
            normlib.BatchNormalization,
            {"momentum": 1.5},
            ValueError,
            r"`momentum` must be.*Received: momentum=1.5",
        ),
        (normlib.BatchNormalization, {"momentum": None}, ValueError, r"Received: momentum=None"),
        (normlib.BatchNormalization, {"axis": 1.5}, TypeError, r"'axis'. Received: 1.5"),
        (normlib.BatchNormalization, {"renorm": True}, ValueError, r"Received: renorm=True"),
        (normlib.LayerNormalization, {"axis": "all"}, TypeError, r"'axis'. Received: "),
        (normlib.GroupNormalization, {"groups": 0}, ValueError, r"`groups`.*Received: groups=0"),
    ],
)
def test_bad_arguments_are_refused(make, arguments, error, message):
    with pytest.raises(error, match=message):
        make(**arguments)


@pytest.mark.parametrize(
    ("make", "arguments", "shape", "message"),
    [
        (normlib.BatchNormalization, {"axis": 4}, SHAPE, r"out of bounds.*Received: axis=4"),
        (normlib.LayerNormalization, {"axis": [1, -3]}, SHAPE, r"each axis once. Received: axis=\[1, -3\]"),
        (
            normlib.GroupNormalization,
            {"groups": 8},
            SHAPE,
            r"cannot be more than the number of channels \(6\)",
        ),
        (normlib.GroupNormalization, {"groups": 4}, SHAPE, r"divide the channels.*Received: groups=4"),
        (normlib.LayerNormalization, {}, (2, 3, None), r"defined dimension.*Received: axis=-1"),
    ],
)
def test_bad_axes_and_groups_are_refused(make, arguments, shape, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments).build(shape)


@pytest.mark.parametrize(("make", "arguments"), LAYERS)
def test_a_negative_epsilon_is_refused(make, arguments):
    with pytest.raises(ValueError, match=r"`epsilon` must be.*Received: epsilon=-0.001"):
        make(**arguments, epsilon=-1e-3)


@pytest.mark.parametrize(("make", "arguments"), LAYERS)
def test_integer_input_is_refused(make, arguments):
    with pytest.raises(TypeError, match=r"Expected a floating-point input.*Received: dtype=int32"):
        make(**arguments)(tf.ones(SHAPE, "int32"))
    with pytest.raises(TypeError, match=r"Expected a floating-point input.*Received: dtype=int32"):
        make(**arguments)(keras.Input(SHAPE[1:], dtype="int32"))


@pytest.mark.parametrize(("make", "arguments"), LAYERS)
@pytest.mark.parametrize("kind", ["RaggedTensor", "SparseTensor"])
def test_input_that_is_not_dense_is_refused(kind, make, arguments):
    x = (
        tf.sparse.from_dense(tf.ones(SHAPE))
        if kind == "SparseTensor"
        else tf.RaggedTensor.from_tensor(tf.ones(SHAPE))
    )
    with pytest.raises(TypeError, match=f"Expected a dense tensor. Received: {kind}"):
        make(**arguments)(x)


def test_a_mask_of_the_wrong_size_is_refused():
    with pytest.raises(ValueError, match=r"broadcasts to \(2, 3\).*Received: mask.shape=\(2, 4\)"):
        normlib.BatchNormalization()(tf.ones([2, 3, 4]), training=True, mask=tf.ones([2, 4]))


def test_a_mask_of_the_wrong_rank_is_refused():
    with pytest.raises(ValueError, match=r"one dimension less.*Received: mask.shape=\(2,\)"):
        normlib.BatchNormalization()(tf.ones([2, 3, 4]), training=True, mask=tf.ones([2]))


# --- arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["BatchNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization"]
)
def test_the_signature_is_kerass(name):
    ours, theirs = (inspect.signature(getattr(module, name)) for module in (normlib, keras.layers))
    shown = {n: p.default for n, p in ours.parameters.items()}
    expected = {n: p.default for n, p in theirs.parameters.items()}
    assert {n: shown[n] for n in expected} == expected
    assert [n for n in shown if n in expected] == list(expected)
    getattr(normlib, name)(*[v for n, v in expected.items() if n != "kwargs"])


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: normlib.RMSNormalization(scale=False), ValueError),
        (lambda: normlib.MeanOnlyBatchNormalization(epsilon=1e-3), ValueError),
        (lambda: normlib.InstanceNormalization(groups=2), ValueError),
        (lambda: normlib.LayerNormalization(-1, axis=1), TypeError),
        (lambda: normlib.RMSNormalization(-1, 1e-6, 1.0), TypeError),
    ],
)
def test_arguments_that_a_layer_does_not_have_are_refused(call, error):
    with pytest.raises(error, match=r"argument"):
        call()


@pytest.mark.parametrize(("make", "arguments"), LAYERS)
def test_an_input_without_features_or_an_axis_given_twice_is_refused(make, arguments):
    with pytest.raises(ValueError, match=r"rank 2 or more.*Received"):
        make().build((4,))
    assert make(**arguments).compute_output_shape((None, None, None, None)) == (None, None, None, None)


@pytest.mark.parametrize("axis", [[1, 2, 3], [-1, -3], 3])
@pytest.mark.parametrize("make", [normlib.LayerNormalization, normlib.RMSNormalization])
def test_an_input_without_the_axes_of_the_first_is_refused(make, axis):
    layer = make(axis)
    layer(tf.ones(SHAPE))
    least = 3 if axis == [-1, -3] else 4
    with pytest.raises(ValueError, match=rf"expected min_ndim={least}, found ndim=2.*received: \(3, 6\)"):
        layer(tf.ones([3, 6]))


def test_no_axis_is_refused():
    with pytest.raises(ValueError, match=r"at least one axis. Received: axis=\[\]"):
        normlib.LayerNormalization(axis=[]).build(SHAPE)
    with pytest.raises(ValueError, match=r"other than the batch's. Received: axis=0"):
        normlib.InstanceNormalization(axis=0).build(SHAPE)


# --- nothing is averaged in of nothing -------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("synchronized", [False, True])
def test_an_empty_batch_of_unknown_size_changes_no_statistics(masked, synchronized, rng):
    layer = build(normlib.BatchNormalization, {"synchronized": synchronized}, (4, 5, 3), "float32", rng)
    before = layer.get_weights()

    @tf.function(input_signature=[tf.TensorSpec([None, 5, 3])])
    def train(x):
        return layer(x, training=True, mask=tf.ones(tf.shape(x)[:2], "bool") if masked else None)

    assert train(tf.zeros([0, 5, 3])).shape == (0, 5, 3)
    for a, b in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.isfinite(train(tf.ones([2, 5, 3]))).all()
    assert np.max(np.abs(layer.moving_mean - before[2])) > 0


def test_a_batch_that_is_masked_throughout_changes_no_statistics_and_stays_finite(rng):
    layer = build(normlib.BatchNormalization, {}, (4, 5, 3), "float32", rng)
    before, x = layer.get_weights(), random(rng, (4, 5, 3), "float32")
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True, mask=tf.zeros([4, 5]))
    assert np.isfinite(y).all() and np.isfinite(tape.gradient(y, x)).all()
    for a, b in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("values", [(2.0, -1.0), (0.5, 3.0)])
def test_a_mask_is_yes_or_no_whatever_its_numbers(values, rng):
    x = random(rng, (4, 5, 3), "float32")
    yes = rng.random((4, 5)) > 0.4
    numbers = np.where(yes, rng.choice(values, (4, 5)), 0.0).astype("float32")
    layers = [normlib.BatchNormalization(momentum=0.0) for _ in range(2)]
    outputs = [layer(x, training=True, mask=m) for layer, m in zip(layers, (yes, numbers), strict=True)]
    np.testing.assert_array_equal(*outputs)
    np.testing.assert_array_equal(layers[0].moving_variance, layers[1].moving_variance)


def test_moving_statistics_that_overflow_float16_are_not_averaged_in(rng):
    layer = normlib.BatchNormalization(momentum=0.5, dtype="float16")
    layer(tf.constant(rng.uniform(-6e4, 6e4, (64, 3)), "float16"), training=True)
    assert np.isfinite(layer.moving_variance).all()


def test_a_variance_that_overflows_float16_is_averaged_in_where_the_average_does_not(rng):
    x = tf.constant(rng.uniform(-600, 600, (64, 3)), "float16")
    layers = [
        make(momentum=0.9, dtype="float16")
        for make in (normlib.BatchNormalization, keras.layers.BatchNormalization)
    ]
    for layer in layers:
        layer(x, training=True)
    ours, theirs = (np.float32(layer.moving_variance) for layer in layers)
    assert np.var(np.float32(x)) > np.finfo("float16").max > ours.max()
    np.testing.assert_allclose(ours, theirs, rtol=2e-3)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "float64"])
def test_the_dtype_of_an_rms_normalization_is_kerass(policy, autocast):
    for dtype in ("float16", "float32", "float64"):
        ours, theirs = (
            make.RMSNormalization(dtype=policy, autocast=autocast)(tf.ones([2, 3], dtype)).dtype
            for make in (normlib, keras.layers)
        )
        assert ours == theirs


@pytest.mark.parametrize(
    "name", ["BatchNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization"]
)
def test_a_layer_whose_input_specification_is_changed(name, rng):
    make, arguments = getattr(normlib, name), {"groups": 2} if name.startswith("Group") else {}

    class Changed(make):
        def build(self, input_shape):
            super().build(input_shape)
            self.input_spec = keras.layers.InputSpec(ndim=4)

    layer, plain = Changed(**arguments), make(**arguments)
    x = random(rng, (3, 4, 4, 6), "float32")
    assert_close(layer(x), plain(x), 1e-6)
    layer.input_spec = None
    assert_close(layer(x), plain(x), 1e-6)


def test_a_layer_whose_parameters_are_made_by_a_subclass(rng):
    class Own(normlib.GroupNormalization):
        def build(self, input_shape):
            self.gamma = self.add_weight(shape=input_shape[-1:], initializer="ones")

    x = random(rng, (3, 4, 4, 6), "float32")
    assert_close(Own(2)(x), normlib.GroupNormalization(2)(x), 1e-6)


@pytest.mark.parametrize("name", ["BatchNormalization", "LayerNormalization", "RMSNormalization"])
def test_a_layer_is_built_once(name):
    for make in (normlib, keras.layers):
        layer = getattr(make, name)()
        layer.build((None, 3))
        with pytest.raises(ValueError, match="already built"):
            layer.build((None, 3))


# --- weight normalization: all that the wrapped layer does ----------------------------------------------------------


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.first = normlib.WeightNormalization(keras.layers.Dense(4))

    def call(self, x):
        return self.first(x)


@pytest.mark.parametrize("how", ["eager", "graph", "fit"])
def test_weight_normalization_in_a_subclassed_model(how, rng):
    x, model = random(rng, (8, 5), "float32"), Subclassed()
    if how == "fit":
        model.compile("sgd", "mse")
        model.fit(x, tf.zeros([8, 4]), verbose=0)
    else:
        (tf.function(model) if how == "graph" else model)(x)
        kernel = model.first.layer.kernel.numpy()
        assert_close(model.first.g, np.linalg.norm(kernel, axis=0), 1e-6)


def test_weight_normalization_keeps_losses_state_dtype_and_mask(rng):
    dense = keras.layers.Dense(4, activity_regularizer="l2", kernel_regularizer="l2")
    wrapped = normlib.WeightNormalization(dense)
    wrapped(random(rng, (3, 5), "float32"))
    assert len(wrapped.losses) == 2

    half = normlib.WeightNormalization(keras.layers.Dense(4, dtype="mixed_float16"))
    assert half(tf.ones([3, 5])).dtype == "float16"
    half.layer.kernel.assign(1e-9 * half.layer.kernel)
    assert np.max(np.abs(half(tf.ones([3, 5])))) > 0  # directions keep their precision

    embedded = keras.layers.Embedding(7, 5, mask_zero=True)(tf.constant([[1, 2, 0]]))
    assert normlib.WeightNormalization(keras.layers.Dense(4))(embedded)._keras_mask is not None

    class Counting(keras.layers.Dense):
        def build(self, shape):
            super().build(shape)
            self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

        def call(self, x, training=False):
            if training:
                self.calls.assign_add(1.0)
            return super().call(x)

    counting = normlib.WeightNormalization(Counting(4))
    counting(tf.ones([3, 5]), training=True)
    counting(tf.ones([3, 5]))
    assert float(counting.layer.calls) == 1.0


def test_a_wrapped_layer_may_make_its_state_in_its_first_call(rng):
    class Normalized(keras.layers.Dense):
        def __init__(self, units):
            super().__init__(units)
            self.norm = keras.layers.BatchNormalization(momentum=0.5)

        def call(self, x, training=None):
            return self.norm(super().call(x), training=training)

    x = random(rng, (16, 5), "float32")
    keras.utils.set_random_seed(0)
    plain = Normalized(3)
    keras.utils.set_random_seed(0)
    wrapped = normlib.WeightNormalization(Normalized(3))
    for training in (True, True, False):
        assert_close(wrapped(x, training=training), plain(x, training=training), 1e-5)
    assert np.any(plain.norm.moving_mean)
    assert_close(wrapped.layer.norm.moving_mean, plain.norm.moving_mean, 1e-5)


def test_what_is_not_built_cannot_be_removed():
    with pytest.raises(ValueError, match=r"that is built. Received"):
        normlib.WeightNormalization(keras.layers.Dense(4)).remove()


@pytest.mark.parametrize("both", [True, False], ids=["wrapper too", "layer alone"])
def test_weight_normalization_trains_where_its_layer_is_checkpointed(both, rng):
    x = tf.constant(random(rng, (8, 5), "float32"))

    def made(checkpointed):
        def wrap(layer):
            return normlib.WeightNormalization(layer, name="wrapped")

        if not checkpointed:
            return wrap(keras.layers.Dense(4))
        with keras.RematScope(mode="full"):
            layer = keras.layers.Dense(4)
            wrapped = wrap(layer) if both else None
        return wrapped or wrap(layer)

    found, weights = [], None
    for checkpointed in (False, True):
        layer = made(checkpointed)
        layer.build((None, 5))
        weights = weights or [rng.normal(size=w.shape) for w in layer.weights]
        layer.set_weights(weights)
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.sin(layer(x)))
        found.append(tape.gradient(loss, [x, *(v.value for v in layer.trainable_variables)]))
    for plain, recomputed in zip(*found, strict=True):
        assert_close(recomputed, plain, 1e-6)


@pytest.mark.parametrize("named", [True, False])
def test_a_wrapper_is_checkpointed_where_its_layer_is_named(named, rng):
    class Counted(keras.layers.Dense):
        calls = 0

        def call(self, inputs, training=None):
            self.calls += 1
            return super().call(inputs, training)

    with keras.RematScope(mode="list_of_layers", layer_names=["inner"] if named else ["other"]):
        wrapped = normlib.WeightNormalization(Counted(4, name="inner"))
    x = tf.constant(random(rng, (8, 5), "float32"))
    wrapped(x)
    before = wrapped.layer.calls
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(wrapped(x)))
    found = tape.gradient(loss, [v.value for v in wrapped.trainable_variables])
    assert wrapped.layer.calls - before == (2 if named else 1)  # once more on the way back
    assert all(np.any(gradient) for gradient in found)


def test_a_frozen_weight_normalization_is_saved_and_stays_frozen(tmp_path):
    wrapped = normlib.WeightNormalization(keras.layers.SeparableConv2D(4, 2))
    model = keras.Sequential([keras.Input((6, 6, 3)), wrapped])
    model.trainable = False
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(model.weights) == 5  # two g and two v, each once, and a bias

    dense = keras.layers.Dense(3)
    dense.trainable = False
    frozen = normlib.WeightNormalization(dense)
    frozen.build((None, 4))
    assert frozen.trainable_weights == []


def test_a_quantized_layer_under_weight_normalization_is_refused(rng):
    x = random(rng, (8, 16), "float32")
    for change in (lambda layer: layer.quantize("int8"), lambda layer: layer.enable_lora(2)):
        wrapped = normlib.WeightNormalization(keras.layers.Dense(4))
        wrapped(x)
        change(wrapped.layer)
        with pytest.raises(ValueError, match=r"neither quantized nor adapted.*Received"):
            wrapped(x)
        with pytest.raises(ValueError, match=r"`kernel` of floats.*Received"):
            normlib.WeightNormalization(wrapped.layer)


def test_weight_normalization_changes_no_half_precision_layer_when_it_wraps_it(rng):
    dense = keras.layers.Dense(4, dtype="float16")
    x = random(rng, (8, 4096), "float32")
    before = dense(x)
    assert_close(normlib.WeightNormalization(dense)(x), before, 2e-3)

    mixed = normlib.WeightNormalization(keras.layers.Dense(4, dtype="mixed_float16"), dtype="mixed_float16")
    assert mixed(tf.ones([3, 5])).dtype == "float16"
    mixed.layer.kernel.assign(1e-9 * mixed.layer.kernel)
    assert np.max(np.abs(mixed(tf.ones([3, 5])))) > 0


def test_a_loss_of_the_wrapped_layer_counts_once():
    wrapped = normlib.WeightNormalization(keras.layers.Dense(4, activity_regularizer="l2"))
    x = tf.ones([3, 5])
    wrapped(x)
    variables = wrapped.trainable_variables, wrapped.non_trainable_variables
    *_, losses = wrapped.stateless_call(*variables, x, return_losses=True)
    assert len(losses) == len(wrapped.losses) == 1


@pytest.mark.parametrize(
    ("make", "shape"),
    [(normlib.LayerNormalization, (1, 1_000_000)), (normlib.BatchNormalization, (1_000_000, 1))],
)
def test_a_long_row_whose_first_element_lies_far_off_keeps_its_mean(make, shape, rng):
    x = rng.normal(size=shape).astype("float32")
    x[0, 0] = 1e6
    layer, exact = (make(dtype=dtype) for dtype in ("float32", "float64"))
    mode = {"training": True} if make is normlib.BatchNormalization else {}
    assert_close(layer(x, **mode), exact(tf.constant(x, "float64"), **mode), 1e-5)
