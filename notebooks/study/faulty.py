"""Layers with one planted fault each: by them a difference is traced to its cause."""

import keras
import tensorflow as tf

import normlib

# fault -> what it does
FAULTS = {
    "none": "the plain formula, differentiated by TensorFlow",
    "unbiased variance": "the variance is divided by N − 1",
    "unbiased variance in the output": "the variance in the output, not the moving one, is divided by N − 1",
    "one-pass variance": "the variance is the mean square minus the squared mean",
    "detached mean": "no gradient flows through the mean",
    "detached variance": "no gradient flows through the variance",
    "detached statistics": "no gradient flows through the mean and the variance",
    "epsilon outside the root": "epsilon is added to the deviation",
    "unbiased moving variance": "only the moving variance is that divided by N − 1",
    "parameters of the whole sample": "there is a gamma and a beta for each element of a sample",
    "the batch in inference": "inference normalizes by the batch's statistics",
    "mean left in": "the mean is not taken out",
    "no root": "it divides by the variance and not by its root",
    "one plus gamma": "the output is scaled by 1 + gamma",
    "statistics of each sample": "each sample has statistics of its own, and the moving ones are their mean",
}
# The same of weight normalization:
WEIGHT_FAULTS = {
    "none": "the plain formula, differentiated by TensorFlow",
    "detached length": "no gradient flows through the length of v",
    "first axis": "the length of v is taken over the kernel's first axis alone",
    "whole kernel": "there is one length of v for the whole kernel",
    "epsilon": "epsilon is added to the squared length of v",
}


def _known(fault, faults):
    if fault not in faults:
        raise ValueError(f"Expected a fault among {', '.join(faults)}. Received: fault={fault!r}")
    return fault


class _Faulty:
    """The plain formula with one fault, in the place of `standardize`; no masks, no replicas."""

    def __init__(self, *arguments, fault="none", **options):
        super().__init__(*arguments, **options)
        self.fault = _known(fault, FAULTS)

    def build(self, input_shape):
        self._sample = tuple(input_shape[1:])
        super().build(input_shape)

    def _add_parameter(self, name, shape, options):
        whole = self.fault == "parameters of the whole sample"
        return super()._add_parameter(name, self._sample if whole else shape, options)

    def _broadcast(self, parameter, rank):
        if parameter is not None and tuple(parameter.shape) == self._sample:
            return tf.convert_to_tensor(parameter)[None]
        return super()._broadcast(parameter, rank)

    def _standardize(self, x, **_):
        rank = x.shape.rank
        each = self.fault == "statistics of each sample"
        axes = tuple(axis for axis in self._reduction_axes(rank) if axis or not each)
        mean = tf.reduce_mean(x, axes, keepdims=True)
        detached = tf.stop_gradient(mean) if self.fault in ("detached mean", "detached statistics") else mean
        variance = (
            tf.reduce_mean(tf.square(x), axes, keepdims=True) - tf.square(mean)
            if self.fault == "one-pass variance"
            else tf.reduce_mean(tf.square(x - detached), axes, keepdims=True)
        )
        count = tf.cast(tf.size(x) / tf.size(variance), x.dtype)
        unbiased = variance * count / (count - 1)
        used = unbiased if self.fault.startswith("unbiased variance") else variance
        if self.fault in ("detached variance", "detached statistics"):
            used = tf.stop_gradient(used)
        y = self._by(x, detached, used)
        kept = unbiased if self.fault in ("unbiased variance", "unbiased moving variance") else variance
        return y, *(tf.reduce_mean(s, 0, keepdims=True) if each else s for s in (mean, kept))

    def _by(self, x, mean, variance):
        """Standardized by statistics, scaled and shifted."""
        root = {
            "epsilon outside the root": lambda: tf.sqrt(variance) + self.epsilon,
            "no root": lambda: variance + self.epsilon,
        }.get(self.fault, lambda: tf.sqrt(variance + self.epsilon))
        gamma, beta = (self._broadcast(parameter, x.shape.rank) for parameter in (self.gamma, self.beta))
        y = (x if self.fault == "mean left in" else x - mean) / root()
        one = 1.0 if self.fault == "one plus gamma" else 0.0
        y = y if gamma is None else y * (one + tf.cast(gamma, x.dtype))
        return y if beta is None else y + tf.cast(beta, x.dtype)

    def get_config(self):
        return {**super().get_config(), "fault": self.fault}


@keras.saving.register_keras_serializable("study")
class FaultyBatchNormalization(_Faulty, normlib.BatchNormalization):
    """Batch normalization with one fault of FAULTS; arguments as there, and `fault`."""

    def _infer(self, x):
        if self.fault == "the batch in inference":
            return self._standardize(x)[0]
        moving = (self._broadcast(s, x.shape.rank) for s in (self.moving_mean, self.moving_variance))
        return self._by(x, *(tf.cast(statistic, x.dtype) for statistic in moving))


@keras.saving.register_keras_serializable("study")
class FaultyLayerNormalization(_Faulty, normlib.LayerNormalization):
    """Layer normalization with one fault of FAULTS; arguments as there, and `fault`."""


@keras.saving.register_keras_serializable("study")
class FaultyWeightNormalization(normlib.WeightNormalization):
    """Weight normalization with one fault of WEIGHT_FAULTS; arguments as there, `fault`, and `epsilon` for that of this
    name."""

    def __init__(self, layer, fault="none", epsilon=1e-3, **options):
        super().__init__(layer, **options)
        self.fault, self.epsilon = _known(fault, WEIGHT_FAULTS), epsilon

    def kernels(self):
        found = []
        for v, axes, g in self._parts():
            v, g = tf.convert_to_tensor(v), tf.convert_to_tensor(g)
            along = {"first axis": axes[:1], "whole kernel": range(v.shape.rank)}.get(self.fault, axes)
            square = tf.reduce_sum(tf.square(v), tuple(along), keepdims=True)
            length = tf.sqrt(square + self.epsilon if self.fault == "epsilon" else square)
            length = tf.stop_gradient(length) if self.fault == "detached length" else length
            sizes = [1 if axis in axes else size for axis, size in enumerate(v.shape)]
            found.append(tf.reshape(g, sizes) * v / length)
        return found

    def get_config(self):
        return {**super().get_config(), "fault": self.fault, "epsilon": self.epsilon}
