"""What runs show, as numbers, verdicts and sentences computed from them: nothing here is known beforehand.

Each rule is stated where it is applied. Three seeds settle little, and the sentences say so.
"""

import dataclasses

import numpy as np
import pandas as pd

from study import laws, original, present, statistics, training, tuning
from study.equivalence import DRIFT_STEPS, NO_FAULT, NO_FAULT_64, fault_name, largest_drift
from study.tuning import collapsed

SMALLEST = 0.005  # a smaller difference of accuracy does not matter, however sure
UNCLEAR = "no clear difference"  # not shown either way, as with most comparisons of few seeds
SAME = 0.05  # a ratio of steps or times that is nearer to 1 is told as 1
SMOOTHER = 0.8  # of a range of the loss without normalization: a smaller one is smoother


def told(difference):
    """What (mean, low, high, ...) of a paired difference of accuracies says: 'higher' or 'lower' if the interval leaves
    zero out and the mean is at least SMALLEST; 'alike' if it lies within SMALLEST; else UNCLEAR."""
    mean, low, high = difference[:3]
    if low > 0 and mean >= SMALLEST:
        return "higher"
    if high < 0 and mean <= -SMALLEST:
        return "lower"
    return "alike" if -SMALLEST < low <= high < SMALLEST else UNCLEAR


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Method a against method b over the same seeds.

    Attributes:
        name_a, name_b: what they are called.
        final_a, final_b: final accuracy, (mean, low, high) with the 95 % t-interval over the seeds.
        gain: paired difference a minus b of the mean accuracy over the training, (mean, low, high).
        rate: the learning rate of both.
        first, steps: the step of the first measurement, and the length of the runs.
        steps_to_target: median steps after which a reaches b's mean final accuracy; inf if it does not.
        steps_of_b: the same of b itself.
        seeds: how many.
    """

    name_a: str
    name_b: str
    final_a: tuple
    final_b: tuple
    gain: tuple
    rate: float
    first: int
    steps: int
    steps_to_target: float
    steps_of_b: float
    seeds: int

    @property
    def verdict(self):
        """'faster', 'slower', 'as fast' or UNCLEAR: see `told`."""
        words = {"higher": "faster", "lower": "slower", "alike": "as fast"}
        return words.get(told(self.gain), UNCLEAR)

    @property
    def saved(self):
        """How many times fewer steps a needs to the target; nan where one of the two does not get there."""
        both = np.isfinite(self.steps_to_target) and np.isfinite(self.steps_of_b)
        return self.steps_of_b / self.steps_to_target if both else float("nan")

    @property
    def message(self):
        """The caption's first sentence."""
        at = f"at a learning rate of {self.rate:g}"
        if self.verdict == UNCLEAR:
            both = present.words(self.name_a, self.name_b)
            return f"{_upper(at)}, {self.seeds} seeds do not separate the speeds of training {both}."
        with_a, with_b = present.words(self.name_a), present.words(self.name_b)
        if self.verdict == "as fast":
            return f"{_upper(at)}, the network learns as fast {with_a} as {with_b}, within {100 * SMALLEST:g} points."
        return f"{_upper(at)}, the network learns {self.verdict} {with_a} than {with_b}."

    @property
    def sentence(self):
        """The finding in full."""
        mean, low, high = (100 * value for value in self.gain)
        with_a, with_b = present.words(self.name_a), present.words(self.name_b)
        reached = (
            f"after {self.steps_to_target:,.0f} of {self.steps:,} steps (median), {with_b} itself "
            + (f"after {self.steps_of_b:,.0f}" if np.isfinite(self.steps_of_b) else "not within them")
            if np.isfinite(self.steps_to_target)
            else f"in none of the {self.steps:,} steps"
        )
        return (
            f"{self.message} Averaged over the training, from step {self.first:,} on, the test accuracy {with_a} is "
            f"{higher(mean)} (95 % interval {signed(low)} to {signed(high)}, {self.seeds} paired seeds); at the end, "
            f"it is {_percent(self.final_a)} against {_percent(self.final_b)}. The final accuracy {with_b} is reached "
            f"{with_a} {reached}."
        )


def compare(name_a, histories_a, name_b, histories_b):
    """Compare two methods over the same seeds, in the same order; records the numbers.

    Returns:
        A Comparison.
    """
    seeds_a, seeds_b = ([h.run.seed for h in histories] for histories in (histories_a, histories_b))
    if seeds_a != seeds_b:
        raise ValueError(f"Expected the same seeds in the same order. Received: {seeds_a} and {seeds_b}")
    final_a, final_b = ([h.accuracy[-1] for h in histories] for histories in (histories_a, histories_b))
    curve_a, curve_b = ([over_training(h) for h in histories] for histories in (histories_a, histories_b))
    steps_a, steps_b = (_median_steps(h, float(np.mean(final_b))) for h in (histories_a, histories_b))
    comparison = Comparison(
        name_a,
        name_b,
        statistics.mean_interval(final_a),
        statistics.mean_interval(final_b),
        statistics.mean_interval(np.subtract(curve_a, curve_b)),
        histories_a[0].run.learning_rate,
        *(int(histories_a[0].steps[place]) for place in (0, -1)),
        steps_a,
        steps_b,
        len(seeds_a),
    )
    for name, final in ((name_a, comparison.final_a), (name_b, comparison.final_b)):
        _record(f"{_key(name)}.accuracy.final", final, "fraction", comparison.seeds)
    _record(f"{_key(name_a)}.gain_over.{_key(name_b)}", comparison.gain, "fraction", comparison.seeds)
    present.number(
        f"{_key(name_a)}.steps_to.{_key(name_b)}",
        comparison.steps_to_target,
        unit="steps",
        seeds=comparison.seeds,
    )
    return comparison


def over_training(history):
    """A run's mean accuracy over its training (see `statistics.mean_over_steps`)."""
    return statistics.mean_over_steps(history.steps, history.accuracy)


def _median_steps(histories, target):
    return float(np.median([statistics.steps_to_target(h.steps, h.accuracy, target) for h in histories]))


def milliseconds(*groups):
    """What a step of each method costs: dict method -> the fewest milliseconds of any of its runs with batches of 100,
    since other work on the machine only adds.

    Args:
        groups: dicts method -> list of History.
    """
    found = {}
    for group in groups:
        for method, histories in group.items():
            of_method = [h.milliseconds_per_step for h in histories if h.run.batch_size == 100]
            found[method] = min([*of_method, found.get(method, np.inf)])
    return {method: float(value) for method, value in found.items()}


def same_curves(name_a, histories_a, name_b, histories_b):
    """The caption's first sentence for two curves that ought to be equal."""
    gap = max(
        float(np.max(np.abs(a.accuracy - b.accuracy))) for a, b in zip(histories_a, histories_b, strict=True)
    )
    present.number(f"{_key(name_a)}.largest_gap.{_key(name_b)}", gap, unit="fraction", seeds=len(histories_a))
    seeds = len(histories_a)
    return (
        f"{name_a} and {name_b} never differ by more than {100 * gap:.2f} points of test accuracy "
        f"({seeds} seed{'s' if seeds > 1 else ''})."
    )


# --- the drift of 2019 -------------------------------------------------------------------------------------------


# Round-off shrinks by 2^-29 from float32 to float64, a difference of meaning not at all: so a drift is round-off if
# float64 shrinks it at least this much, and a fault counts if it drifts at least this much more than none.
SHRINKS, STANDS_OUT = 1e-6, 10.0


def shrinkage(drifts):
    """How much float64 shrinks the drift that is left without faults."""
    return largest_drift(drifts[NO_FAULT_64]) / (largest_drift(drifts[NO_FAULT]) or 1.0)


def is_round_off(drifts):
    """Whether what is left without faults is round-off."""
    return shrinkage(drifts) <= SHRINKS


def attribution_message(drifts):
    """The caption's first sentence of the attribution figure: which faults make the drift."""
    least = largest_drift(drifts[NO_FAULT])
    causes = [
        name
        for name in (fault_name(True, True), fault_name(False, False))
        if largest_drift(drifts[name]) > STANDS_OUT * least
    ]
    if not is_round_off(drifts):
        return "Even with both faults removed, the parameters drift apart beyond round-off."
    if not causes:
        return "Neither fault moves the parameters beyond round-off."
    make = f"{' and '.join(causes)} {'each make' if len(causes) > 1 else 'make'} the parameters drift apart"
    return f"{_upper(make)}; with both faults removed, only round-off is left."


def shares_message(table):
    """The caption's first sentence of a table of `original.shares`: what makes most of each quantity's difference. A
    difference of either sign has no shares; of what only several do together, it is told what is left without the one
    that matters most, or which it takes."""
    told = []
    for quantity, rows in table.groupby("quantity", sort=False):
        rows = rows.set_index("mechanism")
        whole, parts = rows.iloc[-1], rows.iloc[:-1]
        what = f"the difference in {present.symbol(quantity)} ({signed(whole.difference, 4)})"
        if np.isnan(whole.difference):
            told.append(f"{present.symbol(quantity)} could not be measured")
            continue
        if parts.share.isna().all():
            told.append(f"there is no difference in {present.symbol(quantity)}")
            continue
        if _either_way(whole):
            told.append(f"the sign of {what} is not settled")
            continue
        cause, opposed = parts.share.idxmax(), parts.share.idxmin()
        share = parts.share[cause]
        left = parts.without.dropna().sort_values(key=abs)
        needed = list(left.index[left.abs() < abs(whole.difference) / 2])
        if _cancels(parts.share):
            both = ", ".join(f"{name} {_over_seeds(parts.loc[name], 4)}" for name in (cause, opposed))
            without = f"; without {needed[0]}, {_left(left.iloc[0])} is left" if needed else ""
            told.append(f"{what} is the remainder of larger, opposing ones ({both}){without}")
            continue
        against = f", partly offset by {opposed}" if share > 1.005 else ""
        if cause == original.INTERACTION:
            cause = f"{present.listed(needed)} together" if len(needed) > 1 else "several together"
            most = _share(parts.share.drop(original.INTERACTION).abs().max())
            without = "" if len(needed) > 1 else f"; without {left.index[0]}, {_left(left.iloc[0])} is left"
            against += f" (each alone at most {most}{without})"
        told.append(f"{_share(share)} of {what} comes from {cause}{against}")
    return f"{_upper('; '.join(told))}."


CANCELS = 2.0  # of a difference: where a part makes more than this, others take most of it back


def _cancels(shares):
    return max(shares.max(), -shares.min()) > CANCELS


SPREAD = ["difference", "low", "high"]  # of a part: the mean over the seeds, and its bounds


def _over_seeds(part, digits):
    """A part of a difference: of several seeds, its bounds."""
    if part.low == part.high:
        return signed(part.difference, digits)
    return f"{signed(part.low, digits)} to {signed(part.high, digits)}"


def _left(difference):
    return signed(difference, 4) if abs(difference) >= 5e-5 else "nothing"


def shares_shown(table):
    """A table of `original.shares` as it is shown: in per cent, empty for a difference of either sign, or of larger
    ones that oppose each other, and without what could not be measured; bounds of several seeds alone."""
    table = table[table.difference.notna()].drop(columns=["leads", "seeds"])
    quantities = table.groupby("quantity")
    last, cancels = quantities.tail(1).set_index("quantity"), quantities.share.agg(_cancels)
    none = [_either_way(last.loc[quantity]) or cancels[quantity] for quantity in table.quantity]
    shares = ["" if empty else _share(share) for empty, share in zip(none, table.share, strict=True)]
    shown = table.assign(share=shares)
    return shown.drop(columns=["low", "high"]) if (table.low == table.high).all() else shown


def over(seeds):
    """How many seeds a row of a table of `original.shares` is of, in words."""
    if seeds == 1:
        return "one seed"
    bounds = "95 % t-interval" if seeds >= original.BOUNDED else "lowest and highest"
    return f"mean over {seeds} seeds, {bounds}"


def _either_way(whole):
    """Whether a difference of several seeds may be above zero or below."""
    return whole.low < 0 < whole.high


def _share(share):
    return "" if np.isnan(share) else f"{round(100 * float(share))} %".replace("-", "−")


def attribution_sentence(method, table, dataset):
    """The finding in full: what made the drift of 2019, on its own quantity."""
    for row in table.itertuples():
        name = f"{method.lower()}.drift.{row.quantity}.{_key(row.mechanism)}"
        present.number(name, row.difference, [row.low, row.high], "parameter")
    message = shares_message(table)
    return f"In the training of 2019, {DRIFT_STEPS} steps with {method} ({dataset}), {message[0].lower()}{message[1:]}"


def drift_message(drifts, as_in_2019, same_layers=True):
    """The caption's first sentence of the drift figure: the mean differences that it draws, at the last step.

    Args:
        drifts: of `equivalence.fault_drifts`.
        as_in_2019: the DataFrame of `equivalence.drift` that the left panel draws.
        same_layers: whether its layers are the same two. Default True.
    """
    before, after = (
        present.listed(
            [
                f"{signed(v, 4) if abs(v) >= 5e-5 else scientific(v)} ({present.symbol(n)})"
                for n, v in _means(d).items()
            ]
        )
        for d in (as_in_2019, drifts[NO_FAULT])
    )
    told = (
        f"TensorFlow's mean minus own ends at {before} with the faults of 2019, and at {after} without them"
    )
    if is_round_off(drifts) and largest_drift(as_in_2019) > STANDS_OUT * largest_drift(drifts[NO_FAULT]):
        if same_layers:
            return f"The drift is not due to the layers: {told}."
        return f"With the right layers, paired properly, only round-off is left: {told}."
    return f"{_upper(told)}."


def _means(drift):
    """The mean differences of the first layer's parameters at the last step, by name."""
    last = drift[drift.step == drift.step.max()]
    layer = last.parameter.iloc[0].split("/")[0]
    return {
        name.split("/")[-1]: mean
        for name, mean in zip(last.parameter, last["mean"], strict=True)
        if name.startswith(layer)
    }


def same_sentence(method, apart):
    """Whether own and TensorFlow's layer are the same after training: the float64 and the twin criterion."""
    same = all(measured <= tolerance for measured, tolerance in _criteria(apart).values())
    verdict = "Nothing but" if same else "More than"
    return (
        f"{verdict} rounding separates our {method} from TensorFlow's in training by gradient descent. After "
        f"{apart['steps']} paired steps no weight differs by more than {scientific(apart['float64'])} in float64. In "
        f"float32 the largest difference is {scientific(apart['float32'])}; rounding alone moves TensorFlow's layer "
        f"away from itself by {scientific(apart['twin'])} if one weight starts one unit in the last place higher, and "
        f"by {scientific(apart['rounding'])} if the training is in float64."
    )


def _criteria(apart):
    """What is measured after paired training, and what it may be, in float64 and in float32: twice what float32 leaves
    open of TensorFlow's layer, against its one-ulp twins or itself in float64. The twins alone share its errors, and
    would punish a layer that is more exact."""
    band = max(apart["twin"], apart["rounding"])
    return {"float64": (apart["float64"], 1e-12), "float32": (apart["float32"], 2 * band)}


def same_verdicts(method, apart, drifts):
    """Record the criteria of equality as verdicts."""
    key = method.lower()
    for name in ("float64", "float32", "twin", "rounding"):
        present.number(f"{key}.paired.{name}", apart[name], unit="weight", seeds=1)
    present.verdict(
        "V1",
        f"{key}.drift",
        f"{method}: properly paired, the drift shrinks in float64 as round-off does",
        shrinkage(drifts),
        SHRINKS,
        is_round_off(drifts),
    )
    claims = {
        "float64": f"after {apart['steps']} paired steps in float64, all weights agree",
        "float32": "in float32, at most twice as far apart as rounding takes TensorFlow's layer from itself",
    }
    for dtype, (measured, tolerance) in _criteria(apart).items():
        claim = f"{method}: {claims[dtype]}"
        present.verdict("V1", f"{key}.paired.{dtype}", claim, measured, tolerance, measured <= tolerance)


def setting(base, seeds):
    """What was trained, in one sentence."""
    images, tests = (
        training.trained_on(dataset := training.load(base.dataset, base.sample)),
        len(dataset.x_test),
    )
    epochs = base.steps * base.batch_size / images
    return (
        f"Trained on {images:,} images of {base.dataset}{' (a sample)' if base.sample else ''} for {base.steps:,} "
        f"steps, {epochs:.2g} epochs, over {len(seeds)} seeds; test accuracy is that of "
        f"{min(base.measured_images or tests, tests):,} other images."
    )


# --- one call ----------------------------------------------------------------------------------------------------

ONE_CALL_TOLERANCE = {"float32": 1e-4, "float64": 1e-12}


def one_call_message(method, differences):
    """The caption's first sentence of the table of one call; records its verdicts."""
    largest = differences.groupby("dtype")["relative"].max()
    for dtype, tolerance in ONE_CALL_TOLERANCE.items():
        present.verdict(
            "V1",
            f"{method.lower()}.one_call.{dtype}",
            f"{method}: outputs and gradients of one call agree in {dtype}",
            float(largest[dtype]),
            tolerance,
            bool(largest[dtype] <= tolerance),
        )
    if all(largest[dtype] <= tolerance for dtype, tolerance in ONE_CALL_TOLERANCE.items()):
        return "One call of the two layers differs by round-off alone."
    return "One call of the two layers differs by more than round-off."


def exactness_message(method, errors):
    """How exact the two layers are in float32: in each quantity, whose error is larger, and how many times."""
    of = errors.set_index("quantity")[["own", "TensorFlow's"]].clip(
        lower=0.5
    )  # half a unit: as exact as can be
    times = of["TensorFlow's"] / of["own"]
    for quantity, value in times.items():
        present.number(f"{method.lower()}.one_call.{quantity}.times_less_exact", value)
    worst, best = times.idxmax(), times.idxmin()
    told = [
        f"TensorFlow's {method} is {value:.2g} times less exact than ours in {quantity}"
        if value > 2
        else f"our {method} is {1 / value:.2g} times less exact than TensorFlow's in {quantity}"
        for quantity, value in {worst: times[worst], best: times[best]}.items()
        if value > 2 or value < 0.5
    ]
    if not told:
        return f"In float32 our {method} and TensorFlow's are equally exact, within a factor of two."
    return f"In float32 {' and '.join(told)}."


# --- layer normalization in 2019 -----------------------------------------------------------------------------------


def reason_message(table, steps):
    """The caption's first sentence: what makes 2019's own layer end higher than what it called TensorFlow's, if it
    does.

    Args:
        table: of `original.accuracy_shares`.
        steps: how many were trained for it.
    """
    rows = table[table.quantity == "accuracy"].set_index("mechanism")
    whole, accuracy = rows.iloc[-1], rows.difference.iloc[:-1]
    effects = rows.difference[rows.without.notna()]  # of what could be mended
    most = effects.abs().idxmax()
    trained = "As trained in 2019" if steps == original.STEPS else f"In {steps:,} of {original.STEPS:,} steps"
    if _either_way(whole):
        return (
            f"{trained}, which layer ends higher is not settled (TensorFlow's minus own: "
            f"{signed(100 * whole.low)} to {signed(100 * whole.high)} points); {most} alone "
            f"accounts for {signed(100 * effects[most])} points."
        )
    if whole.difference > -0.001:
        return f"{trained}, TensorFlow's layer does not end lower than the study's own here."
    low, high = -100 * whole.high, -100 * whole.low
    several = f" ({whole.seeds} seeds: {low:.2f} to {high:.2f})" if whole.seeds > 1 else ""
    ends = f"{trained}, TensorFlow's layer ends {-100 * whole.difference:.2f} points lower{several}"
    cause = accuracy.idxmin()
    alone = cause in effects.index
    needed = cause if alone else rows.without.abs().idxmin()
    left = f"without {'it' if alone else needed} {signed(100 * rows.without[needed])} is left"
    if not rows.leads[cause]:
        made = _over_seeds(100 * rows.loc[cause, SPREAD], 2)
        return (
            f"{ends}: {cause}{' alone' if alone else ''} makes a difference of {made}, though not surely most of it; "
            f"{left}."
        )
    if cause == original.INTERACTION:
        return f"{ends} than the study's own, because the differences interact: {left}."
    return f"{ends} than the study's own, {_share(accuracy[cause] / whole.difference)} of it due to {cause}."


def reason_sentence(table, dataset, steps):
    """The finding in full: the answer to the blank of 2019. Arguments as of `reason_message`, and the data's name."""
    for row in table.itertuples():
        present.number(
            f"ln.reason.{row.quantity}.{_key(row.mechanism)}", row.difference, [row.low, row.high], "fraction"
        )
    return (
        f"{reason_message(table, steps)} (Trained on {dataset}; the 2019 study broke off at 'the reason is'.) "
        f"{shares_message(table)}"
    )


# --- all methods -------------------------------------------------------------------------------------------------


class Ranking:
    """All methods over the same seeds, against the network without normalization, whose mean final accuracy is the
    target.

    Args:
        curves: dict name -> list of History, the same seeds in the same order.
        cost: of `milliseconds`.
    """

    def __init__(self, curves, cost):
        self.curves, self.cost = curves, cost
        self.target = float(np.mean([h.accuracy[-1] for h in curves["none"]]))
        self.comparisons = {
            name: compare(name, histories, "none", curves["none"])
            for name, histories in curves.items()
            if name != "none"
        }
        self._by_speed = sorted(self.comparisons.values(), key=lambda c: -c.gain[0])
        self._by_final = sorted(self.comparisons.values(), key=lambda c: -c.final_a[0])

    @property
    def message(self):
        """The caption's first sentence of the curves."""
        faster = [c.name_a for c in self._by_speed if c.verdict == "faster"]
        at, plain = f"At a learning rate of {self._by_speed[0].rate:g}", present.words("none")
        if not faster:
            return f"{at}, no method makes the network learn clearly faster than {plain}."
        return f"{at}, the network learns faster {present.words(*faster)} than {plain}."

    @property
    def final_message(self):
        """The caption's first sentence of the final accuracies."""
        best, second = self._by_final[:2]
        ends = ([h.accuracy[-1] for h in self.curves[c.name_a]] for c in (best, second))
        apart = statistics.paired_difference(*ends)
        return (
            f"The network ends highest {present.words(best.name_a)}, {_above(apart)} {second.name_a}: "
            f"{points(apart)} points seed by seed."
        )

    @property
    def sentence(self):
        """The answer: which is good here."""
        first = self._by_speed[0]
        gains = "; ".join(
            f"{c.name_a} {signed(100 * c.gain[0])} points ({c.verdict})" for c in self._by_speed
        )
        reached = (
            f"With {first.name_a} it is reached after {first.steps_to_target:,.0f} of {first.steps:,} steps"
            if np.isfinite(first.steps_to_target)
            else f"With {first.name_a} it is not reached in {first.steps:,} steps"
        )
        return (
            f"{self.message} Gain in mean accuracy over the training: {gains}. The target is the final accuracy "
            f"{present.words('none')}. {reached}. {self.final_message}"
        )

    @property
    def reason(self):
        """The computed part of why: what the method's cost takes back of its gain."""
        parts, never, rate = [], [], self._by_speed[0].rate
        for comparison in self._by_speed:
            cost, saved = self.cost[comparison.name_a] / self.cost["none"], comparison.saved
            if not np.isfinite(saved):
                never.append(comparison.name_a)
                continue
            steps = f"{saved:.1f} times fewer" if saved > 1 else f"{1 / saved:.1f} times as many"
            steps, longer, fast = (
                "as many" if abs(saved - 1) < SAME else steps,
                *(
                    "as" if abs(times - 1) < SAME else f"{times:.1f} times as"
                    for times in (cost, saved / cost)
                ),
            )
            parts.append(
                f"{comparison.name_a} needs {steps} steps, each {longer} long, and is {fast} fast in seconds"
            )
        if never:
            parts.append(
                f"for {present.listed(never)} there is no ratio of steps, since it or {present.short('none')} does "
                "not get there (median over the seeds)"
            )
        return (
            f"At a learning rate of {rate:g} for all, to reach the final accuracy {present.words('none')}: "
            f"{'; '.join(parts)}. With BN and LN the "
            "gradient loses what only shifts or stretches the activations, with WN what only lengthens a weight "
            "vector; this comparison does not test whether that causes a gain."
        )

    def table(self):
        """One row a method."""
        rows = []
        for name, histories in self.curves.items():
            steps, milliseconds = _median_steps(histories, self.target), self.cost[name]
            mean, low, high = statistics.mean_interval([h.accuracy[-1] for h in histories])
            gain = self.comparisons[name].gain if name in self.comparisons else None
            rows.append(
                {
                    "method": name,
                    "steps to target": _steps(steps),
                    "seconds to target": f"{steps * milliseconds / 1e3:.1f}"
                    if np.isfinite(steps)
                    else "not reached",
                    "final accuracy, %": f"{100 * mean:.2f} ({100 * low:.2f} to {100 * high:.2f})",
                    "gain in mean accuracy, points": "" if gain is None else signed(100 * gain[0]),
                    "ms per step": f"{milliseconds:.1f}",
                }
            )
            present.number(
                f"{_key(name)}.milliseconds_per_step", milliseconds, unit="ms", seeds=len(histories)
            )
        return pd.DataFrame(rows)


# --- at each method's own learning rate ---------------------------------------------------------------------------


def rates_message(frame):
    """The caption's first sentence of the map of rates."""
    if frame.rate.nunique() == 1:
        return f"Each method at the one learning rate {frame.rate.iloc[0]:.2g}: this profile does not search."
    rates, stable = tuning.best_rates(frame), tuning.stable_rates(frame)
    for method, (low, high) in stable.items():
        present.number(f"{_key(method)}.best_rate", rates[method])
        present.number(f"{_key(method)}.stable_decades", np.log10(high / low), unit="decades")
    mine = {m: rates[m] for m in tuning.MAIN if m in rates}
    dead = frame[frame.collapsed > 0].groupby("method", sort=False).rate.min()
    first = [present.short(method) for method in dead.index[dead == dead.min()]]
    best = present.listed([f"{rate:.2g} ({present.short(m)})" for m, rate in mine.items()])
    return f"The best learning rates are {best}; " + (
        f"the lowest at which a run learnt next to nothing is {dead.min():.2g} ({present.listed(first)})."
        if len(dead)
        else "at each rate every run learnt."
    )


def searched(plan):
    """Of how many seeds the accuracies of the map of rates are, in words."""
    if plan.seeds == 1:
        return "of one seed"
    several = present.listed([present.short(method) for method in tuning.MAIN])
    return f"mean of {plan.seeds} seeds for {several} and 'both', else of one"


def budget_message(frame):
    """The caption's first sentence of the tuning budget."""
    one = frame[frame.tried == 1].set_index("method").accuracy.sort_values(ascending=False)
    expected = present.listed([f"{100 * of:.1f} % {present.words(method)}" for method, of in one.items()])
    between = f"{frame.lowest.min():.2g} to {frame.highest.max():.2g}"
    return (
        f"With a single learning rate, drawn at random from {between}, the accuracy to expect is {expected}."
    )


def start_message(frame, rates):
    """The caption's first sentence on the networks before training: why a best rate may be lower with normalization."""
    of = frame.set_index("method")
    for method in of.index:
        present.number(f"start.{_key(method)}.loss", of.loss[method], unit="nats")
        present.number(f"start.{_key(method)}.spread", of.spread[method])
    bn, none, large = of.loc["BN"], of.loc["none"], of.loc["BN, as large"]
    limited = rates["BN, as large"] > rates["BN"]
    return (
        f"Before training, the hidden units' input has a deviation of {none.spread:.1f} without normalization and "
        f"{bn.spread:.1f} with BN (loss: {none.loss:.1f} and {bn.loss:.1f} nats). Where γ starts lower, with a "
        f"deviation of {large.spread:.1f}, BN's best rate is {rates['BN, as large']:.2g}, and else {rates['BN']:.2g} "
        f"(plain: {rates['none']:.2g}): the large start {'limits' if limited else 'does not limit'} it."
    )


# What is compared was named before anything was run; the measures, and SMALLEST, were settled after a first build.
# Speed is the mean accuracy over the training and not the steps to a target: it is defined for a run that does not get
# there too, and takes in every measurement.
SPEED, END = "mean held-out accuracy over the training", "test accuracy at the end"
HYPOTHESES = (("H1", "BN", "none", SPEED), ("H2", "LN", "BN", END), ("H3", "WN", "none", SPEED))


def hypotheses(curves):
    """The three hypotheses, each method at its best learning rate, with Holm's correction.

    Args:
        curves: dict method -> list of History, the same seeds in the same order.

    Returns:
        DataFrame of what was compared, the difference with its interval, in how many seeds the first is higher, p, p
        after Holm and the verdict.
    """
    rows = []
    target = float(np.mean([h.accuracy[-1] for h in curves["none"]]))
    steps = {method: _median_steps(histories, target) for method, histories in curves.items()}
    often = len(curves["none"][0].steps) > 2
    for name, a, b, measure in HYPOTHESES:
        values = [
            [h.test_accuracy if measure == END else over_training(h) for h in curves[m]] for m in (a, b)
        ]
        found = statistics.paired_difference(*values)
        _record(f"hypothesis.{name.lower()}", (found.mean, found.low, found.high), "fraction", found.pairs)
        rows.append(
            {
                "hypothesis": f"{name}: {present.short(a)} against {present.short(b)}, {measure}",
                "difference, points": points(found),
                "higher": f"{found.superiority * found.pairs:g} of {found.pairs}",
                **({"steps to target": f"{_steps(steps[a])} against {_steps(steps[b])}"} if often else {}),
                "p": found.p,
                "verdict": _direction(a, b, measure, found),
                "otherwise": _no_direction(a, b, measure, found),
            }
        )
    table = pd.DataFrame(rows)
    table.insert(table.columns.get_loc("p") + 1, "p, Holm", statistics.holm(table.p))
    table["verdict"] = table.verdict.where(table["p, Holm"] < 0.05, table.pop("otherwise"))
    for place, (_, a, b, _) in enumerate(HYPOTHESES):
        lost = [
            f"{collapsed(curves[m])} of {len(curves[m])} runs of {present.short(m)}"
            for m in (a, b)
            if collapsed(curves[m])
        ]
        if lost:
            table.loc[place, "verdict"] += f" ({present.listed(lost)} collapsed)"
    return table


def changed_sentence(tuned, changed, method, what):
    """What becomes of a method that is changed in one thing, against it and plain, each at its own rate and all after
    as many steps.

    Args:
        tuned: dict method -> list of History, of the Runs of `tuning.at_best_rates`.
        changed, method: names of `network.METHODS`.
        what: the change, in words: "With BN after the dense layer too".
    """
    found = {m: beside(tuned, changed, m) for m in (method, "none")}
    if any(of is None for of in found.values()):
        return f"{what}, nothing is settled here."
    compared = [
        f"{_from(d)} {present.short(m)}'s ({signed(100 * d.low)} to {signed(100 * d.high)})"
        for m, (d, _) in found.items()
    ]
    (difference, step), *_ = found.values()
    return (
        f"{what}, the held-out accuracy at step {step:,} is {' and '.join(compared)}, each at its own rate, "
        f"{difference.pairs} seeds."
    )


def placement_sentence(tuned):
    """What becomes of BN where it follows the dense layer too."""
    return changed_sentence(tuned, "BN, both", "BN", "With BN after the dense layer too")


def scale_sentence(tuned):
    """What becomes of BN and of LN where they start as large as no normalization."""
    start = "whose γ starts so that activations are as large as without normalization"
    return " ".join(
        changed_sentence(tuned, f"{method}, as large", method, f"With {method} {start}")
        for method in ("BN", "LN")
    )


def _from(difference):
    """How far one accuracy is from another, before the other's name."""
    verdict = told(difference)
    if verdict == "alike":
        return f"within {100 * SMALLEST:g} points of"
    side = f"{abs(100 * difference.mean):.2f} points {'above' if difference.mean > 0 else 'below'}"
    return side if verdict != UNCLEAR else f"{side}, but not clearly,"


def _direction(a, b, measure, difference):
    words = ("trains faster", "trains more slowly") if measure == SPEED else ("ends higher", "ends lower")
    small = ", by less than matters" if abs(difference.mean) < SMALLEST else ""
    return f"{a} {words[difference.mean < 0]} than {present.short(b)}{small}"


def _no_direction(a, b, measure, difference):
    if told(difference) != "alike":
        return UNCLEAR if _testable(difference.pairs) else f"not testable with {difference.pairs} seeds"
    how = "trains as fast" if measure == SPEED else "ends as high"
    return f"{a} {how} as {present.short(b)}, within {100 * SMALLEST:g} points"


def _testable(seeds):
    """Whether the least p that so many pairs can give is small enough for the first of the hypotheses."""
    return len(HYPOTHESES) * _least(seeds) <= 0.05


def _least(seeds):
    return 2.0 ** (1 - seeds)


def hypotheses_message(table, seeds):
    """The caption's first sentence of the table of hypotheses."""
    if not _testable(len(seeds)):
        return f"With {len(seeds)} seeds, p cannot be under {_least(len(seeds)):.3g}: this test can claim nothing."
    return f"Each method at its own best rate: {_clauses(_sides(table))}."


def hypotheses_sentence(table, tuned):
    """The finding in full: each comparison at the methods' own rates; and of LN against plain, which is none of the
    three, the interval alone."""
    told_of = [
        f"{side} [{row['hypothesis'].rpartition(', ')[2]}: {row['difference, points']} points]"
        for side, row in zip(_sides(table), table.to_dict("records"), strict=True)
    ]
    sentence = f"With each method at its own best learning rate, {_clauses(told_of)}."
    if collapsed([*tuned["LN"], *tuned["none"]]):
        return sentence
    values = [[over_training(h) for h in tuned[m]] for m in ("LN", "none")]
    found = statistics.paired_difference(*values)
    return f"{sentence} LN against plain, not tested: {points(found)} points of {SPEED}."


def tuned_message(tuned):
    """The caption's first sentence of the curves at the methods' own rates: each against plain (see `beside_none`)."""
    sides = {}
    for method in tuned:
        if method != "none":
            sides.setdefault(beside_none(tuned, method), []).append(method)
    listed = "; ".join(f"{side} for {present.listed(methods)}" for side, methods in sides.items())
    return f"Against plain, each at its own rate: {listed}."


def _sides(table):
    """Which method of each hypothesis is above the other."""
    told_of = []
    for row in table.to_dict("records"):
        a, b = row["hypothesis"].partition(": ")[2].partition(", ")[0].split(" against ")
        untestable = row["verdict"].startswith("not testable")
        side = f"{a} against {b} is {row['verdict']}" if untestable else row["verdict"]
        told_of.append(side.replace(UNCLEAR, f"there is {UNCLEAR} between {a} and {b}"))
    return told_of


def batch_message(frame):
    """The caption's first sentence of the batch sizes: the range of the accuracies at the smallest and the largest."""
    sides = []
    for size in (frame["size"].min(), frame["size"].max()):
        of = frame[frame["size"] == size].set_index("method").accuracy
        for method, accuracy in of.items():
            present.number(f"{_key(method)}.at_batch_{size}", accuracy, unit="fraction")
        ends = (f"{100 * of[m]:.1f} % ({present.short(m)})" for m in (of.idxmin(), of.idxmax()))
        sides.append(f"{size} images per batch, accuracies range from {' to '.join(ends)}")
    return f"With {'; with '.join(sides)}."


def rates_of_sizes(plan, frame):
    """At which rates the batch sizes were trained, in words."""
    if len(plan.around) == 1:
        return "at the rate in proportion to the batch"
    return (
        "at the best rate of a grid around the method's own, scaled with the batch, chosen with the first seed; "
        f"{frame['at the edge'].sum()} of {len(frame)} best rates are at their grid's edge"
    )


def when_sentence(frame):
    """When LN is better than BN: the sizes of batches at which one is above the other (see `told`). A size at which a
    run of either learnt next to nothing says only that its rates did not fit, and is named apart."""
    cells = frame.set_index(["method", "size"])
    above, lost = {"LN": {}, "BN": {}}, []
    for place, suffix in (("after the convolution", ""), ("after the dense layer", ", dense")):
        for size in sorted(frame["size"][frame.method == "BN" + suffix]):
            ln, bn = (cells.loc[(method + suffix, size)] for method in ("LN", "BN"))
            if ln.collapsed or bn.collapsed:
                who = present.listed([m for m, cell in (("LN", ln), ("BN", bn)) if cell.collapsed])
                lost.append(f"{size} images {place} ({who})")
                continue
            found = statistics.paired_difference(ln.each, bn.each)
            if told(found) in ("higher", "lower"):
                better = "LN" if found.mean > 0 else "BN"
                gap = found if found.mean > 0 else statistics.paired_difference(bn.each, ln.each)
                above[better].setdefault(place, []).append(
                    f"{size} images ({bn.steps:,} updates) [by {points(gap)} points]"
                )
    sides = [
        f"{method} is better than {other} with batches of "
        + " and of ".join(f"{present.listed(sizes)} {place}" for place, sizes in above[method].items())
        if above[method]
        else f"{method} is better than {other} at no batch size tried"
        for method, other in (("LN", "BN"), ("BN", "LN"))
    ]
    seeds = int(frame.seeds[frame.method == "BN"].min())
    told_of = _clauses(sides)
    if not any(above.values()):
        told_of = (
            "Neither LN nor BN is better than the other at any batch size tried"
            if seeds > 1
            else "One seed does not tell LN and BN apart at any batch size"
        )
    apart = f" Not counted, since a run learnt next to nothing: {present.listed(lost)}." if lost else ""
    others = "; at other sizes, not told apart" if any(above.values()) else ""
    alone = f" ({seeds} seeds{others}.)" if seeds > 1 else ""
    return (
        f"{told_of}.{apart}{alone} Under LN each image has its own statistics; under BN it shares the batch's, and "
        "after a dense layer a batch holds a single value per image: of two, BN passes on little but which is larger."
    )


# --- every method in one table -------------------------------------------------------------------------------------


def methods_table(base, frame, tuned, by_batch, cost):
    """What each method reaches, costs and depends on, a row each; empty where it was not run.

    Args:
        base: the Run that gives data and initial weights.
        frame: of `tuning.sweep`.
        tuned: dict method -> list of History, of the Runs of `tuning.at_best_rates`.
        by_batch: of `tuning.batch_sizes`.
        cost: of `milliseconds`.
    """
    smallest = by_batch[by_batch["size"] == by_batch["size"].min()].set_index("method")
    rates, stable, rows = tuning.best_rates(frame), tuning.stable_rates(frame), []
    for method, rate in rates.items():
        trained, inferred, alone = tuning.modes(base, method)
        low, high = stable[method]
        against = beside(tuned, method, "none") if method != "none" else None
        rows.append(
            {
                "method": method,
                "best rate": rate,
                "rates as good": f"{low:.2g} to {high:.2g}" if high > low else "this one",
                **_ended(tuned.get(method, [])),
                "at batch 2, %": _at(smallest, method),
                "ms per step": cost[method],
                "same in inference": "yes" if np.allclose(trained, inferred, atol=1e-4) else "no",
                "depends on the batch": "no" if np.allclose(trained[:1], alone, atol=1e-4) else "yes",
                "against plain, points": points(against[0]) if against else "",
                "verdict": beside_none(tuned, method),
            }
        )
    return pd.DataFrame(rows)


def methods_verdicts(base, frame, tuned, by_batch, cost):
    """The table of `methods_table`, recorded as table V3: the verdicts are on the difference from plain."""
    table = methods_table(base, frame, tuned, by_batch, cost)
    found = [beside(tuned, method, "none") for method in table.method]
    measured = [of[0].mean if of else np.nan for of in found]
    return present.judged("V3", table, table.method.map(present.short), measured, SMALLEST)


def _at(cells, method):
    if method not in cells.index:
        return ""
    cell = cells.loc[method]
    return "collapsed" if cell.collapsed else f"{100 * cell.accuracy:.1f}"


def _ended(histories):
    if not histories:
        return {"steps": "", "test accuracy, %": ""}
    return {"steps": f"{histories[0].run.steps:,}", "test accuracy, %": _mean_told(histories)}


def _mean_told(histories):
    if lost := collapsed(histories):  # no interval describes runs of two kinds
        return f"{lost} of {len(histories)} collapsed"
    mean, low, high = statistics.mean_interval([100 * h.test_accuracy for h in histories])
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


def beside(tuned, a, b):
    """Method a against method b at their own best rates on held-out images, after as many steps as the shorter of them
    was trained, over the seeds of both.

    Returns:
        (Difference, steps), or None where one was not trained, fewer than two seeds are shared or a run collapsed.
    """
    if a not in tuned or b not in tuned or collapsed(tuned[a]) or collapsed(tuned[b]):
        return None
    step = min(int(histories[0].steps[-1]) for histories in (tuned[a], tuned[b]))
    ends = [{h.run.seed: h.until(step).accuracy[-1] for h in tuned[m]} for m in (a, b)]
    shared = sorted(set(ends[0]) & set(ends[1]))
    if len(shared) < 2:
        return None
    return statistics.paired_difference(*([of[seed] for seed in shared] for of in ends)), step


def beside_none(tuned, method):
    """The verdict on a method against none, at their own best rates."""
    if method == "none":
        return "the baseline"
    if method not in tuned:
        return "search only"
    if lost := collapsed(tuned[method]):
        return f"{lost} of {len(tuned[method])} runs collapsed"
    found = beside(tuned, method, "none")
    if found is None:
        return "not settled"
    return told(found[0])


# --- the same accuracy as TensorFlow's ------------------------------------------------------------------------------

MARGIN = 0.001  # of accuracy: the smallest difference between own and TensorFlow's layer that would matter


def equivalence_verdicts(curves, references):
    """Whether own and TensorFlow's layers reach the same test accuracy: two one-sided tests over the seeds, judged.

    Args:
        curves: dict method -> list of History of the own layers.
        references: the same of TensorFlow's, measured at their end, over the same seeds.
    """
    rows = []
    for method, theirs in references.items():
        step = int(theirs[0].steps[-1])
        own = [h.until(step).accuracy[-1] for h in curves[method]]
        found = statistics.equivalence(own, [h.accuracy[-1] for h in theirs], MARGIN)
        _record(f"{_key(method)}.own_minus_tensorflow", found[:3], "fraction", len(own))
        rows.append(
            {
                "claim": f"{method}: own and TensorFlow's reach the same test accuracy after {step:,} steps",
                "own minus TensorFlow's, points": points(found),
                "at most apart, points": 100 * max(-found.low, found.high),
                "margin, points": 100 * MARGIN,
                "p": found.p,
                "verdict": {"equivalent": "holds", "different": "fails"}.get(found.verdict, found.verdict),
            }
        )
    table = pd.DataFrame(rows)
    measured = table["own minus TensorFlow's, points"]
    return present.judged("V1", table, table.claim, measured, f"90 % interval within {100 * MARGIN:g} points")


def equivalence_message(table, seeds):
    """The caption's first sentence of the test of equivalence; None stands for a table that a profile does not make."""
    if table is None:
        return "Whether our layers and TensorFlow's reach the same accuracy was not tested in this profile."
    counts = table.verdict.value_counts()
    words = {"holds": "equivalent", "fails": "different", "not settled": "not settled"}
    verdicts = ", ".join(f"{counts[v]} {word}" for v, word in words.items() if counts.get(v))
    return (
        f"Over {len(seeds)} seeds, the test accuracies with our layers and with TensorFlow's differ by at most "
        f"{table['at most apart, points'].max():.2f} points on average (90 % intervals); against a margin of "
        f"{100 * MARGIN:g} points: {verdicts}."
    )


# --- exact facts and mechanisms ------------------------------------------------------------------------------------


def law_verdicts(table, errors):
    """Record the verdict of each law by its relative error (`laws.measure`); return how many hold, and of how many."""
    for name, error in errors.items():
        holds = error <= laws.TOLERANCE
        present.verdict(table, f"law.{name}", laws.LAWS[name][0], error, laws.TOLERANCE, holds)
    return sum(error <= laws.TOLERANCE for error in errors.values()), len(errors)


def laws_sentence(held, count, agree, fields):
    """The exact facts in one sentence."""
    told = "All" if held == count else f"{held} of"
    return (
        f"{told} {count} exact facts hold up to round-off in float64, and {agree} of {fields} entries in the table of "
        "invariances agree with theory for convolutions."
    )


def epsilon_message(shares):
    """The caption's first sentence on epsilon's share."""
    of_filters = shares[shares.set == "a filter"]
    big = of_filters.share[of_filters.epsilon == of_filters.epsilon.max()]
    small = of_filters.share[of_filters.epsilon == of_filters.epsilon.min()]
    positions = shares[shares.set == "a position"]
    empty = float(np.mean(positions.share[positions.epsilon == positions.epsilon.min()] > 0.5))
    for name, value in (("large", big), ("small", small)):
        present.number(f"epsilon.share.{name}", float(np.median(value)), unit="fraction")
    present.number("epsilon.empty_positions", empty, unit="fraction")
    return (
        f"ε = {present.power(of_filters.epsilon.max())} makes up {100 * np.median(big):.0f} % of variance + ε of a "
        f"filter's outputs (median), {present.power(of_filters.epsilon.min())} {100 * np.median(small):.1f} %; at "
        f"{100 * empty:.0f} % of the positions even the smaller exceeds the variance over the channels."
    )


def at_depth(frame):
    """Of `mechanisms.depth`, by method: the cosine after the last layer, and the median growth in those between."""
    layer = frame.layer
    last, between = frame[layer == layer.max()], frame[(layer > 4) & (layer < layer.max() - 1)]
    return last.set_index("method").cosine, between.groupby("method").growth.median()


def depth_message(frame):
    """The caption's first sentence on depth."""
    cosine, growth = at_depth(frame)
    for method in cosine.index:
        present.number(f"depth.{method.lower()}.cosine", cosine[method])
        present.number(f"depth.{method.lower()}.growth", growth[method])
    cosines = ", ".join(f"{cosine[m]:.2f} {present.words(m)}" for m in cosine.index)
    return (
        f"After {int(frame.layer.max())} layers, different inputs have a mean cosine of {cosines}; from layer to layer "
        f"back, the squared gradient grows {growth['BN']:.2f} times with BN."
    )


def invariance_verdict(invariant, expected):
    """Record whether the table of invariances is as expected; in how many fields it is."""
    wrong = int(np.sum(invariant != expected))
    present.verdict("V1", "invariances", "the table of invariances is as expected", wrong, 0, wrong == 0)
    return expected.size - wrong


# What training leaves alone, by method: the sums of biases that it centres together, the sum of all filters. The
# squared lengths follow each step's own square and epsilon's share under all of them.
KEEPS_BIASES, KEEPS_FILTERS = ("BN", "IN", "GN", "LN", "LN-C"), ("LN-C",)
CONSERVED = 1e-3  # a change in units of the motion: below it nothing moved


def conservation_verdicts(frames):
    """Record the verdicts on what training conserves with each method, and what it does not; say it.

    Args:
        frames: dict method -> DataFrame of `mechanisms.conservation`.
    """
    right = 0
    laws = [
        ("bias", "kernel", "the summed biases of what is centred together", KEEPS_BIASES),
        ("filters", "kernel", "the sum of all filters", KEEPS_FILTERS),
        (
            "length",
            "growth",
            "the squared lengths, apart from each step's own square and ε's share",
            tuple(frames),
        ),
    ]
    for method, frame in frames.items():
        for column, unit, what, keeping in laws:
            share, stays = frame[column].max() / frame[unit].max(), method in keeping
            holds = share <= CONSERVED if stays else share > CONSERVED
            right += holds
            present.verdict(
                "V1",
                f"conserved.{_key(method)}.{column}",
                f"I16, {method}: {'kept' if stays else 'moved'}, in units of the motion: {what}",
                share,
                CONSERVED,
                holds,
                above=not stays,
            )
    count = len(frames) * len(laws)
    if right == count:
        return "What the output does not feel, training does not move; what it feels moves."
    return f"Of {count} statements on what training conserves, {count - right} fail."


def statistics_message(frame):
    """The caption's first sentence on moving statistics."""
    first = frame[frame.step == frame.step.min()].set_index("statistics").accuracy
    last = frame[frame.step == frame.step.max()].set_index("statistics").accuracy
    lags = [name for name in first.index if name.startswith("moving")]
    worst = min(lags, key=lambda name: first[name])
    for name in first.index:
        present.number(f"statistics.{_key(name)}.first", first[name], unit="fraction")
    momentum = worst.removeprefix("moving, ")
    return (
        f"After {int(frame.step.min())} steps the same weights classify {100 * first[worst]:.0f} % of the test images "
        f"correctly with moving averages of {momentum} and {100 * first['exact']:.0f} % with exact statistics; after "
        f"{int(frame.step.max())}, {100 * last[worst]:.0f} % and {100 * last['exact']:.0f} %."
    )


def smoothness(frame):
    """Of `mechanisms.landscape` with several seeds: the medians over a training of the loss's range and of the
    gradient's change, two DataFrames with a row for each seed and a column for each method; of what diverged, inf."""
    frame = frame.assign(range=frame.highest - frame.lowest).fillna({"range": np.inf, "change": np.inf})
    return [frame.pivot_table(measure, "seed", "method", "median") for measure in ("range", "change")]


def landscape_message(frame):
    """The caption's first sentence on the loss along the way: less is what is less with every seed."""
    ranges = smoothness(frame)[0][frame.method.unique()]
    for method, values in ranges.items():
        present.number(f"{_key(method)}.loss_range", values.mean(), [values.min(), values.max()], "nats")
    steadier = [m for m in ranges if m != "none" and (ranges[m] < SMOOTHER * ranges["none"]).all()]
    told_of = ", ".join(f"{value:.2f} {present.words(m)}" for m, value in ranges.mean().items())
    medians = f"medians, mean of {len(ranges)} seeds" if len(ranges) > 1 else "medians of one seed"
    return f"Along a step, the range of the loss in nats is {told_of} ({medians}): " + (
        f"less {present.words(*steadier)}." if steadier else "no method makes it clearly smaller."
    )


def percentile_message(frame):
    """The caption's first sentence on what goes into a deep unit."""
    moved = {}
    for method, rows in frame.groupby("method", sort=False):
        moved[method] = float(rows.middle.max() - rows.middle.min())
        present.number(f"sigmoid.{_key(method)}.accuracy", rows.accuracy.iloc[-1], unit="fraction")
    last = frame.groupby("method").accuracy.last()
    return (
        f"The median input of a deep unit has a range of {moved['none']:.2f} without BN and {moved['BN']:.2f} with BN; "
        f"the network ends at {100 * last['none']:.0f} % and {100 * last['BN']:.0f} %."
    )


def mechanism_verdicts(table):
    """The verdict on each mechanism of drift, by what becomes of it in float64; and how many times what float32 leaves
    open (the band of twins and of rounding) its drift in float32 is.

    Args:
        table: DataFrame of `equivalence.mechanism_drifts`, with a column layer.
    """

    def verdict(row):
        if row.float32 == 0:
            return "cannot" if row.float64 == 0 else "below float32"
        return "round-off" if row.float64 < SHRINKS * row.float32 else "semantic"

    table = table.assign(verdict=[verdict(row) for row in table.itertuples()])
    table = table.assign(bands=table.float32 / table.band)
    return present.judged(
        "V4", table, table.layer + ": " + table.mechanism, table.float64 / table.float32, SHRINKS
    )


def mechanism_message(table):
    """The caption's first sentence on the mechanisms of drift."""
    named = table.layer + ": " + table.mechanism
    of = {v: list(named[table.verdict == v]) for v in ("cannot", "round-off", "semantic", "below float32")}
    small = f", {len(of['below float32'])} below float32" if of["below float32"] else ""
    for layer, band in table.groupby("layer").band.first().items():
        present.number(f"drift.band.{layer.lower()}", band)
    return (
        f"{len(of['semantic'])} of {len(table)} mechanisms change the training in float64 too; "
        f"{len(of['round-off'])} are round-off{small}, {len(of['cannot'])} "
        "cannot move a parameter."
    )


def band_message(table):
    """How much of the round-off leaves the band, and how much of that the rounding of a network explains."""
    roundoff = table[table.verdict == "round-off"]
    beyond = roundoff[roundoff.float32 > 2 * roundoff.band]
    if beyond.empty:
        return "What is round-off stays within twice the band of one-ulp twins and rounding."
    explained, most = int((beyond.float32 <= 2 * beyond.rounding).sum()), beyond.loc[beyond.bands.idxmax()]
    return (
        f"{len(beyond)} of the {len(roundoff)} differences that are round-off are more than twice the band, at most "
        f"{float(f'{most.bands:.1e}'):,.0f} times ({most.layer}: {most.mechanism}); in {explained} of {len(beyond)}, "
        "rounding alone moves one of the two networks as far."
    )


def second_derivative_verdicts(table):
    """The verdict on each layer's own second derivatives; the table again."""
    for row in table.to_dict("records"):
        claim = f"{row['layer']}: own second derivatives are right"
        present.verdict(
            "V1", f"second.{row['layer'].lower()}", claim, row["own, most"], 1e-6, row["own, most"] <= 1e-6
        )
    return table


def second_derivative_message(table):
    """The caption's first sentence on second derivatives."""
    theirs, ours = table["TensorFlow's, most"].max(), table["own, most"].max()
    if theirs <= 1e-6:
        return (
            f"TensorFlow's second derivatives are right to {scientific(theirs)}, ours to {scientific(ours)}."
        )
    least, most = (100 * table[f"TensorFlow's, {which}"] for which in ("least", "most"))
    wrong = [f"{a:.2g} to {b:.2g} % ({m})" for m, a, b in zip(table.layer, least, most, strict=True)]
    return (
        f"Over {table.examples.max()} random examples, along directions that also shift the inputs, TensorFlow's "
        f"second derivatives are wrong by {present.listed(wrong)}, ours by at most {scientific(ours)}."
    )


def claims(profile, seeds):
    """What the profile may not claim."""
    if profile == "smoke":
        return (
            "These runs are a few steps on a sample: they show that everything works, and nothing else "
            "may be claimed."
        )
    if profile == "quick":
        return (
            f"These runs are short, of {len(seeds)} seeds, and the learning rates were not searched: they show what "
            "the notebook does, and nothing else may be claimed."
        )
    return (
        f"{len(HYPOTHESES)} comparisons are tested for a difference, over {len(seeds)} seeds with Holm's correction. "
        "Elsewhere a method is called higher, lower or faster if the 95 % interval of its difference excludes zero and "
        f"the mean is at least {100 * SMALLEST:g} points, over at least {min(len(seeds), tuning.FEWER)} seeds and "
        "without correction: of twenty comparisons with no true difference, one may be so called by chance."
    )


def _upper(text):
    return f"{text[0].upper()}{text[1:]}"


def _above(difference):
    """How surely the higher of two accuracies is above the other, before the other's name."""
    if told(difference) == "alike":
        return f"within {100 * SMALLEST:g} points of"
    if difference.low <= 0:
        return "but not surely above"
    return (
        "above"
        if told(difference) == "higher"
        else f"on average by less than the {100 * SMALLEST:g} points that matter above"
    )


def _clauses(parts):
    return f"{', '.join(parts[:-1])}, and {parts[-1]}"


def _steps(steps):
    return f"{steps:,.0f}" if np.isfinite(steps) else "not reached"


def scientific(value):
    """A small number as people write it: 3.1e-05 becomes 3.1 × 10⁻⁵."""
    mantissa, exponent = f"{value:.1e}".replace("-", "−", int(value < 0)).split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}" if value else "0"


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _record(name, interval, unit, seeds):
    present.number(name, interval[0], interval=list(interval[1:]), unit=unit, seeds=seeds)


def _key(name):
    return name.lower().replace("'s", "").replace(",", "").replace(" ", "_")


def higher(points):
    """A difference in words: "3.36 points higher"."""
    return f"{abs(points):.2f} points {'lower' if points < 0 else 'higher'}"


def signed(value, digits=2):
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")  # and no −0


def points(difference):
    mean, low, high = (signed(100 * value) for value in difference[:3])
    return f"{mean} ({low} to {high})"


def _percent(interval):
    mean, low, high = (100 * value for value in interval)
    return f"{mean:.2f} % ({low:.2f} to {high:.2f})"
