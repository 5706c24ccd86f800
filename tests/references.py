"""The plain formulas, for autodiff to differentiate, and the cases that the layers are tested on."""

import keras
import numpy as np
import tensorflow as tf

import normlib

SHAPES = [(4, 3), (3, 16), (3, 5, 4), (2, 3, 4, 6), (2, 3, 2, 3, 4)]


def plain_standardize(x, axes, epsilon, gamma=None, beta=None, center=True):
    """The formula of every layer but weight normalization, as in a textbook."""
    mean = tf.reduce_mean(x, axes, keepdims=True) if center else 0.0
    variance = tf.reduce_mean((x - mean) ** 2, axes, keepdims=True)
    y = (x - mean) / tf.sqrt(variance + epsilon)
    y = y if gamma is None else gamma * y
    return y if beta is None else y + beta


def plain_group(x, groups, epsilon, gamma=None, beta=None):
    """Group normalization over the last axis, by reshaping."""
    shape = x.shape
    split = tf.reshape(x, [shape[0], -1, groups, shape[-1] // groups])
    y = tf.reshape(plain_standardize(split, (1, 3), epsilon), shape)
    y = y if gamma is None else gamma * y
    return y if beta is None else y + beta


def plain_layer(layer, x, mask=None):
    """What the layer's formula says its output is in training, from its own weights."""
    rank = x.shape.rank
    name = type(layer).__name__

    def broadcast(parameter, axes):
        if parameter is None:
            return None
        shape = [x.shape[a] if a in axes else 1 for a in range(rank)]
        return tf.cast(tf.reshape(parameter.value, shape), x.dtype)

    given = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    features = sorted(a % rank for a in given)
    gamma, beta = broadcast(layer.gamma, features), broadcast(layer.beta, features)
    others = tuple(a for a in range(rank) if a not in features)
    if name == "BatchNormalization":
        return plain_standardize(x, others, layer.epsilon, gamma, beta)
    if name == "GroupNormalization":
        return plain_group(x, layer.groups, layer.epsilon, gamma, beta)
    if name == "InstanceNormalization":
        return plain_standardize(x, tuple(a for a in others if a), layer.epsilon, gamma, beta)
    return plain_standardize(
        x, tuple(features), layer.epsilon, gamma, beta, center=name != "RMSNormalization"
    )


def layer_cases():
    """(id, make, shape): every layer on every shape and axis that makes sense for it."""
    cases = []
    for shape in SHAPES:
        rank = len(shape)
        for axis in {-1, 1}:
            cases.append((f"batch{shape}{axis}", normlib.BatchNormalization, {"axis": axis}, shape))
        axes = [-1, 1, list(range(1, rank))] + ([[1, -1]] if rank > 2 else [])
        for axis in axes:
            cases.append((f"layer{shape}{axis}", normlib.LayerNormalization, {"axis": axis}, shape))
            cases.append((f"rms{shape}{axis}", normlib.RMSNormalization, {"axis": axis}, shape))
        for groups in {1, shape[-1]} | ({2} if shape[-1] % 2 == 0 else set()):
            cases.append((f"group{shape}{groups}", normlib.GroupNormalization, {"groups": groups}, shape))
        if rank > 2:
            cases.append((f"instance{shape}", normlib.InstanceNormalization, {}, shape))
    each = [
        (normlib.BatchNormalization, {}),
        (normlib.LayerNormalization, {}),
        (normlib.LayerNormalization, {"axis": [1, 2, 3]}),
        (normlib.GroupNormalization, {"groups": 2}),
        (normlib.InstanceNormalization, {}),
    ]
    for make, arguments in each:
        for without in ({"scale": False}, {"center": False}, {"scale": False, "center": False}):
            cases.append((f"{make.__name__}{arguments | without}", make, arguments | without, (2, 3, 4, 6)))
    # One case of each layer that is large enough for the compiled path.
    without_gamma = (normlib.LayerNormalization, {"axis": [1, 2, 3], "scale": False})
    for make, arguments in [*each, without_gamma, (normlib.RMSNormalization, {})]:
        cases.append((f"compiled-{make.__name__}{arguments}", make, arguments, (8, 26, 26, 6)))
    return cases


def build(make, arguments, shape, dtype, rng, **more):
    """The layer, built, with random parameters."""
    layer = make(**arguments, **more, dtype=dtype)
    layer.build(shape)
    layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    return layer


def call(layer, x):
    """A call in training mode, for layers that have one."""
    return layer(x, training=True) if isinstance(layer, keras.layers.Layer) and has_mode(layer) else layer(x)


def has_mode(layer):
    return "BatchNormalization" in type(layer).__name__


def random(rng, shape, dtype="float64", mean=1.0, std=2.0):
    return tf.constant(rng.normal(mean, std, shape), dtype)


def gradients(function, x, variables, dy):
    """The output of a function of x, and its gradients with respect to x and the variables."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x)
    return y, tape.gradient(y, [x, *(v.value for v in variables)], dy, unconnected_gradients="zero")


def assert_close(actual, expected, tolerance):
    """The largest difference, in units of the largest expected value (or of 1)."""
    actual, expected = np.asarray(actual, "float64"), np.asarray(expected, "float64")
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    scale = max(float(np.max(np.abs(expected), initial=0.0)), 1.0)
    difference = float(np.max(np.abs(actual - expected), initial=0.0))
    assert difference <= tolerance * scale, f"{difference / scale:.2e} > {tolerance:.0e}"
