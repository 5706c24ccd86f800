"""Is a layer the same as another? The examination of a candidate against a reference, and the certificate it gives.

    python -m study.equivalence mymodule:MyBatchNorm keras.layers:BatchNormalization

An import path runs the code behind it: examine only code that you would run.
"""

import dataclasses
import json
import pathlib
import tempfile

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from study import equivalence, faulty, network, training

SHAPE = (24, 6, 5, 4)  # of the input of one call: small, so that every cause leaves its mark
ONE_CALL = {"float32": 1e-4, "float64": 1e-9}  # relative tolerances of one call
TRAINED = 1e-9  # of a weight after paired training in float64
TWINS = 10  # in float32, times what the reference's twins, or its float64 self, part from it by
OTHER_EPSILONS = (1e-3, 1e-5, 1e-6, 1e-8, 1e-12, 0.0)
OTHER_MOMENTUMS = (0.9, 0.99, 0.999)


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What an examination found.

    Attributes:
        candidate, reference: import paths.
        checks: DataFrame with columns check, measured, tolerance, verdict ("same", "differs" or "fails") and note.
        causes: sentences, each a cause that explains the differences of one call; empty where there are none, or
            where no known cause fits.
    """

    candidate: str
    reference: str
    checks: pd.DataFrame
    causes: tuple

    @property
    def same(self):
        """Whether every check found the two layers the same."""
        return bool((self.checks.verdict == "same").all())

    @property
    def sentence(self):
        """The verdict in words."""
        if self.same:
            return f"{self.candidate} is the same as {self.reference}, up to floating-point error, in every check."
        failed = list(self.checks.check[self.checks.verdict == "fails"])
        differing = list(self.checks.check[self.checks.verdict == "differs"])
        parts = [f"differs in {', '.join(differing)}"] if differing else []
        parts += [f"could not be examined in {', '.join(failed)}"] if failed else []
        cause = " ".join(self.causes) or ("No known cause fits." if differing else "")
        return (
            f"{self.candidate} is not the same as {self.reference}: it {' and '.join(parts)}. {cause}".strip()
        )

    def text(self):
        """The certificate as plain text."""
        table = self.checks.to_string(
            index=False, formatters={c: "{:.1e}".format for c in ("measured", "tolerance")}
        )
        return f"{table}\n\n{self.sentence}"

    def json(self):
        """The certificate as JSON."""
        fields = dataclasses.asdict(self) | {"checks": self.checks.to_dict("records"), "same": self.same}
        return json.dumps(fields | {"sentence": self.sentence}, indent=1, default=str)


def examine(candidate, reference, options=(), steps=60, jobs=0, base=None):
    """Examine a layer: one call in float32 and float64, paired training, saving and loading; then name the cause.

    Args:
        candidate, reference: import paths "module:Class" of two Keras layers of the same arguments.
        options: arguments of both, as (name, value) pairs.
        steps: of the paired training.
        jobs: trainings at a time; 0 for one on each core.
        base: the Run that gives the data. Default: the embedded sample.

    Returns:
        A Certificate. A candidate that raises is reported in it, not raised.
    """
    rows = []

    def check(name, tolerance, measure):
        try:
            measured, note = measure(), ""
            verdict = "same" if measured <= tolerance else "differs"
        except Exception as error:  # whatever another's layer raises is a result
            measured, verdict = float("nan"), "fails"
            told = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
            note = f"{type(error).__name__}: {told or 'no message'}"[:160]
        rows.append(
            {"check": name, "measured": measured, "tolerance": tolerance, "verdict": verdict, "note": note}
        )

    def one_call(dtype, wanted):
        found = equivalence.layer_differences(candidate, reference, options, SHAPE, dtype)
        chosen = found[[wanted(name) for name in found.quantity]]
        return float(chosen.relative.max()) if len(chosen) else 0.0

    kinds = {
        "output": lambda name: name == "y",
        "gradients": lambda name: name.startswith("d"),
        "moving statistics": lambda name: name.startswith("moving"),
    }
    for dtype, tolerance in ONE_CALL.items():
        for kind, wanted in kinds.items():
            check(f"{kind}, {dtype}", tolerance, lambda d=dtype, w=wanted: one_call(d, w))

    base = base or training.Run(sample=True, steps=steps)
    runs = [{"norm": path, "options": tuple(options)} for path in (candidate, reference)]
    trained = {}

    def trained_apart():
        trained.update(equivalence.paired_training(base, *runs, jobs, steps))
        return trained["float64"]

    check("paired training, float64", TRAINED, trained_apart)
    if trained:
        check(
            "paired training, float32",
            TWINS * max(trained["twin"], trained["rounding"]),
            lambda: trained["float32"],
        )
    check("saving and loading", 0.0, lambda: _saved_and_loaded(candidate, options))
    checks = pd.DataFrame(rows)
    causes = () if (checks.verdict == "same").all() else _causes(candidate, reference, options)
    return Certificate(candidate, reference, checks, causes)


def _saved_and_loaded(path, options):
    """The largest difference of outputs between a model and the same model saved and loaded."""
    kind = network.resolve(path)
    model = keras.Sequential([keras.Input(SHAPE[1:]), kind(**dict(options))])
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in model.get_weights()])
    x = rng.normal(size=SHAPE).astype("float32")
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "model.keras")
        model.save(file)
        loaded = keras.saving.load_model(file, custom_objects={kind.__name__: kind})
        return float(tf.reduce_max(tf.abs(model(x) - loaded(x))))


def _causes(candidate, reference, options):
    """The known causes that explain what one call of the candidate gives, as sentences."""
    try:
        layers = [network.resolve(path)(**dict(options), dtype="float64") for path in (candidate, reference)]
        for layer in layers:
            layer.build(SHAPE)
        shapes = [[tuple(w.shape) for w in layer.trainable_variables] for layer in layers]
        if len({id(v) for v in layers[0].trainable_variables}) < len(layers[0].trainable_variables):
            return ("A parameter is listed more than once, so that an optimizer updates it repeatedly.",)
        found = _quantities(candidate, options)
    except Exception:
        return ()
    kind = "Batch" if hasattr(layers[1], "momentum") else "Layer"
    path, given = f"study.faulty:Faulty{kind}Normalization", dict(options)
    hypotheses = [
        (f"It has this fault: {text}.", {"fault": name})
        for name, text in faulty.FAULTS.items()
        if name != "none"
    ]
    own = layers[1].epsilon
    hypotheses += [
        (f"Its epsilon is {e:g} rather than {own:g}.", {"epsilon": e}) for e in OTHER_EPSILONS if e != own
    ]
    if kind == "Batch":
        momentum = layers[1].momentum
        others = [(f"{m:g}", m) for m in OTHER_MOMENTUMS if m != momentum]
        others.insert(0, ("the weight of the new value", 1 - momentum))
        hypotheses += [
            (f"Its momentum is {name} rather than {momentum:g}.", {"momentum": m}) for name, m in others
        ]
    axes = [-1, 1, [1, 2, 3]] if kind == "Layer" else [-1, 1]
    hypotheses += [
        (f"It normalizes axis {axis}.", {"axis": axis}) for axis in axes if axis != given.get("axis", -1)
    ]
    fitting = []
    for sentence, changed in hypotheses:
        try:
            expected = _quantities(path, tuple((given | changed).items()))
        except Exception:
            continue
        if found.keys() == expected.keys() and all(
            np.shape(found[k]) == np.shape(expected[k])
            and _apart(found[k], expected[k]) <= ONE_CALL["float64"]
            for k in found
        ):
            fitting.append(sentence)
    if not fitting and shapes[0] != shapes[1]:
        return (f"Its parameters have the shapes {shapes[0]} rather than {shapes[1]}.",)
    return tuple(fitting[:1])


def _quantities(path, options):
    rng = np.random.default_rng(2612)
    layer = network.resolve(path)(**dict(options), dtype="float64")
    layer.build(SHAPE)
    x, dy = (tf.constant(rng.normal(mean, 1.0, SHAPE)) for mean in (2.0, 0.0))
    layer.set_weights([rng.uniform(0.5, 1.5, size=w.shape) for w in layer.get_weights()])
    return equivalence.call(layer, x, dy)


def _apart(a, b):
    return float(np.max(np.abs(a - b)) / max(1.0, np.max(np.abs(b))))
