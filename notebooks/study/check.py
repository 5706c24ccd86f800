"""The parameters of a notebook: a wrong one is refused before anything runs."""

from study import data, network, profiles, tuning

# Of each parameter, a value of its type.
COMMON = {"PROFILE": "quick", "DATASET": "fashion_mnist", "SEED": 0, "JOBS": 0}
OTHERS = {"CANDIDATE": "module:Class", "REFERENCE": "module:Class", "METHODS": ["none"]}


def parameters(namespace, *others):
    """Check the parameters that a notebook has, once those it was given are set.

    Args:
        namespace: the notebook's globals.
        others: names of its parameters beside PROFILE, DATASET, SEED and JOBS.

    Raises:
        TypeError, ValueError: an unknown name, in capitals or but for them; a wrong type; a value that does not exist.
    """
    defaults = COMMON | {name: OTHERS[name] for name in others}
    given({n: v for n, v in namespace.items() if n.isupper() or n.upper() in defaults}, defaults)
    for name in {"CANDIDATE", "REFERENCE"} & set(others):
        if not isinstance(network.resolve(namespace[name]), type):
            raise ValueError(f"Expected {name} to name a class. Received: {namespace[name]!r}")


def given(values, defaults):
    """Check values by name against defaults, whose types they must have. Import paths are not followed."""
    for name, value in values.items():
        if name not in defaults:
            raise ValueError(f"Expected a parameter among {', '.join(defaults)}. Received: {name}={value!r}")
        kind = type(defaults[name])
        if type(value) is not kind:
            raise TypeError(f"Expected {name} of type {kind.__name__}. Received: {name}={value!r}")
        choices = {"PROFILE": profiles.PROFILES, "DATASET": data.FILES, "METHODS": network.METHODS}.get(name)
        if choices and not set([value] if kind is str else value) <= set(choices):
            raise ValueError(f"Expected {name} among {', '.join(choices)}. Received: {name}={value!r}")
        if name == "METHODS" and not set(tuning.MAIN) <= set(value):
            raise ValueError(f"Expected METHODS with {', '.join(tuning.MAIN)}. Received: {name}={value!r}")
        if kind is int and value < 0:
            raise ValueError(f"Expected {name} of at least 0. Received: {name}={value!r}")
