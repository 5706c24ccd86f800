"""Time the study's training against Keras's `fit`, all taking turns in one run.

    python benchmarks/training.py [--json FILE] [--rounds N] [--steps N]

Each contender lives in a process of its own and waits for its turn. `own_ms` is one process with all cores, `none_ms`
the same without normalization, `single_ms` one with one thread, `pair_ms` two of these at once, as in the study,
counted per step of either; `fit_ms` is Keras's model with Keras's layers under `fit` at its best settings (batches in
memory, many steps in one call, all cores, and without the determinism that the study asks of TensorFlow).
"""

import argparse
import json
import multiprocessing
import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pandas as pd
from tqdm import tqdm

METHODS = ("none", "BN", "LN", "WN")


def serve(kind, method, threads, steps, connection):
    """A contender: for each message, train some steps and send the milliseconds per step."""
    from study import data, network, training  # isort: skip  # first: it switches oneDNN on, here for Keras too

    import keras
    import tensorflow as tf
    from tensorflow.python.framework import config as tensorflow_config

    if kind == "keras":
        tensorflow_config.disable_op_determinism()

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    dataset = data.load(sample=True)
    settings = network.METHODS if kind == "own" else network.REFERENCES | {"none": {}}
    run = training.Run(sample=True, steps=steps, **settings[method])
    order = training.batch_order(len(dataset.x_train), run)
    if kind == "own":
        stretch, images = training.program_of(run).stretch, tf.constant(order)

        def turn():
            stretch(tf.constant(0), tf.constant(steps), images, tf.constant(run.learning_rate))
    else:
        model = network.build(dataset.x_train.shape[1:], run.norm, run.options, run.where)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(
            keras.optimizers.SGD(run.learning_rate), loss, steps_per_execution=steps // 2, jit_compile=False
        )
        x, y = dataset.x_train[order.ravel()], dataset.y_train[order.ravel()]

        def turn():
            model.fit(x, y, batch_size=run.batch_size, shuffle=False, verbose=0)

    turn()
    connection.send("ready")
    while connection.recv():
        started = time.perf_counter()
        turn()
        connection.send(1e3 * (time.perf_counter() - started) / steps)


def measure(method, rounds, steps):
    """Median milliseconds per step of each contender."""
    cores, context = os.cpu_count(), multiprocessing.get_context("spawn")
    kinds = {"own_ms": ("own", method, cores), "none_ms": ("own", "none", cores)}
    kinds |= {name: ("own", method, 1) for name in ("pair_0", "pair_1")}
    if method != "WN":  # Keras has no weight normalization
        kinds["fit_ms"] = ("keras", method, cores)
    lines = {}
    for name, (kind, trained, threads) in kinds.items():
        lines[name], end = context.Pipe()
        context.Process(target=serve, args=(kind, trained, threads, steps, end), daemon=True).start()
        end.close()  # here: a contender that dies ends the wait for it
        lines[name].recv()
    turns = {name: [name] for name in ("own_ms", "none_ms")}
    turns |= {"single_ms": ["pair_0"], "pair_ms": ["pair_0", "pair_1"]}
    if "fit_ms" in lines:
        turns["fit_ms"] = ["fit_ms"]
    times = {name: [] for name in turns}
    for _ in range(rounds):
        for name, values in times.items():
            turn = [lines[line] for line in turns[name]]
            for line in turn:
                line.send(True)
            values.append(np.mean([line.recv() for line in turn]) / len(turn))
    for line in lines.values():
        line.send(False)
    return {name: float(np.median(values)) for name, values in times.items()}


def main(arguments=None):
    """Print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", help="file for the rows")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contender")
    parser.add_argument("--steps", type=int, default=50, help="steps in a turn, even")
    options = parser.parse_args(arguments)
    if options.steps < 2 or options.steps % 2:
        parser.error(f"Expected an even number of steps. Received: {options.steps}")
    rows = [
        {"method": method} | measure(method, options.rounds, options.steps)
        for method in tqdm(METHODS, file=sys.stderr)
    ]
    table = pd.DataFrame(rows)
    table["fit / own"] = table["fit_ms"] / table["own_ms"]
    table["fit / pair"] = table["fit_ms"] / table["pair_ms"]
    table["single / pair"] = table["single_ms"] / table["pair_ms"]
    table["over none"] = table["own_ms"] - table["none_ms"]
    print(table.round(2).to_string(index=False))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(json.loads(table.to_json(orient="records")), file, indent=1)


if __name__ == "__main__":
    main()
