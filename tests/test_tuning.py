"""The search for learning rates: it widens where it must, and its summaries are right."""

import types

import numpy as np
import pandas as pd
import pytest

from study import training, tuning

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
    monkeypatch.setattr(training, "run_all", peaked_at(best))
    frame = tuning.sweep(BASE, ["BN"])
    assert len(frame) == grid
    expected = max(best, frame.exponent.min())
    assert tuning.best_rates(frame)["BN"] == pytest.approx(10 ** (expected / 2))


def test_a_run_that_diverges_counts_as_guessing(monkeypatch):
    monkeypatch.setattr(training, "run_all", peaked_at(2))
    frame = tuning.sweep(BASE, ["none"]).set_index("exponent")
    assert frame.accuracy[3] == 0.1
    assert frame.diverged[3]
    assert not frame.diverged[2]


def test_a_shorter_search_tries_two_rates(monkeypatch):
    monkeypatch.setattr(training, "run_all", peaked_at(1))
    assert len(tuning.sweep(training.Run(sample=True, steps=40), ["BN"])) == 2


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


def test_the_table_says_what_depends_on_the_batch():
    frame = pd.DataFrame(
        {"method": ["none", "BN", "LN"], "exponent": 0, "rate": 1.0, "accuracy": 0.5, "milliseconds": 1.0}
    )
    table = tuning.methods_table(BASE, frame).set_index("method")
    assert list(table["independent"]) == ["yes", "no", "yes"]
    assert list(table["same in inference"]) == ["yes", "no", "yes"]
