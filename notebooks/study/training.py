"""Train the network: a `Run` says what, a `History` what happened.

Whole stretches of steps run inside one `tf.function`.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import math
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from study import data, network

HELD_OUT = 12  # of the training images, one in so many is kept back for choosing: 5,000 of 60,000
ORDER_STREAM = 1_000  # beside the streams of the layers' initial weights, numbered from 0
TRACED_ELEMENTS = 1_024
NOTHING = (math.nan, math.nan)  # accuracy and loss that were not measured
MOVING = "moving: "  # before the name of a weight that is not trained


@dataclasses.dataclass(frozen=True)
class Run:
    """All that decides the result of one training, and nothing else.

    Args:
        norm: import path of the normalization, such as "normlib:BatchNormalization". Default None: none.
        options: its arguments, as (name, value) pairs. Default: none.
        where: what is normalized, of PLACES. Default ("conv",).
        dataset: "fashion_mnist" (default), "mnist" or "cifar10".
        sample: whether the embedded sample takes the place of the full data. Default False.
        seed: fixes the initial weights and, by a separate stream, the order of the batches. Default 2612.
        weights_seed: another seed for the initial weights alone. Default None: `seed`.
        steps: number of updates. Default 2,750: five epochs of 55,000 images.
        batch_size: images in an update. Default 100.
        learning_rate: of plain stochastic gradient descent. Default 0.01.
        evaluate_every: steps between the first measurements on the test images (see `measured_steps`); None for none:
            the weights alone count. Default 100.
        measured_images: at most so many images are measured on, the first. Default None: all.
        dtype: "float32" (default) or "float64".
        nudge: if k > 0, the k-th weight of the convolution starts one unit in the last place higher. Default 0.
        bias: whether the convolution has a bias. Default True.
        repeat_updates: whether the normalization's parameters are updated t times at step t, as the study of 2019 did.
            Default False.
        validation: whether the accuracy is measured on the training images that are held out, instead of the test
            images; all that is chosen is chosen on these. Default False.
        test_at_end: whether, beside them, the test images are measured: once, after the last step. Default False.
        trace: whether the normalization's parameters are kept after every step (large ones by evenly spaced elements),
            and all weights at the end. Default False.

    Raises:
        ValueError: a count under 1, a place or a dtype of another name, updates of no norm repeated, or a test at the
            end of a run that is measured on the test images anyway.
    """

    norm: str | None = None
    options: tuple = ()
    where: tuple = ("conv",)
    dataset: str = "fashion_mnist"
    sample: bool = False
    seed: int = 2612
    weights_seed: int | None = None
    steps: int = 2750
    batch_size: int = 100
    learning_rate: float = 0.01
    evaluate_every: int | None = 100
    measured_images: int | None = None
    dtype: str = "float32"
    nudge: int = 0
    bias: bool = True
    repeat_updates: bool = False
    validation: bool = False
    test_at_end: bool = False
    trace: bool = False

    def __post_init__(self):
        counts = {"steps": self.steps, "batch_size": self.batch_size}
        counts |= {
            name: count
            for name in ("evaluate_every", "measured_images")
            if (count := getattr(self, name)) is not None
        }
        for name, count in counts.items():
            if count is None or count < 1:
                raise ValueError(f"Expected {name} of at least 1. Received: {name}={count}")
        if set(self.where) - set(network.PLACES):
            raise ValueError(
                f"Expected where among {', '.join(network.PLACES)}. Received: where={self.where!r}"
            )
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"Expected dtype 'float32' or 'float64'. Received: dtype={self.dtype!r}")
        if self.repeat_updates and self.norm is None:
            raise ValueError("Expected a norm whose updates can be repeated. Received: norm=None")
        if self.test_at_end and not self.validation:
            raise ValueError(
                "Expected validation=True where the test images wait for the end. Received: validation=False"
            )


@dataclasses.dataclass(frozen=True)
class History:
    """What happened in a run.

    Attributes:
        run: the Run.
        steps: int [m], the steps after which the test images (or those held out: see Run) were measured; if none were,
            the last, with nan for accuracy and loss.
        accuracy: float [m], fraction of these images classified correctly.
        loss: float [m], mean cross-entropy on these images, in nats.
        training_loss: float [steps], mean cross-entropy of each batch before its update, in nats.
        trace: the normalization's parameters after every step, name -> [steps, size]; empty unless asked for.
        weights: all trainable weights at the end, name -> array, and under MOVING + name the moving statistics; empty
            unless a trace was asked for.
        weights_hash: SHA-256 of all trainable weights at the end.
        milliseconds_per_step: median over the stretches between measurements.
        versions: name -> version of what computed it.
        test_accuracy: fraction of test images classified correctly after the last step; nan where they were not looked
            at.
    """

    run: Run
    steps: np.ndarray
    accuracy: np.ndarray
    loss: np.ndarray
    training_loss: np.ndarray
    trace: dict
    weights: dict
    weights_hash: str
    milliseconds_per_step: float
    versions: dict
    test_accuracy: float = float("nan")

    def row(self):
        """The run and its results as one flat record."""
        description = {
            k: str(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self.run).items()
        }
        return description | {
            "final_accuracy": float(self.accuracy[-1]),
            "final_loss": float(self.loss[-1]),
            "final_training_loss": float(self.training_loss[-1]),
            "test_accuracy": self.test_accuracy,
            "diverged": self.diverged,
            "weights_hash": self.weights_hash,
            "milliseconds_per_step": self.milliseconds_per_step,
        }

    def until(self, step):
        """The same history, as if the run had ended after the measurement at this step."""
        if step not in self.steps:
            raise ValueError(f"Expected a measured step, of {self.steps}. Received: {step}")
        measured = int(np.flatnonzero(self.steps == step)[0]) + 1
        return dataclasses.replace(
            self,
            run=dataclasses.replace(self.run, steps=int(step)),
            steps=self.steps[:measured],
            accuracy=self.accuracy[:measured],
            loss=self.loss[:measured],
            training_loss=self.training_loss[:step],
            trace={name: values[:step] for name, values in self.trace.items()},
            weights={},
            weights_hash="",
            test_accuracy=float("nan" if self.run.validation else self.accuracy[measured - 1]),
        )

    @property
    def diverged(self):
        """Whether the training left the finite numbers."""
        return not np.isfinite(self.training_loss).all()


def trained_on(dataset):
    """How many of the training images are trained on: all but those held out, which are the last."""
    return len(dataset.x_train) - len(dataset.x_train) // HELD_OUT


def batch_order(images, run):
    """The images of each step: int [steps, batch_size]. Each epoch is a new permutation; an odd rest is left out."""
    if run.batch_size > images:
        raise ValueError(
            f"Expected a batch of at most {images} images. Received: batch_size={run.batch_size}"
        )
    stream = np.random.default_rng(np.random.SeedSequence([run.seed, ORDER_STREAM]))
    per_epoch = images // run.batch_size
    epochs = -(-run.steps // per_epoch)
    order = [stream.permutation(images)[: per_epoch * run.batch_size] for _ in range(epochs)]
    return np.concatenate(order).reshape(-1, run.batch_size)[: run.steps].astype("int32")


def measured_steps(run):
    """The steps of a run after which it is measured: first every `evaluate_every`; whenever eight such intervals lie
    behind, the interval doubles, for a curve changes ever more slowly and a measurement takes as long as forty steps.
    The last is the last step."""
    interval, steps = run.evaluate_every or run.steps, [0]
    while steps[-1] < run.steps:
        if steps[-1] >= 8 * interval:
            interval *= 2
        steps.append(min(steps[-1] + interval, run.steps))
    return steps[1:]


def train(run, progress=None):
    """Train one network.

    Args:
        run: a Run.
        progress: called with the number of finished steps, now and then.

    Returns:
        A History. The same Run gives the same bits on the same machine type, but for the milliseconds.
    """
    program, data_of = program_of(run), tensors(run.dataset, run.sample)
    model, rate = program.model, tf.constant(run.learning_rate, run.dtype)
    order = tf.constant(batch_order(trained_on(load(run.dataset, run.sample)), run))
    watched, tested = (
        [values[: run.measured_images] for values in data_of[part]]
        for part in ("held out" if run.validation else "test", "test")
    )

    measured = measured_steps(run)
    training_loss, trace, scores, milliseconds = [], [], [], []
    for first, last in zip([0, *measured], measured, strict=False):
        started = time.perf_counter()
        losses, parameters = program.stretch(tf.constant(first), tf.constant(last), order, rate)
        training_loss.append(losses.numpy())
        trace.append(parameters.numpy())
        milliseconds.append(1e3 * (time.perf_counter() - started) / (last - first))
        scores.append(
            [value.numpy() for value in program.evaluate(*watched)] if run.evaluate_every else NOTHING
        )
        if progress:
            progress(last)

    weights = {_path(v): np.asarray(v) for v in model.trainable_variables}
    accuracy, loss = np.array(scores, "float64").T
    test_accuracy = float("nan") if run.validation else float(accuracy[-1])
    if run.test_at_end:
        test_accuracy = float(program.evaluate(*tested)[0])
    return History(
        run=run,
        steps=np.array(measured),
        accuracy=accuracy,
        loss=loss,
        training_loss=np.concatenate(training_loss).astype("float64"),
        trace=_split_trace(model, np.concatenate(trace)) if run.trace else {},
        weights=weights | _moving(model) if run.trace else {},
        weights_hash=hashlib.sha256(b"".join(w.tobytes() for w in weights.values())).hexdigest(),
        # The first stretch also traces and compiles the step.
        milliseconds_per_step=float(np.median(milliseconds[1:] or milliseconds)),
        versions=versions(),
        test_accuracy=test_accuracy,
    )


# What of a Run reaches a compiled function as a number: it is the same function whatever they are.
NUMBERS = {
    "seed": 0, "weights_seed": None, "nudge": 0, "learning_rate": 0.0, "steps": 1, "evaluate_every": 1,
    "measured_images": None, "validation": False, "test_at_end": False,
}  # fmt: skip
PROGRAMS = 32  # kept at a time: more than a search has methods
# Layers that hold all they know in variables. Whatever else another's layer may hold, it starts with each run anew.
SHARED = ("normlib:", "keras.", "study.")


class Program:
    """A network and its compiled functions.

    Attributes:
        model: the network.
        stretch: function of `first`, `last`, the images of each step and the learning rate, that makes the steps from
            `first` to `last`; gives the loss at each and the traced parameters after it.
        evaluate: function of images and labels; gives accuracy and loss.
    """

    def __init__(self, run):
        self.model = _network(run)
        self.stretch = _stretch(self.model, run)
        self.evaluate = _evaluation(self.model, run)


def program_key(run):
    """The Run that stands for all which share a run's compiled functions: they differ in NUMBERS alone."""
    return dataclasses.replace(run, **NUMBERS)


_shared_program = functools.lru_cache(PROGRAMS)(Program)


def program_of(run):
    """The Program of a run, its network at the run's initial weights: compiled once for all runs that differ in NUMBERS
    alone, for that takes as long as a hundred steps."""
    if run.norm and not run.norm.startswith(SHARED):
        return Program(run)
    program = _shared_program(program_key(run))
    for variable, initial in zip(program.model.variables, _network(run).variables, strict=True):
        variable.assign(initial)
    return program


def _network(run):
    return network.build(
        load(run.dataset, run.sample).x_train.shape[1:],
        run.norm,
        run.options,
        run.where,
        seed=run.seed if run.weights_seed is None else run.weights_seed,
        dtype=run.dtype,
        nudge=run.nudge,
        bias=run.bias,
    )


def _stretch(model, run):
    images, labels = tensors(run.dataset, run.sample)["train"]
    variables = values_of(model.trainable_variables)
    of_norm = network.norm_variables(model)
    repeated = {id(v) for v in values_of(of_norm.values())} if run.repeat_updates else set()
    traced = values_of(of_norm.values()) if run.trace else []

    spec = tf.TensorSpec
    signature = (
        spec([], "int32"),
        spec([], "int32"),
        spec([None, run.batch_size], "int32"),
        spec([], run.dtype),
    )

    @tf.function(input_signature=signature, autograph=True)
    def stretch(first, last, order, rate):
        losses = tf.TensorArray(run.dtype, size=last - first)
        kept = tf.TensorArray(run.dtype, size=last - first)
        for step in tf.range(first, last):
            rows = order[step]
            x, y = tf.cast(tf.gather(images, rows), run.dtype), tf.gather(labels, rows)
            with tf.GradientTape() as tape:
                logits = model(x, training=True)
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
            for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
                times = tf.cast(step + 1, run.dtype) if id(variable) in repeated else 1.0
                variable.assign_sub(rate * times * gradient)
            losses = losses.write(step - first, loss)
            kept = kept.write(step - first, _flatten(traced, run.dtype))
        return losses.stack(), kept.stack()

    return stretch


def _evaluation(model, run, batch=50):  # so many at a time fit into a cache
    images, labels = tensors(run.dataset, run.sample)["test"]
    signature = [tf.TensorSpec([None, *part.shape[1:]], part.dtype) for part in (images, labels)]

    @tf.function(input_signature=signature)
    def evaluate(images, labels):
        count = tf.shape(images)[0]
        correct, loss = tf.zeros([], "int64"), tf.zeros([], run.dtype)
        for first in tf.range(0, count, batch):
            x, y = tf.cast(images[first : first + batch], run.dtype), labels[first : first + batch]
            logits = model(x, training=False)
            correct += tf.math.count_nonzero(tf.argmax(logits, 1) == y)
            loss += tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
        return correct / tf.cast(count, "int64"), loss / tf.cast(count, run.dtype)

    return evaluate


def values_of(variables):
    """TensorFlow's own variables: Keras 3 wraps them."""
    return [v.value if isinstance(v, keras.Variable) else v for v in variables]


def _path(variable):
    return getattr(variable, "path", variable.name)


def _moving(model):
    """What training moves without a gradient: not the seeds of random numbers, nor flags."""
    kept = [v for v in model.non_trainable_variables if tf.as_dtype(v.dtype).is_floating]
    return {f"{MOVING}{_path(v)}": np.asarray(v) for v in kept}


def _flatten(variables, dtype):
    """All traced parameters in one row; of a large one, evenly spaced elements."""
    rows = [tf.reshape(v, [-1])[:: _spacing(v)] for v in variables]
    return tf.concat(rows, 0) if rows else tf.zeros([0], dtype)


def _spacing(variable):
    return -(-math.prod(variable.shape) // TRACED_ELEMENTS)


def _split_trace(model, flat):
    sizes = {name: -(-math.prod(v.shape) // _spacing(v)) for name, v in network.norm_variables(model).items()}
    # The last part, behind the last size, is empty.
    parts = np.split(flat, np.cumsum(list(sizes.values()), dtype=int), axis=1)
    return dict(zip(sizes, parts, strict=False))


@functools.cache
def load(name, sample):
    """The data of Runs, loaded once."""
    return data.load(name, sample=sample)


@functools.cache
def tensors(name, sample):
    """The data of Runs as (images, labels) tensors, made once: a compiled function never gives back what it holds."""
    dataset = load(name, sample)
    first = trained_on(dataset)
    parts = {
        "train": (dataset.x_train, dataset.y_train),
        "held out": (dataset.x_train[first:], dataset.y_train[first:]),
        "test": (dataset.x_test, dataset.y_test),
    }
    return {part: (tf.constant(images), tf.constant(labels)) for part, (images, labels) in parts.items()}


def versions():
    """The versions of all that computes a result."""
    packages = (
        "tensorflow",
        "keras",
        "numpy",
        "tf-keras",
        "tensorflow-probability",
    )  # the last two: WN's reference
    return {"python": ".".join(map(str, sys.version_info[:3]))} | {
        package: _version(package) for package in packages
    }


_version = functools.cache(importlib.metadata.version)  # which reads files: each run's key asks for it
