"""Runs and histories: the same Run gives the same bits, pairs share what they should, what is kept can be trusted."""

from dataclasses import replace

import numpy as np
import pytest

from study import equivalence, network, profiles, running, training

SHORT = training.Run(sample=True, steps=6, evaluate_every=3, batch_size=20)
BN, TENSORFLOW_BN = network.METHODS["BN"], network.REFERENCES["BN"]


def test_the_same_run_gives_the_same_bits():
    first, second = training.train(replace(SHORT, **BN)), training.train(replace(SHORT, **BN))
    assert first.weights_hash == second.weights_hash
    np.testing.assert_array_equal(first.accuracy, second.accuracy)


def test_a_run_that_is_not_measured_ends_with_the_same_weights():
    measured, not_measured = (training.train(replace(SHORT, **BN, evaluate_every=e)) for e in (3, None))
    assert not_measured.weights_hash == measured.weights_hash
    np.testing.assert_array_equal(not_measured.training_loss, measured.training_loss)
    assert not_measured.steps == [SHORT.steps]
    assert np.isnan([*not_measured.accuracy, *not_measured.loss, not_measured.test_accuracy]).all()


def test_a_run_may_be_measured_on_the_first_images_alone():
    run = replace(SHORT, validation=True, test_at_end=True)
    everything, few = training.train(run), training.train(replace(run, measured_images=50))
    assert few.weights_hash == everything.weights_hash
    correct = 50 * np.array([*few.accuracy, few.test_accuracy])
    np.testing.assert_allclose(correct, np.round(correct), atol=1e-9)  # of 50
    assert few.loss[-1] != everything.loss[-1]


@pytest.mark.parametrize(
    ("steps", "every", "measured"),
    [
        (6, 3, [3, 6]),
        (7, 3, [3, 6, 7]),
        (2, 3, [2]),
        (6, None, [6]),
        (40, 2, [2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40]),
    ],
)
def test_measurements_lie_farther_apart_the_longer_a_run(steps, every, measured):
    run = replace(SHORT, steps=steps, evaluate_every=every)
    assert training.measured_steps(run) == measured


@pytest.mark.parametrize("method", ["none", "BN", "LN", "WN", "WN+MO", "first", "noisy BN"])
def test_a_program_that_was_used_gives_the_bits_of_a_new_one(method):
    run = replace(SHORT, **network.METHODS[method], trace=True)
    new = training.train(run)
    training.train(replace(run, seed=9, learning_rate=0.1, steps=4, validation=True, test_at_end=True))
    used = training.train(run)
    assert training._shared_program.cache_info().misses == 1
    assert used.row() | {"milliseconds_per_step": 0} == new.row() | {"milliseconds_per_step": 0}
    for part in ("trace", "weights"):
        for name, values in getattr(new, part).items():
            np.testing.assert_array_equal(getattr(used, part)[name], values, err_msg=name)


def test_runs_share_a_program_if_they_differ_in_numbers_and_the_layer_is_known():
    run = replace(SHORT, **BN)
    program = training.program_of(run)
    assert training.program_of(replace(run, seed=3, steps=2, learning_rate=1.0, nudge=1)) is program
    for change in ({"batch_size": 10}, {"dtype": "float64"}, {"repeat_updates": True}, {"where": ("relu",)}):
        assert training.program_of(replace(run, **change)) is not program
    strange = replace(SHORT, **network.REFERENCES["WN"])
    assert training.program_of(strange) is not training.program_of(strange)


def test_a_worker_gives_the_same_bits_as_this_process():
    run = replace(SHORT, **network.METHODS["LN"], seed=1)
    assert running.run_all([run], jobs=2)[run].weights_hash == training.train(run).weights_hash


@pytest.mark.parametrize("method", ["BN", "LN", "WN"])
def test_every_method_starts_from_the_same_weights(method):
    plain = network.build((28, 28, 1), seed=3)
    normalized = network.build((28, 28, 1), seed=3, **network.METHODS[method])
    other = network.build((28, 28, 1), seed=4)
    kernels = [
        [w.numpy().tobytes() for w in m.weights if w.name == "kernel"] for m in (plain, normalized, other)
    ]
    assert kernels[0] == kernels[1]
    assert kernels[0] != kernels[2]


def test_the_order_of_batches_is_the_seeds_alone():
    order = training.batch_order(100, SHORT)
    np.testing.assert_array_equal(order, training.batch_order(100, replace(SHORT, **BN, weights_seed=9)))
    assert (order != training.batch_order(100, replace(SHORT, seed=1))).any()
    epoch = training.batch_order(100, replace(SHORT, steps=5)).ravel()
    np.testing.assert_array_equal(np.sort(epoch), np.arange(100))


@pytest.mark.parametrize("method", ["BN", "LN", "WN"])
def test_own_and_tensorflows_agree_after_training_in_float64(method):
    run = replace(SHORT, dtype="float64", trace=True)
    own = training.train(replace(run, **network.METHODS[method]))
    theirs = training.train(replace(run, **network.REFERENCES[method]))
    assert equivalence.largest_weight_difference(own, theirs) < 1e-13
    assert own.weights_hash != training.train(replace(run, **network.METHODS[method], seed=1)).weights_hash


def test_a_wrong_layer_is_told_apart():
    """The equivalence criterion can fail: another epsilon is no round-off."""
    run = replace(SHORT, dtype="float64", trace=True)
    own = training.train(replace(run, norm=BN["norm"], options=(("epsilon", 1e-4), ("momentum", 0.9))))
    assert equivalence.largest_weight_difference(own, training.train(replace(run, **TENSORFLOW_BN))) > 1e-8


def test_repeated_updates_multiply_the_first_steps_motion():
    run = replace(SHORT, **TENSORFLOW_BN, steps=2, evaluate_every=2, trace=True)
    once, often = training.train(run), training.train(replace(run, repeat_updates=True))
    beta_once, beta_often = (h.trace["norm_conv/beta"] for h in (once, often))
    np.testing.assert_array_equal(beta_once[0], beta_often[0])
    step = beta_once[1] - beta_once[0]
    np.testing.assert_allclose(beta_often[1] - beta_often[0], 2 * step, rtol=1e-4, atol=1e-9)


def test_a_kept_run_is_not_trained_again(monkeypatch):
    run = replace(SHORT, seed=5)
    first = running.run_all([run], jobs=1)[run]
    monkeypatch.setattr(running, "_train_and_keep", lambda *_: pytest.fail("trained again"))
    again = running.run_all([run], jobs=1)[run]
    assert again.weights_hash == first.weights_hash
    np.testing.assert_array_equal(again.training_loss, first.training_loss)


def test_a_traced_history_comes_back_whole(tmp_path):
    run = replace(SHORT, **BN, trace=True)
    history = training.train(run)
    running._keep(tmp_path / "a.run", history)
    back = running._restore(tmp_path / "a.run", run)
    assert set(back.trace) == {"norm_conv/gamma", "norm_conv/beta"}
    for name, value in history.weights.items():
        np.testing.assert_array_equal(back.weights[name], value)
    assert back.row() == history.row()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "Received: steps=0"),
        ({"steps": None}, "Received: steps=None"),
        ({"evaluate_every": 0}, "Received: evaluate_every=0"),
        ({"measured_images": 0}, "Received: measured_images=0"),
        ({"where": ("dense",)}, r"where among input, conv, relu, hidden. Received: where=\('dense',\)"),
        ({"test_at_end": True}, "Received: validation=False"),
        ({"dtype": "float16"}, "Received: dtype='float16'"),
        ({"repeat_updates": True}, "Received: norm=None"),
    ],
)
def test_a_wrong_run_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(SHORT, **wrong)


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="Received: batch_size=20"):
        training.batch_order(10, SHORT)


def test_an_unknown_profile_is_refused():
    with pytest.raises(ValueError, match=r"smoke, quick, default, thorough. Received: 'slow'"):
        profiles.start("slow")


@pytest.mark.parametrize(
    "path", ["keras.layers:NoSuchLayer", "no_such_module:Layer", "BatchNormalization", ""]
)
def test_a_wrong_import_path_is_refused(path):
    with pytest.raises(ValueError, match=r"Expected an import path 'module:Class'.*Received: "):
        network.resolve(path)


def test_drift_needs_the_same_parameters():
    traces = [training.train(replace(SHORT, **network.METHODS[m], trace=True)) for m in ("BN", "WN")]
    with pytest.raises(ValueError, match="Expected two traces of the same parameters"):
        equivalence.drift(*traces)


def test_a_wrapper_stands_where_a_kernel_is():
    with pytest.raises(
        ValueError, match=r"Expected a wrapper where there is a kernel.*Received: where=\('relu',\)"
    ):
        network.build((28, 28, 1), "normlib:WeightNormalization", where=("relu",))
