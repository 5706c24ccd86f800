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
import tensorflow as tf
from scipy import optimize

from study import equivalence, faulty, network, present, training

SHAPE = (24, 6, 5, 4)  # of the input of one call: small, so that every cause leaves its mark
MEAN = 2.0  # of that input, in its deviations, where a cause is sought
FAR, LOST = 100.0, 1e-3  # of that input, where a variance must not lose its digits; what it may always lose
ONE_CALL = {"float32": 1e-4, "float64": 1e-9}  # relative tolerances of one call
TRAINED = 1e-9  # of a weight after paired training in float64
# In float32, times what the reference's twins, or its float64 self, part from it by within the first steps. Later,
# float32 parts from itself so far that a wrong epsilon passes.
TWINS = 10
BOLD = re.compile(r"\x1b\[\d*m")  # Keras's messages are for terminals
PLACES = re.compile(r"in user code:|^ *File .*, line .*\n.*$", re.MULTILINE)  # of an error in a graph
MAKING, SAVING = "making and building", "saving and loading"
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
        parts = [f"differs in {_in_words(differing)}"] if differing else []
        parts += [f"could not be examined in {_in_words(failed)}"] if failed else []
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
    ours, theirs = _given(candidate, (*options, *own)), _given(reference, options)
    rows = []

    def check(name, tolerance, measure):
        try:
            measured, note = float(measure()), ""
            verdict = "same" if measured <= tolerance else "differs"
        except RAISED as error:
            measured, verdict = float("nan"), "fails"
            note = _in_one_line(error)
        rows.append(
            {"check": name, "measured": measured, "tolerance": tolerance, "verdict": verdict, "note": note}
        )
        return verdict

    def certificate(causes=()):
        return Certificate(candidate, reference, pd.DataFrame(rows), causes)

    if check(MAKING, 0.0, lambda: _comparable(ours, theirs)) != "same":
        return certificate()

    for dtype, tolerance in ONE_CALL.items():
        found = _once(lambda dtype=dtype: equivalence.layer_differences(ours, theirs, SHAPE, dtype))
        for kind, wanted in KINDS.items():
            check(f"{kind}, {dtype}", tolerance, lambda f=found, w=wanted: _largest(f(), w))
    if all(row["verdict"] == "same" for row in rows if "float32" in row["check"]):
        check("far from zero, float32", 1.0, lambda: _lost_far_from_zero(ours, theirs))
    called = all(row["verdict"] != "fails" for row in rows)
    check(
        "statistics moved by inference",
        0.0,
        lambda: _moved_by_inference(equivalence.make(ours, SHAPE, "float64")),
    )
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


def of_reader(method, candidate, reference, jobs=0):
    """In a notebook: where its layers are not the study's own, examine them, show what was found, and stop where the
    cells below could not call and train the candidate.

    Args:
        method: "BN", "LN" or "WN".
        candidate, reference: import paths.
        jobs: trainings at a time; 0 for one on each core.

    Raises:
        ValueError: the candidate cannot take the reference's place.
    """
    if (candidate, reference) == tuple(of[method]["norm"] for of in (network.METHODS, network.REFERENCES)):
        return
    options = () if method == "WN" else network.METHODS[method]["options"]
    certificate = examine(candidate, reference, options, jobs=jobs)
    present.table(
        certificate.checks,
        f"tbl-{method.lower()}-examination",
        f"Examination of {candidate}.",
        "Inference, outputs and gradients of one call, paired training and saving, against the reference.",
        {"measured": "{:.1e}", "tolerance": "{:.1e}"},
    )
    present.state(certificate.sentence, key=f"{method.lower()}.examination")
    certificate.require_usable()


KINDS = {
    "inference": lambda name: name == "inference",
    "output": lambda name: name == "y",
    "gradients": lambda name: name.startswith("d"),
    "moving statistics": lambda name: name not in ("inference", "y") and not name.startswith("d"),
}


def make(path, options):
    """The layer of an import path by itself, built for float64 inputs of SHAPE; arguments as (name, value) pairs."""
    return equivalence.make(_given(path, options), SHAPE, "float64")


def _in_words(checks):
    """Names of checks as a list; what was checked in two dtypes is told once."""
    dtypes = collections.defaultdict(list)
    for name in checks:
        what, _, dtype = name.partition(", ")
        dtypes[what] += [dtype] if dtype else []
    return ", ".join(f"{what} ({', '.join(of)})" if of else what for what, of in dtypes.items())


def _in_one_line(error):
    """An error's kind and message, without what TensorFlow and Keras put before it."""
    lines = [line.strip() for line in PLACES.sub("", BOLD.sub("", str(error))).splitlines()]
    told = " ".join(
        line for line in lines if line and not line.startswith("Exception encountered when calling")
    )
    told = told.rpartition("Exception encountered: ")[2]  # Keras's, of a layer that cannot be loaded
    return f"{type(error).__name__}: {told or 'no message'}"[:160]


def _given(path, pairs):
    """A layer by a Run's fields, lists as tuples; TensorFlow's wrapper is to leave the data alone."""
    reference = network.REFERENCES["WN"]
    given = dict(reference["options"]) if path == reference["norm"] else {}
    pairs = {name: equivalence.fixed(value) for name, value in pairs}
    return {"norm": path, "options": tuple((given | pairs).items())}


def _wraps(layer):
    return network.is_wrapper(network.resolve(layer["norm"]))


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
    return chosen.max(skipna=False) if len(chosen) else 0.0


def _lost_far_from_zero(ours, theirs):
    """A layer's error in float32, against itself in float64, in units of what it may be."""
    errors = equivalence.layer_errors({"own": ours, "reference": theirs}, SHAPE, mean=FAR)
    own, reference = (
        np.finfo("float32").eps * errors[name].max(skipna=False) for name in ("own", "reference")
    )
    return own / max(LOST, TWINS * reference)


def _moved_by_inference(layer):
    """By how much a call in inference changes what is not trained."""
    kept = equivalence.weights_of(layer, trainable=False).values()
    before = [np.array(variable) for variable in kept]
    equivalence.in_training(layer, tf.fill(SHAPE, tf.constant(MEAN, "float64")), training=False)
    return max((np.max(np.abs(np.asarray(v) - b)) for v, b in zip(kept, before, strict=True)), default=0.0)


def _listed(layer):
    """How often a parameter is listed at most among those that an optimizer is given."""
    lists = (layer.trainable_variables, layer.trainable_weights)
    return max(max(collections.Counter(map(id, listed)).values(), default=1) for listed in lists)


def _saved_and_loaded(layer):
    """The largest difference of outputs between a model and the same model saved and loaded."""
    kind = network.resolve(layer["norm"])
    of_kind = network.framework(kind)
    wrapped = [of_kind.layers.Conv2D(4, 3)] if network.is_wrapper(kind) else []
    made = network.make(kind, dict(layer["options"]), SHAPE[-1], *wrapped)
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
    told = ()
    try:
        if sorted(shapes[0]) != sorted(shapes[1]):
            told = (f"Its parameters have the shapes {shapes[0]} rather than {shapes[1]}.",)
            return told + _fitting(made, theirs)
        told = _starts(made) + _at_sight(made)
        if _match(made, _all):  # one call is the same: what differs is not in it
            far = not _lost_far_from_zero(ours, theirs) <= 1
            lost = f"Far from zero it loses digits, as where {faulty.FAULTS['one-pass variance']}."
            return (*told, lost) if far else told
        return told + (_fitting(made, theirs) or _in_inference_alone(made) or _shorter(ours, theirs))
    except RAISED:
        return told


def _starts(made):
    """Which weights start at other values."""
    found = ()
    for trainable in (True, False):
        own, expected = (equivalence.weights_of(layer, trainable) for layer in made)
        for name, variable in equivalence.in_pairs(own, expected).items():
            ours, theirs = np.asarray(variable), np.asarray(expected[name])
            if ours.shape != theirs.shape or np.allclose(ours, theirs, rtol=1e-6):
                continue
            both = np.ptp(ours) == np.ptp(theirs) == 0
            values = f"{ours.flat[0]:g} rather than {theirs.flat[0]:g}" if both else "other values"
            found += (f"Its {name} starts at {values}.",)
    return found


def _at_sight(made):
    """What is seen of a call without supposing any fault."""
    candidate, reference = made
    call, again, expected = _calls([candidate, candidate, reference])
    found = ("Inference moves its statistics.",) if _moved_by_inference(candidate) else ()
    if infinite := [name for name, value in call.items() if not np.isfinite(value).all()]:
        found += (f"Not finite: {', '.join(infinite)}.",)
    elif any(np.any(call[name] != again[name]) for name in ("inference", "y")):
        found += ("It gives another output each time.",)
    elif not np.any(call["y"] - call["inference"]) and np.any(expected["y"] - expected["inference"]):
        found += ("It does the same in training as in inference.",)
    return found + _seen_of_outputs(call["y"], expected["y"])


def _seen_of_outputs(y, expected):
    """Of the output, what the expected one does not show: that it is cut off, or has the digits of a shorter dtype."""

    def has_the_digits_of(dtype, values):
        return np.array_equal(values, tf.cast(tf.cast(values, dtype), "float64"))

    found = ()
    for which, extreme in (("below", np.min), ("above", np.max)):
        if np.count_nonzero(y == extreme(y)) > 2 + np.count_nonzero(expected == extreme(expected)):
            found += (f"Its output is never {which} {extreme(y):.3g}.",)
    for dtype in ("bfloat16", "float16", "float32"):
        if has_the_digits_of(dtype, y) and not has_the_digits_of(dtype, expected):
            return (*found, f"Its output has the digits of {dtype}.")
    return found


def _in_inference_alone(made):
    alone = _match(made, lambda name: name != "inference")
    return ("It is wrong in inference alone.",) if alone else ()


def _shorter(ours, theirs):
    differences = equivalence.layer_differences(ours, theirs, SHAPE, "float64")
    close = ONE_CALL["float64"] < _largest(differences, _all) < 10 * np.finfo("float32").eps
    return (
        ("What differs is as small as float32's rounding: perhaps a part is computed in it.",)
        if close
        else ()
    )


def _fitting(made, theirs):
    """Which faults, arguments, or both together, make the reference give what the candidate gives."""
    candidate, reference = made
    given = {} if _wraps(theirs) else dict(theirs["options"])

    def supposed(kind, **changed):
        if kind == "other":  # one that the planted faults do not know: it alone, with other numbers
            return make(theirs["norm"], theirs["options"])
        return make(f"study.faulty:Faulty{kind}Normalization", (given | changed).items())

    def known(kind):
        try:
            return _match([supposed(kind), reference], _all)
        except RAISED:
            return False

    kind = next((kind for kind in ("Weight", "Batch", "Layer", "Group", "RMS") if known(kind)), "other")
    faults = {} if kind == "other" else getattr(faulty, f"Faulty{kind}Normalization").faults
    structures = [((), {})] + [
        ((f"It has this fault: {text}.",), {"fault": name})
        for name, text in faults.items()
        if name not in ("none", "one-pass variance")  # which differ by rounding alone
    ]
    if kind not in ("Weight", "other"):
        places = range(1, len(SHAPE))
        sets, several = [(axis,) for axis in places], kind in ("Layer", "RMS")
        if several:
            sets = [axes for size in places for axes in itertools.combinations(places, size)]
        now = given.get("axis", -1)
        now = tuple(sorted(axis % len(SHAPE) for axis in (now if isinstance(now, tuple) else (now,))))
        structures += [
            (
                (f"It normalizes axis {axes[0] if len(axes) == 1 else list(axes)}.",),
                {"axis": axes if several else axes[0]},
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
    if kind == "Group":
        channels = SHAPE[now[0]]
        numbers = [n for n in range(1, channels + 1) if channels % n == 0 and n != reference.groups]
        structures += [((f"It has {n} group{'s' * (n > 1)}.",), {"groups": n}) for n in numbers]
    best = None
    for solving in (
        False,
        True,
    ):  # what needs no other numbers comes first: it is simpler, and quicker to try
        for sentences, changed in structures:
            try:
                layer = supposed(kind, **changed)
                solved, open_ = _solved(candidate, layer, reference) if solving else ((), _all)
                found = sentences + solved
                fits = (
                    found and (best is None or len(found) < len(best)) and _match([candidate, layer], open_)
                )
            except RAISED:  # such a layer there is not, or its parameters have other shapes
                continue
            if fits:
                best = found
            if best and len(best) <= 1 + solving:  # fewer there will not be
                return best
    return best or ()


def _solved(candidate, layer, reference):
    """Give a supposed layer the epsilon and the momentum that the candidate's numbers ask for; say which are not the
    reference's, and what is left to be explained."""
    found = ()
    usual = getattr(reference, "epsilon", None)
    adds = usual is not None or getattr(layer, "fault", None) == "epsilon"
    if adds and not _match([candidate, layer], _in_training):
        layer.epsilon = _epsilon(candidate, layer)
        rather = "" if usual is None else f" rather than {usual:g}"
        found += (f"Its epsilon is {layer.epsilon:.3g}{rather}.",)
    moving = KINDS["moving statistics"]
    if not hasattr(reference, "momentum") or _match([candidate, layer], moving):
        return found, _all
    momenta = {}
    for name in filter(moving, _calls([candidate])[0]):
        layer.momentum = momenta[name] = _momentum(candidate, layer, name)
        if not _match([candidate, layer], name.__eq__):
            return found, _all
    one = np.ptp([*momenta.values()]) < 1e-6
    told = {"moving statistics": layer.momentum} if one else momenta
    sentences = (_of_momentum(name, value, reference.momentum) for name, value in told.items())
    return found + tuple(filter(None, sentences)), lambda name: not moving(name)


def _of_momentum(name, value, usual):
    """What a momentum of the moving statistics, or of one of them, means; "" for the usual one."""
    if abs(value - usual) < 1e-6:
        return ""
    if abs(value - 1) < 1e-6:
        return f"It never updates its {name}."
    for times in (2, 3, 4):
        if abs(value - usual**times) < 1e-6:
            return f"It updates its {name} {times} times a call."
    whose = "Its momentum" if name == "moving statistics" else f"The momentum of its {name}"
    reverse = abs(value + usual - 1) < 1e-6
    value = f"the weight of the new value ({value:.3g})" if reverse else f"{value:.3g}"
    return f"{whose} is {value} rather than {usual:g}."


def _all(name):
    return True


def _in_training(name):
    return name == "y" or name.startswith("d")


def _calls(layers):
    return equivalence.calls(layers, SHAPE, ["float64"] * len(layers), mean=MEAN)


def _match(layers, wanted):
    a, b = _calls(layers)
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
        wanted, found = _calls([candidate, layer])
        return found["y"], wanted["y"]

    way = output(1e-14)[0] - output(1.0)[0]

    def excess(exponent):
        found, wanted = output(10.0**exponent)
        return np.sum((found - wanted) * way)

    low, high = -14.0, 2.0
    if excess(low) <= 0:
        return 0.0
    return 10.0 ** optimize.brentq(excess, low, high, xtol=1e-13, rtol=1e-13)


def _momentum(candidate, layer, name):
    """The momentum that mixes the old and the new of a statistic as the candidate does."""
    mixed = []
    for layer.momentum in (0.0, 1.0):
        wanted, found = _calls([candidate, layer])
        mixed.append(found[name])
    new, old = mixed
    return float(np.vdot(wanted[name] - new, old - new) / np.vdot(old - new, old - new))
