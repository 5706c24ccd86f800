"""Exact facts about normalization, each as a function that measures by how much it fails.

A law takes a `Case` (an input, an incoming gradient, an epsilon) and returns a relative error in float64, which is
round-off where the law holds. The report prints them as verdicts; the tests try them on random shapes and scales.
"""

import dataclasses
import functools

import keras
import numpy as np
import tensorflow as tf

import normlib

TOLERANCE = 1e-9  # of a law, relative, in float64


@dataclasses.dataclass(frozen=True)
class Case:
    """What a law is tried on.

    Args:
        seed: of all random numbers.
        shape: of the images: batch, height, width, channels.
        epsilon: of the layers.
        mean, std: of the images.
    """

    seed: int = 2612
    shape: tuple = (5, 4, 3, 6)
    epsilon: float = 1e-3
    mean: float = 1.0
    std: float = 2.0

    @functools.cached_property
    def rng(self):
        return np.random.default_rng(self.seed)

    @functools.cached_property
    def x(self):
        return self.mean + self.std * self.normal(self.shape)

    @functools.cached_property
    def dy(self):
        return self.normal(self.shape)

    @functools.cached_property
    def rows(self):
        """The images as rows of features, for dense layers: more rows than features."""
        channels = self.shape[-1]
        return self.mean + self.std * self.normal((2 * channels + 3, channels))

    def normal(self, shape):
        return tf.constant(self.rng.normal(size=shape))


# --- the methods --------------------------------------------------------------------------------------------------

METHODS = {
    "BN": (normlib.BatchNormalization, {}),
    "LN-C": (normlib.LayerNormalization, {}),
    "LN": (normlib.LayerNormalization, {"axis": [1, 2, 3]}),
    "IN": (normlib.InstanceNormalization, {}),
    "GN": (normlib.GroupNormalization, {"groups": 2}),
    "RMS": (normlib.RMSNormalization, {}),
}
CENTRED = ("BN", "LN-C", "LN", "IN", "GN")


def make(method, case, shape=None, epsilon=None, plain=False):
    """A method's layer in float64, built; with random gamma and beta unless it is to be plain."""
    kind, options = METHODS[method]
    epsilon = case.epsilon if epsilon is None else epsilon
    layer = kind(**options, epsilon=epsilon, dtype="float64")
    layer.build(tuple(case.shape if shape is None else shape))
    if not plain:
        for variable in layer.trainable_variables:
            variable.assign(0.5 + tf.abs(case.normal(variable.shape)))
    return layer


def call(layer, x):
    """A call in training mode."""
    if isinstance(layer, normlib.BatchNormalization):
        return layer(x, training=True)
    return layer(x)


def pull(function, dy, *inputs):
    """The output of a function, and the gradients with which dy reaches its inputs."""
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y = function(*inputs)
    return y, tape.gradient(y, inputs, dy, unconnected_gradients="zero")


def averaged_sets(method, t):
    """The numbers of t, one row for each set that the method averages over."""
    t = np.asarray(t)
    batch, channels = t.shape[0], t.shape[-1]
    if method == "BN":
        return t.reshape(-1, channels).T
    if method == "IN":
        return np.moveaxis(t, -1, 1).reshape(batch * channels, -1)
    if method == "GN":
        return np.moveaxis(t.reshape(batch, -1, 2, channels // 2), 2, 1).reshape(batch * 2, -1)
    return t.reshape(-1, channels) if method in ("LN-C", "RMS") else t.reshape(batch, -1)


def error(actual, expected):
    """The largest difference, relative to the largest value, or to 1 where all are small."""
    actual, expected = np.asarray(actual, "float64"), np.asarray(expected, "float64")
    return float(np.max(np.abs(actual - expected)) / max(1.0, np.max(np.abs(expected))))


# --- the laws: name -> (claim, function) --------------------------------------------------------------------------

LAWS = {}


def law(claim):
    """Add a function to the laws, under its own name."""

    def add(function):
        LAWS[function.__name__] = (claim, function)
        return function

    return add


@law("dx sums to zero over every averaged set, for any ε (BN, LN, IN, GN)")
def dx_sums_to_zero(case):
    def of(method):
        layer = make(method, case)
        _, (dx,) = pull(functools.partial(call, layer), case.dy, case.x)
        sets = averaged_sets(method, dx)
        return np.max(np.abs(sets.sum(axis=1))) / max(1.0, np.max(np.abs(sets)))

    return max(of(method) for method in CENTRED)


@law("⟨dx, x̂⟩ = ε / (σ² + ε)^{3/2} ⟨γ dy, x̂⟩: zero only for ε = 0 (all)")
def dx_along_the_output_is_epsilons_share(case):
    def of(method):
        layer = make(method, case)
        gamma = layer.gamma if method == "LN" else tf.reshape(layer.gamma, [1, 1, 1, -1])
        _, (dx,) = pull(functools.partial(call, layer), case.dy, case.x)
        x, dx, d = (averaged_sets(method, t) for t in (case.x, dx, gamma * case.dy))
        x = x - x.mean(axis=1, keepdims=True) if method in CENTRED else x
        total = (x**2).mean(axis=1) + case.epsilon
        x_hat = x / np.sqrt(total)[:, None]
        share = case.epsilon / total**1.5
        size = np.sqrt((d**2).sum(axis=1) * (x_hat**2).sum(axis=1) / total)
        return np.max(
            np.abs((dx * x_hat).sum(axis=1) - share * (d * x_hat).sum(axis=1)) / np.maximum(size, 1)
        )

    return max(of(method) for method in METHODS)


@law("⟨w, dw⟩ = γ ε / (σ² + ε) dγ for each weight vector before BN")
def weights_before_bn_feel_epsilon_alone(case):
    bn = make("BN", case, (None, 4))
    w, dy = case.normal((case.rows.shape[1], 4)), case.normal((case.rows.shape[0], 4))
    _, (dw, dgamma) = pull(lambda w, _: call(bn, case.rows @ w), dy, w, bn.gamma.value)
    variance = np.var(case.rows @ w, axis=0)
    expected = bn.gamma * case.epsilon / (variance + case.epsilon) * dgamma
    return error(tf.reduce_sum(w * dw, 0), expected)


@law("BN of a·w with ε is BN of w with ε / a², and its gradient is 1/a as large")
def scaled_weights_scale_epsilon(case):
    a = 4.0
    w, dy = case.normal((case.rows.shape[1], 4)), case.normal((case.rows.shape[0], 4))
    scaled = make("BN", case, (None, 4), plain=True)
    plain = make("BN", case, (None, 4), case.epsilon / a**2, plain=True)
    y, (dw,) = pull(lambda w: call(scaled, case.rows @ w), dy, a * w)
    expected_y, (expected,) = pull(lambda w: call(plain, case.rows @ w), dy, w)
    return max(error(y, expected_y), error(a * dw, expected))


@law("⟨v, dv⟩ = 0 under WN, so each step lengthens v: |v − η dv|² = |v|² + η² |dv|²")
def directions_only_turn(case):
    v, g = case.normal((7, 4)), case.normal((1, 4))
    _, (dv, _) = pull(lambda v, g: normlib.weight_normalize(v, g, (0,)), case.normal((7, 4)), v, g)
    rate = 0.1

    def square(t):
        return tf.reduce_sum(t**2, 0)

    grown = square(v) + rate**2 * square(dv)
    return max(error(tf.reduce_sum(v * dv, 0), [0.0] * 4), error(square(v - rate * dv), grown))


@law("The Jacobian over N values has rank N − 2 (BN, LN), N − 1 (RMS), with ε = 0")
def rank_of_the_jacobian(case):
    def lost(layer, x):
        size = int(tf.size(x))
        units = np.eye(size).reshape(size, *x.shape)
        rows = [pull(functools.partial(call, layer), tf.constant(u), x)[1][0] for u in units]
        jacobian = np.array(rows).reshape(size, size)
        return size - np.linalg.matrix_rank(jacobian, tol=1e-7 * np.max(np.abs(jacobian), initial=1e-12))

    size = max(case.shape[0], 3)
    column, row = case.normal((size, 1)), case.normal((1, size))
    lost_to = [
        (2, lost(make("BN", case, (None, 1), 0.0), column)),
        (2, lost(make("LN-C", case, (None, size), 0.0), row)),
        (1, lost(make("RMS", case, (None, size), 0.0), row)),
    ]
    return float(sum(abs(expected - found) for expected, found in lost_to))


@law("Two rows: BN's dense output is a sign, and no gradient passes (ε = 0); one row: it is β")
def tiny_batches_pass_nothing(case):
    two, one = case.rows[:2], case.rows[:1]
    bn = make("BN", case, two.shape, 0.0, plain=True)
    y, (dx,) = pull(functools.partial(call, bn), case.normal(two.shape), two)
    sign = tf.sign(two - tf.reduce_mean(two, 0))
    with_beta = make("BN", case, one.shape)
    scale = 1.0 / np.min(np.std(two, axis=0))
    return max(
        error(y, sign),
        error(dx / scale, tf.zeros_like(dx)),
        error(call(with_beta, one), with_beta.beta[None]),
    )


@law("On whitened inputs WN is BN, with g = γ and b = β")
def weight_normalization_is_bn_on_whitened_inputs(case):
    x = case.rows - np.mean(case.rows, axis=0)
    values, vectors = np.linalg.eigh(
        x.T @ x / len(x) if isinstance(x, np.ndarray) else np.cov(x.numpy().T, bias=True)
    )
    white = tf.constant((np.asarray(x) @ vectors) / np.sqrt(values))
    v = case.normal((white.shape[1], 4))
    bn = make("BN", case, (None, 4), 0.0)
    w = normlib.weight_normalize(v, bn.gamma.value[None], (0,))
    return error(white @ w + bn.beta, call(bn, white @ v))


@law("BN folds exactly into the convolution before it, also with 'same' padding")
def folding_is_exact(case):
    model = keras.Sequential(
        [
            keras.layers.Input(case.shape[1:], dtype="float64"),
            keras.layers.Conv2D(3, 3, padding="same", dtype="float64"),
            normlib.BatchNormalization(epsilon=case.epsilon, dtype="float64"),
        ]
    )
    for weight in model.weights:
        weight.assign(0.5 + tf.abs(case.normal(weight.shape)))
    return error(normlib.fold(model)(case.x), model(case.x, training=False))


@law("LN is RMS normalization of the centred input")
def ln_is_rms_of_the_centred(case):
    centred = case.x - tf.reduce_mean(case.x, -1, keepdims=True)
    rms, ln = make("RMS", case, plain=True), make("LN-C", case, plain=True)
    return error(call(rms, centred), call(ln, case.x))


@law("GN of one group is LN over height, width and channels; GN of one channel a group is IN")
def gn_ends_in_ln_and_in(case):
    options = {"epsilon": case.epsilon, "dtype": "float64"}
    one, each = (normlib.GroupNormalization(groups=g, **options) for g in (1, -1))
    ln, single = make("LN", case, plain=True), make("IN", case, plain=True)
    return max(error(one(case.x), call(ln, case.x)), error(each(case.x), call(single, case.x)))


@law("BN of a single image is IN")
def bn_of_one_image_is_in(case):
    image = case.x[:1]
    bn, single = make("BN", case, plain=True), make("IN", case, plain=True)
    return error(call(bn, image), call(single, image))


@law("The mean of the gradients of two halves is the batch's gradient: all but BN")
def accumulation_is_exact_without_bn(case):
    x, dy = tf.concat([case.x, case.x[::-1] ** 2], 0), tf.concat([case.dy, case.dy[::-1]], 0)
    half = case.shape[0]

    def of(method):
        layer = make(method, case)
        gamma = layer.gamma.value

        def gradient(x, dy):
            return pull(lambda _: call(layer, x), dy, gamma)[1][0]

        return error(gradient(x[:half], dy[:half]) + gradient(x[half:], dy[half:]), gradient(x, dy))

    return max(of(method) for method in METHODS if method != "BN")


@law("An image's output does not depend on the other images: all but BN in training")
def samples_are_independent_without_bn(case):
    other = tf.concat([case.x[:1], 3.0 * case.x[1:] + 1.0], 0)

    def of(method):
        layer = make(method, case)
        return error(call(layer, other)[:1], call(layer, case.x)[:1])

    return max(of(method) for method in METHODS if method != "BN")


@law(
    "Permuting the batch permutes the outputs (all); permuting the pixels too (all but LN, whose γ has places)"
)
def permutations_pass_through(case):
    rows = case.rng.permutation(case.shape[0])
    pixels = case.rng.permutation(case.shape[1])

    def of(method):
        layer = make(method, case)
        y = call(layer, case.x)
        found = error(call(layer, tf.gather(case.x, rows)), tf.gather(y, rows))
        if method != "LN":
            moved = call(layer, tf.gather(case.x, pixels, axis=1))
            found = max(found, error(moved, tf.gather(y, pixels, axis=1)))
        return found

    return max(of(method) for method in METHODS)


@law("BN of BN is BN, but for ε: x̂ / √(σ² / (σ² + ε) + ε)")
def bn_twice(case):
    bn = make("BN", case, plain=True)
    x_hat = call(bn, case.x)
    variance = np.var(case.x, axis=(0, 1, 2))
    left = variance / (variance + case.epsilon) + case.epsilon
    return error(call(bn, x_hat), x_hat / np.sqrt(left))


@law("Moving averages that start at 0 and at 1 differ by momentum to the t after t steps")
def moving_averages_forget_their_start(case):
    momentum, steps = 0.9, 7
    layers = [
        normlib.BatchNormalization(momentum=momentum, moving_mean_initializer=start, dtype="float64")
        for start in ("zeros", "ones")
    ]
    for layer in layers:
        for _ in range(steps):
            layer(case.x, training=True)
    zeros, ones = layers
    return error(ones.moving_mean - zeros.moving_mean, [momentum**steps] * case.shape[-1])


@law("The moving variance is the biased one: N − 1 over N of the unbiased")
def moving_variance_is_biased(case):
    bn = normlib.BatchNormalization(momentum=0.0, dtype="float64")
    bn(case.x, training=True)
    count = int(np.prod(case.shape[:-1]))
    unbiased = np.var(case.x, axis=(0, 1, 2), ddof=1)
    return error(bn.moving_variance, unbiased * (count - 1) / count)


@law(
    "Gradient steps conserve: the bias before BN; the sum of all filters under LN-C; |w|² grows by η²|dw|² − 2η⟨w, dw⟩"
)
def symmetries_conserve(case):
    x = case.x
    size = (2, 2, case.shape[-1], 4)

    def trained(method):
        layer = make(method, case, (None, 1, 1, 4))
        kernel, bias = case.normal(size), case.normal((4,))
        start, rate = (kernel, bias), 0.01
        growth = tf.reduce_sum(kernel**2, (0, 1, 2))
        for _ in range(4):
            target = case.normal((1, 1, 1, 4))
            with tf.GradientTape() as tape:
                tape.watch((kernel, bias))
                h = tf.nn.conv2d(x, kernel, 1, "VALID") + bias
                loss = tf.reduce_mean(tf.sin(call(layer, h)) * target)
            dkernel, dbias = tape.gradient(loss, (kernel, bias))
            with_kernel = tf.reduce_sum(kernel * dkernel, (0, 1, 2))
            growth += rate**2 * tf.reduce_sum(dkernel**2, (0, 1, 2)) - 2 * rate * with_kernel
            kernel, bias = kernel - rate * dkernel, bias - rate * dbias
        return start, kernel, bias, growth

    start, kernel, bias, growth = trained("BN")
    found = max(error(bias, start[1]), error(tf.reduce_sum(kernel**2, (0, 1, 2)), growth))
    start, kernel, bias, _ = trained("LN-C")
    return max(
        found,
        error(tf.reduce_sum(kernel, -1), tf.reduce_sum(start[0], -1)),
        error(tf.reduce_sum(bias), tf.reduce_sum(start[1])),
    )


# --- the invariance table of convolutions -----------------------------------------------------------------------------

# Whether a normalized convolution's output stays the same, with ε = 0, in training.
# The LN paper's Table 1 says so for dense layers; in convolutions some of its entries are otherwise.
COLUMNS = ("BN", "LN-C", "LN", "IN", "GN", "RMS", "WN")
INVARIANCES = {
    "all weights × d": "yes yes yes yes yes yes yes",
    "every filter + the same kernel": "no yes no no no no no",
    "each filter × its own d": "yes no no yes no no yes",
    "each filter + its own constant": "no no no no no no no",
    "all images × d": "yes yes yes yes yes yes no",
    "all images + c, padding 'valid'": "yes no no yes no no no",
    "all images + c, padding 'same'": "no no no no no no no",
    "one image × d": "no yes yes yes yes yes no",
}

# Where Table 1 of Ba et al. (2016), which is for dense layers, says that the output stays the same, and the above not.
DENSE_ALONE = (("every filter + the same kernel", "LN"), ("all images + c, padding 'same'", "BN"))


def invariance_table(case=None):
    """How much each transformation changes each method's output.

    Returns:
        (changes, expected): float and bool arrays [transformation, method]; a change is relative to the largest output.
    """
    case = case or Case()
    size = (3, 3, case.shape[-1], 4)
    kernel, shared = case.normal(size), case.normal(size[:3])[..., None]
    factors = tf.constant(case.rng.uniform(0.5, 2.0, 4))
    one_image = tf.concat([3.0 * case.x[:1], case.x[1:]], 0)
    transformed = {
        "all weights × d": (case.x, 3.0 * kernel),
        "every filter + the same kernel": (case.x, kernel + shared),
        "each filter × its own d": (case.x, kernel * factors),
        "each filter + its own constant": (case.x, kernel + factors),
        "all images × d": (3.0 * case.x, kernel),
        "all images + c, padding 'valid'": (case.x + 3.0, kernel),
        "all images + c, padding 'same'": (case.x + 3.0, kernel),
        "one image × d": (one_image, kernel),
    }
    changes = []
    for name, (x, changed) in transformed.items():
        padding = "SAME" if "'same'" in name else "VALID"
        row = []
        for method in COLUMNS:
            before = _normalized_convolution(method, case, case.x, kernel, padding)
            after = _normalized_convolution(method, case, x, changed, padding)
            row.append(error(after, before))
        changes.append(row)
    expected = [[word == "yes" for word in INVARIANCES[name].split()] for name in transformed]
    return np.array(changes), np.array(expected)


def _normalized_convolution(method, case, x, kernel, padding):
    if method == "WN":
        kernel = normlib.weight_normalize(kernel, tf.ones([1, 1, 1, 4], "float64"), (0, 1, 2))
        return tf.nn.conv2d(x, kernel, 1, padding)
    h = tf.nn.conv2d(x, kernel, 1, padding)
    return call(make(method, case, h.shape, 0.0, plain=True), h)
