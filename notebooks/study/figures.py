"""The study's figures: each function draws one and returns it; captions come from `findings`."""

import matplotlib.pyplot as plt
import numpy as np

from study import equivalence, present, statistics


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
    axes.set(xlabel="step", ylabel="test accuracy")
    axes.legend(loc="lower right")
    return figure


def drift_curves(drifts, titles):
    """The mean differences of the parameters by step: on the left with both faults of 2019, on the right with none.

    Args:
        drifts: dict fault name -> DataFrame, of `equivalence.fault_drifts`.
        titles: of the two panels.
    """
    figure, panels = plt.subplots(1, 2, figsize=(7.2, 2.8))
    shown = (drifts[equivalence.BOTH_FAULTS], drifts[equivalence.NO_FAULT])
    for axes, title, drift in zip(panels, titles, shown, strict=True):
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


def ablation_curves(arms):
    """Mean accuracy by step of each (axes, repeated) arm, one panel for sane and one for repeated updates."""
    figure, panels = plt.subplots(1, 2, figsize=(7.2, 3.0), sharey=True)
    dashes = dict(zip(dict.fromkeys(axes for axes, _ in arms), ("-", "--", ":"), strict=False))
    for panel, repeated in zip(panels, (False, True), strict=True):
        for (axes, arm_repeated), histories in arms.items():
            if arm_repeated == repeated:
                accuracy = np.array([h.accuracy for h in histories])
                colour = f"C{list(dashes).index(axes)}"
                panel.plot(histories[0].steps, accuracy.T, color=colour, ls=dashes[axes], lw=0.8, alpha=0.3)
                panel.plot(
                    histories[0].steps, accuracy.mean(axis=0), color=colour, ls=dashes[axes], label=axes
                )
        panel.set(title="t updates at step t" if repeated else "one update a step", xlabel="step")
        panel.legend(loc="lower right", title="averaged over")
    panels[0].set_ylabel("test accuracy")
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
