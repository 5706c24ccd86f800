"""Two replicas against one device; run in processes of their own, because devices are fixed at the start.

python replicas.py mirrored | apart | fit
python replicas.py worker INDEX PORT PORT
"""

import itertools
import json
import os
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
SIZES = {"even": (32, 32), "uneven": (48, 16)}


def example(mean):
    """Input, incoming gradient and parameters of one batch of 64."""
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.normal(mean, 1.0, (64, 5, 4, 3)).astype("float32")
    return x, rng.normal(size=x.shape).astype("float32"), rng.uniform(0.5, 1.5, 3).astype("float32")


def example_mask():
    """Nothing counts of the last images: with uneven replicas, nothing on the second one."""
    import numpy as np

    mask = np.random.default_rng(1).random((64, 5, 4)) < 0.6
    mask[48:] = False
    return mask


def layer_for(gamma, synchronized=True):
    import normlib

    layer = normlib.BatchNormalization(momentum=0.9, synchronized=synchronized)
    layer.build((None, 5, 4, 3))
    layer.gamma.assign(gamma)
    return layer


def one_step(layer, x, dy, mask=None):
    """Output, dx, dgamma, dbeta of a call in training mode."""
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True, mask=mask)
    return [y, *tape.gradient(y, [x, layer.gamma.value, layer.beta.value], dy)]


def compare(outputs, moving, mean, mask=None):
    """The largest differences between the replicas' results and those of one device."""
    import numpy as np
    import tensorflow as tf

    x, dy, gamma = example(mean)
    layer = layer_for(gamma)
    expected = [t.numpy() for t in one_step(layer, tf.constant(x), tf.constant(dy), mask)]
    y, dx, dgamma, dbeta = zip(*outputs, strict=True)
    actual = [np.concatenate(y), np.concatenate(dx), sum(dgamma), sum(dbeta)]
    named = dict(zip(("y", "dx", "dgamma", "dbeta"), zip(actual, expected, strict=True), strict=True))
    statistics = (layer.moving_mean.numpy(), layer.moving_variance.numpy())
    named |= dict(zip(("moving_mean", "moving_variance"), zip(moving, statistics, strict=True), strict=True))
    return {k: float(np.max(np.abs(a - e)) / max(1.0, np.max(np.abs(e)))) for k, (a, e) in named.items()}


def parts(values, sizes):
    edge = sizes[0]
    return values[:edge], values[edge:]


def mirrored():
    """A custom loop under MirroredStrategy, eager and as a function, even and uneven replicas, near and far from 0."""
    import numpy as np
    import tensorflow as tf

    strategy = two_devices()
    results = {}
    for name, mean, graph, masked in itertools.product(SIZES, (0.0, 1e4), (False, True), (False, True)):
        x, dy, gamma = example(mean)
        mask = example_mask() if masked else None
        with strategy.scope():
            layer = layer_for(gamma)

        def step(*given, layer=layer):
            return one_step(layer, *given)

        def run(*given, step=step):
            return strategy.run(step, given)

        given = [x, dy] if mask is None else [x, dy, mask]
        found = (tf.function(run) if graph else run)(*(give(strategy, t, SIZES[name]) for t in given))
        values = [strategy.experimental_local_results(v) for v in found]
        outputs = [[np.asarray(v[k]) for v in values] for k in range(2)]
        moving = (layer.moving_mean.numpy(), layer.moving_variance.numpy())
        key = f"{name} {mean:g} {'graph' if graph else 'eager'} {'masked' if masked else ''}"
        results[key] = compare(outputs, moving, mean, mask)
    return results


def give(strategy, values, sizes):
    """The replicas' parts of the values, each to its own."""
    import tensorflow as tf

    pieces = parts(values, sizes)
    return strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(pieces[context.replica_id_in_sync_group])
    )


def apart():
    """Without synchronization: each replica's outputs are its own, the moving statistics the mean of theirs."""
    import numpy as np
    import tensorflow as tf

    strategy = two_devices()
    x, _, gamma = example(0.0)
    with strategy.scope():
        layer = layer_for(gamma, synchronized=False)
    found = strategy.run(lambda x: layer(x, training=True), (give(strategy, x, SIZES["uneven"]),))
    alone = [layer_for(gamma, synchronized=False) for _ in range(2)]
    expected = [
        a(tf.constant(p), training=True) for a, p in zip(alone, parts(x, SIZES["uneven"]), strict=True)
    ]
    pairs = list(zip(strategy.experimental_local_results(found), expected, strict=True))
    for name in ("moving_mean", "moving_variance"):
        own = [getattr(a, name).numpy() for a in alone]
        assert np.max(np.abs(own[0] - own[1])) > 1e-3
        pairs.append((getattr(layer, name).numpy(), sum(own) / 2))
    return [float(np.max(np.abs(np.asarray(a) - np.asarray(e)))) for a, e in pairs]


def fit():
    """Keras's fit under MirroredStrategy against fit on one device."""
    import contextlib

    import keras
    import numpy as np

    import normlib

    strategy = two_devices()
    x, _, _ = example(0.0)
    y = np.random.default_rng(1).normal(size=(64, 2)).astype("float32")
    found = []
    for scope in (contextlib.nullcontext(), strategy.scope()):
        with scope:
            keras.utils.set_random_seed(0)
            model = keras.Sequential(
                [
                    keras.Input((5, 4, 3)),
                    normlib.BatchNormalization(synchronized=True),
                    keras.layers.Flatten(),
                    keras.layers.Dense(2, kernel_initializer=keras.initializers.RandomNormal(seed=1)),
                ]
            )
            model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(x, y, batch_size=64, epochs=3, shuffle=False, verbose=0)
        found.append([np.asarray(w) for w in model.get_weights()])
    return {str(k): float(np.max(np.abs(a - b))) for k, (a, b) in enumerate(zip(*found, strict=True))}


def two_devices():
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def worker(index, *ports):
    """One of two processes under MultiWorkerMirroredStrategy; the first compares."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    os.environ["TF_CONFIG"] = json.dumps(
        {"cluster": cluster, "task": {"type": "worker", "index": int(index)}}
    )
    import numpy as np
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    results = {}
    for mean in (0.0, 1e4):
        x, dy, gamma = example(mean)
        with strategy.scope():
            layer = layer_for(gamma)
        mine = [tf.constant(parts(values, SIZES["even"])[int(index)]) for values in (x, dy)]

        @tf.function
        def run(x, dy, layer=layer):
            local = strategy.run(lambda x, dy: one_step(layer, x, dy), (x, dy))
            return [
                strategy.gather(v, axis=0) if v.shape.rank > 1 else strategy.reduce("SUM", v, None)
                for v in local
            ]

        y, dx, dgamma, dbeta = (v.numpy() for v in run(*mine))
        zero = np.zeros_like(dgamma)
        outputs = [[y[:32], dx[:32], dgamma, dbeta], [y[32:], dx[32:], zero, zero]]
        moving = (layer.moving_mean.numpy(), layer.moving_variance.numpy())
        results[f"{mean:g}"] = compare(outputs, moving, mean)
    return results


if __name__ == "__main__":
    print(
        json.dumps(
            {"mirrored": mirrored, "apart": apart, "fit": fit, "worker": worker}[sys.argv[1]](*sys.argv[2:])
        )
    )
