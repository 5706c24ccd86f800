"""The examination of a reader's own layer: equal layers pass, planted faults are found and named."""

import json
import sys

import keras
import pytest
import tensorflow as tf

from study import equivalence, examination, faulty, network, training

BATCH, LAYER = "keras.layers:BatchNormalization", "keras.layers:LayerNormalization"
WEIGHT = network.REFERENCES["WN"]["norm"]
BASE = training.Run(sample=True, steps=6, batch_size=20)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def one_cache(own_cache, shared, monkeypatch):
    """The reference is trained once for all tests of this module."""
    monkeypatch.setenv("NORMLIB_CACHE", shared)


def examine(candidate, reference=BATCH, options=(), own=()):
    return examination.examine(candidate, reference, options, BASE.steps, jobs=1, base=BASE, own=tuple(own))


def verdicts(certificate):
    return dict(zip(certificate.checks.check, certificate.checks.verdict, strict=True))


# --- equal layers ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("candidate", "reference", "options"),
    [
        ("normlib:BatchNormalization", BATCH, ()),
        ("normlib:LayerNormalization", LAYER, (("axis", [1, 2, 3]),)),
        ("normlib:WeightNormalization", WEIGHT, ()),
        ("study.faulty:FaultyBatchNormalization", BATCH, ()),
    ],
)
def test_equal_layers_are_the_same(candidate, reference, options):
    certificate = examine(candidate, reference, options)
    assert certificate.same, certificate.text()
    assert certificate.causes == ()
    assert json.loads(certificate.json())["same"] is True
    trained = [name for name in verdicts(certificate) if "training" in name or "steps, float32" in name]
    assert len(trained) == 2


# --- planted faults, through the whole examination -----------------------------------------------------------------

PLANTED = [
    (f"study.faulty:Faulty{kind}Normalization", reference, {"fault": name}, text)
    for kind, reference, faults in (
        ("Batch", BATCH, faulty.FAULTS),
        (
            "Layer",
            LAYER,
            {f: faulty.FAULTS[f] for f in ("unbiased variance", "parameters of the whole sample")},
        ),
        ("Weight", WEIGHT, faulty.WEIGHT_FAULTS),
    )
    for name, text in faults.items()
    if name not in ("none", "one-pass variance")  # which give the same but for round-off
] + [
    ("normlib:BatchNormalization", BATCH, {"epsilon": 2e-4}, "epsilon is 0.0002 rather than 0.001"),
    (
        "normlib:BatchNormalization",
        BATCH,
        {"epsilon": 1e-5, "momentum": 0.97},
        "epsilon is 1e-05 rather than 0.001. Its momentum is 0.97 rather than 0.99",
    ),
    ("normlib:BatchNormalization", BATCH, {"momentum": 0.01}, "momentum is the weight of the new value"),
    (
        "normlib:LayerNormalization",
        LAYER,
        {"axis": (1, 2)},
        "shapes [(6, 5), (6, 5)] rather than [(4,), (4,)]. It norm",
    ),
    ("normlib:LayerNormalization", LAYER, {"axis": 1}, "normalizes axis 1"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("candidate", "reference", "own", "cause"), PLANTED)
def test_each_planted_fault_is_found_and_named(candidate, reference, own, cause):
    certificate = examine(candidate, reference, own=own.items())
    assert not certificate.same
    assert cause in " ".join(certificate.causes), certificate.text()
    assert cause in certificate.sentence
    json.loads(certificate.json(), parse_constant=pytest.fail)  # no NaN


@pytest.mark.slow
def test_float32_has_the_power_to_see_another_epsilon():
    found = verdicts(examine("normlib:BatchNormalization", own=[("epsilon", 1e-5)]))
    assert found["its first 5 steps, float32"] == "differs"
    assert found["output, float32"] == "differs"


class ListedTwice(keras.layers.BatchNormalization):
    @property
    def trainable_variables(self):
        return super().trainable_variables * 2


class WrongInInference(keras.layers.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=training) + (0.0 if training else 0.5)


class LosesCount(keras.layers.BatchNormalization):
    """Right in its first call in training, and then not any more."""

    def build(self, shape):
        super().build(shape)
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, dtype="int32")

    def call(self, inputs, training=None, mask=None):
        y = super().call(inputs, training=training)
        if training:
            later = tf.cast(self.calls > 0, self.moving_mean.dtype)
            self.moving_mean.assign_add(later * tf.ones_like(self.moving_mean))
            self.calls.assign_add(1)
        return y


class Crashes(keras.layers.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        raise RuntimeError("no idea")


class Leaves(keras.layers.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        sys.exit(0)


class OtherSignature(keras.layers.Layer):
    def __init__(self, channels, **options):
        super().__init__(**options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("candidate", "differing", "message"),
    [
        ("ListedTwice", {"updates at a step"}, "listed 2 times, so that an optimizer updates it repeatedly"),
        ("WrongInInference", {"inference, float32", "inference, float64"}, "wrong in inference alone"),
        ("LosesCount", {"moving statistics after it"}, "No known cause fits."),
    ],
)
def test_what_one_call_in_training_does_not_show_is_found(candidate, differing, message):
    certificate = examine(f"{__name__}:{candidate}")
    found = verdicts(certificate)
    found.pop("saving and loading")
    assert {name for name, verdict in found.items() if verdict != "same"} == differing, certificate.text()
    assert message in certificate.sentence


@pytest.mark.parametrize(("candidate", "message"), [("Crashes", "no idea"), ("Leaves", "SystemExit: 0")])
def test_a_layer_that_crashes_is_reported_and_not_trained(candidate, message):
    certificate = examine(f"{__name__}:{candidate}")
    found = verdicts(certificate)
    assert found["output, float64"] == "fails"
    assert not any("training" in name for name in found)
    assert message in certificate.text()


@pytest.mark.parametrize(
    ("candidate", "reference", "message"),
    [
        (f"{__name__}:OtherSignature", BATCH, "missing 1 required positional argument: 'channels'"),
        ("normlib:WeightNormalization", BATCH, "two layers, or two wrappers of layers with a kernel"),
        ("math:sqrt", BATCH, "TypeError"),
    ],
)
def test_what_cannot_be_compared_gets_one_clear_line(candidate, reference, message):
    certificate = examine(candidate, reference)
    assert list(verdicts(certificate).items()) == [("to be made and built", "fails")]
    assert message in certificate.checks.note[0]
    assert json.loads(certificate.json())["checks"][0]["measured"] is None


# --- the command line --------------------------------------------------------------------------------------------


def test_the_command_line(capsys, monkeypatch, tmp_path):
    near = {"float64": 0.0, "float32": 0.0, "twin": 1.0, "rounding": 1.0}
    apart = near | {"moving": 0.0, "early": near, "steps": 3}
    monkeypatch.setattr(equivalence, "paired_training", lambda *_, **__: apart)
    file = tmp_path / "certificate.json"
    assert equivalence.main(["normlib:BatchNormalization", "--set", "epsilon=0.01", "--json", str(file)]) == 0
    assert "is the same as keras.layers:BatchNormalization" in capsys.readouterr().out
    assert json.loads(file.read_text())["candidate"] == "normlib:BatchNormalization"
    assert equivalence.main(["normlib:BatchNormalization", "--set-candidate", "epsilon=0.01"]) == 1
    assert "epsilon is 0.01 rather than 0.001" in capsys.readouterr().out
    assert equivalence.main([f"{__name__}:Leaves"]) == 1


@pytest.mark.parametrize("source", ["import nowhere_at_all", "1 / 0", "def", "import sys; sys.exit(0)"])
def test_a_module_that_cannot_be_imported_is_told_so(source, capsys, monkeypatch, tmp_path):
    tmp_path.joinpath("broken_module.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_module", raising=False)
    with pytest.raises(SystemExit) as stopped:
        equivalence.main(["broken_module:Layer"])
    assert stopped.value.code == 2
    assert "broken_module:Layer cannot be imported" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "epsilon"], "Expected NAME=VALUE with a Python literal"),
        (["--set", "axis=one"], "Received: 'axis=one'"),
        (["--steps", "0"], "Expected a whole number from 1. Received: '0'"),
        (["--steps", "-3"], "Received: '-3'"),
        (["--steps", "many"], "Received: 'many'"),
    ],
)
def test_wrong_arguments_are_told_so(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        equivalence.main(["normlib:BatchNormalization", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
