"""Train the network: a `Run` says what, a `History` what happened.

Whole stretches of steps run inside one `tf.function`. A finished run is kept on disk under a key made of all that
decides its result, so that an interrupted study goes on where it stopped.
"""

import dataclasses
import functools
import hashlib
import inspect
import io
import json
import math
import os
import pathlib
import sys
import tempfile
import threading
import time

import joblib
import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

import normlib
from study import data, network

HELD_OUT = 12  # of the training images, one in so many is kept back for choosing: 5,000 of 60,000
ORDER_STREAM = 1_000  # beside the streams of the layers' initial weights, numbered from 0
TRACED_ELEMENTS = 1_024


@dataclasses.dataclass(frozen=True)
class Run:
    """All that decides the result of one training, and nothing else.

    Args:
        norm: import path of the normalization, such as "normlib:BatchNormalization"; None for none.
        options: its arguments, as (name, value) pairs.
        where: what is normalized, of "input", "conv" and "hidden".
        dataset: "fashion_mnist", "mnist" or "cifar10".
        sample: whether the embedded sample takes the place of the full data.
        seed: fixes the initial weights and, by a separate stream, the order of the batches.
        weights_seed: another seed for the initial weights alone. Default None: `seed`.
        steps: number of updates. Default 2,750: five epochs of 55,000 images.
        batch_size: images in an update.
        learning_rate: of plain stochastic gradient descent.
        evaluate_every: steps between measurements on the test images.
        dtype: "float32" or "float64".
        nudge: if k > 0, the k-th weight of the convolution starts one unit in the last place higher.
        repeat_updates: whether the normalization's parameters are updated t times at step t, as the study of 2019 did.
        validation: whether the accuracy is measured on the training images that are held out, instead of the test
            images; all that is chosen is chosen on these.
        trace: whether the normalization's parameters are kept after every step (large ones by evenly spaced elements),
            and all weights at the end.
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
    evaluate_every: int = 100
    dtype: str = "float32"
    nudge: int = 0
    repeat_updates: bool = False
    validation: bool = False
    trace: bool = False

    def __post_init__(self):
        for name in ("steps", "batch_size", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"Expected {name} of at least 1. Received: {name}={getattr(self, name)}")
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"Expected dtype 'float32' or 'float64'. Received: dtype={self.dtype!r}")
        if self.repeat_updates and self.norm is None:
            raise ValueError("Expected a norm whose updates can be repeated. Received: norm=None")


# How much is computed, and so how much may be claimed.
PROFILES = {
    "smoke": {"sample": True, "steps": 40, "evaluate_every": 10, "seeds": 3},
    "default": {"sample": False, "steps": 1100, "evaluate_every": 100, "seeds": 3},
    "thorough": {"sample": False, "steps": 2750, "evaluate_every": 50, "seeds": 8},
}


def profile(name, dataset="fashion_mnist", seed=2612):
    """The Run that a profile's runs start from, and its seeds.

    Args:
        name: "smoke" (the embedded sample, a few steps: nothing may be claimed), "default" or "thorough".
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


@dataclasses.dataclass(frozen=True)
class History:
    """What happened in a run.

    Attributes:
        run: the Run.
        steps: int [m], the steps after which the test images were measured.
        accuracy: float [m], fraction of test images classified correctly.
        loss: float [m], mean cross-entropy on the test images, in nats.
        training_loss: float [steps], mean cross-entropy of each batch before its update, in nats.
        trace: the normalization's parameters after every step, name -> [steps, size]; empty unless asked for.
        weights: all trainable weights at the end, name -> array; empty unless a trace was asked for.
        weights_hash: SHA-256 of all trainable weights at the end.
        milliseconds_per_step: median over the stretches between measurements.
        versions: name -> version of what computed it.
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

    def row(self):
        """The run and its results as one flat record."""
        description = {
            k: str(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self.run).items()
        }
        return description | {
            "final_accuracy": float(self.accuracy[-1]),
            "final_loss": float(self.loss[-1]),
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


def train(run, progress=None):
    """Train one network.

    Args:
        run: a Run.
        progress: called with the number of finished steps, now and then.

    Returns:
        A History. The same Run gives the same bits on the same machine type, but for the milliseconds.
    """
    dataset = _dataset(run.dataset, run.sample)
    model = network.build(
        dataset.x_train.shape[1:],
        run.norm,
        run.options,
        run.where,
        seed=run.seed if run.weights_seed is None else run.weights_seed,
        dtype=run.dtype,
        nudge=run.nudge,
    )
    stretch = _stretch(model, run, dataset, tf.constant(batch_order(trained_on(dataset), run)))
    evaluate = _evaluation(model, run, dataset)

    measured = [*range(run.evaluate_every, run.steps, run.evaluate_every), run.steps]
    training_loss, trace, scores, milliseconds = [], [], [], []
    for first, last in zip([0, *measured], measured, strict=False):
        started = time.perf_counter()
        losses, parameters = stretch(tf.constant(first), tf.constant(last))
        training_loss.append(losses.numpy())
        trace.append(parameters.numpy())
        milliseconds.append(1e3 * (time.perf_counter() - started) / (last - first))
        scores.append([value.numpy() for value in evaluate()])
        if progress:
            progress(last)

    weights = {_unique_name(model, i): np.asarray(v) for i, v in enumerate(model.trainable_variables)}
    accuracy, loss = np.array(scores, "float64").T
    return History(
        run=run,
        steps=np.array(measured),
        accuracy=accuracy,
        loss=loss,
        training_loss=np.concatenate(training_loss).astype("float64"),
        trace=_split_trace(model, np.concatenate(trace)) if run.trace else {},
        weights=weights if run.trace else {},
        weights_hash=hashlib.sha256(b"".join(w.tobytes() for w in weights.values())).hexdigest(),
        # The first stretch also traces and compiles the step.
        milliseconds_per_step=float(np.median(milliseconds[1:] or milliseconds)),
        versions=versions(),
    )


def _stretch(model, run, dataset, order):
    """A compiled function that makes the steps from `first` to `last`."""
    images, labels = tf.constant(dataset.x_train), tf.constant(dataset.y_train)
    variables = _values(model.trainable_variables)
    of_norm = network.norm_variables(model)
    repeated = {id(v) for v in _values(of_norm.values())} if run.repeat_updates else set()
    traced = _values(of_norm.values()) if run.trace else []

    @tf.function(autograph=True)
    def stretch(first, last):
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
                variable.assign_sub(run.learning_rate * times * gradient)
            losses = losses.write(step - first, loss)
            kept = kept.write(step - first, _flatten(traced, run.dtype))
        return losses.stack(), kept.stack()

    return stretch


def _evaluation(model, run, dataset, batch=50):
    """A compiled function that gives accuracy and loss, batches that fit into a cache at a time."""
    held_out = (dataset.x_train[trained_on(dataset) :], dataset.y_train[trained_on(dataset) :])
    x_all, y_all = held_out if run.validation else (dataset.x_test, dataset.y_test)
    images, labels = tf.constant(x_all), tf.constant(y_all)

    @tf.function
    def evaluate():
        correct, loss = tf.zeros([], "int64"), tf.zeros([], run.dtype)
        for first in tf.range(0, len(x_all), batch):
            x, y = tf.cast(images[first : first + batch], run.dtype), labels[first : first + batch]
            logits = model(x, training=False)
            correct += tf.math.count_nonzero(tf.argmax(logits, 1) == y)
            loss += tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
        return correct / len(x_all), loss / len(x_all)

    return evaluate


def _values(variables):
    """TensorFlow's own variables: Keras 3 wraps them."""
    return [v.value if isinstance(v, keras.Variable) else v for v in variables]


def _unique_name(model, index):
    variable = model.trainable_variables[index]
    return getattr(variable, "path", variable.name)


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
def _dataset(name, sample):
    return data.load(name, sample=sample)


def versions():
    """The versions of all that computes a result."""
    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
    }


# --- many runs: in parallel, and kept ---------------------------------------------------------------------------


def run_all(runs, jobs=0, description="runs"):
    """Train all runs that are not kept yet, one on a core, longest first.

    Args:
        runs: iterable of Run.
        jobs: processes at a time; 0 for one on each core.
        description: shown beside the progress bar.

    Returns:
        dict Run -> History.
    """
    runs = list(dict.fromkeys(runs))
    cache = _cache_folder()
    keys = {run: _key(run) for run in runs}
    found = {run: _restore(cache / f"{keys[run]}.run", run) for run in runs}
    missing = sorted((run for run in runs if found[run] is None), key=_work, reverse=True)
    if missing:
        jobs = min(jobs or joblib.cpu_count(), len(missing))
        with _Progress(missing, [cache / f"{keys[run]}.step" for run in missing], description):
            # loky also for one job: no run shares a process with a notebook.
            work = (joblib.delayed(_train_and_keep)(run, cache / keys[run]) for run in missing)
            for _ in joblib.Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1)(work):
                pass
        found |= {run: _restore(cache / f"{keys[run]}.run", run) for run in missing}
    return found


def run_groups(groups, jobs=0, description="runs"):
    """Train labelled groups of runs: dict label -> list of Run becomes dict label -> list of History."""
    histories = run_all([run for runs in groups.values() for run in runs], jobs, description)
    return {label: [histories[run] for run in runs] for label, runs in groups.items()}


def _work(run):
    """A run's length, roughly: in float64, and with another's layer, a step takes longer."""
    own = run.norm is None or run.norm.startswith("normlib:")
    return run.steps * run.batch_size * (4 if run.dtype == "float64" else 1) * (1 if own else 2)


def _train_and_keep(run, path):
    step_file = path.with_suffix(".step")

    def progress(step):
        step_file.write_text(str(step))

    progress(0)
    try:
        _keep(path.with_suffix(".run"), train(run, progress))
    finally:
        step_file.unlink(missing_ok=True)


class _Progress:
    """A progress bar over steps, fed by the small files that the workers leave in the cache."""

    def __init__(self, runs, step_files, description):
        self._lengths = dict(zip(step_files, (run.steps for run in runs), strict=True))
        self._bar = tqdm(total=sum(self._lengths.values()), desc=description, unit="step", mininterval=1.0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self):
        while not self._stop.wait(1.0):
            self._update()

    def _update(self):
        done = finished = 0
        for step_file, length in self._lengths.items():
            if step_file.with_suffix(".run").exists():
                done, finished = done + length, finished + 1
            elif step_file.exists():
                done += int(step_file.read_text() or 0)
        self._bar.set_postfix_str(f"{finished} of {len(self._lengths)} runs", refresh=False)
        self._bar.update(done - self._bar.n)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self._update()
        self._bar.close()


def _cache_folder():
    folder = pathlib.Path(os.environ.get("NORMLIB_CACHE") or pathlib.Path.home() / ".cache" / "normlib")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _key(run):
    """SHA-256 of all that decides a run's result: its description, the code, the data, the versions."""
    sources = [normlib, network, sys.modules[__name__]]
    if run.norm and not run.norm.startswith(("normlib:", "keras.", "tensorflow_probability.")):
        sources.append(sys.modules[network.resolve(run.norm).__module__])
    decisive = [
        dataclasses.asdict(run),
        [inspect.getsource(module) for module in sources],
        _dataset(run.dataset, run.sample).digest,
        versions(),
    ]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _keep(path, history):
    """Write a history as plain arrays behind their checksum, whole or not at all."""
    fields = {f.name: getattr(history, f.name) for f in dataclasses.fields(history)}
    arrays = {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}
    for group in ("trace", "weights"):
        arrays |= {f"{group}:{name}": value for name, value in fields.pop(group).items()}
    rest = {n: v for n, v in fields.items() if n not in arrays} | {"run": dataclasses.asdict(history.run)}
    payload = io.BytesIO()
    np.savez_compressed(payload, description=np.frombuffer(json.dumps(rest).encode(), "uint8"), **arrays)
    content = payload.getvalue()
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(hashlib.sha256(content).digest() + content)
    os.replace(file.name, path)


def _restore(path, run):
    """Read a kept history; None if there is none, or if it was damaged."""
    if not path.exists():
        return None
    stored = path.read_bytes()
    if hashlib.sha256(stored[32:]).digest() != stored[:32]:
        path.unlink(missing_ok=True)
        tqdm.write(f"A kept run was damaged and is trained again: {path.name}", file=sys.stderr)
        return None
    with np.load(io.BytesIO(stored[32:]), allow_pickle=False) as arrays:
        fields = json.loads(arrays["description"].tobytes()) | {"run": run, "trace": {}, "weights": {}}
        for name in arrays.files:
            group, _, key = name.partition(":")
            if key:
                fields[group][key] = arrays[name]
            elif name != "description":
                fields[name] = arrays[name]
    return History(**fields)
