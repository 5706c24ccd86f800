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
* gradients are right to every order: the backward pass is differentiable, through the statistics too.
"""

import collections.abc
import contextlib
import functools
import inspect
import itertools
import math
import operator
import typing
import warnings

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context
from tensorflow.python.ops import control_flow_util

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


# --------------------------------------------------------------------------------------------------------------
# Normalizing maps
# --------------------------------------------------------------------------------------------------------------


@tf.autograph.experimental.do_not_convert
def standardize(
    x, axes, epsilon, center=True, gamma=None, beta=None, *, groups=None, mask=None, all_reduce=None
):
    r"""Standardize over `axes`, then scale and shift: the map under every layer but weight normalization.

    $$ y = \gamma \hat x + \beta, \quad \hat x = (x - \mu) / \sqrt{\sigma^2 + \epsilon} $$
    $$ dx = \frac{1}{\sqrt{\sigma^2 + \epsilon}}
            \bigl( d - \overline{d} - \hat x \, \overline{d \hat x} \bigr), \quad d = \gamma \, dy $$

    The bar is the mean over the averaged set. Without centring (RMS) the mean is 0 and its term drops.

    Args:
        x: floating-point tensor of any rank.
        axes: tuple of ints, the averaged axes.
        epsilon: added to the variance, in the squared unit of x.
        center: whether the mean is taken out. Default True.
        gamma, beta: scale and shift, of x's rank and broadcastable to it. Default None: 1 and 0.
        groups: (axis, number): channels along the axis are averaged within each group too. Default None.
        mask: boolean tensor of x's shape, False where an element is left out of the statistics. Default None: nowhere.
        all_reduce: function that sums a tensor over all replicas. Default None: one replica.

    Returns:
        `(y, mean, variance)`: y in x's shape and dtype; the statistics of x's rank, with the averaged axes at size 1,
        in at least float32, NaN where nothing was counted. No gradient flows through them: y's accounts for them.

    Raises:
        ValueError: an axis out of bounds or repeated, a negative epsilon, groups that do not divide the channels, or a
            mask of another shape.
        TypeError: an input that is not dense, or not floating-point.

    Reference: Ioffe and Szegedy 2015 (arXiv:1502.03167), Algorithm 1 and the gradients below it.
    """
    x = _floating(x)
    axes, epsilon = _distinct(axes, x.shape), _number("epsilon", epsilon, math.inf)
    if groups is not None:
        [axis], number = _distinct(groups[0], x.shape), groups[1]
        if number < 1 or x.shape[axis] is None or x.shape[axis] % number:
            raise ValueError(
                f"Expected groups that divide the channels. Received: groups={groups}, input shape {tuple(x.shape)}"
            )
        groups = axis, number
    if mask is not None:
        mask = tf.cast(mask, "bool")
        if not x.shape.is_compatible_with(mask.shape):
            raise ValueError(f"Expected a mask of shape {tuple(x.shape)}. Received: mask.shape={mask.shape}")
    plan = _Plan(axes, epsilon, center, groups, gamma is not None, beta is not None, mask, all_reduce)
    tensors = [x, *(p for p in (gamma, beta) if p is not None)]
    # Of a small input, the calls take the time: one for the whole map, instead of one for each kernel.
    return _run(plan, _standardized, *tensors) if _is_small(x) else _standardized(plan, *tensors)


def _standardized(plan, x, *parameters):
    """The map: its kernels, and how they are differentiated."""
    run = functools.partial(_run, plan)

    @tf.custom_gradient
    def forward(*tensors):
        x, *parameters = _of_this_graph(*tensors)
        y, *statistics = run(_standardize, x, *parameters)

        # Made of differentiable operations of dy, x and its statistics, they have right derivatives as they are.
        def gradients(dy, *_):
            dy = _of_shape(x, dy)
            dx, *others = run(_standardize_gradients, dy, *statistics, x, *parameters)
            return _written(dx), *others

        return (_written(y), *statistics), gradients

    y, origin, residue, variance, count = forward(x, *parameters)
    statistics = origin + residue, variance
    if not (plan.counts_all and x.shape.num_elements()):  # perhaps nothing was counted
        statistics = (_of_what_counts(s, count) for s in statistics)
    return y, *map(tf.stop_gradient, statistics)


def _floating(x):
    if isinstance(x, (tf.RaggedTensor, tf.SparseTensor)):
        raise TypeError(f"Expected a dense tensor. Received: {type(x).__name__}")
    x = tf.convert_to_tensor(x)
    _check_floating(x.dtype)
    return x


def _check_floating(dtype):
    dtype = tf.as_dtype(dtype)
    if not dtype.is_floating:
        raise TypeError(f"Expected a floating-point input; cast it first. Received: dtype={dtype.name}")


def _distinct(axis, shape):
    """One or several axes of a shape, ascending and non-negative."""
    rank, received = len(shape), f"Received: axis={axis}, input shape {tuple(shape)}"
    axes = [*axis] if isinstance(axis, collections.abc.Iterable) else [axis]
    for each in axes:
        if not -rank <= each < rank:
            raise ValueError(f"Axis {each} is out of bounds for input shape {tuple(shape)}. {received}")
    found = tuple(sorted(each % rank for each in axes))
    if len(set(found)) < len(found):
        raise ValueError(f"Expected each axis once. {received}")
    return found


def _number(name, value, high):
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= high or math.isinf(number):
        raise ValueError(f"`{name}` must be a number from 0 to {high:g}. Received: {name}={value!r}")
    return number


class _Plan(typing.NamedTuple):
    """What is averaged and how: all that a kernel is told beside its tensors."""

    axes: tuple
    epsilon: float = 0.0
    center: bool = True
    groups: tuple | None = None
    scale: bool = False
    shift: bool = False
    mask: tf.Tensor | None = None
    all_reduce: typing.Callable | None = None

    @property
    def counts_all(self):
        """Whether every element of x counts, and nothing else."""
        return self.mask is None and self.all_reduce is None


def _standardize(plan, x, *parameters):
    """The forward kernel: y, and the statistics. The mean comes in two parts: their sum is more exact than a float."""
    count = _count(plan, x)
    deviation, origin, residue = _centre(plan, x, count)
    variance = _mean(plan, tf.square(deviation), count)
    y = _scale_and_shift(plan, deviation * tf.math.rsqrt(variance + plan.epsilon), parameters)
    return tf.cast(y, x.dtype), origin, residue, variance, count


def _standardized_by(plan, *tensors):
    """The map of inference, by statistics that are given: its kernel, and how it is differentiated."""

    @tf.custom_gradient
    def forward(*tensors):
        tensors = _of_this_graph(*tensors)

        def gradients(dy):
            dy = _of_shape(tensors[0], dy)
            if tf.executing_eagerly():  # then all are asked for
                return _run(plan, _standardize_by_gradients, dy, *tensors)
            return _standardize_by_gradients(plan, dy, *tensors)

        return _run(plan, _standardize_by, *tensors), gradients

    return forward(*tensors)


def _standardize_by(plan, x, *parameters):
    """The kernel of inference: y. What is one number a channel is multiplied first."""
    mean, scale, _, *shift = _by_channel(plan, x, parameters)
    y = (_widen(x) - mean) * scale
    return tf.cast(y + shift[0] if shift else y, x.dtype)


def _standardize_by_gradients(plan, dy, x, *parameters):
    """Its gradients, in two parts: a graph leaves out the one that nobody asks for."""
    dy, (_, scale, inv_std, *_) = _widen(dy), _by_channel(plan, x, parameters)
    sum_dy, sum_dy_x_hat = _run(plan, _sums_by, dy, x, *parameters)
    dmean, dvariance = -scale * sum_dy, -0.5 * scale * inv_std * sum_dy_x_hat
    sums = dmean, dvariance, *[sum_dy_x_hat] * plan.scale, *[sum_dy] * plan.shift  # of what there is
    others = (tf.cast(_reshape(t, p.shape), p.dtype) for t, p in zip(sums, parameters, strict=True))
    return tf.cast(dy * scale, x.dtype), *others


def _sums_by(plan, dy, x, *parameters):
    """The sums of dy and of dy * x_hat."""
    mean, _, inv_std, *_ = _by_channel(plan, x, parameters)
    return _sum(plan, dy, plan.axes), _sum(plan, dy * (_widen(x) - mean), plan.axes, computed=True) * inv_std


def _by_channel(plan, x, parameters):
    """Mean, gamma * inv_std, inv_std and, if there is one, beta, in line with x's channels: the last are so already."""
    if x.shape.rank - 1 in plan.axes:
        shape = [1 if axis in plan.axes else -1 for axis in range(x.shape.rank)]
        parameters = [_reshape(p, shape) for p in parameters]
    mean, variance, *others = (tf.cast(p, _wide(x.dtype)) for p in parameters)
    inv_std = tf.math.rsqrt(variance + plan.epsilon)
    return mean, inv_std * others.pop(0) if plan.scale else inv_std, inv_std, *others


def _scale_and_shift(plan, x_hat, parameters):
    y = x_hat * tf.cast(parameters[0], x_hat.dtype) if plan.scale else x_hat
    return y + tf.cast(parameters[-1], y.dtype) if plan.shift else y


def _standardize_gradients(plan, dy, origin, residue, variance, count, x, *parameters):
    """The backward kernel: dx, then dgamma and dbeta if there are such. Only x and the statistics were kept."""
    inv_std = tf.math.rsqrt(variance + plan.epsilon)
    countable, dy = _countable(plan, x), _widen(dy)
    x_hat = (_only(countable, _widen(x)) - origin - residue) * inv_std
    gamma = tf.cast(parameters[0], dy.dtype) if plan.scale else tf.ones([1] * x.shape.rank, dy.dtype)
    scale, dy_x_hat = inv_std, dy * x_hat

    # What the output cannot express: a shift of the averaged set, and a change of its length.
    if all(p.shape[axis] == 1 for p in (gamma, *parameters) for axis in plan.axes):
        sum_dy, sum_dy_x_hat = _sum(plan, dy, plan.axes), _sum(plan, dy_x_hat, plan.axes, computed=True)
        if plan.groups is None:  # one gamma for the whole set can wait
            scale, gamma = inv_std * gamma, 1.0
        sums = gamma * sum_dy, gamma * sum_dy_x_hat
    else:  # a parameter varies along these axes: its gradient needs what is not summed yet
        sum_dy, sum_dy_x_hat = dy, dy_x_hat
        sums = _dot(plan, dy, gamma), _dot(plan, dy_x_hat, gamma)
    along_one, along_x_hat = (_combine(plan, t, x) / tf.maximum(count, 1.0) for t in sums)
    inexpressible = along_one + x_hat * along_x_hat if plan.center else x_hat * along_x_hat
    dx = scale * (gamma * dy - _only(plan.mask, inexpressible))

    gradients = [tf.cast(_only(countable, dx), x.dtype)]
    summands = [t for given, t in ((plan.scale, sum_dy_x_hat), (plan.shift, sum_dy)) if given]
    for parameter, t in zip(parameters, summands, strict=True):
        if t.shape != parameter.shape:
            broadcast = tuple(axis for axis, size in enumerate(parameter.shape) if size == 1)
            t = _sum(plan, t, broadcast, computed=t is dy_x_hat)
        gradients.append(tf.cast(t, parameter.dtype))
    return gradients


def _combine(plan, sums, x):
    """Sums over the axes to sums over the averaged set: over a group's channels and over the replicas too."""
    sums = _pool(plan, sums, x)
    return sums if plan.all_reduce is None else plan.all_reduce(sums)


def _only(where, t):
    """t where a condition holds, 0 elsewhere, whatever stands there: the product takes a third of `tf.where`'s time."""
    return t if where is None else tf.math.multiply_no_nan(t, tf.cast(where, t.dtype))


def _countable(plan, x):
    """Where x can be computed with: a masked position may hold anything, such as NaN, and is taken for 0."""
    return None if plan.mask is None else plan.mask | tf.math.is_finite(tf.square(_widen(x)))


def _mean(plan, t, count):
    """The mean over the averaged set; 0 where nothing counts."""
    total = _sum(plan, _only(plan.mask, t), plan.axes, computed=True)
    return _combine(plan, total, t) / tf.maximum(count, 1.0)


def _of_what_counts(statistic, count):
    """A statistic, or NaN where nothing was counted: as a quotient, since no constant NaN passes a check of numbers."""
    return statistic / tf.cast(count > 0, statistic.dtype)


def _count(plan, x):
    """How many elements an averaged set has."""
    dtype = _wide(x.dtype)
    if plan.mask is not None:
        return _combine(plan, _sum(plan, tf.cast(plan.mask, dtype), plan.axes), x)
    sizes = [x.shape[axis] or tf.cast(tf.shape(x)[axis], dtype) for axis in plan.axes]
    if plan.groups:
        sizes.append(x.shape[plan.groups[0]] // plan.groups[1])
    count = tf.convert_to_tensor(math.prod(sizes), dtype)
    return count if plan.all_reduce is None else plan.all_reduce(count)


def _centre(plan, x, count):
    """Deviations from the mean, and the mean in two parts: a value near it, and what is left to it."""
    x = _only(_countable(plan, x), _widen(x))
    if not plan.center:
        zero = tf.zeros([1] * x.shape.rank, x.dtype)
        return x, zero, zero
    origin = _near_the_mean(plan, x) if plan.counts_all else _mean(plan, x, count)
    if plan.counts_all and len(plan.axes) == 1 and (x.shape[plan.axes[0]] or LONG) >= LONG:
        origin += _mean(plan, x - origin, count)  # a long row's first element may be far off
    origin = tf.stop_gradient(origin)
    residue = _mean(plan, x - origin, count)
    return (x - origin) - residue, origin, residue


@tf.autograph.experimental.do_not_convert
def weight_normalize(v, g, axes):
    r"""Give each weight vector of v the length g: the map under `WeightNormalization`.

    $$ w = g \, u, \quad u = v / |v|, \qquad
       dv = \frac{g}{|v|} \bigl( dw - u \langle u, dw \rangle \bigr), \quad dg = \langle u, dw \rangle $$

    Args:
        v: floating-point tensor of any rank, the directions.
        g: floating-point tensor of v's rank, with the axes of a weight vector at size 1: the lengths, in w's unit.
        axes: tuple of ints: the axes that make up one weight vector.

    Returns:
        w in v's shape and dtype. A vector of length zero has no direction: its w and its dv are zero, never NaN.

    Raises:
        ValueError: a g of another shape, an axis out of bounds or repeated.
        TypeError: a v or g that is not floating-point.

    Reference: Salimans and Kingma 2016 (arXiv:1602.07868), equations 2 and 3.
    """
    v, g = _floating(v), _floating(g)
    axes = _distinct(axes, v.shape)
    if tuple(g.shape) != (expected := _of_units(v.shape, axes)):
        raise ValueError(f"Expected a g of shape {expected}. Received: g.shape={tuple(g.shape)}")
    run = functools.partial(_run, _Plan(axes, scale=True))  # g is its one parameter

    @tf.custom_gradient
    def forward(v, g):
        v, g = _of_this_graph(v, g)

        def gradients(dw):
            return run(_weight_normalize_gradients, _of_shape(v, dw), v, g)

        return run(_weight_normalize, v, g), gradients

    return tf.cast(forward(_widen(v), tf.cast(g, _wide(v.dtype))), v.dtype)


def _of_units(shape, axes):
    """The shape of what has one value for each weight vector, with its axes at size 1."""
    return tuple(1 if axis in axes else size for axis, size in enumerate(shape))


def _weight_normalize(plan, v, g):
    """The forward kernel: w."""
    return v * (g * _inverse_length(plan, v))


def _weight_normalize_gradients(plan, dw, v, g):
    """The backward kernel: dv and dg."""
    inverse = _inverse_length(plan, v)
    u = v * inverse
    dg = _sum(plan, u * dw, plan.axes, computed=True)
    return g * inverse * (dw - u * dg), dg


def _inverse_length(plan, v):
    squared = _sum(plan, tf.square(v), plan.axes, computed=True)
    some = tf.not_equal(squared, 0.0)  # of 0 the root has no derivative, and must not be taken
    return tf.math.reciprocal_no_nan(tf.where(some, tf.sqrt(tf.where(some, squared, 1.0)), 0.0))


# --------------------------------------------------------------------------------------------------------------
# Sums and compilation: exact, and as fast as TensorFlow's compiler XLA allows
# --------------------------------------------------------------------------------------------------------------

# Below this many elements the launch of a compiled kernel costs more than it saves.
COMPILE_FROM = 32_768
# In more shapes than these the same kernel is not compiled: sequences of ever new lengths.
COMPILED_SHAPES = 8
# Elements of an averaged row of which the first is not taken for a value near the mean.
LONG = 4096
# Elements of a row that is summed as a product with ones: fewer fill no vector, of more one chain rounds too much.
PRODUCTS = range(8, 4097)
# From so many elements, a plain sum's chain of additions rounds too much.
CHAIN = 512
# Slices that are added up on the way: of more, the compiler would write each to memory first.
SLICES = 14


def _near_the_mean(plan, x):
    """A value near each averaged set's mean, from its first slice alone; of a small tensor, from its first element.

    Deviations from it are as small as those from the mean, and it costs no pass over the input. What is computed from
    them does not depend on it.
    """

    def first_along(axes, t):
        return t[tuple(slice(1) if axis in axes else slice(None) for axis in range(t.shape.rank))]

    if _is_small(x):
        near = first_along(plan.axes, x)
    else:
        first = first_along(plan.axes[:1], x)
        element = first_along(plan.axes, first)
        element = tf.reduce_sum(element, plan.axes, keepdims=True)  # keeps its shape where the batch is empty
        near = element + tf.reduce_mean(first - element, plan.axes, keepdims=True)
    return _pool(plan, near, x, tf.reduce_mean)


def _pool(plan, t, x, reduce=tf.reduce_sum):
    """Reduce what was made of x over the channels of each group, and give every channel its group's result."""
    if plan.groups is None:
        return t
    axis, groups = plan.groups
    if groups == 1:
        return reduce(t, axis, keepdims=True)
    shape = tf.shape(t)
    split = tf.concat([shape[:axis], [groups, t.shape[axis] // groups], shape[axis + 1 :]], 0)
    pooled = reduce(tf.reshape(t, split), axis + 1, keepdims=True)
    pooled = tf.reshape(tf.broadcast_to(pooled, split), shape)
    if _is_small(x):
        return pooled
    # As a sum, XLA writes it to memory, and no loop over x looks up every element's group.
    return tf.reduce_sum(tf.stack([pooled, tf.zeros_like(pooled)]), 0)


def _sum(plan, t, axes, computed=False):
    """Sum over the axes. A short sum of a small tensor is plain, others have the form that XLA's compiler vectorizes:

    * what is `computed` on the way, and lies in no memory yet, is added up in slices first;
    * along rows, the sum is a product with ones;
    * of several axes the first is summed by itself, last: two short chains of additions round less than a long one.
    """
    if _is_small(t) and math.prod(t.shape[axis] for axis in axes) < CHAIN:
        sums = tf.reduce_sum(t, axes, keepdims=True)
        return sums if plan.groups is None else _apart(sums)  # read twice: computed once
    if computed and plan.all_reduce is None:
        t = _add_slices(t, axes)
    if _are_last(axes, t) and t.shape[-1] in PRODUCTS:
        t, axes = _product(t, axes[-1:], tf.ones([t.shape[-1]], t.dtype)), axes[:-1]
        if not axes:
            return t
    if len(axes) > 1:
        t, axes = _apart(tf.reduce_sum(t, axes[1:], keepdims=True)), axes[:1]
    return tf.reduce_sum(t, axes, keepdims=True)


def _add_slices(t, axes):
    """Add up slices along one of the axes, not the last one of t: that with the most of equal size, up to SLICES.

    The compiler sums fast only what lies in memory: it would write t there whole, or loop over it element by element.
    """

    def slices(axis):
        return max(number for number in range(1, SLICES + 1) if (t.shape[axis] or 1) % number == 0)

    axis = max((axis for axis in axes if axis < t.shape.rank - 1), key=slices, default=None)
    if axis is None or slices(axis) == 1:
        return _apart(t)
    return tf.add_n(tf.split(t, slices(axis), axis))


def _apart(t):
    """The same values, in a form that XLA does not join with the sum that is taken of it: that would be a slow loop."""
    return t if _is_debugged() else tf.maximum(t, -math.inf)  # a check of numbers would find the constant


def _dot(plan, t, parameter):
    """Sum of t times a parameter over the averaged axes; as a matrix-vector product where both are rows."""
    axes = plan.axes
    if not _are_last(axes, t) or tuple(parameter.shape) != (1,) * axes[0] + tuple(t.shape[axes[0] :]):
        return _sum(plan, t * parameter, axes, computed=True)
    return _product(t, axes, parameter)


def _product(t, axes, vector):
    """Sums over the last axes of t times a vector, by a product of matrices.

    Of more dimensions, one of them 1, TensorFlow's product on the CPU (oneDNN) is wrong, and writes beyond its memory.
    """
    sums = tf.reshape(t, [-1, vector.shape.num_elements()]) @ tf.reshape(vector, [-1, 1])
    return tf.reshape(sums, tf.concat([tf.shape(t)[: axes[0]], [1] * len(axes)], 0))


def _is_small(t):
    """Of a known small size; an empty tensor is not: it has no first element for `_near_the_mean`."""
    return (t.shape.num_elements() or COMPILE_FROM) < COMPILE_FROM


def _are_last(axes, t):
    return bool(axes) and axes == tuple(range(t.shape.rank - len(axes), t.shape.rank))


def _wide(dtype):
    return tf.float64 if dtype == tf.float64 else tf.float32


def _of_shape(x, dy):
    """A gradient with x's shape: what comes out of a Python function in a graph does not know its own."""
    return dy if dy.shape == x.shape else tf.ensure_shape(dy, x.shape)


def _widen(t):
    return tf.cast(t, _wide(t.dtype))


def _reshape(t, shape):
    """As TensorFlow's, which makes a shape of an array faster than of a list."""
    return tf.reshape(t, np.array(shape))


def _run(plan, kernel, *tensors):
    """Run a kernel compiled where it is large, operation by operation where it is small or cannot be compiled ahead."""
    mask, *tensors = _of_this_graph(plan.mask, *tensors)
    plan = plan._replace(mask=None)  # a function that is kept is given each call's
    plain = functools.partial(_with_mask, kernel, plan)
    shape, size = tuple(tensors[0].shape), tensors[0].shape.num_elements()
    # With an open batch, each size that a model meets would cost a compilation.
    if plan.all_reduce or size is None or _is_debugged():
        return plain(mask, *tensors)
    large = size >= COMPILE_FROM  # small ones take no place of a larger one's
    parameters = [(tuple(t.shape), t.dtype) for t in tensors[len(tensors) - plan.scale - plan.shift :]]
    functions = _functions[kernel, plan, mask is None, large, len(shape), tensors[0].dtype, *parameters]
    # One for each, and each a partial of its own: TensorFlow would warn that one is traced again, as it does of several
    # that have the same code.
    if shape not in functions:
        if len(functions) >= COMPILED_SHAPES:
            return plain(mask, *tensors)  # each costs a compilation
        made = tf.function(plain, jit_compile=large, autograph=False)
        functions.setdefault(shape, made)  # another thread may have been faster
    function = functions[shape] if large or tf.executing_eagerly() else plain
    return function(mask, *tensors)


_functions = collections.defaultdict(dict)  # by shape


def _with_mask(kernel, plan, mask, *tensors):
    return kernel(plan._replace(mask=mask), *tensors)


def _is_debugged():
    """Whether TensorFlow calls back at each operation, as its check of numbers does: XLA cannot."""
    return bool(context.context().op_callbacks)


def _of_this_graph(*tensors):
    """The same tensors, of the graph that is built now: the gradient of a loop, branch or function sees no others."""
    return list(tensors) if tf.executing_eagerly() else [t if t is None else tf.identity(t) for t in tensors]


def _written(t):
    """The same tensor, which a program that XLA compiles as a whole, such as a jitted step, writes to memory.

    Otherwise each kernel that reads it may compute it again, with what it was made of: in a deep residual network, the
    layers before. XLA repeats nothing that is made of two tensors; here, of the tensor and of a test of it.
    """
    if not control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()):
        return t
    return tf.where(tf.math.is_nan(t), tf.constant(math.nan, t.dtype), t)


# --------------------------------------------------------------------------------------------------------------
# Layers
# --------------------------------------------------------------------------------------------------------------

# What a weight's options are; Keras has a module of each.
_KINDS = ("initializer", "regularizer", "constraint")
# Arguments that most layers take, in Keras's order, with their defaults.
_INITIALIZERS = {"beta_initializer": "zeros", "gamma_initializer": "ones"}
_PARAMETERS = _INITIALIZERS | {f"{name}_{kind}": None for kind in _KINDS[1:] for name in ("beta", "gamma")}
_USUAL = {"axis": -1, "epsilon": 1e-3, "center": True, "scale": True} | _PARAMETERS


class _Normalization(keras.layers.Layer):
    """What the layers share: arguments and their checks, gamma and beta, the configuration.

    A layer says in `_arguments` what it takes, in Keras's order, with the defaults.
    """

    _arguments = {}
    _several_axes = False  # may be given; otherwise every later input has the first one's rank
    _keeps_dtype = False  # the output's is the input's, also where that is not cast
    _autocasts = False
    _supports_mask = center = scale = True
    rms_scaling = False

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        kind, kwargs = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.VAR_KEYWORD
        given = [inspect.Parameter(name, kind, default=value) for name, value in cls._arguments.items()]
        cls._signature = inspect.Signature([*given, inspect.Parameter("kwargs", kwargs)])
        cls.__signature__ = None if "__init__" in vars(cls) else cls._signature  # None: that of its __init__

    def __init__(self, *arguments, **options):
        bound = self._signature.bind(*arguments, **options)
        bound.apply_defaults()
        options = bound.arguments.pop("kwargs")
        super().__init__(**options)
        for name, value in bound.arguments.items():
            setattr(self, name, self._checked(name, value))
        self.gamma = self.beta = None
        self.__signature__ = None  # the class's: a layer is not called as it is made
        self.supports_masking, self.autocast = self._supports_mask, self.autocast and self._autocasts

    def _checked(self, name, value):
        """The value of an argument as it is kept."""
        if name == "axis":
            several = self._several_axes and isinstance(value, (list, tuple))
            try:
                return [*map(operator.index, value)] if several else operator.index(value)
            except TypeError:
                expected = "an int or a list/tuple of ints" if self._several_axes else "an int"
                raise TypeError(f"Expected {expected} for the argument 'axis'. Received: {value!r}") from None
        if name in ("epsilon", "momentum"):
            return _number(name, value, 1.0 if name == "momentum" else math.inf)
        if name == "groups" and (not isinstance(value, int) or (value <= 0 and value != -1)):
            raise ValueError(
                "Received an invalid value for argument `groups`, expected a positive integer (or `-1` for instance "
                f"normalization). Received: groups={value!r}"
            )
        if name == "renorm" and value:
            raise ValueError(f"Expected renorm=False: it is not offered. Received: renorm={value!r}")
        if name == "rms_scaling" and value:
            warnings.warn("`rms_scaling=True` is deprecated: use RMSNormalization", stacklevel=3)
        kind = name.rpartition("_")[2]
        return getattr(keras, f"{kind}s").get(value) if kind in _KINDS else value

    def _given_axes(self):
        """The axes in the order of the parameters' sizes: as in Keras, as they are given, negative ones first."""
        return sorted(self.axis) if isinstance(self.axis, list) else [self.axis]

    def _features(self, rank):
        """The axes that carry gamma and beta, ascending and non-negative."""
        return sorted(axis % rank for axis in self._given_axes())

    def _reduction_axes(self, rank):
        """The averaged axes, ascending and non-negative: here, those that carry gamma and beta."""
        return tuple(self._features(rank))

    def _check_axes(self, shape):
        received = f"Received: axis={self.axis}, input shape {tuple(shape)}"
        if len(shape) < 2:
            raise ValueError(f"Expected an input of rank 2 or more: a batch and its features. {received}")
        if not self._given_axes():
            raise ValueError(f"Expected at least one axis. {received}")
        _distinct(self.axis, shape)

    def build(self, input_shape):
        self._check_axes(input_shape)
        center, scale = self.center and not self.rms_scaling, self.rms_scaling or self.scale
        sized = center or scale or not self._several_axes
        for axis in self._given_axes():
            if sized and input_shape[axis] is None:
                raise ValueError(
                    f"Axis {axis} of input tensor should have a defined dimension but the layer received an input "
                    f"with shape {tuple(input_shape)}. Received: axis={self.axis}"
                )
        sizes = {axis: input_shape[axis] for axis in self._given_axes()}
        for name, wanted in (("gamma", scale), ("beta", center)):
            if wanted:
                options = {kind: getattr(self, f"{name}_{kind}") for kind in _KINDS}
                setattr(self, name, self._add_parameter(name, tuple(sizes.values()), options))
        self.input_spec = keras.layers.InputSpec(
            ndim=None if self._several_axes else len(input_shape),
            min_ndim=max(axis + 1 if axis >= 0 else -axis for axis in sizes),
            axes=sizes if sized else None,
        )

    def _add_parameter(self, name, shape, options):
        return self.add_weight(shape=shape, name=name, autocast=False, **options)

    def _broadcast(self, parameter, rank):
        """A parameter with the input's rank, so that it lines up with its axes."""
        if parameter is None:
            return None
        sizes = dict(zip((axis % rank for axis in self._given_axes()), parameter.shape, strict=True))
        return _reshape(tf.convert_to_tensor(parameter), [sizes.get(axis, 1) for axis in range(rank)])

    def _standardize(self, x, **options):
        rank = x.shape.rank
        gamma, beta = (self._broadcast(parameter, rank) for parameter in (self.gamma, self.beta))
        axes = self._reduction_axes(rank)
        y, *statistics = standardize(x, axes, self.epsilon, gamma=gamma, beta=beta, **options)
        return y if self._keeps_dtype else tf.cast(y, self.compute_dtype), *statistics

    def call(self, inputs):
        return self._standardize(_floating(inputs))[0]

    def compute_output_shape(self, input_shape):
        self._check_axes(input_shape)
        return input_shape

    def compute_output_spec(self, *arguments, **options):
        inputs, *_ = inspect.signature(self.call).bind(*arguments, **options).arguments.values()
        _check_floating(inputs.dtype)  # before there are any data
        return super().compute_output_spec(*arguments, **options)

    def get_config(self):
        config = {name: keras.saving.serialize_keras_object(getattr(self, name)) for name in self._arguments}
        return {**super().get_config(), **config}


@keras.saving.register_keras_serializable("normlib")
class LayerNormalization(_Normalization):
    """Standardize each sample over its features (Ba et al. 2016).

    y = gamma * (x - mean) / sqrt(variance + epsilon) + beta, the statistics over `axis`, sample by sample.

    Shapes: input any rank from 2; gamma and beta have the sizes of the axes, in the order of `sorted(axis)`; output
        like the input.

    Args:
        axis: int or list of ints, the normalized axes, which also carry gamma and beta. Default -1.
        epsilon: added to the variance, in the squared unit of the input. Default 1e-3.
        center, scale: whether there is a beta, a gamma. Default True.
        beta_initializer, gamma_initializer: default "zeros", "ones".
        beta_regularizer, gamma_regularizer, beta_constraint, gamma_constraint: default None.
        rms_scaling: Keras's deprecated form, x divided by its deviation without centring, and no beta. Default False.

    Raises:
        ValueError: an input of rank 1; an axis out of bounds, repeated or of unknown size; a negative epsilon.
        TypeError: an axis that is no int; an input that is not floating-point.

    Reference: arXiv:1607.06450, equation 3.
    """

    _several_axes = True
    _arguments = _USUAL | {"rms_scaling": False}
    _kerass = keras.layers.LayerNormalization  # whatever may stand in its place later

    def call(self, inputs):
        if self.rms_scaling:  # Keras's own, so Keras computes it
            return self._kerass.call(self, _floating(inputs))
        return super().call(inputs)


@keras.saving.register_keras_serializable("normlib")
class BatchNormalization(_Normalization):
    """Standardize each feature over the batch (Ioffe and Szegedy 2015).

    In training, y = gamma * (x - mean) / sqrt(variance + epsilon) + beta with the statistics of the batch, and

        moving_mean     <- momentum * moving_mean     + (1 - momentum) * mean
        moving_variance <- momentum * moving_variance + (1 - momentum) * variance

    In inference, and where `trainable` is False, the moving statistics take the place of the batch's. Statistics of
    nothing (an empty batch, a mask that is False throughout) or that are not finite are not averaged in.

    Under `tf.distribute` the moving statistics are means over the replicas (Keras's layer keeps those of one).

    As with Keras's layer, a forward pass that is computed again (checkpointing) averages again; `tf.vectorized_map`
    averages in only its first element's statistics; and on several CPU devices TensorFlow refuses to compile a
    replica's step as a whole (`jit_compile=True`).

    Shapes: input any rank from 2; gamma, beta and the moving statistics (size of `axis`,); output like the input.

    Args:
        axis: int, the feature axis; all others are averaged. Default -1.
        momentum: weight of the old moving statistics, from 0 to 1. Default 0.99.
        moving_mean_initializer, moving_variance_initializer: default "zeros", "ones".
        renorm: must be False: batch renormalization is another layer. `renorm_clipping`, `renorm_momentum`: taken, as
            Keras takes them, and without effect.
        synchronized: whether the statistics are those of all replicas together under `tf.distribute`. Default False.
        epsilon, center, scale, and the options of gamma and beta: as in LayerNormalization.

    Call arguments:
        inputs: floating-point tensor.
        training: whether the batch's statistics are used, and averaged into the moving ones. Default None: False.
        mask: tensor with one dimension less than the input, broadcastable to it: where it is False, the element does
            not count in the statistics. Default None: all count.

    Raises: as LayerNormalization, and
        ValueError: a momentum outside [0, 1], a mask of the wrong shape, `renorm=True`.

    Reference: arXiv:1502.03167, Algorithms 1 and 2.
    """

    _arguments = (
        {"axis": -1, "momentum": 0.99, "epsilon": 1e-3, "center": True, "scale": True}
        | _INITIALIZERS
        | {"moving_mean_initializer": "zeros", "moving_variance_initializer": "ones"}
        | _PARAMETERS
        | {"renorm": False, "renorm_clipping": None, "renorm_momentum": 0.99, "synchronized": False}
    )
    _statistics = ("moving_mean", "moving_variance")
    _autocasts = True
    _collect = None  # in `recalibrate`: takes the batch's statistics, and the moving ones stay
    moving_mean = moving_variance = None

    def _reduction_axes(self, rank):
        return tuple(axis for axis in range(rank) if axis not in self._features(rank))

    def build(self, input_shape):
        super().build(input_shape)
        fixed = {"trainable": False, "autocast": False, "aggregation": "mean"}
        for name in self._statistics:
            start = getattr(self, f"{name}_initializer")
            weight = self.add_weight(shape=(input_shape[self.axis],), name=name, initializer=start, **fixed)
            setattr(self, name, weight)

    def call(self, inputs, training=None, mask=None):
        x = _floating(inputs)
        if mask is not None:
            _check_mask(mask, x)
        averages = training and self.trainable
        if not (averages or self._collect):
            return self._infer(x)
        if mask is not None:
            mask = tf.broadcast_to(tf.cast(mask, "bool")[..., None], tf.shape(x))
        all_reduce = _sum_over_replicas if self.synchronized else None
        y, *statistics = self._standardize(x, mask=mask, all_reduce=all_reduce)
        if self._collect:
            counted = tf.size(x) if mask is None else tf.math.count_nonzero(mask)
            self._collect(counted, *statistics)
        else:
            self._average(statistics)
        return y

    def _infer(self, x):
        given = (self.moving_mean, self.moving_variance, self.gamma, self.beta)
        parameters = [tf.convert_to_tensor(p) for p in given if p is not None]
        axes, scale, shift = self._reduction_axes(x.shape.rank), self.gamma is not None, self.beta is not None
        # Of a small input, the calls of a kernel and of a gradient cost more than they save.
        standardize_by = _standardize_by if _is_small(x) else _standardized_by
        y = standardize_by(_Plan(axes, self.epsilon, scale=scale, shift=shift), x, *parameters)
        return tf.cast(y, self.compute_dtype)

    def _average(self, statistics):
        """Move each channel's statistics, together: none of those of which one is not finite."""
        moving = [getattr(self, name) for name in self._statistics]
        values = [tf.convert_to_tensor(variable) for variable in moving]
        averages = []
        for value, new in zip(values, statistics, strict=True):
            old = _widen(value)
            new = tf.cast(_reshape(new, old.shape), old.dtype)
            averages.append(tf.cast(old * self.momentum + new * (1.0 - self.momentum), value.dtype))
        finite = functools.reduce(tf.logical_and, map(tf.math.is_finite, averages))
        for variable, average, value in zip(moving, averages, values, strict=True):
            variable.assign(tf.where(finite, average, value))


def _check_mask(mask, inputs):
    received = f"Received: mask.shape={tuple(mask.shape)}, inputs.shape={tuple(inputs.shape)}"
    if len(mask.shape) != len(inputs.shape) - 1:
        raise ValueError(f"The mask provided should be one dimension less than the inputs. {received}")
    if not all(m in (1, n) or None in (m, n) for m, n in zip(mask.shape, inputs.shape[:-1], strict=True)):
        raise ValueError(f"Expected a mask that broadcasts to {tuple(inputs.shape[:-1])}. {received}")


def _sum_over_replicas(t):
    replica = tf.distribute.get_replica_context()
    return t if replica is None else replica.all_reduce(tf.distribute.ReduceOp.SUM, t)


@keras.saving.register_keras_serializable("normlib")
class MeanOnlyBatchNormalization(BatchNormalization):
    """Take the batch's mean out of each feature and leave its deviation (Salimans and Kingma 2016).

    y = x - mean + beta: the companion of `WeightNormalization`, which fixes the deviation through the weights.

    Shapes, call arguments and errors: as BatchNormalization, without gamma and variance.

    Args:
        axis, momentum, center, synchronized, and the options of beta and of the moving mean: as there.

    Reference: arXiv:1602.07868, section 4.
    """

    _arguments = {
        name: default
        for name, default in BatchNormalization._arguments.items()
        if not name.startswith(("gamma", "scale", "epsilon", "renorm", "moving_variance"))
    }
    _statistics = ("moving_mean",)
    scale = False

    def _standardize(self, x, mask=None, all_reduce=None):
        plan = _Plan(self._reduction_axes(x.shape.rank), mask=mask, all_reduce=all_reduce)
        count = _count(plan, x)
        deviation, origin, residue = _centre(plan, x, count)  # linear: its gradient needs no help
        return self._shift(deviation), tf.stop_gradient(_of_what_counts(origin + residue, count))

    def _infer(self, x):
        mean = self._broadcast(self.moving_mean, x.shape.rank)
        return self._shift(_widen(x) - tf.cast(mean, _wide(x.dtype)))

    def _shift(self, y):
        y = y if self.beta is None else y + tf.cast(self._broadcast(self.beta, y.shape.rank), y.dtype)
        return tf.cast(y, self.compute_dtype)


@keras.saving.register_keras_serializable("normlib")
class GroupNormalization(_Normalization):
    """Standardize each sample over all positions and a group of channels (Wu and He 2018).

    y = gamma * (x - mean) / sqrt(variance + epsilon) + beta, gamma and beta one a channel.

    Shapes: input any rank from 2; gamma and beta (size of `axis`,); output like the input.

    Args:
        groups: int, the number of groups; -1 for one group a channel. Default 32.
        axis: int, the channel axis. Default -1.
        epsilon, center, scale, and the options of gamma and beta: as in LayerNormalization.

    Raises: as LayerNormalization, and
        ValueError: groups that are not a positive int or -1, or that do not divide the channels.

    Reference: arXiv:1803.08494, equation 7.
    """

    _arguments = {"groups": 32} | _USUAL

    def _check_axes(self, shape):
        super()._check_axes(shape)
        [channel], channels = self._features(len(shape)), shape[self.axis]
        if channel == 0:
            raise ValueError(f"Expected a channel axis other than the batch's. Received: axis={self.axis}")
        groups = channels if self.groups == -1 else self.groups
        if channels and channels % groups:
            raise ValueError(
                f"Expected groups that divide the channels: their number ({groups}) cannot be more than the number of "
                f"channels ({channels}), and times their size it must be a multiple of the number of channels. "
                f"Received: groups={self.groups}"
            )

    def _reduction_axes(self, rank):
        return tuple(axis for axis in range(1, rank) if axis not in self._features(rank))

    def call(self, inputs):
        x = _floating(inputs)
        [channel] = self._features(x.shape.rank)
        if self.groups in (-1, x.shape[channel]):  # a group of one channel is pooled already
            return self._standardize(x)[0]
        if x.shape.rank > 2:
            return self._standardize(x, groups=(channel, self.groups))[0]
        # Without positions, a group lies together: it is a row.
        rows, given = [-1, self.groups, x.shape[channel] // self.groups], (self.gamma, self.beta)
        gamma, beta = (None if p is None else _reshape(tf.convert_to_tensor(p), rows) for p in given)
        y, *_ = standardize(_reshape(x, rows), (2,), self.epsilon, gamma=gamma, beta=beta)
        return tf.cast(_reshape(y, [-1, x.shape[channel]]), self.compute_dtype)


@keras.saving.register_keras_serializable("normlib")
class InstanceNormalization(GroupNormalization):
    """Standardize each channel of each sample over its positions (Ulyanov et al. 2016).

    The group normalization with one channel a group. Arguments, shapes and errors as there, without `groups`.

    Reference: arXiv:1607.08022, equation 1.
    """

    _arguments = _USUAL
    groups = -1


@keras.saving.register_keras_serializable("normlib")
class RMSNormalization(_Normalization):
    """Divide each sample by the root mean square of its features (Zhang and Sennrich 2019).

    y = scale * x / sqrt(mean(x^2) + epsilon), the mean over `axis`, sample by sample.

    Shapes, axis and errors: as LayerNormalization, with `scale` for gamma.

    Args:
        axis: int or list of ints. Default -1.
        epsilon: added to the mean square, in the squared unit of the input. Default 1e-6.

    Reference: arXiv:1910.07467, equation 4.
    """

    _arguments = {"axis": -1, "epsilon": 1e-6}
    _several_axes = _keeps_dtype = _autocasts = rms_scaling = True
    _supports_mask = center = False
    gamma_initializer, gamma_regularizer, gamma_constraint = "ones", None, None

    def _add_parameter(self, name, shape, options):
        self.scale = self.add_weight(shape=shape, name="scale", **options)  # Keras's name for this gamma
        return self.scale

    def call(self, x):
        return self._standardize(_floating(x), center=False)[0]


# --------------------------------------------------------------------------------------------------------------
# Weight reparameterization
# --------------------------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("normlib")
class WeightNormalization(keras.layers.Wrapper):
    """Train a layer's kernel as lengths times directions, w = g * v / |v| (Salimans and Kingma 2016).

    One g and one norm per output unit. The wrapped layer's own kernel is v; g starts at |v|, so that wrapping changes
    nothing until the first update. A regularizer or constraint of the wrapped layer acts on v. The wrapper's own dtype
    is that of the variables, whatever the policy: the layer casts what it computes with. Where the layer was made in a
    `keras.RematScope`, the wrapper is checkpointed in its place.

    Shapes: those of the wrapped layer; g has the size of the kernel's output axes.

    Args:
        layer: a Keras layer with a kernel: Dense, EinsumDense, a convolution (transposed, depthwise, separable too).

    Raises:
        ValueError: a layer without a kernel, such as Embedding; in a call, a kernel that was quantized or adapted.

    Reference: arXiv:1602.07868, equation 2.
    """

    _initialize = None  # in `initialize_from_data`: sets g and the bias from the inputs of a call

    def __init__(self, layer, **kwargs):
        if isinstance(layer, keras.layers.Layer):
            policy = keras.dtype_policies.get(kwargs.get("dtype") or layer.variable_dtype)
            kwargs = {"trainable": layer.trainable} | kwargs | {"dtype": policy.variable_dtype}
        super().__init__(layer, **kwargs)
        if layer.built or isinstance(layer, (keras.layers.Embedding, keras.layers.MultiHeadAttention)):
            _kernels(layer)  # raises where there are none
        self.supports_masking = layer.supports_masking
        self.autocast = False  # the layer casts what it computes with
        self._remat_mode = self._remat_mode or layer._remat_mode
        if self._remat_mode and layer.name in self._remat_mode.layer_names:
            self._remat_mode = self._remat_mode._replace(layer_names=[self.name])
        self._axes = {}

    def build(self, input_shape=None):
        super().build(input_shape)
        for name, v, axes in _kernels(self.layer):
            g = self.add_weight(
                shape=tuple(size for axis, size in enumerate(v.shape) if axis not in axes),
                name=name.replace("kernel", "g"),
                initializer=lambda *_, v=v, axes=axes, **__: _length(tf.convert_to_tensor(v), axes),
                dtype=v.dtype,
            )
            setattr(self, g.name, g)
            self._axes[name] = axes

    def _parts(self):
        """For each kernel v, the axes of one weight vector, and g. Kept by name: v is the layer's variable alone."""
        if not self._axes:
            raise ValueError(f"Expected a layer that is built. Received: {self!r}")
        parts = []
        for name, axes in self._axes.items():
            v, g = getattr(self.layer, name), getattr(self, name.replace("kernel", "g"))
            if not isinstance(v, keras.Variable) or v.dtype != g.dtype:
                raise ValueError(
                    f"Expected {self.layer.name}.{name} as it was built, neither quantized nor adapted: `remove` the "
                    f"weight normalization first. Received: {v!r}"
                )
            parts.append((v, axes, g))
        return parts

    def kernels(self):
        """The kernels w that the wrapped layer computes with: for each v a tensor of its shape.

        Raises:
            ValueError: the wrapper is not built, or a kernel was quantized or adapted.
        """
        return [
            weight_normalize(tf.convert_to_tensor(v), tf.reshape(g, _of_units(v.shape, axes)), axes)
            for v, axes, g in self._parts()
        ]

    def call(self, inputs, **kwargs):
        if self._initialize:
            self._initialize(inputs)
        kernels = {id(v): w for (v, *_), w in zip(self._parts(), self.kernels(), strict=True)}
        # Within the scope, the layer reads w where it would read v. Its other variables are given as they are: a scope
        # hides the values of the scope around it, such as those of a model's stateless call.
        values = [(v, kernels.get(id(v), v)) for v in self.layer.variables]
        with self._not_recomputed(), keras.StatelessScope(values, collect_losses=True) as scope:
            before = dict(scope.state_mapping)
            outputs = self.layer(inputs, **kwargs)
        for variable in self.layer.non_trainable_variables:  # what the layer assigned, the scope has caught
            if (value := scope.get_current_value(variable)) is not before.get(id(variable)):
                variable.assign(value)
        for loss in scope.losses:
            self.add_loss(tf.identity(loss))  # another tensor than the layer's own, and so counted once
        return outputs

    def _not_recomputed(self):
        """Within, the wrapped layer's call is not checkpointed: recomputed by itself, it would read v instead of w."""
        modes = {layer: layer._remat_mode for layer in self.layer._flatten_layers()}
        whole = [layer for layer, mode in modes.items() if mode and mode.mode != "activations"]
        return _for_now("_remat_mode", dict.fromkeys(whole))

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)

    def compute_output_spec(self, inputs, **kwargs):
        return self.layer.compute_output_spec(inputs, **kwargs)

    def remove(self):
        """Fold g and v back into the wrapped layer's kernel, and return that plain layer.

        The wrapper stays what it was: v is now w, and g its length.

        Raises: as `kernels`.
        """
        for (v, axes, g), w in zip(self._parts(), self.kernels(), strict=True):
            v.assign(w)
            g.assign(_length(w, axes))  # a negative g has turned w round
        return self.layer


def _length(v, axes):
    return tf.cast(tf.sqrt(tf.reduce_sum(tf.square(_widen(v)), axes)), v.dtype)


def _kernels(layer):
    """A layer's kernels as (name, variable, the axes of one weight vector)."""
    found = []
    for name in ("depthwise_kernel", "pointwise_kernel", "kernel"):
        v = getattr(layer, name, None)
        if isinstance(v, keras.Variable) and keras.backend.is_float_dtype(v.dtype):
            found.append((name, v, _vector_axes(layer, name, v)))
    if not found:
        raise ValueError(
            f"Expected a layer that contains a `kernel` of floats, such as Dense. Received: {layer!r}"
        )
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
        ValueError: the model holds no such layer, one that is called several times (as in `TimeDistributed`), one whose
            outputs do not vary or are not finite, or one without a bias for each of them. The model is then as it was.

    Reference: Salimans and Kingma 2016 (arXiv:1602.07868), section 3.
    """
    model(inputs)  # builds it
    unset, before = set(_layers_of(WeightNormalization, model)), model.get_weights()
    try:
        with _for_now("_initialize", {w: functools.partial(_set_from_data, unset, w) for w in unset}):
            model(inputs)
    except Exception:
        model.set_weights(before)
        raise


def _set_from_data(unset, wrapped, inputs):
    """Give a layer's g and bias, once, the values with which these inputs have outputs of mean 0 and deviation 1."""
    layer, (_, _, g) = wrapped.layer, wrapped._parts()[-1]
    bias = getattr(layer, "bias", None)
    if bias is None or math.prod(bias.shape) != math.prod(g.shape) or not _biases_each_unit(layer):
        raise ValueError(f"Expected a layer with a bias for each g, in the same order. Received: {layer!r}")
    if wrapped not in unset:
        raise ValueError(f"Expected a model that calls {layer.name} once. Received: another call")
    unset.remove(wrapped)
    g.assign(tf.ones_like(g))
    bias.assign(tf.zeros_like(bias))
    with _for_now("activation", {layer: keras.activations.linear}), _for_now("_initialize", {wrapped: None}):
        t = _widen(wrapped(inputs))
    start = 1 if getattr(layer, "data_format", None) == "channels_first" else t.shape.rank - len(bias.shape)
    units = [start + axis for axis, size in enumerate(bias.shape) if size > 1]
    others = [axis for axis in range(t.shape.rank) if axis not in units]
    _, mean, variance = standardize(t, others, epsilon=0.0)
    # By so much equal outputs may differ.
    rounding = 4 * np.finfo(t.dtype.as_numpy_dtype).eps * tf.reduce_max(tf.abs(t))
    if not bool(tf.reduce_all((variance > tf.square(rounding)) & tf.math.is_finite(variance))):
        raise ValueError(
            f"Expected inputs with which every output of {layer.name} varies, and is finite. Received: {inputs!r}"
        )
    inv_std = tf.math.rsqrt(variance)
    g.assign(tf.reshape(inv_std, g.shape))
    bias.assign(tf.reshape(-mean * inv_std, bias.shape))


def _biases_each_unit(layer):
    """Whether the bias has the axes of g, in their order: of several axes it has them as the equation says."""
    if not isinstance(layer, keras.layers.EinsumDense):
        return True
    operands, output = layer.equation.split("->")
    units = [label for label in operands.split(",")[1] if label in output]
    return units == [label for label in output if label in layer.bias_axes]


def recalibrate(model, data):
    """Make the moving statistics of every batch normalization exact averages over data.

    Moving averages lag behind the weights, and weight the last batches most. Here the weights stay, and each batch
    counts by its elements; that the batches' means differ is part of the variance. Each normalization passes on what it
    makes of the batch, as in training, and everything else in the model is as in inference: the deeper statistics are
    those that inference meets as far as a batch's are the data's, so batches should be large. The model runs eagerly.

    Args:
        model: a Keras model that holds `BatchNormalization` or `MeanOnlyBatchNormalization` layers of this module;
            Keras's own are as in inference, and left as they are.
        data: iterable of batches, such as a list of arrays or a `tf.data.Dataset`: inputs, or (inputs, targets) tuples.

    Returns:
        The model.

    Raises:
        ValueError: no such layer in the model, no batch in the data, or statistics that are not finite. The model is
            then as it was.

    Reference: Wu and Johnson 2021 (arXiv:2105.07576), section 3.1.
    """
    layers = _layers_of(BatchNormalization, model)
    pooled = {layer: (0.0, 0.0, 0.0) for layer in layers}  # not by name: two blocks may give the same one

    def collect(layer, count, mean, variance=0.0):
        so_far, old_mean, old_variance = pooled[layer]
        count, mean, variance = (np.asarray(value, "float64") for value in (count, mean, variance))
        if not count:  # an empty or wholly masked batch
            return
        if not np.isfinite(mean + variance).all():
            received = f"mean {mean}, variance {variance} in {layer.name}"
            raise ValueError(f"Expected data with finite statistics. Received: {received}")
        share, apart = count / (so_far + count), mean - old_mean
        pooled[layer] = (
            so_far + count,
            old_mean + share * apart,
            old_variance + share * (variance - old_variance) + share * (1 - share) * apart**2,
        )

    with _for_now("_collect", {layer: functools.partial(collect, layer) for layer in layers}):
        for batch in data:
            model(keras.utils.unpack_x_y_sample_weight(batch)[0], training=False)
    for layer, (count, *_) in pooled.items():
        if not count:
            raise ValueError(f"Expected at least one batch of data that reaches {layer.name}. Received: none")
    for layer, (_, *statistics) in pooled.items():
        for name, value in zip(layer._statistics, statistics, strict=False):
            getattr(layer, name).assign(np.reshape(value, getattr(layer, name).shape))
    return model


def fold(model):
    r"""A model for inference without batch normalization: each is folded into the layer before it.

    $$ w' = w s, \quad b' = \beta + (b - \mu) s, \quad s = \gamma / \sqrt{\sigma^2 + \epsilon} $$

    Exact up to round-off, with any padding, where a normalization of the last axis (of this module or Keras's) directly
    follows a Dense layer or a convolution (transposed, depthwise, separable too) that has no activation and that
    nothing else reads; in nested models too. Others stay as they are.

    Args:
        model: a built Sequential or Functional model; it is left unchanged.

    Returns:
        A new model with the same outputs in inference; an identity stands where a normalization was.

    Raises:
        TypeError: a model that is neither Sequential nor Functional, or that is not built.
    """
    if not _has_graph(model):
        raise TypeError(f"Expected a Sequential or Functional model that is built. Received: {model!r}")
    return _folded(model)


def _folded(model, trains=False):
    """A copy of a model; with its normalizations folded, unless it is called in training mode."""
    calls = _calls(model)
    into = {} if trains else _foldable(model, calls)
    gone = {norm.name for norm in into.values()}

    def clone(layer):  # what a copy shares with its layer is the name
        if layer.name in gone:
            return keras.layers.Identity(name=layer.name, dtype=layer.dtype_policy.name)
        if _has_graph(layer):
            return _folded(layer, trains or any(map(_in_training, calls[layer.name])))
        config = layer.get_config() | ({"use_bias": True} if layer.name in into else {})
        if hasattr(layer, "get_vocabulary"):  # learnt, and no weight
            config["vocabulary"] = layer.get_vocabulary(include_special_tokens=False)
        return type(layer).from_config(config)

    def call(layer, *arguments, **options):  # an identity takes no mask and no training
        if layer.name in gone:
            return layer(arguments[0] if arguments else options["inputs"])
        return layer(*arguments, **options)

    options = {} if isinstance(model, keras.Sequential) else {"call_function": call}
    with _for_now("compiled", {model: False}):  # its loss may have no name to be copied by
        copy = keras.models.clone_model(model, clone_function=clone, **options)
    for layer in model.layers:
        if layer.weights and layer.name not in gone and not _has_graph(layer):
            copied = copy.get_layer(layer.name)
            copied.set_weights(_fold(layer, into[layer.name]) if layer.name in into else layer.get_weights())
            if hasattr(copied, "finalize_state"):  # Keras's Normalization reads its weights once
                copied.finalize_state()
    return copy


def _has_graph(layer):
    """Whether a layer is a Sequential or Functional model that is built."""
    return isinstance(layer, keras.Model) and bool(getattr(layer, "inputs", None))


_FOLDABLE = (
    *(keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D),
    *(keras.layers.SeparableConv1D, keras.layers.SeparableConv2D, *_TRANSPOSED, *_DEPTHWISE),
)


def _calls(model):
    """The nodes of a model's graph, by the name of the layer that each calls."""
    graph = model._functional if isinstance(model, keras.Sequential) else model
    calls = collections.defaultdict(list)
    for node in itertools.chain(*graph._nodes_by_depth.values()):
        calls[node.operation.name].append(node)
    return calls


def _in_training(node):
    return bool(node.arguments.kwargs.get("training"))


def _foldable(model, calls):
    """The normalizations that can be folded, by the name of the layer that each is folded into."""
    readers = collections.Counter(tensor._keras_history.operation.name for tensor in model.outputs)
    readers.update(p.operation.name for nodes in calls.values() for node in nodes for p in node.parent_nodes)
    found = {}
    for norm in model.layers:
        if type(norm) not in (BatchNormalization, keras.layers.BatchNormalization):
            continue
        [call, *others] = calls[norm.name]
        layer = call.parent_nodes[0].operation
        alone = not others and len(calls[layer.name]) == readers[layer.name] == 1
        last = norm.axis in (-1, norm.input_spec.ndim - 1)
        if alone and last and not _in_training(call) and _is_linear(layer):
            found[layer.name] = norm
    return found


def _is_linear(layer):
    if type(layer) not in _FOLDABLE:  # one that is derived from these may make something else of its kernel
        return False
    adapted = getattr(layer, "lora_enabled", False) or layer.quantization_mode is not None
    channels_first = getattr(layer, "data_format", None) == "channels_first"
    return not adapted and not channels_first and layer.activation is keras.activations.linear


def _fold(layer, norm):
    """The layer's weights, with the normalization in its last kernel and in its bias."""
    std = np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
    scale = (1.0 if norm.gamma is None else norm.gamma.numpy()) / std
    shift = 0.0 if norm.beta is None else norm.beta.numpy()
    bias = layer.bias.numpy() if layer.use_bias else 0.0
    *others, (_, kernel, axes) = _kernels(layer)
    folded = kernel.numpy() * scale.reshape(_of_units(kernel.shape, axes))
    shifted = shift + (bias - norm.moving_mean.numpy()) * scale
    return [*(other.numpy() for _, other, _ in others), folded, shifted]


@contextlib.contextmanager
def _for_now(name, values):
    """Within, an attribute has other values: `values` is a dict from object to value."""
    before = {each: getattr(each, name) for each in values}
    try:
        for each, value in values.items():
            setattr(each, name, value)
        yield
    finally:
        for each, value in before.items():
            setattr(each, name, value)


def _layers_of(kind, model):
    """All layers of a kind in a model, nested ones too."""
    found = [layer for layer in model._flatten_layers() if isinstance(layer, kind)]
    if not found:
        raise ValueError(f"Expected a model with normlib.{kind.__name__} layers. Received: {model!r}")
    return found
