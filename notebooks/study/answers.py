"""The claims of the literature and the questions that people ask, judged and answered by what was measured."""

import typing

import numpy as np
import pandas as pd

from study import explanations, findings, laws, network, present, statistics
from study.findings import beside, compare, over_training, told, when_sentence
from study.tuning import collapsed, last_loss
from study.wording import means_of, points, scientific, signed

# Table 1 of Ba et al. (2016): whether BN's, LN's and WN's outputs stay the same.
TABLE_1 = {
    "all weights × d": (True, True, True),
    "every filter + the same kernel": (False, True, False),
    "each filter × its own d": (True, False, True),
    "all images × d": (True, True, False),
    "all images + c, padding 'same'": (True, False, False),
    "one image × d": (False, True, False),
}
ONE_SEED = 0.05  # of accuracy: a smaller difference that one seed shows settles nothing
STILL = 1e-3  # of the weights' motion: what moves no more does not move
WITHIN = 0.05  # of a theory's number
VERDICTS = ("reproduced", "partly", "mixed", "not settled", "not reproduced", "out of scope")


def judge(*differences):
    """The verdict on a claim that each of these paired differences is above zero by what matters (see `findings.told`);
    None stands for one that was not measured over seeds."""
    words = [told(d) if d is not None else findings.UNCLEAR for d in differences]
    if all(word == "higher" for word in words):
        return "reproduced"
    if "higher" in words:
        return "mixed" if "lower" in words else "partly"
    return "not settled" if all(word == findings.UNCLEAR for word in words) else "not reproduced"


def holds(all_of, some_of=False):
    """The verdict where a single number decides."""
    return "reproduced" if all_of else "partly" if some_of else "not reproduced"


def _judged(difference):
    """The verdict on a claim that a difference is above zero, which a single seed settles only if it is large."""
    if difference.pairs > 1:
        return judge(difference)
    return "not settled" if abs(difference.mean) <= ONE_SEED else holds(difference.mean > 0)


def _with_seeds(difference):
    """A difference of accuracies in words, with the number of seeds."""
    if difference.pairs > 1:
        return f"{points(difference)} points ({difference.pairs} seeds)"
    return f"{signed(100 * difference.mean)} points (one seed)"


def _ends(a, b):
    return statistics.paired_difference(*([h.accuracy[-1] for h in histories] for histories in (a, b)))


def _means(a, b):
    return statistics.paired_difference(*([over_training(h) for h in histories] for histories in (a, b)))


class Trained(typing.NamedTuple):
    """The trainings that claims and questions are told by.

    Attributes:
        curves: dict method -> list of History of "none", "BN", "LN" and "WN" at the common learning rate.
        arms: the same of `mechanisms.arms`.
        tuned: the same of `tuning.at_best_rates`.
        sweep, by_batch: DataFrames, of `tuning.sweep` and `batch_sizes`.
    """

    curves: dict
    arms: dict
    tuned: dict
    sweep: pd.DataFrame
    by_batch: pd.DataFrame

    def at_own_rates(self, a, b):
        """The difference of two methods at their own rates, None where it was not measured over seeds; and it in
        words."""
        if found := beside(self.tuned, a, b):
            return found[0], f"{points(found[0])} points of held-out accuracy after {found[1]:,} steps"
        for method in (a, b):
            if method in self.tuned and (lost := collapsed(self.tuned[method])):
                return None, f"{lost} of {len(self.tuned[method])} runs of {present.short(method)} collapsed"
        best = self.sweep.groupby("method").accuracy.max()
        return (
            None,
            f"{signed(100 * (best[a] - best[b]))} points in the search alone: short runs, not settled",
        )

    @property
    def smallest(self):
        """The smallest size of a batch."""
        return self.by_batch["size"].min()

    def at_smallest(self, a, b):
        """The difference of two methods at the smallest batch, None where it was not measured over seeds; and it in
        words."""
        (one, other), lost = self._at_smallest(a, b)
        if lost:
            return None, lost
        found = statistics.paired_difference(one.each, other.each)
        return found if found.pairs > 1 else None, _with_seeds(found)

    def in_training_at_smallest(self):
        """Whether BN after the dense layer goes worse than LN there at the smallest batch in training too, where it has
        the batch's own statistics: then its moving averages are not what fails, or not alone."""
        (bn, ln), lost = self._at_smallest("BN, dense", "LN, dense")
        if lost:
            return f"Training losses are not compared, since {lost}."
        mean, low, high = statistics.paired_difference(bn.losses, ln.losses)[:3]
        if low > 0:
            verdict = "the training itself goes worse, whatever statistics inference takes"
        elif high < 0:
            verdict = "the training itself goes better"
        else:
            verdict = f"not told apart by {len(bn.losses)} seed{'s' * (len(bn.losses) > 1)}"
        return (
            f"There the training loss ends at {np.mean(bn.losses):.2f} nats, LN's at {np.mean(ln.losses):.2f} "
            f"({signed(mean)}): {verdict}."
        )

    def _at_smallest(self, a, b):
        """The rows of two methods at the smallest batch; and if runs collapsed, that in words."""
        rows = self.by_batch[self.by_batch["size"] == self.smallest].set_index("method")
        found = [rows.loc[method] for method in (a, b)]
        lost = [present.short(row.name) for row in found if row.collapsed]
        return found, f"runs of {present.listed(lost)} collapsed" if lost else ""


def _as_long(histories, arm):
    """Histories over the seeds of an arm, as if they had ended with it."""
    step, seeds = arm[0].run.steps, {h.run.seed for h in arm}
    return [h.until(step) for h in histories if h.run.seed in seeds]


def literature(trained, depths, statistics_frame, conserved, rate_error, changes, along, sigmoid, images):
    """The claims of the literature and what was measured here, judged by a rule each.

    Args:
        trained: a Trained.
        depths, statistics_frame, conserved, rate_error: of `mechanisms.depth`, `moving_statistics`, `conservation`
            of BN and `effective_learning_rate`.
        changes: of `laws.invariance_table`.
        along, sigmoid: of `mechanisms.landscape` and `sigmoid_network`.
        images: how many are trained on.

    Returns:
        DataFrame with columns claim, source, reported, measured, verdict; its verdicts are recorded as table V2.
    """
    curves, arms, tuned, sweep, _ = trained
    rows = []

    def row(claim, source, reported, measured, verdict, asked=""):
        told_of = f"{measured} [required: {asked}]" if asked else measured
        rows.append(
            {"claim": claim, "source": source, "reported": reported, "measured": told_of, "verdict": verdict}
        )

    changed = pd.DataFrame(changes, list(laws.INVARIANCES), list(laws.COLUMNS))[["BN", "LN", "WN"]]
    otherwise = int(
        ((changed.loc[list(TABLE_1)] < laws.TOLERANCE).to_numpy() != np.array([*TABLE_1.values()])).sum()
    )
    versus = {m: compare(m, curves[m], "none", curves["none"]) for m in ("BN", "LN", "WN")}

    def faster(method, claim, source, reported, also=""):
        """Judged at the common rate and at each one's own."""
        own = None
        if not collapsed([*tuned[method], *tuned["none"]]):
            own = _means(tuned[method], tuned["none"])
        gain = versus[method].gain
        row(
            claim,
            source,
            reported,
            f"{also}mean accuracy against plain: {points(gain)} points at one rate for all, "
            f"{'a run collapsed' if own is None else points(own)} at each one's own",
            judge(gain, own),
        )

    saved = versus["BN"].saved
    faster(
        "BN",
        "BN trains faster",
        "@ioffe2015 [fig. 2]",
        "2.3 times fewer steps from BN alone",
        f"{saved:.1f} times fewer steps at one rate for all; " if np.isfinite(saved) else "",
    )
    row(
        "the bias before BN is redundant",
        "@ioffe2015 [sec. 3.2]",
        "exact",
        f"moves by {scientific(conserved.bias.max() / conserved.kernel.max())} of the weights' motion",
        holds(conserved.bias.max() <= STILL * conserved.kernel.max()),
        f"{scientific(STILL)} at most",
    )
    faster("LN", "LN trains faster", "@ba2016 [sec. 6]", "yes")
    common, own = _ends(curves["BN"], curves["LN"]), None
    if not collapsed([*tuned["BN"], *tuned["LN"]]):
        own = statistics.paired_difference(*([h.test_accuracy for h in tuned[m]] for m in ("BN", "LN")))
    row(
        "in convolutional networks BN is better than LN",
        "@ba2016 [sec. 6.7]",
        "yes, without numbers",
        f"test accuracy at the end: {points(common)} points at one rate for all, "
        f"{'a run collapsed' if own is None else points(own)} at each one's own",
        judge(common, own),
    )
    fields = 3 * len(TABLE_1)
    row(
        "which changes of weights and inputs the output does not feel",
        "@ba2016 [table 1]",
        "for dense layers",
        f"{otherwise} of {fields} fields differ in convolutions",
        holds(otherwise == 0, otherwise < fields / 2),
        "none; partly: fewer than half",
    )
    faster("WN", "WN trains faster", "@salimans2016 [sec. 5]", "yes")
    row(
        "before BN, weights × a with rate × a² is the same training",
        "@vanlaarhoven2017",
        "exact",
        f"logits differ by {scientific(rate_error)}",
        holds(rate_error == 0),
        "not at all",
    )
    cosine, growth = (of["BN"] for of in explanations.at_depth(depths))
    row(
        "BN makes gradients grow with depth",
        "@yang2019",
        f"{np.pi / (np.pi - 1):.3f} times a layer",
        f"{growth:.3f} times",
        holds(abs(growth * (np.pi - 1) / np.pi - 1) < WITHIN),
        f"within {100 * WITHIN:g} %",
    )
    row(
        "BN keeps inputs apart",
        "@yang2019",
        f"cosine {1 / np.pi:.3f}",
        f"{cosine:.3f}",
        holds(abs(cosine * np.pi - 1) < WITHIN),
        f"within {100 * WITHIN:g} %",
    )
    looks = statistics_frame.pivot(index=["step", "seed"], columns="statistics", values="accuracy")
    step = statistics_frame.step.max()
    last = looks.loc[step]
    lagging = last.filter(like="moving").mean().idxmin()
    lag = statistics.paired_difference(last["exact"], last[lagging])
    row(
        "moving averages lag; exact statistics mend it",
        "@wu2021 [sec. 3]",
        "yes",
        f"{_with_seeds(lag)} after {step} steps, when little of the start is left in them",
        _judged(lag),
    )
    short = {m: _as_long(curves[m], arms["noisy BN"]) for m in ("none", "BN", "LN")}

    def losses(method):
        cuts = [_means(short[method], arms[f"{method}, {part} detached"]) for part in network.PARTS]
        return ", ".join(signed(-100 * cut.mean) for cut in cuts), cuts[-1]

    of_ln, lost = losses("LN")
    under = _means(short["none"], arms["LN, statistics detached"])
    row(
        "in LN the gradients through the statistics matter more than the forward pass",
        "@xu2019",
        "detached: worse than without LN",
        f"points against LN with the mean, the variance, both detached: {of_ln} (against BN: {losses('BN')[0]}); "
        f"both, against plain: {signed(-100 * under.mean)}",
        judge(lost, under),
    )
    limits = {m: _highest_rate(sweep[sweep.method == m]) for m in ("BN", "BN, both", "none")}
    told_of = {m: f"{rate:.2g}{'' if is_limit else ' or more'}" for m, (rate, is_limit) in limits.items()}
    row(
        "BN allows larger learning rates",
        "@bjorck2018",
        "yes",
        f"highest rate at which all runs learn: {told_of['BN']} after the convolution alone, "
        f"{told_of['BN, both']} after the dense layer too, {told_of['none']} without",
        _larger(limits["none"], limits["BN"], limits["BN, both"]),
        "both higher; partly: one",
    )

    rms, words = trained.at_own_rates("RMS", "LN-C")
    row(
        "RMSNorm is as good as LN",
        "@zhang2019 [table 10] (whose LN averages over height and width: it is IN)",
        "CIFAR-10: better",
        f"against LN over channels {words}; against IN {trained.at_own_rates('RMS', 'IN')[1]}",
        "not settled"
        if rms is None
        else {"lower": "not reproduced", findings.UNCLEAR: "not settled"}.get(told(rms), "reproduced"),
    )
    dyt, words = trained.at_own_rates("BN", "DyT")
    row(
        "DyT does not replace BN in convolutional networks",
        "@zhu2025 [table 16]",
        "−7.3 points (ResNet-50), −1.7 (VGG19)",
        f"BN against DyT: {words}",
        judge(dyt),
    )
    gain, words = trained.at_own_rates("BN", "none")
    alone, of_affine = trained.at_own_rates("BN", "affine")
    row(
        "it is normalizing, not the parameters, that helps",
        "a control",
        "",
        f"BN against plain {words}; BN against γ and β alone {of_affine}",
        judge(gain, alone) if gain is None or told(gain) == "higher" else "out of scope",
    )
    row(
        "noisy BN trains as fast as BN",
        "@santurkar2018 [fig. 2]",
        "nearly",
        f"{points(noise := _means(arms['noisy BN'], short['BN']))} points against BN, "
        f"{points(over := _means(arms['noisy BN'], short['none']))} against plain",
        "not settled"
        if told(noise) == findings.UNCLEAR
        else holds(told(noise) in ("alike", "higher"), told(over) == "higher"),
    )
    smoothness = explanations.smoothness(along)
    ranges, change = (of.mean() for of in smoothness)
    ratios = [of["BN"] / of["none"] for of in smoothness]  # of each seed
    smoother = [(of < explanations.SMOOTHER).all() for of in ratios]
    rougher = [(of > 1 / explanations.SMOOTHER).all() for of in ratios]
    seeds = "one seed" if along.seed.nunique() == 1 else f"mean of {along.seed.nunique()} seeds"
    row(
        "BN makes the loss smoother along the steps",
        "@santurkar2018 [fig. 4]",
        "smaller ranges of loss and gradient",
        f"range of the loss {ranges['BN']:.2f} against {ranges['none']:.2f} nats, relative change of the gradient "
        f"{change['BN']:.1f} against {change['none']:.1f} (medians; one rate, {seeds})",
        holds(all(smoother), any(smoother)) if any(smoother + rougher) else "not settled",
        f"both under {explanations.SMOOTHER:g} times as large with every seed; partly: one",
    )
    wander, right = explanations.steadiness(sigmoid)
    better = statistics.paired_difference(right["BN"], right["none"])
    ends = _judged(better)
    steadier = (wander["BN"] < wander["none"]).all()
    row(
        "BN keeps the input of a deep sigmoid unit steady, and trains better",
        "@ioffe2015 [fig. 1]",
        "yes",
        f"its median wanders over {wander['BN'].mean():.2f} against {wander['none'].mean():.2f}; at the end "
        f"{_with_seeds(better)}",
        ends
        if ends == "not settled"
        else holds(steadier and ends == "reproduced", steadier or ends == "reproduced"),
        "less with every seed, and more points; partly: one",
    )
    gap, words = trained.at_smallest("GN", "BN")
    row(
        "GN does not mind small batches, BN does",
        "@wu2018 [table 2]",
        "at batch 2 BN loses 11.1 points, GN nothing",
        f"with {trained.smallest} images a batch, after the convolution, GN against BN: {words}",
        judge(gap),
    )
    first, of_first = trained.at_own_rates("BN", "first")
    standardized, of_input = trained.at_own_rates("BN", "input")
    row(
        "normalization is more than a good start",
        "a control",
        "",
        f"BN against a standardized first batch {of_first}; against standardized images {of_input}",
        judge(first, standardized),
    )
    run = arms["ghost BN"][0].run
    ghost, epochs = _ends(arms["ghost BN"], short["BN"]), run.steps * run.batch_size / images
    of_ghost, of_bn = (np.mean([last_loss(h) for h in of]) for of in (arms["ghost BN"], short["BN"]))
    row(
        "dividing the batch regularizes",
        "@hoffer2017; @summers2020",
        "yes",
        f"statistics of quarters of the batch: {points(ghost)} points against BN, training loss "
        f"{signed(of_ghost - of_bn)} nats, {epochs:.1f} epochs",
        judge(ghost)
        if epochs > 1
        else "out of scope",  # no image was seen twice: there is nothing to regularize
    )
    table = pd.DataFrame(rows)
    return present.judged("V2", table, table.claim, table.measured, "as the table's caption says")


def _highest_rate(rows):
    """Of a method's rows of `tuning.sweep`: the highest rate at which all its runs learnt, 0 if there is none, and
    whether a higher one was tried, and so it is the limit."""
    highest = rows.rate[rows.collapsed == 0].max() if (rows.collapsed == 0).any() else 0.0
    return highest, bool(highest < rows.rate.max())


def _larger(least, *others):
    """The verdict on a claim that each of some rates of `_highest_rate` is above another. What is no limit may be more:
    so it decides only where it is the higher one."""

    def above(other):
        lower = min(least, other)
        return other[0] > least[0] if lower[1] else None

    sides = [above(other) for other in others]
    return "not settled" if None in sides and True not in sides else holds(all(sides), any(sides))


def literature_message(table):
    """The caption's first sentence of the claims."""
    counts = table.verdict.value_counts()
    listed = ", ".join(f"{counts[v]} {v}" for v in VERDICTS if v in counts)
    return f"Of {len(table)} claims: {listed}."


def questions(trained, facts, shares, statistics_frame, conserved, cost, layers, in_keras, laws_held):
    """What people ask about normalization, each answered by a computed sentence and the place that shows it.

    Args:
        trained: a Trained.
        facts, shares, statistics_frame, conserved: of `mechanisms.small_facts`, `epsilon_share`, `moving_statistics`
            and `conservation` of BN.
        cost: of `findings.milliseconds`.
        layers, in_keras: of `mechanisms.implementations` and `weight_normalization_in_keras`.
        laws_held: whether all exact facts hold.

    Returns:
        DataFrame with columns question, answer, where.
    """
    curves, arms, *_ = trained
    rows = []

    def ask(question, answer, where):
        rows.append({"question": question, "answer": answer, "where": where})

    accuracy = statistics_frame.groupby(["step", "statistics"]).accuracy.mean()
    first, last = statistics_frame.step.min(), statistics_frame.step.max()
    seeds = statistics_frame.seed.nunique()
    names = [n for n in accuracy[first].index if n.startswith("moving")]
    slow, quick = max(names), min(names)
    momentum = float(slow.split()[-1])
    positions = shares[(shares.set == "a position") & (shares.epsilon == shares.epsilon.max())].share
    filters = shares[(shares.set == "a filter") & (shares.epsilon == shares.epsilon.max())].share

    def own_rates(a, b):
        """Method a against b at their own rates, in words."""
        found, words = trained.at_own_rates(a, b)
        verdict = "" if found is None else f" ({_verdict(found)})"
        return f"against {present.short(b)} {words}{verdict}"

    behind, without = arms["BN, after ReLU"], arms["BN, without parameters"]
    bare = _means(without, _as_long(curves["BN"], without))
    after = _means(behind, _as_long(curves["BN"], behind))
    ask(
        "Before or after the ReLU?",
        f"At a learning rate of {behind[0].run.learning_rate:g}, BN after the ReLU: {points(after)} points of "
        f"{measure(behind[0])} against BN before it, {len(behind)} seeds ({_verdict(after)}).",
        "[Table](#tbl-arms)",
    )
    ask(
        "Why is BN far worse in validation than in training at first?",
        f"Its moving averages still hold what they started with: with momentum {momentum:g}, "
        f"{_whole(momentum**first)} of them after {first} steps. The same weights then reach "
        f"{_whole(accuracy[first, slow])} with them, and {_whole(accuracy[first, 'exact'])} with exact statistics.",
        "[Figure](#fig-statistics)",
    )
    ask(
        "Momentum 0.9 or 0.99?",
        f"After {first} steps {_whole(accuracy[first, quick])} against {_whole(accuracy[first, slow])}, after {last} "
        f"{_whole(accuracy[last, quick])} against {_whole(accuracy[last, slow])}"
        + (
            ": here a short training needs the smaller"
            if accuracy[first, quick] > accuracy[first, slow]
            else ""
        )
        + (means_of(seeds) or " (one seed)")
        + ".",
        "[Figure](#fig-statistics)",
    )
    ask(
        "Does epsilon matter?",
        f"Where variances are small: with ε = {shares.epsilon.max():g} it is {_whole(filters.median())} of variance + "
        "ε of a filter's outputs here, and over channels more than half of that sum at "
        f"{_whole((positions > 0.5).mean())} of the positions.",
        "[Figure](#fig-epsilon)",
    )
    ask(
        "Biased or unbiased variance?",
        "They differ by N / (N − 1): "
        + ", ".join(f"{f:.6g} for {n}" for n, f in facts["bessel"].items())
        + ". Only the moving variance differs between layers.",
        "[Table](#tbl-layers)",
    )
    measured = "; ".join(f"{row.layer}: {row[-1]}" for row in layers.itertuples())
    ask(
        "Why does my formula not match keras.layers.BatchNormalization?",
        f"Because a call alone is inference, ε is {layers.epsilon.max():g} by default, and the moving variance is "
        f"divided by a number that depends on the layer ({measured}).",
        "[Table](#tbl-layers)",
    )
    ask(
        "Is the bias before BN redundant?",
        ("Yes" if conserved.bias.max() <= STILL * conserved.kernel.max() else "No")
        + f": in training it moves {scientific(conserved.bias.max())}, where the weights move "
        f"{conserved.kernel.max():.2f}.",
        "[Figure](#fig-conservation)",
    )
    ask(
        "Can BN work with a batch of one or two?",
        f"After a dense layer it {'gives' if laws_held else 'ought to give'} β for one image, and for two (up to ε) "
        "only the sign of their difference: no gradient reaches the layers before it. After a convolution, positions "
        f"are averaged too. With {trained.smallest} images, against plain at the same size: BN after the "
        f"convolution {trained.at_smallest('BN', 'none')[1]}, after the dense layer "
        f"{trained.at_smallest('BN, dense', 'none')[1]}. {trained.in_training_at_smallest()}",
        "[Figure](#fig-batch)",
    )
    ask(
        "Is accumulating gradients the same as a larger batch?",
        f"Without BN it {'is' if laws_held else 'ought to be'}, to round-off; with BN the gradient of γ differs by "
        f"{_whole(facts['accumulation'])} (16 rows taken as 8 and 8).",
        "[Table](#tbl-facts)",
    )
    ask(
        "Why does my layer not normalize when I just call it?",
        "A call without `training` is inference"
        + (
            ": it equals that to the last bit."
            if facts["default"] == 0
            else f", but for {facts['default']:.1e}."
        ),
        "[Table](#tbl-facts)",
    )
    ask(
        "How is BN frozen?",
        "`trainable = False` means inference, even in training"
        + (
            ": the outputs are the same to the last bit."
            if facts["frozen"] == 0
            else f", but for {facts['frozen']:.1e}."
        ),
        "[Table](#tbl-facts)",
    )
    ask(
        "Must the moving statistics be updated by hand?",
        f"No: one call in training moves the moving mean by up to {facts['moved']:.3f}."
        if facts["moved"] > 0
        else "They do not move by themselves here.",
        "[Table](#tbl-facts)",
    )
    ask(
        "Which axes for LN on images?",
        f"LN over channels against LN over the whole image, each at its best rate: {own_rates('LN-C', 'LN')}.",
        "[Table](#tbl-methods-measured)",
    )
    ask(
        "Why γ and β, if they can undo it?",
        f"BN without them, at one rate for all: {points(bare)} points of {measure(without[0])} against BN with them, "
        f"{len(without)} seeds ({_verdict(bare)}). They alone, without normalizing: {own_rates('affine', 'none')}.",
        "[Table](#tbl-arms)",
    )
    ask(
        "Is RMSNorm enough?",
        f"Each at its best rate: {own_rates('RMS', 'LN-C')}.",
        "[Table](#tbl-methods-measured)",
    )
    ask(
        "When is LN better than BN?",
        f"{when_sentence(trained.by_batch)} With batches of 100, each at its best rate, LN: {own_rates('LN', 'BN')}.",
        "[Figure](#fig-batch)",
    )
    ask(
        "What does it cost?",
        "With the layers of this report, on one core, a step takes "
        + present.listed([f"{cost[m] / cost['none']:.1f} ({m})" for m in ("BN", "LN", "WN")])
        + " times as long as without normalization (the fastest runs).",
        "[Table](#tbl-comparison)",
    )
    ask(
        "Where is weight normalization in Keras 3?",
        f"keras.layers {'has' if in_keras['keras'] else 'has no'} WeightNormalization; TensorFlow Probability's "
        "WeightNorm is a layer of "
        f"{'Keras 3' if in_keras['probability'] else 'Keras 2' if in_keras['probability, Keras 2'] else 'neither'}; "
        "the one here wraps layers of Keras 3.",
        "[Section](03_weight_normalization.ipynb)",
    )
    return pd.DataFrame(rows)


def _whole(fraction):
    return f"{100 * fraction:.0f} %"


def _verdict(difference):
    """What `told` says, as tables write it."""
    word = told(difference)
    return f"alike within {100 * findings.SMALLEST:g} points" if word == "alike" else word


def arms_table(curves, arms):
    """Each of `mechanisms.arms` against the normalization that it changes, and against none, at the common rate.

    Returns:
        DataFrame with columns arm, "against the whole" and "against plain" (points of mean accuracy), "at the end, %"
        (test accuracy) and verdict.
    """
    rows = []
    for arm, histories in arms.items():
        whole = "LN" if arm.startswith("LN") else "BN"
        against = {m: _means(histories, _as_long(curves[m], histories)) for m in (whole, "none")}
        rows.append(
            {
                "arm": arm,
                "against the whole": f"{whole}: {points(against[whole])}",
                "against plain": points(against["none"]),
                "at the end, %": 100 * float(np.mean([h.accuracy[-1] for h in histories])),
                "verdict": f"{_verdict(against[whole])} ({whole}), {_verdict(against['none'])} (plain)",
            }
        )
    return pd.DataFrame(rows)


def why_sentence(curves, arms):
    """Why BN helps, as far as these trainings tell: what is left of its gain over plain where a part is taken away."""
    noisy = arms["noisy BN"]
    plain, whole = (_as_long(curves[m], noisy) for m in ("none", "BN"))
    gain = _means(whole, plain)
    if gain.low <= 0:
        return "Why BN helps cannot be told where it has no sure gain over plain."
    left = {
        arm: _means(histories, plain) for arm, histories in arms.items() if "BN" in arm and "ReLU" not in arm
    }
    beyond = {arm: _beyond_half(arms[arm], whole, plain) for arm in left}
    least = min(beyond, key=lambda arm: beyond[arm].low)
    if beyond[least].low >= 0:
        start = "no single part of those tried is needed for most of BN's gain"
    elif beyond[least].high < 0:
        start = f"less than half of BN's gain is left with {least}"
    else:
        start = f"whether more than half of BN's gain is left with {least}, {len(noisy)} seeds do not tell"
    shares = "; ".join(
        f"{arm} {_whole(of.mean / gain.mean)} ({_whole(of.low / gain.mean)} to {_whole(of.high / gain.mean)})"
        for arm, of in left.items()
    )
    return (
        f"At a learning rate of {noisy[0].run.learning_rate:g} for all, {start}. Of its {points(gain)} points of "
        f"{measure(noisy[0])} above plain, this much remains: {shares}. The effect of normalizing itself was not "
        "removed."
    )


def _beyond_half(histories, whole, plain):
    """By how much histories are above the middle between the whole and plain, seed by seed."""
    middle = [(over_training(a) + over_training(b)) / 2 for a, b in zip(whole, plain, strict=True)]
    return statistics.paired_difference([over_training(h) for h in histories], middle)


def measure(history):
    """By what a training is told: its mean accuracy, or where it was measured once, that."""
    return (
        f"{'mean accuracy over' if len(history.steps) > 1 else 'accuracy after'} {history.run.steps:,} steps"
    )


def arms_message(table, of):
    """The caption's first sentence on the arms: what cutting both statistics out of the gradient costs.

    Args:
        table: of `arms_table`.
        of: what is measured, of `measure`.
    """
    beside = table.set_index("arm")["against the whole"]
    changes = [
        f"{beside[f'{method}, statistics detached'].removeprefix(f'{method}: ')} points with {method}"
        for method in ("BN", "LN")
    ]
    return f"Without gradients through both statistics the {of} changes by {' and '.join(changes)}."


def facts_table(facts):
    """What people stumble over, with the measured value: of `mechanisms.small_facts`."""
    told = (
        ("how far a call without `training` is from inference", facts["default"]),
        ("how far a call in training is from inference where trainable is False", facts["frozen"]),
        ("by how much one call in training moves the moving mean", facts["moved"]),
        (
            "by how much BN's gradient of γ differs where 16 rows are taken as 8 and 8, relative",
            facts["accumulation"],
        ),
    )
    return pd.DataFrame(told, columns=["fact", "measured"])


def penalty_message(frame):
    """The caption's first sentence on the training with a gradient penalty."""
    last = frame[frame.step == frame.step.max()].set_index("layer")
    for name in last.index:
        present.number(f"penalty.{name.replace(' ', '_')}.apart", last.apart[name])
    theirs = last.loc["TensorFlow's"]
    gap = abs(theirs.loss / last.loss["plain formula"] - 1)
    return (
        f"After {int(frame.step.max())} steps with a gradient penalty, the weights differ from the plain formula's by "
        f"{100 * theirs.apart:.2g} % of their motion with TensorFlow's LN, with ours by "
        f"{scientific(100 * last.apart['own'])} %; TensorFlow's last loss differs by {100 * gap:.2g} %."
    )
