"""Every method at a learning rate of its own: a grid that widens until the best lies inside it, judged on images that
are neither trained on nor tested on."""

import dataclasses
import itertools
from dataclasses import replace

import numpy as np
import pandas as pd

from study import network, running, training

MAIN = ("none", "BN", "LN", "WN")  # of these the hypotheses speak
BOTH = ("BN, both", "LN, both")
AS_LARGE = ("BN, as large", "LN, as large")
DENSE = ("BN, dense", "LN, dense")
OTHERS = ("LN-C", "GN", "IN", "RMS", "WN+MO", "input", "first", "affine", "DyT", *BOTH, *AS_LARGE, *DENSE)
SEVERAL = (*MAIN, *BOTH, *AS_LARGE)  # are searched with several seeds
MOST = 9  # rates for one method
FEWER = 3  # seeds, for a method that no hypothesis speaks of
CLOSE = 0.02  # a rate is about as good as the best within this accuracy
GUESSING = 1 / network.CLASSES
COLLAPSED = 2 * GUESSING  # under this accuracy a run has learnt next to nothing
LAST = 0.1  # of the updates: over these, a training's last loss is averaged


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much a profile searches.

    Attributes:
        others: what is tried beside MAIN: names of `network.METHODS`.
        exponents: of the first grid: rates 10^(k / 2).
        steps: of each run of the search.
        seeds: over which the accuracy of SEVERAL is averaged; the others are searched with the first alone.
        widens: whether a grid of more than one rate widens where the best is at its edge.
        full: whether all methods are trained at their own rates (`at_best_rates`); else MAIN and AS_LARGE alone.
        sizes, images: of the batches, and how many images each size is trained on.
        around: exponents of the first grid of each size: 10^(k / 2) times the rate in proportion to the batch, with the
            first seed.
        size_seeds: seeds at the best of them.
        mechanisms: the layers whose mechanisms of drift are tried (`equivalence.mechanism_drifts`).
    """

    others: tuple
    exponents: tuple
    steps: int
    seeds: int
    widens: bool
    full: bool
    sizes: tuple
    images: int
    around: tuple
    size_seeds: int
    mechanisms: tuple = ("BN", "LN", "WN")


PLANS = {
    "smoke": Plan(OTHERS, (-2,), 20, 1, False, False, (2, 512), 600, (0,), 1),
    "quick": Plan(OTHERS, (-2,), 20, 1, False, False, (2, 100), 600, (0,), 1, ("BN",)),
    "default": Plan(OTHERS, (-2, -1, 0), 100, 1, True, False, (2, 32, 512), 5_000, (0,), 1),
    "thorough": Plan(OTHERS, (-3, -2, -1, 0), 300, 2, True, True, (2, 8, 64, 512), 8_000, (-1, 0, 1), 3),
}


def sweep(base, plan, methods=None, jobs=0):
    """Train each method at each learning rate; where the best rate is at the grid's edge, widen that method's grid.

    Args:
        base: the Run to start from; its seed is the first.
        plan: a Plan.
        methods: names of `network.METHODS`. Default None: MAIN and the plan's others.
        jobs: as in `running.run_all`.

    Returns:
        DataFrame with columns method, exponent, rate, accuracy (on the held-out images after the last step, mean over
        the seeds; a run that leaves the finite numbers has that of guessing), diverged (how many did), collapsed (how
        many learnt next to nothing) and seeds; and dict method -> list of History.
    """
    steps = min(plan.steps, base.steps)
    short = replace(base, steps=steps, evaluate_every=-(-steps // 2), validation=True)
    grids = {method: list(plan.exponents) for method in methods or (*MAIN, *plan.others)}
    while True:
        runs = {
            (method, k): [
                replace(short, seed=base.seed + seed, learning_rate=10 ** (k / 2), **network.METHODS[method])
                for seed in range(plan.seeds if method in SEVERAL else 1)
            ]
            for method, exponents in grids.items()
            for k in sorted(exponents)
        }
        found = running.run_groups(runs, jobs, "learning rates")
        frame = pd.DataFrame(
            {
                "method": method,
                "exponent": k,
                "rate": 10 ** (k / 2),
                "accuracy": np.mean([_learnt(h) for h in histories]),
                "diverged": sum(h.diverged for h in histories),
                "collapsed": collapsed(histories),
                "seeds": len(histories),
            }
            for (method, k), histories in found.items()
        )
        widened = False
        for method, exponents in grids.items():
            widened |= plan.widens and _widen(exponents, _best(frame, method).exponent)
        if not widened:
            return frame, {m: [h for (name, _), of in found.items() if name == m for h in of] for m in grids}


def _at_edge(exponents, best):
    """Whether the best of a grid's exponents has a neighbour on one side alone."""
    return len(exponents) > 1 and best in (min(exponents), max(exponents))


def _widen(exponents, best):
    """Add to a grid (a list) the exponent next to a best at its edge, up to `MOST`. Returns whether it was added."""
    if not _at_edge(exponents, best) or len(exponents) >= MOST:
        return False
    exponents.append(best - 1 if best == min(exponents) else best + 1)
    return True


def _learnt(history):
    return GUESSING if history.diverged else float(history.accuracy[-1])


def last_loss(history):
    """The mean of the training loss over the last updates, in nats."""
    return float(np.mean(history.training_loss[-max(1, round(LAST * history.run.steps)) :]))


def collapsed(histories):
    """How many of the runs diverged or learnt next to nothing."""
    return sum(_learnt(h) < COLLAPSED for h in histories)


def _best(frame, method):
    rows = frame[frame.method == method]
    return rows.loc[rows.accuracy.idxmax()]


def best_rates(frame):
    """The learning rate of the highest accuracy of each method: dict method -> rate."""
    return {method: float(_best(frame, method).rate) for method in dict.fromkeys(frame.method)}


def stable_rates(frame):
    """The lowest and the highest of the rates around a method's best whose accuracy stays within `CLOSE` of it: dict
    method -> (low, high)."""
    found = {}
    for method in dict.fromkeys(frame.method):
        rows = frame[frame.method == method]
        good = set(rows.exponent[rows.accuracy >= rows.accuracy.max() - CLOSE])
        low = high = _best(frame, method).exponent
        while low - 1 in good:
            low -= 1
        while high + 1 in good:
            high += 1
        found[method] = (10 ** (low / 2), 10 ** (high / 2))
    return found


def part(base, share=4):
    """A share of a Run's steps, a quarter or another: the nearest at which it is measured."""
    return min(training.measured_steps(base), key=lambda step: abs(step - base.steps / share))


def at_best_rates(base, plan, rates, seeds):
    """The Runs of each method at its best learning rate, measured on held-out images and at the end on the test images.

    Returns:
        dict method -> list of Run. Where the plan is full, MAIN over all seeds half as long as `base` and the others a
        quarter as long (`part`), AS_LARGE over all seeds and the rest over FEWER; else MAIN and AS_LARGE, for a third.
    """
    every = (*MAIN, *AS_LARGE)  # seed
    lengths = {method: part(base, 2 if plan.full else 3) for method in every if method in rates}
    lengths |= {m: part(base) for m in plan.others if plan.full and m not in DENSE}
    return {
        method: [
            replace(
                base,
                steps=steps,
                # Of the others only the end is asked for.
                evaluate_every=base.evaluate_every if method in MAIN else -(-steps // 2),
                seed=seed,
                learning_rate=rates[method],
                validation=True,
                test_at_end=True,
                **network.METHODS[method],
            )
            for seed in (seeds if method in every else seeds[:FEWER])
        ]
        for method, steps in lengths.items()
    }


def modes(base, method):
    """A network's logits in training and in inference, and those of the first image among other images, in training."""
    images = training.load(base.dataset, base.sample).x_train
    model = network.build(images.shape[1:], seed=base.seed, **network.METHODS[method])
    others = np.concatenate([images[:1], images[-9:]])
    calls = ((images[:10], True), (images[:10], False), (others, True))
    trained, inferred, among = (np.asarray(model(x, training=training)) for x, training in calls)
    return trained, inferred, among[:1]


def budget(frame, methods=MAIN):
    """The expected best accuracy of k rates drawn at random, for each k (Dodge et al. 2019), of the rates that all of
    the methods were tried at: a wider grid would make the one who needed it look worse.

    Returns:
        DataFrame with columns method, tried, accuracy, lowest and highest (of these rates).
    """
    of = {method: frame[frame.method == method].set_index("exponent").accuracy for method in methods}
    common = sorted(set.intersection(*(set(accuracy.index) for accuracy in of.values())))
    rows = []
    for method, accuracy in of.items():
        for k in range(1, len(common) + 1):
            best = [max(chosen) for chosen in itertools.combinations(accuracy[common], k)]
            rows.append({"method": method, "tried": k, "accuracy": float(np.mean(best))})
    return pd.DataFrame(rows).assign(lowest=10 ** (common[0] / 2), highest=10 ** (common[-1] / 2))


# --- batch sizes ---------------------------------------------------------------------------------------------------

# Over positions BN averages even a batch of two over more than a thousand values; behind a dense layer it has two.
BY_BATCH = ("none", "BN", "LN", "GN", *DENSE)


def batch_sizes(base, plan, rates, jobs=0):
    """Train with batches of several sizes on the same number of images; each size and method at the best rate of a grid
    around the one in proportion to the batch. A full plan tries the other methods too, at the smallest size.

    Args:
        base: the Run to start from; its seed is the first, and that of the choice.
        plan: a Plan.
        rates: dict method -> learning rate at a batch of 100.
        jobs: as in `running.run_all`.

    Returns:
        DataFrame with columns method, size, rate, accuracy (on the held-out images at the end, mean over the seeds; a
        run that leaves the finite numbers has that of guessing), each (that of each seed), losses (of training, at the
        end, of each seed, in nats), "at the edge" (whether its rate is the lowest or the highest tried), steps, seeds
        and collapsed (how many runs at this rate learnt next to nothing); and dict (method, size) -> list of History.
    """
    images = min(plan.images, base.steps * base.batch_size)
    cells = list(itertools.product(BY_BATCH, plan.sizes))
    cells += [(m, plan.sizes[0]) for m in rates if plan.full and m not in BY_BATCH]

    def run(method, size, exponent, seed):
        steps = max(1, images // size)
        return replace(
            base,
            **network.METHODS[method],
            batch_size=size,
            steps=steps,
            evaluate_every=-(-steps // 2),
            learning_rate=rates[method] * size / 100 * 10 ** (exponent / 2),
            validation=True,
            seed=base.seed + seed,
        )

    grids = {cell: list(plan.around) for cell in cells}
    widened = True
    while widened:
        tried = {cell: {k: run(*cell, k, 0) for k in exponents} for cell, exponents in grids.items()}
        found = running.run_all([r for of in tried.values() for r in of.values()], jobs, "batch sizes")
        best = {cell: max(of, key=lambda k, of=of: _learnt(found[of[k]])) for cell, of in tried.items()}
        widened = plan.widens and any([_widen(grids[cell], best[cell]) for cell in cells])
    chosen = {
        cell: [run(*cell, best[cell], seed) for seed in range(plan.size_seeds if cell[0] in BY_BATCH else 1)]
        for cell in cells
    }
    again = running.run_groups(chosen, jobs, "batch sizes, more seeds")
    frame = pd.DataFrame(
        {
            "method": method,
            "size": size,
            "rate": histories[0].run.learning_rate,
            "accuracy": np.mean(each := [_learnt(h) for h in histories]),
            "each": each,
            "losses": [last_loss(h) for h in histories],
            "at the edge": _at_edge(grids[method, size], best[method, size]),
            "steps": histories[0].run.steps,
            "seeds": len(histories),
            "collapsed": collapsed(histories),
        }
        for (method, size), histories in again.items()
    )
    return frame, {cell: [*(found[r] for r in tried[cell].values()), *again[cell]] for cell in cells}
