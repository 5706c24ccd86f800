"""The search for learning rates: it widens where it must, and its summaries are right."""

import types
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from study import network, profiles, running, training, tuning

BASE = training.Run(sample=True, steps=160)
PLAN = tuning.Plan(("LN-C", "GN", "DyT"), (-3, -2, -1, 0), 150, 1, True, True, (2, 32, 512), 8_000, (0,), 1)


def trained(run, accuracy, diverged=False):
    training_loss = np.linspace(2.3, 0.0, run.steps)
    return types.SimpleNamespace(
        run=run, accuracy=[0.1, accuracy], diverged=diverged, training_loss=training_loss
    )


def peaked_at(best):
    """In the place of training: an accuracy that falls off around the best exponent, and from seed to seed; high rates
    diverge."""

    def run_all(runs, jobs, description):
        found = {}
        for run in runs:
            exponent = 2 * np.log10(run.learning_rate)
            accuracy = 0.9 - 0.005 * (exponent - best) ** 2
            found[run] = trained(run, accuracy - 0.01 * (run.seed - BASE.seed), exponent > 2.5)
        return found

    return run_all


@pytest.mark.parametrize(("best", "grid"), [(-2, 4), (1, 6), (-5, 7), (-13, 9)])
def test_the_grid_widens_until_the_best_is_inside(best, grid, monkeypatch):
    monkeypatch.setattr(running, "run_all", peaked_at(best))
    frame, _ = tuning.sweep(BASE, PLAN, ["BN"])
    assert len(frame) == grid
    expected = max(best, frame.exponent.min())
    assert tuning.best_rates(frame)["BN"] == pytest.approx(10 ** (expected / 2))


def test_a_rate_is_judged_by_the_mean_over_the_seeds_on_held_out_images(monkeypatch):
    monkeypatch.setattr(running, "run_all", peaked_at(-1))
    frame, runs = tuning.sweep(BASE, replace(PLAN, seeds=3), ["BN"])
    assert frame.accuracy.max() == pytest.approx(0.9 - 0.01)
    assert {h.run.seed for h in runs["BN"]} == {BASE.seed, BASE.seed + 1, BASE.seed + 2}
    assert all(h.run.validation and not h.run.test_at_end for h in runs["BN"])
    frame, runs = tuning.sweep(BASE, replace(PLAN, seeds=3), ["GN"])  # no hypothesis speaks of it
    assert {h.run.seed for h in runs["GN"]} == {BASE.seed}
    assert set(frame.seeds) == {1}


def test_a_run_that_diverges_counts_as_guessing(monkeypatch):
    monkeypatch.setattr(running, "run_all", peaked_at(2))
    frame, _ = tuning.sweep(BASE, PLAN, ["none"])
    frame = frame.set_index("exponent")
    assert frame.accuracy[3] == 0.1
    assert frame.collapsed[3] == 1
    assert list(frame.diverged[[2, 3]]) == [0, 1]


def test_a_smoke_search_tries_one_rate(monkeypatch):
    monkeypatch.setattr(running, "run_all", peaked_at(1))
    frame, _ = tuning.sweep(training.Run(sample=True, steps=40), tuning.PLANS["smoke"], ["BN", "LN"])
    assert list(frame.exponent) == [-2, -2]


def test_every_profile_has_a_plan():
    assert tuning.PLANS.keys() == profiles.PROFILES.keys()


def test_rates_as_good_are_joined_to_the_best():
    frame = pd.DataFrame(
        {"method": "BN", "exponent": range(5), "rate": 1.0, "accuracy": [0.895, 0.5, 0.885, 0.9, 0.881]}
    )
    assert tuning.stable_rates(frame)["BN"] == pytest.approx(
        (10, 100)
    )  # the first is as good, but not joined


def test_the_budget_is_of_the_rates_that_all_were_tried_at():
    frame = pd.DataFrame(
        [("BN", k, 0.5 + 0.1 * k) for k in range(4)] + [("none", k, 0.9 - 0.1 * k) for k in range(-1, 3)],
        columns=["method", "exponent", "accuracy"],
    )
    budget = tuning.budget(frame, ("BN", "none")).set_index(["method", "tried"]).accuracy
    assert budget["BN", 1] == pytest.approx(0.6)
    assert budget["BN", 2] == pytest.approx((0.6 + 0.7 + 0.7) / 3)
    assert (budget["BN", 3], budget["none", 3]) == pytest.approx((0.7, 0.9))
    assert len(budget) == 6


def test_what_is_chosen_on_is_neither_trained_on_nor_tested_on(sample):
    images = training.trained_on(sample)
    order = training.batch_order(images, BASE)
    assert order.max() < images < len(sample.x_train)
    run = training.Run(sample=True, steps=2, evaluate_every=2, validation=True)
    chosen, both, tested = (
        training.train(r) for r in (run, replace(run, test_at_end=True), replace(run, validation=False))
    )
    assert chosen.weights_hash == both.weights_hash == tested.weights_hash
    assert chosen.loss[0] == both.loss[0] != tested.loss[0]
    assert both.test_accuracy == tested.test_accuracy == tested.accuracy[-1]
    assert np.isnan(chosen.test_accuracy)


@pytest.fixture
def batches(monkeypatch):
    """In the place of training: the runs that were asked for; those of batches of 512 diverge."""
    asked = []

    def run_all(runs, jobs, description):
        runs = list(runs)
        asked.extend(runs)
        return {run: trained(run, 0.5 + run.learning_rate, diverged=run.batch_size == 512) for run in runs}

    monkeypatch.setattr(running, "run_all", run_all)
    return asked


RATES = {"none": 0.01, "BN": 0.02, "LN": 0.03, "GN": 0.04, "BN, dense": 0.05, "LN, dense": 0.06, "DyT": 0.07}


def method_of(run):
    layer = {"norm": run.norm, "options": run.options, "where": run.where}
    (method,) = {
        m for m in RATES if {"norm": None, "options": (), "where": ("conv",)} | network.METHODS[m] == layer
    }
    return method


def test_batches_of_every_size_see_as_many_images_at_rates_in_proportion(batches):
    tuning.batch_sizes(BASE, replace(PLAN, full=False), RATES)
    assert {(method_of(run), run.batch_size) for run in batches} == {
        (method, size) for method in tuning.BY_BATCH for size in PLAN.sizes
    }
    for run in batches:
        assert PLAN.images - run.batch_size < run.steps * run.batch_size <= PLAN.images
        assert run.validation
        assert run.learning_rate == pytest.approx(RATES[method_of(run)] * run.batch_size / 100)


def test_each_size_takes_the_best_of_its_rates_and_more_seeds_there(batches):
    plan = replace(PLAN, around=(-1, 0, 1), widens=False, size_seeds=3)
    frame, runs = tuning.batch_sizes(BASE, plan, RATES)
    cells = frame.set_index(["method", "size"])
    assert cells.rate["BN", 32] == pytest.approx(RATES["BN"] * 0.32 * 10**0.5)  # the higher, the better here
    assert cells.seeds["BN", 32] == 3
    lower = [
        run for run in batches if run.batch_size == 32 and run.learning_rate < RATES[method_of(run)] * 0.9
    ]
    assert {run.seed for run in lower} == {BASE.seed}
    assert list(cells.loc["DyT"].index) == [2]  # the others at the smallest size, with one seed
    assert cells.seeds["DyT", 2] == 1
    assert [len(each) for each in cells.each] == list(cells.seeds)
    # The last tenth of what falls from 2.3 to 0.
    assert cells.losses["BN", 2] == pytest.approx([2.3 / 20] * 3, rel=0.01)
    assert cells["at the edge"].all()  # it is the highest
    assert not tuning.batch_sizes(BASE, PLAN, RATES)[0]["at the edge"].any()  # one rate has no edge
    assert len(runs["BN", 32]) == 6


@pytest.mark.parametrize(("best", "tried"), [(0, 3), (2, 5), (-1, 4), (-9, tuning.MOST)])
def test_the_rates_of_a_size_widen_until_the_best_is_inside(best, tried, monkeypatch):
    def run_all(runs, jobs, description):
        def beyond(run):
            in_proportion = RATES[method_of(run)] * run.batch_size / 100
            return abs(2 * np.log10(run.learning_rate / in_proportion) - best)

        return {run: trained(run, 0.9 - 0.01 * beyond(run)) for run in runs}

    monkeypatch.setattr(running, "run_all", run_all)
    frame, runs = tuning.batch_sizes(BASE, replace(PLAN, around=(-1, 0, 1)), RATES)
    assert {len(of) for of in runs.values()} == {tried + 1}  # and once more at the best
    found = max(best, 2 - tuning.MOST)
    assert frame.rate[0] == pytest.approx(RATES["none"] * 0.02 * 10 ** (found / 2))
    assert set(frame["at the edge"]) == {found != best}


def test_a_batch_size_that_diverges_counts_as_guessing_and_as_collapsed(batches):
    frame, _ = tuning.batch_sizes(BASE, replace(PLAN, size_seeds=2), RATES)
    frame = frame.set_index(["method", "size"])
    assert set(frame.accuracy[:, 512]) == {0.1}
    assert set(frame.collapsed[:, 512]) == {2}
    assert set(frame.collapsed[:, 32]) == {0}


def test_every_method_runs_at_its_own_best_rate_and_meets_the_test_images_at_the_end():
    plan = replace(PLAN, others=(*PLAN.others, *tuning.AS_LARGE))
    rates = {m: 0.01 * k for k, m in enumerate((*tuning.MAIN, *plan.others), 1)}
    base = replace(BASE, steps=800)
    runs = tuning.at_best_rates(base, plan, rates, list(range(8)))
    assert runs.keys() == rates.keys()
    for method, of_method in runs.items():
        main = method in tuning.MAIN
        every = main or method in tuning.AS_LARGE
        assert [run.seed for run in of_method] == list(range(8 if every else tuning.FEWER))
        for run in of_method:
            assert run.learning_rate == rates[method]
            assert run.norm == network.METHODS[method].get("norm")
            assert run.steps == (400 if main else 200)
            assert run.validation
            assert run.test_at_end
    shorter = tuning.at_best_rates(base, replace(plan, full=False), rates, [5, 6])
    assert shorter.keys() == {*tuning.MAIN, *tuning.AS_LARGE}
    assert {run.steps for of_method in shorter.values() for run in of_method} == {300}


@pytest.mark.parametrize(
    ("steps", "share", "expected"),
    [(2750, 4, 700), (2750, 2, 1400), (1100, 4, 300), (1100, 6, 200), (40, 4, 40)],
)
def test_a_part_of_a_run_ends_where_it_is_measured(steps, share, expected):
    assert tuning.part(training.Run(steps=steps), share) == expected
