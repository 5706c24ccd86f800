"""The examination of a reader's own layer: equal layers pass, planted faults are found and named."""

import json
import sys

import keras
import pytest
import tensorflow as tf

from study import equivalence, examination, faulty, network, training

BATCH, LAYER = "keras.layers:BatchNormalization", "keras.layers:LayerNormalization"
WEIGHT = network.REFERENCES["WN"]["norm"]
BASE = training.Run(sample=True, steps=6, batch_size=20)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def one_cache(own_cache, shared, monkeypatch):
    """The reference is trained once for all tests of this module."""
    monkeypatch.setenv("NORMLIB_CACHE", shared)


def examine(candidate, reference=BATCH, options=(), own=()):
    return examination.examine(candidate, reference, options, BASE.steps, jobs=1, base=BASE, own=tuple(own))


def verdicts(certificate):
    return dict(zip(certificate.checks.check, certificate.checks.verdict, strict=True))


# --- equal layers ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("candidate", "reference", "options"),
    [
        ("normlib:BatchNormalization", BATCH, ()),
        ("normlib:LayerNormalization", LAYER, (("axis", [1, 2, 3]),)),
        ("normlib:WeightNormalization", WEIGHT, ()),
        ("study.faulty:FaultyBatchNormalization", BATCH, ()),
    ],
)
def test_equal_layers_are_the_same(candidate, reference, options):
    certificate = examine(candidate, reference, options)
    assert certificate.same, certificate.text()
    assert certificate.causes == ()
    assert json.loads(certificate.json())["same"] is True
    trained = [name for name in verdicts(certificate) if "training" in name or "steps, float32" in name]
    assert len(trained) == 2


# --- planted faults, through the whole examination -----------------------------------------------------------------

PLANTED = [
    (f"study.faulty:Faulty{kind}Normalization", reference, {"fault": name}, text)
    for kind, reference, faults in (
        ("Batch", BATCH, faulty.FAULTS),
        (
            "Layer",
            LAYER,
            {f: faulty.FAULTS[f] for f in ("unbiased variance", "parameters of the whole sample")},
        ),
        ("Weight", WEIGHT, faulty.WEIGHT_FAULTS),
    )
    for name, text in faults.items()
    if name not in ("none", "one-pass variance")  # which give the same but for round-off
] + [
    ("normlib:BatchNormalization", BATCH, {"epsilon": 2e-4}, "epsilon is 0.0002 rather than 0.001"),
    (
        "normlib:BatchNormalization",
        BATCH,
        {"epsilon": 1e-5, "momentum": 0.97},
        "epsilon is 1e-05 rather than 0.001. Its momentum is 0.97 rather than 0.99",
    ),
    ("normlib:BatchNormalization", BATCH, {"momentum": 0.01}, "momentum is the weight of the new value"),
    (
        "normlib:LayerNormalization",
        LAYER,
        {"axis": (1, 2)},
        "shapes [(6, 5), (6, 5)] rather than [(4,), (4,)]. It norm",
    ),
    ("normlib:LayerNormalization", LAYER, {"axis": 1}, "normalizes axis 1"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("candidate", "reference", "own", "cause"), PLANTED)
def test_each_planted_fault_is_found_and_named(candidate, reference, own, cause):
    certificate = examine(candidate, reference, own=own.items())
    assert not certificate.same
    assert cause in " ".join(certificate.causes), certificate.text()
    assert cause in certificate.sentence
    json.loads(certificate.json(), parse_constant=pytest.fail)  # no NaN


@pytest.mark.slow
def test_float32_has_the_power_to_see_another_epsilon():
    found = verdicts(examine("normlib:BatchNormalization", own=[("epsilon", 1e-5)]))
    assert found["its first 5 steps, float32"] == "differs"
    assert found["output, float32"] == "differs"


class ListedTwice(keras.layers.BatchNormalization):
    @property
    def trainable_variables(self):
        return super().trainable_variables * 2


class WrongInInference(keras.layers.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=training) + (0.0 if training else 0.5)


class LosesCount(keras.layers.BatchNormalization):
    """Right in its first call in training, and then not any more."""

    def build(self, shape):
        super().build(shape)
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, dtype="int32")

    def call(self, inputs, training=None, mask=None):
        y = super().call(inputs, training=training)
        if training:
            later = tf.cast(self.calls > 0, self.moving_mean.dtype)
            self.moving_mean.assign_add(later * tf.ones_like(self.moving_mean))
            self.calls.assign_add(1)
        return y


class Crashes(keras.layers.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        raise RuntimeError("no idea")


class Leaves(keras.layers.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        sys.exit(0)


class OtherSignature(keras.layers.Layer):
    def __init__(self, height, channels, **options):
        super().__init__(**options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("candidate", "differing", "message"),
    [
        ("ListedTwice", {"updates at a step"}, "listed 2 times, so that an optimizer updates it repeatedly"),
        ("WrongInInference", {"inference, float32", "inference, float64"}, "wrong in inference alone"),
        ("LosesCount", {"moving statistics after it"}, "No known cause fits."),
    ],
)
def test_what_one_call_in_training_does_not_show_is_found(candidate, differing, message):
    certificate = examine(f"{__name__}:{candidate}")
    found = verdicts(certificate)
    found.pop("saving and loading")
    assert {name for name, verdict in found.items() if verdict != "same"} == differing, certificate.text()
    assert message in certificate.sentence


@pytest.mark.parametrize(("candidate", "message"), [("Crashes", "no idea"), ("Leaves", "SystemExit: 0")])
def test_a_layer_that_crashes_is_reported_and_not_trained(candidate, message):
    certificate = examine(f"{__name__}:{candidate}")
    found = verdicts(certificate)
    assert found["output, float64"] == "fails"
    assert not any("training" in name for name in found)
    assert message in certificate.text()


@pytest.mark.parametrize(
    ("candidate", "reference", "message"),
    [
        (
            f"{__name__}:OtherSignature",
            BATCH,
            "missing 2 required positional arguments: 'height' and 'channels'",
        ),
        ("normlib:WeightNormalization", BATCH, "two layers, or two wrappers of layers with a kernel"),
        ("math:sqrt", BATCH, "TypeError"),
    ],
)
def test_what_cannot_be_compared_gets_one_clear_line(candidate, reference, message):
    certificate = examine(candidate, reference)
    assert list(verdicts(certificate).items()) == [("making and building", "fails")]
    assert message in certificate.checks.note[0]
    assert json.loads(certificate.json())["checks"][0]["measured"] is None


# --- layers written by hand: faults that are not the examination's own ----------------------------------------------


class OwnBatch(keras.layers.Layer):
    """Batch normalization at its plainest; a faulty one does one step of it otherwise."""

    method = "BN"

    def __init__(self, epsilon=1e-3, momentum=0.99, **options):
        super().__init__(**options)
        self.epsilon, self.momentum = epsilon, momentum

    def sizes(self, shape):
        return shape[-1:]

    def build(self, shape):
        size = self.sizes(shape)
        self.gamma = self.add_weight(shape=size, initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=size, initializer="zeros", name="beta")
        kept = {"shape": shape[-1:], "trainable": False}
        self.moving_mean = self.add_weight(**kept, initializer="zeros", name="moving_mean")
        self.moving_variance = self.add_weight(**kept, initializer="ones", name="moving_variance")

    def statistics(self, x):
        mean = tf.reduce_mean(x, self.averaged(x), keepdims=True)
        return mean, tf.reduce_mean((x - mean) ** 2, self.averaged(x), keepdims=True)

    def averaged(self, x):
        return list(range(x.shape.rank - 1))

    def average(self, moving, new, momentum):
        new = tf.reshape(tf.stop_gradient(new), moving.shape)
        moving.assign(momentum * moving + (1.0 - momentum) * new)

    def output(self, x, mean, variance):
        return self.gamma * (x - mean) / tf.sqrt(variance + self.epsilon) + self.beta

    def call(self, inputs, training=False):
        if not training:
            return self.output(inputs, self.moving_mean, self.moving_variance)
        mean, variance = self.statistics(inputs)
        self.average(self.moving_mean, mean, self.momentum)
        self.average(self.moving_variance, variance, self.momentum)
        return self.output(inputs, mean, variance)

    def get_config(self):
        return super().get_config() | {"epsilon": self.epsilon, "momentum": self.momentum}


def unbiased(variance, x):
    count = tf.cast(tf.size(x) / tf.size(variance), x.dtype)
    return variance * count / (count - 1.0)


class DefaultEpsilon(OwnBatch):
    """Given an epsilon, it has its own."""

    def __init__(self, epsilon=None, **options):
        super().__init__(**options)


class Unbiased(OwnBatch):
    def statistics(self, x):
        mean, variance = super().statistics(x)
        return mean, unbiased(variance, x)


class UnbiasedInTheOutput(OwnBatch):
    def output(self, x, mean, variance):
        return super().output(x, mean, unbiased(variance, x) if variance.shape.rank > 1 else variance)


class UnbiasedInTheAverage(OwnBatch):
    """As in PyTorch."""

    def call(self, inputs, training=False):
        before = tf.convert_to_tensor(self.moving_variance)
        y = super().call(inputs, training)
        if training:
            self.moving_variance.assign(before)
            variance = self.statistics(inputs)[1]
            self.average(self.moving_variance, unbiased(variance, inputs), self.momentum)
        return y


class MomentumReversed(OwnBatch):
    def average(self, moving, new, momentum):
        super().average(moving, new, 1.0 - momentum)


class VarianceKept(OwnBatch):
    """Only the mean is averaged with the momentum: the variance is that of the last batch."""

    def average(self, moving, new, momentum):
        super().average(moving, new, 0.0 if moving is self.moving_variance else momentum)


class MeanDetached(OwnBatch):
    def statistics(self, x):
        mean = tf.stop_gradient(tf.reduce_mean(x, self.averaged(x), keepdims=True))
        return mean, tf.reduce_mean((x - mean) ** 2, self.averaged(x), keepdims=True)


class VarianceDetached(OwnBatch):
    def statistics(self, x):
        mean, variance = super().statistics(x)
        return mean, tf.stop_gradient(variance)


class Detached(OwnBatch):
    def statistics(self, x):
        return [tf.stop_gradient(statistic) for statistic in super().statistics(x)]


class EpsilonOutside(OwnBatch):
    def output(self, x, mean, variance):
        return self.gamma * (x - mean) / (tf.sqrt(variance) + self.epsilon) + self.beta


class EachImage(OwnBatch):
    """Instance normalization in training, with moving averages of its statistics."""

    def averaged(self, x):
        return [1, 2]

    def average(self, moving, new, momentum):
        super().average(moving, tf.reduce_mean(new, 0), momentum)


class OtherAxis(OwnBatch):
    """The rows of an image for its channels."""

    def build(self, shape):
        super().build((shape[0], shape[2], shape[3], shape[1]))

    def call(self, inputs, training=False):
        y = super().call(tf.transpose(inputs, [0, 2, 3, 1]), training)
        return tf.transpose(y, [0, 3, 1, 2])


class GammaOfEachPlace(OwnBatch):
    def sizes(self, shape):
        return shape[1:]


class BetaFirst(OwnBatch):
    names = ("beta", "gamma", "moving_variance", "moving_mean")

    def build(self, shape):
        for told, start, name in zip(
            self.names, ("zeros", "ones", "ones", "zeros"), BetaFirst.names, strict=True
        ):
            trained = name in ("beta", "gamma")
            weight = self.add_weight(shape=shape[-1:], initializer=start, name=told, trainable=trained)
            setattr(self, name, weight)


class NamedOtherwise(BetaFirst):
    """As in PyTorch, and in another order."""

    names = ("bias", "weight", "running_var", "running_mean")


class ReversedAndNamedOtherwise(NamedOtherwise, MomentumReversed):
    """As in PyTorch."""


class Inside(keras.layers.Layer):
    """A layer in which Keras's does the work; it has no build of its own."""

    method = "BN"

    def __init__(self, epsilon=1e-3, momentum=0.99, **options):
        super().__init__(**options)
        self.inner = keras.layers.BatchNormalization(epsilon=epsilon, momentum=momentum)  # of what dtype?
        self.epsilon, self.momentum = epsilon, momentum

    def call(self, inputs, training=None):
        return self.inner(inputs, training=training)

    def get_config(self):
        return super().get_config() | {"epsilon": self.epsilon, "momentum": self.momentum}


class VarianceNotANumber(OwnBatch):
    def average(self, moving, new, momentum):
        factor = float("nan") if moving is self.moving_variance else 1.0
        super().average(moving, new * factor, momentum)


class GradientNotANumber(OwnBatch):
    def output(self, x, mean, variance):
        @tf.custom_gradient
        def same(y):
            return tf.identity(y), lambda dy: dy * float("nan")

        return super().output(same(x), mean, variance)


class ReturnsMore(OwnBatch):
    def output(self, x, mean, variance):
        return super().output(x, mean, variance), mean


class ReturnsAList(OwnBatch):
    def output(self, x, mean, variance):
        return [super().output(x, mean, variance)]


class OtherShape(OwnBatch):
    def output(self, x, mean, variance):
        return super().output(x, mean, variance)[:, None]


class UpdatesTwice(OwnBatch):
    def average(self, moving, new, momentum):
        super().average(moving, new, momentum)
        super().average(moving, new, momentum)


class NeverUpdates(OwnBatch):
    def average(self, moving, new, momentum):
        pass


class MeanNeverUpdated(OwnBatch):
    def average(self, moving, new, momentum):
        super().average(moving, new, 1.0 if moving is self.moving_mean else momentum)


class UpdatesInInference(OwnBatch):
    def call(self, inputs, training=False):
        if not training:
            y = self.output(inputs, tf.convert_to_tensor(self.moving_mean), self.moving_variance)
            self.average(self.moving_mean, self.statistics(inputs)[0], self.momentum)
            return y
        return super().call(inputs, training)


class BatchInInferenceToo(OwnBatch):
    """Statistics of the batch in inference, and averaged there."""

    def call(self, inputs, training=False):
        return super().call(inputs, True)


class StartsFromZero(OwnBatch):
    def build(self, shape):
        super().build(shape)
        self.moving_variance.assign(tf.zeros_like(self.moving_variance))


class OnePass(OwnBatch):
    def statistics(self, x):
        mean, square = (tf.reduce_mean(t, self.averaged(x), keepdims=True) for t in (x, x**2))
        return mean, square - mean**2


class OtherEachTime(OwnBatch):
    def output(self, x, mean, variance):
        return super().output(x, mean, variance) + tf.random.normal(x.shape, stddev=0.1, dtype=x.dtype)


class KnowsNoTraining(OwnBatch):
    def call(self, inputs, **options):
        return super().call(inputs, options.get("training", False))


class InFloat32(OwnBatch):
    def statistics(self, x):
        return [tf.cast(t, x.dtype) for t in super().statistics(tf.cast(x, "float32"))]


class OneGamma(OwnBatch):
    def sizes(self, shape):
        return (1,)


class OwnLayer(keras.layers.Layer):
    """Layer normalization of whole images at its plainest."""

    method, over = "LN", (1, 2, 3)

    def __init__(self, axis=-1, epsilon=1e-3, **options):
        super().__init__(**options)
        self.axis, self.epsilon = axis, epsilon

    def build(self, shape):
        self.gamma = self.add_weight(shape=self.sizes(shape), initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=self.sizes(shape), initializer="zeros", name="beta")

    def sizes(self, shape):
        return shape[1:]

    def statistics(self, x):
        mean = tf.reduce_mean(x, self.over, keepdims=True)
        return mean, tf.reduce_mean((x - mean) ** 2, self.over, keepdims=True)

    def call(self, inputs):
        mean, variance = self.statistics(inputs)
        return self.gamma * (inputs - mean) / tf.sqrt(variance + self.epsilon) + self.beta

    def get_config(self):
        return super().get_config() | {"axis": self.axis, "epsilon": self.epsilon}


class LayerUnbiased(OwnLayer):
    def statistics(self, x):
        mean, variance = super().statistics(x)
        return mean, unbiased(variance, x)


class LayerDetached(OwnLayer):
    def statistics(self, x):
        return [tf.stop_gradient(statistic) for statistic in super().statistics(x)]


class LayerDefaultEpsilon(OwnLayer):
    def __init__(self, epsilon=None, **options):
        super().__init__(**options)


class LayerOfEachPixel(OwnLayer):
    """Over the channels alone, with gamma and beta of the whole image."""

    over = (3,)


class LayerOfChannels(OwnLayer):
    """Over the channels alone, and so gamma and beta."""

    over = (3,)

    def sizes(self, shape):
        return shape[-1:]


class LayerGammaOfChannels(OwnLayer):
    def sizes(self, shape):
        return shape[-1:]


class ParametersFirst(OwnBatch):
    def call(self, inputs, training=False):
        return super().call(self.gamma * inputs + self.beta, training)

    def output(self, x, mean, variance):
        return (x - mean) / tf.sqrt(variance + self.epsilon)


class ParametersExchanged(OwnLayer):
    def call(self, inputs):
        mean, variance = self.statistics(inputs)
        return self.beta * (inputs - mean) / tf.sqrt(variance + self.epsilon) + self.gamma


class SumOfSquares(OwnBatch):
    def statistics(self, x):
        mean = tf.reduce_mean(x, self.averaged(x), keepdims=True)
        return mean, tf.reduce_sum((x - mean) ** 2, self.averaged(x), keepdims=True)


class LayerNeverCentred(OwnLayer):
    def statistics(self, x):
        square = tf.reduce_mean(x**2, self.over, keepdims=True)
        return tf.zeros_like(square), square


class LayerOfTheBatch(OwnLayer):
    over = (0, 1, 2, 3)


class CutOff(OwnLayer):
    def call(self, inputs):
        return tf.clip_by_value(super().call(inputs), 0.0, 2.0)


class InFloat16(OwnBatch):
    def output(self, x, mean, variance):
        return tf.cast(tf.cast(super().output(x, mean, variance), "float16"), x.dtype)


class OwnGroup(keras.layers.Layer):
    """Group normalization at its plainest, by a reshape."""

    method, over = "GN", (1, 2, 4)

    def __init__(self, groups=2, epsilon=1e-3, **options):
        super().__init__(**options)
        self.groups, self.epsilon = groups, epsilon

    def build(self, shape):
        self.gamma = self.add_weight(shape=shape[-1:], initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=shape[-1:], initializer="zeros", name="beta")

    def split(self, x):
        _, height, width, channels = x.shape
        return tf.reshape(x, (-1, height, width, self.groups, channels // self.groups))

    def variance(self, deviation):
        return tf.reduce_mean(deviation**2, self.over, keepdims=True)

    def call(self, inputs):
        x = self.split(inputs)
        deviation = x - tf.reduce_mean(x, self.over, keepdims=True)
        x_hat = deviation / tf.sqrt(self.variance(deviation) + self.epsilon)
        return self.gamma * tf.reshape(x_hat, (-1, *inputs.shape[1:])) + self.beta

    def get_config(self):
        return super().get_config() | {"groups": self.groups, "epsilon": self.epsilon}


class GroupInterleaved(OwnGroup):
    """The two last axes of the reshape have changed places."""

    over = (1, 2, 3)

    def split(self, x):
        _, height, width, channels = x.shape
        return tf.reshape(x, (-1, height, width, channels // self.groups, self.groups))


class GroupOfEachPosition(OwnGroup):
    over = (4,)


class GroupOfTheBatch(OwnGroup):
    over = (0, 1, 2, 4)


class GroupUnbiased(OwnGroup):
    def variance(self, deviation):
        return unbiased(super().variance(deviation), deviation)


class OneGroup(OwnGroup):
    def __init__(self, groups=2, **options):
        super().__init__(1, **options)


class GroupsDetached(OwnGroup):
    def variance(self, deviation):
        return tf.stop_gradient(super().variance(deviation))


class OwnRMS(keras.layers.Layer):
    """RMS normalization at its plainest."""

    method = "RMS"

    def __init__(self, epsilon=1e-6, **options):
        super().__init__(**options)
        self.epsilon = epsilon

    def build(self, shape):
        self.scale = self.add_weight(shape=shape[-1:], initializer="ones", name="scale")

    def centred(self, x):
        return x

    def mean_square(self, x):
        return tf.reduce_mean(x**2, -1, keepdims=True)

    def call(self, inputs):
        x = self.centred(inputs)
        return self.scale * x / tf.sqrt(self.mean_square(x) + self.epsilon)

    def get_config(self):
        return super().get_config() | {"epsilon": self.epsilon}


class RMSCentred(OwnRMS):
    def centred(self, x):
        return x - tf.reduce_mean(x, -1, keepdims=True)


class RMSOfTheSum(OwnRMS):
    def mean_square(self, x):
        return tf.reduce_sum(x**2, -1, keepdims=True)


class RMSDetached(OwnRMS):
    def mean_square(self, x):
        return tf.stop_gradient(super().mean_square(x))


class RMSPlusOne(OwnRMS):
    """As in Gemma, of which the scale starts from 0."""

    def call(self, inputs):
        return (1.0 + self.scale) * inputs / tf.sqrt(self.mean_square(inputs) + self.epsilon)


class RMSWithoutRoot(OwnRMS):
    def call(self, inputs):
        return self.scale * inputs / (self.mean_square(inputs) + self.epsilon)


class OwnWeight(keras.layers.Wrapper):
    """Weight normalization of a convolution or a dense layer at its plainest."""

    method, name_of_g = "WN", "g"

    def build(self, shape=None):
        super().build(shape)
        self.g = self.add_weight(shape=self.sizes(), initializer=self.start, name=self.name_of_g)

    def start(self, shape, dtype=None):
        length = OwnWeight.length(self, tf.convert_to_tensor(self.layer.kernel))
        return length if length.shape == shape else tf.ones(shape, dtype)

    def sizes(self):
        return self.layer.kernel.shape[-1:]

    def length(self, v):
        return tf.sqrt(tf.reduce_sum(v**2, list(range(v.shape.rank - 1))))

    def call(self, inputs):
        v = tf.convert_to_tensor(self.layer.kernel)
        w = self.g * v / self.length(v)
        flat = v.shape.rank == 2
        y = inputs @ w if flat else tf.nn.conv2d(inputs, w, 1, self.layer.padding.upper())
        return y + self.layer.bias


class LayerOfFeatures(OwnLayer):
    """Each pixel; its parameters are made at once, of the size that it is given."""

    over = -1

    def __init__(self, features, epsilon=1e-3, **options):
        super().__init__(epsilon=epsilon, **options)
        self.features = features
        super().build((features,))

    def sizes(self, shape):
        return (self.features,)

    def build(self, shape):
        pass

    def get_config(self):
        sized = {"features": self.features, "epsilon": self.epsilon}
        return keras.layers.Layer.get_config(self) | sized


class LayerOfItsOwnDtype(OwnLayer):
    """Takes none of the arguments that Keras's layers take."""

    over = -1

    def __init__(self, epsilon=1e-3):
        super().__init__(epsilon=epsilon)

    def sizes(self, shape):
        return shape[-1:]


class WeightOfItsOwnDtype(OwnWeight):
    def __init__(self, layer):
        super().__init__(layer)


class BatchToldOfTraining(keras.layers.Layer):
    """As in a textbook: fixed numbers, and a call that must be told whether it trains."""

    build, sizes = OwnBatch.build, OwnBatch.sizes

    def call(self, inputs, training):
        mean, variance = self.moving_mean, self.moving_variance
        if training:
            mean, variance = tf.nn.moments(inputs, [0, 1, 2])
            for moving, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(0.9 * moving + 0.1 * new)
        return self.gamma * (inputs - mean) / tf.sqrt(variance + 1e-5) + self.beta


class WeightDetached(OwnWeight):
    def length(self, v):
        return tf.stop_gradient(super().length(v))


class WeightOfTheFirstAxis(OwnWeight):
    def length(self, v):
        return tf.sqrt(tf.reduce_sum(v**2, 0, keepdims=True))


class WeightWithEpsilon(OwnWeight):
    def length(self, v):
        return tf.sqrt(tf.reduce_sum(v**2, [0, 1, 2]) + 1e-3)


class WeightWithOneLength(OwnWeight):
    def length(self, v):
        return tf.norm(v)


class WeightWithASmallEpsilon(OwnWeight):
    def length(self, v):
        return tf.sqrt(tf.reduce_sum(v**2, [0, 1, 2]) + 1e-6)


class WeightStartsAtOne(OwnWeight):
    def start(self, shape, dtype=None):
        return tf.ones(shape, dtype)


class WeightNamedOtherwise(OwnWeight):
    """As in PyTorch."""

    name_of_g = "weight_g"


class WeightWithOneG(OwnWeight):
    def sizes(self):
        return (1,)


@pytest.fixture
def untrained(monkeypatch):
    """The cause is named from one call: without the training, the examination takes a second."""
    equal = {"float64": 0.0, "moving": 0.0, "early": {}}
    monkeypatch.setattr(equivalence, "paired_training", lambda *_, **__: equal)


OTHERS = {
    "GN": {"norm": "keras.layers:GroupNormalization", "options": (("groups", 2),)},
    "RMS": {"norm": "keras.layers:RMSNormalization", "options": ()},
}


def examine_own(candidate):
    reference = (network.REFERENCES | OTHERS)[candidate.method]
    options = () if candidate.method == "WN" else reference["options"]
    return examine(f"{__name__}:{candidate.__name__}", reference["norm"], options)


@pytest.mark.parametrize(
    "candidate",
    [OwnBatch, OwnLayer, OwnGroup, OwnRMS, OwnWeight, BetaFirst, NamedOtherwise, WeightNamedOtherwise],
)
def test_a_right_layer_written_by_hand_is_the_same(candidate, untrained):
    certificate = examine_own(candidate)
    assert certificate.same, certificate.text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("candidate", "reference", "verdict"),
    [
        (LayerOfFeatures, LAYER, "same"),
        (LayerOfItsOwnDtype, LAYER, "fails"),
        (WeightOfItsOwnDtype, WEIGHT, "fails"),
    ],
)
def test_a_layer_need_not_take_what_keras_s_do(candidate, reference, verdict):
    """But what Keras saves of it, it then cannot take."""
    certificate = examine(f"{__name__}:{candidate.__name__}", reference)
    found = verdicts(certificate)
    assert found.pop("saving and loading") == verdict
    assert set(found.values()) == {"same"}, certificate.text()
    assert ("unexpected keyword argument" in "".join(certificate.checks.note)) == (verdict == "fails")


def test_a_textbook_s_layer_is_not_trained_and_its_numbers_are_named():
    certificate = examine(f"{__name__}:BatchToldOfTraining")
    assert verdicts(certificate)["paired training, float64"] == "fails"
    assert "single required positional argument" in "".join(certificate.checks.note)
    assert certificate.causes == (
        "Its epsilon is 1e-05 rather than 0.001.",
        "Its momentum is 0.9 rather than 0.99.",
    )


def test_layers_inside_a_layer_are_examined_too(untrained):
    certificate = examine_own(Inside)
    found = verdicts(certificate)
    found.pop("saving and loading")  # Keras warns of a layer without a `build`
    assert set(found.values()) == {"same"}, certificate.text()
    assert not certificate.causes


CHANNELS, IMAGES = "[(4,), (4,)]", "[(6, 5, 4), (6, 5, 4)]"  # the shapes of gamma and beta


@pytest.mark.parametrize(
    ("candidate", "cause"),
    [
        (DefaultEpsilon, "Its epsilon is 0.001 rather than 1e-05."),
        (Unbiased, f"It has this fault: {faulty.FAULTS['unbiased variance']}."),
        (UnbiasedInTheAverage, f"It has this fault: {faulty.FAULTS['unbiased moving variance']}."),
        (MomentumReversed, "Its momentum is the weight of the new value (0.1) rather than 0.9."),
        (MeanDetached, f"It has this fault: {faulty.FAULTS['detached mean']}."),
        (VarianceDetached, f"It has this fault: {faulty.FAULTS['detached variance']}."),
        (Detached, f"It has this fault: {faulty.FAULTS['detached statistics']}."),
        (
            OtherAxis,
            f"Its parameters have the shapes [(6,), (6,)] rather than {CHANNELS}. It normalizes axis 1.",
        ),
        (
            GammaOfEachPlace,
            f"Its parameters have the shapes {IMAGES} rather than {CHANNELS}. It has this fault: "
            f"{faulty.FAULTS['parameters of the whole sample']}.",
        ),
        (UnbiasedInTheOutput, f"It has this fault: {faulty.FAULTS['unbiased variance in the output']}."),
        (EpsilonOutside, f"It has this fault: {faulty.FAULTS['epsilon outside the root']}."),
        (EachImage, f"It has this fault: {faulty.FAULTS['statistics of each sample']}."),
        (
            LayerOfEachPixel,
            f"It normalizes axis 3. It has this fault: {faulty.FAULTS['parameters of the whole sample']}.",
        ),
        (WeightWithOneLength, f"It has this fault: {faulty.WEIGHT_FAULTS['whole kernel']}."),
        (ReversedAndNamedOtherwise, "Its momentum is the weight of the new value (0.1) rather than 0.9."),
        (VarianceKept, "The momentum of its moving_variance is 0 rather than 0.9."),
        (VarianceNotANumber, "Not finite: moving_variance."),
        (GradientNotANumber, "Not finite: dx."),
        (UpdatesTwice, "It updates its moving statistics 2 times a call."),
        (NeverUpdates, "It never updates its moving statistics."),
        (MeanNeverUpdated, "It never updates its moving_mean."),
        (UpdatesInInference, "Inference moves its statistics."),
        (
            BatchInInferenceToo,
            "Inference moves its statistics. It does the same in training as in inference. It has this fault: "
            f"{faulty.FAULTS['the batch in inference']}.",
        ),
        (OnePass, f"Far from zero it loses digits, as where {faulty.FAULTS['one-pass variance']}."),
        (OtherEachTime, "It gives another output each time."),
        (KnowsNoTraining, "It does the same in training as in inference."),
        (InFloat32, "What differs is as small as float32's rounding: perhaps a part is computed in it."),
        (
            WeightWithASmallEpsilon,
            f"It has this fault: {faulty.WEIGHT_FAULTS['epsilon']}. Its epsilon is 1e-06.",
        ),
        (OneGamma, f"Its parameters have the shapes [(1,), (1,)] rather than {CHANNELS}."),
        (LayerUnbiased, f"It has this fault: {faulty.FAULTS['unbiased variance']}."),
        (LayerDetached, f"It has this fault: {faulty.FAULTS['detached statistics']}."),
        (LayerDefaultEpsilon, "Its epsilon is 0.001 rather than 1e-05."),
        (
            LayerOfChannels,
            f"Its parameters have the shapes {CHANNELS} rather than {IMAGES}. It normalizes axis 3.",
        ),
        (LayerGammaOfChannels, f"Its parameters have the shapes {CHANNELS} rather than {IMAGES}."),
        (WeightDetached, f"It has this fault: {faulty.WEIGHT_FAULTS['detached length']}."),
        (WeightOfTheFirstAxis, f"It has this fault: {faulty.WEIGHT_FAULTS['first axis']}."),
        (WeightWithEpsilon, f"It has this fault: {faulty.WEIGHT_FAULTS['epsilon']}."),
        (ParametersFirst, f"It has this fault: {faulty.FAULTS['parameters first']}."),
        (ParametersExchanged, f"It has this fault: {faulty.FAULTS['parameters exchanged']}."),
        (SumOfSquares, f"It has this fault: {faulty.FAULTS['sum of squares']}."),
        (LayerNeverCentred, f"It has this fault: {faulty.FAULTS['never centred']}."),
        (LayerOfTheBatch, f"It has this fault: {faulty.SAMPLE_FAULTS['the whole batch']}."),
        (CutOff, "Its output is never below 0. Its output is never above 2."),
        (InFloat16, "Its output has the digits of float16."),
        (GroupInterleaved, f"It has this fault: {faulty.GROUP_FAULTS['interleaved groups']}."),
        (GroupOfEachPosition, f"It has this fault: {faulty.GROUP_FAULTS['each position']}."),
        (GroupOfTheBatch, f"It has this fault: {faulty.SAMPLE_FAULTS['the whole batch']}."),
        (GroupUnbiased, f"It has this fault: {faulty.FAULTS['unbiased variance']}."),
        (GroupsDetached, f"It has this fault: {faulty.FAULTS['detached variance']}."),
        (OneGroup, "It has 1 group."),
        (RMSCentred, f"It has this fault: {faulty.RMS_FAULTS['centred']}."),
        (RMSOfTheSum, f"It has this fault: {faulty.FAULTS['sum of squares']}."),
        (RMSDetached, f"It has this fault: {faulty.FAULTS['detached variance']}."),
        (RMSPlusOne, f"It has this fault: {faulty.FAULTS['one plus gamma']}."),
        (RMSWithoutRoot, f"It has this fault: {faulty.FAULTS['no root']}."),
        (
            WeightWithOneG,
            "Its parameters have the shapes [(1,), (3, 3, 4, 4), (4,)] rather than [(3, 3, 4, 4), (4,), (4,)].",
        ),
    ],
)
def test_a_fault_written_by_hand_is_named(candidate, cause, untrained):
    certificate = examine_own(candidate)
    assert not certificate.same
    assert " ".join(certificate.causes) == cause, certificate.text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("candidate", "cause"),
    [
        (StartsFromZero, "Its moving_variance starts at 0 rather than 1."),
        (WeightStartsAtOne, "Its g starts at "),
    ],
)
def test_where_a_weight_starts_shows_in_training_and_is_named(candidate, cause):
    certificate = examine_own(candidate)
    assert not certificate.same
    assert " ".join(certificate.causes).startswith(cause), certificate.text()


@pytest.mark.parametrize("kind", ["GroupNormalization", "RMSNormalization"])
def test_another_epsilon_is_named_for_every_reference(kind, untrained):
    options = (("groups", 2),) if kind.startswith("Group") else ()
    certificate = examine(f"normlib:{kind}", f"keras.layers:{kind}", options, own=[("epsilon", 0.02)])
    assert "Its epsilon is 0.02 rather than" in " ".join(certificate.causes), certificate.text()


@pytest.mark.parametrize(
    ("candidate", "received"),
    [(ReturnsMore, "a tuple"), (ReturnsAList, "a list"), (OtherShape, "one of shape (24, 1, 6, 5, 4)")],
)
def test_an_output_that_is_not_the_one_expected_is_told(candidate, received):
    certificate = examine_own(candidate)
    assert verdicts(certificate)["output, float64"] == "fails"
    expected = f"Expected one tensor of shape (24, 6, 5, 4) as output. Received: {received}"
    assert expected in " ".join(certificate.checks.note)


@pytest.mark.slow
@pytest.mark.parametrize("candidate", [BetaFirst, NamedOtherwise, WeightNamedOtherwise])
def test_weights_of_another_order_or_name_find_their_pairs_in_training(candidate):
    certificate = examine_own(candidate)
    assert certificate.same, certificate.text()


class NumpyInTraining(OwnBatch):
    def statistics(self, x):
        return super().statistics(tf.constant(x.numpy()) if hasattr(x, "numpy") else fails_in_a_graph())


def fails_in_a_graph():
    raise TypeError("there are no numbers in a graph")


@pytest.mark.slow
def test_why_a_training_fails_is_told():
    certificate = examine_own(NumpyInTraining)
    notes = dict(zip(certificate.checks.check, certificate.checks.note, strict=True))
    assert "there are no numbers in a graph" in notes["paired training, float64"]


IN_TRAINING = {f"{kind}, {dtype}" for kind in ("output", "gradients") for dtype in ("float32", "float64")}
MOVED = {f"moving statistics, {dtype}" for dtype in ("float32", "float64")}
INFERRED = {f"inference, {dtype}" for dtype in ("float32", "float64")}


@pytest.mark.parametrize(
    ("candidate", "differing"),
    [
        (UnbiasedInTheOutput, IN_TRAINING),
        (VarianceKept, MOVED),
        (EpsilonOutside, {name for name in IN_TRAINING | INFERRED if "64" in name}),
        (EachImage, IN_TRAINING | MOVED),
        (LayerOfEachPixel, IN_TRAINING | INFERRED),
        (WeightWithOneLength, IN_TRAINING | INFERRED),
    ],
)
def test_what_a_fault_changes_is_found_whether_it_has_a_name_or_not(
    candidate, differing, untrained, monkeypatch
):
    monkeypatch.setattr(examination, "_causes", lambda *_: ())  # the search takes its time
    certificate = examine_own(candidate)
    found = verdicts(certificate)
    assert {name for name, verdict in found.items() if verdict != "same"} == differing, certificate.text()


class LosesAWeight(OwnBatch):
    """Saves what is trained, and not the moving statistics."""

    def save_own_variables(self, store):
        for place, variable in enumerate(self.trainable_variables):
            store[str(place)] = variable.numpy()

    def load_own_variables(self, store):
        for place, variable in enumerate(self.trainable_variables):
            variable.assign(store[str(place)])


class LosesItsEpsilon(OwnBatch):
    def get_config(self):
        config = super().get_config()
        del config["epsilon"]
        return config


class CannotBeLoaded(LosesItsEpsilon):
    def __init__(self, epsilon, **options):
        super().__init__(epsilon, **options)


@pytest.mark.parametrize(
    ("candidate", "verdict"),
    [(LosesAWeight, "differs"), (LosesItsEpsilon, "differs"), (CannotBeLoaded, "fails")],
)
def test_what_is_lost_in_saving_is_found(candidate, verdict, untrained):
    found = verdicts(examine_own(candidate))
    assert found.pop("saving and loading") == verdict
    assert set(found.values()) == {"same"}


# --- the command line --------------------------------------------------------------------------------------------


def test_the_command_line(capsys, monkeypatch, tmp_path):
    near = {"float64": 0.0, "float32": 0.0, "twin": 1.0, "rounding": 1.0}
    apart = near | {"moving": 0.0, "early": near, "steps": 3}
    monkeypatch.setattr(equivalence, "paired_training", lambda *_, **__: apart)
    file = tmp_path / "certificate.json"
    assert equivalence.main(["normlib:BatchNormalization", "--set", "epsilon=0.01", "--json", str(file)]) == 0
    assert "is the same as keras.layers:BatchNormalization" in capsys.readouterr().out
    assert json.loads(file.read_text())["candidate"] == "normlib:BatchNormalization"
    assert equivalence.main(["normlib:BatchNormalization", "--set-candidate", "epsilon=0.01"]) == 1
    assert "epsilon is 0.01 rather than 0.001" in capsys.readouterr().out
    assert equivalence.main([f"{__name__}:Leaves"]) == 1


@pytest.mark.parametrize("source", ["import nowhere_at_all", "1 / 0", "def", "import sys; sys.exit(0)"])
def test_a_module_that_cannot_be_imported_is_told_so(source, capsys, monkeypatch, tmp_path):
    tmp_path.joinpath("broken_module.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_module", raising=False)
    with pytest.raises(SystemExit) as stopped:
        equivalence.main(["broken_module:Layer"])
    assert stopped.value.code == 2
    assert "broken_module:Layer cannot be imported" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "epsilon"], "Expected NAME=VALUE with a Python literal"),
        (["--set", "axis=one"], "Received: 'axis=one'"),
        (["--set", "gamma_regularizer={'class_name': 'L2'}"], "holds no dict and no set"),
        (["--steps", "0"], "Expected a whole number from 1. Received: '0'"),
        (["--steps", "-3"], "Received: '-3'"),
        (["--steps", "many"], "Received: 'many'"),
        (["math:sqrt"], "Expected the import path of a class. Received: math:sqrt"),
        (
            ["--json", "no/such/folder/a.json"],
            "Expected --json to be a file in a folder that exists. Received: no/",
        ),
        (["--json", "."], "Expected --json to be a file in a folder that exists. Received: ."),
        (["--set", "nonsense=3"], "The reference keras.layers:BatchNormalization cannot be made."),
        (["keras.layers"], "Expected an import path 'module:Class' (no class is named)"),
        (["builtins:dict"], "Expected a Keras layer. Received: <class 'dict'>"),
    ],
)
def test_wrong_arguments_are_told_so(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        equivalence.main(["normlib:BatchNormalization", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
