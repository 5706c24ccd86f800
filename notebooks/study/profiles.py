"""How much a profile computes: its runs' lengths and seeds. What a single run gives does not depend on it."""

from study import data
from study.training import Run

# How much is computed, and so how much may be claimed.
PROFILES = {
    "smoke": {"sample": True, "steps": 40, "evaluate_every": 10, "seeds": 3},
    "quick": {"sample": False, "steps": 30, "evaluate_every": 15, "measured_images": 2_000, "seeds": 2},
    "default": {"sample": False, "steps": 500, "evaluate_every": 100, "seeds": 3},
    "thorough": {"sample": False, "steps": 2750, "evaluate_every": 100, "seeds": 8},
}


def start(name, dataset="fashion_mnist", seed=2612):
    """The Run that a profile's runs start from, and its seeds.

    Args:
        name: "smoke" (the embedded sample, a few steps) or "quick" (the full data, for use by hand), of which nothing
            may be claimed; "default" or "thorough".
        dataset: name of the data set; where its full data cannot be had, the sample takes its place.
        seed: the first of the seeds.

    Returns:
        (Run, list of seeds)
    """
    if name not in PROFILES:
        raise ValueError(f"Expected a profile among {', '.join(PROFILES)}. Received: {name!r}")
    settings = dict(PROFILES[name])
    seeds = [seed + k for k in range(settings.pop("seeds"))]
    sample = settings.pop("sample") or data.load_or_sample(dataset).is_sample
    return Run(dataset=dataset, seed=seed, sample=sample, **settings), seeds
