"""Small experiments on why normalization does what it does; each takes seconds."""

import functools
import itertools
import math
from dataclasses import replace

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

import normlib
from study import equivalence, laws, network, running, training, tuning

IMAGES = 400  # enough for statistics of activations
SEED = 2612  # of random inputs


def images(base, count=IMAGES):
    """The first training images of a Run's data set."""
    return tf.constant(_dataset(base).x_train[:count])


def _dataset(base):
    return training.load(base.dataset, base.sample)


def _gradients(model, variables, x, y):
    """The loss on a batch, in training, and its gradients."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, model(x, training=True)))
    return loss, tape.gradient(loss, variables)


# --- epsilon -------------------------------------------------------------------------------------------------------


def epsilon_share(base, epsilons=(1e-3, 1e-5)):
    """What share of the normalized variance is epsilon, before any training.

    Args:
        base: the Run that gives data and initial weights.
        epsilons: those to compare.

    Returns:
        DataFrame with columns epsilon, set ("a filter" over all images, as BN averages, or "a position" over the
        filters, as LN over channels does) and share, epsilon / (variance + epsilon).
    """
    model = network.build(_dataset(base).x_train.shape[1:], seed=base.seed)
    h = model.layers[0](images(base))
    variances = {"a filter": np.var(h, axis=(0, 1, 2)), "a position": np.var(h, axis=3).reshape(-1)}
    return pd.concat(
        pd.DataFrame({"epsilon": epsilon, "set": name, "share": epsilon / (variance + epsilon)})
        for name, variance in variances.items()
        for epsilon in epsilons
    )


# --- depth ---------------------------------------------------------------------------------------------------------


def depth(methods=("none", "BN", "LN"), layers=24, width=256, batch=128, seed=2612):
    """A deep network of dense layers before training: do different inputs stay different, do gradients keep their size?

    Weights have variance 2 / width (He et al. 2015); each layer is dense, normalization, ReLU.

    Returns:
        DataFrame with columns method, layer, cosine (the mean between different samples' activations) and growth (the
        gradient's squared length before this layer over that before the next).
    """
    rows = []
    for method in methods:
        rng = np.random.default_rng(seed)
        weights = [
            tf.constant(rng.normal(0, np.sqrt(2 / width), (width, width)), "float32") for _ in range(layers)
        ]
        norms = [_flat_norm(method, width) for _ in weights]
        activations = [tf.constant(rng.normal(size=(batch, width)), "float32")]
        with tf.GradientTape() as tape:
            tape.watch(activations[0])
            for w, norm in zip(weights, norms, strict=True):
                activations.append(tf.nn.relu(norm(activations[-1] @ w)))
        dy = tf.constant(rng.normal(size=(batch, width)), "float32")
        gradients = tape.gradient(activations[-1], activations, dy)
        squares = [float(tf.reduce_sum(g**2)) for g in gradients]
        for layer in range(layers):
            unit = tf.math.l2_normalize(activations[layer + 1], 1)
            cosines = tf.reduce_sum(tf.matmul(unit, unit, transpose_b=True)) - batch
            rows.append(
                {
                    "method": method,
                    "layer": layer + 1,
                    "cosine": float(cosines) / (batch * (batch - 1)),
                    "growth": squares[layer] / squares[layer + 1],
                }
            )
    return pd.DataFrame(rows)


def _flat_norm(method, width):
    if method == "none":
        return tf.identity
    layer = {"BN": normlib.BatchNormalization, "LN": normlib.LayerNormalization}[method](epsilon=1e-8)
    layer.build((None, width))
    return functools.partial(layer, training=True) if method == "BN" else layer


# --- conservation --------------------------------------------------------------------------------------------------


SYMMETRIES = laws.SYMMETRIES | {"GN": (6, *laws.SYMMETRIES["GN"][1:])}
CONSERVING = ("BN", "IN", "GN", "LN", "LN-C", "RMS", "WN")


def conservation(base, method, steps=100, every=10):
    """What gradient descent leaves alone in a real training, because the output does not feel it.

    Args:
        base: the Run that gives data, batches, initial weights and learning rate.
        method: a name of `network.METHODS`.
        steps, every: how many, and how often it is looked.

    Returns:
        DataFrame with a row for each look, of the convolution: step; kernel, the largest change of any of its weights;
        bias, the largest change of the sum of the biases of a group of channels that is centred together (of each bias
        where none are); filters, the largest change of the sum of all filters; growth, by how much the squared length
        of a group's filters and biases (under WN: of v) grows at most; pythagoras and length, the largest error of
        predicting that by each step's own square, and by that and epsilon's share of the gradient
        (`laws.radial_gradient`).
    """
    dataset = _dataset(base)
    layer = network.METHODS[method]
    model = network.build(dataset.x_train.shape[1:], seed=base.seed, **layer)
    order = training.batch_order(training.trained_on(dataset), base)[:steps]
    variables = training.values_of(model.trainable_variables)
    conv, norm = model.layers[0], model.layers[1] if method in SYMMETRIES else None
    rest = model.layers[2 if norm else 1 :]
    kernel, bias = (getattr(getattr(conv, "layer", conv), name).value for name in ("kernel", "bias"))
    symmetry, rate = SYMMETRIES.get(method, (0,)), base.learning_rate
    parts = (kernel, bias) if norm else (kernel,)

    @tf.function(autograph=False)
    def step(x, labels):
        with tf.GradientTape() as tape:
            h = conv(x)
            out = y = laws.call(norm, h) if norm else h
            for following in rest:
                out = following(out)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, out))
        dy, *gradients = tape.gradient(loss, [y, *variables])
        of = {id(v): g for v, g in zip(variables, gradients, strict=True)}
        square = rate**2 * sum(laws.by_group(symmetry, of[id(part)] ** 2) for part in parts)
        radial = tf.zeros_like(square)
        if norm:
            beta = getattr(norm, "beta", None)
            standardized = y if beta is None else y - beta
            radial = 2 * rate * laws.radial_gradient(symmetry, h, standardized, dy, norm.epsilon)
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.assign_sub(rate * gradient)
        return square, radial

    def looked():
        w, b = (np.asarray(v, "float64") for v in (kernel, bias))
        squares = sum(
            np.asarray(laws.by_group(symmetry, tf.constant(p**2))) for p in ((w, b) if norm else (w,))
        )
        return w, np.asarray(laws.by_group(symmetry, tf.constant(b))), squares

    start, rows, grown, taken = looked(), [], 0.0, 0.0
    for number, indices in enumerate(running.progress(order, f"conservation, {method}"), start=1):
        square, radial = step(tf.constant(dataset.x_train[indices]), tf.constant(dataset.y_train[indices]))
        grown, taken = grown + np.asarray(square, "float64"), taken + np.asarray(radial, "float64")
        if number % every == 0:
            moved, biases, growth = (a - b for a, b in zip(looked(), start, strict=True))
            found = {"kernel": moved, "bias": biases, "filters": moved.sum(axis=3), "growth": growth}
            found |= {"pythagoras": growth - grown, "length": growth - grown + taken}
            rows.append({"step": number} | {name: np.abs(v).max() for name, v in found.items()})
    return pd.DataFrame(rows)


# --- effective learning rate ---------------------------------------------------------------------------------------


def effective_learning_rate(base, factor=2.0, steps=20):
    """Scale the weights before BN by a, their learning rate by a^2 and epsilon by a^2: is it the same training?

    Returns:
        The largest absolute difference of a logit after the steps; 0 means bit for bit.
    """
    dataset = _dataset(base)
    order = training.batch_order(training.trained_on(dataset), base)[:steps]
    logits = []
    for a in (1.0, factor):
        norm = network.METHODS["BN"] | {"options": (("epsilon", 2.0**-10 * a**2), ("momentum", 0.9))}
        model = network.build(dataset.x_train.shape[1:], seed=base.seed, **norm)
        variables = training.values_of(model.trainable_variables)
        variables[0].assign(a * variables[0])
        # The first two are the filters and their bias.
        rates = [base.learning_rate * (a**2 if place < 2 else 1.0) for place in range(len(variables))]

        @tf.function(autograph=False)
        def step(x, y, model=model, variables=variables, rates=rates):
            _, gradients = _gradients(model, variables, x, y)
            for variable, rate, gradient in zip(variables, rates, gradients, strict=True):
                variable.assign_sub(rate * gradient)

        for indices in running.progress(order, "another scale"):
            step(tf.constant(dataset.x_train[indices]), tf.constant(dataset.y_train[indices]))
        logits.append(model(images(base), training=True))
    return float(tf.reduce_max(tf.abs(logits[0] - logits[1])))


# --- moving statistics ---------------------------------------------------------------------------------------------


def moving_statistics(base, looks=(10, 30, 100, 300), momentums=(0.9, 0.99)):
    """One BN network's test accuracy with the same weights and different statistics.

    Returns:
        DataFrame with columns seed, step, statistics ("moving, momentum 0.9", ..., "exact", "of the batch") and
        accuracy.
    """
    dataset = _dataset(base)
    order = training.batch_order(training.trained_on(dataset), base)[: max(looks)]
    model = network.build(dataset.x_train.shape[1:], seed=base.seed, **network.METHODS["BN"])
    variables = training.values_of(model.trainable_variables)
    norm = model.get_layer("norm_conv")
    norm.momentum = 0.0  # the moving statistics are each batch's: the averages are made below
    names = ("moving_mean", "moving_variance")
    averages = {m: [np.asarray(getattr(norm, name)) for name in names] for m in momentums}
    x_test, y_test = (
        tf.constant(dataset.x_test[: base.measured_images]),
        dataset.y_test[: base.measured_images],
    )

    @tf.function(autograph=False)
    def step(x, y):
        _, gradients = _gradients(model, variables, x, y)
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.assign_sub(base.learning_rate * gradient)

    logits_of = tf.function(model, autograph=False)

    def accuracy(statistics=None):
        for name, value in zip(names, statistics or [], strict=False):
            getattr(norm, name).assign(value)
        parts = [
            logits_of(x_test[i : i + 100], training=statistics is None) for i in range(0, len(y_test), 100)
        ]
        return float(np.mean(np.argmax(np.concatenate(parts), 1) == y_test))

    rows = []
    for number, indices in enumerate(running.progress(order, "moving statistics"), start=1):
        step(tf.constant(dataset.x_train[indices]), tf.constant(dataset.y_train[indices]))
        now = [np.asarray(getattr(norm, name)) for name in names]
        for momentum, kept in averages.items():
            averages[momentum] = [momentum * a + (1 - momentum) * b for a, b in zip(kept, now, strict=True)]
        if number in looks:
            found = {f"moving, momentum {m:g}": accuracy(kept) for m, kept in averages.items()}
            normlib.recalibrate(model, [images(base, 2000)[i : i + 200] for i in range(0, 2000, 200)])
            found["exact"] = accuracy([np.asarray(getattr(norm, name)) for name in names])
            found["of the batch"] = accuracy()
            rows += [{"step": number, "statistics": k, "accuracy": v} for k, v in found.items()]
    return pd.DataFrame(rows).assign(seed=base.seed)


# --- the loss along the way, and what goes into a deep unit ---------------------------------------------------------


def landscape(
    base, methods=("none", "BN", "LN"), steps=150, every=10, rate=0.1, reaches=(0.5, 1.0, 2.0, 4.0)
):
    """The loss and its gradient along each step's direction, further than the step goes, during a training.

    Args:
        base: the Run that gives data, seed, order and initial weights.
        methods: names of `network.METHODS`.
        steps, rate: of the training.
        every: steps between looks.
        reaches: how far to look, in units of the step.

    Returns:
        DataFrame with columns method, seed, step, lowest and highest (loss on the step's batch, in nats) and change
        (the largest change of the gradient, in proportion to its length).

    Reference: Santurkar et al. 2018 (arXiv:1805.11604), figure 4.
    """
    dataset = _dataset(base)
    order = training.batch_order(training.trained_on(dataset), replace(base, steps=min(steps, base.steps)))
    rows = []
    for method in methods:
        model = network.build(dataset.x_train.shape[1:], seed=base.seed, **network.METHODS[method])
        variables = training.values_of(model.trainable_variables)
        slope = tf.function(functools.partial(_gradients, model, variables), autograph=False)

        def move(start, gradients, way, variables=variables):
            for variable, value, gradient in zip(variables, start, gradients, strict=True):
                variable.assign(value - way * gradient)

        for step, indices in enumerate(running.progress(order, f"landscape, {method}")):
            batch = tf.constant(dataset.x_train[indices]), tf.constant(dataset.y_train[indices])
            _, gradients = slope(*batch)
            start = [v.numpy() for v in variables]
            if step % every == 0:
                losses, changes = [], []
                for reach in reaches:
                    move(start, gradients, reach * rate)
                    loss, there = slope(*batch)
                    losses.append(float(loss))
                    changes.append(
                        tf.linalg.global_norm([a - b for a, b in zip(there, gradients, strict=True)])
                    )
                change = float(np.max(changes) / tf.linalg.global_norm(gradients))
                rows.append(
                    {
                        "method": method,
                        "seed": base.seed,
                        "step": step,
                        "lowest": np.min(losses),  # nan where one is
                        "highest": np.max(losses),
                        "change": change,
                    }
                )
            move(start, gradients, rate)
    return pd.DataFrame(rows)


def sigmoid_network(base, steps=2000, looks=40, batch=60, rate=0.1, width=100):
    """Three dense layers of sigmoids, with and without BN: the accuracy, and what goes into one unit of the last layer.

    Args:
        base: the Run that gives data and seed.
        steps, batch, rate: of the training; twice the Run's steps at most.
        looks: how many measurements, at most one in five steps.
        width: units of a hidden layer.

    Returns:
        DataFrame with columns method, seed, step, accuracy (on the test images) and low, middle and high, the 15th,
        50th and 85th percentile of the unit's input over 1,000 training images, normalized as in training.

    Reference: Ioffe and Szegedy 2015 (arXiv:1502.03167), figure 1.
    """
    dataset, steps = _dataset(base), min(steps, 2 * base.steps)
    x_train, x_test = (
        tf.constant(x.reshape(len(x), -1)) for x in (dataset.x_train, dataset.x_test[: base.measured_images])
    )
    y_train, y_test = tf.constant(dataset.y_train), dataset.y_test[: base.measured_images]
    run = replace(base, steps=steps, batch_size=batch)
    order = tf.constant(training.batch_order(training.trained_on(dataset), run))
    looks = np.unique(np.linspace(1, steps, min(looks, max(2, steps // 5))).astype(int))
    rows = []
    for method in ("none", "BN"):
        layers = []
        for index in range(3):
            layers.append(keras.layers.Dense(width, kernel_initializer=network.initial(base.seed, index)))
            layers += [normlib.BatchNormalization(momentum=0.9)] if method == "BN" else []
            layers.append(keras.layers.Activation("sigmoid"))
        layers.append(keras.layers.Dense(network.CLASSES, kernel_initializer=network.initial(base.seed, 3)))
        model = keras.Sequential([keras.layers.InputLayer(x_train.shape[1:]), *layers])
        before = keras.Model(model.inputs, model.layers[-3].output)
        variables = training.values_of(model.trainable_variables)

        @tf.function
        def stretch(first, last, model=model, variables=variables):
            for step in tf.range(first, last):
                _, gradients = _gradients(
                    model, variables, tf.gather(x_train, order[step]), tf.gather(y_train, order[step])
                )
                for variable, gradient in zip(variables, gradients, strict=True):
                    variable.assign_sub(rate * gradient)

        for first, last in running.progress([*itertools.pairwise([0, *looks])], f"sigmoids, {method}"):
            stretch(tf.constant(first), tf.constant(last))
            accuracy = np.mean(np.argmax(model(x_test), 1) == y_test)
            statistics = [v.numpy() for v in model.non_trainable_variables]
            unit = before(x_train[:1000], training=True)[:, 0]
            for variable, value in zip(model.non_trainable_variables, statistics, strict=True):
                variable.assign(value)  # looking has moved them
            low, middle, high = np.percentile(unit, (15, 50, 85))
            rows.append(
                {
                    "method": method,
                    "seed": base.seed,
                    "step": last,
                    "accuracy": accuracy,
                    "low": low,
                    "middle": middle,
                    "high": high,
                }
            )
    return pd.DataFrame(rows)


# --- second derivatives --------------------------------------------------------------------------------------------


def gradient_penalty(layer_path, options=()):
    """The weights' gradient of a gradient penalty (|df/dx| - 1)^2 through one normalized layer, in float64.

    Reference: Gulrajani et al. 2017 (arXiv:1704.00028), equation 3.

    Returns:
        float array [32, 32].
    """
    rng, batch, size = np.random.default_rng(SEED), 16, 32
    x, w, u = (
        tf.constant(rng.normal(0, s, shape))
        for s, shape in ((1, (batch, size)), (size**-0.5, (size, size)), (1, (size, 1)))
    )
    layer = network.resolve(layer_path)(**dict(options), dtype="float64")
    layer.build((batch, size))
    with tf.GradientTape() as outer:
        outer.watch(w)
        with tf.GradientTape() as inner:
            inner.watch(x)
            f = tf.nn.softplus(equivalence.in_training(layer, x @ w)) @ u
        slope = tf.sqrt(tf.reduce_sum(inner.gradient(f, x) ** 2, 1))
        penalty = tf.reduce_mean((slope - 1) ** 2)
    return outer.gradient(penalty, w).numpy()


def second_derivatives(examples=10):
    """Second derivatives of own layers and of TensorFlow's, and what becomes of a gradient penalty.

    Args:
        examples: how many random inputs, each with its direction.

    Returns:
        DataFrame with a row for each layer: how many values it averages, how many examples were tried, the own layer's
        largest error (`equivalence.second_derivative_error`), TensorFlow's least and largest, and how far apart the two
        `gradient_penalty` are, relative to the own one.
    """
    rows = []
    batch, height, width, channels = equivalence.SECOND
    layers = (
        ("BN", "BatchNormalization", (), channels),
        ("LN", "LayerNormalization", (), batch * height * width),
        ("GN", "GroupNormalization", (("groups", 2),), batch * 2),
    )
    for name, layer, options, sets in running.progress(layers, "second derivatives", unit="layer"):
        paths = {"own": f"normlib:{layer}", "TensorFlow's": f"keras.layers:{layer}"}
        own, theirs = (
            [equivalence.second_derivative_error(path, options, seed=SEED + k) for k in range(examples)]
            for path in paths.values()
        )
        errors = {
            "own, most": max(own),
            "TensorFlow's, least": min(theirs),
            "TensorFlow's, most": max(theirs),
        }
        own, theirs = (gradient_penalty(path, options) for path in paths.values())
        apart = np.linalg.norm(theirs - own) / np.linalg.norm(own)
        averaged = math.prod(equivalence.SECOND) // sets
        row = {"layer": name, "averaged": averaged, "examples": examples} | errors
        rows.append(row | {"gradient penalty, apart": apart})
    return pd.DataFrame(rows)


def penalized_training(base, steps=200, rate=0.05, width=32, weight=10.0, every=10):
    """A small network trained with a gradient penalty through own LN, TensorFlow's and the plain formula that
    TensorFlow differentiates, in float64, from the same weights and on the same batches: what a wrong second
    derivative does.

    It tells the first five classes from the others; the loss is the logistic one plus weight * mean (|df/dx| - 1)^2.
    LN stands behind the second of its layers: what TensorFlow's LN adds to a gradient shifts all units alike, and the
    weights just before LN can move that way without any effect. Those further down cannot.

    Args:
        base: the Run that gives data, order and seed; its steps are the most.
        steps, rate, every: of the training, and of the looks.
        width, weight: units of a layer, and of the penalty.

    Returns:
        DataFrame with columns layer ("own", "TensorFlow's", "plain formula"), step, loss (of the step's batch) and
        apart (how far the first layer's weights are from those of the plain formula, in units of how far these moved).

    Reference: Gulrajani et al. 2017 (arXiv:1704.00028).
    """
    dataset, steps = _dataset(base), min(steps, base.steps)
    order = training.batch_order(training.trained_on(dataset), replace(base, steps=steps))
    images = dataset.x_train.reshape(len(dataset.x_train), -1).astype("float64")
    signs = np.where(dataset.y_train < network.CLASSES // 2, 1.0, -1.0)
    rng = np.random.default_rng(base.seed)
    sizes = (images.shape[1], width, width, 1)
    first = [rng.normal(0, size**-0.5, (size, out)) for size, out in itertools.pairwise(sizes)]
    paths = {
        "plain formula": "study.faulty:FaultyLayerNormalization",
        "own": "normlib:LayerNormalization",
        "TensorFlow's": "keras.layers:LayerNormalization",
    }
    rows, plain = [], {}
    for name, path in paths.items():
        layer = network.resolve(path)(dtype="float64")
        layer.build((None, width))
        variables = [*(tf.Variable(w) for w in first), *training.values_of(layer.trainable_variables)]

        @tf.function(autograph=False)
        def step(x, sign, layer=layer, variables=variables):
            with tf.GradientTape() as outer:
                with tf.GradientTape() as inner:
                    inner.watch(x)
                    h = tf.nn.softplus(x @ variables[0]) @ variables[1]
                    f = tf.nn.softplus(layer(h)) @ variables[2]
                slope = tf.sqrt(tf.reduce_sum(inner.gradient(f, x) ** 2, 1))
                loss = tf.reduce_mean(tf.nn.softplus(-sign * f[:, 0])) + weight * tf.reduce_mean(
                    (slope - 1) ** 2
                )
            for variable, gradient in zip(variables, outer.gradient(loss, variables), strict=True):
                variable.assign_sub(rate * gradient)
            return loss

        for number, indices in enumerate(running.progress(order, f"gradient penalty, {name}"), start=1):
            loss = float(step(tf.constant(images[indices]), tf.constant(signs[indices])))
            if number % every == 0:
                now = variables[0].numpy()
                plain.setdefault(number, now)
                apart = np.linalg.norm(now - plain[number]) / np.linalg.norm(plain[number] - first[0])
                rows.append({"layer": name, "step": number, "loss": loss, "apart": apart})
    return pd.DataFrame(rows)


# --- arms: one thing of a normalization changed ---------------------------------------------------------------------

ARMS = (
    *(f"{method}, {part} detached" for method in ("BN", "LN") for part in network.PARTS),
    "noisy BN",
    "ghost BN",
    "BN, after ReLU",
    "BN, without parameters",
)


def arms(base, seeds):
    """The Runs of ARMS, a sixth as long, at the common learning rate, over four seeds at most: dict name -> list of
    Run."""
    short = replace(base, steps=tuning.part(base, 6))
    return {arm: [replace(short, seed=seed, **network.METHODS[arm]) for seed in seeds[:4]] for arm in ARMS}


def start(base, methods=tuning.SEVERAL):
    """Networks before training.

    Returns:
        DataFrame with columns method, loss (on images, in training, nats) and spread (standard deviation of the dense
        layer's output, which its activation, or its own normalization, takes in).
    """
    dataset, rows = _dataset(base), []
    for method in methods:
        model = network.build(dataset.x_train.shape[1:], seed=base.seed, **network.METHODS[method])
        named = {layer.name.removeprefix("norm_"): layer for layer in reversed(model.layers)}
        hidden = next((layer for layer in model.layers if layer.name == "hidden"), named["hidden"])
        logits = model(images(base), training=True)
        loss = tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(dataset.y_train[:IMAGES], logits)
        )
        h = keras.Model(model.inputs, hidden.output)(images(base), training=True)
        rows.append({"method": method, "loss": float(loss), "spread": float(np.std(h))})
    return pd.DataFrame(rows)


# --- small facts ------------------------------------------------------------------------------------------------------


def small_facts():
    """What people stumble over, tried on one layer.

    Returns:
        dict: `accumulation`, by how much BN's gradient of gamma differs when a batch is taken in halves (relative);
        `default`, how far a call without `training` is from inference; `frozen`, how far a call in training is from
        inference where trainable is False; `moved`, how far one call in training moves the moving mean;
        `bessel`, N / (N - 1) for N values, by name.
    """
    rng = np.random.default_rng(SEED)
    x, dy = (tf.constant(rng.normal(1.0, 1.0, (16, 8))) for _ in range(2))
    layer = normlib.BatchNormalization(dtype="float64")
    layer.build(x.shape)

    def gradient(x, dy):
        with tf.GradientTape() as tape:
            y = layer(x, training=True)
        return tape.gradient(y, layer.gamma.value, dy)

    whole, halves = gradient(x, dy), gradient(x[:8], dy[:8]) + gradient(x[8:], dy[8:])
    fresh = normlib.BatchNormalization(dtype="float64")
    inferred = fresh(x, training=False)
    default = float(tf.reduce_max(tf.abs(fresh(x) - inferred)))
    fresh.trainable = False
    frozen = float(tf.reduce_max(tf.abs(fresh(x, training=True) - inferred)))
    fresh.trainable = True
    fresh(x, training=True)
    sizes = {"the convolution here, batch 100": 100 * 28 * 28, "a dense layer, batch 100": 100, "batch 2": 2}
    return {
        "accumulation": float(tf.norm(halves - whole) / tf.norm(whole)),
        "default": default,
        "frozen": frozen,
        "moved": float(tf.reduce_max(tf.abs(fresh.moving_mean))),
        "bessel": {name: n / (n - 1) for name, n in sizes.items()},
    }


def implementations():
    """What "TensorFlow's batch normalization" is: each layer's defaults, and what it takes for the moving variance.

    Returns:
        DataFrame with columns layer, epsilon, momentum, "moving variance, N / (N − 1)" (whether it is divided by N - 1:
        measured by one call in training) and "a call alone" (whether a call without `training` is inference).
    """
    import tf_keras

    x = np.random.default_rng(SEED).normal(1.0, 2.0, (4, 2, 2, 3)).astype("float32")
    biased = x.var(axis=(0, 1, 2), dtype="float64")
    bessel = x[..., 0].size / (x[..., 0].size - 1)
    rows = []
    for name, cls in (
        ("normlib", normlib.BatchNormalization),
        ("Keras 3", keras.layers.BatchNormalization),
        ("tf_keras (Keras 2)", tf_keras.layers.BatchNormalization),
    ):
        layer = cls()
        inferred, alone = layer(x, training=False), layer(x)
        layer(x, training=True)
        old = layer.momentum  # the moving variance starts at 1
        taken = np.mean((np.asarray(layer.moving_variance) - old) / (1 - old) / biased)
        rows.append((name, layer.epsilon, old, taken, "yes" if np.array_equal(inferred, alone) else "no"))
    _, _, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x, scale=tf.ones(3), offset=tf.zeros(3), mean=[], variance=[], is_training=True
    )
    rows.append(("tf.raw_ops.FusedBatchNormV3", 1e-4, None, np.mean(variance / biased), ""))
    frame = pd.DataFrame(rows, columns=["layer", "epsilon", "momentum", "variance", "inference"])
    near = {"N": 1.0, "N − 1": bessel}
    frame["divided by"] = [min(near, key=lambda n: abs(near[n] - value)) for value in frame.variance]
    return frame


def weight_normalization_in_keras():
    """Which of Keras 3's layers, and of TensorFlow Probability's, is a weight normalization: dict name -> bool."""
    import tf_keras
    from tensorflow_probability.python.layers import weight_norm

    return {
        "keras": hasattr(keras.layers, "WeightNormalization"),
        "probability": issubclass(weight_norm.WeightNorm, keras.layers.Layer),
        "probability, Keras 2": issubclass(weight_norm.WeightNorm, tf_keras.layers.Layer),
    }
