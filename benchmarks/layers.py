"""Time the layers, forward and backward, against Keras's and others in one interleaved run.

    python benchmarks/layers.py [--json FILE] [--rounds N] [--threads N]

The noise of a shared machine is larger than most differences: only ratios within one run mean anything, and only if a
second run agrees.
"""

import argparse
import contextlib
import functools
import itertools
import json
import os
import re
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from tqdm import tqdm

import normlib

# Name and case, shape, the layer here and in Keras (None: weight normalization, of a kernel of this shape), arguments.
ROWS = [
    ("BN", (100, 28, 28, 30), "BatchNormalization", {}),
    ("BN", (64, 32, 32, 64), "BatchNormalization", {}),
    ("BN", (128, 8, 8, 256), "BatchNormalization", {}),
    ("LN(C)", (100, 28, 28, 30), "LayerNormalization", {}),
    ("LN(C)", (64, 128, 256), "LayerNormalization", {}),
    ("LN(C)", (8, 512, 768), "LayerNormalization", {}),
    ("LN(HWC)", (100, 28, 28, 30), "LayerNormalization", {"axis": [1, 2, 3]}),
    ("GN6", (100, 28, 28, 30), "GroupNormalization", {"groups": 6}),
    ("IN", (100, 28, 28, 30), "GroupNormalization", {"groups": -1}),
    ("RMS", (100, 28, 28, 30), "RMSNormalization", {}),
    ("RMS", (64, 128, 256), "RMSNormalization", {}),
    ("WN", (5880, 100), None, {}),
    ("BN, masked", (64, 128, 256), "BatchNormalization", {}),
    ("BN, inference", (100, 28, 28, 30), "BatchNormalization", {}),
    ("BN, small", (100, 100), "BatchNormalization", {}),
    ("LN(C), small", (100, 100), "LayerNormalization", {}),
    ("GN4, small", (10, 8, 8, 16), "GroupNormalization", {"groups": 4}),
    ("RMS, small", (100, 100), "RMSNormalization", {}),
    ("BN, blocks", (100, 100), "BatchNormalization", {}),
    ("LN(C), blocks", (100, 100), "LayerNormalization", {}),
    ("GN4, blocks", (10, 8, 8, 16), "GroupNormalization", {"groups": 4}),
]
# A small layer's time is its call's (`call_ms`). In a network that counts less: such rows have so many residual blocks.
BLOCKS = 8


def contenders(name, shape, layer, arguments):
    """What is timed in a row: name -> a function of (x, dy) that gives the output and all gradients."""
    own = functools.partial(own_layer, name, layer, arguments)
    plain = functools.partial(Plain, name, arguments.get("groups", 0))
    case = name.partition(", ")[2]
    found = {"own_ms": step(own, case, shape), "own_jit_ms": step(own, case, shape, jit=True)}
    if case not in ("masked", "inference"):
        found["autodiff_ms"] = step(plain, case, shape)
    if layer:
        theirs = functools.partial(getattr(keras.layers, layer), **arguments)
        found["keras_ms"] = step(theirs, case, shape)
        found["keras_jit_ms"] = step(theirs, case, shape, jit=True)
    if case == "small":
        found["call_ms"] = call(own, shape)
        # called as they are, as in a notebook
        found |= {f"{whose}_eager_ms": found[f"{whose}_ms"].python_function for whose in ("own", "keras")}
    if name == "BN" and len(shape) == 4:
        found["fused_ms"] = step(Fused, case, shape)
    if case in ("", "small") and (torch_step := torch_contender(name, shape)):
        found["torch_ms"] = torch_step
    return found


def own_layer(name, layer, arguments):
    """The layer of this project in a row."""
    if layer is None:
        return Weights()
    return normlib.InstanceNormalization() if name == "IN" else getattr(normlib, layer)(**arguments)


class Weights(keras.layers.Layer):
    """The map under weight normalization: its input is a kernel, each column one weight vector."""

    def build(self, shape):
        self.g = self.add_weight(shape=(1, shape[-1]), initializer="ones")

    def call(self, v):
        return normlib.weight_normalize(v, self.g.value, (0,))


def step(make, case, shape, jit=False):
    """Forward and backward in one compiled function: of a layer, or of residual blocks that each end in one."""
    blocks = BLOCKS if case == "blocks" else 0
    layers = [make() for _ in range(blocks or 1)]
    for layer in layers:
        layer.build(shape)
    options = call_options(layer, case, shape)
    variables = [v.value for layer in layers for v in layer.trainable_variables]
    kernels = np.random.default_rng(0).normal(size=(blocks, shape[-1], shape[-1])) / np.sqrt(shape[-1])
    kernels = [tf.constant(w, "float32") for w in kernels]

    @tf.function(jit_compile=jit, autograph=False)
    def function(x, dy):
        with tf.GradientTape() as tape:
            tape.watch([x, *kernels])
            y = x
            for layer, w in itertools.zip_longest(layers, kernels):
                y = layer(y if w is None else y + tf.nn.relu(tf.tensordot(y, w, 1)), **options)
        return y, tape.gradient(y, [x, *variables, *kernels], dy)

    return function


def call_options(layer, case, shape):
    """What a layer's call takes beside its input."""
    if "BatchNormalization" not in type(layer).__name__:
        return {}
    # Sequences of any length up to the longest: half of the positions count.
    lengths = np.random.default_rng(0).integers(1, shape[1], shape[0])
    mask = {"mask": tf.sequence_mask(lengths, shape[1])} if case == "masked" else {}
    return {"training": case != "inference"} | mask


def call(make, shape):
    """A compiled function that takes and gives what a layer's step does, and computes next to nothing of it."""
    layer = make()
    layer.build(shape)

    @tf.function(jit_compile=True, autograph=False)
    def function(x, dy):
        for variable in layer.non_trainable_variables:
            variable.assign(variable.value + 1.0)
        return x + 1.0, [dy + 1.0, *(v.value + 1.0 for v in layer.trainable_variables)]

    return function


class Plain(keras.layers.Layer):
    """The textbook formula, differentiated by TensorFlow."""

    def __init__(self, name, groups):
        super().__init__()
        self.kind, self.groups = re.match("[A-Z]+", name)[0], groups
        self.whole = "HWC" in name

    def build(self, shape):
        size = shape[1:] if self.whole else shape[-1:]
        self.gamma = self.add_weight(shape=size, initializer="ones")
        self.beta = (
            self.add_weight(shape=size, initializer="zeros") if self.kind not in ("RMS", "WN") else None
        )

    def call(self, x):
        rank = x.shape.rank
        if self.kind == "WN":
            y = x / tf.sqrt(tf.reduce_sum(tf.square(x), 0, keepdims=True))
        elif self.kind == "GN":
            shape = [x.shape[0], -1, self.groups, x.shape[-1] // self.groups]
            y = tf.reshape(self._normalize(tf.reshape(x, shape), (1, 3)), x.shape)
        else:
            whole = tuple(range(1, rank))
            axes = {
                "BN": tuple(range(rank - 1)),
                "IN": whole[:-1],
                "LN": whole if self.whole else (-1,),
                "RMS": (-1,),
            }
            y = self._normalize(x, axes[self.kind])
        y = y * self.gamma
        return y if self.beta is None else y + self.beta

    def _normalize(self, x, axes):
        mean = 0.0 if self.kind == "RMS" else tf.reduce_mean(x, axes, keepdims=True)
        variance = tf.reduce_mean(tf.square(x - mean), axes, keepdims=True)
        return (x - mean) / tf.sqrt(variance + 1e-3)


class Fused(keras.layers.Layer):
    """TensorFlow's raw fused kernel."""

    def build(self, shape):
        self.gamma = self.add_weight(shape=shape[-1:], initializer="ones")
        self.beta = self.add_weight(shape=shape[-1:], initializer="zeros")

    def call(self, x):
        return tf.compat.v1.nn.fused_batch_norm(x, self.gamma.value, self.beta.value)[0]


def torch_contender(name, shape):
    """The same in PyTorch, if it is installed; its images are channels-last in memory."""
    try:
        import torch
    except ImportError:
        return None
    channels = shape[-1]
    kind = name.split(",")[0]
    if kind == "WN":
        g = torch.ones(1, channels, requires_grad=True)

        def weights(v, dw):
            torch._weight_norm(torch.from_numpy(v.numpy()).requires_grad_(), g, 1).backward(
                torch.from_numpy(dw.numpy())
            )

        return weights
    make = {
        "BN": lambda: torch.nn.BatchNorm2d(channels) if len(shape) == 4 else torch.nn.BatchNorm1d(channels),
        "LN(C)": lambda: torch.nn.LayerNorm(channels),
        "LN(HWC)": lambda: torch.nn.LayerNorm(shape[1:]),
        "RMS": lambda: torch.nn.RMSNorm(channels),
        "IN": lambda: torch.nn.InstanceNorm2d(channels, affine=True),
    }.get(kind, lambda: torch.nn.GroupNorm(int(kind[2:]), channels))
    layer = make()
    images = len(shape) == 4 and kind not in ("LN(C)", "LN(HWC)", "RMS")

    def function(x, dy):
        x, dy = torch.from_numpy(x.numpy()), torch.from_numpy(dy.numpy())
        if images:  # a view: the channels move to the front, the memory stays
            x, dy = x.permute(0, 3, 1, 2), dy.permute(0, 3, 1, 2)
        x.requires_grad_()
        y = layer(x)
        y.backward(dy)

    return function


def saved_bytes(layer, case, shape):
    """The bytes that the forward pass keeps for the backward pass: what backward operations read of forward ones."""
    with tf.Graph().as_default() as graph:
        x, dy = (tf.compat.v1.placeholder("float32", shape) for _ in range(2))
        layer.build(shape)
        y = layer(x, **call_options(layer, case, shape))
        forward = set(graph.get_operations()) - {dy.op}
        tf.compat.v1.gradients(y, [x, *(v.value for v in layer.trainable_variables)], dy)
        read = {
            _origin(tensor).ref(): tensor
            for operation in set(graph.get_operations()) - forward
            for tensor in operation.inputs
            if tensor.op in forward and tensor.dtype == tf.float32 and tensor.op.type != "Const"
        }
    return int(sum(np.prod(tensor.shape.as_list()) * 4 for tensor in read.values()))


def _origin(tensor):
    """The tensor whose memory this one shares."""
    while tensor.op.type in ("Identity", "IdentityN"):
        tensor = tensor.op.inputs[tensor.value_index]
    return tensor


def bandwidth():
    """Bytes a second that a copy of a large array reads and writes."""
    source = np.ones(2**25, "float32")
    target = np.empty_like(source)
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - started)
    return 2 * source.nbytes / float(np.median(seconds))


def measure(functions, x, dy, rounds):
    """Median milliseconds of each function, all taking turns, in an order drawn anew each round.

    What ran before leaves the caches warm or cold, which on small tensors counts for more than the difference.
    """
    order, rng = list(functions), np.random.default_rng(0)
    for function in functions.values():
        for _ in range(3):
            function(x, dy)
    times = {name: [] for name in functions}
    for _ in range(rounds):
        rng.shuffle(order)
        for name in order:
            started = time.perf_counter()
            functions[name](x, dy)
            times[name].append(1e3 * (time.perf_counter() - started))
    return {name: float(np.median(values)) for name, values in times.items()}


def main(arguments=None):
    """Print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", help="file for the rows")
    parser.add_argument("--rounds", type=int, default=50, help="how often each contender is timed")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of TensorFlow and PyTorch")
    options = parser.parse_args(arguments)
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    with contextlib.suppress(ImportError):  # PyTorch is a peer where it is installed
        import torch

        torch.set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    speed, rows = bandwidth(), []
    for name, shape, layer, arguments_of_layer in tqdm(ROWS, file=sys.stderr):
        x, dy = (tf.constant(rng.normal(size=shape), "float32") for _ in range(2))
        small = np.prod(shape) < normlib.COMPILE_FROM
        times = measure(
            contenders(name, shape, layer, arguments_of_layer), x, dy, options.rounds * (40 if small else 1)
        )
        # At least x is read and y written, then x and dy read and dx written.
        floor = np.nan if "blocks" in name else 1e3 * 5 * 4 * np.prod(shape) / speed
        own = own_layer(name, layer, arguments_of_layer)
        rows.append(
            {"layer": name, "shape": list(shape)}
            | times
            | {"floor_ms": float(floor), "saved_bytes": saved_bytes(own, name.partition(", ")[2], shape)}
        )
    table = pd.DataFrame(rows)
    own = table[["own_ms", "own_jit_ms"]].min(axis=1)
    table["vs keras"] = table["keras_ms"] / table["own_ms"]
    table["vs best keras"] = table[["keras_ms", "keras_jit_ms"]].min(axis=1) / own
    table["call / own"] = table["call_ms"] / own
    table["eager vs keras"] = table["keras_eager_ms"] / table["own_eager_ms"]
    table["vs autodiff"] = table["autodiff_ms"] / own
    if "torch_ms" in table:
        table["vs torch"] = table["torch_ms"] / own
    table["of floor"] = table["floor_ms"] / own
    table["saved / input"] = [
        b / (4 * np.prod(s)) for b, s in zip(table["saved_bytes"], table["shape"], strict=True)
    ]
    print(table.drop(columns="saved_bytes").round(2).to_string(index=False))
    large = ~table["layer"].str.contains(", ")
    means = {
        column: float(np.exp(np.log(table.loc[large, column]).mean()))
        for column in table.columns
        if column.startswith("vs ")
    }
    for column, mean in means.items():
        behind = (table[column] < 1).sum()
        print(f"geometric mean {column}, large shapes: {mean:.2f}; rows behind, of all: {behind}")
    if options.json:
        found = {"rows": json.loads(table.to_json(orient="records")), "geometric means, large shapes": means}
        with open(options.json, "w") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
