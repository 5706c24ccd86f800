"""Normalization layers from scratch, as drop-in replacements for Keras's.

Two maps own every gradient derived by hand; the layers above them say only which axes are averaged.

* `standardize`: batch, layer, group, instance and RMS normalization.
* `weight_normalize`: weight normalization.

Both backward passes are one idea: take out of the incoming gradient what the output cannot express (a shift, a
change of length), then rescale. The symbols, here and everywhere in the project:

    x, y            input and output of a layer
    mean, variance  over the averaged axes;  inv_std = 1 / sqrt(variance + epsilon)
    x_hat           (x - mean) * inv_std;    y = gamma * x_hat + beta
    v, g            direction and length of a weight vector;  w = g * v / |v|
    dx, dy, ...     gradient of the loss with respect to x, y, ...

Decisions, each stated once and tested:

* the variance is two-pass and biased (divided by N), and epsilon stands inside the root;
* statistics are computed in float32 at least, whatever the dtype of the input;
* the mean is corrected once by the mean of the deviations, so that offsets of a million standard deviations
  leave float32 statistics right;
* `momentum` is the weight of the old value; statistics that are not finite (an empty batch, a NaN) are not
  averaged in;
* gradients are right to every order: the backward pass has a derivative of its own.
"""

import functools
import math
import operator
import typing
import warnings

import keras
import numpy as np
import tensorflow as tf

__all__ = [
    "BatchNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "MeanOnlyBatchNormalization",
    "RMSNormalization",
    "WeightNormalization",
    "fold",
    "initialize_from_data",
    "recalibrate",
    "standardize",
    "weight_normalize",
]

# Below this many elements the launch of a compiled kernel costs more than it saves.
COMPILE_FROM = 32_768


# --------------------------------------------------------------------------------------------------------------
# Normalizing maps
# --------------------------------------------------------------------------------------------------------------


def standardize(
    x, axes, epsilon, center=True, gamma=None, beta=None, *, groups=None, weights=None, all_reduce=None
):
    r"""Standardize over `axes`, then scale and shift: the map under every layer but weight normalization.

    $$ y = \gamma \hat x + \beta, \quad \hat x = (x - \mu) / \sqrt{\sigma^2 + \epsilon} $$
    $$ dx = \frac{1}{\sqrt{\sigma^2 + \epsilon}}
            \bigl( d - \overline{d} - \hat x \, \overline{d \hat x} \bigr), \quad d = \gamma \, dy $$

    The bar is the mean over the averaged set. Without centring (RMS) the mean is 0 and its term drops.

    Shapes: `x` any rank; `gamma`, `beta` and `weights` of x's rank, broadcastable to it; `mean` and `variance` of
        x's rank, with the averaged axes kept at size 1.

    Args:
        x: floating-point tensor.
        axes: tuple of non-negative ints, the averaged axes.
        epsilon: added to the variance, in the squared unit of x.
        center: whether the mean is taken out. Default True.
        gamma, beta: scale and shift. Default None: 1 and 0.
        groups: (axis, number): channels along the axis are averaged within each group too. Default None.
        weights: 1 where an element counts in the statistics, 0 where it does not. Default None: all count.
        all_reduce: function that sums a tensor over all replicas. Default None: one replica.

    Returns:
        `(y, mean, variance)`: y in x's dtype, the statistics in at least float32. No gradient flows through the
        two statistics themselves; y's gradient accounts for them.

    Reference: Ioffe and Szegedy 2015 (arXiv:1502.03167), Algorithm 1 and the gradients below it.
    """
    plan = _Plan(
        tuple(axes), float(epsilon), center, groups, gamma is not None, beta is not None, weights, all_reduce
    )
    run = functools.partial(_run, plan)

    @tf.custom_gradient
    def forward(x, *parameters):
        y, *statistics = run(_standardize, x, *parameters)

        def gradients(dy, *inputs):
            return run(_standardize_gradients, dy, *statistics, *inputs)

        def plain_gradients(dy, *inputs):  # the same, with the statistics as functions of x
            statistics = _standardize(plan, *inputs)[1:]
            return _standardize_gradients(plan, dy, *statistics, *inputs)

        def grad(dy, *_):
            return _differentiable(gradients, plain_gradients)(dy, x, *parameters)

        return (y, *statistics), grad

    y, origin, residue, variance = forward(x, *(p for p in (gamma, beta) if p is not None))
    return y, tf.stop_gradient(origin + residue), tf.stop_gradient(variance)


class _Plan(typing.NamedTuple):
    """What is averaged and how: all that a kernel is told beside its tensors."""

    axes: tuple
    epsilon: float
    center: bool
    groups: tuple | None
    scale: bool
    shift: bool
    weights: tf.Tensor | None
    all_reduce: typing.Callable | None

    @property
    def compilable(self):
        """Whether it can be compiled once for all: not with one call's mask or a reduction over replicas."""
        return self.weights is None and self.all_reduce is None


def _standardize(plan, x, *parameters):
    """The forward kernel: y and the statistics. The mean comes in two parts: their sum is more exact than a float."""
    combine, count = _averaging(plan, x)

    def mean_of(t, product=False):
        counted = t if plan.weights is None else tf.where(plan.weights > 0, t, 0.0)
        return combine(_sum(counted, plan.axes, product)) / count

    x_wide = _widen(x)
    origin = residue = tf.zeros([1] * x.shape.rank, x_wide.dtype)
    if plan.center:
        origin = tf.stop_gradient(_near_the_mean(plan, x_wide) if plan.compilable else mean_of(x_wide))
        residue = mean_of(x_wide - origin)
    deviation = (x_wide - origin) - residue
    variance = mean_of(tf.square(deviation), product=True)
    y = _scale_and_shift(plan, deviation * tf.math.rsqrt(variance + plan.epsilon), parameters)
    return tf.cast(y, x.dtype), origin, residue, variance


def _standardize_by(plan, x, mean, variance, *parameters):
    """The kernel of inference: y, from statistics that are given."""
    x_hat = (_widen(x) - mean) * tf.math.rsqrt(variance + plan.epsilon)
    return tf.cast(_scale_and_shift(plan, x_hat, parameters), x.dtype)


def _scale_and_shift(plan, x_hat, parameters):
    y = x_hat * tf.cast(parameters[0], x_hat.dtype) if plan.scale else x_hat
    return y + tf.cast(parameters[-1], y.dtype) if plan.shift else y


def _standardize_gradients(plan, dy, origin, residue, variance, x, *parameters):
    """The backward kernel: dx, then dgamma and dbeta if there are such. Only x and the statistics were kept."""
    combine, count = _averaging(plan, x)
    inv_std = tf.math.rsqrt(variance + plan.epsilon)
    x_hat = (_widen(x) - origin - residue) * inv_std
    dy = _widen(dy)
    gamma = tf.cast(parameters[0], dy.dtype) if plan.scale else tf.ones([1] * x.shape.rank, dy.dtype)
    # A masked position may hold anything, NaN too, as long as the loss does not see it.
    dy_x_hat = dy * x_hat if plan.weights is None else tf.math.multiply_no_nan(x_hat, dy)

    # What the output cannot express: a shift of the averaged set, and a change of its length.
    if all(gamma.shape[axis] == 1 for axis in plan.axes):
        sum_dy, sum_dy_x_hat = _sum(dy, plan.axes), _sum(dy_x_hat, plan.axes, product=True)
        along_one, along_x_hat = (combine(gamma * t) / count for t in (sum_dy, sum_dy_x_hat))
    else:
        sum_dy, sum_dy_x_hat = dy, dy_x_hat
        along_one, along_x_hat = (combine(_dot(t, gamma, plan.axes)) / count for t in (dy, dy_x_hat))
    inexpressible = along_one + x_hat * along_x_hat if plan.center else x_hat * along_x_hat
    if plan.weights is not None:
        inexpressible = tf.where(plan.weights > 0, inexpressible, 0.0)

    gradients = [tf.cast(inv_std * (gamma * dy - inexpressible), x.dtype)]
    for wanted, gradient in ((plan.scale, sum_dy_x_hat), (plan.shift, sum_dy)):
        if wanted:
            parameter = parameters[len(gradients) - 1]
            broadcast = tuple(axis for axis, size in enumerate(parameter.shape) if size == 1)
            summed = _sum(gradient, broadcast, product=gradient is dy_x_hat)
            gradients.append(tf.cast(summed, parameter.dtype))
    return gradients


def _averaging(plan, x):
    """How sums over the axes combine to sums over the averaged set, and the number of elements in that set."""

    def combine(sums):
        sums = sums if plan.groups is None else _pool(sums, *plan.groups)
        return sums if plan.all_reduce is None else plan.all_reduce(sums)

    sizes = [x.shape[axis] for axis in plan.axes]
    if plan.compilable and None not in sizes:
        channels = x.shape[plan.groups[0]] // plan.groups[1] if plan.groups else 1
        return combine, float(math.prod(sizes) * channels)
    wide = _wide(x.dtype)
    counted = tf.ones_like(x, wide) if plan.weights is None else tf.cast(plan.weights, wide)
    return combine, tf.maximum(combine(tf.reduce_sum(counted, plan.axes, keepdims=True)), 1.0)


def _near_the_mean(plan, x):
    """A value near each averaged set's mean, from its first slice alone.

    Deviations from it are as small as those from the mean, and it costs no pass over the input. What is computed from
    them does not depend on it.
    """

    def first_along(axes, t):
        return t[tuple(slice(1) if axis in axes else slice(None) for axis in range(t.shape.rank))]

    first = first_along(plan.axes[:1], x)
    element = first_along(plan.axes, first)
    element = tf.reduce_sum(element, plan.axes, keepdims=True)  # keeps its shape where the batch is empty
    near = element + tf.reduce_mean(first - element, plan.axes, keepdims=True)
    return near if plan.groups is None else _pool(near, *plan.groups, tf.reduce_mean)


def _pool(t, axis, groups, reduce=tf.reduce_sum):
    """Reduce over the channels of each group, and give every channel its group's result."""
    shape = tf.shape(t)
    split = tf.concat([shape[:axis], [groups, t.shape[axis] // groups], shape[axis + 1 :]], 0)
    pooled = reduce(tf.reshape(t, split), axis + 1, keepdims=True)
    return tf.reshape(tf.broadcast_to(pooled, split), shape)


def _sum(t, axes, product=False):
    """Sum over the axes; of a product, in the form that XLA's CPU compiler vectorizes.

    It gives a sum to its fast kernel only if the summed expression does not end in a multiplication. The maximum with
    -inf ends it otherwise and changes no value. Sums along rows are fastest as a product with ones. The first axis (of
    long rows too) is summed by itself, last: two short chains of additions round less than a long one.
    """
    if _are_last(axes, t) and 8 <= (row := t.shape[-1] or 0) <= 4096:
        t, axes = t @ tf.ones([row, 1], t.dtype), axes[:-1]
        if not axes:
            return t
    if product:
        t = tf.maximum(t, -math.inf)
    if len(axes) > 1:  # the maximum also keeps the compiler from joining the two sums again
        t, axes = tf.maximum(tf.reduce_sum(t, axes[1:], keepdims=True), -math.inf), axes[:1]
    return tf.reduce_sum(t, axes, keepdims=True)


def _dot(t, parameter, axes):
    """Sum of t times a parameter over the axes; as a matrix-vector product where both are rows."""
    if not _are_last(axes, t) or parameter.shape[axes[0] :] != t.shape[axes[0] :]:
        return _sum(t * parameter, axes, product=True)
    sums = tf.reshape(t, [-1, parameter.shape.num_elements()]) @ tf.reshape(parameter, [-1, 1])
    return tf.reshape(sums, tf.concat([tf.shape(t)[: axes[0]], [1] * len(axes)], 0))


def _are_last(axes, t):
    return bool(axes) and axes == tuple(range(t.shape.rank - len(axes), t.shape.rank))


def _wide(dtype):
    return tf.float64 if dtype == tf.float64 else tf.float32


def _widen(t):
    return tf.cast(t, _wide(t.dtype))


def _differentiable(fast, plain):
    """`fast`, with the derivative of `plain`: how a backward pass gets its own derivative."""

    @tf.custom_gradient
    def function(*tensors):
        tensors = [tf.identity(t) for t in tensors]  # of this graph, so that later graphs can reach them

        def grad(*upstream):
            with tf.GradientTape() as tape:
                tape.watch(tensors)
                outputs = plain(*tensors)
            return tape.gradient(outputs, tensors, upstream, "zero")

        return fast(*tensors), grad

    return function


def _run(plan, kernel, *tensors):
    """Run a kernel compiled where it is large, operation by operation where it is small or cannot be compiled ahead."""
    if not plan.compilable:
        return kernel(plan, *tensors)
    size = tensors[0].shape.num_elements()
    if size is not None:
        return (_compiled(kernel, plan) if size >= COMPILE_FROM else functools.partial(kernel, plan))(
            *tensors
        )
    return tf.cond(
        tf.size(tensors[0]) >= COMPILE_FROM,
        lambda: _compiled(kernel, plan)(*tensors),
        lambda: kernel(plan, *tensors),
    )


@functools.cache
def _compiled(kernel, plan):
    return tf.function(functools.partial(kernel, plan), jit_compile=True, autograph=False)


def weight_normalize(v, g, axes):
    r"""Give each weight vector of v the length g: the map under `WeightNormalization`.

    $$ w = g \, u, \quad u = v / |v|, \qquad
       dv = \frac{g}{|v|} \bigl( dw - u \langle u, dw \rangle \bigr), \quad dg = \langle u, dw \rangle $$

    Shapes: v any; g of v's rank, with the averaged axes at size 1; w like v.

    Args:
        v: floating-point tensor, the directions.
        g: floating-point tensor, the lengths, in w's unit.
        axes: tuple of non-negative ints: the axes that make up one weight vector.

    Returns:
        w in v's dtype. A vector of length zero has no direction: its w and its dv are zero, never NaN.

    Reference: Salimans and Kingma 2016 (arXiv:1602.07868), equations 2 and 3.
    """
    plan = _Plan(tuple(axes), 0.0, False, None, True, False, None, None)
    run = functools.partial(_run, plan)

    @tf.custom_gradient
    def forward(v, g):
        gradients = functools.partial(run, _weight_normalize_gradients)
        plain_gradients = functools.partial(_weight_normalize_gradients, plan)

        def grad(dw):
            return _differentiable(gradients, plain_gradients)(dw, v, g)

        return run(_weight_normalize, v, g), grad

    return tf.cast(forward(_widen(v), _widen(g)), v.dtype)


def _weight_normalize(plan, v, g):
    """The forward kernel: w."""
    return v * (g * _inverse_length(plan, v))


def _weight_normalize_gradients(plan, dw, v, g):
    """The backward kernel: dv and dg."""
    inverse = _inverse_length(plan, v)
    u = v * inverse
    dg = _sum(u * dw, plan.axes, product=True)
    return g * inverse * (dw - u * dg), dg


def _inverse_length(plan, v):
    return tf.math.reciprocal_no_nan(tf.sqrt(_sum(tf.square(v), plan.axes, product=True)))


# --------------------------------------------------------------------------------------------------------------
# Layers
# --------------------------------------------------------------------------------------------------------------


class _Normalization(keras.layers.Layer):
    """What the layers share: gamma and beta, their options, the configuration, the error messages.

    The axes given carry the parameters (`_features`); a layer says which are averaged (`_reduction_axes`).
    """

    _keeps_rank = True
    _config = ("axis", "epsilon", "center", "scale")
    # Options of the parameters, in Keras's order, with their defaults.
    _parts = {
        "beta_initializer": "zeros",
        "gamma_initializer": "ones",
        "beta_regularizer": None,
        "gamma_regularizer": None,
        "beta_constraint": None,
        "gamma_constraint": None,
    }

    def __init__(self, axis=-1, epsilon=1e-3, center=True, scale=True, *parts, **options):
        if len(parts) > len(self._parts):
            raise TypeError(f"Expected at most {', '.join(self._parts)} after `scale`. Received: {parts!r}")
        given = dict(zip(self._parts, parts, strict=False))
        given = {part: options.pop(part, given.get(part, default)) for part, default in self._parts.items()}
        super().__init__(**options)
        self.axis = axis
        self.epsilon = _number("epsilon", epsilon, 0.0)
        self.center = center
        self.scale = scale
        for part, value in given.items():
            setattr(self, part, _kind(part).get(value))
        self.gamma = self.beta = None
        self.supports_masking = True
        self.autocast = False

    def _features(self, rank):
        """The axes that carry gamma and beta, ascending and non-negative."""
        axes = self.axis if isinstance(self.axis, (list, tuple)) else [self.axis]
        return sorted(axis % rank for axis in axes)

    def _check_axes(self, shape):
        for axis in self.axis if isinstance(self.axis, (list, tuple)) else [self.axis]:
            if not -len(shape) <= axis < len(shape):
                raise ValueError(
                    f"Axis {axis} is out of bounds for input shape {tuple(shape)}. Received: axis={self.axis}"
                )
        features = self._features(len(shape))
        if len(set(features)) < len(features):
            raise ValueError(
                f"Expected each axis once. Received: axis={self.axis} for input shape {tuple(shape)}"
            )
        for axis in features:
            if shape[axis] is None:
                raise ValueError(
                    f"Axis {axis} of input tensor should have a defined dimension but the layer received an input "
                    f"with shape {tuple(shape)}. Received: axis={self.axis}"
                )

    def _reduction_axes(self, rank):
        """The averaged axes, ascending and non-negative."""
        raise NotImplementedError

    def build(self, input_shape):
        self._check_axes(input_shape)
        # As in Keras, the sizes follow the axes as given in ascending order, negative ones first.
        given = sorted(self.axis) if isinstance(self.axis, (list, tuple)) else [self.axis]
        shape = tuple(input_shape[axis] for axis in given)
        for name, wanted in (("gamma", self.scale), ("beta", self.center)):
            if wanted:
                kinds = ("initializer", "regularizer", "constraint")
                options = {
                    kind: getattr(self, part) for kind in kinds if (part := f"{name}_{kind}") in self._parts
                }
                setattr(self, name, self._add_parameter(name, shape, options))
        rank = len(input_shape) if self._keeps_rank else None
        self.input_spec = keras.layers.InputSpec(ndim=rank, axes={axis: input_shape[axis] for axis in given})
        self.built = True

    def _add_parameter(self, name, shape, options):
        return self.add_weight(shape=shape, name=name, autocast=False, **options)

    def _broadcast(self, parameter, rank):
        """A parameter with the input's rank, so that it lines up with its axes."""
        if parameter is None:
            return None
        sizes = {axis % rank: size for axis, size in self.input_spec.axes.items()}
        return tf.reshape(parameter, [sizes.get(axis, 1) for axis in range(rank)])

    def _standardize(self, x, **options):
        _check_floating(x)
        rank = x.shape.rank
        gamma, beta = (self._broadcast(parameter, rank) for parameter in (self.gamma, self.beta))
        y, mean, variance = standardize(
            x, self._reduction_axes(rank), self.epsilon, gamma=gamma, beta=beta, **options
        )
        return tf.cast(y, self.compute_dtype), mean, variance

    def call(self, inputs):
        return self._standardize(inputs)[0]

    def compute_output_shape(self, input_shape):
        self._check_axes(input_shape)
        return tuple(input_shape)

    def get_config(self):
        config = {name: getattr(self, name) for name in self._config}
        for part in self._parts:
            config[part] = _kind(part).serialize(getattr(self, part))
        return {**super().get_config(), **config}


def _kind(part):
    """Keras's module of the initializers, regularizers or constraints, whichever the part is one of."""
    return getattr(keras, f"{part.rpartition('_')[2]}s")


@keras.saving.register_keras_serializable("normlib")
class LayerNormalization(_Normalization):
    """Standardize each sample over its features (Ba et al. 2016).

    y = gamma * (x - mean) / sqrt(variance + epsilon) + beta, the statistics over `axis`, sample by sample.

    Shapes: input any rank from 2; gamma and beta have the sizes of the normalized axes, in ascending order; output
        like the input.

    Args:
        axis: int or list of ints, the normalized axes, which also carry gamma and beta. Default -1.
        epsilon: added to the variance, in the squared unit of the input. Default 1e-3.
        center, scale: whether there is a beta, a gamma. Default True.
        beta_initializer, gamma_initializer: default "zeros", "ones".
        beta_regularizer, gamma_regularizer, beta_constraint, gamma_constraint: default None.
        rms_scaling: Keras's deprecated form, x divided by its deviation without centring, and no beta. Default False.

    Raises:
        ValueError: an axis out of bounds, repeated or of unknown size; a negative epsilon.
        TypeError: an axis that is no int; an input that is not floating-point.

    Reference: arXiv:1607.06450, equation 3.
    """

    _keeps_rank = False
    _config = (*_Normalization._config, "rms_scaling")

    def __init__(self, axis=-1, epsilon=1e-3, center=True, scale=True, *parts, **kwargs):
        self.rms_scaling = kwargs.pop("rms_scaling", False)
        if self.rms_scaling:
            warnings.warn(
                "rms_scaling=True divides by the deviation without centring; use RMSNormalization",
                stacklevel=2,
            )
            center, scale = False, True
        super().__init__(_integers("axis", axis), epsilon, center, scale, *parts, **kwargs)

    def _reduction_axes(self, rank):
        return tuple(self._features(rank))

    def call(self, inputs):
        if not self.rms_scaling:
            return super().call(inputs)
        x = _widen(inputs)
        variance = tf.math.reduce_variance(x, self._features(x.shape.rank), keepdims=True)
        y = (
            x
            * tf.math.rsqrt(variance + self.epsilon)
            * tf.cast(self._broadcast(self.gamma, x.shape.rank), x.dtype)
        )
        return tf.cast(y, self.compute_dtype)


@keras.saving.register_keras_serializable("normlib")
class BatchNormalization(_Normalization):
    """Standardize each feature over the batch (Ioffe and Szegedy 2015).

    In training, y = gamma * (x - mean) / sqrt(variance + epsilon) + beta with the statistics of the batch, and

        moving_mean     <- momentum * moving_mean     + (1 - momentum) * mean
        moving_variance <- momentum * moving_variance + (1 - momentum) * variance

    In inference, and where `trainable` is False, the moving statistics take the place of the batch's.

    Shapes: input any rank from 2; gamma, beta and the moving statistics (size of `axis`,); output like the input.

    Args:
        axis: int, the feature axis; all others are averaged. Default -1.
        momentum: weight of the old moving statistics, from 0 to 1. Default 0.99.
        epsilon: added to the variance, in the squared unit of the input. Default 1e-3.
        center, scale: whether there is a beta, a gamma. Default True.
        beta_initializer, gamma_initializer, moving_mean_initializer, moving_variance_initializer: default "zeros",
            "ones", "zeros", "ones".
        beta_regularizer, gamma_regularizer, beta_constraint, gamma_constraint: default None.
        synchronized: whether the statistics are those of all replicas together under `tf.distribute`. Default False.

    Call arguments:
        inputs: floating-point tensor.
        training: whether the batch's statistics are used, and averaged into the moving ones.
        mask: tensor with one dimension less than the input, broadcastable to it: where it is False, the element does
            not count in the statistics.

    Raises:
        ValueError: an axis out of bounds or of unknown size, a negative epsilon, a momentum outside [0, 1], a mask of
            the wrong rank, `renorm=True` (batch renormalization is another layer).
        TypeError: an axis that is no int; an input that is not floating-point.

    Reference: arXiv:1502.03167, Algorithms 1 and 2.
    """

    _config = (*_Normalization._config, "momentum", "synchronized")
    _parts = {
        "beta_initializer": "zeros",
        "gamma_initializer": "ones",
        "moving_mean_initializer": "zeros",
        "moving_variance_initializer": "ones",
    } | _Normalization._parts
    _statistics = ("moving_mean", "moving_variance")

    def __init__(
        self,
        axis=-1,
        momentum=0.99,
        epsilon=1e-3,
        center=True,
        scale=True,
        *parts,
        synchronized=False,
        **options,
    ):
        if options.pop("renorm", False):
            raise ValueError(
                "Expected renorm=False: batch renormalization is not offered. Received: renorm=True"
            )
        for name in ("renorm_clipping", "renorm_momentum"):  # in Keras's configurations
            options.pop(name, None)
        super().__init__(_integer("axis", axis), epsilon, center, scale, *parts, **options)
        self.autocast = True
        self.momentum = _number("momentum", momentum, 0.0, 1.0)
        self.synchronized = bool(synchronized)

    def _reduction_axes(self, rank):
        return tuple(axis for axis in range(rank) if axis not in self._features(rank))

    def build(self, input_shape):
        super().build(input_shape)
        for name in self._statistics:
            weight = self.add_weight(
                shape=(input_shape[self.axis],),
                name=name,
                initializer=getattr(self, f"{name}_initializer"),
                trainable=False,
                autocast=False,
                aggregation="mean",
            )
            setattr(self, name, weight)

    def call(self, inputs, training=None, mask=None):
        if mask is not None and len(mask.shape) != len(inputs.shape) - 1:
            raise ValueError(
                "The mask provided should be one dimension less than the inputs. Received: "
                f"mask.shape={tuple(mask.shape)}, inputs.shape={tuple(inputs.shape)}"
            )
        if mask is not None and not all(
            m in (1, n) or None in (m, n) for m, n in zip(mask.shape, inputs.shape[:-1], strict=True)
        ):
            raise ValueError(
                f"Expected a mask that broadcasts to {tuple(inputs.shape[:-1])}, the input's shape but for its last "
                f"dimension. Received: mask.shape={tuple(mask.shape)}, inputs.shape={tuple(inputs.shape)}"
            )
        if not (training and self.trainable):
            return self._infer(inputs)
        options = {}
        if mask is not None:
            options["weights"] = tf.broadcast_to(tf.cast(mask, "float32")[..., None], tf.shape(inputs))
        if self.synchronized:
            options["all_reduce"] = _sum_over_replicas
        y, *statistics = self._standardize(inputs, **options)
        self._average(statistics)
        return y

    def _infer(self, x):
        _check_floating(x)
        given = (self.moving_mean, self.moving_variance, self.gamma, self.beta)
        wide = [tf.cast(self._broadcast(p, x.shape.rank), _wide(x.dtype)) for p in given if p is not None]
        plan = _Plan((), self.epsilon, True, None, self.scale, self.center, None, None)
        return tf.cast(_run(plan, _standardize_by, x, *wide), self.compute_dtype)

    def _average(self, statistics):
        for name, batch in zip(self._statistics, statistics, strict=True):
            moving = getattr(self, name)
            old = _widen(tf.convert_to_tensor(moving))
            new = old * self.momentum + tf.cast(tf.reshape(batch, old.shape), old.dtype) * (
                1.0 - self.momentum
            )
            moving.assign(tf.where(tf.math.is_finite(new), new, old))


@keras.saving.register_keras_serializable("normlib")
class MeanOnlyBatchNormalization(BatchNormalization):
    """Take the batch's mean out of each feature and leave its deviation (Salimans and Kingma 2016).

    y = x - mean + beta: the companion of `WeightNormalization`, which fixes the deviation through the weights.

    Shapes, call arguments and errors: as BatchNormalization, without gamma and variance.

    Args:
        axis: int, the feature axis. Default -1.
        momentum: weight of the old moving mean, from 0 to 1. Default 0.99.
        center: whether there is a beta. Default True.
        **kwargs: beta's and the moving mean's options, `synchronized`, and a Keras layer's own arguments.

    Reference: arXiv:1602.07868, section 4.
    """

    _config = ("axis", "momentum", "center", "synchronized")
    _parts = {
        part: default
        for part, default in BatchNormalization._parts.items()
        if "gamma" not in part and "variance" not in part
    }
    _statistics = ("moving_mean",)

    def __init__(self, axis=-1, momentum=0.99, center=True, **kwargs):
        super().__init__(axis, momentum, center=center, scale=False, **kwargs)

    def _standardize(self, x, weights=None, all_reduce=None):
        _check_floating(x)
        axes = self._reduction_axes(x.shape.rank)
        combine, count = _averaging(_Plan(axes, 0.0, True, None, False, False, weights, all_reduce), x)
        x_wide = _widen(x)
        counted = x_wide if weights is None else tf.where(weights > 0, x_wide, 0.0)
        mean = combine(_sum(counted, axes)) / count
        return self._shift(x_wide, mean), tf.stop_gradient(mean)

    def _infer(self, x):
        _check_floating(x)
        return self._shift(_widen(x), self._broadcast(self.moving_mean, x.shape.rank))

    def _shift(self, x, mean):
        y = x - tf.cast(mean, x.dtype)
        y = y if self.beta is None else y + tf.cast(self._broadcast(self.beta, x.shape.rank), x.dtype)
        return tf.cast(y, self.compute_dtype)


@keras.saving.register_keras_serializable("normlib")
class GroupNormalization(_Normalization):
    """Standardize each sample over all positions and a group of channels (Wu and He 2018).

    y = gamma * (x - mean) / sqrt(variance + epsilon) + beta, gamma and beta one a channel.

    Shapes: input any rank from 2; gamma and beta (size of `axis`,); output like the input.

    Args:
        groups: int, the number of groups; -1 for one group a channel. Default 32.
        axis: int, the channel axis. Default -1.
        epsilon: added to the variance, in the squared unit of the input. Default 1e-3.
        center, scale, and the initializers, regularizers and constraints of gamma and beta: as in LayerNormalization.

    Raises:
        ValueError: groups that are not a positive int or -1, or that do not divide the channels; a bad axis.
        TypeError: an axis that is no int; an input that is not floating-point.

    Reference: arXiv:1803.08494, equation 7.
    """

    _config = ("groups", *_Normalization._config)

    def __init__(self, groups=32, axis=-1, epsilon=1e-3, center=True, scale=True, *parts, **kwargs):
        if not isinstance(groups, int) or (groups <= 0 and groups != -1):
            raise ValueError(
                "Received an invalid value for argument `groups`, expected a positive integer (or `-1` for instance "
                f"normalization). Received: groups={groups}"
            )
        super().__init__(_integer("axis", axis), epsilon, center, scale, *parts, **kwargs)
        self.groups = groups

    def build(self, input_shape):
        self._check_axes(input_shape)
        channel = self.axis % len(input_shape)
        channels = input_shape[channel]
        groups = channels if self.groups == -1 else self.groups
        if channel == 0:
            raise ValueError(f"Expected a channel axis other than the batch's. Received: axis={self.axis}")
        if channels < groups:
            raise ValueError(
                f"Number of groups ({groups}) cannot be more than the number of channels ({channels}). "
                f"Received: groups={self.groups}, input shape {tuple(input_shape)}"
            )
        if channels % groups:
            raise ValueError(
                f"Expected the groups to divide the channels: group size times groups must be a multiple of the number "
                f"of channels ({channels}), exactly one. Received: groups={self.groups}, input shape "
                f"{tuple(input_shape)}"
            )
        super().build(input_shape)
        # One group a channel needs no pooling.
        self._pooling = None if groups == channels else (channel, groups)

    def _reduction_axes(self, rank):
        return tuple(axis for axis in range(1, rank) if axis not in self._features(rank))

    def call(self, inputs):
        return self._standardize(inputs, groups=self._pooling)[0]


@keras.saving.register_keras_serializable("normlib")
class InstanceNormalization(_Normalization):
    """Standardize each channel of each sample over its positions (Ulyanov et al. 2016).

    The group normalization with one channel a group. Arguments, shapes and errors as there, without `groups`.

    Reference: arXiv:1607.08022, equation 1.
    """

    def __init__(self, axis=-1, epsilon=1e-3, center=True, scale=True, *parts, **kwargs):
        super().__init__(_integer("axis", axis), epsilon, center, scale, *parts, **kwargs)

    def _reduction_axes(self, rank):
        return tuple(axis for axis in range(1, rank) if axis not in self._features(rank))


@keras.saving.register_keras_serializable("normlib")
class RMSNormalization(_Normalization):
    """Divide each sample by the root mean square of its features (Zhang and Sennrich 2019).

    y = scale * x / sqrt(mean(x^2) + epsilon), the mean over `axis`, sample by sample.

    Shapes: input any rank from 2; scale has the sizes of the normalized axes, ascending; output like the input.

    Args:
        axis: int or list of ints, the normalized axes, which also carry the scale. Default -1.
        epsilon: added to the mean square, in the squared unit of the input. Default 1e-6.

    Raises: as LayerNormalization.

    Reference: arXiv:1910.07467, equation 4.
    """

    _keeps_rank = False
    _config, _parts = ("axis", "epsilon"), {}

    def __init__(self, axis=-1, epsilon=1e-6, **kwargs):
        super().__init__(_integers("axis", axis), epsilon, center=False, **kwargs)
        self.supports_masking = False
        self.autocast = True

    def _add_parameter(self, name, shape, options):
        self.scale = self.add_weight(
            shape=shape, name="scale", initializer="ones"
        )  # Keras's name for this gamma
        return self.scale

    def _reduction_axes(self, rank):
        return tuple(self._features(rank))

    def call(self, inputs):
        return self._standardize(inputs, center=False)[0]


def _number(name, value, low, high=math.inf):
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not low <= number <= high or math.isinf(number):
        raise ValueError(f"`{name}` must be a number from {low:g} to {high:g}. Received: {name}={value!r}")
    return number


def _integer(name, value):
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(
            f"Expected an int or a list/tuple of ints for the argument '{name}'. Received: {value!r}"
        ) from None


def _integers(name, value):
    return (
        [_integer(name, item) for item in value]
        if isinstance(value, (list, tuple))
        else _integer(name, value)
    )


def _check_floating(x):
    if not x.dtype.is_floating:
        raise TypeError(f"Expected a floating-point input; cast it first. Received: dtype={x.dtype.name}")


def _sum_over_replicas(t):
    context = tf.distribute.get_replica_context()
    if context is None:
        raise RuntimeError(
            "Expected a synchronized layer to be called in a replica. Received: cross-replica context"
        )
    return context.all_reduce(tf.distribute.ReduceOp.SUM, t)


# --------------------------------------------------------------------------------------------------------------
# Weight reparameterization
# --------------------------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("normlib")
class WeightNormalization(keras.layers.Wrapper):
    """Train a layer's kernel as lengths times directions, w = g * v / |v| (Salimans and Kingma 2016).

    One g and one norm per output unit. The wrapped layer's own kernel is v; g starts at |v|, so that wrapping changes
    nothing until the first update. A regularizer or constraint of the wrapped layer acts on v.

    Shapes: those of the wrapped layer; g has the size of the kernel's output axes.

    Args:
        layer: a Keras layer with a kernel: Dense, EinsumDense, a convolution (transposed, depthwise, separable too).

    Raises:
        ValueError: a layer without a kernel, such as Embedding.

    Reference: arXiv:1602.07868, equation 2.
    """

    def __init__(self, layer, **kwargs):
        super().__init__(layer, **kwargs)
        if isinstance(layer, keras.layers.Embedding) or not (
            hasattr(layer, "kernel") or hasattr(layer, "depthwise_kernel") or not layer.built
        ):
            raise ValueError(f"Expected a layer with a kernel, such as Dense or Conv2D. Received: {layer!r}")

    def build(self, input_shape=None):
        super().build(input_shape)
        self._waits_for_data = False
        self._kernels = []
        for name, v, axes in _kernels(self.layer):
            length = tf.sqrt(tf.reduce_sum(tf.square(tf.convert_to_tensor(v)), axes))
            g = self.add_weight(
                shape=tuple(length.shape),
                name=name.replace("kernel", "g"),
                initializer=lambda *_, length=length, **__: length,
                dtype=v.dtype,
            )
            setattr(self, g.name, g)
            self._kernels.append((v, axes, g))

    def kernels(self):
        """The kernels w that the wrapped layer computes with, one for each v."""
        return [
            weight_normalize(tf.convert_to_tensor(v), _keep(tf.convert_to_tensor(g), axes), axes)
            for v, axes, g in self._kernels
        ]

    def call(self, inputs, **kwargs):
        if self._waits_for_data:
            self._set_from_data(inputs)
        computed = dict(zip((id(v) for v, _, _ in self._kernels), self.kernels(), strict=True))
        trainable = [computed.get(id(v), v) for v in self.layer.trainable_variables]
        fixed = [computed.get(id(v), v) for v in self.layer.non_trainable_variables]
        return self.layer.stateless_call(trainable, fixed, inputs, **kwargs)[0]

    def _set_from_data(self, inputs):
        """Give g and the bias the values with which these inputs have outputs of mean 0 and deviation 1."""
        layer, (_, _, g) = self.layer, self._kernels[-1]
        if getattr(layer, "bias", None) is None:
            raise ValueError(f"Expected a wrapped layer with a bias. Received: {layer!r}")
        self._waits_for_data, activation = False, layer.activation
        layer.activation = keras.activations.linear
        try:
            g.assign(tf.ones_like(g))
            layer.bias.assign(tf.zeros_like(layer.bias))
            t = _widen(self(inputs))
        finally:
            layer.activation = activation
        units = 1 if getattr(layer, "data_format", "channels_last") == "channels_first" else t.shape.rank - 1
        mean, variance = tf.nn.moments(t, [axis for axis in range(t.shape.rank) if axis != units])
        if not bool(tf.reduce_all(variance > 0)):
            raise ValueError(
                f"Expected inputs with which every output of {layer.name} varies. Received: {inputs!r}"
            )
        inv_std = tf.math.rsqrt(variance)
        g.assign(tf.cast(tf.reshape(inv_std, g.shape), g.dtype))
        layer.bias.assign(tf.cast(tf.reshape(-mean * inv_std, layer.bias.shape), layer.bias.dtype))

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)

    def remove(self):
        """Fold g and v back into the wrapped layer's kernel, and return that plain layer."""
        for (v, _, _), w in zip(self._kernels, self.kernels(), strict=True):
            v.assign(w)
        return self.layer


def _keep(g, axes):
    """g with size 1 along the axes of one weight vector."""
    for axis in sorted(axes):
        g = tf.expand_dims(g, axis)
    return g


def _kernels(layer):
    """A layer's kernels as (name, variable, the axes of one weight vector)."""
    found = []
    for name in ("depthwise_kernel", "pointwise_kernel", "kernel"):
        if isinstance(v := getattr(layer, name, None), keras.Variable):
            found.append((name, v, _vector_axes(layer, name, v)))
    if not found:
        raise ValueError(f"Expected a layer with a kernel, such as Dense or Conv2D. Received: {layer!r}")
    return found


_TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)


def _vector_axes(layer, name, kernel):
    """The kernel's axes that are summed over for one output unit: all but its output axes."""
    rank = len(kernel.shape)
    if isinstance(layer, keras.layers.EinsumDense):
        operands, output = layer.equation.split("->")
        return tuple(a for a, label in enumerate(operands.split(",")[1]) if label not in output)
    if isinstance(layer, _TRANSPOSED):
        outputs = {rank - 2}
    elif name == "depthwise_kernel" or isinstance(layer, _DEPTHWISE):
        outputs = {rank - 2, rank - 1}
    else:
        outputs = {rank - 1}
    return tuple(axis for axis in range(rank) if axis not in outputs)


# --------------------------------------------------------------------------------------------------------------
# Tools for whole models
# --------------------------------------------------------------------------------------------------------------


def initialize_from_data(model, inputs):
    r"""Set every g and bias under `WeightNormalization` so that its outputs start with mean 0 and deviation 1.

    $$ g = 1 / \sigma[t], \quad b = -\mu[t] / \sigma[t], \quad t = v \cdot x / |v| $$

    The layers are set one after the other, in the order in which the model calls them, from one batch.

    Args:
        model: a Keras model that holds `WeightNormalization` layers; it is built if need be.
        inputs: floating-point tensor, one batch of the model's inputs.

    Raises:
        ValueError: the model holds no such layer, or one whose outputs do not vary, or one without a bias.

    Reference: Salimans and Kingma 2016 (arXiv:1602.07868), section 3.
    """
    layers = _layers_of(WeightNormalization, model)
    model(inputs)  # builds it
    for layer in layers:
        layer._waits_for_data = True
    try:
        model(inputs)
    finally:
        for layer in layers:
            layer._waits_for_data = False


def recalibrate(model, data):
    """Make the moving statistics of every batch normalization exact averages over data.

    Moving averages lag behind the weights, and weight the last batches most. Here the weights stay, and each batch
    counts by its size; that the batches' means differ is part of the variance.

    Args:
        model: a Keras model that holds trainable `BatchNormalization` layers.
        data: iterable of batches of inputs, such as a list of arrays or a `tf.data.Dataset`.

    Returns:
        The model.

    Raises:
        ValueError: no such layer in the model, or no batch in the data.

    Reference: Wu and Johnson 2021 (arXiv:2105.07576), section 3.1.
    """
    layers = _layers_of(BatchNormalization, model)
    kept = [layer.momentum for layer in layers]
    count, sums = 0, 0.0
    try:
        for layer in layers:
            layer.momentum = 0.0  # the moving statistics become each batch's
        for batch in data:
            model(batch, training=True)
            mean, variance = (
                [np.asarray(getattr(layer, name), "float64") for layer in layers]
                for name in layers[0]._statistics
            )
            terms = [(m, v + m**2) for m, v in zip(mean, variance, strict=True)]
            sums = sums + len(batch) * np.array(terms, dtype=object)
            count += len(batch)
    finally:
        for layer, momentum in zip(layers, kept, strict=True):
            layer.momentum = momentum
    if not count:
        raise ValueError("Expected at least one batch of data. Received: none")
    for layer, (mean, square) in zip(layers, sums / count, strict=True):
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(np.maximum(square - mean**2, 0.0))
    return model


def fold(model):
    r"""A model for inference without batch normalization: each is folded into the layer before it.

    $$ w' = w s, \quad b' = \beta + (b - \mu) s, \quad s = \gamma / \sqrt{\sigma^2 + \epsilon} $$

    Exact up to round-off, with any padding, where a normalization of the last axis directly follows a Dense layer or a
    convolution (transposed, depthwise, separable too) without activation. Others stay as they are.

    Args:
        model: a built Sequential or Functional model; it is left unchanged.

    Returns:
        A new model with the same outputs in inference; an identity stands where a normalization was.

    Raises:
        TypeError: a model that is neither Sequential nor Functional.
    """
    if not isinstance(model, (keras.Sequential, keras.Model)) or not hasattr(model, "inputs"):
        raise TypeError(f"Expected a Sequential or Functional model. Received: {model!r}")
    into = {}  # name of a layer -> the normalization that is folded into it
    for norm in model.layers:
        if type(norm) is BatchNormalization and (layer := _foldable_before(norm)) is not None:
            into[layer.name] = norm
    gone = {norm.name for norm in into.values()}

    def clone(layer):
        if layer.name in gone:
            return keras.layers.Identity(name=layer.name, dtype=layer.dtype_policy)
        config = layer.get_config() | ({"use_bias": True} if layer.name in into else {})
        return type(layer).from_config(config)

    def call(layer, x, *arguments, **options):  # an identity takes no mask and no training
        return layer(x) if layer.name in gone else layer(x, *arguments, **options)

    options = {} if isinstance(model, keras.Sequential) else {"call_function": call}
    copy = keras.models.clone_model(model, clone_function=clone, **options)
    for layer in model.layers:
        if layer.weights and layer.name not in gone:
            weights = _fold(layer, into[layer.name]) if layer.name in into else layer.get_weights()
            copy.get_layer(layer.name).set_weights(weights)
    return copy


_FOLDABLE = (
    keras.layers.Dense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
    *_TRANSPOSED,
    *_DEPTHWISE,
)


def _foldable_before(norm):
    """The layer that a normalization can be folded into: its only input, read by nothing else, linear; or None."""
    nodes = norm._inbound_nodes
    if (
        len(nodes) != 1
        or len(nodes[0].parent_nodes) != 1
        or norm._features(rank := norm.input_spec.ndim) != [rank - 1]
    ):
        return None
    layer = nodes[0].parent_nodes[0].operation
    channels_first = getattr(layer, "data_format", "channels_last") == "channels_first"
    if not isinstance(layer, _FOLDABLE) or channels_first or layer.activation is not keras.activations.linear:
        return None
    return layer if len(layer._outbound_nodes) == len(layer._inbound_nodes) == 1 else None


def _fold(layer, norm):
    """The layer's weights, with the normalization in its last kernel and in its bias."""
    scale = (1.0 if norm.gamma is None else norm.gamma.numpy()) / np.sqrt(
        norm.moving_variance.numpy() + norm.epsilon
    )
    shift = 0.0 if norm.beta is None else norm.beta.numpy()
    bias = layer.bias.numpy() if layer.use_bias else 0.0
    *others, (_, kernel, axes) = _kernels(layer)
    units = [1 if axis in axes else size for axis, size in enumerate(kernel.shape)]
    folded = kernel.numpy() * scale.reshape(units)
    return [
        *(other.numpy() for _, other, _ in others),
        folded,
        shift + (bias - norm.moving_mean.numpy()) * scale,
    ]


def _layers_of(kind, model):
    """All layers of a kind in a model, nested ones too."""
    found = [layer for layer in model._flatten_layers() if type(layer) is kind]
    if not found:
        raise ValueError(f"Expected a model with {kind.__name__} layers. Received: {model!r}")
    return found
