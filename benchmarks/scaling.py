"""How far a study's runs scale: measure what a run costs beside its steps, and simulate many workers from it.

    python benchmarks/scaling.py [--write]

With --write, the page report/scaling.md is written anew.
"""

import argparse
import dataclasses
import heapq
import os
import pathlib
import sys
import tempfile
import time

import pandas as pd
from distributed import Client, LocalCluster

from study import running, training

PAGE = pathlib.Path(__file__).resolve().parent.parent / "report" / "scaling.md"
TASKS = 2_000  # empty ones, by which the scheduler is timed
RUN = training.Run(sample=True, steps=20, evaluate_every=20, batch_size=20)


def nothing(number):
    return number


def measure():
    """Seconds: `start` of a worker until its first run is done, `around` a run beside its steps, `scheduler` for each
    task; and `bytes` of a kept run.
    """
    workers = {"threads_per_worker": 1, "dashboard_address": None}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NORMLIB_CACHE"] = folder
        began = time.perf_counter()
        with LocalCluster(n_workers=1, **workers) as cluster:
            os.environ["NORMLIB_CLUSTER"] = cluster.scheduler_address
            running.run_all([RUN])
            start = time.perf_counter() - began
        del os.environ["NORMLIB_CACHE"], os.environ["NORMLIB_CLUSTER"]
        kept = max(path.stat().st_size for path in pathlib.Path(folder).glob("*.run"))
    training.train(RUN)  # loads the data
    others = [
        dataclasses.replace(RUN, batch_size=RUN.batch_size + k) for k in range(1, 9)
    ]  # each a program of its own
    began = time.perf_counter()
    histories = [training.train(run) for run in others]
    steps = sum(h.milliseconds_per_step * h.run.steps for h in histories) / 1e3
    around = (time.perf_counter() - began - steps) / len(others)
    with LocalCluster(n_workers=2, **workers) as cluster, Client(cluster) as client:
        client.gather(client.map(nothing, range(100), pure=False))
        began = time.perf_counter()
        client.gather(client.map(nothing, range(TASKS), pure=False))
        scheduler = (time.perf_counter() - began) / TASKS
    return {"start": start, "around": around, "scheduler": scheduler, "bytes": kept}


def makespan(runs, workers, length, scheduler, start):
    """Seconds until all runs are done: a run waits for a worker, and for the scheduler, which serves one at a time.

    Args:
        runs, workers: how many.
        length: seconds of a run on a worker.
        scheduler: seconds that the scheduler is busy with a run.
        start: seconds until a worker can begin.
    """
    free, served, ended = [start] * workers, 0.0, 0.0
    heapq.heapify(free)
    for _ in range(runs):
        served = max(served, heapq.heappop(free)) + scheduler
        ended = max(ended, served + length)
        heapq.heappush(free, served + length)
    return ended


def table(found, lengths=(10.0, 60.0), counts=(100, 10_000), sizes=(2, 10, 100, 1_000, 10_000)):
    """What the simulation says: hours, and the share of the workers' time that goes into steps."""
    rows = []
    for length in lengths:
        for count in counts:
            for workers in (w for w in sizes if w <= count):
                seconds = makespan(
                    count, workers, length + found["around"], found["scheduler"], found["start"]
                )
                share = count * length / (workers * seconds)
                rows.append(
                    {
                        "seconds of steps in a run": f"{length:g}",
                        "runs": f"{count:,}",
                        "workers": f"{workers:,}",
                        "minutes": f"{seconds / 60:,.1f}",
                        "of the time in steps": f"{100 * share:.0f} %",
                    }
                )
    return pd.DataFrame(rows)


def page(found, rows):
    """The page, in Markdown."""
    most = (60.0 + found["around"]) / found["scheduler"]
    lines = [
        "| " + " | ".join(row) + " |" for row in [rows.columns, ["---:"] * len(rows.columns), *rows.values]
    ]
    return f"""# How far a study scales

Written by `python benchmarks/scaling.py --write`, from measurements on one machine and a simulation.

A study is a list of runs that know nothing of each other. `make report` trains them on this machine's cores;
`python report/build.py --cluster tcp://scheduler:8786` sends the same runs to the workers of a Dask cluster, which must
have this project installed, with the same versions, code and settings, on the same kind of processor: a worker that
differs refuses, and so the results are the same bits. A scheduler that is named there can run code on the machine that
names it: name only your own.

A Ray cluster is reached through joblib: `ray.util.joblib.register_ray()`, then `with joblib.parallel_config("ray"):
study.running.run_all(runs)`. Ray itself was not tried; what is tested is joblib's `multiprocessing`, from which Ray's
backend is derived. The machines should share the folder of kept runs: results come back all at the end, and what was
kept before is not lost. No more runs are trained at a time than fit into the memory of the machine that asks.

## What was measured

| what | measured |
|---|---:|
| a worker's start, with its first run | {found["start"]:.1f} s |
| around a run, beside its steps: the network is built, traced and compiled | {found["around"]:.2f} s |
| the scheduler's time for a run | {1e3 * found["scheduler"]:.2f} ms |
| a kept run, as it travels back | {found["bytes"] / 1e3:.0f} kB |

## What follows

A run waits for a free worker, and for the scheduler, which serves one run at a time:

{chr(10).join(lines)}

The scheduler can keep about {most:,.0f} workers busy with runs of a minute. Before that limit, what is lost is lost
around the runs: with short ones a good part of the time goes into building and compiling, and with as many workers as
runs the start counts fully. Runs that differ in seed or learning rate alone share what is compiled where one worker
trains them; here each is counted as if it were alone. What one would change then: workers that stay up between studies,
and a shared folder for the kept runs, so that results do not travel through the scheduler.

Not simulated: a network that is slow, machines of different speed, and workers that die (their runs are sent again).
"""


def main():
    """Measure, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="write report/scaling.md")
    options = parser.parse_args()
    found = measure()
    text = page(found, table(found))
    print(text)
    if options.write:
        PAGE.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
