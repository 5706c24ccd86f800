"""The examination of a reader's own layer: equal layers pass, planted faults are found and named."""

import json

import keras
import pytest
import tensorflow as tf

from study import equivalence, examination, faulty

REFERENCES = {"Batch": "keras.layers:BatchNormalization", "Layer": "keras.layers:LayerNormalization"}


def examine(candidate, reference, options=(), **more):
    return examination.examine(candidate, reference, tuple(options), steps=40, jobs=2, **more)


@pytest.mark.slow
@pytest.mark.parametrize("kind", REFERENCES)
def test_own_layers_are_the_same(kind):
    certificate = examine(f"normlib:{kind}Normalization", REFERENCES[kind])
    assert certificate.same, certificate.text()
    assert certificate.causes == ()
    assert json.loads(certificate.json())["same"] is True


def causes(candidate, reference, options=()):
    return examination._causes(candidate, reference, tuple(options))


@pytest.mark.parametrize("fault", [name for name in faulty.FAULTS if name != "none"])
def test_each_planted_fault_is_named(fault):
    class Candidate(faulty.FaultyBatchNormalization):
        def __init__(self, **options):
            super().__init__(**options | {"fault": fault})

    globals()["Candidate"] = Candidate
    (cause,) = causes(f"{__name__}:Candidate", REFERENCES["Batch"])
    assert faulty.FAULTS[fault] in cause


class OtherEpsilon(keras.layers.BatchNormalization):
    def __init__(self, **options):
        super().__init__(**options | {"epsilon": 1e-5})


class ReversedMomentum(keras.layers.BatchNormalization):
    def __init__(self, **options):
        super().__init__(**options)
        self.momentum = 1 - self.momentum


class OtherAxis(keras.layers.LayerNormalization):
    def __init__(self, **options):
        super().__init__(**options | {"axis": 1})


class ParametersOfTheWholeImage(keras.layers.LayerNormalization):
    def build(self, shape):
        self.gamma = self.add_weight(shape=shape[1:], initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=shape[1:], name="beta")

    def call(self, x):
        mean, variance = tf.nn.moments(x, [-1], keepdims=True)
        return (x - mean) * tf.math.rsqrt(variance + self.epsilon) * self.gamma + self.beta


class ListedTwice(keras.layers.BatchNormalization):
    @property
    def trainable_variables(self):
        return super().trainable_variables * 2


class Crashes(keras.layers.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        raise RuntimeError("no idea")


@pytest.mark.parametrize(
    ("candidate", "kind", "message"),
    [
        ("OtherEpsilon", "Batch", "epsilon is 1e-05 rather than 0.001"),
        ("ReversedMomentum", "Batch", "momentum is the weight of the new value"),
        ("OtherAxis", "Layer", "normalizes axis 1"),
        ("ParametersOfTheWholeImage", "Layer", "shapes [(6, 5, 4), (6, 5, 4)] rather than [(4,), (4,)]"),
        ("ListedTwice", "Batch", "more than once"),
    ],
)
def test_what_is_otherwise_is_named(candidate, kind, message):
    (cause,) = causes(f"{__name__}:{candidate}", REFERENCES[kind])
    assert message in cause


def test_a_layer_that_crashes_is_reported(monkeypatch):
    monkeypatch.setattr(equivalence, "paired_training", lambda *_: 1 / 0)
    certificate = examine(f"{__name__}:Crashes", REFERENCES["Batch"])
    assert not certificate.same
    assert set(certificate.checks.verdict) == {"fails"}
    assert "no idea" in certificate.text()


def test_the_command_line(capsys, monkeypatch, tmp_path):
    apart = {"float64": 0.0, "float32": 0.0, "twin": 1.0, "rounding": 1.0, "steps": 3}
    monkeypatch.setattr(equivalence, "paired_training", lambda *_: apart)
    file = tmp_path / "certificate.json"
    assert equivalence.main(["normlib:BatchNormalization", "--set", "epsilon=0.01", "--json", str(file)]) == 0
    assert "is the same as keras.layers:BatchNormalization" in capsys.readouterr().out
    assert json.loads(file.read_text())["candidate"] == "normlib:BatchNormalization"
    assert equivalence.main(["normlib:LayerNormalization"]) == 1
    with pytest.raises(SystemExit) as stopped:
        equivalence.main(["nowhere:Nothing"])
    assert stopped.value.code == 2
