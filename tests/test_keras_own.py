"""Keras's own tests of its normalization layers, as they are installed with it, with ours in their place."""

import importlib.util
import pathlib
import types

import keras
import pytest

import normlib

pytestmark = pytest.mark.filterwarnings("ignore")
OURS = {name: getattr(normlib, name) for name in normlib.__all__ if hasattr(keras.layers, name)}
RENORM = (
    "renorm",
    "test_serialization",
)  # batch renormalization, which is not offered, and a test that needs it


def with_ours(name):
    """The test case of a layer, its module's `layers` ours."""
    source = importlib.util.find_spec(f"keras.src.layers.normalization.{name}_test").origin
    module = types.ModuleType(f"{name}_test")
    exec(compile(pathlib.Path(source).read_text(), source, "exec"), vars(module))
    module.layers = types.SimpleNamespace(**vars(keras.layers) | OURS)
    [case] = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
    for test in [t for t in vars(case) if t.startswith("test") and any(word in t for word in RENORM)]:
        delattr(case, test)
    return case


BatchNormalizationTest = with_ours("batch_normalization")
LayerNormalizationTest = with_ours("layer_normalization")
GroupNormalizationTest = with_ours("group_normalization")
RMSNormalizationTest = with_ours("rms_normalization")


def test_the_tests_are_there_and_try_ours():
    assert set(OURS) == {"BatchNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization"}
    for case in (
        BatchNormalizationTest,
        LayerNormalizationTest,
        GroupNormalizationTest,
        RMSNormalizationTest,
    ):
        spaces = [test.__globals__ for name, test in vars(case).items() if name.startswith("test")]
        found = [space["layers"] for space in spaces if "layers" in space]  # the others are wrapped
        assert found and all(layers.RMSNormalization is normlib.RMSNormalization for layers in found)
