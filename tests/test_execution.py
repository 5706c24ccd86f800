"""The ways in which TensorFlow can run a layer: each gives what the plain call gives."""

import inspect
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from references import assert_close, build, call, gradients, plain_layer, random
from tensorflow.python.eager.polymorphic_function import polymorphic_function

import normlib
from study import equivalence

SMALL, LARGE = (4, 6, 5, 6), (8, 28, 28, 6)  # below and above the size from which kernels are compiled
LAYERS = [
    pytest.param(normlib.BatchNormalization, {}, id="batch"),
    pytest.param(normlib.LayerNormalization, {}, id="layer"),
    pytest.param(normlib.LayerNormalization, {"axis": [1, 2, 3]}, id="image"),
    pytest.param(normlib.GroupNormalization, {"groups": 2}, id="group"),
    pytest.param(normlib.InstanceNormalization, {}, id="instance"),
    pytest.param(normlib.RMSNormalization, {}, id="rms"),
]


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(("make", "arguments"), LAYERS)
def test_a_jitted_step(make, arguments, shape, rng):
    eager, jitted = (build(make, arguments, shape, "float64", np.random.default_rng(1)) for _ in range(2))
    x, dy = random(rng, shape), random(rng, shape, mean=0.0)

    def step(layer, x):
        return gradients(lambda x: call(layer, x), x, layer.trainable_variables, dy)

    y, found = tf.function(lambda x: step(jitted, x), jit_compile=True)(x)
    expected_y, expected = step(eager, x)
    for a, b in zip([y, *found, *jitted.weights], [expected_y, *expected, *eager.weights], strict=True):
        assert_close(a, b, 1e-11)


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(("make", "arguments"), LAYERS)
def test_a_deep_jitted_step_computes_no_layer_twice(make, arguments, shape, rng):
    """With residual connections XLA may compute the layers before again in each kernel: these grow with depth."""

    def longest_kernel(depth):
        layers = [build(make, arguments, shape, "float32", rng) for _ in range(depth)]
        weights = [random(rng, (shape[-1], shape[-1]), "float32") for _ in layers]

        def network(x):
            for layer, w in zip(layers, weights, strict=True):
                x = call(layer, x + tf.nn.relu(x @ w))
            return x

        return max(kernel.count("\n") for kernel in kernels(network, random(rng, shape, "float32")))

    assert longest_kernel(6) <= longest_kernel(3)


def kernels(function, x):
    """The kernels, as text, into which a function and its gradient are compiled."""
    step = tf.function(lambda x: gradients(function, x, [], x), jit_compile=True)
    program = step.experimental_get_compiler_ir(x)(stage="optimized_hlo")
    return [kernel for kernel in re.split(r"\n\n(?!ENTRY)", program)[1:] if "ENTRY" not in kernel]


def test_no_kernel_looks_up_the_group_of_every_element(rng):
    layer = build(normlib.GroupNormalization, {"groups": 2}, LARGE, "float32", rng)
    read = [kernel.partition("->")[0] for kernel in kernels(layer, random(rng, LARGE, "float32"))]
    over_x = [inputs for inputs in read if "f32[8,28,28,6]" in inputs]
    assert over_x and not any("f32[8,1,1,2]" in inputs for inputs in over_x)


def hessian_product(function, x, direction):
    """The second derivative of a loss behind a function of x, along a direction."""
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            loss = tf.reduce_sum(tf.sin(function(x)))
        along = tf.reduce_sum(inner.gradient(loss, x) * direction)
    return outer.gradient(along, x)


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(("make", "arguments"), LAYERS)
def test_second_derivatives_in_a_jitted_step(make, arguments, shape, rng):
    layer = build(make, arguments, shape, "float64", rng)
    x, direction = random(rng, shape), random(rng, shape, mean=0.0)
    jitted = tf.function(lambda: hessian_product(lambda x: call(layer, x), x, direction), jit_compile=True)()
    assert_close(jitted, hessian_product(lambda x: plain_layer(layer, x), x, direction), 1e-10)


def twice_in_a_loop(function, x):
    return tf.while_loop(lambda i, _: i < 2, lambda i, x: (i + 1, function(x)), (0, x))[1]


THROUGH = {
    "a loop": twice_in_a_loop,
    "a branch": lambda function, x: tf.cond(tf.size(x) > 0, lambda: function(x), lambda: x),
    "a map": lambda function, x: tf.map_fn(function, tf.stack([x, 2 * x])),
    "a function": lambda function, x: tf.function(function, autograph=False)(x),
}


@pytest.mark.parametrize("through", THROUGH)
@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(("make", "arguments"), LAYERS)
def test_second_derivatives_through(through, make, arguments, shape, rng):
    layer = build(make, arguments, shape, "float64", rng)
    x, direction = random(rng, shape), random(rng, shape, mean=0.0)

    @tf.function(autograph=False)
    def own(x):
        return hessian_product(lambda x: THROUGH[through](lambda x: call(layer, x), x), x, direction)

    def plain(x):
        return THROUGH[through](lambda x: plain_layer(layer, x), x)

    assert_close(own(x), hessian_product(plain, x, direction), 1e-9)


@pytest.mark.parametrize("through", THROUGH)
@pytest.mark.parametrize("shape", [(4, 5), (400, 100)], ids=["small", "large"])
def test_second_derivatives_of_weight_normalization_through(through, shape, rng):
    v, g, direction = random(rng, shape), random(rng, (1, shape[1])), random(rng, shape, mean=0.0)

    @tf.function(autograph=False)
    def own(v, g):
        return hessian_product(
            lambda v: THROUGH[through](lambda v: normlib.weight_normalize(v, g, (0,)), v), v, direction
        )

    def plain(v):
        return THROUGH[through](lambda v: g * v / tf.norm(v, axis=0, keepdims=True), v)

    assert_close(own(v, g), hessian_product(plain, v, direction), 1e-9)


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(("make", "arguments"), LAYERS)
def test_forward_mode_through_a_function(make, arguments, shape, rng):
    layer = build(make, arguments, shape, "float64", rng)
    x, direction = random(rng, shape), random(rng, shape, mean=0.0)

    def along(function):
        with tf.autodiff.ForwardAccumulator(x, direction) as accumulator:
            y = function(x)
        return accumulator.jvp(y)

    expected = along(lambda x: plain_layer(layer, x))
    for function in (lambda x: call(layer, x), tf.function(lambda x: call(layer, x), autograph=False)):
        assert_close(along(function), expected, 1e-10)


@pytest.mark.parametrize("through", THROUGH)
def test_second_derivatives_of_a_masked_normalization_through(through, rng):
    layer = build(normlib.BatchNormalization, {}, (6, 5, 3), "float64", rng)
    x, direction = random(rng, (6, 5, 3)), random(rng, (6, 5, 3), mean=0.0)
    mask = tf.constant(rng.uniform(size=(6, 5)) < 0.7)

    def plain(x):
        counted = tf.cast(mask[..., None], x.dtype)
        mean = tf.reduce_sum(x * counted, (0, 1)) / tf.reduce_sum(counted)
        variance = tf.reduce_sum(counted * (x - mean) ** 2, (0, 1)) / tf.reduce_sum(counted)
        return layer.gamma * (x - mean) / tf.sqrt(variance + layer.epsilon) + layer.beta

    @tf.function(autograph=False)
    def own(x):
        def masked(x):
            return layer(x, training=True, mask=mask)

        return hessian_product(lambda x: THROUGH[through](masked, x), x, direction)

    assert_close(own(x), hessian_product(lambda x: THROUGH[through](plain, x), x, direction), 1e-9)


@pytest.mark.parametrize(("make", "arguments"), LAYERS)
def test_a_batch_of_unknown_size(make, arguments, rng):
    """One graph has both ways: the compiled one and the other, chosen by the size that it meets."""
    layer = build(make, arguments, LARGE, "float64", rng)
    variables, unknown = layer.trainable_variables, tf.TensorSpec([None, *LARGE[1:]], "float64")

    @tf.function(input_signature=[unknown, unknown])
    def step(x, dy):
        return gradients(lambda x: call(layer, x), x, variables, dy)

    for batch in (3, 8):
        x, dy = (random(rng, (batch, *LARGE[1:])) for _ in range(2))
        y, found = step(x, dy)
        expected_y, expected = gradients(lambda x: plain_layer(layer, x), x, variables, dy)
        for a, b in zip([y, *found], [expected_y, *expected], strict=True):
            assert_close(a, b, 1e-12)


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(("make", "arguments"), LAYERS)
def test_gradient_checkpointing(make, arguments, shape, rng):
    layer = build(make, arguments, shape, "float64", rng)
    x, dy = random(rng, shape), random(rng, shape, mean=0.0)

    @tf.recompute_grad
    def recomputed(x):
        return tf.sin(call(layer, x))

    y, found = gradients(recomputed, x, layer.trainable_variables, dy)
    expected_y, expected = gradients(lambda x: tf.sin(call(layer, x)), x, layer.trainable_variables, dy)
    for a, b in zip([y, *found], [expected_y, *expected], strict=True):
        assert_close(a, b, 1e-12)


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(("make", "arguments"), LAYERS[1:])
def test_vectorized_map(make, arguments, shape, rng):
    layer = build(make, arguments, shape, "float64", rng)
    batches = random(rng, (3, *shape))
    mapped = tf.vectorized_map(lambda x: call(layer, x), batches)
    assert_close(mapped, tf.stack([call(layer, x) for x in batches]), 1e-12)


@pytest.mark.parametrize("make", [normlib.BatchNormalization, keras.layers.BatchNormalization])
def test_vectorized_map_of_batch_normalization_averages_the_first_elements_statistics(make, rng):
    layer = build(make, {"momentum": 0.9}, (4, 3), "float64", rng)
    batches, before = random(rng, (5, 4, 3)), layer.moving_mean.numpy()
    mapped = tf.vectorized_map(lambda x: layer(x, training=True), batches)
    assert_close(
        mapped,
        tf.stack([make(dtype="float64")(x, training=True) for x in batches]) * layer.gamma + layer.beta,
        1e-12,
    )
    assert_close(layer.moving_mean, 0.9 * before + 0.1 * np.mean(batches[0], axis=0), 1e-12)


def test_vectorized_map_of_batch_normalization_in_inference(rng):
    layer = build(normlib.BatchNormalization, {}, SMALL, "float64", rng)
    batches = random(rng, (3, *SMALL))
    assert_close(tf.vectorized_map(layer, batches), tf.stack([layer(x) for x in batches]), 1e-12)


@pytest.mark.parametrize("name", ["LayerNormalization", "RMSNormalization"])
def test_an_open_batch_of_images_one_pixel_high(name, rng):
    """TensorFlow's own product of more dimensions than two, one of them 1, gives NaN there, or ends the process."""
    layer = getattr(normlib, name)()
    layer.build((None, 1, 6, 32))
    called = tf.function(
        lambda x: call(layer, x), input_signature=[tf.TensorSpec([None, 1, 6, 32], "float32")]
    )
    for batch in (8, 64, 400):
        x = random(rng, (batch, 1, 6, 32), "float32")
        assert_close(called(x), plain_layer(layer, tf.constant(x)), 1e-5)


def test_ever_new_lengths_are_not_compiled_for_ever(rng):
    """Each shape costs a compilation: more than the layer itself, if it is met once."""
    layer = normlib.LayerNormalization()
    normlib._functions.clear()
    for length in range(normlib.COMPILED_SHAPES + 3):
        x = random(rng, (64, 64 + length, 16), "float32")
        assert_close(layer(x), normlib.LayerNormalization(dtype="float64")(x), 1e-5)
    assert max(map(len, normlib._functions.values())) == normlib.COMPILED_SHAPES

    # Small ones, which are not compiled, take no place of a larger one's.
    normlib._functions.clear()
    for length in range(normlib.COMPILED_SHAPES + 3):
        layer(random(rng, (2, 2 + length, 16), "float32"))
    layer(x)
    assert {tuple(x.shape)} in map(set, normlib._functions.values())

    @tf.function(input_signature=[tf.TensorSpec([None, None, 16])])
    def open_sizes(x):
        return layer(x)

    assert_close(open_sizes(x), layer(x), 1e-5)


@pytest.mark.parametrize("name", ["BatchNormalization", "LayerNormalization", "GroupNormalization"])
def test_a_model_for_any_batch_size_has_nothing_to_compile_for_each(name, tmp_path):
    """A server that meets ever new sizes would compile for ever; some runtimes neither compile nor branch."""
    model = keras.Sequential([keras.Input((64, 64, 32)), getattr(normlib, name)()])
    model.export(tmp_path, verbose=False)
    graph = tf.saved_model.load(tmp_path).signatures["serving_default"].graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    assert "Rsqrt" in {node.op for node in nodes}
    assert not {"If", "StatelessIf"} & {node.op for node in nodes}
    assert not any("_XlaMustCompile" in each.attr for each in [*nodes, *graph.library.function])


@pytest.mark.parametrize("shape", [(6, 5, 4), (40, 64, 32)])
def test_what_was_saved_and_loaded_has_its_second_derivatives(shape, rng, tmp_path):
    module = tf.Module()
    module.layer = build(normlib.LayerNormalization, {}, shape, "float64", rng)
    module.call = tf.function(lambda x: module.layer(x), [tf.TensorSpec(shape, "float64")])
    tf.saved_model.save(module, tmp_path)
    x = tf.constant(random(rng, shape))

    def second(function):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                loss = tf.reduce_sum(tf.sin(function(x)))
            slope = tf.reduce_sum(tf.square(inner.gradient(loss, x)))
        return outer.gradient(slope, x)

    expected = second(lambda x: plain_layer(module.layer, x))
    loaded = tf.saved_model.load(tmp_path)  # which owns its variables
    assert_close(second(loaded.call), expected, 1e-11)


@pytest.mark.parametrize("name", ["BatchNormalization", "LayerNormalization", "GroupNormalization"])
def test_nothing_is_logged(name, rng, caplog, monkeypatch):
    """Neither that kernels are traced again for other shapes, nor what AutoGraph cannot read."""
    # TensorFlow warns of one code five times, then no more: here it has not begun to count.
    detectors = polymorphic_function._FrequentTracingDetectorManager()
    monkeypatch.setattr(polymorphic_function, "_frequent_tracing_detector_manager", detectors)
    layer = getattr(normlib, name)(**{"groups": 2} if name.startswith("Group") else {})
    layer.build((None, None, 6))
    normlib._functions.clear()
    caplog.set_level("WARNING", tf.get_logger().name)
    tf.get_logger().addHandler(caplog.handler)
    try:
        for batch in range(1, 9):
            for length in range(2, 6):
                x = tf.constant(random(rng, (batch, length, 6), "float32"))
                call(layer, x)
        for dtype in ("float16", "bfloat16", "float32", "float64"):
            for policy in ("float16", "bfloat16", "float32", "float64"):
                call(type(layer).from_config(layer.get_config() | {"dtype": policy}), tf.cast(x, dtype))

        @tf.function
        def direct(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = normlib.standardize(x, (1, 2), 1e-3, gamma=tf.ones([1, *x.shape[1:]]))[0] + layer.call(x)
            return tape.gradient(y, x)

        direct(x)
    finally:
        tf.get_logger().removeHandler(caplog.handler)
    assert caplog.messages == []


@pytest.mark.parametrize(("make", "arguments"), LAYERS)
def test_under_tensorflows_check_of_numbers(make, arguments, rng):
    """It calls back at each operation, which a compiled kernel cannot."""
    layer = build(make, arguments, LARGE, "float32", rng)
    x = tf.constant(random(rng, LARGE, "float32"))
    takes_mask = make is normlib.BatchNormalization

    def step(x):
        """What a training and a masked training make of x, and the gradient in inference."""
        y = [call(layer, x)]
        if takes_mask:
            y.append(layer(x[:2], training=True, mask=tf.ones(x[:2].shape[:-1], "bool")))
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x, training=False) ** 3)
        return [*y, tape.gradient(loss, x)]

    start = layer.get_weights()
    expected = step(x)
    normlib._functions.clear()
    tf.debugging.enable_check_numerics()
    try:
        for checked in (step, tf.function(step)):
            layer.set_weights(start)
            for a, b in zip(checked(x), expected, strict=True):
                assert_close(a, b, 1e-5)
    finally:
        tf.debugging.disable_check_numerics()


@pytest.mark.parametrize(("make", "arguments"), LAYERS)
def test_a_layer_is_a_function_of_its_inputs(make, arguments, rng):
    layer = build(make, arguments, SMALL, "float32", rng)
    x = tf.constant(random(rng, SMALL, "float32"))
    whole = tf.function(layer)
    assert_close(whole(x), layer(x), 1e-6)
    signed = tf.function(layer, input_signature=[tf.TensorSpec([None, *SMALL[1:]])])
    assert_close(signed(x), layer(x), 1e-6)
    assert next(iter(inspect.signature(make).parameters)) in ("axis", "groups")


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(("make", "arguments"), LAYERS)
def test_before_a_function_whose_gradient_has_no_shape(make, arguments, shape, rng):
    layer = build(make, arguments, shape, "float32", rng)
    x = tf.constant(random(rng, shape, "float32"))

    def slope(behind):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(behind(call(layer, x))) + tf.reduce_sum(behind(layer(x, training=False)))
        return tape.gradient(loss, x)

    start = layer.get_weights()
    found = tf.function(slope)(lambda y: tf.py_function(lambda y: y**3, [y], "float32"))
    layer.set_weights(start)
    assert_close(found, slope(lambda y: y**3), 1e-5)


def test_a_weight_normalization_before_a_function_whose_gradient_has_no_shape(rng):
    v, g = (tf.constant(rng.normal(size=shape)) for shape in ((5, 3), (1, 3)))

    def slopes(behind):
        with tf.GradientTape() as tape:
            tape.watch([v, g])
            loss = tf.reduce_sum(behind(normlib.weight_normalize(v, g, (0,))))
        return tape.gradient(loss, [v, g])

    found = tf.function(slopes)(lambda w: tf.py_function(lambda w: w**3, [w], "float64"))
    for a, b in zip(found, slopes(lambda w: w**3), strict=True):
        assert_close(a, b, 1e-12)


def test_channels_of_unknown_number_in_the_middle(rng):
    layer = build(normlib.BatchNormalization, {"axis": 1}, (2, 3, 5), "float32", rng)
    x = tf.constant(random(rng, (2, 3, 5), "float32"))
    called = tf.function(lambda x: layer(x), input_signature=[tf.TensorSpec([None, None, None])])
    assert_close(called(x), layer(x), 1e-6)


FIT = """
import keras, numpy as np, normlib
model = keras.Sequential([
    keras.layers.Input((12, 12, 1)),
    normlib.WeightNormalization(keras.layers.Conv2D(16, 3)), normlib.BatchNormalization(),
    normlib.GroupNormalization(4), normlib.LayerNormalization(), normlib.RMSNormalization(),
    normlib.InstanceNormalization(), keras.layers.Flatten(), keras.layers.Dense(2),
])
model.compile("sgd", "mse", jit_compile=True)
rng = np.random.default_rng(0)
x, y = rng.normal(size=(64, 12, 12, 1)), rng.normal(size=(64, 2))
loss = model.fit(x, y, epochs=4, verbose=0).history["loss"]
assert loss[-1] < loss[0], loss
"""


def test_fit_jitted():
    """In a process of its own: Keras does not compile while operations are held to be deterministic."""
    ran = subprocess.run([sys.executable, "-c", FIT], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]


@pytest.mark.parametrize(
    ("name", "options", "at_least"),
    [
        ("BatchNormalization", (), 0.01),
        ("LayerNormalization", (), 0.1),
        ("GroupNormalization", (("groups", 2),), 0.01),
    ],
)
def test_kerass_second_derivatives_are_wrong_and_ours_are_right(name, options, at_least):
    """tf.nn.moments stops the gradient at the mean inside the variance: right to first order only."""
    assert equivalence.second_derivative_error(f"normlib:{name}", options) < 1e-7
    assert equivalence.second_derivative_error(f"keras.layers:{name}", options) > at_least
