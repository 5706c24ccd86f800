"""Is a layer the same as another? The examination of a candidate against a reference, and the certificate it gives.

    python -m study.equivalence mymodule:MyBatchNorm keras.layers:BatchNormalization

An import path runs the code behind it: examine only code that you would run.
"""

import collections
import dataclasses
import itertools
import json
import pathlib
import re
import tempfile

import numpy as np
import pandas as pd
from scipy import optimize

from study import equivalence, faulty, network, training

SHAPE = (24, 6, 5, 4)  # of the input of one call: small, so that every cause leaves its mark
MEAN = 2.0  # of that input, in its deviations
ONE_CALL = {"float32": 1e-4, "float64": 1e-9}  # relative tolerances of one call
TRAINED = 1e-9  # of a weight after paired training in float64
# In float32, times what the reference's twins, or its float64 self, part from it by within the first steps. Later,
# float32 parts from itself so far that a wrong epsilon passes.
TWINS = 10
BOLD = re.compile(r"\x1b\[\d*m")  # Keras's messages are for terminals
SAVING = "saving and loading"
RAISED = (Exception, SystemExit)  # whatever another's layer raises is a result


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

    def require_usable(self):
        """Stop where what follows would call and train the candidate, and it cannot be.

        Raises:
            ValueError: it could not be made, called or trained in the reference's place, or has parameters of other
                shapes.
        """
        failed = self.checks[(self.checks.verdict == "fails") & (self.checks.check != SAVING)]
        if len(failed):
            first = failed.iloc[0]  # it says what the others repeat
            told = " ".join([f"{self.candidate}, which fails in '{first.check}'. {first.note}", *self.causes])
            raise ValueError(
                f"Expected a layer that can be called and trained in the place of {self.reference}. Received: {told}"
            )

    def text(self):
        """The certificate as plain text."""
        table = self.checks.to_string(
            index=False, formatters={c: "{:.1e}".format for c in ("measured", "tolerance")}
        )
        return f"{table}\n\n{self.sentence}"

    def json(self):
        """The certificate as JSON, which knows no nan and no inf: null takes their place."""
        checks = [
            {k: None if v != v or v in (np.inf, -np.inf) else v for k, v in row.items()}
            for row in self.checks.to_dict("records")
        ]
        fields = {
            "candidate": self.candidate,
            "reference": self.reference,
            "checks": checks,
            "same": self.same,
        }
        fields |= {"causes": self.causes, "sentence": self.sentence}
        return json.dumps(fields, indent=1, default=str, allow_nan=False)


def examine(candidate, reference, options=(), steps=20, jobs=0, base=None, own=()):
    """Examine a layer: one call in float32 and float64, paired training, saving and loading; then name the cause.

    Args:
        candidate, reference: import paths "module:Class" of two Keras layers of the same arguments, or of two wrappers
            of layers with a kernel.
        options: arguments of both, as (name, value) pairs.
        steps: of the paired training.
        jobs: trainings at a time; 0 for one on each core.
        base: the Run that gives the data. Default: the embedded sample.
        own: arguments of the candidate alone.

    Returns:
        A Certificate. A candidate that raises is reported in it, not raised.
    """
    ours, theirs = (
        {"norm": path, "options": _options(path, pairs)}
        for path, pairs in ((candidate, (*options, *own)), (reference, options))
    )
    rows = []

    def check(name, tolerance, measure):
        try:
            measured, note = float(measure()), ""
            verdict = "same" if measured <= tolerance else "differs"
        except RAISED as error:
            measured, verdict = float("nan"), "fails"
            lines = BOLD.sub("", str(error)).splitlines()
            told = " ".join(line.strip() for line in lines if line.strip())
            note = f"{type(error).__name__}: {told or 'no message'}"[:160]
        rows.append(
            {"check": name, "measured": measured, "tolerance": tolerance, "verdict": verdict, "note": note}
        )
        return verdict

    def certificate(causes=()):
        return Certificate(candidate, reference, pd.DataFrame(rows), causes)

    if check("to be made and built", 0.0, lambda: _comparable(ours, theirs)) != "same":
        return certificate()

    for dtype, tolerance in ONE_CALL.items():
        found = _once(lambda dtype=dtype: equivalence.layer_differences(ours, theirs, SHAPE, dtype))
        for kind, wanted in KINDS.items():
            check(f"{kind}, {dtype}", tolerance, lambda f=found, w=wanted: _largest(f(), w))
    called = all(row["verdict"] != "fails" for row in rows)
    check("updates at a step", 1.0, lambda: _listed(equivalence.make(ours, SHAPE, "float64")))

    if called:
        where = {"where": ("conv", "hidden")} if _wraps(ours) else {}
        base = base or training.Run(sample=True, steps=steps)
        apart = _once(
            lambda: equivalence.paired_training(base, ours | where, theirs | where, jobs, steps, twins=5)
        )
        check("paired training, float64", TRAINED, lambda: apart()["float64"])
        if rows[-1]["verdict"] != "fails":
            check("moving statistics after it", TRAINED, lambda: apart()["moving"])
            if early := apart()["early"]:
                limit = TWINS * max(early["twin"], early["rounding"])
                check(f"its first {equivalence.EARLY} steps, float32", limit, lambda: early["float32"])
    check(SAVING, 0.0, lambda: _saved_and_loaded(ours))
    return certificate(() if all(row["verdict"] == "same" for row in rows) else _causes(ours, theirs))


KINDS = {
    "inference": lambda name: name == "inference",
    "output": lambda name: name == "y",
    "gradients": lambda name: name.startswith("d"),
    "moving statistics": lambda name: name not in ("inference", "y") and not name.startswith("d"),
}


def _options(path, pairs):
    """Arguments as a Run can hold them, lists as tuples; TensorFlow's wrapper is to leave the data alone."""

    def fixed(value):
        return tuple(map(fixed, value)) if isinstance(value, (list, tuple)) else value

    reference = network.REFERENCES["WN"]
    given = dict(reference["options"]) if path == reference["norm"] else {}
    return tuple((given | {name: fixed(value) for name, value in pairs}).items())


def _wraps(layer):
    return equivalence.is_wrapper(network.resolve(layer["norm"]))


def _comparable(ours, theirs):
    """0 if both can be made, and are two layers or two wrappers."""
    if _wraps(ours) != _wraps(theirs):
        raise ValueError(
            "Expected two layers, or two wrappers of layers with a kernel. Received: one of each"
        )
    for layer in (theirs, ours):
        equivalence.make(layer, SHAPE, "float64")
    return 0.0


def _once(function):
    """A function of no arguments that runs once, and raises again what it raised."""
    kept = []

    def run():
        if not kept:
            try:
                kept.append((function(), None))
            except RAISED as error:
                kept.append((None, error))
        value, error = kept[0]
        if error is not None:
            raise error
        return value

    return run


def _largest(differences, wanted):
    chosen = differences.relative[[wanted(name) for name in differences.quantity]]
    return chosen.max() if len(chosen) else 0.0


def _listed(layer):
    """How often a parameter is listed at most among those that an optimizer is given."""
    lists = (layer.trainable_variables, layer.trainable_weights)
    return max(max(collections.Counter(map(id, listed)).values(), default=1) for listed in lists)


def _saved_and_loaded(layer):
    """The largest difference of outputs between a model and the same model saved and loaded."""
    kind = network.resolve(layer["norm"])
    of_kind = network.framework(kind)
    made = kind(
        *([of_kind.layers.Conv2D(4, 3)] if equivalence.is_wrapper(kind) else []), **dict(layer["options"])
    )
    model = of_kind.Sequential([of_kind.Input(SHAPE[1:]), made])
    rng = np.random.default_rng(0)
    x = rng.normal(size=SHAPE).astype("float32")
    model(x)  # some set their weights only now
    variables = equivalence.weights_of(model, True) | equivalence.weights_of(model, False)
    for variable in variables.values():
        variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "model.keras")
        model.save(file)
        loaded = of_kind.models.load_model(file, custom_objects={kind.__name__: kind})
        return np.max(np.abs(np.asarray(model(x)) - np.asarray(loaded(x))))


# --- causes ----------------------------------------------------------------------------------------------------------


def _causes(ours, theirs):
    """The known causes that explain what one call of the candidate gives, as sentences: the fewest that do."""
    try:
        made = [equivalence.make(layer, SHAPE, "float64") for layer in (ours, theirs)]
        times = _listed(made[0])
    except RAISED:
        return ()
    if times > 1:
        return (f"A parameter is listed {times} times, so that an optimizer updates it repeatedly.",)
    shapes = [[tuple(v.shape) for v in equivalence.weights_of(m, True).values()] for m in made]
    told = (
        (f"Its parameters have the shapes {shapes[0]} rather than {shapes[1]}.",)
        if sorted(shapes[0]) != sorted(shapes[1])
        else ()
    )
    try:
        if not told and _match(made, _all):  # one call is the same: what differs is not in it
            return ()
        return told + (_fitting(made, theirs) or (() if told else _in_inference_alone(made)))
    except RAISED:
        return told


def _in_inference_alone(made):
    alone = _match(made, lambda name: name != "inference")
    return ("It is wrong in inference alone.",) if alone else ()


def _fitting(made, theirs):
    """Which faults, arguments, or both together, make the reference give what the candidate gives."""
    candidate, reference = made
    kind = "Weight" if _wraps(theirs) else "Batch" if hasattr(reference, "momentum") else "Layer"
    given = {} if kind == "Weight" else dict(theirs["options"])

    def supposed(**changed):
        layer = {
            "norm": f"study.faulty:Faulty{kind}Normalization",
            "options": tuple((given | changed).items()),
        }
        return equivalence.make(layer, SHAPE, "float64")

    if not _match([supposed(), reference], _all):
        return ()  # a reference that the planted faults do not know
    faults = faulty.WEIGHT_FAULTS if kind == "Weight" else faulty.FAULTS
    structures = [((), {})] + [
        ((f"It has this fault: {text}.",), {"fault": name}) for name, text in faults.items() if name != "none"
    ]
    if kind != "Weight":
        places = range(1, len(SHAPE))
        sets = [(axis,) for axis in places]
        if kind == "Layer":
            sets = [axes for size in places for axes in itertools.combinations(places, size)]
        now = given.get("axis", -1)
        now = tuple(sorted(axis % len(SHAPE) for axis in (now if isinstance(now, tuple) else (now,))))
        structures += [
            (
                (f"It normalizes axis {axes[0] if len(axes) == 1 else list(axes)}.",),
                {"axis": axes if kind == "Layer" else axes[0]},
            )
            for axes in sets
            if axes != now
        ]
        whole = "parameters of the whole sample"
        structures += [
            ((*sentences, f"It has this fault: {faults[whole]}."), changed | {"fault": whole})
            for sentences, changed in structures
            if "axis" in changed
        ]
    best = None
    for solving in (
        False,
        True,
    ):  # what needs no other numbers comes first: it is simpler, and quicker to try
        for sentences, changed in structures:
            try:
                layer = supposed(**changed)
                found = sentences + (_solved(candidate, layer, reference) if solving else ())
                fits = found and (best is None or len(found) < len(best)) and _match([candidate, layer], _all)
            except RAISED:  # such a layer there is not, or its parameters have other shapes
                continue
            if fits:
                best = found
            if best and len(best) <= 1 + solving:  # fewer there will not be
                return best
    return best or ()


def _solved(candidate, layer, reference):
    """Give a supposed layer the epsilon and the momentum that the candidate's numbers ask for; say which are not the
    reference's."""
    found = ()
    if hasattr(reference, "epsilon") and not _match([candidate, layer], _in_training):
        layer.epsilon = _epsilon(candidate, layer)
        found += (f"Its epsilon is {layer.epsilon:.3g} rather than {reference.epsilon:g}.",)
    if hasattr(reference, "momentum") and not _match([candidate, layer], KINDS["moving statistics"]):
        layer.momentum = momentum = _momentum(candidate, layer)
        reverse = abs(momentum + reference.momentum - 1) < 1e-6
        value = f"the weight of the new value ({momentum:.3g})" if reverse else f"{momentum:.3g}"
        found += (f"Its momentum is {value} rather than {reference.momentum:g}.",)
    return found


def _all(name):
    return True


def _in_training(name):
    return name == "y" or name.startswith("d")


def _both(layers):
    return equivalence.calls(layers, SHAPE, ["float64"] * 2, mean=MEAN)


def _match(layers, wanted):
    a, b = _both(layers)
    return a.keys() == b.keys() and all(
        np.shape(a[k]) == np.shape(b[k])
        and np.max(np.abs(a[k] - b[k])) <= ONE_CALL["float64"] * max(1.0, np.max(np.abs(b[k])))
        for k in a
        if wanted(k)
    )


def _epsilon(candidate, layer):
    """The epsilon with which a layer's output is as large as the candidate's: the larger, the smaller."""

    def output(epsilon):
        layer.epsilon = epsilon
        wanted, found = _both([candidate, layer])
        return found["y"], wanted["y"]

    way = output(1e-14)[0] - output(1.0)[0]

    def excess(exponent):
        found, wanted = output(10.0**exponent)
        return np.sum((found - wanted) * way)

    low, high = -14.0, 2.0
    if excess(low) <= 0:
        return 0.0
    return 10.0 ** optimize.brentq(excess, low, high, xtol=1e-13, rtol=1e-13)


def _momentum(candidate, layer):
    """The momentum that mixes old and new statistics as the candidate does."""
    mixed = []
    for layer.momentum in (0.0, 1.0):
        wanted, found = _both([candidate, layer])
        names = [name for name in found if KINDS["moving statistics"](name)]
        mixed.append(np.concatenate([found[name].ravel() for name in names]))
    new, old = mixed
    wanted = np.concatenate([wanted[name].ravel() for name in names])
    return float(np.dot(wanted - new, old - new) / np.dot(old - new, old - new))
