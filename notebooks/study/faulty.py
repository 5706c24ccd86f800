"""Layers with one planted fault each: by them a difference is traced to its cause."""

import keras
import numpy as np
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
    "parameters first": "gamma and beta are applied before the normalization, not after it",
    "parameters exchanged": "gamma and beta have changed places",
    "sum of squares": "the variance is the sum of the squared deviations, not their mean",
    "never centred": "the mean is not taken out, neither of the output nor of the variance",
    "statistics of each sample": "each sample has statistics of its own, and the moving ones are their mean",
}
# Of what has statistics of each sample:
SAMPLE_FAULTS = {"the whole batch": "the statistics are those of the whole batch, not of each sample"}
# Of group normalization:
GROUP_FAULTS = {
    "interleaved groups": "a group is every so many-th channel, not neighbouring ones",
    "each position": "each position has statistics of its own",
}
# Of RMS normalization:
RMS_FAULTS = {"centred": "the mean is taken out"}
# Of weight normalization:
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

    faults = FAULTS | SAMPLE_FAULTS

    def __init__(self, *arguments, fault="none", **options):
        super().__init__(*arguments, **options)
        self.fault = _known(fault, self.faults)

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

    def _standardize(self, x, groups=None, center=True, **_):
        if self.fault == "parameters first":
            x = self._scaled(x)
        axes = self._reduction_axes(x.shape.rank)
        axes = {
            "statistics of each sample": tuple(axis for axis in axes if axis),
            "the whole batch": (0, *axes),
            "each position": (),
        }.get(self.fault, axes)

        def mean_of(t):
            t = tf.reduce_mean(t, axes, keepdims=True)
            return t if groups is None else self._over_groups(t, *groups)

        centred = (center or self.fault == "centred") and self.fault != "never centred"
        mean = mean_of(x) if centred else tf.zeros_like(mean_of(x))
        detached = tf.stop_gradient(mean) if self.fault in ("detached mean", "detached statistics") else mean
        one_pass = self.fault == "one-pass variance"
        variance = mean_of(tf.square(x)) - tf.square(mean) if one_pass else mean_of(tf.square(x - detached))
        of_group = 1 if groups is None else x.shape[groups[0]] // groups[1]
        count = of_group * tf.cast(tf.size(x) / tf.size(mean), x.dtype)
        unbiased = variance * count / (count - 1)
        used = unbiased if self.fault.startswith("unbiased variance") else variance
        if self.fault == "sum of squares":
            used = variance = variance * count
        if self.fault in ("detached variance", "detached statistics"):
            used = tf.stop_gradient(used)
        y = self._by(x, detached, used)
        kept = unbiased if self.fault in ("unbiased variance", "unbiased moving variance") else variance
        each = self.fault == "statistics of each sample"
        return y, *(tf.reduce_mean(s, 0, keepdims=True) if each else s for s in (mean, kept))

    def _over_groups(self, t, axis, number):
        """Each channel's mean over the channels of its group."""
        channels = np.arange(t.shape[axis])
        neighbours = channels * number // channels.size
        group = channels % number if self.fault == "interleaved groups" else neighbours
        share = tf.constant((group[:, None] == group) * number / channels.size, t.dtype)
        return keras.ops.moveaxis(tf.tensordot(t, share, [[axis], [0]]), -1, axis)

    def _by(self, x, mean, variance):
        """Standardized by statistics, scaled and shifted."""
        root = {
            "epsilon outside the root": lambda: tf.sqrt(variance) + self.epsilon,
            "no root": lambda: variance + self.epsilon,
        }.get(self.fault, lambda: tf.sqrt(variance + self.epsilon))
        y = (x if self.fault == "mean left in" else x - mean) / root()
        return y if self.fault == "parameters first" else self._scaled(y)

    def _scaled(self, x):
        parameters = (self._broadcast(parameter, x.shape.rank) for parameter in (self.gamma, self.beta))
        gamma, beta = (None if p is None else tf.cast(p, x.dtype) for p in parameters)
        if self.fault == "parameters exchanged":
            gamma, beta = beta, gamma
        if gamma is not None:
            x = x * (1.0 + gamma if self.fault == "one plus gamma" else gamma)
        return x if beta is None else x + beta

    def get_config(self):
        return {**super().get_config(), "fault": self.fault}


@keras.saving.register_keras_serializable("study")
class FaultyBatchNormalization(_Faulty, normlib.BatchNormalization):
    """Batch normalization with one fault of FAULTS; arguments as there, and `fault`."""

    faults = FAULTS

    def _infer(self, x):
        if self.fault == "the batch in inference":
            return self._standardize(x)[0]
        if self.fault == "parameters first":
            x = self._scaled(x)
        moving = (self._broadcast(s, x.shape.rank) for s in (self.moving_mean, self.moving_variance))
        return self._by(x, *(tf.cast(statistic, x.dtype) for statistic in moving))


@keras.saving.register_keras_serializable("study")
class FaultyLayerNormalization(_Faulty, normlib.LayerNormalization):
    """Layer normalization with one of its `faults`; arguments as there, and `fault`."""


@keras.saving.register_keras_serializable("study")
class FaultyGroupNormalization(_Faulty, normlib.GroupNormalization):
    """Group normalization with one of its `faults`; arguments as there, and `fault`."""

    faults = _Faulty.faults | GROUP_FAULTS


@keras.saving.register_keras_serializable("study")
class FaultyRMSNormalization(_Faulty, normlib.RMSNormalization):
    """RMS normalization with one of its `faults`; arguments as there, and `fault`."""

    faults = _Faulty.faults | RMS_FAULTS


@keras.saving.register_keras_serializable("study")
class FaultyWeightNormalization(normlib.WeightNormalization):
    """Weight normalization with one fault of WEIGHT_FAULTS; arguments as there, `fault`, and `epsilon` for that of this
    name."""

    faults = WEIGHT_FAULTS

    def __init__(self, layer, fault="none", epsilon=1e-3, **options):
        super().__init__(layer, **options)
        self.fault, self.epsilon = _known(fault, self.faults), epsilon

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
