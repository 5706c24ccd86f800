"""Is a layer the same as another? A candidate against a reference: outputs, gradients, paired training.

A layer is given by the Run's fields that make it, such as network.METHODS["BN"]: {"norm": import path, "options": ...}.
"""

import argparse
import ast
import inspect
import pathlib
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import tensorflow as tf
from scipy import optimize

from study import network, present, running, training

# --- one call ----------------------------------------------------------------------------------------------------

SHAPE = (100, 28, 28, 30)  # of the input of one call: a batch behind the study's convolution


def make(layer, shape, dtype):
    """A layer by itself, built for inputs of a shape; a wrapper around a small convolution."""
    kind = network.resolve(layer["norm"])
    of_kind = network.framework(kind)
    with network.by_default(dtype, of_kind):
        return _made(kind, of_kind, dict(layer.get("options", ())) | {"dtype": dtype}, shape, dtype)


def _made(kind, of_kind, arguments, shape, dtype):
    if not network.is_wrapper(kind):
        made = network.make(kind, arguments, shape[-1])
        try:  # layers inside are built by a call; it has no numbers
            made(of_kind.Input(shape[1:], batch_size=shape[0], dtype=dtype))
        except (Exception, SystemExit):  # of which the calls to come will tell
            if not made.built:
                made.build(shape)
        return made
    start = network.initial(seed=2612, index=0)
    wrapped = of_kind.layers.Conv2D(4, 3, padding="same", kernel_initializer=start, dtype=dtype)
    made = network.make(kind, arguments, None, wrapped)
    made(tf.zeros(shape, dtype))  # some look at their weights only now
    return made


def in_training(layer, x, training=True):
    """A call in training or in inference, of a layer that knows the difference or not."""
    return layer(x, training=training) if "training" in inspect.signature(layer.call).parameters else layer(x)


def weights_of(layer, trainable):
    """A layer's floating-point weights, each once, by the last part of their names."""
    listed = layer.trainable_variables if trainable else layer.non_trainable_variables
    return {network.last_name(v): v for v in listed if tf.as_dtype(v.dtype).is_floating}


def call(layer, x, dy):
    """What one layer gives, by name: its output in inference, then of one call in training output, gradients and moving
    statistics.

    Raises:
        ValueError: an output that is not one tensor of dy's shape.
    """
    kept = weights_of(layer, trainable=False)
    before = {name: np.array(variable) for name, variable in kept.items()}
    found = {"inference": in_training(layer, x, training=False)}
    for name, variable in kept.items():
        variable.assign(before[name])  # what training finds, whatever inference may have done
    variables = weights_of(layer, trainable=True)
    values = training.values_of(variables.values())
    with tf.GradientTape() as tape:
        tape.watch(x)
        found["y"] = in_training(layer, x)
    for y in found.values():
        if not tf.is_tensor(y) or y.shape != dy.shape:
            received = f"one of shape {tuple(y.shape)}" if tf.is_tensor(y) else f"a {type(y).__name__}"
            raise ValueError(
                f"Expected one tensor of shape {tuple(dy.shape)} as output. Received: {received}"
            )
    gradients = tape.gradient(found["y"], [x, *values], dy, unconnected_gradients="zero")
    found |= dict(zip(("dx", *(f"d{name}" for name in variables)), gradients, strict=True))
    found |= kept
    return {name: np.asarray(value, "float64") for name, value in found.items()}


def calls(layers, shape, dtypes, seed=2612, mean=0.0):
    """Call layers on the same input with the same weights, float32 numbers in any dtype, and give each its own back.

    Args:
        layers: list of layers, made or to be made; what the later ones name otherwise goes by the first one's names.
        shape: of the input, the batch first.
        dtypes: for each layer.
        seed: fixes input, weights and the incoming gradient.
        mean: of the input, in its deviations.

    Returns:
        list of dicts of `call`.

    Raises:
        ValueError: weights of other shapes.
    """
    rng = np.random.default_rng(seed)
    made = [
        make(layer, shape, dtype) if isinstance(layer, dict) else layer
        for layer, dtype in zip(layers, dtypes, strict=True)
    ]
    first = [weights_of(made[0], trainable) for trainable in (True, False)]
    values = {n: rng.uniform(0.5, 1.5, v.shape).astype("float32") for part in first for n, v in part.items()}
    output = in_training(made[0], tf.zeros(shape, dtypes[0]), training=False).shape
    x, dy = (rng.normal(m, 1.0, s).astype("float32") for m, s in ((mean, shape), (0.0, output)))
    pairs = [_weights_in_pairs(layer, made[0]) for layer in made]  # before any has other values
    found = []
    for layer, dtype, paired in running.progress(
        [*zip(made, dtypes, pairs, strict=True)], "one call", unit="layer"
    ):
        started = {name: np.array(variable) for name, variable in paired.items()}
        for name, variable in paired.items():
            variable.assign(values[name])
        own_names = {network.last_name(variable): name for name, variable in paired.items()}
        result = call(layer, tf.constant(x, dtype), tf.constant(dy, dtype))
        for name, variable in paired.items():
            variable.assign(started[name])
        renamed = {own: own for own in ("inference", "y", "dx")}
        renamed |= own_names | {f"d{own}": f"d{name}" for own, name in own_names.items()}
        found.append({renamed[name]: value for name, value in result.items()})
    return found


def _weights_in_pairs(layer, reference):
    """A layer's weights, by the names of a reference's."""
    pairs = {}
    for trainable, kind in ((True, "trained"), (False, "kept and not trained")):
        own, expected = (weights_of(each, trainable) for each in (layer, reference))
        shapes = [[tuple(v.shape) for v in part.values()] for part in (own, expected)]
        if sorted(shapes[0]) != sorted(shapes[1]):
            told = "" if own else "; Keras knows of those alone that `add_weight` makes"
            raise ValueError(
                f"Expected weights, {kind}, of the shapes {shapes[1]}. Received: {shapes[0]}{told}"
            )
        pairs |= in_pairs(own, expected)
    return pairs


def in_pairs(ours, theirs):
    """What a candidate has for each of a reference's: of two dicts of arrays, the second's name -> the first's array.

    They go by their names; where these differ, so that the arrays in pairs differ least.
    """
    if ours.keys() == theirs.keys():
        return {name: ours[name] for name in theirs}

    def apart(a, b):  # other shapes, and what is not finite, farther than any that can be compared
        a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
        far = np.max(np.abs(a - b)) if a.shape == b.shape else 1e6 + abs(a.mean() - b.mean())
        return far if np.isfinite(far) else 1e9

    costs = [[apart(a, b) for a in ours.values()] for b in theirs.values()]
    _, chosen = optimize.linear_sum_assignment(costs)
    return dict(zip(theirs, (list(ours.values())[i] for i in chosen), strict=True))


def layer_differences(candidate, reference, shape=SHAPE, dtype="float32"):
    """Call both layers once on the same input with the same weights.

    Args:
        candidate, reference: the two layers.
        shape, dtype: as in `calls`.

    Returns:
        DataFrame with one row for each of the outputs in inference and training, dx, the parameters' gradients and the
        moving statistics: `relative` is the largest absolute difference in units of the largest absolute value of the
        reference.
    """
    expected, found = calls([reference, candidate], shape, [dtype, dtype])
    return pd.DataFrame([{"quantity": q, "relative": _relative(found[q], v)} for q, v in expected.items()])


def layer_errors(layers, shape=SHAPE, mean=0.0):
    """How exact layers are: the error of one call in float32, against the same call of the same layer in float64.

    Args:
        layers: dict name -> layer.
        shape, mean: as in `calls`.

    Returns:
        DataFrame with columns quantity and, for each layer, its largest error in units in the last place of the
        quantity's largest value.
    """
    many = [layer for layer in layers.values() for _ in range(2)]
    found = iter(calls(many, shape, ["float32", "float64"] * len(layers), mean=mean))
    table = {}
    for name in layers:
        single, exact = next(found), next(found)
        table[name] = {q: _units(single[q], v) for q, v in exact.items()}
    return pd.DataFrame(table).rename_axis("quantity").reset_index()


def one_call(candidate, reference, shape=SHAPE):
    """One call of both layers, in float32 and in float64.

    Args:
        candidate, reference, shape: as in `layer_differences`.

    Returns:
        DataFrame with columns quantity; float32 and float64, the difference of the two layers in either, as in
        `layer_differences`; own and TensorFlow's, the error of each in float32, as in `layer_errors`.
    """
    dtypes = ["float32", "float32", "float64", "float64"]
    theirs, own, theirs_exact, own_exact = calls([reference, candidate] * 2, shape, dtypes)
    return pd.DataFrame(
        {
            "quantity": q,
            "float32": _relative(own[q], theirs[q]),
            "float64": _relative(own_exact[q], theirs_exact[q]),
            "own": _units(own[q], own_exact[q]),
            "TensorFlow's": _units(theirs[q], theirs_exact[q]),
        }
        for q in theirs
    )


def sum_error(shape=SHAPE, seed=2612):
    """How exact TensorFlow's own sum is in float32: the error of the sums over all axes but the last, in units in the
    last place of the largest.

    Args:
        shape: of what is summed, standard normal numbers.
        seed: fixes them.
    """
    values = np.random.default_rng(seed).normal(size=shape).astype("float32")
    axes = tuple(range(len(shape) - 1))
    return _units(tf.reduce_sum(values, axes), values.sum(axes, dtype="float64"))


def _relative(found, expected):
    """The largest difference, in units of the largest value expected; of zeros, as it is."""
    difference, scale = (float(np.max(np.abs(values))) for values in (found - expected, expected))
    return difference / scale if scale else difference


def _units(single, exact):
    """The largest error in float32, in units in the last place of the largest value."""
    return float(np.max(np.abs(single - exact)) / np.spacing(np.float32(np.max(np.abs(exact)))))


SECOND = (16, 6, 6, 8)  # shape of the input along which second derivatives are tried


def second_derivative_error(path, options=(), seed=2612):
    """How wrong a layer's second derivatives are: a Hessian-vector product, by automatic differentiation, against
    central differences of the layer's own first derivatives, in float64 and training mode.

    Args:
        path: import path of the layer.
        options: its arguments, as (name, value) pairs.
        seed: of the input, of shape SECOND, of the loss and of the direction.

    Returns:
        The largest absolute difference, in units of the largest absolute value.
    """
    rng = np.random.default_rng(seed)
    # A direction with a mean of its own: what is wrong is how the mean moves the variance.
    x, weights, direction = (tf.constant(rng.normal(mean, 1.0, SECOND)) for mean in (0, 0, 1))
    layer = network.resolve(path)(**dict(options), dtype="float64")
    layer.build(SECOND)

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


# --- paired training -----------------------------------------------------------------------------------------------


def traced_pairs(candidate, reference):
    """The traced parameters of two Histories, paired by `in_pairs`, as name -> (candidate's, reference's)."""
    ours, theirs = candidate.trace, reference.trace
    if len(ours) != len(theirs) or not ours:
        raise ValueError(
            f"Expected two traces of the same parameters. Received: {sorted(ours)} and {sorted(theirs)}"
        )
    return {name: (a.astype("float64"), theirs[name]) for name, a in in_pairs(ours, theirs).items()}


def drift(candidate, reference):
    """How the normalization's parameters of two runs part, step by step.

    Args:
        candidate, reference: two Histories with a trace, of the same parameters.

    Returns:
        DataFrame with columns step (from 1), parameter (such as "norm_conv/gamma"), mean (the mean over the parameter's
        elements, reference minus candidate: with this sign the drifts of 2019 come out negative as they were drawn) and
        largest (the largest absolute difference; of parameters of different shapes, that of the means).

    Raises:
        ValueError: the two traces do not hold the same parameters.
    """
    frames = []
    for name, (ours, theirs) in traced_pairs(candidate, reference).items():
        mean = theirs.mean(axis=1, dtype="float64") - ours.mean(axis=1)
        largest = np.abs(theirs - ours).max(axis=1) if ours.shape == theirs.shape else np.abs(mean)
        steps = np.arange(1, len(mean) + 1)
        frames.append(pd.DataFrame({"step": steps, "parameter": name, "mean": mean, "largest": largest}))
    return pd.concat(frames, ignore_index=True)


def largest_drift(drift, step=None):
    """The largest difference of any parameter after a step, of what `drift` returns. Default: the last."""
    return float(drift.largest[drift.step == (step or drift.step.max())].max(skipna=False))


def largest_weight_difference(candidate, reference, moving=False):
    """The largest absolute difference between all trained weights of two runs at their end, or all moving statistics.

    The weights are paired by `in_pairs`, so that two frameworks' names need not agree. 0 if there are none.

    Raises:
        ValueError: not as many weights in one run as in the other.
    """
    ours, theirs = (
        {name: w for name, w in run.weights.items() if name.startswith(training.MOVING) == moving}
        for run in (candidate, reference)
    )
    if len(ours) != len(theirs):
        raise ValueError(f"Expected the weights {sorted(theirs)}. Received: {sorted(ours)}")
    pairs = in_pairs(ours, theirs)
    apart = [np.max(np.abs(w.astype("float64") - theirs[name])) for name, w in pairs.items()]
    return float(np.max(apart, initial=0.0))


def fault_name(repeated, paired):
    """What one combination of the two faults of 2019 is called."""
    faults = ["repeated updates"] if repeated else []
    faults += [] if paired else ["other initial weights"]
    return " and ".join(faults) or "neither"


TRACED = {"trace": True, "evaluate_every": None}  # runs of which only the parameters count
BOTH_FAULTS, NO_FAULT = fault_name(True, False), fault_name(False, True)
NO_FAULT_64 = "neither, in float64"
DRIFT_STEPS = 15  # that the study of 2019 looked at the drift


def fault_drifts(base, candidate, reference, jobs=0):
    """Reproduce the drift of 2019 and remove it: the reference is trained with each combination of its two faults.

    Args:
        base: the Run to start from.
        candidate, reference: the two layers.
        jobs: as in `running.run_all`.

    Returns:
        dict fault name -> DataFrame of `drift`: both faults first, then each, then neither, then neither in float64.
    """
    short = replace(base, steps=DRIFT_STEPS, **TRACED)
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
    found = _recorded([run for pair in pairs.values() for run in pair], jobs, "drift")
    return {name: drift(found[own], found[theirs]) for name, (own, theirs) in pairs.items()}


def _recorded(runs, jobs, description):
    """Train runs, and record them so that an audit can pick them."""
    found = running.run_all(runs, jobs, description)
    present.runs({description: found.values()})
    return found


# Of a twin, one of these weights of the convolution starts one unit in the last place higher: in corners, at the edge
# and in the middle of the kernel, in different filters.
NUDGES = (125, 249, 373, 497, 621)
LONG = 1_000  # steps of a Run that is for evidence, not for speed
EARLY = 5  # steps within which float32 has hardly parted from itself, and a small fault still shows


def paired_training(base, candidate, reference, jobs=0, steps=None, twins=2):
    """Train both layers from the same weights on the same batches, in float64 and float32, and twins of the reference
    in each of which one weight starts one unit in the last place higher.

    Args:
        base, candidate, reference, jobs: as in `fault_drifts`.
        steps: how many. Default: a twentieth of the Run's, 10 at least; of a Run over LONG a fifth.
        twins: how many, of NUDGES.

    Returns:
        dict with `float64` and `float32`, the largest difference of a weight between candidate and reference, `twin`,
        the largest between the reference and any of its twins in float32, `rounding`, that between the reference in
        float32 and in float64; `moving`, as `float64` but of the moving statistics; `early`, the four first of the
        traced parameters alone after EARLY steps, empty where there are none; and `steps`.
    """
    steps = steps or max(10, base.steps // (5 if base.steps > LONG else 20))
    own, theirs = (replace(base, steps=steps, **TRACED, **layer) for layer in (candidate, reference))
    exact = [replace(run, dtype="float64") for run in (own, theirs)]
    moved = [replace(theirs, nudge=nudge) for nudge in NUDGES[:twins]]
    found = _recorded([own, theirs, *exact, *moved], jobs, "paired training")

    def measured(difference):
        return {
            "float64": difference(*(found[run] for run in exact)),
            "float32": difference(found[own], found[theirs]),
            "twin": max(difference(found[run], found[theirs]) for run in moved),
            "rounding": difference(found[theirs], found[exact[1]]),
        }

    early = min(EARLY, steps)
    return measured(largest_weight_difference) | {
        "moving": largest_weight_difference(*(found[run] for run in exact), moving=True),
        "early": measured(lambda a, b: largest_drift(drift(a, b), early)) if found[theirs].trace else {},
        "steps": steps,
    }


# --- mechanisms ------------------------------------------------------------------------------------------------------

PLAIN = "the plain formula, by autodiff"


def mechanisms(method, own):
    """The ways in which two networks with 'the same' normalization may differ.

    Args:
        method: "BN", "LN" or "WN".
        own: the Run with the own layer.

    Returns:
        dict mechanism -> (Run, the Run it is held against): a planted fault is held against the same formula without.
    """
    kind = {"BN": "Batch", "LN": "Layer", "WN": "Weight"}[method]

    def changed(norm=own.norm, where=own.where, **options):
        options = tuple((dict(own.options) | options).items())
        return replace(own, norm=norm, where=where, options=options), own

    def planted(fault, **options):
        layers = (
            changed(f"study.faulty:Faulty{kind}Normalization", fault=f, **options) for f in (fault, "none")
        )
        return tuple(run for run, _ in layers)

    found = {
        "TensorFlow's layer": (replace(own, **network.REFERENCES[method]), own),
        PLAIN: (planted("none")[0], own),
        "no bias before it": (replace(own, bias=False), own),
        "other batches": (replace(own, seed=own.seed + 1_000, weights_seed=own.seed), own),
        "other initial weights": (replace(own, weights_seed=own.seed + 1_000), own),
        "repeated updates": (replace(own, repeat_updates=True), own),
    }
    if method == "WN":
        return found | {
            "length detached": planted("detached length"),
            "length over the first axis": planted("first axis"),
            "ε = 1e-12 under the root": planted("epsilon", epsilon=1e-12),
            "one g, length over the first axis": changed("study.original:WeightNormalization"),
        }
    found |= {
        "ε = 1e-3 for 1e-5": changed(epsilon=1e-3),
        "unbiased variance": planted("unbiased variance"),
        "one-pass variance": planted("one-pass variance"),
        "statistics detached": planted("detached statistics"),
        "after ReLU": changed(where=("relu",)),
        "axis 1": changed(axis=1),
    }
    if method == "BN":
        return found | {
            "momentum 0.99 for 0.9": changed(momentum=0.99),
            "moving variance from 0": changed(moving_variance_initializer="zeros"),
            "unbiased moving variance": planted("unbiased moving variance"),
            "a γ for each place": planted("parameters of the whole sample"),
        }
    by_channel = {"norm": "normlib:GroupNormalization", "options": (("groups", 1), ("epsilon", 1e-5))}
    return found | {
        "axis −1, the channels": changed(axis=-1),
        "a γ for each channel": (replace(own, **by_channel), own),
        "a γ for each place in the batch": changed(
            "study.original:LayerNormalization", positions=own.batch_size
        ),
    }


def mechanism_drifts(base, method, jobs=0):
    """Train pairs of networks that differ in one mechanism each, in float32 and float64, on the embedded sample.

    Args:
        base: the Run to start from; a seventieth of its steps are trained, DRIFT_STEPS at least.
        method: "BN", "LN" or "WN".
        jobs: as in `running.run_all`.

    Returns:
        DataFrame with columns mechanism, float32 and float64 (the largest difference of a traced parameter after the
        last step), rounding (the same between either network of the pair in float32 and itself in float64, the larger),
        band (the same in float32 between the own layer and the farthest of its twins, or itself in float64: what
        float32 leaves open), steps and batch_size.
    """
    steps = max(DRIFT_STEPS, base.steps // 70)
    base = replace(base, dataset="fashion_mnist", sample=True, steps=steps, **TRACED)
    own = replace(base, batch_size=20, **network.METHODS[method])  # few: float64 takes ten times as long
    pairs = mechanisms(method, own)
    twins = [replace(own, nudge=nudge) for nudge in NUDGES]
    singles = dict.fromkeys([own, *(run for pair in pairs.values() for run in pair)])
    exact = {run: replace(run, dtype="float64") for run in singles}
    found = _recorded([*twins, *exact, *exact.values()], jobs, f"mechanisms of {method}")

    def apart(a, b):
        return largest_drift(drift(found[a], found[b]))

    band = max(apart(run, own) for run in (*twins, exact[own]))
    return pd.DataFrame(
        {
            "mechanism": name,
            "float32": apart(run, against),
            "float64": apart(exact[run], exact[against]),
            "rounding": max(apart(one, exact[one]) for one in (run, against)),
            "band": band,
            "steps": steps,
            "batch_size": own.batch_size,
        }
        for name, (run, against) in pairs.items()
    )


# --- the command line --------------------------------------------------------------------------------------------


def _given(text):
    """An argument NAME=VALUE of the command line, the value a Python literal."""
    name, _, value = text.partition("=")
    try:
        value = fixed(ast.literal_eval(value))
        hash(value)  # it is part of a Run's key
    except (ValueError, SyntaxError, TypeError):
        raise argparse.ArgumentTypeError(
            "Expected NAME=VALUE with a Python literal that holds no dict and no set, such as axis=[1,2] or "
            f"name=\"'x'\". Received: {text!r}"
        ) from None
    return name, value


def fixed(value):
    """An argument's value as a Run holds it: lists as tuples."""
    return tuple(map(fixed, value)) if isinstance(value, (list, tuple)) else value


def positive(text):
    """An argument of the command line that is a whole number from 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"Expected a whole number from 1. Received: {text!r}")
    return int(text)


def main(arguments=None):
    """Examine a layer: exit code 0 if it is the same, 1 if it is not, 2 if it or an argument is not understood."""
    from study import examination  # it builds on this module

    parser = argparse.ArgumentParser(prog="python -m study.equivalence", description=main.__doc__)
    parser.add_argument("candidate", help="import path module:Class of your layer; its code is run")
    parser.add_argument("reference", nargs="?", default="keras.layers:BatchNormalization")
    for name, of in (("--set", "both layers"), ("--set-candidate", "the candidate alone")):
        parser.add_argument(
            name, action="append", default=[], metavar="NAME=VALUE", type=_given, help=f"an argument of {of}"
        )
    parser.add_argument("--steps", type=positive, default=20, help="of the paired training (default: 20)")
    parser.add_argument("--json", type=pathlib.Path, help="file for the certificate as JSON")
    options = parser.parse_args(arguments)
    for path in (options.candidate, options.reference):
        try:
            kind = network.resolve(path)
        except (Exception, SystemExit) as error:  # a module may do anything when it is imported
            parser.error(f"{path} cannot be imported. {type(error).__name__}: {error}")
        if not isinstance(kind, type):
            parser.error(f"Expected the import path of a class. Received: {path}, which is {kind!r}")
        try:
            network.framework(kind)
        except ValueError as error:
            parser.error(str(error))
    if options.json and (options.json.is_dir() or not options.json.parent.is_dir()):
        parser.error(f"Expected --json to be a file in a folder that exists. Received: {options.json}")
    try:
        examination.make(options.reference, tuple(options.set))
    except Exception as error:
        parser.error(f"The reference {options.reference} cannot be made. {type(error).__name__}: {error}")
    certificate = examination.examine(
        options.candidate,
        options.reference,
        tuple(options.set),
        options.steps,
        own=tuple(options.set_candidate),
    )
    print(certificate.text())
    if options.json:
        options.json.write_text(certificate.json() + "\n")
    return 0 if certificate.same else 1


if __name__ == "__main__":
    sys.exit(main())
