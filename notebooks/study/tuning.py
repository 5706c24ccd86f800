"""Every method at a learning rate of its own: a grid that widens until the best lies inside it, judged on images that
are neither trained on nor tested on."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd

from study import network, running, statistics, training

METHODS = ("none", "BN", "LN", "LN-C", "GN", "IN", "RMS", "WN", "WN+MO", "input", "first", "affine", "DyT")
STEPS = 150  # of each run
EXPONENTS = range(-3, 1)  # of the first grid: 10^(k / 2), from 0.03 to 1 in half decades
MOST = 9  # rates for one method
CLOSE = 0.01  # a rate is as good as the best within this accuracy


def sweep(base, methods=METHODS, steps=STEPS, jobs=0):
    """Train each method at each learning rate; where the best rate is at the grid's edge, widen that method's grid.

    Args:
        base: the Run to start from.
        methods: names of `network.METHODS`.
        steps: of each run.
        jobs: as in `running.run_all`.

    Returns:
        DataFrame with columns method, exponent, rate, accuracy (on the held-out images after the last step; a run that
        leaves the finite numbers has that of guessing), diverged and milliseconds (per step).
    """
    short = replace(base, steps=min(steps, base.steps), validation=True)
    short = replace(short, evaluate_every=-(-short.steps // 2))
    whole = short.steps == steps  # a shorter search (smoke, quick) tries one rate and widens nothing
    grids = {method: list(EXPONENTS if whole else EXPONENTS[1:2]) for method in methods}
    while True:
        runs = {
            (method, k): replace(short, learning_rate=10 ** (k / 2), **network.METHODS[method])
            for method, exponents in grids.items()
            for k in sorted(exponents)
        }
        found = running.run_all(runs.values(), jobs, "learning rates")
        frame = pd.DataFrame(
            {
                "method": method,
                "exponent": k,
                "rate": 10 ** (k / 2),
                "accuracy": 1 / network.CLASSES if found[run].diverged else found[run].accuracy[-1],
                "diverged": found[run].diverged,
                "milliseconds": found[run].milliseconds_per_step,
            }
            for (method, k), run in runs.items()
        )
        widened = False
        for method, exponents in grids.items():
            best = _best(frame, method).exponent
            beyond = best - 1 if best == min(exponents) else best + 1 if best == max(exponents) else None
            if whole and beyond is not None and len(exponents) < MOST:
                exponents.append(beyond)
                widened = True
        if not widened:
            return frame


def _best(frame, method):
    rows = frame[frame.method == method]
    return rows.loc[rows.accuracy.idxmax()]


def best_rates(frame):
    """The learning rate of the highest accuracy of each method: dict method -> rate."""
    return {method: float(_best(frame, method).rate) for method in dict.fromkeys(frame.method)}


def stable_decades(frame):
    """Over how many decades around its best a method's accuracy stays within `CLOSE` of it: dict method -> decades."""
    found = {}
    for method in dict.fromkeys(frame.method):
        rows = frame[frame.method == method].sort_values("exponent")
        good = set(rows.exponent[rows.accuracy >= rows.accuracy.max() - CLOSE])
        low = high = _best(frame, method).exponent
        while low - 1 in good:
            low -= 1
        while high + 1 in good:
            high += 1
        found[method] = (high - low) / 2
    return found


def at_best_rates(base, methods, rates, seeds):
    """The Runs of each method at its best learning rate, a quarter as long: dict method -> list of Run."""
    return {
        method: [
            replace(
                base, steps=base.steps // 4, seed=seed, learning_rate=rates[method], **network.METHODS[method]
            )
            for seed in seeds
        ]
        for method in methods
    }


def methods_table(base, frame, tuned, by_batch):
    """What each method of a sweep reaches, costs and depends on, a row each; empty where it was not run.

    Args:
        base: the Run that gives data and initial weights.
        frame: of `sweep`.
        tuned: dict method -> list of History, of the Runs of `at_best_rates`; those of "none" give the target.
        by_batch: of `batch_sizes`.
    """
    target = float(np.mean([h.accuracy[-1] for h in tuned["none"]]))
    smallest = by_batch[by_batch["size"] == by_batch["size"].min()].set_index("method").accuracy
    rates, decades, rows = best_rates(frame), stable_decades(frame), []
    for method, rate in rates.items():
        trained, inferred, alone = _modes(base, method)
        of_method = frame[frame.method == method]
        rows.append(
            {
                "method": method,
                "best rate": rate,
                "decades": decades[method],
                "held-out": of_method.accuracy.max(),
                **_reached(tuned.get(method, []), target),
                "at batch 2": smallest.get(method),
                "ms per step": of_method.milliseconds.median(),
                "same in inference": "yes" if np.allclose(trained, inferred, atol=1e-4) else "no",
                "depends on the batch": "no" if np.allclose(trained[:1], alone, atol=1e-4) else "yes",
            }
        )
    return pd.DataFrame(rows)


def _reached(histories, target):
    if not histories:
        return {"test accuracy": "", "steps to target": ""}
    mean, low, high = statistics.mean_interval([h.accuracy[-1] for h in histories])
    steps = np.median([statistics.steps_to_target(h.steps, h.accuracy, target) for h in histories])
    return {
        "test accuracy": f"{mean:.3f} ({low:.3f} to {high:.3f})",
        "steps to target": f"{steps:,.0f}" if np.isfinite(steps) else "not reached",
    }


def _modes(base, method):
    """A network's logits in training and in inference, and those of the first image among other images, in training."""
    images = training.load(base.dataset, base.sample).x_train
    model = network.build(images.shape[1:], seed=base.seed, **network.METHODS[method])
    others = np.concatenate([images[:1], images[-9:]])
    calls = ((images[:10], True), (images[:10], False), (others, True))
    trained, inferred, among = (np.asarray(model(x, training=training)) for x, training in calls)
    return trained, inferred, among[:1]


def budget(frame):
    """The expected best accuracy of k rates drawn at random from a method's grid, for each k (Dodge et al. 2019).

    Returns:
        DataFrame with columns method, tried and accuracy.
    """
    rows = []
    for method, of_method in frame.groupby("method", sort=False):
        values = list(of_method.accuracy)
        for k in range(1, len(values) + 1):
            best = [max(chosen) for chosen in itertools.combinations(values, k)]
            rows.append({"method": method, "tried": k, "accuracy": float(np.mean(best))})
    return pd.DataFrame(rows)


# --- batch sizes ---------------------------------------------------------------------------------------------------

SIZES = (2, 8, 32, 128, 512)
# Over positions BN averages even a batch of two over more than a thousand values; behind a dense layer it has two.
_DENSE = {"where": ("hidden",)}
BY_BATCH = {m: network.METHODS[m] for m in ("none", "BN", "LN", "GN")} | {
    "BN, dense": network.METHODS["BN"] | _DENSE,
    "LN, dense": network.METHODS["LN"] | _DENSE,
}


def batch_sizes(base, rates, jobs=0):
    """Train with batches of several sizes on the same number of images, a batch's rate in proportion to its size.

    Args:
        base: the Run to start from; an eleventh of its images is trained on.
        rates: dict method -> learning rate at a batch of 100.
        jobs: as in `running.run_all`.

    Returns:
        DataFrame with columns method, size, accuracy (on the held-out images at the end; a run that leaves the finite
        numbers has that of guessing) and diverged.
    """
    images = base.steps * base.batch_size // 11
    sizes = SIZES if base.steps >= STEPS else SIZES[::4]  # smoke, quick: the ends
    runs = {}
    for method, layer in BY_BATCH.items():
        for size in sizes:
            steps = max(1, images // size)
            runs[method, size] = replace(
                base,
                **layer,
                batch_size=size,
                steps=steps,
                evaluate_every=-(-steps // 2),
                learning_rate=rates[method.partition(",")[0]] * size / 100,
                validation=True,
            )
    found = running.run_all(runs.values(), jobs, "batch sizes")
    return pd.DataFrame(
        {
            "method": method,
            "size": size,
            "accuracy": 1 / network.CLASSES if found[run].diverged else found[run].accuracy[-1],
            "diverged": found[run].diverged,
        }
        for (method, size), run in runs.items()
    )
