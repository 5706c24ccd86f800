"""The small experiments measure what they say and do not disturb what they look at; the controls do what they say."""

from dataclasses import replace

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from references import assert_close, random

import normlib
from study import controls, explanations, mechanisms, network, present, training

BASE = training.Run(sample=True, steps=4, batch_size=20)
BN = network.METHODS["BN"]


# --- experiments -------------------------------------------------------------------------------------------------


def test_looking_at_the_landscape_does_not_disturb_the_training():
    often, seldom = (mechanisms.landscape(BASE, ("BN",), every=every) for every in (1, 2))
    assert list(often.step) == [0, 1, 2, 3]
    assert (often.highest > often.lowest).all()
    assert (often.change > 0.1).all()
    shared = often[often.step % 2 == 0].reset_index(drop=True)
    pd.testing.assert_frame_equal(shared, seldom, check_exact=True)


def test_a_landscape_seen_from_where_one_stands_is_flat_and_the_trainings_own():
    frame = mechanisms.landscape(BASE, ("BN",), every=1, rate=0.05, reaches=(0.0,))
    assert (frame.highest == frame.lowest).all()
    assert (frame.change == 0).all()
    history = training.train(replace(BASE, learning_rate=0.05, evaluate_every=4, **BN))
    np.testing.assert_allclose(frame.lowest, history.training_loss, rtol=1e-3)


def test_a_landscape_reaches_as_far_as_asked():
    near, far = (mechanisms.landscape(BASE, ("none",), steps=1, reaches=(reach,)) for reach in (1.0, 2.0))
    slow = mechanisms.landscape(BASE, ("none",), steps=1, rate=0.05, reaches=(2.0,))
    assert near.highest[0] == pytest.approx(slow.highest[0], rel=1e-6)
    assert near.highest[0] != pytest.approx(far.highest[0], rel=1e-3)


def test_looking_at_a_deep_unit_does_not_disturb_the_training():
    base = replace(BASE, steps=20)
    often, seldom = (mechanisms.sigmoid_network(base, looks=looks).set_index("method") for looks in (8, 2))
    assert list(seldom.step) == [1, 40] * 2
    assert len(often) == 16
    assert ((often.low <= often.middle) & (often.middle <= often.high)).all()
    assert seldom.accuracy["BN"].iloc[-1] > 0.2  # beyond guessing, so that a disturbance would show
    for method in ("none", "BN"):
        pd.testing.assert_series_equal(
            often.loc[method].iloc[-1], seldom.loc[method].iloc[-1], check_exact=True
        )


def test_the_deep_units_input_is_seen_behind_the_normalization():
    first = mechanisms.sigmoid_network(BASE, steps=1, looks=1).set_index("method")
    np.testing.assert_allclose(first.loc["BN", ["low", "middle", "high"]].astype(float), [-1, 0, 1], atol=0.1)
    assert first.high["none"] - first.low["none"] < 0.5


def test_moving_statistics_are_those_of_a_training_and_looking_does_not_disturb():
    base = replace(BASE, steps=10)
    frame = mechanisms.moving_statistics(base, looks=(5, 10)).set_index(["step", "statistics"]).accuracy
    history = training.train(replace(base, evaluate_every=5, **BN))
    np.testing.assert_allclose(frame[:, "moving, momentum 0.9"], history.accuracy, atol=2.5e-3)
    assert frame[5, "exact"] > frame[5, "moving, momentum 0.9"] > frame[5, "moving, momentum 0.99"]
    late = mechanisms.moving_statistics(base, looks=(10,)).set_index(["step", "statistics"]).accuracy
    pd.testing.assert_series_equal(late, frame.loc[[10]], check_exact=True)


def test_epsilons_share_is_that_of_the_variance_which_bn_and_ln_divide_by():
    frame = mechanisms.epsilon_share(BASE, (1e-3, 1e-5)).set_index(["set", "epsilon"]).share
    conv = network.build((28, 28, 1), seed=BASE.seed).layers[0](mechanisms.images(BASE))
    bn = normlib.BatchNormalization(momentum=0.0)
    bn(conv, training=True)
    assert_close(frame["a filter", 1e-3], 1e-3 / (bn.moving_variance + 1e-3), 1e-4)
    for name, count in (("a filter", 30), ("a position", mechanisms.IMAGES * 28 * 28)):
        large, small = (frame[name, epsilon].to_numpy() for epsilon in (1e-3, 1e-5))
        assert len(large) == count
        assert (large >= small).all()
        assert np.median(large) > 10 * np.median(small)
    first = tf.math.reduce_variance(conv[0, 14, 14])
    assert_close(frame["a position", 1e-5].iloc[14 * 28 + 14], 1e-5 / (first + 1e-5), 1e-4)


def test_depth_is_as_in_theory():
    frame = mechanisms.depth(layers=12)
    last = frame[frame.layer == 12].set_index("method").cosine
    assert last["BN"] == pytest.approx(1 / np.pi, abs=0.02)
    assert min(last["none"], last["LN"]) > 0.8
    inner = frame[(frame.layer > 4) & (frame.layer < 11)].groupby("method").growth.median()
    assert inner["BN"] == pytest.approx(np.pi / (np.pi - 1), rel=0.05)
    assert max(abs(inner["none"] - 1), abs(inner["LN"] - 1)) < 0.2


def test_a_training_conserves_what_the_output_does_not_feel_and_nothing_else(monkeypatch):
    held = {}
    monkeypatch.setattr(present, "verdict", lambda *row, **_: held.update({row[1]: row[-1]}))
    methods = ("BN", "GN", "LN-C", "RMS", "WN")
    frames = {m: mechanisms.conservation(BASE, m, every=2) for m in methods}
    assert list(frames["BN"].step) == [2, 4]
    assert explanations.conservation_verdicts(frames).startswith("What the output does not feel")
    assert all(held.values())
    assert len(held) == 15
    explanations.conservation_verdicts({"LN-C": frames["BN"], "BN": frames["RMS"]})
    assert not held["conserved.ln-c.filters"]
    assert not held["conserved.bn.bias"]
    # Without normalization, the lengths follow no such law; without epsilon's share, those before BN do not either.
    none = mechanisms.conservation(BASE, "none", every=2)
    explanations.conservation_verdicts({"none": none})
    assert not held["conserved.none.length"]
    assert frames["BN"].pythagoras.max() > 100 * frames["BN"].length.max()


def test_a_scaled_weight_is_the_same_training_for_powers_of_two():
    assert mechanisms.effective_learning_rate(BASE, steps=2) == 0.0
    assert 0.0 < mechanisms.effective_learning_rate(BASE, factor=1.5, steps=2) < 0.1


def test_second_derivatives_decide_what_becomes_of_a_gradient_penalty():
    table = mechanisms.second_derivatives(examples=2).set_index("layer")
    assert dict(table.averaged) == {"BN": 16 * 6 * 6, "LN": 8, "GN": 6 * 6 * 4}
    assert list(table.index) == ["BN", "LN", "GN"]
    assert (table["own, most"] < 1e-7).all()
    assert (table["TensorFlow's, least"] > 1e-3).all()
    assert (table["TensorFlow's, least"] < table["TensorFlow's, most"]).all()
    assert (table["gradient penalty, apart"] > 1e-3).all()
    plain = mechanisms.gradient_penalty("study.faulty:FaultyBatchNormalization")
    assert_close(mechanisms.gradient_penalty("normlib:BatchNormalization"), plain, 1e-9)


def test_a_gradient_penalty_trains_own_and_plain_ln_alike_and_tensorflows_apart():
    frame = mechanisms.penalized_training(replace(BASE, steps=10), width=8)
    last = frame[frame.step == 10].set_index("layer").apart
    assert last["own"] < 1e-9 < 1e-4 < last["TensorFlow's"]


def test_only_fused_layers_take_the_unbiased_variance():
    layers = mechanisms.implementations().set_index("layer")["divided by"]
    assert list(layers[["normlib", "Keras 3"]]) == ["N", "N"]
    assert list(layers[["tf_keras (Keras 2)", "tf.raw_ops.FusedBatchNormV3"]]) == ["N − 1", "N − 1"]


def test_weight_normalization_is_in_no_layer_of_keras_3():
    found = mechanisms.weight_normalization_in_keras()
    assert found == {"keras": False, "probability": False, "probability, Keras 2": True}


def test_the_start_is_measured_at_the_hidden_units():
    frame = mechanisms.start(BASE, ("none", "WN", "BN", "BN, both")).set_index("method")
    assert frame.spread["none"] == pytest.approx(frame.spread["WN"], rel=1e-5)  # WN starts as none
    assert frame.spread["BN"] == pytest.approx(frame.spread["BN, both"], rel=1e-5)
    assert frame.spread["BN"] > 3 * frame.spread["none"]
    assert frame.loss["BN"] > 1.5 * frame.loss["BN, both"]


def test_small_facts():
    facts = mechanisms.small_facts()
    assert facts["default"] == facts["frozen"] == 0.0
    assert facts["accumulation"] > 0.01
    assert 0.0 < facts["moved"] < 0.1
    assert facts["bessel"]["batch 2"] == 2.0


# --- controls ----------------------------------------------------------------------------------------------------


def with_random_weights(layer, shape, rng):
    layer.build(shape)
    layer.set_weights([rng.uniform(0.5, 1.5, w.shape).astype(w.dtype) for w in layer.get_weights()])
    return layer


def test_affine_and_dynamic_tanh_by_their_formulas(rng):
    x = random(rng, (4, 3, 3, 5))
    affine = with_random_weights(controls.Affine(dtype="float64"), x.shape, rng)
    assert_close(affine(x), affine.gamma * x + affine.beta, 1e-14)
    assert_close(controls.DynamicTanh(dtype="float64")(x), np.tanh(0.5 * x.numpy()), 1e-14)
    tanh = with_random_weights(controls.DynamicTanh(dtype="float64"), x.shape, rng)
    assert_close(tanh(x), tanh.gamma * np.tanh(tanh.alpha.numpy() * x.numpy()) + tanh.beta, 1e-14)
    assert [w.name for w in tanh.trainable_variables] == ["gamma", "beta", "alpha"]


def test_the_first_batch_sets_the_scale_once(rng):
    first, second = (3.0 + 2.0 * random(rng, (16, 4, 4, 5)) for _ in range(2))
    layer = controls.FirstBatch(dtype="float64")
    assert_close(layer(first), first, 1e-14)  # inference does not set it
    y = layer(first, training=True).numpy()
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0.0, atol=1e-12)
    np.testing.assert_allclose(y.std((0, 1, 2)), 1.0, atol=1e-4)
    set_by_it = layer.get_weights()
    later = layer(5.0 * second, training=True)
    assert_close(later, layer.gamma * 5.0 * second + layer.beta, 1e-14)
    layer(second, training=False)
    for before, after in zip(set_by_it, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("calls_before", [0, 1])
def test_what_the_first_batch_set_is_trained(calls_before, rng):
    x, dy = random(rng, (8, 5)), random(rng, (8, 5))
    layer = controls.FirstBatch(dtype="float64")
    layer.build(x.shape)
    for _ in range(calls_before):
        layer(x, training=True)
    assert [w.name for w in layer.trainable_variables] == ["gamma", "beta"]
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
    dx, dgamma, dbeta = tape.gradient(y, [x, layer.gamma.value, layer.beta.value], dy)
    assert_close(dgamma, tf.reduce_sum(dy * x, 0), 1e-13)
    assert_close(dbeta, tf.reduce_sum(dy, 0), 1e-13)
    assert_close(dx, layer.gamma * dy, 1e-13)


@pytest.fixture
def noisy_and_plain(rng):
    """Noisy and plain batch normalization with the same weights."""
    noisy, plain = controls.NoisyBatchNormalization(), normlib.BatchNormalization()
    for layer in (noisy, plain):
        layer.build((None, 4, 4, 3))
    plain.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in plain.get_weights()])
    for a, b in zip(
        (noisy.gamma, noisy.beta, noisy.moving_mean, noisy.moving_variance), plain.weights, strict=True
    ):
        a.assign(b)
    return noisy, plain


def test_noise_is_made_in_training_alone_and_anew_at_every_step(noisy_and_plain, rng):
    noisy, plain = noisy_and_plain
    x = random(rng, (6, 4, 4, 3), "float32")
    np.testing.assert_array_equal(noisy(x), plain(x))
    first, second = noisy(x, training=True).numpy(), noisy(x, training=True).numpy()
    assert np.abs(first - plain(x, training=True)).mean() > 0.1
    assert np.abs(first - second).mean() > 0.1
    noisy.step.assign(0)
    np.testing.assert_array_equal(noisy(x, training=True), first)
    assert [w.name for w in noisy.trainable_variables] == ["gamma", "beta"]


def test_noise_stretches_and_shifts_the_channels_of_each_image(noisy_and_plain, rng):
    noisy, plain = noisy_and_plain
    x = random(rng, (6, 4, 4, 3), "float32")
    y, disturbed = (np.moveaxis(layer(x, training=True), -1, 1).reshape(18, 16) for layer in (plain, noisy))
    scale, shift = np.array([np.polyfit(*pair, 1) for pair in zip(y, disturbed, strict=True)]).T
    np.testing.assert_allclose(disturbed, scale[:, None] * y + shift[:, None], atol=1e-5)
    assert 0.9 <= scale.min() < scale.max() <= 1.35
    assert -0.6 <= shift.min() < shift.max() <= 0.6
    of_images = [noise.reshape(6, 3) - noise.reshape(6, 3).mean(0) for noise in (scale, shift)]
    for noise in of_images:
        assert 0.05 < np.ptp(noise, axis=0).min() < np.ptp(noise, axis=0).max() <= 0.2 + 1e-4
    assert abs(np.corrcoef(*map(np.ravel, of_images))[0, 1]) < 0.7  # by streams of their own


def test_ghost_batches_are_normalized_each_by_itself(rng):
    x = random(rng, (8, 3, 3, 5)) + np.arange(8.0).reshape(8, 1, 1, 1)
    ghost, plain = (
        kind(epsilon=1e-5, momentum=0.0, dtype="float64")
        for kind in (controls.GhostBatchNormalization, normlib.BatchNormalization)
    )
    y = ghost(x, training=True)
    for part in range(0, 8, 2):
        assert_close(y[part : part + 2], plain(x[part : part + 2], training=True), 1e-12)
    assert_close(ghost(x), plain(x), 1e-12)  # inference: the statistics of the last part, for all


def test_weight_and_mean_only_normalization_is_the_one_after_the_other(rng):
    x = random(rng, (16, 6, 6, 3), "float32")
    both, alone = (
        kind(keras.layers.Conv2D(5, 3, kernel_initializer=network.initial(1, 0)))
        for kind in (controls.WeightAndMeanOnlyBatchNormalization, normlib.WeightNormalization)
    )
    y = both(x, training=True)
    np.testing.assert_allclose(np.mean(y, (0, 1, 2)), 0.0, atol=1e-5)
    centre = normlib.MeanOnlyBatchNormalization(momentum=0.9)
    np.testing.assert_array_equal(y, centre(alone(x), training=True))
    np.testing.assert_array_equal(both(x), centre(alone(x)))
    assert np.abs(np.mean(both(x), (0, 1, 2))).max() > 1e-3  # inference takes the moving mean
    assert [w.name for w in both.trainable_variables].count("beta") == 1


def test_noise_is_that_of_the_seed(rng):
    x = random(rng, (6, 4, 4, 3), "float32")
    first, again, other = (
        controls.NoisyBatchNormalization(seed=seed)(x, training=True) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 0.1
    runs = [training.Run(sample=True, seed=seed, **network.METHODS["noisy BN"]) for seed in (1, 2)]
    for run in runs:  # of one program, which serves both
        [layer] = [each for each in training.program_of(run).model.layers if hasattr(each, "noise")]
        assert int(layer.noise) == run.seed


@pytest.mark.parametrize(
    ("kind", "plain", "options"),
    [
        (controls.AsLargeBatchNormalization, normlib.BatchNormalization, {"training": True}),
        (controls.AsLargeLayerNormalization, normlib.LayerNormalization, {}),
    ],
)
def test_a_normalization_starts_as_large_as_none(kind, plain, options, rng):
    x = 3.0 * random(rng, (8, 4, 4, 5)) + 2.0
    layer = kind(epsilon=0.0, dtype="float64")
    layer(x)  # in inference nothing starts
    y = layer(x, training=True)
    assert_close(layer.gamma, np.full(5, np.std(x)), 1e-12)
    assert_close(y, np.std(x) * plain(epsilon=0.0, dtype="float64")(x, **options), 1e-12)
    layer(5.0 * x, training=True)
    assert_close(layer.gamma, np.full(5, np.std(x)), 1e-12)  # set once


@pytest.mark.parametrize(
    "method",
    ["WN+MO", "input", "first", "noisy BN", "ghost BN", "affine", "DyT", "BN, as large", "LN, as large"],
)
def test_each_control_trains_and_gives_the_same_bits_again(method):
    run = training.Run(sample=True, steps=2, evaluate_every=2, batch_size=12, **network.METHODS[method])
    history = training.train(run)
    assert not history.diverged
    assert training.train(run).weights_hash == history.weights_hash
