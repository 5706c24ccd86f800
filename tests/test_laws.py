"""The exact facts about normalization, on random shapes, epsilons, offsets and scales."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from study import laws

SETTINGS = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
CASES = st.builds(
    laws.Case,
    seed=st.integers(0, 2**31),
    shape=st.tuples(st.integers(2, 6), st.integers(2, 5), st.integers(2, 5), st.sampled_from([2, 4, 6, 10])),
    epsilon=st.sampled_from([1e-8, 1e-5, 1e-3, 1.0]),
    mean=st.sampled_from([0.0, 1.0, -30.0]),
    std=st.sampled_from([0.1, 1.0, 20.0]),
)


@pytest.mark.parametrize("name", laws.LAWS)
@SETTINGS
@given(case=CASES)
def test_a_law_holds(name, case):
    claim, measure = laws.LAWS[name]
    assert measure(case) <= laws.TOLERANCE, claim


def test_a_law_that_all_but_one_method_keeps_fails_where_that_one_keeps_it(monkeypatch):
    """BN in inference is like the others: then what is said of BN in training is wrong."""
    for name in ("accumulation_is_exact_without_bn", "samples_are_independent_without_bn"):
        monkeypatch.setattr(laws, "call", lambda layer, x: layer(x))
        assert laws.LAWS[name][1](laws.Case()) == 1.0


def test_the_length_law_needs_epsilons_share(monkeypatch):
    monkeypatch.setattr(laws, "radial_gradient", lambda *_: 0.0)
    assert laws.LAWS["symmetries_conserve"][1](laws.Case()) > 10 * laws.TOLERANCE


@SETTINGS
@given(
    case=st.builds(
        laws.Case,
        seed=st.integers(0, 2**31),
        shape=st.tuples(*[st.integers(5, 7)] * 3, st.sampled_from([3, 6])),
        std=st.sampled_from([0.1, 1.0, 20.0]),
    )
)
def test_the_table_of_invariances(case):
    changes, expected = laws.invariance_table(case)
    assert np.all(changes[expected] < laws.TOLERANCE)
    assert np.all(changes[~expected] > 1e-4)
