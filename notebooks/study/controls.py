"""Layers that stand where a normalization would, and normalize nothing or undo it again: what they gain, normalization
did not do."""

import keras
import tensorflow as tf

import normlib


@keras.saving.register_keras_serializable("study")
class Affine(keras.layers.Layer):
    """gamma * x + beta for each channel: a normalization's parameters without the normalization."""

    def build(self, shape):
        self.gamma = self.add_weight(shape=shape[-1:], initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=shape[-1:], initializer="zeros", name="beta")

    def call(self, x):
        return self.gamma * x + self.beta


@keras.saving.register_keras_serializable("study")
class DynamicTanh(Affine):
    """gamma * tanh(alpha * x) + beta, alpha from 0.5, said to replace LN (Zhu et al. 2025, arXiv:2503.10622)."""

    def build(self, shape):
        super().build(shape)
        self.alpha = self.add_weight(shape=(), initializer=keras.initializers.Constant(0.5), name="alpha")

    def call(self, x):
        return super().call(tf.tanh(self.alpha * x))


class FromFirstBatch:
    """A layer some of whose variables the first batch in training sets, and never again."""

    def build(self, shape):
        super().build(shape)
        self.seen = self.add_weight(shape=(), initializer="zeros", trainable=False, name="seen")

    def _start(self, *values):
        for variable, value in values:
            variable.assign(tf.where(self.seen > 0, variable, value))
        self.seen.assign(1.0)


@keras.saving.register_keras_serializable("study")
class FirstBatch(FromFirstBatch, Affine):
    """gamma * x + beta, where the first batch in training sets gamma and beta so that its outputs are standardized:
    what normalization gives a network at the start, and never again (Salimans and Kingma 2016, section 3)."""

    def call(self, x, training=False):
        if training:
            mean, variance = tf.nn.moments(x, list(range(x.shape.rank - 1)))
            scale = tf.math.rsqrt(variance + 1e-5)
            self._start((self.gamma, scale), (self.beta, -mean * scale))
        return super().call(x)


@keras.saving.register_keras_serializable("study")
class AsLargeBatchNormalization(FromFirstBatch, normlib.BatchNormalization):
    """Batch normalization whose gamma starts at the deviation of the first batch in training: the network goes on with
    activations as large as without normalization, so that its start is no reason for another learning rate."""

    def call(self, x, training=False):
        if training:
            self._start((self.gamma, tf.math.reduce_std(x)))
        return super().call(x, training=training)


@keras.saving.register_keras_serializable("study")
class AsLargeLayerNormalization(FromFirstBatch, normlib.LayerNormalization):
    """Layer normalization whose gamma starts in the same way."""

    def call(self, x, training=False):
        if training:
            self._start((self.gamma, tf.math.reduce_std(x)))
        return super().call(x)


@keras.saving.register_keras_serializable("study")
class NoisyBatchNormalization(normlib.BatchNormalization):
    """Batch normalization that noise undoes: in training, each channel is stretched and shifted anew at every step, and
    each image a little of its own, so that what follows never sees the same distribution twice (after Santurkar et al.
    2018, section 2.2, arXiv:1805.11604).

    Args:
        seed: of the noise. Default 0.
        options: as of BatchNormalization.
    """

    def __init__(self, seed=0, **options):
        super().__init__(**options)
        self.seed = seed

    def build(self, shape):
        super().build(shape)
        whole = {"shape": (), "dtype": "int32", "trainable": False}
        self.step = self.add_weight(initializer="zeros", name="step", **whole)
        # A variable, for one compiled network serves the runs of all seeds.
        self.noise = self.add_weight(
            initializer=keras.initializers.Constant(self.seed), name="noise", **whole
        )

    def call(self, x, training=False):
        y = super().call(x, training=training)
        if not training:
            return y
        channels = [1] * (x.shape.rank - 1) + [x.shape[-1]]
        images = [tf.shape(x)[0], *channels[1:]]

        def uniform(shape, low, high, stream):
            seed = [4 * self.step.value + stream, self.noise.value]
            return tf.random.stateless_uniform(shape, seed, low, high, x.dtype)

        scale = uniform(channels, 1.0, 1.25, 0) + uniform(images, -0.1, 0.1, 1)
        shift = uniform(channels, -0.5, 0.5, 2) + uniform(images, -0.1, 0.1, 3)
        self.step.assign_add(1)
        return y * scale + shift


@keras.saving.register_keras_serializable("study")
class GhostBatchNormalization(normlib.BatchNormalization):
    """Batch normalization that takes each quarter of the batch for a batch of its own in training (Hoffer et al. 2017,
    arXiv:1705.08741; Summers and Dinneen 2020)."""

    def call(self, x, training=False):
        if not training:
            return super().call(x)
        return tf.concat(
            [super(GhostBatchNormalization, self).call(part, training=True) for part in tf.split(x, 4)], 0
        )


@keras.saving.register_keras_serializable("study")
class WeightAndMeanOnlyBatchNormalization(normlib.WeightNormalization):
    """Weight normalization, its outputs centred over the batch (Salimans and Kingma 2016, section 4)."""

    def build(self, shape):
        super().build(shape)
        self.centre = normlib.MeanOnlyBatchNormalization(momentum=0.9, dtype=self.dtype_policy)
        self.centre.build(self.layer.compute_output_shape(shape))

    def call(self, x, training=False):
        return self.centre(super().call(x), training=training)
