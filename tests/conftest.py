"""What all tests share."""

import study  # isort: skip  # noqa: F401  # first: it fixes TensorFlow's threads

import asyncio
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest

import build
from study import data, training


@pytest.fixture
def rng():
    """One stream of random numbers, the same in every test."""
    return np.random.default_rng(2612)


@pytest.fixture(scope="session")
def sample():
    """The embedded sample of Fashion-MNIST."""
    return data.load(sample=True)


@pytest.fixture(scope="session")
def chromium():
    """Debian's Chromium, installed where that is possible."""
    if not shutil.which("chromium") and shutil.which("apt-get") and os.geteuid() == 0:
        for command in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
            subprocess.run(["apt-get", "-q", *command], capture_output=True, timeout=300)
    if not shutil.which("chromium"):
        pytest.skip("Chromium is missing and could not be installed: apt-get install chromium")
    return shutil.which("chromium")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test finds the runs of another, or of the user, nor programs that were compiled before a fault was planted."""
    training._shared_program.cache_clear()
    monkeypatch.setenv("NORMLIB_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def keras_as_found():
    """No test leaves Keras with another dtype than it found."""
    policy, floatx = keras.config.dtype_policy(), keras.config.floatx()
    yield
    keras.config.set_dtype_policy(policy)
    keras.config.set_floatx(floatx)


@pytest.fixture(scope="session")
def report(tmp_path_factory):
    """The whole report in the smoke profile, with another seed than the default."""
    output = tmp_path_factory.mktemp("report")
    in_own_thread(build.main, ["--profile", "smoke", "--output", str(output), "--set", "SEED=7"])
    return output


def in_own_thread(function, *arguments):
    """Call a function in another thread: a running browser holds the event loop of this one."""

    def called():
        try:
            return function(*arguments)
        finally:
            asyncio.get_event_loop().close()  # papermill leaves it open

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(called).result()


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """Tests that look at the same built report run on the same worker, so that it is built once."""
    for item in items:
        if shared := [fixture for fixture in ("report", "toy", "address") if fixture in item.fixturenames]:
            item.add_marker(pytest.mark.xdist_group(shared[0]))
