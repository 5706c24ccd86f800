"""The study of 2019 as it was: its layers with their faults, its training, and what its figures showed on MNIST."""

import functools
from dataclasses import replace

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

import normlib
from study import data, equivalence, network, present, running, statistics, training

STEPS = 2750
RULE = "within one point of accuracy; a drift of the same sign, and within a factor of two"
# Read off its figures. Test accuracy after 100 steps and at the end:
ACCURACIES = {
    "none": (0.73, 0.952),
    "BN": (0.843, 0.968),
    "LN": (0.842, 0.965),
    "WN": (0.673, 0.965),
    "TensorFlow's LN": (None, 0.947),
}
# Mean difference of gamma and of beta after 15 steps. Which of the two layers was subtracted is not told; here, as in
# `equivalence.drift`, the own one: then the signs agree.
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
        [(v, _, g)] = self._parts()
        g.trainable = False  # a scalar takes its place
        length = tf.reduce_mean(tf.norm(tf.convert_to_tensor(v), axis=0))
        self.g_of_all = self.add_weight(
            shape=(), name="g", initializer=lambda *_, **__: length, dtype=v.dtype
        )

    def kernels(self):
        [(v, _, _)] = self._parts()
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


# What its two networks differed in beyond their authors.
REPEATED, WEIGHTS = "repeated updates", "other initial weights"
ROWS, PLACES = "TensorFlow's layer over rows", "own γ for each place in the batch"
FACTORS = {"BN": (REPEATED, WEIGHTS), "LN": (REPEATED, WEIGHTS, ROWS, PLACES)}
ACCURACY_FACTORS = (REPEATED, ROWS, PLACES)
INTERACTION = "their interaction"
BOUNDED = 3  # seeds: the t-interval of fewer says nothing


def on_mnist(base):
    """A Run on the digits of 2019; the Run itself if it is of the sample, or where they cannot be had."""
    return replace(base, dataset="mnist") if not base.sample and _has_mnist() else base


@functools.cache
def _has_mnist():
    try:
        training.load("mnist", False)
    except data.DataError:
        return False
    return True


def pair(base, method, factors, right=network.REFERENCES):
    """The Runs of the own and of TensorFlow's layer (where it is the right one, of `right`) that differ in some of
    FACTORS."""
    own = OWN[method] if PLACES in factors or method == "BN" else network.METHODS[method]
    theirs = TENSORFLOWS[method] if ROWS in factors else right[method]
    other = base.seed + 1_000 if WEIGHTS in factors else None
    return replace(base, **own), replace(
        base, **theirs, repeat_updates=REPEATED in factors, weights_seed=other
    )


def _combinations(factors):
    """None of the factors, each alone, all but each, and all."""
    everything = frozenset(factors)
    found = [
        frozenset(),
        *(frozenset([f]) for f in factors),
        *(everything - {f} for f in factors),
        everything,
    ]
    return list(dict.fromkeys(found))


def _trained(base, method, factors, seeds, jobs, right):
    """dict combination -> list of (own, TensorFlow's) History, a pair for each seed."""
    runs = {c: [pair(replace(base, seed=s), method, c, right) for s in seeds] for c in _combinations(factors)}
    every = [run for pairs in runs.values() for both in pairs for run in both]
    found = running.run_all(every, jobs, f"{method} as in 2019")
    present.runs({method: found.values()})
    return {c: [tuple(found[run] for run in both) for both in pairs] for c, pairs in runs.items()}


def shares(values, factors, quantity):
    """How much of a difference each factor makes.

    Args:
        values: dict combination of factors -> the difference for each seed.
        factors: their names.
        quantity: what differs.

    Returns:
        DataFrame with columns quantity, mechanism (each factor alone, their interaction, what is left without any, and
        all together, as in 2019), difference (mean over the seeds), low and high (`bounds`), share (of all together),
        leads (whether it surely makes more than half, and more than any other), seeds (how many) and without (the
        difference where this one factor is taken out of all).
    """
    values = {c: np.asarray(v, "float64") for c, v in values.items()}
    everything = frozenset(factors)
    left, whole = values[frozenset()], values[everything]
    alone = {factor: values[frozenset([factor])] - left for factor in factors}
    parts = alone | {INTERACTION: whole - left - sum(alone.values()), "what is left without them": left}
    sign = np.sign(whole.mean())

    def leads(name):
        others = [whole / 2, *(value for other, value in parts.items() if other != name)]
        return all(bounds(sign * (parts[name] - other))[0] > 0 for other in others)

    return pd.DataFrame(
        {
            "quantity": quantity,
            "mechanism": name,
            "difference": value.mean(),
            **dict(zip(("low", "high"), bounds(value), strict=True)),
            "share": value.mean() / whole.mean() if whole.mean() else np.nan,
            "leads": name in parts and leads(name),
            "seeds": len(value),
            "without": values[everything - {name}].mean() if name in factors else np.nan,
        }
        for name, value in [*parts.items(), ("all, as in 2019", whole)]
    )


def bounds(values):
    """The 95 % t-interval of a mean over BOUNDED seeds or more; of fewer, the lowest value and the highest."""
    if len(values) < BOUNDED or not np.isfinite(values).all():
        return values.min(), values.max()
    return statistics.mean_interval(values)[1:]


def drift_shares(base, method, seeds, jobs=0):
    """Figures 3 (BN) and 6 (LN) of 2019, taken apart: the mean difference of gamma and of beta after 15 steps,
    TensorFlow's minus own, and how much of it each of FACTORS makes.

    Args:
        base: the Run to start from.
        method: "BN" or "LN".
        seeds: for each, all is trained; the other initial weights are a draw of chance.
        jobs: as in `running.run_all`.

    Returns:
        (DataFrame of `shares`, dict combination -> DataFrame of `equivalence.drift` of the first seed).
    """
    short = replace(base, steps=equivalence.DRIFT_STEPS, **equivalence.TRACED)
    found = _trained(short, method, FACTORS[method], seeds, jobs, network.REFERENCES)
    drifts = {c: [equivalence.drift(*both) for both in pairs] for c, pairs in found.items()}
    frames = []
    for name in ("gamma", "beta"):
        last = {c: [_at_the_end(drift, f"norm_conv/{name}") for drift in of] for c, of in drifts.items()}
        frames.append(shares(last, FACTORS[method], name))
    return pd.concat(frames, ignore_index=True), {c: of[0] for c, of in drifts.items()}


def _at_the_end(drift, parameter):
    return float(drift["mean"][drift.parameter == parameter].iloc[-1])


OFTEN = 5  # measurements in the second half of a training


def accuracy_shares(base, seeds, jobs=0):
    """Figure 5 of 2019 taken apart: by how much the accuracy at the end, and the roughness, of TensorFlow's layer
    normalization differ from the own one's (TensorFlow's minus own), and how much of it each factor makes.

    Args:
        base, seeds, jobs: as in `drift_shares`.

    Returns:
        (DataFrame of `shares`, dict label -> list of History, for a figure).
    """
    # The right layers are the same: so one of them stands for both, and one run for two.
    found = _trained(base, "LN", ACCURACY_FACTORS, seeds, jobs, network.METHODS)
    measures = {"accuracy": lambda h: h.accuracy[-1], "roughness": roughness}
    frames = [
        shares(
            {c: [measure(theirs) - measure(own) for own, theirs in pairs] for c, pairs in found.items()},
            ACCURACY_FACTORS,
            name,
        )
        for name, measure in measures.items()
    ]
    everything = frozenset(ACCURACY_FACTORS)
    own, theirs = (list(histories) for histories in zip(*found[everything], strict=True))
    arms = {"own, as in 2019": own, "TensorFlow's, as in 2019": theirs}
    arms["the right layer"] = [own for own, _ in found[frozenset()]]
    for factor in (ROWS, REPEATED):
        arms[f"{factor}, alone"] = [theirs for _, theirs in found[frozenset([factor])]]
    return pd.concat(frames, ignore_index=True), arms


def roughness(history):
    """Mean absolute change of the accuracy from one measurement to the next, over the second half of the steps; NaN
    where these are too few to tell jagged from risen."""
    late = history.accuracy[history.steps >= history.steps[-1] / 2]
    return float(np.mean(np.abs(np.diff(late)))) if len(late) >= OFTEN else float("nan")


def rerun(base, jobs=0, steps=STEPS):
    """Train what the study of 2019 trained, as it trained it: its layers, both faults of its training loop, as long.

    Args:
        base: the Run to start from, of any length.
        jobs: as in `running.run_all`.
        steps: of the accuracies; fewer leave places of the table empty.

    Returns:
        dict name -> History: the curves under the names of ACCURACIES; under ("own", method) and ("TensorFlow's",
        method) 15 steps with a trace.
    """
    base = replace(base, steps=steps)
    short = replace(base, steps=equivalence.DRIFT_STEPS, **equivalence.TRACED)
    runs = {method: replace(base, **layer) for method, layer in OWN.items()}
    runs["TensorFlow's LN"] = replace(base, **TENSORFLOWS["LN"], repeat_updates=True)
    for method, factors in FACTORS.items():
        runs["own", method], runs["TensorFlow's", method] = pair(short, method, factors)
    found = running.run_all(runs.values(), jobs, "as in 2019")
    present.runs({"as in 2019": found.values()})
    return {name: found[run] for name, run in runs.items()}


def beside(found, curves):
    """The numbers of the study of 2019 beside those that its layers and training give here, and the right ones.

    Args:
        found: what `rerun` returns.
        curves: dict method -> list of History, of right layers properly trained, one a seed; those of other data than
            `found` are left out.

    Returns:
        DataFrame with columns what, then, again, right (accuracies alone) and verdict: an accuracy is reproduced within
        one point, a drift with the same sign and apart by a factor of two at most; what was not trained so long was
        "not run".
    """
    rows = []
    here = found["none"].run.dataset
    for method, values in ACCURACIES.items():
        for step, then in zip((100, STEPS), values, strict=True):
            if then is None:
                continue
            again = _accuracy([found[method]], step)
            right = _accuracy(
                [h for h in curves[method.removeprefix("TensorFlow's ")] if h.run.dataset == here], step
            )
            same = abs(again - then) <= 0.01 + 1e-9
            rows.append((f"{present.short(method)}, accuracy after {step:,} steps", then, again, right, same))
    for method, values in DRIFTS.items():
        drift = equivalence.drift(found["own", method], found["TensorFlow's", method])
        for parameter, then in zip(("gamma", "beta"), values, strict=True):
            again = _at_the_end(drift, f"norm_conv/{parameter}")
            same = again * then > 0 and 0.5 <= again / then <= 2
            what = (
                f"{method}, difference of {present.symbol(parameter)} after {equivalence.DRIFT_STEPS} steps"
            )
            rows.append((what, then, again, np.nan, same))
    table = pd.DataFrame(rows, columns=["what", "then", "again", "right", "verdict"])
    verdict = np.where(table.again.isna(), "not run", np.where(table.verdict, "reproduced", "not reproduced"))
    return table.assign(verdict=verdict)


def spread(curves):
    """How far the accuracy of the plain network varies from seed to seed early in the training, in words; empty where
    that was not measured."""
    step = 100
    values = [h.accuracy[h.steps == step][0] for h in curves["none"] if step in h.steps]
    if len(values) < 2:
        return ""
    return (
        f"Single runs vary: after {step} steps the seeds of the plain network have a standard deviation of "
        f"{100 * np.std(values, ddof=1):.1f} points ({curves['none'][0].run.dataset})."
    )


def _accuracy(histories, step):
    """Mean accuracy at a step; NaN where it was not measured."""
    values = [h.accuracy[h.steps == step][0] if step in h.steps else np.nan for h in histories]
    return float(np.mean(values)) if values else np.nan


def message(table):
    """The caption's first sentence of the numbers of 2019."""
    counts = table.verdict.value_counts()
    left = f", {counts['not run']} not run" if "not run" in counts else ""
    return (
        f"With the layers and the training of 2019, {counts.get('reproduced', 0)} of its {len(table)} numbers are "
        f"reproduced, {counts.get('not reproduced', 0)} not{left}."
    )
