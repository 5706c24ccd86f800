"""Turn the knobs of a normalization: see activations, their statistics and a short training change."""

import functools
from dataclasses import replace

import ipywidgets as widgets
import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display

from study import equivalence, network, present, training

METHODS = ("none", "BN", "LN", "LN-C", "GN", "IN", "RMS", "WN")
AXES = {"the method's own": None, "rows": 1, "columns": 2, "channels": 3, "the whole image": (1, 2, 3)}
EPSILONS = (1e-7, 1e-5, 1e-3, 1e-1, 1.0)
SIZES = (2, 8, 32, 100, 300)
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
STEPS = 60  # of the short training
WORST = 10.0  # nats; of a loss that explodes, no more is drawn


def layer_of(method, axis=None, epsilon=1e-5):
    """A Run's fields for a method with this axis and epsilon, as far as it has such arguments."""
    fields = dict(network.METHODS[method])
    options = dict(fields.get("options", ()))
    if "epsilon" in options:
        options |= {"epsilon": epsilon} | ({} if axis is None else {"axis": axis})
    return fields | {"options": tuple(options.items())}


def activations(base, layer, size):
    """What ReLU gets from the convolution for one batch, before any training: float [size, height, width, channels].

    Args:
        base: the Run that gives data and initial weights.
        layer: the Run's fields that make the normalization, as of `layer_of`.
        size: images in the batch.
    """
    value = training.load(base.dataset, base.sample).x_train[:size]
    model = network.build(value.shape[1:], seed=base.seed, **layer)
    for part in model.layers:
        if isinstance(part, keras.layers.ReLU):
            break
        value = equivalence.in_training(part, value)
    return np.asarray(value)


@functools.lru_cache(maxsize=256)
def short_training(run):
    """The History of a short run, remembered."""
    return training.train(run)


def view(base, method, axis, epsilon, size, rate):
    """What one setting of the knobs does.

    Returns:
        (figure, DataFrame): activations and their deviations before any training, and the loss of a short one, with
        the method and without any; and what these come to, a row each.

    Raises:
        ValueError, TypeError: of the layer, where it has no such axis.
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9.6, 2.8))
    rows = {}
    for name, layer in ({"none": {}} | {method: layer_of(method, axis, epsilon)}).items():
        values = activations(base, layer, size)
        short = replace(base, steps=STEPS, evaluate_every=STEPS, batch_size=size, learning_rate=rate)
        history = short_training(replace(short, validation=True, **layer))
        by_filter = values.std(axis=(0, 1, 2))
        look = present.style(name)
        left.hist(values.ravel(), bins=80, density=True, histtype="step", **look)
        middle.plot(np.sort(by_filter), **look)
        right.plot(np.arange(1, STEPS + 1), history.training_loss, label=present.short(name), **look)
        rows[present.short(name)] = {
            "mean": values.mean(),
            "deviation": values.std(),
            "smallest of a filter": by_filter.min(),
            "largest": by_filter.max(),
            "zero after ReLU": (values <= 0).mean(),
            "loss at the end": np.nan if history.diverged else history.training_loss[-10:].mean(),
            "held-out accuracy": history.accuracy[-1],
        }
    left.set(title="What ReLU gets, before training", xlabel="activation", ylabel="density", yscale="log")
    middle.set(
        title="… filter by filter", xlabel="filter, sorted", ylabel="standard deviation", ylim=(0, None)
    )
    right.set(title=f"The first {STEPS} steps", xlabel="step", ylabel="loss of the batch, nats")
    right.set_ylim(0, min(right.get_ylim()[1], WORST))
    right.legend()
    statistics = pd.DataFrame.from_dict(rows, orient="index").round(3)
    return figure, statistics.astype(object).fillna("diverged")


def panel(base, method="BN"):
    """Show the knobs and, below them, what they do; it follows each change.

    Args:
        base: the Run that gives data and initial weights.
        method: the one to begin with.
    """
    knobs = {
        "method": widgets.Dropdown(options=METHODS, value=method, description="method"),
        "axis": widgets.Dropdown(options=AXES, description="axis"),
        "epsilon": widgets.SelectionSlider(
            options=EPSILONS, value=1e-5, description="ε", continuous_update=False
        ),
        "size": widgets.SelectionSlider(
            options=SIZES, value=100, description="batch", continuous_update=False
        ),
        "rate": widgets.SelectionSlider(
            options=RATES, value=0.01, description="rate", continuous_update=False
        ),
    }
    note = widgets.HTML()

    def show(**chosen):
        for name in ("axis", "epsilon"):
            knobs[name].disabled = "epsilon" not in dict(network.METHODS[chosen["method"]].get("options", ()))
        note.value = f"Training {STEPS} steps …"
        try:
            figure, statistics = view(base, **chosen)
            display(figure, statistics)
        except (TypeError, ValueError) as error:  # such an axis makes no such layer
            print(f"There is no such layer. {error}")
        note.value = (
            "A change trains anew, for seconds. LN and RMS average over the axis; BN, GN and IN over all but it, "
            "the last two image by image."
        )
        plt.close("all")

    rows = [
        widgets.HBox([knobs[name] for name in names])
        for names in (("method", "axis"), ("epsilon", "size", "rate"))
    ]
    display(widgets.VBox([*rows, note]), widgets.interactive_output(show, knobs))
