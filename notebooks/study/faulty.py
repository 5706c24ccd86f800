"""Layers with one planted fault each: by them a difference is traced to its cause."""

import keras
import tensorflow as tf

import normlib

# fault -> what it does
FAULTS = {
    "none": "the plain formula, differentiated by TensorFlow",
    "unbiased variance": "the variance is divided by N − 1",
    "detached mean": "no gradient flows through the mean",
    "detached variance": "no gradient flows through the variance",
    "detached statistics": "no gradient flows through the mean and the variance",
    "epsilon outside the root": "epsilon is added to the deviation",
    "unbiased moving variance": "only the moving variance is that divided by N − 1",
}


class _Faulty:
    """The plain formula with one fault, in the place of `standardize`; no masks, no replicas."""

    def __init__(self, *arguments, fault="none", **options):
        if fault not in FAULTS:
            raise ValueError(f"Expected a fault among {', '.join(FAULTS)}. Received: fault={fault!r}")
        super().__init__(*arguments, **options)
        self.fault = fault

    def _standardize(self, x, **_):
        rank = x.shape.rank
        axes = self._reduction_axes(rank)
        gamma, beta = (self._broadcast(parameter, rank) for parameter in (self.gamma, self.beta))
        mean = tf.reduce_mean(x, axes, keepdims=True)
        detached = tf.stop_gradient(mean) if self.fault in ("detached mean", "detached statistics") else mean
        variance = tf.reduce_mean(tf.square(x - detached), axes, keepdims=True)
        count = tf.cast(tf.size(x) / tf.size(variance), x.dtype)
        unbiased = variance * count / (count - 1)
        used = unbiased if self.fault == "unbiased variance" else variance
        if self.fault in ("detached variance", "detached statistics"):
            used = tf.stop_gradient(used)
        root = (
            tf.sqrt(used) + self.epsilon
            if self.fault == "epsilon outside the root"
            else tf.sqrt(used + self.epsilon)
        )
        y = (x - detached) / root
        y = y if gamma is None else y * tf.cast(gamma, x.dtype)
        y = y if beta is None else y + tf.cast(beta, x.dtype)
        return y, mean, unbiased if self.fault.startswith("unbiased") else variance

    def get_config(self):
        return {**super().get_config(), "fault": self.fault}


@keras.saving.register_keras_serializable("study")
class FaultyBatchNormalization(_Faulty, normlib.BatchNormalization):
    """Batch normalization with one fault of FAULTS; arguments as there, and `fault`."""


@keras.saving.register_keras_serializable("study")
class FaultyLayerNormalization(_Faulty, normlib.LayerNormalization):
    """Layer normalization with one fault of FAULTS; arguments as there, and `fault`."""
