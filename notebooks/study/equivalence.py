"""Is a layer the same as another? A candidate against a reference: outputs, gradients, paired training."""

import argparse
import ast
import pathlib
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import tensorflow as tf

from study import network, running


def layer_differences(candidate, reference, options=(), shape=(100, 28, 28, 30), dtype="float32", seed=2612):
    """Call both layers once, in training mode, on the same input with the same weights.

    Args:
        candidate, reference: import paths of the two layers, or of two wrappers of layers with a kernel.
        options: their arguments, as (name, value) pairs.
        shape: of the input, the batch first.
        dtype: "float32" or "float64".
        seed: fixes input, weights and the incoming gradient.

    Returns:
        DataFrame with one row for each of output, dx, the parameters' gradients and the moving statistics:
        `difference` is the largest absolute difference, `relative` the same in units of the largest absolute value
        of the reference, `units` in units of the last place of that value.
    """
    rng = np.random.default_rng(seed)
    x, dy = (tf.constant(rng.normal(size=shape), dtype) for _ in range(2))
    weights, results = None, []
    for path in (reference, candidate):
        layer = network.resolve(path)(**dict(options), dtype=dtype)
        layer.build(shape)
        weights = weights or [rng.uniform(0.5, 1.5, size=w.shape) for w in layer.get_weights()]
        layer.set_weights(weights)
        results.append(call(layer, x, dy))
    rows = []
    for name, of_reference in results[0].items():
        difference = float(np.max(np.abs(results[1][name] - of_reference)))
        scale = float(np.max(np.abs(of_reference)))
        rows.append(
            {
                "quantity": name,
                "difference": difference,
                "relative": difference / scale if scale else difference,
                "units": difference / float(np.spacing(np.asarray(scale, dtype))),
            }
        )
    return pd.DataFrame(rows)


def in_training(layer, x):
    return layer(x, training=True) if "training" in layer.call.__code__.co_varnames else layer(x)


def call(layer, x, dy):
    """Output, gradients and moving statistics of one call in training mode, by name."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = in_training(layer, x)
    variables = layer.trainable_variables
    gradients = tape.gradient(y, [x, *(getattr(v, "value", v) for v in variables)], dy)
    named = {"y": y, "dx": gradients[0]}
    named |= {f"d{v.name}": g for v, g in zip(variables, gradients[1:], strict=True)}
    named |= {v.name: v for v in layer.non_trainable_variables}
    return {name: np.asarray(value, "float64") for name, value in named.items()}


def second_derivative_error(path, options=(), shape=(16, 6, 6, 8), seed=2612):
    """How wrong a layer's second derivatives are: a Hessian-vector product, by automatic differentiation, against
    central differences of the layer's own first derivatives, in float64 and training mode.

    Args:
        path: import path of the layer.
        options, shape, seed: as in `layer_differences`.

    Returns:
        The largest absolute difference, in units of the largest absolute value.
    """
    rng = np.random.default_rng(seed)
    # A direction with a mean of its own: what is wrong is how the mean moves the variance.
    x, weights, direction = (tf.constant(rng.normal(mean, 1.0, shape)) for mean in (0, 0, 1))
    layer = network.resolve(path)(**dict(options), dtype="float64")
    layer.build(shape)

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(weights * tf.sin(in_training(layer, x)))
        return tape.gradient(loss, x)

    with tf.GradientTape() as tape:
        tape.watch(x)
        slope = tf.reduce_sum(gradient(x) * direction)
    h = 1e-5
    expected = (gradient(x + h * direction) - gradient(x - h * direction)) / (2 * h)
    return float(np.max(np.abs(tape.gradient(slope, x) - expected)) / np.max(np.abs(expected)))


def drift(candidate, reference):
    """How the normalization's parameters of two runs part, step by step.

    Args:
        candidate, reference: two Histories with a trace, of the same parameters.

    Returns:
        DataFrame with columns step (from 1), parameter (such as "norm_0/gamma"), mean (the mean of candidate minus
        reference over the parameter's elements), largest (the largest absolute difference) and motion (the largest
        absolute distance of the reference from its value after the first step).

    Raises:
        ValueError: the two traces do not hold the same parameters.
    """
    if set(candidate.trace) != set(reference.trace) or not candidate.trace:
        raise ValueError(
            "Expected two traces of the same parameters. "
            f"Received: {sorted(candidate.trace)} and {sorted(reference.trace)}"
        )
    frames = []
    for name, of_reference in reference.trace.items():
        difference = candidate.trace[name].astype("float64") - of_reference
        frames.append(
            pd.DataFrame(
                {
                    "step": np.arange(1, len(difference) + 1),
                    "parameter": name,
                    "mean": difference.mean(axis=1),
                    "largest": np.abs(difference).max(axis=1),
                    "motion": np.abs(of_reference - of_reference[0]).max(axis=1),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def largest_weight_difference(candidate, reference):
    """The largest absolute difference between all weights of two runs at their end.

    The weights are paired by shape and order within a shape, so that two frameworks' names need not agree.
    """
    pairs = zip(_by_shape(candidate.weights), _by_shape(reference.weights), strict=True)
    return max(float(np.max(np.abs(a.astype("float64") - b))) for a, b in pairs)


def _by_shape(weights):
    return sorted(weights.values(), key=lambda w: w.shape)


def drift_table(drifts, parameter, steps=(1, 5, 10, 15)):
    """The mean difference of one parameter at a few steps, a row for each labelled frame of `drift`."""
    rows = []
    for label, frame in drifts.items():
        of_parameter = frame[frame.parameter == parameter].set_index("step")["mean"]
        rows.append({"faults": label} | {f"step {s}": of_parameter[s] for s in steps if s in of_parameter})
    return pd.DataFrame(rows)


def fault_name(repeated, paired):
    """What one combination of the two faults of 2019 is called."""
    faults = ["repeated updates"] if repeated else []
    faults += [] if paired else ["other initial weights"]
    return " and ".join(faults) or "neither"


# Runs of which only the parameters count are measured on the fewer images.
TRACED = {"trace": True, "validation": True}
BOTH_FAULTS, NO_FAULT = fault_name(True, False), fault_name(False, True)
NO_FAULT_64 = "neither, in float64"


def fault_drifts(base, candidate, reference, jobs=0, steps=15):
    """Reproduce the drift of 2019 and remove it: the reference is trained with each combination of its two faults.

    Args:
        base: the Run to start from.
        candidate, reference: the Run's fields that make the two layers, such as {"norm": ..., "options": ...}.
        jobs: as in `running.run_all`.
        steps: how many.

    Returns:
        dict fault name -> DataFrame of `drift`: both faults first, then each, then neither, then neither in float64.
    """
    short = replace(base, steps=steps, evaluate_every=steps, **TRACED)
    own = replace(short, **candidate)
    # In 2019 the parameters of TensorFlow's layer were updated t times at step t, and the two networks started from
    # different weights.
    pairs = {
        fault_name(repeated, paired): (
            own,
            replace(
                short,
                **reference,
                repeat_updates=repeated,
                weights_seed=None if paired else base.seed + 1_000,
            ),
        )
        for repeated in (True, False)
        for paired in (False, True)
    }
    pairs[NO_FAULT_64] = tuple(replace(run, dtype="float64") for run in pairs[NO_FAULT])
    found = running.run_all([run for pair in pairs.values() for run in pair], jobs, "drift")
    return {name: drift(found[own], found[theirs]) for name, (own, theirs) in pairs.items()}


def paired_training(base, candidate, reference, jobs=0, steps=500, twins=2):
    """Train both layers from the same weights on the same batches, in float64 and float32, and twins of the reference
    in each of which one weight starts one unit in the last place higher.

    Args:
        base, candidate, reference, jobs: as in `fault_drifts`.
        steps: how many at most.
        twins: how many.

    Returns:
        dict with `float64` and `float32`, the largest difference of a weight between candidate and reference, `twin`,
        the largest between the reference and any of its twins in float32, `rounding`, that between the reference in
        float32 and in float64, and `steps`.
    """
    steps = min(steps, base.steps)
    own, theirs = (
        replace(base, steps=steps, evaluate_every=steps, **TRACED, **layer)
        for layer in (candidate, reference)
    )
    exact = [replace(run, dtype="float64") for run in (own, theirs)]
    moved = [replace(theirs, nudge=k) for k in range(1, twins + 1)]
    found = running.run_all([own, theirs, *exact, *moved], jobs, "paired training")
    return {
        "float64": largest_weight_difference(*(found[run] for run in exact)),
        "float32": largest_weight_difference(found[own], found[theirs]),
        "twin": max(largest_weight_difference(found[run], found[theirs]) for run in moved),
        "rounding": largest_weight_difference(found[theirs], found[exact[1]]),
        "steps": steps,
    }


def mechanism_drifts(base, jobs=0, steps=30):
    """Train pairs of networks with batch normalization that differ in one thing each, in float32 and float64.

    Args:
        base: the Run to start from.
        jobs: as in `running.run_all`.
        steps: how many at most.

    Returns:
        (DataFrame, float): the largest absolute difference of any gamma or beta after the last step, with columns
        mechanism, float32 and float64; and the same for a twin in float32, one weight of which starts one unit in the
        last place higher.
    """
    steps = min(steps, base.steps)
    own = replace(base, steps=steps, evaluate_every=steps, **TRACED, **network.METHODS["BN"])

    def changed(**options):
        return replace(own, options=tuple((dict(own.options) | options).items()))

    def faulty(fault):
        return replace(changed(fault=fault), norm="study.faulty:FaultyBatchNormalization")

    pairs = {
        "momentum 0.99 for 0.9": changed(momentum=0.99),
        "unbiased moving variance": faulty("unbiased moving variance"),
        "TensorFlow's layer": replace(own, **network.REFERENCES["BN"]),
        "the plain formula, by autodiff": faulty("none"),
        "unbiased variance": faulty("unbiased variance"),
        "epsilon 1e-3 for 1e-5": changed(epsilon=1e-3),
        "detached statistics": faulty("detached statistics"),
        "other batches": replace(own, seed=base.seed + 1_000, weights_seed=base.seed),
        "other initial weights": replace(own, weights_seed=base.seed + 1_000),
        "repeated updates": replace(own, repeat_updates=True),
    }
    twin = replace(own, nudge=1)
    runs = [own, *pairs.values()]
    found = running.run_all(
        [twin, *runs, *(replace(run, dtype="float64") for run in runs)], jobs, "mechanisms"
    )

    def apart(a, b):
        of_all = drift(found[a], found[b])
        return float(of_all.largest[of_all.step == steps].max())

    def against(run):  # a planted fault is held against the same formula without it
        return plain if run.norm == plain.norm and run != plain else own

    plain = pairs["the plain formula, by autodiff"]
    rows = []
    for name, run in pairs.items():
        exact = (replace(r, dtype="float64") for r in (run, against(run)))
        rows.append({"mechanism": name, "float32": apart(run, against(run)), "float64": apart(*exact)})
    return pd.DataFrame(rows), apart(twin, own)


def main(arguments=None):
    """Examine a layer from the command line: 0 if it is the same, 1 if it is not, 2 for wrong arguments."""
    from study import examination  # it builds on this module

    parser = argparse.ArgumentParser(prog="python -m study.equivalence", description=main.__doc__)
    parser.add_argument("candidate", help="import path module:Class of your layer; its code is run")
    parser.add_argument("reference", nargs="?", default="keras.layers:BatchNormalization")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="an argument of both layers"
    )
    parser.add_argument("--steps", type=int, default=60, help="of the paired training")
    parser.add_argument("--json", type=pathlib.Path, help="file for the certificate as JSON")
    options = parser.parse_args(arguments)
    try:
        given = [
            (name, ast.literal_eval(value)) for name, _, value in (s.partition("=") for s in options.set)
        ]
        for path in (options.candidate, options.reference):
            network.resolve(path)
    except (ValueError, SyntaxError) as error:
        parser.error(str(error))
    certificate = examination.examine(options.candidate, options.reference, tuple(given), options.steps)
    print(certificate.text())
    if options.json:
        options.json.write_text(certificate.json() + "\n")
    return 0 if certificate.same else 1


if __name__ == "__main__":
    sys.exit(main())
