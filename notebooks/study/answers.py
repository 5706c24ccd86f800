"""The claims of the literature and the questions that people ask, judged and answered by what was measured."""

import numpy as np
import pandas as pd

from study import laws, present, statistics
from study.findings import compare, higher, points, scientific, signed, when_sentence


def literature(
    curves, sweep, by_batch, depths, statistics_frame, conserved, rate_error, changes, along, sigmoid
):
    """The claims of the literature and what was measured here, judged by a rule each.

    Args:
        curves: dict method -> list of History of "none", "BN", "LN", "WN" and, half as long, "detached BN" and
            "noisy BN".
        sweep, by_batch: of `tuning.sweep` and `batch_sizes`.
        depths, statistics_frame, conserved, rate_error: of `mechanisms.depth`, `moving_statistics`, `conservation`
            of BN and `effective_learning_rate`.
        changes: of `laws.invariance_table`.
        along, sigmoid: of `mechanisms.landscape` and `sigmoid_network`.

    Returns:
        DataFrame with columns claim, source, reported, measured, verdict; its verdicts are recorded as table V2.
    """
    rows = []

    def row(claim, source, reported, measured, verdict):
        rows.append(
            {"claim": claim, "source": source, "reported": reported, "measured": measured, "verdict": verdict}
        )

    def judge(all_of, some_of=False):
        return "reproduced" if all_of else "partly" if some_of else "not"

    def by_interval(difference):
        _, low, high = difference[:3]
        return "reproduced" if low > 0 else "not" if high < 0 else "not settled"

    claimed = pd.DataFrame([words.split() for words in laws.INVARIANCES.values()]) == "yes"
    claimed.index, claimed.columns = list(laws.INVARIANCES), list(laws.COLUMNS)
    for change, column in laws.DENSE_ALONE:
        claimed.loc[change, column] = True
    of_the_table = claimed.columns.str.startswith(("BN", "LN", "WN"))
    fields = int(claimed.loc[:, of_the_table].size)
    otherwise = int(((changes < laws.TOLERANCE) != claimed).loc[:, of_the_table].to_numpy().sum())
    versus = {m: compare(m, curves[m], "none", curves["none"]) for m in ("BN", "LN", "WN")}
    bn, ln, wn = versus.values()

    def gain(c):
        return f"{points(c.gain)} points over plain"

    row(
        "BN trains faster",
        "Ioffe 2015, fig. 2",
        "2.3 times fewer steps from BN alone",
        f"{bn.steps / bn.steps_to_target:.1f} times fewer steps"
        if np.isfinite(bn.steps_to_target)
        else "does not get there",
        by_interval(bn.gain),
    )
    row(
        "the bias before BN is redundant",
        "Ioffe 2015, sec. 3.2",
        "exact",
        f"moves by {scientific(conserved.bias.max() / conserved.kernel.max())} of the weights' motion",
        judge(conserved.bias.max() <= 1e-3 * conserved.kernel.max()),
    )
    row("LN trains faster", "Ba 2016, sec. 6", "yes", gain(ln), by_interval(ln.gain))
    final = statistics.paired_difference(
        [h.accuracy[-1] for h in curves["BN"]], [h.accuracy[-1] for h in curves["LN"]]
    )
    row(
        "in convolutional networks BN is better than LN",
        "Ba 2016, sec. 6.7",
        "yes, without numbers",
        f"{points(final)} points at the end",
        by_interval(final),
    )
    row(
        "the invariances of Table 1",
        "Ba 2016, table 1",
        "for dense layers",
        f"{otherwise} of {fields} fields differ in convolutions",
        judge(otherwise == 0, otherwise < fields / 2),
    )
    row("WN trains faster", "Salimans 2016, sec. 5", "yes", gain(wn), by_interval(wn.gain))
    row(
        "before BN, weights × a with rate × a² is the same training",
        "van Laarhoven 2017",
        "exact",
        f"logits differ by {scientific(rate_error)}",
        judge(rate_error == 0),
    )
    last = depths[depths.layer == depths.layer.max()].set_index("method").cosine["BN"]
    middle = depths[
        (depths.method == "BN") & (depths.layer > 4) & (depths.layer < depths.layer.max() - 1)
    ].growth.median()
    row(
        "BN makes gradients grow with depth",
        "Yang 2019",
        f"{np.pi / (np.pi - 1):.3f} times a layer",
        f"{middle:.3f} times",
        judge(abs(middle * (np.pi - 1) / np.pi - 1) < 0.05),
    )
    row(
        "BN keeps inputs apart",
        "Yang 2019",
        f"cosine {1 / np.pi:.3f}",
        f"{last:.3f}",
        judge(abs(last * np.pi - 1) < 0.05),
    )
    first = (
        statistics_frame[statistics_frame.step == statistics_frame.step.min()]
        .set_index("statistics")
        .accuracy
    )
    lag = first["exact"] - min(first[name] for name in first.index if name.startswith("moving"))
    row(
        "moving averages lag; exact statistics mend it",
        "Wu 2021, sec. 3",
        "yes",
        f"{signed(100 * lag)} points after {int(statistics_frame.step.min())} steps",
        judge(lag > 0.01),
    )
    step = int(curves["detached BN"][0].steps[-1])
    without, cut, noisy, whole = (
        [h.until(step).accuracy.mean() for h in curves[m]] for m in ("none", "detached BN", "noisy BN", "BN")
    )
    loss, left = statistics.paired_difference(whole, cut), statistics.paired_difference(cut, without)
    row(
        "the gradients through the statistics matter more than the forward pass (LN)",
        "Xu 2019",
        "detached: worse than without LN",
        f"BN detached: {signed(-100 * loss.mean)} points against BN, {signed(100 * left.mean)} against plain",
        judge(left.high < 0, loss.low > 0),
    )
    best = sweep.loc[sweep.groupby("method").accuracy.idxmax()].set_index("method")

    def beside_none(method):
        return signed(100 * (best.accuracy[method] - best.accuracy["none"]))

    row(
        "BN allows larger learning rates",
        "Bjorck 2018",
        "yes",
        f"best {best.rate['BN']:.2g} with, {best.rate['none']:.2g} without",
        judge(best.rate["BN"] > best.rate["none"]),
    )
    row(
        "RMSNorm is as good as LN",
        "Zhang 2019, table 10",
        "CIFAR-10: better",
        f"{signed(100 * (best.accuracy['RMS'] - best.accuracy['LN-C']))} points, each at its best rate",
        judge(best.accuracy["RMS"] > best.accuracy["LN-C"] - 0.01),
    )
    row(
        "DyT does not replace BN in convolutional networks",
        "Zhu 2025, table 16",
        "−3.8 points (VGG19: −1.7)",
        f"{signed(100 * (best.accuracy['DyT'] - best.accuracy['BN']))} points, each at its best rate",
        judge(best.accuracy["DyT"] < best.accuracy["BN"] - 0.01, best.accuracy["DyT"] < best.accuracy["BN"]),
    )
    row(
        "it is normalizing, not the parameters, that helps",
        "a control",
        "",
        f"points over plain: γ and β alone {beside_none('affine')}, BN {beside_none('BN')}",
        judge(
            best.accuracy["BN"] > best.accuracy["none"]
            and best.accuracy["affine"] - best.accuracy["none"]
            < 0.5 * (best.accuracy["BN"] - best.accuracy["none"])
        ),
    )
    over, under = statistics.paired_difference(noisy, without), statistics.paired_difference(whole, noisy)
    row(
        "internal covariate shift is not the reason",
        "Santurkar 2018, fig. 2",
        "noisy BN trains nearly as fast",
        f"noisy BN: {points(over)} points over plain, {signed(-100 * under.mean)} against BN",
        judge(over.low > 0 and under.mean < over.mean, over.mean > 0),
    )
    ranges = (along.highest - along.lowest).groupby(along.method).median().fillna(np.inf)
    change = along.change.groupby(along.method).median().fillna(np.inf)
    row(
        "BN makes the loss smoother along the steps",
        "Santurkar 2018, fig. 4",
        "smaller ranges of loss and gradient",
        f"range of the loss {ranges['BN']:.2f} against {ranges['none']:.2f} nats, relative change of the gradient "
        f"{change['BN']:.1f} against {change['none']:.1f} (medians)",
        judge(
            ranges["BN"] < ranges["none"] and change["BN"] < change["none"],
            ranges["BN"] < ranges["none"] or change["BN"] < change["none"],
        ),
    )
    right = sigmoid.groupby("method").accuracy.last()
    wander = sigmoid.middle.groupby(sigmoid.method).agg(lambda m: m.max() - m.min())
    row(
        "BN keeps the input of a deep sigmoid unit steady, and trains better",
        "Ioffe 2015, fig. 1",
        "yes",
        f"its median wanders over {wander['BN']:.2f} against {wander['none']:.2f}; "
        f"{signed(100 * (right['BN'] - right['none']))} points at the end",
        judge(
            wander["BN"] < wander["none"] and right["BN"] > right["none"],
            wander["BN"] < wander["none"] or right["BN"] > right["none"],
        ),
    )
    sizes = by_batch.pivot(index="size", columns="method", values="accuracy")
    lost = 100 * (sizes.max() - sizes.iloc[0])
    row(
        "GN does not mind small batches, BN does",
        "Wu 2018, table 2",
        "at batch 2 BN loses 11.1 points, GN nothing",
        f"BN loses {lost['BN']:.1f} points (behind the dense layer {lost['BN, dense']:.1f}), GN {lost['GN']:.1f}",
        judge(
            lost["GN"] < 1 and min(lost["BN"], lost["BN, dense"]) > 2 + lost["GN"],
            max(lost["BN"], lost["BN, dense"]) > 2 + lost["GN"],
        ),
    )
    row(
        "normalization is more than a good start",
        "a control",
        "",
        f"points over plain: a standardized first batch {beside_none('first')}, standardized images "
        f"{beside_none('input')}, BN {beside_none('BN')}",
        judge(best.accuracy["BN"] > max(best.accuracy["first"], best.accuracy["input"]) + 0.005),
    )
    row("dividing the batch regularizes", "Summers 2020", "yes", "", "not tested")
    return present.judged("V2", pd.DataFrame(rows))


def literature_message(table):
    """The caption's first sentence of the claims."""
    counts = table.verdict.value_counts()
    told = ", ".join(
        f"{counts.get(v, 0)} {v}" for v in ("reproduced", "partly", "not settled", "not", "not tested")
    )
    return f"Of {len(table)} claims: {told}."


def questions(facts, shares, statistics_frame, conserved, sweep, by_batch, curves, laws_held):
    """What people ask about normalization, each answered by a computed sentence and the place that shows it.

    Args:
        facts, shares, statistics_frame, conserved: of `mechanisms.small_facts`, `epsilon_share`, `moving_statistics`
            and `conservation` of BN.
        sweep, by_batch: of `tuning.sweep` and `batch_sizes`.
        curves: dict method -> list of History.
        laws_held: whether all exact facts hold.

    Returns:
        DataFrame with columns question, answer, where.
    """
    rows = []

    def ask(question, answer, where):
        rows.append({"question": question, "answer": answer, "where": where})

    accuracy = statistics_frame.set_index(["step", "statistics"]).accuracy
    first, last = statistics_frame.step.min(), statistics_frame.step.max()
    names = [n for n in accuracy[first].index if n.startswith("moving")]
    slow, quick = max(names), min(names)
    best = sweep.loc[sweep.groupby("method").accuracy.idxmax()].set_index("method")
    cost = {m: np.median([h.milliseconds_per_step for h in curves[m]]) for m in curves}
    positions = shares[(shares.set == "a position") & (shares.epsilon == shares.epsilon.max())].share
    filters = shares[(shares.set == "a filter") & (shares.epsilon == shares.epsilon.max())].share
    exact = "It is exact: " if laws_held else "It ought to be exact: "

    def beside(a, b):
        return higher(100 * (best.accuracy[a] - best.accuracy[b]))

    ask(
        "Why is BN far worse in validation than in training at first?",
        f"Its moving averages lag behind: after {first} steps the same weights reach "
        f"{_whole(accuracy[first, slow])} with moving averages of {slow.removeprefix('moving, ')}, and "
        f"{_whole(accuracy[first, 'exact'])} with exact statistics.",
        "[Figure](#fig-statistics)",
    )
    ask(
        "Momentum 0.9 or 0.99?",
        f"After {first} steps {_whole(accuracy[first, quick])} against {_whole(accuracy[first, slow])}, after {last} "
        f"{_whole(accuracy[last, quick])} against {_whole(accuracy[last, slow])}"
        + (
            ": a short training needs the smaller." if accuracy[first, quick] > accuracy[first, slow] else "."
        ),
        "[Figure](#fig-statistics)",
    )
    ask(
        "Does epsilon matter?",
        f"Where variances are small: with ε = {shares.epsilon.max():g} it is {_whole(filters.median())} of a filter's "
        f"variance here (median), and more than half of a position's at {_whole((positions > 0.5).mean())} of the "
        "positions.",
        "[Figure](#fig-epsilon)",
    )
    ask(
        "Biased or unbiased variance?",
        "They differ by N / (N − 1): "
        + ", ".join(f"{f:.6g} for {n}" for n, f in facts["bessel"].items())
        + ".",
        "[Table](#tbl-laws)",
    )
    ask(
        "Is the bias before BN redundant?",
        ("Yes" if conserved.bias.max() <= 1e-3 * conserved.kernel.max() else "No")
        + f": in training it moves {scientific(conserved.bias.max())}, where the weights move "
        f"{conserved.kernel.max():.2f}.",
        "[Figure](#fig-conservation)",
    )
    ask(
        "Can BN work with a batch of one or two?",
        f"{exact}dense BN gives β for a batch of one, and a sign without any gradient for a batch of two.",
        "[Table](#tbl-laws)",
    )
    ask(
        "Is accumulating gradients the same as a larger batch?",
        f"{exact}without BN it is, to round-off; with BN the gradient of γ differs by {_whole(facts['accumulation'])} "
        "(16 rows taken as 8 and 8).",
        "[Table](#tbl-laws)",
    )
    ask(
        "Why does my layer not normalize when I just call it?",
        "A call without `training` is inference"
        + (
            ": it equals that to the last bit."
            if facts["default"] == 0
            else f", but for {facts['default']:.1e}."
        ),
        "[Table](#tbl-laws)",
    )
    ask(
        "How is BN frozen?",
        "`trainable = False` means inference, even in training"
        + (
            ": the outputs are the same to the last bit."
            if facts["frozen"] == 0
            else f", but for {facts['frozen']:.1e}."
        ),
        "[Table](#tbl-laws)",
    )
    ask(
        "Must the moving statistics be updated by hand?",
        f"No: one call in training moves the moving mean by up to {facts['moved']:.3f}."
        if facts["moved"] > 0
        else "They do not move by themselves here.",
        "[Table](#tbl-laws)",
    )
    ask(
        "Which axes for LN on images?",
        f"Each at its best rate, LN over the channels (LN-C) ends {beside('LN-C', 'LN')} than LN over the whole image.",
        "[Figure](#fig-rates)",
    )
    ask(
        "Why γ and β, if they can undo it?",
        f"Without them, the output would be standardized whatever the next layer needs. Each at its best rate, γ and β "
        f"alone end {beside('affine', 'none')} than the plain network, BN "
        f"{beside('BN', 'none')}.",
        "[Table](#tbl-methods-measured)",
    )
    ask(
        "Is RMSNorm enough?",
        f"Each at its best rate, it ends {beside('RMS', 'LN-C')} than LN over the channels (LN-C).",
        "[Figure](#fig-rates)",
    )
    ask(
        "When is LN better than BN?",
        f"{when_sentence(by_batch)} Each at its best rate, LN ends {beside('LN', 'BN')} than BN.",
        "[Figure](#fig-batch)",
    )
    ask(
        "What does it cost?",
        "; ".join(
            f"{m}, {cost[m] / cost['none']:.2f} times the time of a step without it"
            for m in ("BN", "LN", "WN")
        )
        + ".",
        "[Table](#tbl-comparison)",
    )
    return pd.DataFrame(rows)


def _whole(fraction):
    return f"{100 * fraction:.0f} %"
