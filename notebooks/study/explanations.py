"""What the exact facts and the small experiments show: numbers, verdicts and sentences computed from what `laws` and
`mechanisms` measured."""

import numpy as np

from study import laws, present
from study.wording import key_of, means_of, scientific

SECOND = 1e-6  # relative error of second derivatives that are right: what central differences leave open
SMOOTHER = 0.8  # of a range of the loss without normalization: a smaller one is smoother


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
                f"conserved.{key_of(method)}.{column}",
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
    seeds = frame.seed.nunique()
    means = frame.groupby(["step", "statistics"], sort=False).accuracy.mean()
    first, last = means[frame.step.min()], means[frame.step.max()]
    lags = [name for name in first.index if name.startswith("moving")]
    worst = min(lags, key=lambda name: first[name])
    for name in first.index:
        present.number(f"statistics.{key_of(name)}.first", first[name], unit="fraction", seeds=seeds)
    momentum = worst.removeprefix("moving, ")
    return (
        f"After {int(frame.step.min())} steps the same weights classify {100 * first[worst]:.0f} % of the test images "
        f"correctly with moving averages of {momentum} and {100 * first['exact']:.0f} % with exact statistics; after "
        f"{int(frame.step.max())}, {100 * last[worst]:.0f} % and {100 * last['exact']:.0f} %"
        f"{means_of(seeds)}."
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
        present.number(f"{key_of(method)}.loss_range", values.mean(), [values.min(), values.max()], "nats")
    steadier = [m for m in ranges if m != "none" and (ranges[m] < SMOOTHER * ranges["none"]).all()]
    told_of = ", ".join(f"{value:.2f} {present.words(m)}" for m, value in ranges.mean().items())
    medians = f"medians, mean of {len(ranges)} seeds" if len(ranges) > 1 else "medians of one seed"
    return f"Along a step, the range of the loss in nats is {told_of} ({medians}): " + (
        f"less {present.words(*steadier)}." if steadier else "no method makes it clearly smaller."
    )


def steadiness(frame):
    """Of `mechanisms.sigmoid_network` with several seeds: over what range the median of the unit's input wanders, and
    the accuracy at the end, two DataFrames with a row for each seed and a column for each method."""
    of = frame.groupby(["seed", "method"])
    return (of.middle.max() - of.middle.min()).unstack(), of.accuracy.last().unstack()


def percentile_message(frame):
    """The caption's first sentence on what goes into a deep unit."""
    ranges, last = steadiness(frame)
    for method, values in last.items():
        several = [values.min(), values.max()] if len(values) > 1 else None
        present.number(f"sigmoid.{key_of(method)}.accuracy", values.mean(), several, "fraction", len(values))
    moved, last = ranges.mean(), 100 * last.mean()
    return (
        f"The median input of a deep unit has a range of {moved['none']:.2f} without BN and {moved['BN']:.2f} with BN; "
        f"the network ends at {last['none']:.0f} % and {last['BN']:.0f} %{means_of(len(ranges))}."
    )


def second_derivative_verdicts(table):
    """The verdict on each layer's own second derivatives; the table again."""
    for row in table.to_dict("records"):
        claim = f"{row['layer']}: own second derivatives are right"
        present.verdict(
            "V1",
            f"second.{row['layer'].lower()}",
            claim,
            row["own, most"],
            SECOND,
            row["own, most"] <= SECOND,
        )
    return table


def second_derivative_message(table):
    """The caption's first sentence on second derivatives."""
    theirs, ours = table["TensorFlow's, most"].max(), table["own, most"].max()
    if theirs <= SECOND:
        return (
            f"TensorFlow's second derivatives are right to {scientific(theirs)}, ours to {scientific(ours)}."
        )
    least, most = (100 * table[f"TensorFlow's, {which}"] for which in ("least", "most"))
    wrong = [f"{a:.2g} to {b:.2g} % ({m})" for m, a, b in zip(table.layer, least, most, strict=True)]
    return (
        f"Over {table.examples.max()} random examples, along directions that also shift the inputs, TensorFlow's "
        f"second derivatives are wrong by {present.listed(wrong)}, ours by at most {scientific(ours)}."
    )
