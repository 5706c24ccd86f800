"""What the accuracies of methods show, as numbers, verdicts and sentences: nothing here is known beforehand.

Each rule is stated where it is applied. Three seeds settle little, and the sentences say so.
"""

import dataclasses

import numpy as np
import pandas as pd

from study import present, statistics, training, tuning, wording
from study.tuning import collapsed
from study.wording import clauses, higher, key_of, percent, points, record, signed, upper

SMALLEST = 0.005  # a smaller difference of accuracy does not matter, however sure
UNCLEAR = "no clear difference"  # not shown either way, as with most comparisons of few seeds
SAME = 0.05  # a ratio of steps or times that is nearer to 1 is told as 1


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
            return f"{upper(at)}, {self.seeds} seeds do not separate the speeds of training {both}."
        with_a, with_b = present.words(self.name_a), present.words(self.name_b)
        if self.verdict == "as fast":
            return f"{upper(at)}, the network learns as fast {with_a} as {with_b}, within {100 * SMALLEST:g} points."
        return f"{upper(at)}, the network learns {self.verdict} {with_a} than {with_b}."

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
            f"it is {percent(self.final_a)} against {percent(self.final_b)}. The final accuracy {with_b} is reached "
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
        record(f"{key_of(name)}.accuracy.final", final, "fraction", comparison.seeds)
    record(f"{key_of(name_a)}.gain_over.{key_of(name_b)}", comparison.gain, "fraction", comparison.seeds)
    present.number(
        f"{key_of(name_a)}.steps_to.{key_of(name_b)}",
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
                    "steps to target": wording.steps(steps),
                    "seconds to target": f"{steps * milliseconds / 1e3:.1f}"
                    if np.isfinite(steps)
                    else "not reached",
                    "final accuracy, %": f"{100 * mean:.2f} ({100 * low:.2f} to {100 * high:.2f})",
                    "gain in mean accuracy, points": "" if gain is None else signed(100 * gain[0]),
                    "ms per step": f"{milliseconds:.1f}",
                }
            )
            present.number(
                f"{key_of(name)}.milliseconds_per_step", milliseconds, unit="ms", seeds=len(histories)
            )
        return pd.DataFrame(rows)


# --- at each method's own learning rate ---------------------------------------------------------------------------


def rates_message(frame):
    """The caption's first sentence of the map of rates."""
    if frame.rate.nunique() == 1:
        return f"Each method at the one learning rate {frame.rate.iloc[0]:.2g}: this profile does not search."
    rates, stable = tuning.best_rates(frame), tuning.stable_rates(frame)
    for method, (low, high) in stable.items():
        present.number(f"{key_of(method)}.best_rate", rates[method])
        present.number(f"{key_of(method)}.stable_decades", np.log10(high / low), unit="decades")
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
    several = present.listed([*map(present.short, tuning.MAIN), "'both'", "'as large'"])
    return f"mean of {plan.seeds} seeds for {several}, else of one"


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
        present.number(f"start.{key_of(method)}.loss", of.loss[method], unit="nats")
        present.number(f"start.{key_of(method)}.spread", of.spread[method])
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
        record(f"hypothesis.{name.lower()}", (found.mean, found.low, found.high), "fraction", found.pairs)
        rows.append(
            {
                "hypothesis": f"{name}: {present.short(a)} against {present.short(b)}, {measure}",
                "difference, points": points(found),
                "higher": f"{found.superiority * found.pairs:g} of {found.pairs}",
                **(
                    {"steps to target": f"{wording.steps(steps[a])} against {wording.steps(steps[b])}"}
                    if often
                    else {}
                ),
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
    return f"Each method at its own best rate: {clauses(_sides(table))}."


def hypotheses_sentence(table, tuned):
    """The finding in full: each comparison at the methods' own rates; and of LN against plain, which is none of the
    three, the interval alone."""
    told_of = [
        f"{side} [{row['hypothesis'].rpartition(', ')[2]}: {row['difference, points']} points]"
        for side, row in zip(_sides(table), table.to_dict("records"), strict=True)
    ]
    sentence = f"With each method at its own best learning rate, {clauses(told_of)}."
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
            present.number(f"{key_of(method)}.at_batch_{size}", accuracy, unit="fraction")
        ends = (f"{100 * of[m]:.1f} % ({present.short(m)})" for m in (of.idxmin(), of.idxmax()))
        sides.append(f"{size} images per batch, accuracies range from {' to '.join(ends)}")
    return f"With {'; with '.join(sides)}."


def rates_of_sizes(plan, frame):
    """With how many seeds and at which rates the batch sizes were trained, in words."""
    seeds = f"mean of {plan.size_seeds} seeds" if plan.size_seeds > 1 else "one seed"
    if len(plan.around) == 1:
        return f"{seeds}, at the rate in proportion to the batch"
    return (
        f"{seeds}, at the best rate of a grid around the method's own, scaled with the batch, of the first seed; "
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
    told_of = clauses(sides)
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
