"""Are our layers the same as TensorFlow's, and what made those of 2019 differ: numbers, verdicts and sentences computed
from what `equivalence` and `original` measured."""

import math

import numpy as np
import pandas as pd

from study import original, present, statistics, wording
from study.equivalence import DRIFT_STEPS, NO_FAULT, NO_FAULT_64, SHAPE, fault_name, largest_drift
from study.wording import key_of, points, record, scientific, signed, upper


def same_curves(name_a, histories_a, name_b, histories_b):
    """The caption's first sentence for two curves that ought to be equal."""
    gap = max(
        float(np.max(np.abs(a.accuracy - b.accuracy))) for a, b in zip(histories_a, histories_b, strict=True)
    )
    present.number(
        f"{key_of(name_a)}.largest_gap.{key_of(name_b)}", gap, unit="fraction", seeds=len(histories_a)
    )
    seeds = len(histories_a)
    return (
        f"{name_a} and {name_b} never differ by more than {100 * gap:.2f} points of test accuracy "
        f"({seeds} seed{'s' if seeds > 1 else ''})."
    )


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
    return f"{upper(make)}; with both faults removed, only round-off is left."


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
            most = wording.share(parts.share.drop(original.INTERACTION).abs().max())
            without = "" if len(needed) > 1 else f"; without {left.index[0]}, {_left(left.iloc[0])} is left"
            against += f" (each alone at most {most}{without})"
        told.append(f"{wording.share(share)} of {what} comes from {cause}{against}")
    return f"{upper('; '.join(told))}."


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
    shares = ["" if empty else wording.share(share) for empty, share in zip(none, table.share, strict=True)]
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


def attribution_sentence(method, table, dataset):
    """The finding in full: what made the drift of 2019, on its own quantity."""
    for row in table.itertuples():
        name = f"{method.lower()}.drift.{row.quantity}.{key_of(row.mechanism)}"
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
    return f"{upper(told)}."


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


ONE_CALL_TOLERANCE = {"float32": 1e-4, "float64": 1e-12}
# How the table of one call is read, and the formats of its columns.
ONE_CALL = (
    "float32, float64: largest absolute difference of each quantity, as a fraction of its largest value. own, "
    "TensorFlow's: each layer's largest error in float32, against itself in float64, in units in the last place.",
    dict.fromkeys(ONE_CALL_TOLERANCE, "{:.1e}") | dict.fromkeys(["own", "TensorFlow's"], "{:.2g}"),
)


def one_call_message(method, table):
    """The caption's first sentences of `equivalence.one_call`; records its verdicts."""
    largest = table[list(ONE_CALL_TOLERANCE)].max()
    for dtype, tolerance in ONE_CALL_TOLERANCE.items():
        present.verdict(
            "V1",
            f"{method.lower()}.one_call.{dtype}",
            f"{method}: outputs and gradients of one call agree in {dtype}",
            float(largest[dtype]),
            tolerance,
            bool(largest[dtype] <= tolerance),
        )
    same = all(largest[dtype] <= tolerance for dtype, tolerance in ONE_CALL_TOLERANCE.items())
    told = f"One call of the two layers differs by {'round-off alone' if same else 'more than round-off'}."
    return f"{told} {_exactness(method, table)}"


def _exactness(method, table):
    """How exact the two layers are in float32: in each quantity, whose error is larger, and how many times."""
    of = table.set_index("quantity")[["own", "TensorFlow's"]]
    of = of.clip(lower=0.5)  # half a unit is as exact as can be
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


def summation_sentence(table, plain):
    """Whether TensorFlow's sums are why its BN is less exact: dbeta is one such sum, of dy, and nothing else.

    Args:
        table: of `equivalence.one_call`.
        plain: of `equivalence.sum_error`.
    """
    if "dbeta" not in set(table.quantity):
        return "Without β, no gradient is a sum and nothing else."
    own, theirs = table.set_index("quantity").loc["dbeta", ["own", "TensorFlow's"]]
    told = (
        f"A gradient of β is the sum of {math.prod(SHAPE[:-1]):,} values. TensorFlow's sum of as many random ones, "
        f"without a layer, is wrong by {plain:.2g} units in the last place, its layer's by {theirs:.2g}, ours by "
        f"{own:.2g}"
    )
    if theirs <= 2 * own:
        return f"{told}: no loss to explain."
    if plain > theirs / 2:
        return f"{told}: what its layer loses, its sums lose, which round after each addition; ours add up parts."
    return f"{told}: its sums are not what loses."


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
    return f"{ends} than the study's own, {wording.share(accuracy[cause] / whole.difference)} of it due to {cause}."


def reason_sentence(table, dataset, steps):
    """The finding in full: the answer to the blank of 2019. Arguments as of `reason_message`, and the data's name."""
    for row in table.itertuples():
        present.number(
            f"ln.reason.{row.quantity}.{key_of(row.mechanism)}",
            row.difference,
            [row.low, row.high],
            "fraction",
        )
    return (
        f"{reason_message(table, steps)} (Trained on {dataset}; the 2019 study broke off at 'the reason is'.) "
        f"{shares_message(table)}"
    )


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
        record(f"{key_of(method)}.own_minus_tensorflow", found[:3], "fraction", len(own))
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
