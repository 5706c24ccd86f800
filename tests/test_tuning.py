"""The search for learning rates: it widens where it must, and its summaries are right."""

import types

import numpy as np
import pandas as pd
import pytest

from study import network, running, training, tuning

BASE = training.Run(sample=True, steps=tuning.STEPS)


def peaked_at(best):
    """In the place of training: an accuracy that falls off around the best exponent; high rates diverge."""

    def run_all(runs, jobs, description):
        found = {}
        for run in runs:
            exponent = 2 * np.log10(run.learning_rate)
            accuracy = 0.9 - 0.005 * (exponent - best) ** 2
            found[run] = types.SimpleNamespace(
                accuracy=[0.1, accuracy], diverged=exponent > 2.5, milliseconds_per_step=1.0
            )
        return found

    return run_all


@pytest.mark.parametrize(("best", "grid"), [(-2, 4), (1, 6), (-5, 7), (-13, 9)])
def test_the_grid_widens_until_the_best_is_inside(best, grid, monkeypatch):
    monkeypatch.setattr(running, "run_all", peaked_at(best))
    frame = tuning.sweep(BASE, ["BN"])
    assert len(frame) == grid
    expected = max(best, frame.exponent.min())
    assert tuning.best_rates(frame)["BN"] == pytest.approx(10 ** (expected / 2))


def test_a_run_that_diverges_counts_as_guessing(monkeypatch):
    monkeypatch.setattr(running, "run_all", peaked_at(2))
    frame = tuning.sweep(BASE, ["none"]).set_index("exponent")
    assert frame.accuracy[3] == 0.1
    assert frame.diverged[3]
    assert not frame.diverged[2]


def test_a_shorter_search_tries_one_rate(monkeypatch):
    monkeypatch.setattr(running, "run_all", peaked_at(1))
    assert list(tuning.sweep(training.Run(sample=True, steps=40), ["BN", "LN"]).exponent) == [-2, -2]


def test_stable_decades_and_budget():
    frame = pd.DataFrame(
        {"method": "BN", "exponent": range(5), "rate": 1.0, "accuracy": [0.895, 0.5, 0.895, 0.9, 0.891]}
    )
    assert tuning.stable_decades(frame) == {"BN": 1.0}  # the first is as good, but not joined to the best
    budget = tuning.budget(frame).set_index("tried").accuracy
    assert budget[1] == pytest.approx(frame.accuracy.mean())
    assert budget[5] == 0.9
    assert budget.is_monotonic_increasing


def test_what_is_chosen_on_is_neither_trained_on_nor_tested_on(sample):
    images = training.trained_on(sample)
    order = training.batch_order(images, BASE)
    assert order.max() < images < len(sample.x_train)
    run = training.Run(sample=True, steps=2, evaluate_every=2, validation=True)
    chosen, tested = training.train(run), training.train(training.Run(sample=True, steps=2, evaluate_every=2))
    assert chosen.weights_hash == tested.weights_hash
    assert chosen.loss[0] != tested.loss[0]


def history(accuracy, steps=(10, 20, 30)):
    return types.SimpleNamespace(steps=np.array(steps), accuracy=np.array(accuracy))


def table_of(methods, tuned, by_batch=()):
    frame = pd.DataFrame(
        {"method": methods, "exponent": 0, "rate": 1.0, "accuracy": 0.5, "milliseconds": 1.0}
    )
    by_batch = pd.DataFrame(by_batch, columns=["method", "size", "accuracy"])
    return tuning.methods_table(BASE, frame, tuned, by_batch).set_index("method")


def test_the_table_says_what_depends_on_the_batch():
    table = table_of(["none", "BN", "LN", "WN+MO"], {"none": [history([0.1, 0.2, 0.5])]})
    assert list(table["depends on the batch"]) == ["no", "yes", "no", "yes"]
    assert list(table["same in inference"]) == ["yes", "no", "yes", "no"]


def test_the_table_says_what_is_reached_and_leaves_empty_what_was_not_run():
    tuned = {
        "none": [history([0.1, 0.2, 0.48]), history([0.1, 0.2, 0.52])],
        "LN": [history([0.1, 0.5, 0.7]), history([0.2, 0.6, 0.7])],
        "WN": [history([0.1, 0.2, 0.3]), history([0.1, 0.2, 0.3])],
    }
    by_batch = [("none", 2, 0.4), ("none", 8, 0.6), ("LN", 8, 0.7), ("LN", 2, 0.3)]
    table = table_of(["none", "LN", "WN", "affine"], tuned, by_batch)
    assert list(table["steps to target"]) == ["not reached", "20", "not reached", ""]
    assert list(table["test accuracy"])[1:] == ["0.700 (0.700 to 0.700)", "0.300 (0.300 to 0.300)", ""]
    assert table["test accuracy"]["none"].startswith("0.500 (0.2")
    assert list(table["at batch 2"][:2]) == [0.4, 0.3]
    assert table["at batch 2"][2:].isna().all()


@pytest.fixture
def batches(monkeypatch):
    """In the place of training: the runs that were asked for; those of batches of 512 diverge."""
    asked = []

    def run_all(runs, jobs, description):
        asked.extend(runs)
        return {
            run: types.SimpleNamespace(
                accuracy=[0.2, 0.5 + run.learning_rate], diverged=run.batch_size == 512
            )
            for run in asked
        }

    monkeypatch.setattr(running, "run_all", run_all)
    return asked


RATES = {"none": 0.01, "BN": 0.02, "LN": 0.03, "GN": 0.04}


def test_batches_of_every_size_see_as_many_images_at_rates_in_proportion(batches):
    tuning.batch_sizes(BASE, RATES)
    images = BASE.steps * BASE.batch_size // 11
    assert {run.batch_size for run in batches} == set(tuning.SIZES)
    assert len(set(batches)) == len(tuning.BY_BATCH) * len(tuning.SIZES)
    for run in batches:
        assert images - run.batch_size < run.steps * run.batch_size <= images
        assert run.validation
        (method,) = {m for m in RATES if run.norm == network.METHODS[m].get("norm")}
        assert run.learning_rate == pytest.approx(RATES[method] * run.batch_size / 100)
    assert {run.where for run in batches if run.norm == network.METHODS["GN"]["norm"]} == {("conv",)}
    assert {run.where for run in batches if run.norm == network.METHODS["BN"]["norm"]} == {
        ("conv",),
        ("hidden",),
    }


def test_a_batch_size_that_diverges_counts_as_guessing(batches):
    frame = tuning.batch_sizes(BASE, RATES).set_index(["method", "size"])
    assert len(frame) == len(tuning.BY_BATCH) * len(tuning.SIZES)
    assert (frame.diverged == (frame.index.get_level_values("size") == 512)).all()
    assert set(frame.accuracy[frame.diverged]) == {0.1}
    assert frame.accuracy["BN, dense", 128] == pytest.approx(0.5 + 0.02 * 1.28)


def test_a_shorter_build_tries_the_smallest_and_the_largest_batch(batches):
    tuning.batch_sizes(training.Run(sample=True, steps=40), RATES)
    assert {run.batch_size for run in batches} == {2, 512}
    assert min(run.steps for run in batches) == 1


def test_every_method_runs_at_its_own_best_rate_on_every_seed():
    runs = tuning.at_best_rates(BASE, ("none", "WN"), {"none": 0.3, "WN": 1.0, "BN": 9.0}, [5, 6])
    assert list(runs) == ["none", "WN"]
    assert [(run.seed, run.learning_rate, run.norm) for run in runs["none"]] == [
        (5, 0.3, None),
        (6, 0.3, None),
    ]
    for run in runs["WN"]:
        assert run.learning_rate == 1.0
        assert (run.norm, run.where) == tuple(network.METHODS["WN"].values())
        assert run.steps == BASE.steps // 4
        assert not run.validation
