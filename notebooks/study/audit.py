"""Are published runs what the code gives? Some, picked at random, are trained anew and compared."""

import argparse
import ast
import dataclasses
import json
import os
import pathlib
import random
import sys
import tempfile

import pandas as pd

from study import data, equivalence, running, training

SAME, CLOSE, OTHER = "the same bits", "not the same bits, but close", "differs"
# What tells whether runs of other bits are close, and how close; the second where no accuracy was measured.
MEASURES = {"final_accuracy": 0.01, "final_training_loss": 0.01}  # of 1; nats


def published(path):
    """The runs of a results.json: list of (Run, its row)."""
    rows = json.loads(pathlib.Path(path).read_text())["runs"]
    found = {}
    for row in rows:
        fields = {f.name: row[f.name] for f in dataclasses.fields(training.Run) if f.name in row}
        for name in ("options", "where"):
            fields[name] = ast.literal_eval(fields[name])
        found[training.Run(**fields)] = row
    return list(found.items())


def at_hand(runs):
    """Of published runs, those whose data can be had here, and why the data of the others cannot.

    Returns:
        list of (Run, row), and dict (data set, whether its sample) -> DataError.
    """
    missing = {}
    for name, sample in dict.fromkeys((run.dataset, run.sample) for run, _ in runs):
        try:
            training.load(name, sample)
        except data.DataError as error:
            missing[name, sample] = error
    return [(run, row) for run, row in runs if (run.dataset, run.sample) not in missing], missing


def audit(chosen, jobs=0):
    """Train runs anew, whatever is kept of them.

    Args:
        chosen: list of (Run, row) of `published`.
        jobs: as in `running.run_all`.

    Returns:
        DataFrame with a row for each: what it is, one of MEASURES as published and now, and the verdict.
    """
    with tempfile.TemporaryDirectory() as empty:
        before = dict(os.environ)
        os.environ["NORMLIB_CACHE"] = empty
        os.environ.pop("NORMLIB_CLUSTER", None)  # its workers have caches of their own
        try:
            again = running.run_all([run for run, _ in chosen], jobs, "audit")
        finally:
            os.environ.clear()
            os.environ.update(before)
    rows = []
    for run, row in chosen:
        history = again[run]
        # What was not measured, or left the finite numbers, stands there as a word.
        measure = next((name for name in MEASURES if isinstance(row.get(name), float)), "final_accuracy")
        then, now = float(row[measure]), history.row()[measure]
        same = history.weights_hash == row["weights_hash"]
        rows.append(
            {
                "run": f"{run.norm or 'none'}, seed {run.seed}, {run.steps:,} steps",
                "measure": measure.replace("_", " "),
                "published": then,
                "now": now,
                "verdict": SAME if same else CLOSE if abs(now - then) <= MEASURES[measure] else OTHER,
            }
        )
    return pd.DataFrame(rows)


def main(arguments=None):
    """The command line; exit code 1 if a run differs, 3 if the data of none can be had."""
    parser = argparse.ArgumentParser(prog="python -m study.audit", description=__doc__)
    parser.add_argument("results", type=pathlib.Path, help="a results.json")
    parser.add_argument("--runs", type=equivalence.positive, default=5, help="how many (default: 5)")
    parser.add_argument("--seed", type=int, help="of the choice (default: another one each time)")
    parser.add_argument("--jobs", type=int, default=0, help="trainings at a time; 0 for one on each core")
    options = parser.parse_args(arguments)
    if options.jobs < 0:
        parser.error(f"Expected --jobs of at least 0. Received: {options.jobs}")
    try:
        every = published(options.results)
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(
            f"Expected a results.json. Received: {options.results} ({type(error).__name__}: {error})"
        )
    runs, missing = at_hand(every)
    if missing:
        print(
            f"{len(every) - len(runs)} of {len(every)} published runs are left out, for want of their data."
        )
        print(*missing.values(), sep="\n")
    if not runs:
        print("Expected published runs whose data can be had. Received: none", file=sys.stderr)
        sys.exit(3)
    seed = random.randrange(10_000) if options.seed is None else options.seed
    print(f"{min(options.runs, len(runs))} of {len(runs)} published runs, chosen by seed {seed}:")
    table = audit(random.Random(seed).sample(runs, min(options.runs, len(runs))), options.jobs)
    print(table.to_string(index=False))
    sys.exit(int((table.verdict == OTHER).any()))


if __name__ == "__main__":
    main()
