"""The study of 2019 as it was: its layers with their faults, its training, and what its figures showed on MNIST."""

from dataclasses import replace

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

import normlib
from study import network, running

STEPS = 2750
# Read off its figures. Test accuracy after 100 steps and at the end:
ACCURACIES = {
    "none": (0.73, 0.952),
    "BN": (0.843, 0.968),
    "LN": (0.842, 0.965),
    "WN": (0.673, 0.965),
    "TensorFlow's LN": (None, 0.947),
}
# Mean difference of gamma and of beta after 15 steps. Which of the two layers was subtracted is not told; here the own
# one, for then the signs agree.
DRIFTS = {"BN": (-0.031, -0.006), "LN": (-0.045, -0.012)}


@keras.saving.register_keras_serializable("study")
class LayerNormalization(normlib.LayerNormalization):
    """Layer normalization as in 2019: one gamma and one beta for each position in the batch.

    Shapes: input any rank from 2, at most `positions` samples; gamma and beta [positions]; output like the input.

    Args:
        positions: int, the size of a batch in training. Default 100.
    """

    def __init__(self, *arguments, positions=100, **options):
        super().__init__(*arguments, **options)
        self.positions = positions

    def _add_parameter(self, name, shape, options):
        return super()._add_parameter(name, (self.positions,), options)

    def _broadcast(self, parameter, rank):
        return tf.reshape(parameter, [-1] + [1] * (rank - 1))

    def call(self, inputs):
        gamma, beta = (
            self._broadcast(parameter[: tf.shape(inputs)[0]], inputs.shape.rank)
            for parameter in (self.gamma, self.beta)
        )
        axes = self._reduction_axes(inputs.shape.rank)
        return normlib.standardize(inputs, axes, self.epsilon, gamma=gamma, beta=beta)[0]

    def get_config(self):
        return {**super().get_config(), "positions": self.positions}


@keras.saving.register_keras_serializable("study")
class WeightNormalization(normlib.WeightNormalization):
    """Weight normalization as in 2019: one g for the whole kernel, and lengths over the kernel's first axis alone.

    How g started is not told; here at the mean length, so that the kernel starts at its usual size.
    """

    def build(self, input_shape=None):
        super().build(input_shape)
        [(v, _, g)] = self._kernels
        g.trainable = False  # a scalar takes its place
        length = tf.reduce_mean(tf.norm(tf.convert_to_tensor(v), axis=0))
        self.g_of_all = self.add_weight(
            shape=(), name="g_of_all", initializer=lambda *_, **__: length, dtype=v.dtype
        )

    def kernels(self):
        [(v, _, _)] = self._kernels
        v = tf.convert_to_tensor(v)
        g = tf.broadcast_to(tf.convert_to_tensor(self.g_of_all), [1, *v.shape[1:]])
        return [normlib.weight_normalize(v, g, (0,))]


OWN = {
    "none": {},
    "BN": network.METHODS["BN"],
    "LN": network.METHODS["LN"] | {"norm": "study.original:LayerNormalization"},
    "WN": network.METHODS["WN"] | {"norm": "study.original:WeightNormalization"},
}
TENSORFLOWS = {
    "BN": network.REFERENCES["BN"],
    "LN": {"norm": "keras.layers:LayerNormalization", "options": (("axis", 1), ("epsilon", 1e-5))},  # rows
}


def rerun(base, jobs=0):
    """Train what the study of 2019 trained, as it trained it: its layers, both faults of its training loop, as long.

    Args:
        base: the Run to start from, of any length.
        jobs: as in `running.run_all`.

    Returns:
        dict name -> History: the curves under the names of ACCURACIES; under ("own", method) and ("TensorFlow's",
        method) 15 steps with a trace.
    """
    base = replace(base, steps=STEPS)
    short = replace(base, steps=15, evaluate_every=15, trace=True)
    other_weights = {"repeat_updates": True, "weights_seed": base.seed + 1_000}
    runs = {method: replace(base, **layer) for method, layer in OWN.items()}
    runs["TensorFlow's LN"] = replace(base, **TENSORFLOWS["LN"], repeat_updates=True)
    for method, layer in TENSORFLOWS.items():
        runs["own", method] = replace(short, **OWN[method])
        runs["TensorFlow's", method] = replace(short, **layer, **other_weights)
    found = running.run_all(runs.values(), jobs, "as in 2019")
    return {name: found[run] for name, run in runs.items()}


def beside(found, curves):
    """The numbers of the study of 2019 beside those that its layers and training give here, and the right ones.

    Args:
        found: what `rerun` returns.
        curves: dict method -> list of History, of right layers properly trained, one a seed.

    Returns:
        DataFrame with columns what, then, again, right (accuracies alone) and verdict: an accuracy is reproduced within
        one point, a drift with the same sign and apart by a factor of two at most.
    """
    rows = []
    for method, values in ACCURACIES.items():
        for step, then in zip((100, STEPS), values, strict=True):
            if then is None:
                continue
            again = _accuracy([found[method]], step)
            right = _accuracy(curves[method.removeprefix("TensorFlow's ")], step)
            same = abs(again - then) <= 0.01 + 1e-9
            rows.append((f"{method}, accuracy after {step:,} steps", then, again, right, same))
    for method, values in DRIFTS.items():
        for parameter, then in zip(("gamma", "beta"), values, strict=True):
            own, theirs = (
                found[whose, method].trace[f"norm_conv/{parameter}"][-1] for whose in ("own", "TensorFlow's")
            )
            again = float(theirs.mean(dtype="float64") - own.mean(dtype="float64"))
            same = again * then > 0 and 0.5 <= again / then <= 2
            rows.append((f"{method}, difference of {parameter} after 15 steps", then, again, np.nan, same))
    table = pd.DataFrame(rows, columns=["what", "then", "again", "right", "verdict"])
    return table.assign(verdict=np.where(table.verdict, "reproduced", "not"))


def _accuracy(histories, step):
    """Mean accuracy at a step; NaN where it was not measured."""
    return float(np.mean([h.accuracy[h.steps == step][0] if step in h.steps else np.nan for h in histories]))


def message(table):
    """The caption's first sentence of the numbers of 2019."""
    counts = table.verdict.value_counts()
    return (
        f"With the layers and the training of 2019, {counts.get('reproduced', 0)} of its {len(table)} numbers are "
        f"reproduced, {counts.get('not', 0)} not."
    )
