"""What is done to a model: folding, recalibration, initialization from data, mean-only normalization."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from references import assert_close, random

import normlib

L = keras.layers


@pytest.fixture(scope="module")
def trained():
    """A small network with every kind of layer that a normalization can be folded into, trained for a while."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    inputs = keras.Input((12, 12, 3))
    x = L.Conv2D(6, 3, padding="same", use_bias=False)(inputs)
    x = normlib.BatchNormalization(momentum=0.9)(x)
    x = L.ReLU()(x)
    x = L.DepthwiseConv2D(3, padding="same")(x)
    x = normlib.BatchNormalization(scale=False)(x)
    x = L.SeparableConv2D(8, 3, padding="same")(x)
    x = normlib.BatchNormalization(center=False)(x)
    x = L.Conv2DTranspose(5, 3, padding="same")(x)
    x = normlib.BatchNormalization()(x)
    x = L.Conv2D(4, 3, padding="same", activation="relu")(x)
    x = normlib.BatchNormalization(name="behind_an_activation")(x)
    x = L.Dense(7)(L.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, L.Dense(2)(normlib.BatchNormalization()(x)))
    model.compile(keras.optimizers.SGD(0.05), "mse")
    images = rng.normal(1.0, 2.0, (128, 12, 12, 3)).astype("float32")
    model.fit(images, images.mean((1, 2))[:, :2], epochs=3, batch_size=16, verbose=0)
    return model, images


def test_a_folded_model_gives_the_same_outputs(trained):
    model, images = trained
    before = model.get_weights()
    folded = normlib.fold(model)
    assert_close(folded.predict(images, verbose=0), model.predict(images, verbose=0), 1e-5)
    kept = [layer.name for layer in folded.layers if isinstance(layer, normlib.BatchNormalization)]
    assert kept == ["behind_an_activation"]
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_a_folded_model_is_saved_and_copied(policy, tmp_path, rng):
    model = keras.Sequential(
        [keras.Input((5,)), L.Dense(4, dtype=policy), normlib.BatchNormalization(dtype=policy)]
    )
    folded, x = normlib.fold(model), random(rng, (6, 5), "float32")
    folded.save(tmp_path / "folded.keras")
    copied = keras.models.clone_model(folded)
    copied.set_weights(folded.get_weights())
    for again in (keras.models.load_model(tmp_path / "folded.keras"), copied):
        assert_close(again(x), folded(x), 1e-6)
        assert [layer.compute_dtype for layer in again.layers] == [
            layer.compute_dtype for layer in model.layers
        ]


def test_a_sequential_model_is_folded(rng):
    model = keras.Sequential([keras.Input((5,)), L.Dense(4), normlib.BatchNormalization(), L.ReLU()])
    model.layers[1].set_weights([rng.uniform(0.5, 1.5, 4) for _ in range(4)])
    x = random(rng, (6, 5), "float32")
    folded = normlib.fold(model)
    assert_close(folded(x), model(x), 1e-6)
    assert not any(isinstance(layer, normlib.BatchNormalization) for layer in folded.layers)


def test_a_layer_that_something_else_reads_is_not_folded(rng):
    inputs = keras.Input((5,))
    shared = L.Dense(4)(inputs)
    model = keras.Model(inputs, L.Add()([normlib.BatchNormalization(name="kept")(shared), shared]))
    model.get_layer("kept").moving_mean.assign(rng.normal(size=4))
    folded = normlib.fold(model)
    x = random(rng, (6, 5), "float32")
    assert_close(folded(x), model(x), 1e-6)
    assert isinstance(folded.get_layer("kept"), normlib.BatchNormalization)


def test_recalibrated_statistics_are_the_exact_averages(trained):
    model, images = trained
    model = keras.models.clone_model(model)
    model.set_weights(trained[0].get_weights())
    first = next(layer for layer in model.layers if isinstance(layer, normlib.BatchNormalization))
    momentum = first.momentum
    batches = [images[:50], images[50:60], images[60:]]
    assert normlib.recalibrate(model, batches) is model
    activations = keras.Model(model.inputs, model.layers[1].output).predict(images, verbose=0)
    assert_close(first.moving_mean, activations.mean((0, 1, 2)), 1e-5)
    assert_close(first.moving_variance, activations.astype("float64").var((0, 1, 2)), 1e-5)
    assert first.momentum == momentum


def functional(function, size=5):
    inputs = keras.Input((size,))
    return keras.Model(inputs, function(inputs))


def with_output_read(x):
    shared = L.Dense(4)(x)
    return [shared, normlib.BatchNormalization(name="kept")(shared)]


@pytest.mark.parametrize(
    ("function", "kept"),
    [
        (with_output_read, ["kept"]),
        (lambda x: normlib.BatchNormalization(name="kept")(L.Dense(4)(x), training=True), ["kept"]),
        (lambda x: keras.layers.BatchNormalization()(L.Dense(4)(x)), []),
        (lambda x: functional(lambda z: normlib.BatchNormalization()(L.Dense(4)(z)))(x), []),
        (lambda x: normlib.BatchNormalization(name="kept")(L.Dense(4, "relu")(x)), ["kept"]),
        (lambda x: normlib.BatchNormalization(name="kept")(x), ["kept"]),
    ],
    ids=[
        "an output of the model",
        "always in training",
        "Keras's layer",
        "a nested model",
        "activation",
        "input",
    ],
)
def test_what_is_folded_and_what_is_not(function, kept, rng):
    model = functional(function)
    for layer in model._flatten_layers():
        if "BatchNormalization" in type(layer).__name__:
            layer.set_weights([rng.uniform(0.5, 1.5, 4 if w.shape == (4,) else 5) for w in layer.weights])
    x = random(rng, (6, 5), "float32")
    folded = normlib.fold(model)
    for a, b in zip(keras.tree.flatten(folded(x)), keras.tree.flatten(model(x)), strict=True):
        assert_close(a, b, 1e-5)
    found = [x.name for x in folded._flatten_layers() if "BatchNormalization" in type(x).__name__]
    assert found == kept


class Doubling(L.Dense):
    def call(self, inputs):
        return super().call(2.0 * inputs)


def test_a_derived_layer_may_make_something_else_of_its_kernel_and_is_not_folded():
    model = keras.Sequential([keras.Input((5,)), Doubling(4), normlib.BatchNormalization(name="kept")])
    assert normlib._foldable(model, normlib._calls(model)) == {}


def test_an_adapted_layer_is_not_folded():
    model = keras.Sequential([keras.Input((5,)), L.Dense(4), normlib.BatchNormalization()])
    assert len(normlib._foldable(model, normlib._calls(model))) == 1
    model.layers[0].enable_lora(2)
    assert normlib._foldable(model, normlib._calls(model)) == {}


def test_a_quantized_layer_is_not_folded(rng):
    model = keras.Sequential([keras.Input((16,)), L.Dense(4), normlib.BatchNormalization()])
    model.layers[0].quantize("int8")
    x = random(rng, (8, 16), "float32")
    np.testing.assert_array_equal(normlib.fold(model)(x), model(x))


def test_a_learnt_vocabulary_is_copied():
    lookup = L.StringLookup(output_mode="multi_hot")
    lookup.adapt(np.array(["a", "b", "b", "c"]))
    model = keras.Sequential(
        [keras.Input((2,), dtype="string"), lookup, L.Dense(3), normlib.BatchNormalization()]
    )
    words = tf.constant([["a", "b"], ["c", "d"]])
    assert_close(normlib.fold(model)(words), model(words), 1e-6)


def test_an_adapted_preprocessing_layer_is_copied_with_what_it_has_learnt(rng):
    x = rng.normal(3, 2, (8, 5)).astype("float32")
    preprocessing = L.Normalization()
    preprocessing.adapt(x)
    model = keras.Sequential([keras.Input((5,)), preprocessing, L.Dense(4), normlib.BatchNormalization()])
    assert_close(normlib.fold(model)(x), model(x), 1e-6)


def test_a_nested_model_that_is_called_in_training_mode_is_not_folded(rng):
    inner = keras.Sequential([keras.Input((5,)), L.Dense(4), normlib.BatchNormalization(name="kept")])
    inputs = keras.Input((5,))
    model = keras.Model(inputs, inner(inputs, training=True))
    x = random(rng, (8, 5), "float32")
    folded = normlib.fold(model)
    assert_close(folded(x), model(x), 1e-6)
    assert "kept" in [layer.name for layer in folded._flatten_layers() if "Batch" in type(layer).__name__]


def test_a_model_with_calls_by_keyword_and_a_loss_without_a_name_is_folded(rng):
    inputs = keras.Input((5, 4))
    attended = L.MultiHeadAttention(2, 3)(query=inputs, value=inputs)
    model = keras.Model(inputs, normlib.BatchNormalization()(inputs=L.Dense(4)(attended)))
    model.compile("sgd", lambda y, p: tf.reduce_mean(tf.square(y - p)))
    x = random(rng, (3, 5, 4), "float32")
    folded = normlib.fold(model)
    assert_close(folded(x), model(x), 1e-5)
    assert model.compiled and not folded.compiled
    assert not any(isinstance(layer, normlib.BatchNormalization) for layer in folded.layers)


def test_a_sequential_model_that_grew_is_folded():
    model = keras.Sequential()
    for layer in (keras.Input((5,)), L.Dense(4), normlib.BatchNormalization(), L.Dense(3)):
        model.add(layer)
    assert not any(isinstance(x, normlib.BatchNormalization) for x in normlib.fold(model).layers)


def test_recalibration_counts_what_is_there_and_switches_nothing_else_on(rng):
    inputs = keras.Input((3,))
    norm = normlib.BatchNormalization()
    shared = L.Add()([norm(L.Dropout(0.5)(inputs)), norm(inputs + 10.0)])
    model = keras.Model(inputs, normlib.MeanOnlyBatchNormalization(name="centre")(shared))
    x = rng.normal(1e3, 1.0, (64, 3)).astype("float32")
    batches = [(x[:50], x[:50]), (x[50:], x[50:])]  # inputs and targets
    assert normlib.recalibrate(model, batches) is model
    both = np.concatenate([x, x + np.float32(10)]).astype("float64")
    assert_close(norm.moving_mean, both.mean(0), 1e-6)
    assert_close(norm.moving_variance, both.var(0), 1e-4)
    assert np.max(np.abs(model.get_layer("centre").moving_mean)) > 0


def test_recalibration_of_masked_batches_counts_the_elements(rng):
    x = rng.normal(size=(4, 6, 3)).astype("float32")
    lengths = [6, 1, 2, 5]
    x[:, :, :] = np.where(np.arange(6)[None, :, None] < np.array(lengths)[:, None, None], x, 0.0)
    model = keras.Sequential([keras.Input((6, 3)), L.Masking(), normlib.BatchNormalization()])
    normlib.recalibrate(model, [x[:1], np.zeros_like(x), x[:0], x[1:]])  # two of them hold nothing
    counted = np.concatenate([row[:n] for row, n in zip(x, lengths, strict=True)])
    assert_close(model.layers[-1].moving_mean, counted.mean(0), 1e-5)
    assert_close(model.layers[-1].moving_variance, counted.var(0), 1e-5)


@pytest.mark.parametrize("bad", [np.full((8, 3), np.nan, "float32"), "text"])
def test_a_recalibration_that_fails_leaves_the_statistics(bad, rng):
    model = keras.Sequential([keras.Input((3,)), normlib.BatchNormalization()])
    before = model.get_weights()
    with pytest.raises((ValueError, TypeError, AttributeError)):
        normlib.recalibrate(model, [random(rng, (8, 3), "float32"), bad])
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    x = random(rng, (8, 3), "float32")
    assert_close(model(x), x / np.sqrt(1.001), 1e-5)  # in inference again


class Blocks(keras.Model):
    """Two normalizations of one name, and a third that only some inputs reach."""

    def __init__(self):
        super().__init__()
        self.norms = [normlib.BatchNormalization(name="norm") for _ in range(3)]

    def call(self, x):
        x = self.norms[1](self.norms[0](x) + 10.0)
        return self.norms[2](x) if x.shape[0] > 1 else x


def test_layers_of_one_name_are_recalibrated_apart(rng):
    model, x = Blocks(), random(rng, (64, 3), "float32")
    normlib.recalibrate(model, [x])
    first, second, _ = model.norms
    assert_close(first.moving_mean, np.mean(x, 0), 1e-6)
    assert_close(second.moving_mean, np.full(3, 10.0), 1e-5)


def test_a_recalibration_that_does_not_reach_a_layer_leaves_the_statistics(rng):
    model, x = Blocks(), random(rng, (2, 3), "float32")
    model(x)
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"reaches norm. Received: none"):
        normlib.recalibrate(model, [x[:1], x[1:]])
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_initialization_that_fails_leaves_the_weights(rng):
    first = normlib.WeightNormalization(L.Dense(3))
    model = keras.Sequential(
        [keras.Input((5,)), first, normlib.WeightNormalization(L.Dense(2, use_bias=False))]
    )
    before = model.get_weights()
    with pytest.raises(ValueError, match="with a bias"):
        normlib.initialize_from_data(model, random(rng, (16, 5), "float32"))
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "make",
    [
        lambda: L.Dense(7, activation="relu"),
        lambda: L.Conv2D(7, 3, padding="same", activation="relu"),
        lambda: L.DepthwiseConv2D(3, activation="relu"),
        lambda: L.Conv2DTranspose(7, 3),
        lambda: L.SeparableConv2D(7, 3),
    ],
)
def test_initialized_from_data_the_outputs_have_mean_0_and_deviation_1(make, rng):
    wrapped = normlib.WeightNormalization(make())
    model = keras.Sequential([keras.Input((6, 6, 3)), normlib.WeightNormalization(L.Conv2D(3, 1)), wrapped])
    x = random(rng, (64, 6, 6, 3), "float32")
    normlib.initialize_from_data(model, x)
    wrapped.layer.activation = keras.activations.linear
    y = model(x).numpy()
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0.0, atol=1e-4)
    np.testing.assert_allclose(y.std((0, 1, 2)), 1.0, atol=1e-3)
    assert_close(model(x[:4]), y[:4], 1e-5)


@pytest.mark.parametrize(
    ("equation", "output_shape", "bias_axes"),
    [("abc,cde->abde", (None, 2, 3), "de"), ("abc,cd->adb", (4, None), "d"), ("abc,cd->abd", (None, 1), "d")],
)
def test_a_bias_of_several_axes_is_initialized_from_data(equation, output_shape, bias_axes, rng):
    output_shape = [size or 7 for size in output_shape]
    wrapped = normlib.WeightNormalization(L.EinsumDense(equation, output_shape, bias_axes=bias_axes))
    x = random(rng, (64, 7, 5), "float32")
    normlib.initialize_from_data(keras.Sequential([wrapped]), x)
    labels = equation.split("->")[1]
    others = tuple(axis for axis, label in enumerate(labels) if label not in bias_axes)
    y = wrapped(x).numpy()
    np.testing.assert_allclose(y.mean(others), 0.0, atol=1e-4)
    np.testing.assert_allclose(y.std(others), 1.0, atol=1e-3)


@pytest.mark.parametrize(
    ("equation", "bias_axes"),
    [("abc,cde->abde", "e"), ("abc,ced->abde", "de"), ("abc,cde->abde", "b"), ("abc,cde->abde", None)],
)
def test_a_bias_that_is_not_one_for_each_g_is_refused(equation, bias_axes, rng):
    wrapped = normlib.WeightNormalization(L.EinsumDense(equation, (4, 2, 2), bias_axes=bias_axes))
    with pytest.raises(ValueError, match=r"with a bias for each g, in the same order. Received"):
        normlib.initialize_from_data(keras.Sequential([wrapped]), random(rng, (8, 4, 5), "float32"))


def test_mean_only_batch_normalization(rng):
    x, dy = random(rng, (8, 5, 3)), random(rng, (8, 5, 3))
    layer = normlib.MeanOnlyBatchNormalization(momentum=0.9, dtype="float64")
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
    dx = tape.gradient(y, x, dy)
    assert_close(y, x - tf.reduce_mean(x, (0, 1)), 1e-14)
    assert_close(dx, dy - tf.reduce_mean(dy, (0, 1)), 1e-14)
    assert [w.name for w in layer.weights] == ["beta", "moving_mean"]
    assert_close(layer.moving_mean, 0.1 * tf.reduce_mean(x, (0, 1)), 1e-14)
    assert_close(layer(x), x - layer.moving_mean.value, 1e-14)
    assert type(layer).from_config(layer.get_config()).get_config() == layer.get_config()


def test_a_masked_position_of_mean_only_batch_normalization_may_hold_anything(rng):
    mask = np.arange(5) < np.array([5, 2, 4])[:, None]
    x = np.where(mask[..., None], random(rng, (3, 5, 2)), np.nan)
    layer = normlib.MeanOnlyBatchNormalization(dtype="float64")
    y = layer(x, training=True, mask=mask)
    assert_close(y[mask], x[mask] - x[mask].mean(0), 1e-14)
    assert np.isfinite(y).all() and np.isfinite(layer.moving_mean).all()


def test_a_model_that_makes_its_layers_late_is_initialized_from_data(rng):
    class Late(keras.Model):
        def build(self, input_shape):
            self.wrapped = normlib.WeightNormalization(L.Dense(3))
            self.wrapped.build(input_shape)

        def call(self, x):
            return self.wrapped(x)

    model, x = Late(), random(rng, (64, 5), "float32")
    normlib.initialize_from_data(model, x)
    assert_close(tf.math.reduce_std(model(x), 0), np.ones(3), 1e-5)


def wrapped_dense():
    return keras.Sequential([normlib.WeightNormalization(L.Dense(2))])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: normlib.fold("model"), TypeError, "Sequential or Functional"),
        (
            lambda: normlib.recalibrate(keras.Sequential([L.Dense(2)]), []),
            ValueError,
            "normlib.BatchNormalization layers",
        ),
        (
            lambda: normlib.recalibrate(keras.Sequential([normlib.BatchNormalization()]), []),
            ValueError,
            "at least one batch",
        ),
        (
            lambda: normlib.initialize_from_data(keras.Sequential([L.Dense(2)]), tf.ones([2, 3])),
            ValueError,
            "WeightNormalization layers",
        ),
        *(
            (
                lambda x=x: normlib.initialize_from_data(wrapped_dense(), x),
                ValueError,
                "varies, and is finite",
            )
            for x in (
                tf.ones([2, 3]),
                tf.fill([64, 3], 1000.1),  # summed in another order, equal rows may round apart
                1e25 * tf.reshape(tf.range(6.0), [2, 3]),
            )
        ),
        (
            lambda: normlib.initialize_from_data(
                keras.Sequential([L.TimeDistributed(wrapped_dense())]), tf.reshape(tf.range(24.0), [2, 4, 3])
            ),
            ValueError,
            "once",
        ),
        (
            lambda: normlib.initialize_from_data(
                keras.Sequential([normlib.WeightNormalization(L.Dense(2, use_bias=False))]), tf.ones([2, 3])
            ),
            ValueError,
            "with a bias",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(call, error, message):
    with pytest.raises(error, match=rf"{message}.*Received"):
        call()
