"""The study's network: one small CNN, with the normalization passed in.

Conv 5x5, 30 filters, 'same' -> [norm] -> ReLU -> MaxPool 2x2 -> Flatten -> Dense 100 -> [norm] -> ReLU -> Dense 10.

The figures of 2019 are reproduced with the first normalization alone, so that is the default.
"""

import contextlib
import importlib
import inspect

import keras
import numpy as np
import tensorflow as tf

FILTERS, HIDDEN, CLASSES = 30, 100, 10
INITIAL_STD = 0.1
PLACES = ("input", "conv", "relu", "hidden")  # where a normalization may stand

# The study's methods: the layer and its arguments, own and TensorFlow's. One epsilon for all.
_BATCH = (("epsilon", 1e-5), ("momentum", 0.9))
_IMAGE = (("axis", (1, 2, 3)), ("epsilon", 1e-5))
METHODS = {
    "none": {},
    "BN": {"norm": "normlib:BatchNormalization", "options": _BATCH},
    "LN": {"norm": "normlib:LayerNormalization", "options": _IMAGE},
    "WN": {"norm": "normlib:WeightNormalization", "where": ("conv", "hidden")},
    "LN-C": {"norm": "normlib:LayerNormalization", "options": (("epsilon", 1e-5),)},
    "GN": {"norm": "normlib:GroupNormalization", "options": (("groups", 6), ("epsilon", 1e-5))},
    "IN": {"norm": "normlib:InstanceNormalization", "options": (("epsilon", 1e-5),)},
    "RMS": {"norm": "normlib:RMSNormalization", "options": (("epsilon", 1e-5),)},
    "WN+MO": {"norm": "study.controls:WeightAndMeanOnlyBatchNormalization", "where": ("conv", "hidden")},
    # Where it stands: behind the dense layer too, there alone, and behind the ReLU.
    "BN, both": {"norm": "normlib:BatchNormalization", "options": _BATCH, "where": ("conv", "hidden")},
    "LN, both": {"norm": "normlib:LayerNormalization", "options": _IMAGE, "where": ("conv", "hidden")},
    "BN, dense": {"norm": "normlib:BatchNormalization", "options": _BATCH, "where": ("hidden",)},
    "LN, dense": {"norm": "normlib:LayerNormalization", "options": _IMAGE, "where": ("hidden",)},
    "BN, after ReLU": {"norm": "normlib:BatchNormalization", "options": _BATCH, "where": ("relu",)},
    "BN, without parameters": {
        "norm": "normlib:BatchNormalization",
        "options": (*_BATCH, ("center", False), ("scale", False)),
    },
    # gamma starts so that activations are as large as without normalization
    "BN, as large": {"norm": "study.controls:AsLargeBatchNormalization", "options": _BATCH},
    "LN, as large": {"norm": "study.controls:AsLargeLayerNormalization", "options": _IMAGE},
    # controls
    "input": {
        "norm": "normlib:BatchNormalization",
        "options": (*_BATCH, ("center", False), ("scale", False)),
        "where": ("input",),
    },
    "first": {"norm": "study.controls:FirstBatch"},
    "noisy BN": {"norm": "study.controls:NoisyBatchNormalization", "options": _BATCH},
    "ghost BN": {"norm": "study.controls:GhostBatchNormalization", "options": _BATCH},
    "affine": {"norm": "study.controls:Affine"},
    "DyT": {"norm": "study.controls:DynamicTanh"},
}
REFERENCES = {
    "BN": {"norm": "keras.layers:BatchNormalization", "options": _BATCH},
    "LN": {"norm": "keras.layers:LayerNormalization", "options": _IMAGE},
    "WN": {
        "norm": "tensorflow_probability.python.layers.weight_norm:WeightNorm",
        "options": (("data_init", False),),
        "where": ("conv", "hidden"),
    },
}

# No gradient through the mean, the variance or both (Xu et al. 2019).
PARTS = ("mean", "variance", "statistics")
METHODS |= {
    f"{method}, {part} detached": {
        "norm": f"study.faulty:Faulty{METHODS[method]['norm'].partition(':')[2]}",
        "options": (*METHODS[method]["options"], ("fault", f"detached {part}")),
    }
    for method in ("BN", "LN")
    for part in PARTS
}


def resolve(path):
    """The class that an import path names.

    Args:
        path: "module:Class", such as "normlib:BatchNormalization" or "keras.layers:BatchNormalization".

    Raises:
        ValueError: no such form, module or class.
    """
    module, _, name = path.partition(":")
    try:
        if not name:
            raise ValueError("no class is named")
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"Expected an import path 'module:Class' ({error}). Received: {path!r}") from error


def is_wrapper(kind):
    """Whether a class wraps a layer with a kernel, such as weight normalization."""
    return issubclass(kind, framework(kind).layers.Wrapper)


def make(kind, arguments, features, *wrapped):
    """Make a layer, also of a class that takes less than Keras's do.

    Args:
        kind: its class.
        arguments: dict of its arguments. Of `dtype` and `name`, those that the class does not take are left out: the
            default policy gives the dtype, and the layer is renamed.
        features: size of its inputs' last axis. An argument that has no default, and is the only such one, is taken for
            it.
        wrapped: the layer that a wrapper is given; it needs no size then.
    """
    _, *parameters = inspect.signature(kind.__init__).parameters.values()
    taken = {p.name for p in parameters}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        taken |= {"dtype", "name"}
    left_out = {name: arguments[name] for name in {"dtype", "name"} - taken if name in arguments}
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and not wrapped]
    sizes = {p.name: features for p in named if p.default is p.empty and p.name not in arguments}
    given = {name: value for name, value in arguments.items() if name not in left_out}
    layer = kind(*wrapped, **given, **(sizes if len(sizes) == 1 else {}))
    if "name" in left_out:
        layer.name = left_out["name"]
    return layer


def build(
    input_shape, norm=None, options=(), where=("conv",), seed=2612, dtype="float32", nudge=0, bias=True
):
    """Build the network with its initial weights.

    The weights come from one stream of random numbers for each layer, fixed by the seed alone:
    every normalization starts from the same weights.

    Args:
        input_shape: (height, width, channels).
        norm: import path of the normalization layer, or of a wrapper of layers with a kernel;
            None for none. One that takes a `seed`, such as for noise, is given the network's.
        options: the layer's arguments, as (name, value) pairs. `axis` is that of the images; on the
            flat features it is -1.
        where: what is normalized: of "input", the images, "conv" and "hidden", these layers'
            outputs, or their kernels by a wrapper, and "relu", what the ReLU lets through.
        seed: fixes the initial weights, normal with mean 0 and standard deviation 0.1; biases are 0.
        dtype: "float32" or "float64", of weights and activations.
        nudge: if k > 0, the k-th weight of the convolution is moved by one unit in the last place.
        bias: whether the convolution has a bias.

    Returns:
        A Keras `Sequential` model (of Keras 2 if the norm is made for that), built, that gives
        logits.
    """
    norm_class = resolve(norm) if norm else None
    keras_of_it = framework(norm_class)
    layers = keras_of_it.layers
    wraps = norm_class is not None and is_wrapper(norm_class)
    if wraps and set(where) - {"conv", "hidden"}:
        raise ValueError(
            f"Expected a wrapper where there is a kernel, 'conv' or 'hidden'. Received: where={where!r}"
        )
    arguments = dict(options) | {"dtype": dtype}
    if norm and "seed" in inspect.signature(norm_class).parameters:
        arguments.setdefault("seed", seed)

    def with_kernel(cls, index, name, *args, **kwargs):
        layer = cls(*args, kernel_initializer=initial(seed, index, nudge), dtype=dtype, name=name, **kwargs)
        if not wraps or name not in where:
            return layer
        return make(norm_class, arguments | {"name": f"norm_{name}"}, None, layer)

    def normalized(name, features, **flat):
        if norm_class is None or wraps or name not in where:
            return []
        return [make(norm_class, arguments | flat | {"name": f"norm_{name}"}, features)]

    with by_default(dtype, keras_of_it):
        return keras_of_it.Sequential(
            [
                layers.InputLayer(input_shape),
                *normalized("input", input_shape[-1]),
                with_kernel(layers.Conv2D, 0, "conv", FILTERS, 5, padding="same", use_bias=bias),
                *normalized("conv", FILTERS),
                layers.ReLU(dtype=dtype),
                *normalized("relu", FILTERS),
                layers.MaxPooling2D(dtype=dtype),
                layers.Flatten(dtype=dtype),
                with_kernel(layers.Dense, 1, "hidden", HIDDEN),
                *normalized("hidden", HIDDEN, **({"axis": -1} if "axis" in arguments else {})),
                layers.ReLU(dtype=dtype),
                with_kernel(layers.Dense, 2, "logits", CLASSES),
            ],
            name="network",
        )


@contextlib.contextmanager
def by_default(dtype, keras_of_it):
    """Within, layers that are given no dtype, such as those inside another, have this one."""
    before = keras_of_it.mixed_precision.global_policy()
    keras_of_it.mixed_precision.set_global_policy(dtype)
    try:
        yield
    finally:
        keras_of_it.mixed_precision.set_global_policy(before)


def norm_variables(model):
    """The trainable variables that belong to the normalization, by name such as "norm_conv/gamma"."""
    found = {}
    for layer in model.layers:
        if layer.name.startswith("norm_"):
            for variable in layer.trainable_variables:
                wrapped = hasattr(layer, "layer")  # whose bias is its own
                if (name := last_name(variable)) != "bias" or not wrapped:
                    found[f"{layer.name}/{name}"] = variable
    return found


def last_name(variable):
    """A variable's own name, without those of the layers around it: "gamma" of "norm_conv/gamma:0"."""
    return variable.name.split("/")[-1].split(":")[0]


def framework(norm_class):
    """Keras, or the Keras 2 that layers made for it need."""
    if norm_class is None or issubclass(norm_class, keras.layers.Layer):
        return keras
    import tf_keras

    if not issubclass(norm_class, tf_keras.layers.Layer):
        raise ValueError(f"Expected a Keras layer. Received: {norm_class!r}")
    return tf_keras


def initial(seed, index, nudge=0):
    """An initializer for the kernel of the layer with this index, from a stream of random numbers of its own; where
    nudge is k > 0, the k-th weight of the first layer is moved by one unit in the last place."""

    def initializer(shape, dtype=None, **_):
        stream = np.random.default_rng(np.random.SeedSequence([seed, index]))
        weights = stream.normal(0.0, INITIAL_STD, shape).astype("float32")
        if index == 0 and nudge:
            flat = weights.reshape(-1)
            flat[nudge - 1] = np.nextafter(flat[nudge - 1], np.float32(np.inf))
        return tf.constant(weights, dtype)

    return initializer
