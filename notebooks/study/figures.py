"""The study's figures: each function draws one and returns it; captions come from `findings`."""

import matplotlib.pyplot as plt
import numpy as np

from study import present, statistics


def accuracy_curves(groups, seed=None):
    """Test accuracy by step: the mean over the seeds, each run faintly behind it.

    Args:
        groups: dict label -> list of History. A label of the form "TensorFlow's BN" has BN's colour, dashed.
        seed: draw the runs of this seed alone. Default None: all.
    """
    figure, axes = plt.subplots()
    for label, histories in groups.items():
        if seed is not None:
            histories = [h for h in histories if h.run.seed == seed]
        look = _look(label)
        steps = histories[0].steps
        accuracy = np.array([h.accuracy for h in histories])
        if len(histories) > 1:
            axes.plot(steps, accuracy.T, **look | {"lw": 0.8, "alpha": 0.3, "label": None})
        axes.plot(steps, accuracy.mean(axis=0), label=label, **look)
    axes.set(xlabel="step", ylabel="held-out accuracy" if histories[0].run.validation else "test accuracy")
    axes.legend(loc="lower right")
    return figure


def drift_curves(shown):
    """The mean differences of the parameters by step, a panel for each drift.

    Args:
        shown: dict title -> DataFrame of `equivalence.drift`; two of them.
    """
    figure, panels = plt.subplots(1, 2, figsize=(7.2, 2.8))
    for axes, (title, drift) in zip(panels, shown.items(), strict=True):
        for parameter, marker, dash in zip(_parameters(drift), "os^", ("-", "--", ":"), strict=False):
            rows = drift[drift.parameter == parameter]
            name = parameter.split("/")[-1]
            axes.plot(rows.step, rows["mean"], ls=dash, marker=marker, ms=3, color="0.2", label=_symbol(name))
        axes.axhline(0.0, color="0.7", lw=0.8)
        axes.set(title=title, xlabel="step", ylabel="mean difference")
        axes.ticklabel_format(axis="y", scilimits=(-3, 3), useMathText=True)
        axes.legend()
    return figure


def attribution(drifts):
    """The largest difference of any parameter by step, one line for each combination of faults."""
    figure, axes = plt.subplots()
    largest = {label: drift.groupby("step")["largest"].max() for label, drift in drifts.items()}
    positive = [v for series in largest.values() for v in series if v > 0]
    floor = min(positive) / 10 if positive else 1e-12
    for (label, series), dash, marker in zip(largest.items(), ("-", "--", "-.", ":"), "os^D", strict=False):
        axes.semilogy(series.index, series.clip(lower=floor), ls=dash, marker=marker, ms=3, label=label)
    axes.set(xlabel="step", ylabel="largest difference of a parameter")
    axes.legend(bbox_to_anchor=(1.02, 1.0), loc="upper left")
    return figure


def accuracy_points(groups):
    """Final test accuracy: every seed as a point, the mean with its t-interval beside them."""
    figure, axes = plt.subplots()
    for place, (label, histories) in enumerate(groups.items()):
        values = [h.accuracy[-1] for h in histories]
        mean, low, high = statistics.mean_interval(values)
        colour = _look(label)["color"]
        axes.plot([place - 0.12] * len(values), values, "o", color=colour, alpha=0.5, ms=4)
        axes.errorbar(
            place + 0.12, mean, [[mean - low], [high - mean]], fmt="D", color=colour, capsize=4, ms=5
        )
    axes.set(xticks=range(len(groups)), xticklabels=list(groups), ylabel="final test accuracy")
    return figure


def _parameters(drift):
    """The parameters of the first normalized layer."""
    names = list(dict.fromkeys(drift.parameter))
    return [name for name in names if name.split("/")[0] == names[0].split("/")[0]]


def _symbol(name):
    return {"gamma": "γ", "beta": "β", "kernel": "v"}.get(name, name)


def _look(label):
    method = label.removeprefix("TensorFlow's ")
    return present.style(method, reference=method != label)


def budget_curves(frame):
    """The expected best accuracy by the number of learning rates tried, a line for each method."""
    figure, axes = plt.subplots()
    for method, rows in frame.groupby("method", sort=False):
        axes.plot(rows.tried, rows.accuracy, marker="o", ms=3, label=method, **present.style(method))
    axes.set(xlabel="learning rates tried", ylabel="expected best accuracy")
    axes.legend(bbox_to_anchor=(1.02, 1.0), loc="upper left")
    return figure


def batch_curves(frame):
    """Accuracy on the held-out images by the size of the batch, normalized behind the convolution or a dense layer."""
    figure, panels = plt.subplots(1, 2, figsize=(7.2, 2.8), sharey=True)
    dense = frame.method.str.endswith(", dense")
    for axes, rows, title in zip(
        panels,
        (frame[~dense], frame[dense]),
        ("behind the convolution", "behind the dense layer"),
        strict=True,
    ):
        for method, of_method in rows.groupby("method", sort=False):
            method = method.removesuffix(", dense")
            axes.semilogx(
                of_method["size"],
                of_method.accuracy,
                base=2,
                marker="o",
                ms=3,
                label=method,
                **present.style(method),
            )
        axes.set(title=title, xlabel="images in a batch", xticks=sorted(set(frame["size"])))
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.legend()
    panels[0].set_ylabel("held-out accuracy")
    return figure


# --- mechanisms --------------------------------------------------------------------------------------------------


def invariance_map(changes, expected, rows, columns):
    """How much each transformation changes each method's output, as colours; theory's word in each field."""
    figure, axes = plt.subplots(figsize=(6.4, 3.6))
    shown = np.log10(np.maximum(changes, 1e-16))
    image = axes.imshow(shown, cmap="cividis", vmin=-16, vmax=0, aspect="auto")
    for (i, j), same in np.ndenumerate(expected):
        axes.text(
            j,
            i,
            "same" if same else "changes",
            ha="center",
            va="center",
            size=7,
            color="white" if shown[i, j] < -8 else "black",
        )
    axes.set(xticks=range(len(columns)), xticklabels=columns, yticks=range(len(rows)), yticklabels=rows)
    axes.grid(visible=False)
    figure.colorbar(image, label="largest relative change, powers of ten")
    return figure


def epsilon_shares(shares):
    """The distribution of epsilon's share of the variance, one panel for each kind of averaged set."""
    names = list(dict.fromkeys(shares.set))
    figure, panels = plt.subplots(1, len(names), figsize=(7.2, 2.8), sharey=True)
    for axes, name in zip(panels, names, strict=True):
        of_set = shares[shares.set == name]
        for epsilon, dash in zip(dict.fromkeys(of_set.epsilon), ("-", "--", ":"), strict=False):
            share = np.sort(of_set.share[of_set.epsilon == epsilon])
            part = np.linspace(0, 1, len(share))
            axes.plot(share, part, ls=dash, color="0.2", label=f"ε = {epsilon:.0e}")
        axes.set(title=f"variance over {name}", xlabel="ε / (variance + ε)", xlim=(-0.02, 1.02))
        axes.legend()
    panels[0].set_ylabel("part of the sets below")
    return figure


def depth_curves(frame):
    """Cosine between samples, and the gradient's growth, by layer."""
    figure, panels = plt.subplots(1, 2, figsize=(7.2, 2.8))
    for method, rows in frame.groupby("method", sort=False):
        for axes, column in zip(panels, ("cosine", "growth"), strict=True):
            axes.plot(rows.layer, rows[column], label=method, **present.style(method))
    panels[0].axhline(1 / np.pi, color="0.6", lw=0.8)
    panels[0].set(xlabel="layer", ylabel="mean cosine between samples", ylim=(0, 1.02))
    panels[1].axhline(np.pi / (np.pi - 1), color="0.6", lw=0.8)
    panels[1].set(xlabel="layer", ylabel="growth of the squared gradient")
    panels[0].legend()
    return figure


def statistics_curves(frame):
    """Test accuracy of one network by step, with each kind of statistics."""
    figure, axes = plt.subplots()
    for (name, rows), dash, marker in zip(
        frame.groupby("statistics", sort=False), ("-", "--", "-.", ":"), "os^D", strict=False
    ):
        axes.semilogx(rows.step, rows.accuracy, ls=dash, marker=marker, ms=4, label=name)
    axes.set(xlabel="step", ylabel="test accuracy")
    axes.legend()
    return figure


def landscape_curves(frame):
    """How far the loss and the gradient range along each step's direction, a line for each method."""
    figure, panels = plt.subplots(1, 2, figsize=(7.2, 2.8))
    for method, rows in frame.groupby("method", sort=False):
        panels[0].semilogy(rows.step, rows.highest - rows.lowest, label=method, **present.style(method))
        panels[1].semilogy(rows.step, rows.change, label=method, **present.style(method))
    panels[0].set(xlabel="step", ylabel="range of the loss, nats")
    panels[1].set(xlabel="step", ylabel="relative change of the gradient")
    panels[0].legend()
    return figure


def percentile_curves(frame):
    """Accuracy, and the percentiles of what goes into one unit, without and with BN: three panels."""
    figure, panels = plt.subplots(1, 3, figsize=(7.2, 2.5))
    for axes, (method, rows) in zip(panels[1:], frame.groupby("method", sort=False), strict=True):
        panels[0].plot(rows.step, rows.accuracy, label=method, **present.style(method))
        for column, part in (("high", "85th"), ("middle", "50th"), ("low", "15th")):
            axes.plot(rows.step, rows[column], lw=1.6 if column == "middle" else 0.9, color="0.2")
            axes.annotate(part, (rows.step.iloc[-1], rows[column].iloc[-1]), size=7, va="bottom", ha="right")
        axes.set(title=method, xlabel="step", ylabel="input of the unit" if axes is panels[1] else None)
    panels[1].sharey(panels[2])
    panels[0].set(xlabel="step", ylabel="test accuracy")
    panels[0].legend()
    return figure


# --- own layers and TensorFlow's, and what training leaves alone -----------------------------------------------------


def arm_curves(arms):
    """Mean accuracy by step of each arm, the seeds faintly behind it.

    Args:
        arms: dict label -> list of History.
    """
    figure, axes = plt.subplots()
    dashes = ("-", (0, (1, 1)), "--", "-.", (0, (4, 1, 1, 1, 1, 1)))
    for number, (label, histories) in enumerate(arms.items()):
        look = {"color": f"C{number}", "ls": dashes[number % len(dashes)]}
        accuracy = np.array([h.accuracy for h in histories])
        if len(histories) > 1:
            axes.plot(histories[0].steps, accuracy.T, **look, lw=0.8, alpha=0.3)
        axes.plot(histories[0].steps, accuracy.mean(axis=0), label=label, **look)
    axes.set(xlabel="step", ylabel="test accuracy")
    axes.legend(loc="lower right")
    return figure


def conservation_curves(frames):
    """What training leaves alone, in units of the motion, a line for each method: the biases' sums, the filters' sum,
    and the squared lengths beside what is predicted.

    Args:
        frames: dict method -> DataFrame of `mechanisms.conservation`.
    """
    figure, panels = plt.subplots(1, 3, figsize=(7.2, 3.2), sharey=True)
    told = (
        ("bias", "kernel", "sum of biases"),
        ("filters", "kernel", "sum of filters"),
        ("length", "growth", "lengths"),
    )
    for axes, (column, unit, title) in zip(panels, told, strict=True):
        for method, frame in frames.items():
            share = np.maximum(frame[column] / frame[unit].max(), 1e-9)
            axes.semilogy(frame.step, share, label=method, **present.style(method))
        axes.set(title=title, xlabel="step")
    panels[0].set_ylabel("change, in units of the motion")
    panels[2].legend(bbox_to_anchor=(1.02, 1.0), loc="upper left")
    return figure


def mechanism_bars(table):
    """The drift that each mechanism makes, in float32 and in float64, a panel for each layer; grey: the band within
    which one-ulp twins and rounding leave float32 open."""
    layers = list(dict.fromkeys(table.layer))
    counts = [int((table.layer == layer).sum()) for layer in layers]
    figure, panels = plt.subplots(
        len(layers), figsize=(7.2, 0.8 + 0.24 * sum(counts)), sharex=True, height_ratios=counts, squeeze=False
    )
    floor = 1e-19
    for axes, layer in zip(panels[:, 0], layers, strict=True):
        rows = table[table.layer == layer]
        places = np.arange(len(rows))
        axes.axvspan(floor, rows.band.iloc[0], color="0.88", lw=0)
        for dtype, shift, colour in (("float32", -0.2, "0.35"), ("float64", 0.2, "#E69F00")):
            width = np.maximum(rows[dtype], floor)
            axes.barh(places + shift, width, 0.38, left=floor, color=colour, label=dtype)
        axes.set_xscale("log")
        axes.set(yticks=places, yticklabels=rows.mechanism, xlim=(floor, 10), title=layer)
        axes.invert_yaxis()
        axes.set_axisbelow(True)
    panels[-1, 0].set_xlabel("largest difference of a parameter")
    panels[0, 0].legend(loc="lower left", bbox_to_anchor=(0, 1.05), ncols=2)
    return figure


def rate_map(frame):
    """Accuracy on the held-out images by method and learning rate, as colours with the value in each field; of each row
    the best is framed, and a field where a run diverged says so."""
    methods = list(dict.fromkeys(frame.method))
    exponents = sorted(set(frame.exponent))
    values = (
        frame.pivot(index="method", columns="exponent", values="accuracy").loc[methods, exponents].to_numpy()
    )
    diverged = (
        frame.pivot(index="method", columns="exponent", values="diverged").loc[methods, exponents].to_numpy()
    )
    figure, axes = plt.subplots(figsize=(6.4, 0.27 * len(methods) + 1.0))
    low = np.nanpercentile(values, 25)  # below, all is as bad
    image = axes.imshow(values, cmap="cividis", vmin=low - 0.1, vmax=np.nanmax(values), aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            shown = "diverged" if diverged[i, j] else f"{value:.3f}"
            dark = value < (image.norm.vmin + image.norm.vmax) / 2
            axes.text(j, i, shown, ha="center", va="center", size=7, color="white" if dark else "black")
    for i, row in enumerate(values):
        best = int(np.nanargmax(row))
        axes.add_patch(plt.Rectangle((best - 0.5, i - 0.5), 1, 1, fill=False, lw=1.5, ec="black"))
    names = [f"{10 ** (k / 2):.2g}" for k in exponents]
    axes.set(xticks=range(len(names)), xticklabels=names, yticks=range(len(methods)), yticklabels=methods)
    axes.set(xlabel="learning rate", ylabel="method")
    axes.grid(visible=False)
    figure.colorbar(image, label="held-out accuracy", extend="min")
    return figure


def penalty_curves(frame):
    """The loss of a training with a gradient penalty, and how far its weights are from the plain formula's."""
    figure, panels = plt.subplots(1, 2, figsize=(7.2, 2.8))
    looks = {"own": present.style("LN"), "TensorFlow's": present.style("LN", reference=True)}
    for layer, look in looks.items():
        rows = frame[frame.layer == layer]
        panels[0].plot(rows.step, rows.loss, label=layer, **look)
        panels[1].semilogy(rows.step, np.maximum(rows.apart, 1e-17), label=layer, **look)
    panels[0].set(xlabel="step", ylabel="loss, nats")
    panels[1].set(xlabel="step", ylabel="weights apart, relative")
    panels[1].legend()
    return figure
