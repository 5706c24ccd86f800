"""Layers that stand where a normalization would and normalize nothing: what they gain, normalization did not do."""

import keras
import tensorflow as tf


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
