"""Exact facts about normalization, each as a function that measures by how much it fails.

A law takes a `Case` (an input, an incoming gradient, an epsilon) and returns a relative error in float64: round-off
where the law holds, and 1 where something does not differ of which a law says that it differs. The report prints them
as verdicts; the tests try them on random shapes and scales.
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


def unless(differs):
    """What a law that says 'all but these' adds: 0 where these do differ, 1 where they do not."""
    return 0.0 if differs > 1e-4 else 1.0


def with_weights_normalized(case, kernel=None):
    """A convolution under weight normalization, as a function of images."""
    kernel = case.normal((2, 2, case.shape[-1], 4)) if kernel is None else kernel
    g = 0.5 + tf.abs(case.normal((1, 1, 1, 4)))
    return lambda x: tf.nn.conv2d(x, normlib.weight_normalize(kernel, g, (0, 1, 2)), 1, "SAME")


# --- the laws: name -> (claim, function) --------------------------------------------------------------------------

LAWS = {}


def law(claim):
    """Add a function to the laws, under its own name."""

    def add(function):
        LAWS[function.__name__] = (claim, function)
        return function

    return add


def measure(case):
    """The relative error of each law, one after the other: dict name -> error."""
    return {name: function(case) for name, (_, function) in LAWS.items()}


@law("I1: dx sums to zero over every averaged set, for any ε (BN, LN, IN, GN)")
def dx_sums_to_zero(case):
    def of(method):
        layer = make(method, case)
        _, (dx,) = pull(functools.partial(call, layer), case.dy, case.x)
        sets = averaged_sets(method, dx)
        return np.max(np.abs(sets.sum(axis=1))) / max(1.0, np.max(np.abs(sets)))

    return max(of(method) for method in CENTRED)


@law("I2: ⟨dx, x̂⟩ = ε / (σ² + ε)^{3/2} ⟨γ dy, x̂⟩: zero only for ε = 0 (all)")
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


@law("I3: ⟨w, dw⟩ = γ ε / (σ² + ε) dγ for each weight vector before BN")
def weights_before_bn_feel_epsilon_alone(case):
    bn = make("BN", case, (None, 4))
    w, dy = case.normal((case.rows.shape[1], 4)), case.normal((case.rows.shape[0], 4))
    _, (dw, dgamma) = pull(lambda w, _: call(bn, case.rows @ w), dy, w, bn.gamma.value)
    variance = np.var(case.rows @ w, axis=0)
    expected = bn.gamma * case.epsilon / (variance + case.epsilon) * dgamma
    return error(tf.reduce_sum(w * dw, 0), expected)


@law("I4: BN of a·w with ε is BN of w with ε / a², and its gradient is 1/a as large")
def scaled_weights_scale_epsilon(case):
    a = 4.0
    w, dy = case.normal((case.rows.shape[1], 4)), case.normal((case.rows.shape[0], 4))
    scaled = make("BN", case, (None, 4), plain=True)
    plain = make("BN", case, (None, 4), case.epsilon / a**2, plain=True)
    y, (dw,) = pull(lambda w: call(scaled, case.rows @ w), dy, a * w)
    expected_y, (expected,) = pull(lambda w: call(plain, case.rows @ w), dy, w)
    return max(error(y, expected_y), error(a * dw, expected))


@law("I5: ⟨v, dv⟩ = 0 under WN, so each step lengthens v: |v − η dv|² = |v|² + η² |dv|²")
def directions_only_turn(case):
    v, g = case.normal((7, 4)), case.normal((1, 4))
    _, (dv, _) = pull(lambda v, g: normlib.weight_normalize(v, g, (0,)), case.normal((7, 4)), v, g)
    rate = 0.1

    def square(t):
        return tf.reduce_sum(t**2, 0)

    grown = square(v) + rate**2 * square(dv)
    return max(error(tf.reduce_sum(v * dv, 0), [0.0] * 4), error(square(v - rate * dv), grown))


@law("I6: The Jacobian over N values has rank N − 2 (BN, LN), N − 1 (RMS), with ε = 0")
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


@law("I6: Two rows: BN's dense output is a sign, and no gradient passes (ε = 0); one row: it is β")
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


@law("I7: On whitened inputs WN is BN, with g = γ and b = β: dense, and convolved over whitened patches")
def weight_normalization_is_bn_on_whitened_inputs(case):
    patches = tf.image.extract_patches(case.x, [1, 2, 2, 1], [1, 1, 1, 1], [1, 1, 1, 1], "VALID")

    def of(rows):
        flat = np.reshape(rows, (-1, rows.shape[-1]))
        flat = flat - flat.mean(axis=0)
        values, vectors = np.linalg.eigh(flat.T @ flat / len(flat))
        kept = values > 1e-9 * values.max()  # few patches span less than the whole space
        white = tf.constant((flat @ vectors[:, kept] / np.sqrt(values[kept])).reshape(*rows.shape[:-1], -1))
        v = case.normal((white.shape[-1], 4))
        bn = make("BN", case, (*[None] * (len(rows.shape) - 1), 4), 0.0)
        w = normlib.weight_normalize(v, bn.gamma.value[None], (0,))
        return error(white @ w + bn.beta, call(bn, white @ v))

    return max(of(case.rows), of(patches))


@law(
    "I8: BN folds exactly into the convolution before it, also with 'same' padding; not into a padded one after it"
)
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
    # The other way round: scale and shift of the images, folded into kernel and bias.
    kernel, scale, shift = case.normal((3, 3, case.shape[-1], 4)), 2.0, 3.0
    folded = tf.nn.conv2d(case.x, scale * kernel, 1, "SAME") + shift * tf.reduce_sum(kernel, (0, 1, 2))
    behind = error(folded, tf.nn.conv2d(scale * case.x + shift, kernel, 1, "SAME"))
    return max(error(normlib.fold(model)(case.x), model(case.x, training=False)), unless(behind))


@law("I9: LN is RMS normalization of the centred input")
def ln_is_rms_of_the_centred(case):
    centred = case.x - tf.reduce_mean(case.x, -1, keepdims=True)
    rms, ln = make("RMS", case, plain=True), make("LN-C", case, plain=True)
    return error(call(rms, centred), call(ln, case.x))


@law("I9: GN of one group is LN over height, width and channels; GN of one channel a group is IN")
def gn_ends_in_ln_and_in(case):
    options = {"epsilon": case.epsilon, "dtype": "float64"}
    one, each = (normlib.GroupNormalization(groups=g, **options) for g in (1, -1))
    ln, single = make("LN", case, plain=True), make("IN", case, plain=True)
    return max(error(one(case.x), call(ln, case.x)), error(each(case.x), call(single, case.x)))


@law("I9: BN of a single image is IN")
def bn_of_one_image_is_in(case):
    image = case.x[:1]
    bn, single = make("BN", case, plain=True), make("IN", case, plain=True)
    return error(call(bn, image), call(single, image))


@law("I10: The mean of the gradients of two halves is the batch's gradient: all, WN too, but BN")
def accumulation_is_exact_without_bn(case):
    x, dy = tf.concat([case.x, case.x[::-1] ** 2], 0), tf.concat([case.dy, case.dy[::-1]], 0)
    half = case.shape[0]

    def of(function, parameter, dy):
        def gradient(x, dy):
            return pull(lambda p: function(x, p), dy, parameter)[1][0]

        return error(gradient(x[:half], dy[:half]) + gradient(x[half:], dy[half:]), gradient(x, dy))

    def of_method(method):
        layer = make(method, case)
        return of(lambda x, _: call(layer, x), layer.gamma.value, dy)

    v, dw = case.normal((2, 2, case.shape[-1], 4)), case.normal((*x.shape[:-1], 4))
    of_wn = of(lambda x, v: with_weights_normalized(Case(case.seed, case.shape), v)(x), v, dw)
    return max(of_wn, *(of_method(m) for m in METHODS if m != "BN"), unless(of_method("BN")))


@law("I11: An image's output does not depend on the other images: all, WN too, but BN in training")
def samples_are_independent_without_bn(case):
    other = tf.concat([case.x[:1], 3.0 * case.x[1:] + 1.0], 0)

    def of(function):
        return error(function(other)[:1], function(case.x)[:1])

    functions = {m: functools.partial(call, make(m, case)) for m in METHODS}
    in_training, inferring = functions.pop("BN"), functools.partial(make("BN", case), training=False)
    alone = [*functions.values(), with_weights_normalized(case), inferring]
    return max(*map(of, alone), unless(of(in_training)))


@law(
    "I12: Permuting the batch permutes the outputs (all); permuting the pixels too (all but LN, whose γ has places)"
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


@law("I13: BN of BN is BN, but for ε: x̂ / √(σ² / (σ² + ε) + ε); LN and BN do not commute")
def bn_twice(case):
    bn, ln = make("BN", case, plain=True), make("LN-C", case, plain=True)
    x_hat = call(bn, case.x)
    variance = np.var(case.x, axis=(0, 1, 2))
    left = variance / (variance + case.epsilon) + case.epsilon
    commuting = error(call(bn, call(ln, case.x)), call(ln, call(bn, case.x)))
    return max(error(call(bn, x_hat), x_hat / np.sqrt(left)), unless(commuting))


@law("I14: Moving averages that start at 0 and at 1 differ by momentum to the t after t steps")
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


@law("I15: The moving variance is the biased one: N − 1 over N of the unbiased")
def moving_variance_is_biased(case):
    bn = normlib.BatchNormalization(momentum=0.0, dtype="float64")
    bn(case.x, training=True)
    count = int(np.prod(case.shape[:-1]))
    unbiased = np.var(case.x, axis=(0, 1, 2), ddof=1)
    return error(bn.moving_variance, unbiased * (count - 1) / count)


# --- what symmetries conserve -----------------------------------------------------------------------------------------

# method -> (groups of channels whose outputs do not feel a common shift or length, averaged axes, whether centred), for
# images with the channels split in groups: [batch, height, width, group, channel of the group]. groups 0: each channel.
SYMMETRIES = {
    "BN": (0, (0, 1, 2, 4), True),
    "IN": (0, (1, 2, 4), True),
    "GN": (2, (1, 2, 4), True),
    "LN": (1, (1, 2, 4), True),
    "LN-C": (1, (4,), True),
    "RMS": (1, (4,), False),
}


def radial_gradient(symmetry, h, standardized, dy, epsilon):
    """<w, dw> + <b, db> of the kernel and bias that make h, one number for each group: epsilon's share of the gradient
    that reaches the output, and zero without epsilon.

    Args:
        symmetry: of SYMMETRIES.
        h: input of the normalization.
        standardized: its output without beta, gamma * x_hat.
        dy: gradient with respect to its output.
        epsilon: of the normalization.
    """
    groups, axes, centred = symmetry
    shape = [*h.shape[:3], groups or h.shape[3], h.shape[3] // (groups or h.shape[3])]
    h, radial = tf.reshape(h, shape), tf.reshape(dy * standardized, shape)
    second = tf.math.reduce_variance if centred else lambda h, *a, **k: tf.reduce_mean(h**2, *a, **k)
    variance = second(h, axes, keepdims=True)
    felt = epsilon / (variance + epsilon) * tf.reduce_sum(radial, axes, keepdims=True)
    return tf.reduce_sum(felt, (0, 1, 2, 4))


def by_group(symmetry, t):
    """Sum over all but the last axis, and over each group of the last one."""
    sums = tf.reduce_sum(t, list(range(t.shape.rank - 1)))
    return tf.reduce_sum(tf.reshape(sums, [symmetry[0] or sums.shape[0], -1]), 1)


@law(
    "I16: Gradient steps conserve the sum of the biases of each group that is centred together (BN, IN: each; GN, LN), "
    "not of others (RMS, WN); the sum of all filters under LN-C alone; and |w|² + |b|² of a group, but for the step's "
    "own square and ε's share; under WN |v|² exactly"
)
def symmetries_conserve(case):
    size, rate = (2, 2, case.shape[-1], 4), 0.01

    def trained(method):
        symmetry = SYMMETRIES.get(method, (0,))
        layer = None if method == "WN" else make(method, case, (None, *case.shape[1:3], 4))
        kernel, bias, g = case.normal(size), case.normal((4,)), 0.5 + tf.abs(case.normal((1, 1, 1, 4)))
        start, grown = (kernel, bias), 0.0
        for _ in range(3):
            target = case.normal((*case.shape[:3], 4))
            with tf.GradientTape() as tape:
                tape.watch((kernel, bias))
                w = kernel if layer else normlib.weight_normalize(kernel, g, (0, 1, 2))
                h = tf.nn.conv2d(case.x, w, 1, "SAME") + bias
                y = call(layer, h) if layer else h
                loss = tf.reduce_mean(tf.sin(y) * target)
            dy, dkernel, dbias = tape.gradient(loss, (y, kernel, bias))
            grown += rate**2 * by_group(symmetry, dkernel**2)
            if layer:
                beta = getattr(layer, "beta", None)
                standardized = y if beta is None else y - beta
                radial = radial_gradient(symmetry, h, standardized, dy, case.epsilon)
                grown += rate**2 * by_group(symmetry, dbias**2) - 2 * rate * radial
            kernel, bias = kernel - rate * dkernel, bias - rate * dbias
        square = [
            by_group(symmetry, k**2) + (by_group(symmetry, b**2) if layer else 0)
            for k, b in (start, (kernel, bias))
        ]
        return (
            error(square[1] - square[0], grown),
            error(by_group(symmetry, bias), by_group(symmetry, start[1])),
            error(tf.reduce_sum(kernel, -1), tf.reduce_sum(start[0], -1)),
        )

    found = 0.0
    for method in (*METHODS, "WN"):
        length, biases, filters = trained(method)
        moves, stays = [], [length]
        (moves if method in ("RMS", "WN") else stays).append(biases)
        (stays if method == "LN-C" else moves).append(filters)
        found = max(found, *stays, *(0.0 if moved > TOLERANCE else 1.0 for moved in moves))
    return found


# --- the invariance table of convolutions -----------------------------------------------------------------------------

# I17: whether a normalized convolution's output stays the same, with ε = 0; in training, but for the column of BN's
# inference, which is an affine map. WS: the kernel standardized (Qiao et al. 2019).
# The LN paper's Table 1 says so for dense layers; in convolutions some of its entries are otherwise.
COLUMNS = ("BN", "LN-C", "LN", "IN", "GN", "RMS", "WN", "WS", "BN, inference")
INVARIANCES = {
    "all weights × d": "yes yes yes yes yes yes yes yes no",
    "every filter + the same kernel": "no yes no no no no no no no",
    "each filter × its own d": "yes no no yes no no yes yes no",
    "each filter + its own constant": "no no no no no no no yes no",
    "all images × d": "yes yes yes yes yes yes no no no",
    "all images + c, padding 'valid'": "yes no no yes no no no yes no",
    "all images + c, padding 'same'": "no no no no no no no no no",
    "one image × d": "no yes yes yes yes yes no no no",
}


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
    if method == "WS":
        kernel = normlib.standardize(kernel, (0, 1, 2), 0.0)[0]
    h = tf.nn.conv2d(x, kernel, 1, padding)
    if method in ("WN", "WS"):
        return h
    if method == "BN, inference":
        return make("BN", case, h.shape, 0.0, plain=True)(h, training=False)
    return call(make(method, case, h.shape, 0.0, plain=True), h)
