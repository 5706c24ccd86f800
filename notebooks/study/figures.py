"""The study's figures: each function draws one and returns it; captions come from `findings`.

What is drawn is the data: where there are zeros, the scale makes room for them. Legends stand above the panels, where
they cover nothing.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from study import present, statistics

WIDE = 6.3  # inches: the text of the PDF, so that nothing is scaled there
THIN = {"lw": 0.6, "alpha": 0.3, "marker": ""}  # one seed's curve


def accuracy_curves(groups, seed=None):
    """Test accuracy by step, and below it each group's paired difference from the first, with its 95 % t-interval.

    Args:
        groups: dict label -> list of History. "TensorFlow's BN" is drawn over BN, thin and black.
        seed: draw the runs of this seed alone. Default None: all.
    """
    figure, (above, below) = plt.subplots(2, 1, figsize=(5.2, 4.3), sharex=True, height_ratios=(3, 2))
    first = None
    for label, histories in groups.items():
        if seed is not None:
            histories = [h for h in histories if h.run.seed == seed]
        steps = histories[0].steps
        look = _look(label, len(steps))
        accuracy = 100 * np.array([h.accuracy for h in histories])
        if len(histories) > 1:
            above.plot(steps, accuracy.T, label=f"_{present.short(label)}", **look | THIN)
        above.plot(steps, accuracy.mean(axis=0), label=present.short(label), **look)
        if first is None:
            first = accuracy
            continue
        mean, low, high = np.transpose([statistics.mean_interval(d)[:3] for d in (accuracy - first).T])
        below.fill_between(steps, low, high, color=look["color"], alpha=0.2, lw=0)
        below.plot(steps, mean, label=present.short(label), **look)
    below.axhline(0.0, color="0.35", lw=0.8)
    images = "held-out" if histories[0].run.validation else "test"
    above.set_ylabel(f"{images} accuracy, %")
    below.set(xlabel="step", ylabel=f"minus {present.short(next(iter(groups)))}, points")
    figure.align_ylabels()
    return _finished(figure)


def drift_curves(shown):
    """The mean differences of the parameters by step, a panel for each drift.

    Args:
        shown: dict title -> DataFrame of `equivalence.drift`; two of them.
    """
    figure, panels = plt.subplots(1, 2, figsize=(WIDE, 2.8))
    for axes, (title, drift) in zip(panels, shown.items(), strict=True):
        for place, parameter in enumerate(_parameters(drift)):
            rows = drift[drift.parameter == parameter]
            look = present.style(place, points=len(rows))
            axes.plot(rows.step, rows["mean"], label=present.symbol(parameter.split("/")[-1]), **look)
        axes.axhline(0.0, color="0.35", lw=0.8)
        axes.set(title=title, xlabel="step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.ticklabel_format(axis="y", scilimits=(-3, 3))
    panels[0].set_ylabel("mean difference")
    return _finished(figure)


def attribution(drifts):
    """The largest difference of any parameter by step, one line for each combination of faults."""
    figure, axes = plt.subplots(figsize=(5.2, 3.4))
    largest = {label: drift.groupby("step")["largest"].max() for label, drift in drifts.items()}
    for place, (label, series) in enumerate(largest.items()):
        axes.plot(series.index, series, label=label, **present.style(place, points=len(series)))
    axes.set(xlabel="step", ylabel="largest difference of a parameter")
    _logarithmic_from_zero(axes, "y", np.concatenate(list(largest.values())))
    return _finished(figure, columns=2)


def arm_curves(arms, beside):
    """Mean accuracy over the seeds by step of each arm of an experiment, and below it minus that of one of them.

    Args:
        arms: dict label -> list of History, the same seeds in the same order.
        beside: the label of the arm that is taken off.
    """
    figure, (above, below) = plt.subplots(2, 1, figsize=(5.2, 5.4), sharex=True)
    means = {
        label: 100 * np.mean([h.accuracy for h in histories], axis=0) for label, histories in arms.items()
    }
    steps = arms[beside][0].steps
    for place, (label, mean) in enumerate(means.items()):
        look = present.style(place, points=len(steps))
        above.plot(steps, mean, label=label, **look)
        if label != beside:
            below.plot(steps, mean - means[beside], label=label, **look)
    below.axhline(0.0, color="0.35", lw=0.8)
    above.set_ylabel("test accuracy, %")
    below.set(xlabel="step", ylabel=f"minus {beside}, points")
    figure.align_ylabels()
    return _finished(figure, columns=2)


def accuracy_points(groups):
    """Final test accuracy: every seed as a point, the mean with its t-interval beside them."""
    figure, axes = plt.subplots(figsize=(5.2, 2.9))
    for place, (label, histories) in enumerate(groups.items()):
        values = [100 * h.accuracy[-1] for h in histories]
        mean, low, high = statistics.mean_interval(values)
        look = _look(label, 1) | {"ls": "none"}
        axes.plot([place - 0.12] * len(values), values, **look | {"alpha": 0.45, "mew": 0})
        axes.errorbar(place + 0.12, mean, [[mean - low], [high - mean]], capsize=4, ms=7, **look)
    names = [present.short(label) for label in groups]
    axes.set(xticks=range(len(groups)), xticklabels=names, ylabel="final test accuracy, %")
    axes.grid(visible=False, axis="x")
    return figure


def rate_map(frame):
    """Accuracy on the held-out images by method and learning rate, as colours with the value in each field; of each row
    the best is framed, and a field where a run diverged says so, or how many of the runs learnt."""
    methods, exponents = list(dict.fromkeys(frame.method)), sorted(set(frame.exponent))
    values, diverged, collapsed, seeds = (
        frame.pivot(index="method", columns="exponent", values=column).loc[methods, exponents].to_numpy(float)
        for column in ("accuracy", "diverged", "collapsed", "seeds")
    )
    figure, axes = plt.subplots(figsize=(WIDE, 0.27 * len(methods) + 1.3))
    values = 100 * values
    low = np.nanpercentile(values, 25)  # below, all is as bad
    image = axes.imshow(values, cmap="cividis", vmin=low - 10, vmax=np.nanmax(values), aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            learnt = seeds[i, j] - collapsed[i, j]
            some = f"{learnt:.0f} of {seeds[i, j]:.0f} learnt"  # no mean describes runs of two kinds
            word = some if 0 < learnt < seeds[i, j] else "diverged" if diverged[i, j] else f"{value:.1f}"
            ink = "white" if value < (image.norm.vmin + image.norm.vmax) / 2 else "black"
            axes.text(j, i, word, ha="center", va="center", size=8, color=ink)
    for i, row in enumerate(values):
        axes.add_patch(
            plt.Rectangle((np.nanargmax(row) - 0.5, i - 0.5), 1, 1, fill=False, lw=1.8, ec="black")
        )
    axes.set(xticks=range(len(exponents)), xticklabels=[f"{10 ** (k / 2):.2g}" for k in exponents])
    axes.set(
        yticks=range(len(methods)), yticklabels=[present.short(m) for m in methods], xlabel="learning rate"
    )
    axes.grid(visible=False)
    figure.colorbar(image, location="bottom", aspect=40, extend="min", label="held-out accuracy, %")
    return figure


def budget_curves(frame):
    """The expected best accuracy by the number of learning rates tried, a line for each method."""
    figure, axes = plt.subplots(figsize=(5.2, 2.9))
    for method, rows in frame.groupby("method", sort=False):
        axes.plot(rows.tried, 100 * rows.accuracy, label=present.short(method), **_look(method, 1))
    axes.set(xlabel="learning rates tried", ylabel="expected best accuracy, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _finished(figure, columns=4)


def batch_curves(frame):
    """Accuracy on the held-out images by the size of the batch, normalized after the convolution or a dense layer: the
    mean and, pale, each seed."""
    figure, panels = plt.subplots(1, 2, figsize=(WIDE, 3.0), sharey=True)
    dense = frame.method.str.endswith(", dense")
    titles = ("after the convolution", "after the dense layer")
    for axes, rows, title in zip(panels, (frame[~dense], frame[dense]), titles, strict=True):
        for method, of_method in rows.groupby("method", sort=False):
            method = method.removesuffix(", dense")
            look = _look(method, 1)
            axes.plot(of_method["size"], 100 * of_method.accuracy, label=present.short(method), **look)
            seeds = 100 * np.array([*of_method.each])
            axes.plot(of_method["size"], seeds, **look | {"ls": "none", "alpha": 0.4, "mew": 0, "ms": 3})
        axes.set_xscale("log", base=2)
        axes.set(title=title, xlabel="images in a batch", xticks=sorted(set(frame["size"])))
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.xaxis.set_minor_locator(NullLocator())
    panels[0].set_ylabel("held-out accuracy, %")
    return _finished(figure)


# --- mechanisms --------------------------------------------------------------------------------------------------


def invariance_map(changes, expected, rows, columns):
    """How much each transformation changes each method's output, as colours; theory's word in each field."""
    figure, axes = plt.subplots(figsize=(WIDE, 4.0))
    image = axes.imshow(changes, cmap="cividis", norm=LogNorm(1e-16, 1.0, clip=True), aspect="auto")
    for (i, j), same in np.ndenumerate(expected):
        word, ink = "same" if same else "moves", "white" if changes[i, j] < 1e-8 else "black"
        axes.text(j, i, word, ha="center", va="center", size=8, color=ink)
    columns = [name.replace(", ", ",\n") for name in columns]
    axes.set(xticks=range(len(columns)), xticklabels=columns, yticks=range(len(rows)), yticklabels=rows)
    axes.grid(visible=False)
    figure.colorbar(image, location="bottom", aspect=40, label="largest relative change of the output")
    return figure


def epsilon_shares(shares):
    """The distribution of epsilon's share of the variance, one panel for each kind of averaged set."""
    names = list(dict.fromkeys(shares.set))
    of = {"a filter": "of a filter's outputs", "a position": "over a position's channels"}
    figure, panels = plt.subplots(1, len(names), figsize=(WIDE, 2.9), sharey=True)
    for axes, name in zip(panels, names, strict=True):
        of_set = shares[shares.set == name]
        for place, epsilon in enumerate(dict.fromkeys(of_set.epsilon)):
            share = 100 * np.sort(of_set.share[of_set.epsilon == epsilon])
            part = np.linspace(0, 100, len(share))
            axes.plot(share, part, label=f"ε = {present.power(epsilon)}", **present.style(place))
            look = present.style(place, points=1)
            axes.scatter(np.median(share), 50, 30, color=look["color"], marker=look["marker"], zorder=3)
        axes.set(title=f"variance {of[name]}", xlabel="ε / (variance + ε), %", xlim=(-3, 103))
    panels[0].set_ylabel("sets with a smaller share, %")
    return _finished(figure)


def depth_curves(frame):
    """Cosine between samples, and the gradient's growth, by layer."""
    figure, panels = plt.subplots(1, 2, figsize=(WIDE, 2.9))
    for method, rows in frame.groupby("method", sort=False):
        for axes, column in zip(panels, ("cosine", "growth"), strict=True):
            axes.plot(rows.layer, rows[column], label=present.short(method), **_look(method, len(rows)))
    theory = (("1/π", 1 / np.pi), ("π/(π−1)", np.pi / (np.pi - 1)))
    for axes, (name, value) in zip(panels, theory, strict=True):
        axes.axhline(value, color="0.35", lw=0.8)
        axes.annotate(
            name, (1, value), (4, 0), ("axes fraction", "data"), "offset points", va="center", size=8
        )
        axes.set_xlabel("layer")
    panels[0].set(ylabel="mean cosine between samples", ylim=(0, 1.02))
    panels[1].set_ylabel("growth of the squared gradient")
    return _finished(figure)


def conservation_curves(frames):
    """What training leaves alone, in units of the motion, a line for each method: the biases' sums, the filters' sum,
    and the squared lengths beside what is predicted.

    Args:
        frames: dict method -> DataFrame of `mechanisms.conservation`.
    """
    told = {
        "bias": ("kernel", "biases"),
        "filters": ("kernel", "sum of filters"),
        "length": ("growth", "error of lengths"),
    }
    figure, panels = plt.subplots(1, len(told), figsize=(WIDE, 3.2), sharey=True)
    drawn = []
    for axes, (column, (unit, title)) in zip(panels, told.items(), strict=True):
        for method, frame in frames.items():
            drawn.append(frame[column] / frame[unit].max())
            axes.plot(frame.step, drawn[-1], label=present.short(method), **_look(method, len(frame)))
        axes.set(title=title, xlabel="step")
    panels[0].set_ylabel("change, in units of the motion")
    _logarithmic_from_zero(panels[0], "y", np.concatenate(drawn))
    return _finished(figure, columns=5)


def statistics_curves(frame):
    """Test accuracy of networks by step, with each kind of statistics, side by side where they coincide: each seed and
    the mean."""
    figure, axes = plt.subplots()
    steps = sorted(set(frame.step))
    for place, (name, rows) in enumerate(frame.groupby("statistics", sort=False)):
        seeds = 100 * rows.pivot(index="step", columns="seed", values="accuracy")
        beside, look = np.arange(len(steps)) + 0.07 * (place - 1.5), present.style(place, points=1)
        axes.plot(beside, seeds, label=f"_{name}", **look | THIN)
        axes.plot(beside, seeds.mean(axis=1), label=name, **look)
    axes.set(xlabel="step", ylabel="test accuracy, %", xticks=range(len(steps)), xticklabels=steps)
    return _finished(figure, columns=2)


def mechanism_bars(table):
    """The drift that each mechanism makes, in float32 and in float64, a panel for each layer; pale: what one-ulp twins
    and rounding leave open in float32.

    Args:
        table: DataFrame with columns layer, mechanism, float32, float64 and band.
    """
    layers = table.groupby("layer", sort=False)
    counts = [len(rows) for _, rows in layers]
    size = (WIDE, 1.1 + 0.155 * sum(counts) + 0.25 * len(counts))  # all of it on one page
    figure, panels = plt.subplots(len(counts), figsize=size, sharex=True, height_ratios=counts, squeeze=False)
    for axes, (layer, rows) in zip(panels[:, 0], layers, strict=True):
        places = np.arange(len(rows))
        axes.axvspan(0.0, rows.band.iloc[0], color="0.9", lw=0, label="left open by float32")
        for column, shift, colour in (("float32", -0.2, "#333333"), ("float64", 0.2, "#8c8c8c")):
            axes.barh(places + shift, rows[column], 0.38, color=colour, label=column)
        axes.set(yticks=places, yticklabels=rows.mechanism, title=layer)
        axes.invert_yaxis()
        axes.set_axisbelow(True)
        axes.grid(visible=False, axis="y")
    panels[-1, 0].set_xlabel("largest difference of a parameter")
    _logarithmic_from_zero(panels[-1, 0], "x", np.concatenate([table.float32, table.float64]))
    return _finished(figure)


def landscape_curves(frame):
    """How far the loss and the gradient range along each step's direction: of each method, each seed and the mean."""
    figure, panels = plt.subplots(1, 2, figsize=(WIDE, 2.9))
    for method, rows in frame.assign(range=frame.highest - frame.lowest).groupby("method", sort=False):
        for axes, measure in zip(panels, ("range", "change"), strict=True):
            seeds = rows.pivot(index="step", columns="seed", values=measure)
            look = _look(method, len(seeds))
            axes.semilogy(seeds.index, seeds, label=f"_{present.short(method)}", **look | THIN)
            axes.semilogy(seeds.index, seeds.mean(axis=1), label=present.short(method), **look)
    panels[0].set_ylabel("range of the loss, nats")
    panels[1].set_ylabel("relative change of the gradient")
    for axes in panels:
        axes.set_xlabel("step")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    return _finished(figure)


def penalty_curves(frame):
    """The loss of a training with a gradient penalty, and how far its weights are from the plain formula's."""
    figure, panels = plt.subplots(1, 2, figsize=(WIDE, 2.9))
    for place, (layer, rows) in enumerate(frame.groupby("layer", sort=False)):
        look = present.style(place, points=len(rows))
        panels[0].plot(rows.step, rows.loss, label=layer, **look)
        panels[1].plot(rows.step, rows.apart, label=layer, **look)
    panels[0].set(xlabel="step", ylabel="loss, nats")
    panels[1].set(xlabel="step", ylabel="weights apart, relative")
    _logarithmic_from_zero(panels[1], "y", frame.apart.to_numpy())
    return _finished(figure)


def percentile_curves(frame):
    """Accuracy, and the percentiles of what goes into one unit, without and with BN: three panels."""
    figure, panels = plt.subplots(1, 3, figsize=(WIDE, 2.9))
    names = {"high": "85th percentile", "middle": "50th", "low": "15th"}
    for axes, (method, rows) in zip(panels[1:], frame.groupby("method", sort=False), strict=True):
        look = _look(method, len(rows))
        panels[0].plot(rows.step, 100 * rows.accuracy, label=present.short(method), **look)
        for place, (column, name) in enumerate(names.items()):
            axes.plot(rows.step, rows[column], label=name, **present.style(place, points=len(rows)))
        axes.set(title=f"unit's input, {present.short(method)}", xlabel="step")
    panels[1].sharey(panels[2])
    panels[0].set(title="test accuracy, %", xlabel="step")
    return _finished(figure, columns=5)


# --- shared ------------------------------------------------------------------------------------------------------


def _parameters(drift):
    """The parameters of the first normalized layer."""
    names = list(dict.fromkeys(drift.parameter))
    return [name for name in names if name.split("/")[0] == names[0].split("/")[0]]


def _look(label, points=None):
    method = label.removeprefix("TensorFlow's ")
    return present.style(method, reference=method != label, points=points)


def _logarithmic_from_zero(axes, direction, values):
    """Give an axis, "x" or "y", a logarithmic scale that begins with a place for zero."""
    positive = values[np.isfinite(values) & (values > 0)]
    ends = np.log10([positive.min(), positive.max()]) if len(positive) else (-1.0, 0.0)
    low, high = np.floor(ends[0]), np.ceil(ends[1])
    getattr(axes, f"set_{direction}scale")("symlog", linthresh=10.0**low, linscale=0.5)
    axis = getattr(axes, f"{direction}axis")
    decades = np.arange(low, high + 1, max(1, (high - low) // 6))
    axis.set_ticks([0.0, *10.0 ** decades[len(decades) > 1 :]])
    axis.set_minor_locator(NullLocator())


def _finished(figure, columns=4):
    """The figure with one legend for all its panels above them."""
    handles = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside upper left", ncols=columns)
    return figure
