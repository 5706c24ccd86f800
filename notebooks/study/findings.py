"""What runs show, as numbers, verdicts and sentences computed from them: nothing here is known beforehand.

Each rule is stated where it is applied. Three seeds settle little, and the sentences say so.
"""

import dataclasses

import numpy as np
import pandas as pd

from study import present, statistics
from study.equivalence import NO_FAULT, NO_FAULT_64, fault_name


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Method a against method b over the same seeds.

    Attributes:
        name_a, name_b: what they are called.
        final_a, final_b: final accuracy, (mean, low, high) with the 95 % t-interval over the seeds.
        gain: paired difference a minus b of the mean accuracy over all measured steps, (mean, low, high).
        steps: length of the runs.
        steps_to_target: median steps after which a reaches b's mean final accuracy; inf if it does not.
        seeds: how many.
    """

    name_a: str
    name_b: str
    final_a: tuple
    final_b: tuple
    gain: tuple
    steps: int
    steps_to_target: float
    seeds: int

    @property
    def verdict(self):
        """'faster' or 'slower' if the interval of the gain leaves zero out, else 'not told apart'."""
        _, low, high = self.gain
        if low > 0:
            return "faster"
        return "slower" if high < 0 else "not told apart"

    @property
    def message(self):
        """The caption's first sentence."""
        if self.verdict == "not told apart":
            return f"{self.name_a} and {self.name_b}: {self.seeds} seeds do not tell their speed apart."
        return f"{self.name_a} learns {self.verdict} than {self.name_b}."

    @property
    def sentence(self):
        """The finding in full."""
        mean, low, high = (100 * value for value in self.gain)
        reached = (
            f"{self.name_a} reaches the final mean accuracy of {self.name_b} after {self.steps_to_target:,.0f} of "
            f"{self.steps:,} steps (median)"
            if np.isfinite(self.steps_to_target)
            else f"{self.name_a} does not reach the final mean accuracy of {self.name_b} in {self.steps:,} steps"
        )
        return (
            f"{self.message} Averaged over the training, its test accuracy is {signed(mean)} points beside that of "
            f"{self.name_b} (95 % interval {signed(low)} to {signed(high)}, {self.seeds} paired seeds); at the end, "
            f"{_percent(self.final_a)} against {_percent(self.final_b)}. {reached}."
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
    curve_a, curve_b = ([h.accuracy.mean() for h in histories] for histories in (histories_a, histories_b))
    target = float(np.mean(final_b))
    comparison = Comparison(
        name_a,
        name_b,
        tuple(statistics.mean_interval(final_a)),
        tuple(statistics.mean_interval(final_b)),
        tuple(statistics.mean_interval(np.subtract(curve_a, curve_b))),
        int(histories_a[0].steps[-1]),
        float(np.median([statistics.steps_to_target(h.steps, h.accuracy, target) for h in histories_a])),
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


def final_drift(drift):
    """The largest absolute difference of any parameter at the last step."""
    return float(drift[drift.step == drift.step.max()]["largest"].max())


# Round-off shrinks by 2^-29 from float32 to float64, a difference of meaning not at all: so a drift is round-off if
# float64 shrinks it at least this much, and a fault counts if it drifts at least this much more than none.
SHRINKS, STANDS_OUT = 1e-6, 10.0


def shrinkage(drifts):
    """How much float64 shrinks the drift that is left without faults."""
    return final_drift(drifts[NO_FAULT_64]) / (final_drift(drifts[NO_FAULT]) or 1.0)


def is_round_off(drifts):
    """Whether what is left without faults is round-off."""
    return shrinkage(drifts) <= SHRINKS


def attribution_message(drifts):
    """The caption's first sentence of the attribution figure: which faults make the drift."""
    least = final_drift(drifts[NO_FAULT])
    causes = [
        name
        for name in (fault_name(True, True), fault_name(False, False))
        if final_drift(drifts[name]) > STANDS_OUT * least
    ]
    if not is_round_off(drifts):
        return "Even with both faults removed, the parameters drift apart beyond round-off."
    if not causes:
        return "Neither fault moves the parameters beyond round-off."
    makes = " and ".join(causes) + (" each make" if len(causes) > 1 else " make")
    return f"{makes[0].upper()}{makes[1:]} the drift; with both faults removed only round-off is left."


def shares_message(table):
    """The caption's first sentence of a table of `original.shares`: each mechanism's share of each quantity."""
    told = []
    for quantity, rows in table.groupby("quantity", sort=False):
        whole = rows.difference.iloc[-1]
        parts = rows[~rows.mechanism.str.startswith("all,")].sort_values("share", ascending=False)
        listed = _list(
            [f"{row.mechanism} {_share(row.share)}" for row in parts.itertuples() if abs(row.share) >= 0.005]
        )
        told.append(
            f"of the difference in {quantity} ({signed(whole, 4)}) {listed or 'nothing is explained'}"
        )
    text = "; ".join(told)
    return f"{text[0].upper()}{text[1:]}."


def _share(share):
    return f"{100 * share:.0f} %".replace("-", "−")


def attribution_sentence(method, table):
    """The finding in full: what made the drift of 2019, on its own quantity."""
    for row in table.itertuples():
        name = f"{method.lower()}.drift.{row.quantity}.{_key(row.mechanism)}"
        present.number(name, row.difference, [row.low, row.high], "parameter")
    return (
        f"The drift of {method}'s parameters in 2019, as the mean of TensorFlow's minus own after 15 steps: "
        f"{shares_message(table)}"
    )


def drift_message(drifts, as_in_2019):
    """The caption's first sentence of the drift figure: the mean differences that it draws, at the last step.

    Args:
        drifts: of `equivalence.fault_drifts`.
        as_in_2019: the DataFrame of `equivalence.drift` that the left panel draws.
    """
    before, after = (
        _list(
            [f"{signed(v, 4) if abs(v) >= 5e-5 else scientific(v)} ({name})" for name, v in _means(d).items()]
        )
        for d in (as_in_2019, drifts[NO_FAULT])
    )
    told = f"with the faults of 2019 the means part by {before}, paired properly by {after}"
    if is_round_off(drifts) and final_drift(as_in_2019) > STANDS_OUT * final_drift(drifts[NO_FAULT]):
        return f"The drift of 2019 is none of the layers' own: {told}."
    return f"{told[0].upper()}{told[1:]}."


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
    same = apart["float64"] <= 1e-12 and apart["float32"] <= 2 * _band(apart)
    verdict = "are the same layer" if same else "are not the same layer"
    return (
        f"Own {method} and TensorFlow's {verdict}: after {apart['steps']} paired steps no weight differs by more than "
        f"{scientific(apart['float64'])} in float64; in float32 they are {scientific(apart['float32'])} apart, where "
        f"TensorFlow's layer is {scientific(apart['twin'])} apart from itself once a single weight was moved by one "
        f"unit in the last place, and {scientific(apart['rounding'])} from itself in float64."
    )


def _band(apart):
    """How far float32 leaves TensorFlow's layer undetermined: from its one-ulp twins, or from itself in float64. The
    twins alone share its errors, and would punish a layer that is more exact."""
    return max(apart["twin"], apart["rounding"])


def same_verdicts(method, apart, drifts):
    """Record the criteria of equality as verdicts."""
    key = method.lower()
    for name in ("float64", "float32", "twin", "rounding"):
        present.number(f"{key}.paired.{name}", apart[name], unit="weight", seeds=1)
    present.verdict(
        "V1",
        f"{key}.drift",
        f"{method}: float64 shrinks the drift of properly paired parameters as round-off shrinks",
        shrinkage(drifts),
        SHRINKS,
        is_round_off(drifts),
    )
    present.verdict(
        "V1",
        f"{key}.paired.float64",
        f"{method}: after {apart['steps']} paired steps in float64 every weight agrees",
        apart["float64"],
        1e-12,
        apart["float64"] <= 1e-12,
    )
    present.verdict(
        "V1",
        f"{key}.paired.float32",
        f"{method}: in float32 within twice what a unit in the last place, or float64, moves TensorFlow's",
        apart["float32"],
        2 * _band(apart),
        apart["float32"] <= 2 * _band(apart),
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
            f"{method}: outputs and gradients of one call agree, {dtype}",
            float(largest[dtype]),
            tolerance,
            bool(largest[dtype] <= tolerance),
        )
    if all(largest[dtype] <= tolerance for dtype, tolerance in ONE_CALL_TOLERANCE.items()):
        return "One call of the two layers differs by round-off alone."
    return "One call of the two layers differs by more than round-off."


def exactness_message(method, errors):
    """How exact the two layers are in float32: in each quantity, whose error is larger, and how many times."""
    times = errors.set_index("quantity")
    times = times["TensorFlow's"] / times["own"].clip(lower=0.5)  # half a unit is as exact as can be
    for quantity, value in times.items():
        present.number(f"{method.lower()}.one_call.{quantity}.times_less_exact", value)
    worst, best = times.idxmax(), times.idxmin()
    told = [
        f"TensorFlow's {method} is {value:.2g} times less exact than the own one in {quantity}"
        if value > 2
        else f"the own {method} is {1 / value:.2g} times less exact than TensorFlow's in {quantity}"
        for quantity, value in {worst: times[worst], best: times[best]}.items()
        if value > 2 or value < 0.5
    ]
    if not told:
        return f"In float32 own and TensorFlow's {method} are equally exact, within a factor of two."
    return f"In float32 {' and '.join(told)}."


# --- layer normalization in 2019 -----------------------------------------------------------------------------------


def reason_message(table):
    """The caption's first sentence: what makes 2019's own layer end higher than what it called TensorFlow's, if it
    does."""
    accuracy = table[table.quantity == "accuracy"].set_index("mechanism").difference
    whole = accuracy.pop("all, as in 2019")
    if whole > -0.001:
        return "As trained in 2019, TensorFlow's layer does not end lower than the own one here."
    cause = accuracy.idxmin()
    return (
        f"As trained in 2019, TensorFlow's layer ends {100 * -whole:.2f} points lower than the own one, of which "
        f"{cause} make{'' if cause.endswith('s') else 's'} {_share(accuracy[cause] / whole)}."
    )


def reason_sentence(table):
    """The finding in full: the answer to the blank of 2019."""
    for row in table.itertuples():
        present.number(
            f"ln.reason.{row.quantity}.{_key(row.mechanism)}", row.difference, [row.low, row.high], "fraction"
        )
    return (
        f"{reason_message(table)} (The study of 2019 broke off at 'the reason is'.) TensorFlow's minus own: "
        f"{shares_message(table)}"
    )


# --- all methods -------------------------------------------------------------------------------------------------


class Ranking:
    """All methods over the same seeds, against a baseline.

    Args:
        curves: dict name -> list of History, the same seeds in the same order.
        baseline: the method whose mean final accuracy is the target.
    """

    def __init__(self, curves, baseline="none"):
        self.curves, self.baseline = curves, baseline
        self.target = float(np.mean([h.accuracy[-1] for h in curves[baseline]]))
        self.comparisons = {
            name: compare(name, histories, baseline, curves[baseline])
            for name, histories in curves.items()
            if name != baseline
        }
        self._by_speed = sorted(self.comparisons.values(), key=lambda c: -c.gain[0])
        self._by_final = sorted(self.comparisons.values(), key=lambda c: -c.final_a[0])

    @property
    def message(self):
        """The caption's first sentence of the curves."""
        faster = [c.name_a for c in self._by_speed if c.verdict == "faster"]
        if not faster:
            return f"No method learns faster than {self.baseline} beyond what the seeds allow."
        return f"{_list(faster)} learn{'s' if len(faster) == 1 else ''} faster than {self.baseline}."

    @property
    def final_message(self):
        """The caption's first sentence of the final accuracies."""
        best, second = self._by_final[:2]
        apart = best.final_a[1] > second.final_a[2]
        return f"{best.name_a} ends highest{'' if apart else f', but its interval overlaps that of {second.name_a}'}."

    @property
    def sentence(self):
        """The answer: which is good here."""
        first = self._by_speed[0]
        others = "; ".join(
            f"{c.name_a}: {c.verdict}, {signed(100 * c.gain[0])} points" for c in self._by_speed
        )
        return (
            f"{self.message} Mean accuracy over the whole training, beside {self.baseline}: {others}. "
            f"The largest gain is that of {first.name_a}, which reaches the target after "
            f"{_steps(first.steps_to_target)} of {first.steps:,} steps. {self.final_message}"
        )

    @property
    def reason(self):
        """The computed part of why: what the method's cost takes back of its gain."""
        parts = []
        for comparison in self._by_speed:
            cost = self._milliseconds(comparison.name_a) / self._milliseconds(self.baseline)
            saved = comparison.steps / comparison.steps_to_target
            parts.append(
                f"{comparison.name_a} needs {saved:.1f} times fewer steps to the target and {cost:.1f} times the "
                f"time for each, so that it is {saved / cost:.1f} times as fast in seconds"
                if np.isfinite(comparison.steps_to_target)
                else f"{comparison.name_a} does not reach the target"
            )
        return (
            f"In time rather than steps: {'; '.join(parts)}. What the methods that gain have in common is the "
            "projection: the gradient loses what only shifts or stretches the activations. That this is "
            "the cause of the gain is a guess; this comparison does not separate it from the larger steps that "
            "it allows."
        )

    def table(self):
        """One row a method."""
        rows = []
        for name, histories in self.curves.items():
            reached = [statistics.steps_to_target(h.steps, h.accuracy, self.target) for h in histories]
            steps, milliseconds = float(np.median(reached)), self._milliseconds(name)
            mean, low, high = statistics.mean_interval([h.accuracy[-1] for h in histories])
            gain = self.comparisons[name].gain if name in self.comparisons else None
            rows.append(
                {
                    "method": name,
                    "steps to target": _steps(steps),
                    "seconds to target": f"{steps * milliseconds / 1e3:.1f}"
                    if np.isfinite(steps)
                    else "not reached",
                    "final accuracy": f"{mean:.4f} ({low:.4f} to {high:.4f})",
                    "gain in mean accuracy, points": "" if gain is None else signed(100 * gain[0]),
                    "ms per step": f"{milliseconds:.1f}",
                }
            )
            present.number(
                f"{name.lower()}.milliseconds_per_step", milliseconds, unit="ms", seeds=len(histories)
            )
        return pd.DataFrame(rows)

    def _milliseconds(self, name):
        # Other work on the machine only adds.
        return float(min(h.milliseconds_per_step for h in self.curves[name]))


# --- at each method's own learning rate ---------------------------------------------------------------------------


def rates_message(frame, rates, decades):
    """The caption's first sentence of the sweep."""
    widest = max(decades, key=decades.get)
    for method, rate in rates.items():
        present.number(f"{_key(method)}.best_rate", rate)
        present.number(f"{_key(method)}.stable_decades", decades[method], unit="decades")
    if frame.rate.nunique() == 1:
        return f"Each method at the one learning rate {frame.rate.iloc[0]:.2g}: this profile does not search."
    return (
        f"The best learning rate runs from {min(rates.values()):.2g} ({min(rates, key=rates.get)}) to "
        f"{max(rates.values()):.2g} ({max(rates, key=rates.get)}); {widest} is within a point of its best over "
        f"{decades[widest]:.1f} decades, none over {decades['none']:.1f}."
    )


def budget_message(frame):
    """The caption's first sentence of the tuning budget."""
    one = frame[frame.tried == 1].set_index("method").accuracy
    best = one.idxmax()
    return (
        f"With a single learning rate drawn at random, {best} may expect {100 * one[best]:.1f} %, none "
        f"{100 * one['none']:.1f} %."
    )


# Fixed before anything was run: what is compared, and by which measure.
HYPOTHESES = (
    ("H1", "BN", "none", "mean accuracy over the training"),
    ("H2", "LN", "BN", "final accuracy"),
    ("H3", "WN", "none", "mean accuracy over the training"),
)


def hypotheses(curves):
    """The three hypotheses, each method at its best learning rate, with Holm's correction.

    Args:
        curves: dict method -> list of History, the same seeds in the same order.

    Returns:
        DataFrame of what was compared, the difference with its interval, p, p after Holm and the verdict.
    """
    rows = []
    for name, a, b, measure in HYPOTHESES:
        values = [
            [h.accuracy[-1] if measure.startswith("final") else h.accuracy.mean() for h in curves[method]]
            for method in (a, b)
        ]
        found = statistics.paired_difference(*values)
        _record(f"hypothesis.{name.lower()}", (found.mean, found.low, found.high), "fraction", found.pairs)
        rows.append(
            {
                "hypothesis": f"{name}: {a} against {b}, {measure}",
                "difference, points": points(found),
                "p": found.p,
            }
        )
    table = pd.DataFrame(rows)
    table["p, Holm"] = statistics.holm(table.p)
    table["verdict"] = np.where(table["p, Holm"] < 0.05, "told apart", "not told apart")
    return table


def hypotheses_message(table, seeds):
    """The caption's first sentence of the table of hypotheses."""
    apart = int((table.verdict == "told apart").sum())
    least = 2.0 ** (1 - len(seeds))
    limit = (
        f" With {len(seeds)} seeds no p can be under {least:.3g}: nothing may be claimed by this test."
        if len(HYPOTHESES) * least > 0.05
        else ""
    )
    return f"{apart} of {len(table)} hypotheses are told apart.{limit}"


def hypotheses_sentence(table):
    """The finding in full: each comparison at the methods' own rates."""
    told = []
    for row in table.to_dict("records"):
        pair, measure = row["hypothesis"].partition(": ")[2].split(", ")
        told.append(f"{pair} {row['difference, points']} points of {measure} ({row['verdict']})")
    return f"Each method at its own best learning rate: {_list(told)}."


def batch_message(frame):
    """The caption's first sentence of the batch sizes: what the smallest batch costs each method."""
    lost = {}
    for method, rows in frame.groupby("method", sort=False):
        small = rows.loc[rows["size"].idxmin()].accuracy
        lost[method] = float(rows.accuracy.max() - small)
        present.number(f"{_key(method)}.lost_at_batch_2", lost[method], unit="fraction")
    told = ", ".join(f"{method} {100 * loss:.1f}" for method, loss in lost.items())
    return f"Points of accuracy lost between a method's best batch size and two images: {told}."


def when_sentence(frame):
    """When LN is better than BN: the sizes of batches at which one is ahead by more than a point."""
    accuracy = frame.pivot(index="size", columns="method", values="accuracy")
    ahead = {"LN": [], "BN": []}
    for place, suffix in (("behind the convolution", ""), ("behind the dense layer", ", dense")):
        for size, gap in (accuracy["LN" + suffix] - accuracy["BN" + suffix]).items():
            if abs(gap) > 0.01:
                ahead["LN" if gap > 0 else "BN"].append(
                    f"{size} images {place} ({100 * abs(gap):.1f} points)"
                )
    told = [
        f"{method} is better than {other} by more than a point with batches of {_list(ahead[method]) or 'no size'}"
        for method, other in (("LN", "BN"), ("BN", "LN"))
    ]
    return (
        f"{'. '.join(told)}. An image's statistics under LN are its own; under BN they are the batch's, and behind a "
        "dense layer a batch has one value for each image."
    )


# --- exact facts and mechanisms ------------------------------------------------------------------------------------


def law_verdicts(table, laws, case):
    """Measure all laws on a case and record their verdicts; return how many hold, and of how many."""
    rows = [(name, claim, measure(case)) for name, (claim, measure) in laws.LAWS.items()]
    for name, claim, measured in rows:
        present.verdict(table, f"law.{name}", claim, measured, laws.TOLERANCE, measured <= laws.TOLERANCE)
    return sum(measured <= laws.TOLERANCE for _, _, measured in rows), len(rows)


def laws_sentence(held, count, agree, fields):
    """The exact facts in one sentence."""
    told = "All" if held == count else f"{held} of"
    return (
        f"{told} {count} exact facts hold to round-off in float64, and {agree} of {fields} fields of the table of "
        "invariances are as the theory of convolutions says."
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
        f"With ε = {of_filters.epsilon.max():g}, epsilon is {100 * np.median(big):.0f} % of a filter's variance "
        f"(median; {100 * big.max():.0f} % at most), with {of_filters.epsilon.min():g} it is "
        f"{100 * np.median(small):.1f} %; over the channels of one position, even the smaller one is more than half "
        f"of the variance at {100 * empty:.0f} % of the positions."
    )


def depth_message(frame):
    """The caption's first sentence on depth."""
    last = frame[frame.layer == frame.layer.max()].set_index("method")
    middle = (
        frame[(frame.layer > 4) & (frame.layer < frame.layer.max() - 1)].groupby("method").growth.median()
    )
    for method in last.index:
        present.number(f"depth.{method.lower()}.cosine", last.cosine[method])
        present.number(f"depth.{method.lower()}.growth", middle[method])
    cosines = ", ".join(
        f"{last.cosine[m]:.2f} with {m}" if m != "none" else f"{last.cosine[m]:.2f} without"
        for m in last.index
    )
    return (
        f"Before training, different inputs have a mean cosine of {cosines} after {int(frame.layer.max())} layers "
        f"(theory for BN: 1/π = {1 / np.pi:.2f}); from layer to layer back, BN's squared gradient becomes "
        f"{middle['BN']:.2f} times as large (theory: π/(π − 1) = {np.pi / (np.pi - 1):.2f})."
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
            "the squared lengths, beside each step's own square and ε's share,",
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
                f"I16, {method}: {what} {'stay' if stays else 'move'} (in units of the motion)",
                share,
                CONSERVED,
                holds,
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
        present.number(f"statistics.{name.replace(' ', '_')}.first", first[name], unit="fraction")
    return (
        f"After {int(frame.step.min())} steps the same weights classify {100 * first[worst]:.1f} % with statistics of "
        f"{worst} and {100 * first['exact']:.1f} % with exact ones; after {int(frame.step.max())}, "
        f"{100 * last[worst]:.1f} % and {100 * last['exact']:.1f} %."
    )


def landscape_message(frame):
    """The caption's first sentence on the loss along the way."""
    ranges = (
        (frame.highest - frame.lowest).groupby(frame.method, sort=False).median().fillna(np.inf)
    )  # diverged
    for method, value in ranges.items():
        present.number(f"{_key(method)}.loss_range", value, unit="nats")
    steadier = [m for m in ranges.index if m != "none" and ranges[m] < ranges["none"]]
    return (
        f"The median range of the loss along a step is {', '.join(f'{v:.2f} ({m})' for m, v in ranges.items())} nats: "
        + (f"smaller with {_list(steadier)}." if steadier else "no normalization makes it smaller.")
    )


def percentile_message(frame):
    """The caption's first sentence on what goes into a deep unit."""
    moved = {}
    for method, rows in frame.groupby("method", sort=False):
        moved[method] = float(rows.middle.max() - rows.middle.min())
        present.number(f"sigmoid.{_key(method)}.accuracy", rows.accuracy.iloc[-1], unit="fraction")
    last = frame.groupby("method").accuracy.last()
    return (
        f"The median input of a deep unit wanders over {moved['none']:.2f} without BN and {moved['BN']:.2f} with it; "
        f"{100 * last['none']:.1f} % against {100 * last['BN']:.1f} % of the test images are right."
    )


def mechanism_verdicts(table):
    """The verdict on each mechanism of drift, by what becomes of it in float64; and how many times what float32 leaves
    open (the band of twins and of rounding) its drift in float32 is.

    Args:
        table: DataFrame of `equivalence.mechanism_drifts`, with a column layer.
    """

    def verdict(row):
        if row.float32 == 0 and row.float64 == 0:
            return "cannot"
        return "round-off" if row.float64 < 1e-6 * row.float32 else "semantic"

    table = table.assign(verdict=[verdict(row) for row in table.itertuples()])
    return present.judged("V4", table.assign(**{"bands": table.float32 / table.band}))


def mechanism_message(table):
    """The caption's first sentence on the mechanisms of drift."""
    named = table.layer + ": " + table.mechanism
    of = {v: list(named[table.verdict == v]) for v in ("cannot", "round-off", "semantic")}
    largest = table.loc[table.float64.idxmax()]
    for layer, band in table.groupby("layer").band.first().items():
        present.number(f"drift.band.{layer.lower()}", band)
    return (
        f"{len(of['semantic'])} of {len(table)} mechanisms make a difference that float64 does not remove, the largest "
        f"being {largest.layer}: {largest.mechanism} ({scientific(largest.float64)}); {_list(of['cannot']) or 'none'} "
        f"cannot move a parameter at all; {_list(of['round-off']) or 'none'} "
        f"{'is' if len(of['round-off']) == 1 else 'are'} round-off."
    )


def band_message(table):
    """Which round-off leaves the band, and whose rounding it is: a sentence for each."""
    told = []
    for row in table[table.verdict == "round-off"].itertuples():
        if row.float32 <= 2 * row.band:
            continue
        whose = (
            f"its own rounding explains it: in float32 it is {scientific(row.rounding)} from itself in float64"
            if row.float32 <= 2 * row.rounding
            else "nor does its own rounding explain it"
        )
        told.append(
            f"{row.layer}, {row.mechanism}: {row.bands:,.0f} times the band of one-ulp twins and of the own layer's "
            f"rounding ({scientific(row.band)}); {whose}."
        )
    return (
        " ".join(told) or "All that is round-off stays within twice the band of one-ulp twins and rounding."
    )


def second_derivative_verdicts(table):
    """The verdict on each layer's own second derivatives; the table again."""
    for row in table.itertuples():
        claim = f"{row.layer}: own second derivatives are right"
        present.verdict("V1", f"second.{row.layer.lower()}", claim, row.own, 1e-6, row.own <= 1e-6)
    return table


def second_derivative_message(table):
    """The caption's first sentence on second derivatives."""
    worst = table.loc[table["TensorFlow's"].idxmax()]
    theirs, ours = worst["TensorFlow's"], table["own"].max()
    if theirs <= 1e-6:
        return f"TensorFlow's second derivatives are right to {scientific(theirs)}, own ones to {scientific(ours)}."
    return (
        f"TensorFlow's second derivatives are wrong by up to {100 * theirs:.0f} % "
        f"({worst['layer']}), own ones by {scientific(ours)}."
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
        f"With {len(seeds)} seeds, speed of convergence may be claimed where the interval says so; gaps in "
        "final accuracy under half a point may not."
    )


def _list(names):
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _steps(steps):
    return f"{steps:,.0f}" if np.isfinite(steps) else "not reached"


def scientific(value):
    """A small number as people write it: 3.1e-05 becomes 3.1 × 10⁻⁵."""
    mantissa, exponent = f"{value:.1e}".replace("-", "−", value < 0).split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}" if value else "0"


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _record(name, interval, unit, seeds):
    present.number(name, interval[0], interval=list(interval[1:]), unit=unit, seeds=seeds)


def _key(name):
    return name.lower().replace("'s", "").replace(" ", "_")


def signed(value, digits=2):
    return f"{value:+.{digits}f}".replace("-", "−")


def points(difference):
    mean, low, high = (signed(100 * value) for value in difference[:3])
    return f"{mean} ({low} to {high})"


def _percent(interval):
    mean, low, high = (100 * value for value in interval)
    return f"{mean:.2f} % ({low:.2f} to {high:.2f})"
