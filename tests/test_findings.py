"""Every verdict can fail and holds where it should, and every sentence follows the data."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from study import answers, equivalence, findings, laws, network, present, running, training


@pytest.fixture(autouse=True)
def pending(monkeypatch):
    """The records of this test alone."""
    monkeypatch.setattr(present, "_pending", {})
    return present._pending


@pytest.fixture
def recorded(monkeypatch):
    """Whether each verdict holds, by its id."""
    found = {}
    monkeypatch.setattr(
        present,
        "verdict",
        lambda table, id, claim, measured, tolerance, holds: found.update({id: bool(holds)}),
    )
    return found


def history(accuracy, seed=0, steps=(10, 20)):
    accuracy = np.array(accuracy, "float64")
    run = training.Run(seed=seed, steps=steps[-1])
    return training.History(
        run, np.array(steps), accuracy, 1 - accuracy, np.ones(steps[-1]), {}, {}, "", 1.0, {}
    )


def around(accuracy, seeds=3, steps=(10, 20)):
    """Histories that stay at an accuracy, a little higher from seed to seed."""
    return [history([accuracy + 0.001 * seed] * len(steps), seed, steps) for seed in range(seeds)]


def drift_to(largest):
    return pd.DataFrame({"step": [1, 2], "parameter": "norm_conv/gamma", "largest": [1.0, largest]})


# --- the same layer ----------------------------------------------------------------------------------------------

BASE = training.Run(sample=True, steps=10, batch_size=20)
BN, TENSORFLOWS_BN = network.METHODS["BN"], network.REFERENCES["BN"]


def faulty(fault):
    options = (*BN["options"], ("fault", fault))
    return {"norm": "study.faulty:FaultyBatchNormalization", "options": options}


def trained_apart(candidate):
    """What `same_verdicts` judges. The runs of the drifts are those that were paired, so they are not trained again."""
    apart = equivalence.paired_training(BASE, candidate, TENSORFLOWS_BN, jobs=1)
    drifts = {}
    for name, dtype in ((equivalence.NO_FAULT, "float32"), (equivalence.NO_FAULT_64, "float64")):
        run = replace(BASE, evaluate_every=BASE.steps, trace=True, dtype=dtype)
        pair = [replace(run, **layer) for layer in (candidate, TENSORFLOWS_BN)]
        found = running.run_all(pair, jobs=1)
        drifts[name] = equivalence.drift(*(found[run] for run in pair))
    return apart, drifts


@pytest.mark.slow
def test_the_own_layer_is_the_same_and_wrong_ones_are_not(recorded):
    apart, drifts = trained_apart(BN)
    findings.same_verdicts("BN", apart, drifts)
    assert set(recorded) == {"bn.drift", "bn.paired.float64", "bn.paired.float32"}
    assert recorded["bn.drift"]
    assert recorded["bn.paired.float64"]
    for fault in ("detached variance", "epsilon outside the root"):
        recorded.clear()
        apart, drifts = trained_apart(faulty(fault))
        findings.same_verdicts("BN", apart, drifts)
        assert len(recorded) == 3
        assert not any(recorded.values()), fault
        assert "are not the same layer" in findings.same_sentence("BN", apart)


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ({}, set()),
        ({"float64": 2e-12}, {"bn.paired.float64"}),
        ({"float32": 2.1e-6}, {"bn.paired.float32"}),
        ({"twin": 4e-7}, {"bn.paired.float32"}),
        ({"twin": 4e-7, "rounding": 1e-6}, set()),
        ({"drift": 2e-9}, {"bn.drift"}),
    ],
)
def test_each_criterion_of_equality_can_fail_alone(change, failing, recorded):
    apart = {"float64": 5e-13, "float32": 1.9e-6, "twin": 1e-6, "rounding": 4e-7, "steps": 10} | change
    drift = apart.pop("drift", 0.5e-9)
    drifts = {equivalence.NO_FAULT: drift_to(1e-3), equivalence.NO_FAULT_64: drift_to(drift)}
    findings.same_verdicts("BN", apart, drifts)
    assert {name for name, holds in recorded.items() if not holds} == failing
    assert ("are the same layer" in findings.same_sentence("BN", apart)) == (failing <= {"bn.drift"})


@pytest.mark.parametrize(
    ("repeated", "unpaired", "exact", "message"),
    [
        (1e-2, 1e-2, 1e-13, "Repeated updates and other initial weights each make the drift; with both"),
        (1e-2, 2e-5, 1e-13, "Repeated updates make"),
        (2e-5, 2e-5, 1e-13, "Neither fault moves the parameters beyond round-off."),
        (1e-2, 1e-2, 1e-8, "Even with both faults removed, the parameters drift apart beyond round-off."),
    ],
)
def test_the_drift_is_attributed_to_what_makes_it(repeated, unpaired, exact, message):
    sizes = {
        equivalence.BOTH_FAULTS: repeated,
        equivalence.fault_name(True, True): repeated,
        equivalence.fault_name(False, False): unpaired,
        equivalence.NO_FAULT: 1e-5,
        equivalence.NO_FAULT_64: exact,
    }
    drifts = {name: drift_to(size) for name, size in sizes.items()}
    assert findings.attribution_message(drifts).startswith(message)
    of_the_loop = findings.drift_message(drifts).startswith("The drift of 2019 is its training loop's")
    assert of_the_loop == (repeated == 1e-2 and exact < 1e-11)


@pytest.mark.parametrize(("dtype", "relative"), [("float32", 2e-4), ("float64", 2e-12)])
def test_one_call_beyond_round_off_fails(dtype, relative, recorded):
    differences = pd.DataFrame({"dtype": ["float32", "float64"], "relative": [1e-6, 1e-14]})
    assert "by round-off alone" in findings.one_call_message("BN", differences)
    assert all(recorded.values())
    differences.loc[len(differences)] = {"dtype": dtype, "relative": relative}
    assert "by more than round-off" in findings.one_call_message("BN", differences)
    assert {name: name.endswith(dtype) for name in recorded} == {name: not h for name, h in recorded.items()}


# --- exact facts and mechanisms ----------------------------------------------------------------------------------


def test_a_broken_law_is_counted(recorded):
    measured = {"kept": ("", lambda case: 0.5 * case), "broken": ("", lambda case: 2.0 * case)}
    found = findings.law_verdicts("V1", SimpleNamespace(LAWS=measured, TOLERANCE=1e-9), 1e-9)
    assert found == (1, 2)
    assert recorded == {"law.kept": True, "law.broken": False}


@pytest.mark.parametrize("wrong", [0, 1, 3])
def test_every_wrong_field_of_the_invariances_counts(wrong, recorded):
    expected = np.array([[True, False], [False, True]])
    invariant = expected.copy()
    invariant.flat[:wrong] ^= True
    assert findings.invariance_verdict(invariant, expected) == 4 - wrong
    assert recorded["invariances"] == (wrong == 0)


@pytest.mark.parametrize("moved", [None, "bias", "length", "filters"])
def test_what_training_moves_is_not_conserved(moved, recorded):
    frame = pd.DataFrame(
        {"bias": 1e-5, "length": 1e-5, "filters": 1e-5, "kernel": 0.1, "growth": 0.1}, [0, 1]
    )
    if moved:
        frame.loc[1, moved] = 1e-3
    message = findings.conservation_verdicts(frame, frame)
    assert recorded == {f"conserved.{name}": name != moved for name in ("bias", "length", "filters")}
    assert ("does not move" in message) == (moved is None)


def test_a_wrong_second_derivative_fails(recorded):
    table = pd.DataFrame({"layer": ["BN", "LN"], "own": [1e-9, 1e-3], "TensorFlow's": [0.1, 0.4]})
    findings.second_derivative_verdicts(table)
    assert recorded == {"second.bn": True, "second.ln": False}
    assert "up to 40 % (LN), own ones by 1.0 × 10⁻³" in findings.second_derivative_message(table)


@pytest.mark.parametrize(
    ("float32", "float64", "verdict"),
    [
        (0.0, 0.0, "cannot"),
        (1e-3, 1e-12, "round-off"),
        (1e-3, 0.0, "round-off"),
        (1e-3, 1e-3, "semantic"),
        (1e-3, 1e-8, "semantic"),
        (0.0, 1e-3, "semantic"),
    ],
)
def test_a_mechanism_is_judged_by_what_float64_leaves(float32, float64, verdict, pending):
    table = pd.DataFrame(
        {"mechanism": ["this", "other"], "float32": [float32, 1.0], "float64": [float64, 1.0]}
    )
    table = findings.mechanism_verdicts(table)
    assert list(table.verdict) == [verdict, "semantic"]
    assert [row["verdict"] for row in pending["verdicts"]] == [verdict, "semantic"]
    message = findings.mechanism_message(table, 1e-6)
    assert message.startswith(f"{1 + (verdict == 'semantic')} of 2 mechanisms")
    assert ("this cannot move" in message) == (verdict == "cannot")
    assert ("this is round-off" in message) == (verdict == "round-off")


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"none": 2.0, "BN": 1.0, "LN": 3.0}, "2.00 (none), 1.00 (BN), 3.00 (LN) nats: smaller with BN."),
        ({"none": 2.0, "BN": 1.0, "LN": 1.5}, "smaller with BN and LN."),
        ({"none": 2.0, "BN": 3.0, "LN": 2.0}, "no normalization makes it smaller."),
    ],
)
def test_the_landscapes_sentence_follows_the_median_ranges(ranges, message):
    rows = [(method, 1.0, 1.0 + size) for method, size in ranges.items() for _ in range(2)]
    rows += [(method, 0.0, 99.0) for method in ranges]
    frame = pd.DataFrame(rows, columns=["method", "lowest", "highest"])
    assert findings.landscape_message(frame).endswith(message)


@pytest.mark.parametrize(("steady", "restless"), [("BN", "none"), ("none", "BN")])
def test_the_percentiles_sentence_follows_the_data(steady, restless):
    frame = pd.DataFrame(
        {
            "method": [steady, steady, restless, restless],
            "middle": [0.5, 0.25, -1.0, 2.0],
            "accuracy": [0.1, 0.9, 0.1, 0.3],
        }
    )
    wander = {steady: "0.25", restless: "3.00"}
    right = {steady: "90.0 %", restless: "30.0 %"}
    assert findings.percentile_message(frame) == (
        f"The median input of a deep unit wanders over {wander['none']} without BN and {wander['BN']} with it; "
        f"{right['none']} against {right['BN']} of the test images are right."
    )


# --- comparisons -------------------------------------------------------------------------------------------------

LEVELS = {"none": 0.7, "BN": 0.8, "LN": 0.75, "WN": 0.72}


@pytest.mark.parametrize(
    ("seeds", "verdict"), [(8, "told apart"), (6, "not told apart"), (3, "not told apart")]
)
def test_eight_seeds_that_agree_tell_methods_apart_and_six_do_not(seeds, verdict):
    table = findings.hypotheses({method: around(level, seeds) for method, level in LEVELS.items()})
    assert list(table.verdict) == [verdict] * 3
    np.testing.assert_allclose(table.p, 2.0 ** (1 - seeds))
    np.testing.assert_allclose(table["p, Holm"], 3 * 2.0 ** (1 - seeds))
    message = findings.hypotheses_message(table, range(seeds))
    assert message.startswith(f"{3 * (seeds == 8)} of 3 hypotheses are told apart.")
    assert ("nothing may be claimed" in message) == (seeds < 8)


def test_eight_seeds_that_disagree_do_not_tell_a_method_apart():
    curves = {method: around(level, 8) for method, level in LEVELS.items()}
    curves["WN"] = [history(h.accuracy + 0.05 * (-1) ** h.run.seed, h.run.seed) for h in curves["none"]]
    assert list(findings.hypotheses(curves).verdict) == ["told apart", "told apart", "not told apart"]


def test_hypotheses_on_speed_ask_for_the_mean_and_the_one_on_the_end_for_the_end():
    shapes = {"none": [0.5, 0.5], "BN": [0.8, 0.4], "LN": [0.1, 0.7], "WN": [0.2, 0.6]}
    curves = {m: [history(shape, seed) for seed in range(8)] for m, shape in shapes.items()}
    signs = [difference[0] for difference in findings.hypotheses(curves)["difference, points"]]
    assert signs == ["+", "+", "−"]


@pytest.mark.parametrize(
    ("small", "large", "lost"), [(0.4, 0.9, "50.0"), (0.9, 0.4, "0.0"), (0.9, 0.9, "0.0")]
)
def test_the_batch_sizes_sentence_follows_the_data(small, large, lost):
    frame = pd.DataFrame(
        {
            "method": ["BN", "BN", "BN", "GN", "GN", "GN"],
            "size": [128, 2, 32] * 2,
            "accuracy": [large, small, 0.4, 0.7, 0.75, 0.8],
        }
    )
    assert findings.batch_message(frame).endswith(f"two images: BN {lost}, GN 5.0.")


# --- the literature ----------------------------------------------------------------------------------------------


def made_up(sign):
    """The arguments of `answers.literature`: every claim is favoured (sign 1), or its opposite is (-1)."""
    favoured = sign > 0
    gains = {"none": 0.0, "BN": 0.2, "LN": 0.1, "WN": 0.1, "detached BN": -0.1, "noisy BN": 0.18}
    curves = {
        method: around(0.6 + sign * gain, steps=(10, 20) if method.endswith(" BN") else (10, 20, 30, 40))
        for method, gain in gains.items()
    }
    best = {"none": 0.0, "BN": 0.2, "RMS": 0.12, "LN-C": 0.1, "DyT": 0.05, "affine": 0.02, "first": 0.05}
    best["input"] = 0.05
    sweep = pd.DataFrame([(m, 0.6 + sign * gain, 0.1) for m, gain in best.items()])
    sweep.columns = ["method", "accuracy", "rate"]
    sweep.loc[sweep.method == "BN", "rate"] = 1.0 if favoured else 0.01
    small = {"BN": 0.5, "BN, dense": 0.5, "GN": 0.8} if favoured else {"BN": 0.8, "BN, dense": 0.8, "GN": 0.5}
    by_batch = pd.DataFrame(
        [(m, size, small[m] if size == 2 else 0.8) for m in small for size in (2, 512)],
        columns=["method", "size", "accuracy"],
    )
    growth, cosine = (np.pi / (np.pi - 1), 1 / np.pi) if favoured else (1.0, 0.9)
    depths = pd.DataFrame({"method": "BN", "layer": range(1, 11), "cosine": cosine, "growth": growth})
    statistics_frame = pd.DataFrame(
        {
            "step": [10, 10],
            "statistics": ["moving, momentum 0.9", "exact"],
            "accuracy": [0.5, 0.5 + 0.2 * sign],
        }
    )
    conserved = pd.DataFrame({"bias": [1e-6 if favoured else 1.0], "kernel": [1.0]})
    rate_error = 0.0 if favoured else 1e-3
    same = np.array([[word == "yes" for word in words.split()] for words in laws.INVARIANCES.values()])
    for change, column in laws.DENSE_ALONE:
        same[list(laws.INVARIANCES).index(change), laws.COLUMNS.index(column)] = True
    changes = np.where(same == favoured, 0.0, 1.0)
    steady, restless = ("BN", "none") if favoured else ("none", "BN")
    along = pd.DataFrame(
        {"method": [steady, restless], "lowest": 1.0, "highest": [2.0, 3.0], "change": [0.5, 1.5]}
    )
    sigmoid = pd.DataFrame(
        {
            "method": [steady, steady, restless, restless],
            "middle": [0.0, 0.1, 0.0, 1.0],
            "accuracy": [0.1, 0.9, 0.1, 0.5],
        }
    )
    return curves, sweep, by_batch, depths, statistics_frame, conserved, rate_error, changes, along, sigmoid


NEVER_TESTED = "dividing the batch regularizes"


def test_claims_that_are_favoured_are_reproduced(pending):
    table = answers.literature(*made_up(1))
    verdicts = table.set_index("claim").verdict
    assert verdicts.pop(NEVER_TESTED) == "not tested"
    assert set(verdicts) == {"reproduced"}
    assert {row["table"] for row in pending["verdicts"]} == {"V2"}
    assert len(pending["verdicts"]) == len(table)
    told = (
        f"Of {len(table)} claims: {len(table) - 1} reproduced, 0 partly, 0 not settled, 0 not, 1 not tested."
    )
    assert answers.literature_message(table) == told


def test_claims_whose_opposite_is_favoured_are_not():
    verdicts = answers.literature(*made_up(-1)).set_index("claim").verdict
    assert verdicts.pop(NEVER_TESTED) == "not tested"
    assert set(verdicts) == {"not"}


def test_methods_that_learn_alike_settle_nothing():
    curves, *others = made_up(1)
    alike = {method: [history(h.accuracy, h.run.seed, h.steps) for h in curves["none"]] for method in curves}
    verdicts = answers.literature(curves | {m: alike[m] for m in ("BN", "LN", "WN")}, *others)
    verdicts = verdicts.set_index("claim").verdict
    for claim in ("BN trains faster", "LN trains faster", "WN trains faster"):
        assert verdicts[claim] == "not settled"


def test_half_of_a_claim_is_partly_reproduced():
    curves, sweep, by_batch, *others, along, sigmoid = made_up(1)
    curves |= {"detached BN": around(0.62), "noisy BN": around(0.62)}
    sweep.loc[sweep.method == "DyT", "accuracy"] = 0.795
    by_batch.loc[(by_batch["size"] == 2) & (by_batch.method == "GN"), "accuracy"] = 0.78
    along, sigmoid = along.assign(change=1.0), sigmoid.assign(accuracy=0.5)
    verdicts = answers.literature(curves, sweep, by_batch, *others, along, sigmoid).set_index("claim").verdict
    assert set(verdicts.index[verdicts == "partly"]) == {
        "the gradients through the statistics matter more than the forward pass (LN)",
        "DyT does not replace BN in convolutional networks",
        "internal covariate shift is not the reason",
        "BN makes the loss smoother along the steps",
        "BN keeps the input of a deep sigmoid unit steady, and trains better",
        "GN does not mind small batches, BN does",
    }


def test_the_hypotheses_are_told_with_their_verdicts():
    curves = {"none": around(0.6, 8), "BN": around(0.5, 8), "LN": around(0.7, 8), "WN": around(0.6, 8)}
    told = findings.hypotheses_sentence(findings.hypotheses(curves))
    assert (
        "BN against none −10.00 (−10.00 to −10.00) points of mean accuracy over the training (told apart)"
        in told
    )
    assert "(not told apart)." in told


@pytest.mark.parametrize("profile", ["smoke", "quick"])
def test_short_profiles_claim_nothing(profile):
    assert "nothing else may be claimed" in findings.claims(profile, [1, 2])
    assert "speed of convergence may be claimed" in findings.claims("default", [1, 2, 3])


def test_one_rate_for_each_method_is_not_called_the_best():
    frame = pd.DataFrame({"method": ["none", "BN"], "rate": 0.1})
    told = findings.rates_message(frame, {"none": 0.1, "BN": 0.1}, {"none": 0.0, "BN": 0.0})
    assert told == "Each method at the one learning rate 0.1: this profile does not search."
