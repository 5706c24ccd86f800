"""Own layers against Keras's: outputs, gradients, moving statistics, weights that can be exchanged."""

import keras
import numpy as np
import pytest
from references import assert_close, build, call, gradients, random

import normlib

PAIRS = [
    ("BatchNormalization", {}, (4, 3)),
    ("BatchNormalization", {"axis": 1}, (2, 3, 4, 5)),
    ("BatchNormalization", {"momentum": 0.5, "epsilon": 1e-5}, (8, 26, 26, 6)),
    ("BatchNormalization", {"center": False, "scale": False}, (2, 4, 3)),
    ("LayerNormalization", {}, (4, 3)),
    ("LayerNormalization", {"axis": [1, 2, 3]}, (2, 3, 4, 5)),
    ("LayerNormalization", {"axis": 1, "center": False}, (2, 3, 4, 5)),
    ("LayerNormalization", {"axis": [1, -1], "scale": False}, (2, 3, 4, 5)),
    ("LayerNormalization", {"axis": [1, -1]}, (8, 26, 26, 6)),
    ("LayerNormalization", {"axis": [1, 2], "rms_scaling": True}, (2, 3, 4, 5)),
    ("GroupNormalization", {"groups": 2}, (2, 4, 5, 6)),
    ("GroupNormalization", {"groups": 3, "axis": 1}, (2, 6, 5, 4)),
    ("GroupNormalization", {"groups": -1, "scale": False}, (8, 26, 26, 6)),
    ("GroupNormalization", {"groups": 4}, (8, 12)),
    ("GroupNormalization", {"groups": 8, "center": False}, (256, 256)),
    ("RMSNormalization", {}, (4, 3)),
    ("RMSNormalization", {"epsilon": 1e-3}, (8, 26, 26, 6)),
]
pytestmark = pytest.mark.filterwarnings("ignore:.*rms_scaling=True")
IDS = [f"{name}{arguments}{shape}" for name, arguments, shape in PAIRS]


def both(name, arguments, shape, dtype, rng):
    ours = build(getattr(normlib, name), arguments, shape, dtype, rng)
    theirs = getattr(keras.layers, name)(**arguments, dtype=dtype)
    theirs.build(shape)
    theirs.set_weights(ours.get_weights())
    return ours, theirs


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-12)])
@pytest.mark.parametrize(("name", "arguments", "shape"), PAIRS, ids=IDS)
def test_outputs_gradients_and_statistics_equal_kerass(name, arguments, shape, dtype, tolerance, rng):
    ours, theirs = both(name, arguments, shape, dtype, rng)
    x, dy = random(rng, shape, dtype), random(rng, shape, dtype)
    results = []
    for layer in (ours, theirs):
        y, gradient = gradients(lambda x, a=layer: call(a, x), x, layer.trainable_variables, dy)
        results.append([y, *gradient, *layer.non_trainable_variables])
    for a, b in zip(*results, strict=True):
        assert_close(a, b, tolerance)


@pytest.mark.parametrize(("name", "arguments", "shape"), PAIRS, ids=IDS)
def test_inference_equals_kerass(name, arguments, shape, rng):
    ours, theirs = both(name, arguments, shape, "float32", rng)
    x = random(rng, shape, "float32")
    assert_close(ours(x), theirs(x), 1e-5)


@pytest.mark.parametrize(("name", "arguments", "shape"), PAIRS, ids=IDS)
def test_weights_go_both_ways(name, arguments, shape, rng):
    ours, theirs = both(name, arguments, shape, "float32", rng)
    assert [w.name for w in ours.weights] == [w.name for w in theirs.weights]
    assert [tuple(w.shape) for w in ours.weights] == [tuple(w.shape) for w in theirs.weights]
    ours.set_weights([w + 1 for w in theirs.get_weights()])
    theirs.set_weights(ours.get_weights())
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", sorted({name for name, *_ in PAIRS}))
def test_defaults_equal_kerass(name):
    ours, theirs = getattr(normlib, name)().get_config(), getattr(keras.layers, name)().get_config()
    not_offered = {"renorm", "renorm_clipping", "renorm_momentum"}
    for option in set(theirs) - not_offered - {"name"}:
        assert ours[option] == theirs[option], option


def test_weight_normalization_equals_tensorflow_probabilitys(rng):
    import tensorflow_probability as tfp
    import tf_keras

    x, dy = random(rng, (6, 5)), random(rng, (6, 4))
    theirs = tfp.layers.weight_norm.WeightNorm(
        tf_keras.layers.Dense(4, dtype="float64"), data_init=False, dtype="float64"
    )
    theirs(x)
    ours = normlib.WeightNormalization(keras.layers.Dense(4, dtype="float64"), dtype="float64")
    ours(x)
    by_name = {w.name.split("/")[-1].split(":")[0]: w for w in theirs.weights}
    ours.layer.kernel.assign(by_name["kernel"])
    ours.g.assign(by_name["g"].numpy() * 1.5)
    by_name["g"].assign(by_name["g"] * 1.5)
    _, (dx, dg, dv) = gradients(ours, x, [ours.g, ours.layer.kernel], dy)
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(x)
        y = theirs(x)
    expected = tape.gradient(y, [x, by_name["g"], by_name["kernel"]], dy)
    assert_close(ours(x), y, 1e-13)
    for a, b in zip((dx, dg, dv), expected, strict=True):
        assert_close(a, b, 1e-12)


def test_ours_may_stand_where_keras_keeps_its_own(rng, monkeypatch):
    """What we leave to Keras's layer must not be looked up where ours stands by then."""
    ours, theirs = both("LayerNormalization", {"rms_scaling": True}, (4, 3), "float64", rng)
    monkeypatch.setattr(keras.layers, "LayerNormalization", normlib.LayerNormalization)
    x = random(rng, (4, 3))
    assert_close(call(ours, x), call(theirs, x), 1e-12)
