"""Faults planted in the layers: each must be found by the project's own tests."""

import os
import pathlib
import subprocess
import sys

import pytest

import normlib

SOURCE = pathlib.Path(normlib.__file__).read_text()
TESTS = pathlib.Path(__file__).parent

# The fault: the code, what takes its place, the tests that must find it.
FAULTS = {
    "the mean is detached": (
        "along_one + x_hat * along_x_hat if plan.center else x_hat * along_x_hat",
        "x_hat * along_x_hat",
        "gradients",
    ),
    "the variance is detached": (
        "along_one + x_hat * along_x_hat if plan.center else x_hat * along_x_hat",
        "along_one if plan.center else 0.0 * x_hat",
        "gradients",
    ),
    "gamma is missing in dx": ("(gamma * dy - _only(", "(dy - _only(", "gradients"),
    "a gamma that can wait never comes": ("scale, gamma = inv_std * gamma, 1.0", "gamma = 1.0", "gradients"),
    "epsilon is outside the root": (
        "deviation * tf.math.rsqrt(variance + plan.epsilon), parameters",
        "deviation / (tf.sqrt(variance) + plan.epsilon), parameters",
        "gradients",
    ),
    "the variance is the unbiased one": (
        "_mean(plan, tf.square(deviation), count)",
        "_mean(plan, tf.square(deviation), count) * count / (count - 1.0)",
        "gradients",
    ),
    "beta is added twice": (
        "y + tf.cast(parameters[-1], y.dtype)",
        "y + 2 * tf.cast(parameters[-1], y.dtype)",
        "gradients",
    ),
    "dgamma is taken for dbeta": (
        "(plan.scale, sum_dy_x_hat), (plan.shift, sum_dy)",
        "(plan.scale, sum_dy), (plan.shift, sum_dy_x_hat)",
        "gradients",
    ),
    "beta is taken for what is averaged": (
        "for p in (gamma, *parameters) for",
        "for p in (gamma,) for",
        "gradients -k autodiff",
    ),
    "a group's size does not count its channels": (
        "sizes.append(x.shape[plan.groups[0]] // plan.groups[1])",
        "pass",
        "gradients",
    ),
    "RMS normalization is centred": ("(x), center=False)[0]", "(x))[0]", "gradients"),
    "second derivatives take the statistics for constants": (
        "run(_standardize_gradients, dy, *statistics, x, *parameters)",
        "run(_standardize_gradients, dy, *map(tf.stop_gradient, statistics), x, *parameters)",
        "gradients -k second",
    ),
    "weight normalization does not project": ("(dw - u * dg)", "dw", "gradients -k weight"),
    "a transposed kernel's outputs are taken for inputs": (
        "outputs = {rank - 2}\n",
        "outputs = {rank - 1}\n",
        "gradients -k weight",
    ),
    "a vector of length zero divides by it": ("reciprocal_no_nan(", "reciprocal(", "layers -k zero"),
    "a vector of length zero has its root taken": (
        "tf.sqrt(tf.where(some, squared, 1.0))",
        "tf.sqrt(squared)",
        "gradients -k zero",
    ),
    "offsets are not taken out first": (
        "_near_the_mean(plan, x) if plan.counts_all else _mean(plan, x, count)",
        "0.0 * _mean(plan, x, count)",
        "layers -k offset",
    ),
    "the momentum is reversed": (
        "old * self.momentum + ",
        "old * (1.0 - self.momentum) + ",
        "layers -k statistics",
    ),
    "statistics that are not finite are averaged in": (
        "tf.where(finite, average",
        "tf.where(True, average",
        "layers -k finite",
    ),
    "each statistic is averaged in by itself": (
        "tf.where(finite, average",
        "tf.where(tf.math.is_finite(average), average",
        "layers -k finite",
    ),
    "the mask is ignored": (
        "self._standardize(x, mask=mask",
        "self._standardize(x, mask=None",
        "layers -k mask",
    ),
    "a mask is taken for weights": (
        'tf.cast(mask, "bool")[..., None]',
        'tf.cast(tf.cast(mask, "float32") > 1, "bool")[..., None]',
        "layers -k mask",
    ),
    "a masked NaN is computed with": (
        "plan.mask | tf.math.is_finite(tf.square(_widen(x)))",
        "plan.mask | True",
        "layers -k mask",
    ),
    "what was compiled keeps its first mask": (
        "plain = functools.partial(_with_mask, kernel, plan)",
        "plain = lambda _, *tensors, mask=mask: _with_mask(kernel, plan, mask, *tensors)",
        "layers -k mask",
    ),
    "a layer that is not trainable trains": (
        "averages = training and self.trainable",
        "averages = training",
        "layers -k trainable",
    ),
    "statistics of float16 are float16": (
        "return tf.float64 if dtype == tf.float64 else tf.float32",
        "return dtype",
        "layers -k float16",
    ),
    "an option is not in the configuration": (
        "for name in self._arguments}\n        return {",
        'for name in self._arguments if name != "epsilon"}\n        return {',
        "layers -k option",
    ),
    "any momentum is accepted": ('1.0 if name == "momentum" else math.inf', "math.inf", "layers -k refused"),
    "a default differs from Keras's": (
        '"axis": -1, "epsilon": 1e-6',
        '"axis": -1, "epsilon": 1e-3',
        "keras_parity -k default",
    ),
    "inference forgets epsilon": (
        "inv_std = tf.math.rsqrt(variance + plan.epsilon)\n    return mean",
        "inv_std = tf.math.rsqrt(variance)\n    return mean",
        "keras_parity -k inference",
    ),
    "in inference, dx forgets gamma": (
        "tf.cast(dy * scale, x.dtype)",
        "tf.cast(dy * inv_std, x.dtype)",
        "gradients -k inference_has",
    ),
    "the moving variance starts at 0": (
        '"moving_variance_initializer": "ones"',
        '"moving_variance_initializer": "zeros"',
        "keras_parity",
    ),
    "folding forgets epsilon": (
        "norm.moving_variance.numpy() + norm.epsilon",
        "norm.moving_variance.numpy()",
        "tools -k fold",
    ),
    "recalibration forgets that means differ": (
        " + share * (1 - share) * apart**2",
        "",
        "tools -k recalibrated",
    ),
    "nothing is wrong": ("", "", "layers -k momentum or moving"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault, tmp_path):
    code, wrong, tests = FAULTS[fault]
    if code:
        assert SOURCE.count(code) == 1, "the fault has lost its place"
    (tmp_path / "normlib.py").write_text(SOURCE.replace(code, wrong, 1) if code else SOURCE)
    name, *keywords = tests.split(" -k ")
    # -P: the planted module is found before the one in the current folder.
    command = [sys.executable, "-P", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += [f"-k{keyword}" for keyword in keywords] + [str(TESTS / f"test_{name}.py")]
    ran = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )
    # 1: a test failed; 2 and more: something else did, such as the import.
    assert ran.returncode == (1 if code else 0), ran.stdout[-2000:]
