"""The study of 2019 run again: its layers, and its numbers beside those found."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from test_findings import history

import normlib
from study import data, equivalence, original, training


def test_layer_normalization_of_2019_has_a_gamma_for_each_position_in_the_batch():
    layer = original.LayerNormalization(axis=(1, 2), positions=4)
    x = np.random.default_rng(1).normal(3, 2, (4, 5, 6)).astype("float32")
    right = normlib.LayerNormalization(axis=(1, 2), center=False, scale=False)(x)
    np.testing.assert_allclose(layer(x), right, atol=1e-6)
    layer.gamma.assign([1, 2, 3, 4])
    layer.beta.assign([0, 0, 0, 5])
    expected = np.array(right) * np.reshape([1, 2, 3, 4], (4, 1, 1)) + np.reshape([0, 0, 0, 5], (4, 1, 1))
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)
    np.testing.assert_allclose(layer(x[:3]), expected[:3], atol=1e-5)
    assert original.LayerNormalization.from_config(layer.get_config()).positions == 4


def test_weight_normalization_of_2019_has_one_g_and_lengths_over_the_first_axis():
    layer = original.WeightNormalization(keras.layers.Conv2D(4, 3, use_bias=False))
    x = np.random.default_rng(1).normal(size=(2, 5, 5, 3)).astype("float32")
    layer(x)
    [(v, _, _)] = layer._parts()
    v = np.array(v)
    lengths = np.sqrt(np.square(v).sum(0, keepdims=True))
    [kernel] = layer.kernels()
    np.testing.assert_allclose(kernel, v * lengths.mean() / lengths, rtol=1e-5)
    assert sorted(tuple(w.shape) for w in layer.trainable_variables) == [(), (3, 3, 3, 4)]
    layer.g_of_all.assign(2.0)
    np.testing.assert_allclose(layer.kernels()[0], v * 2 / lengths, rtol=1e-5)


@pytest.mark.parametrize("method", list(original.OWN))
def test_the_layers_of_2019_train(method):
    run = training.Run(sample=True, steps=3, evaluate_every=3, **original.OWN[method])
    assert np.isfinite(training.train(run).loss).all()


def beside(accuracy=0.0, factor=1.0, steps_of_right=(100, 2750)):
    """The table where all accuracies are higher by so much than in 2019, and all drifts so many times as large."""
    found = {
        name: history([(0 if then is None else then) + accuracy for then in values], steps=(100, 2750))
        for name, values in original.ACCURACIES.items()
    }
    for method, values in original.DRIFTS.items():
        for whose, times in (("own", -1.0), ("TensorFlow's", factor - 1.0)):
            short = history([0.5], steps=(15,))
            short.trace.update(
                {
                    f"norm_conv/{name}": np.stack([np.full(4, -9.0), times * then + np.array([-1, 1, -1, 1])])
                    for name, then in zip(("gamma", "beta"), values, strict=True)
                }
            )
            found[whose, method] = short
    curves = {
        method: [
            history([0.5 + shift] * len(steps_of_right), steps=steps_of_right) for shift in (-0.05, 0.05)
        ]
        for method in original.OWN
    }
    for of_method in curves.values():
        of_method.append(history([0.0, 0.0], steps=(100, 2750)))
        of_method[-1] = replace(of_method[-1], run=replace(of_method[-1].run, dataset="cifar10"))
    return original.beside(found, curves)


@pytest.mark.parametrize(
    ("accuracy", "verdict"),
    [
        (0.0, "reproduced"),
        (0.009, "reproduced"),
        (-0.009, "reproduced"),
        (0.011, "not reproduced"),
        (-0.011, "not reproduced"),
    ],
)
def test_an_accuracy_is_reproduced_within_a_point(accuracy, verdict):
    table = beside(accuracy)
    of_accuracy = table.what.str.contains("accuracy")
    assert of_accuracy.sum() == 9
    assert set(table.verdict[of_accuracy]) == {verdict}
    assert set(table.verdict[~of_accuracy]) == {"reproduced"}
    np.testing.assert_allclose(table.right[of_accuracy], 0.5)
    reproduced = 13 if verdict == "reproduced" else 4
    assert original.message(table) == (
        f"With the layers and the training of 2019, {reproduced} of its 13 numbers are reproduced, "
        f"{13 - reproduced} not."
    )


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [
        (1.9, "reproduced"),
        (0.6, "reproduced"),
        (2.1, "not reproduced"),
        (0.4, "not reproduced"),
        (-1.0, "not reproduced"),
        (0.0, "not reproduced"),
    ],
)
def test_a_drift_is_reproduced_by_its_sign_and_within_a_factor_of_two(factor, verdict):
    table = beside(factor=factor)
    of_drift = table.what.str.contains("difference")
    assert of_drift.sum() == 4
    assert set(table.verdict[of_drift]) == {verdict}
    assert set(table.verdict[~of_drift]) == {"reproduced"}
    np.testing.assert_allclose(table.again[of_drift], factor * table.then[of_drift], atol=1e-12)


def test_right_layers_not_trained_so_long_leave_their_place_empty():
    late = beside(steps_of_right=(100,)).set_index("what").right.filter(like="accuracy")
    assert late.isna().sum() == 5
    assert set(late.dropna()) == {0.5}


def test_what_was_not_trained_so_long_is_not_run():
    table = beside()
    short = {"none": history([0.7], steps=(100,))} | {
        m: history([0.7], steps=(100,)) for m in original.ACCURACIES
    }
    whole = {
        (whose, m): history([0.5], steps=(15,)) for m in original.DRIFTS for whose in ("own", "TensorFlow's")
    }
    for (whose, _), of in whole.items():
        of.trace.update({f"norm_conv/{n}": np.full((15, 2), whose == "own") for n in ("gamma", "beta")})
    late = original.beside(short | whole, {m: [] for m in original.OWN})
    assert list(late.what) == list(table.what)
    assert (late.verdict[late.what.str.contains("2,750")] == "not run").all()
    assert original.message(late).endswith("5 not run.")


def test_shares_add_up_to_the_whole():
    values = {"": [0.0, 0.2], "a": [1.0, 1.0], "b": [2.0, 3.0], "ab": [6.0, 6.0]}
    table = original.shares({frozenset(k): v for k, v in values.items()}, ("a", "b"), "what")
    table = table.set_index("mechanism")
    whole = table.loc["all, as in 2019"]
    assert whole.difference == 6.0
    assert table.difference.drop("all, as in 2019").sum() == pytest.approx(6.0)
    assert table.share.drop("all, as in 2019").sum() == pytest.approx(1.0)
    assert table.difference["a"] == pytest.approx(0.9)
    assert (table.low["b"], table.high["b"]) == (2.0, 2.8)
    assert table.without["a"] == 2.5
    assert table.difference["their interaction"] == pytest.approx(2.6)


@pytest.mark.slow
@pytest.mark.parametrize("method", list(original.FACTORS))
def test_the_drift_of_2019_is_made_by_its_factors_and_by_nothing_else(method, monkeypatch):
    monkeypatch.setattr(equivalence, "DRIFT_STEPS", 3)
    base = training.Run(sample=True, batch_size=100)
    table, drifts = original.drift_shares(base, method, [1], jobs=2)
    assert set(table.quantity) == {"gamma", "beta"}
    whole = abs(table.difference[table.mechanism == "all, as in 2019"])
    left = abs(table.difference[table.mechanism == "what is left without them"])
    assert (left.to_numpy() < 1e-2 * whole.to_numpy()).all()
    assert len(drifts) == {"BN": 4, "LN": 10}[method]


def test_the_digits_of_2019_are_taken_where_they_can_be_had(monkeypatch):
    run = training.Run()
    original._has_mnist.cache_clear()
    monkeypatch.setattr(training, "load", lambda *_: None)
    assert original.on_mnist(run).dataset == "mnist"
    sample = replace(run, sample=True)
    assert original.on_mnist(sample) == sample
    original._has_mnist.cache_clear()

    def fail(*_):
        raise data.DataError("not here")

    monkeypatch.setattr(training, "load", fail)
    assert original.on_mnist(run) == run
    original._has_mnist.cache_clear()
