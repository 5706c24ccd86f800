"""Many runs: nothing lost when a worker, a build or a file dies, nothing computed twice, and the same on a cluster."""

import contextlib
import dataclasses
import inspect
import io
import json
import operator
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types

import joblib
import numpy as np
import psutil
import pytest
from distributed import Client, LocalCluster
from filelock import FileLock

import normlib
import study as package
from study import data, figures, network, running, training

SHORT = training.Run(sample=True, steps=6, evaluate_every=3, batch_size=20)
RUNS = [dataclasses.replace(SHORT, seed=seed) for seed in range(4)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("NORMLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NORMLIB_PROGRESS", "lines")
    return tmp_path / "cache"


def script(text, **environment):
    """A Python process of its own that knows RUNS."""
    head = f"""
        import dataclasses, os, sys, pathlib
        from study import running, training
        RUNS = [dataclasses.replace(training.Run(**{dataclasses.asdict(SHORT)!r}), seed=seed) for seed in range(4)]
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(text)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def contents(folder):
    """All that is kept, but for the milliseconds."""
    found = {}
    for path in sorted(pathlib.Path(folder).glob("*.run")):
        with np.load(io.BytesIO(path.read_bytes()[32:]), allow_pickle=False) as arrays:
            found[path.name] = {
                name: arrays[name].tobytes() for name in arrays.files if name != "description"
            }
    return found


# --- the same bits ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_worker_and_two_give_the_same_bits(tmp_path, monkeypatch):
    kept = []
    for jobs in (1, 2):
        monkeypatch.setenv("NORMLIB_CACHE", str(tmp_path / str(jobs)))
        running.run_all(RUNS, jobs)
        kept.append(contents(tmp_path / str(jobs)))
    assert kept[0] == kept[1]
    assert len(kept[0]) == len(RUNS)


def test_the_key_follows_the_code_that_decides_and_no_other(monkeypatch):
    def key_with(module, added):
        source = running._source
        monkeypatch.setattr(running, "_source", lambda m: source(m) + (added if m == module.__name__ else ""))
        try:
            return running._key(SHORT)
        finally:
            monkeypatch.setattr(running, "_source", source)

    key = running._key(SHORT)
    for module in (normlib, package, data, network, training):
        assert key_with(module, "CHANGED = 1") != key
        assert key_with(module, "# a comment\n\n") == key
    assert key_with(figures, "CHANGED = 1") == key
    assert running._code('def f():\n    """Doc."""\n    return 1') == running._code(
        "def f(): return 1  # one"
    )


def test_the_key_follows_the_modules_that_a_layer_derives_from(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    base, own = tmp_path / "base_of_a_layer.py", tmp_path / "layer_with_a_base.py"
    base.write_text("import keras\nclass Base(keras.layers.Layer):\n    pass")
    own.write_text("import base_of_a_layer\nclass Own(base_of_a_layer.Base):\n    pass")
    run = dataclasses.replace(SHORT, norm=f"{own.stem}:Own")
    asked, source = [], running._source
    monkeypatch.setattr(running, "_source", lambda module: asked.append(module) or source(module))
    running._key(run)
    assert asked == [*running.DECISIVE, own.stem, base.stem]


def test_the_key_follows_what_a_readers_layer_imports(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    helper, own = tmp_path / "helper_of_a_layer.py", tmp_path / "layer_with_a_helper.py"
    helper.write_text("def double(x):\n    return 2 * x")
    own.write_text(
        "import keras\nfrom helper_of_a_layer import double\nclass Own(keras.layers.Layer):\n    f = double"
    )
    own_class = network.resolve(f"{own.stem}:Own")
    assert running._modules_of(own_class) == [own.stem, helper.stem]
    assert running._modules_of(network.resolve("study.controls:Affine")) == ["study.controls"]


def test_what_a_killed_build_left_begun_is_not_begun(cache, monkeypatch):
    step_file = cache / f"{running._key(SHORT)}.step"
    cache.mkdir(exist_ok=True)
    step_file.write_text("3")
    monkeypatch.setattr(
        running, "_train_all", lambda *_: pytest.fail("still begun") if step_file.exists() else 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        running.run_all([SHORT], jobs=1)


def test_a_kept_run_that_cannot_be_read_now_is_not_thrown_away(cache, monkeypatch):
    running.run_all([SHORT], jobs=1)
    [path] = cache.glob("*.run")

    def fails(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(pathlib.Path, "read_bytes", fails)
    with pytest.raises(OSError, match="Too many open files"):  # and not: trained again, in vain
        running.run_all([SHORT], jobs=1)
    assert path.exists()


# --- what dies -----------------------------------------------------------------------------------------------------


def kill_a_worker(cache, times, runs=1):
    """Kill the worker processes as soon as so many runs have begun, so many times."""
    for _ in range(times):
        while len(begun := list(cache.glob("*.step"))) < runs:
            time.sleep(0.02)
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "popen_loky" in " ".join(child.cmdline()):
                    child.kill()
        while any(step.exists() for step in begun):  # they are tried again
            time.sleep(0.02)


@pytest.mark.slow
def test_runs_of_a_worker_that_was_killed_are_tried_once_more(cache, capfd):
    long = [dataclasses.replace(run, steps=400, evaluate_every=200) for run in RUNS[:2]]
    killer = threading.Thread(target=kill_a_worker, args=(cache, 1), daemon=True)
    killer.start()
    found = running.run_all(long, jobs=2)
    killer.join(10)
    assert "A worker process died" in capfd.readouterr().err
    assert found[long[0]].weights_hash == training.train(long[0]).weights_hash


@pytest.mark.slow
def test_workers_that_die_twice_are_named(cache):
    long = [dataclasses.replace(run, steps=4000, evaluate_every=2000) for run in RUNS[:2]]
    threading.Thread(target=kill_a_worker, args=(cache, 2, 2), daemon=True).start()
    with pytest.raises(RuntimeError, match=r"died twice at: \[Run.*seed="):
        running.run_all(long, jobs=2)


@pytest.mark.slow
@pytest.mark.parametrize("moment", [5.0, 8.0])
def test_a_study_that_was_killed_goes_on_and_ends_the_same(moment, cache, tmp_path, monkeypatch):
    study = script("running.run_all(RUNS, jobs=1)")
    time.sleep(moment)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(study.pid, signal.SIGKILL)
    study.communicate()
    before = set(cache.glob("*.run"))
    times = {path: path.read_bytes() for path in before}
    running.run_all(RUNS, jobs=2)
    assert {path: path.read_bytes() for path in before} == times  # not trained again
    ended = contents(cache)
    monkeypatch.setenv("NORMLIB_CACHE", str(tmp_path / "alone"))
    running.run_all(RUNS, jobs=2)
    assert ended == contents(tmp_path / "alone")


@pytest.mark.slow
def test_a_study_that_was_interrupted_goes_on_in_the_same_process(cache):
    text = """
        import signal, threading, time
        cache = pathlib.Path(os.environ["NORMLIB_CACHE"])
        def interrupt():
            while not list(cache.glob("*.run")):
                time.sleep(0.05)
            os.killpg(0, signal.SIGINT)  # the workers too, as Ctrl-C and JupyterLab's button do
        threading.Thread(target=interrupt, daemon=True).start()
        many = [dataclasses.replace(run, steps=200, evaluate_every=50) for run in RUNS]
        try:
            running.run_all(many, jobs=2)
        except KeyboardInterrupt:
            kept = {path: path.read_bytes() for path in cache.glob("*.run")}
        found = running.run_all(many, jobs=2)
        assert all(path.read_bytes() == content for path, content in kept.items())  # not trained again
        print(len(kept), len(found))
    """
    study = script(text)
    printed, told = study.communicate(timeout=120)
    assert study.returncode == 0, told
    kept, found = map(int, printed.split())
    assert 1 <= kept < found == len(RUNS)


@pytest.mark.slow
def test_a_build_that_is_killed_ends_the_same_as_one_left_alone():
    """Ten times: python tests/killing.py."""
    command = [sys.executable, str(pathlib.Path(__file__).with_name("killing.py")), "--times", "2"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


# --- what is shared ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_builds_at_once_train_nothing_twice(cache, tmp_path):
    count = tmp_path / "count"
    text = f"""
        train = training.train
        def counted(run, progress=None):
            with open({str(count)!r}, "a") as file:
                file.write(f"{{run.seed}}\\n")
            return train(run, progress)
        training.train = counted
        running._workers = lambda *_: 1  # joblib then works in this process
        running.run_all(RUNS)
    """
    both = [script(text), script(text)]
    for study in both:
        _, told = study.communicate(timeout=120)
        assert study.returncode == 0, told
    assert sorted(count.read_text().split()) == ["0", "1", "2", "3"]


def test_a_run_that_another_one_is_at_is_passed_over(cache):
    cache.mkdir()
    path = cache / f"{running._key(SHORT)}.run"
    with FileLock(path.with_suffix(".lock")):
        assert running._train_and_keep(SHORT, path, waits=False) == (path, None)
    assert not list(cache.glob("*.run"))


def test_what_was_used_longest_ago_goes_first(cache, monkeypatch):
    cache.mkdir()
    for age, name in enumerate(("new", "middle", "old")):
        path = cache / f"{name}.run"
        path.write_bytes(bytes(100))
        os.utime(path, (1e9 - age, 1e9 - age))
    monkeypatch.setattr(running, "LIMIT", 150)
    running._evict(cache, keep={cache / "old.run"})
    assert {path.stem for path in cache.glob("*.run")} == {"old"}


def test_what_killed_builds_left_goes_and_what_is_at_work_stays(cache):
    cache.mkdir()
    for name in ("left.lock", "left.step", "kept.lock", "kept.run", "held.lock", "held.step"):
        (cache / name).touch()
    for name, age in (("old", 2), ("new", 0)):
        (cache / f".writing-{name}").mkdir()
        (cache / f".writing-{name}" / "a.run").write_bytes(bytes(100))
        written = time.time() - age * running.ABANDONED
        os.utime(cache / f".writing-{name}", (written, written))
    with FileLock(cache / "held.lock"):
        running._evict(cache, keep=set())
    found = {path.name for path in cache.iterdir()}
    assert found == {"kept.lock", "kept.run", "held.lock", "held.step", ".writing-new"}


def test_no_more_workers_than_fit_into_memory_and_than_there_are_cores(monkeypatch):
    monkeypatch.setattr(running.joblib, "effective_n_jobs", lambda all: 8)
    assert running._workers(0, 100) == running._workers(64, 100) == 8
    assert running._workers(0, 3) == running._workers(3, 100) == 3
    monkeypatch.setattr(running, "MEMORY", psutil.virtual_memory().available / 3.5)
    assert running._workers(8, 100) in (2, 3, 4)
    with pytest.raises(ValueError, match=r"at least 0. Received: jobs=-1"):
        running._workers(-1, 100)


def test_workers_that_idle_take_no_place_from_themselves(monkeypatch):
    monkeypatch.setattr(running.joblib, "effective_n_jobs", lambda all: 8)
    monkeypatch.setattr(running, "_needed_memory", lambda cache: 100)
    monkeypatch.setattr(running.psutil, "virtual_memory", lambda: types.SimpleNamespace(available=150))
    monkeypatch.setattr(running, "_memory", lambda process: 0)
    assert running._workers(0, 100) == 1
    monkeypatch.setattr(running, "_memory", lambda process: 100)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        others = len(psutil.Process().children()) - 1
        assert running._workers(0, 100) == min(8, 2 + others)
        child.communicate(b"\n")


def test_a_worker_that_needs_more_memory_than_it_is_taken_to_makes_fewer(cache, monkeypatch):
    monkeypatch.setattr(running, "MEMORY", 1e6)  # any process needs more
    monkeypatch.setattr(running.joblib, "effective_n_jobs", lambda all: 10**9)
    before = running._workers(0, 10**9)
    running.run_all([SHORT], jobs=1)
    assert running._workers(0, 10**9) < before / 100
    (cache / "memory").write_text("damaged")
    assert running._needed_memory(cache) == 1e6


def test_workers_may_grow_by_more_than_joblib_lets_them():
    name = "_MAX_MEMORY_LEAK_SIZE"
    calls = {k: (getattr, running.process_executor, name) for k in range(2)}
    assert set(running.at_once(calls, jobs=2).values()) == {running.GROWTH}
    assert name in inspect.getsource(running.process_executor._process_worker)  # where joblib asks


@pytest.mark.parametrize("jobs", [1, 2])
def test_calls_at_once_are_told_apart_by_name(jobs):
    calls = {"sum": (operator.add, 1, 2), "product": (operator.mul, 3, 4)}
    assert running.at_once(calls, jobs) == {"sum": 3, "product": 12}
    with pytest.raises(ZeroDivisionError):
        running.at_once(calls | {"quotient": (operator.truediv, 1, 0)}, jobs)


def test_longest_first(monkeypatch):
    asked = []
    monkeypatch.setattr(running, "_train_all", lambda runs, *_: asked.extend(runs))
    monkeypatch.setattr(running, "_restore", lambda path, run: run if asked else None)
    running.run_all([dataclasses.replace(SHORT, steps=steps) for steps in (10, 30, 20)])
    assert [run.steps for run in asked] == [30, 20, 10]


def test_short_runs_of_one_program_stay_together():
    def steps_of(pieces):
        return [[(run.norm is None, run.steps) for run in piece] for piece in pieces]

    def runs(norm, *steps):
        options = network.METHODS["BN" if norm else "none"]
        return [dataclasses.replace(SHORT, seed=k, steps=n, **options) for k, n in enumerate(steps)]

    both = [*runs(True, 30, 20), *runs(False, 12, 10)]
    assert steps_of(running._pieces(both, 1)) == [[(False, 30), (False, 20)], [(True, 12), (True, 10)]]
    # Each of more workers gets a share; a long run is a piece of its own.
    assert steps_of(running._pieces(runs(True, 30, 30), 2)) == [[(False, 30)], [(False, 30)]]
    most = running.PIECE // SHORT.batch_size
    assert steps_of(running._pieces(runs(True, 2 * most, most, 9, 8), 1)) == [
        [(False, 2 * most)],
        [(False, most)],
        [(False, 9), (False, 8)],
    ]


@pytest.mark.slow
def test_every_thread_pool_has_one_thread(cache):
    text = """
        import numpy, threading, tensorflow as tf
        numpy.ones((600, 600)) @ numpy.ones((600, 600))
        tf.ones((600, 600)) @ tf.ones((600, 600))
        print(*(os.environ[f"{name}_NUM_THREADS"] for name in ("OMP", "OPENBLAS", "MKL")))
        print(tf.config.threading.get_intra_op_parallelism_threads())
    """
    printed, told = (study := script(text, OMP_NUM_THREADS="8")).communicate(timeout=120)
    assert study.returncode == 0, told
    assert printed.split() == ["1", "1", "1", "1"]


def answer(run, path, waits):
    return path, run


def test_a_backend_without_generators_gives_its_results_too(tmp_path, monkeypatch):
    """joblib's multiprocessing, which Ray's backend is derived from."""
    monkeypatch.setattr(running, "_train_and_keep", answer)
    paths = {run: tmp_path / f"{run.seed}.run" for run in RUNS}
    with joblib.parallel_config("multiprocessing"):
        results = dict(running._results(RUNS, paths, False, jobs=2))
    assert results == {path: run for run, path in paths.items()}


@pytest.mark.slow
def test_a_run_that_fails_is_named():
    bad = dataclasses.replace(SHORT, norm="normlib:GroupNormalization", options=(("groups", 7),))
    with pytest.raises(
        RuntimeError, match=r"This run failed: .*Received: groups=7.*It was Run\(.*GroupNormalization"
    ):
        running.run_all([bad], jobs=1)


# --- what is damaged, full or locked ---------------------------------------------------------------------------------


def damage(path, how):
    content = path.read_bytes()
    payload = {
        "flipped": content[32:100] + bytes([content[100] ^ 1]) + content[101:],
        "cut": content[32:200],
        "empty": b"",
        "something else": b"a file",
    }[how]
    checksum = content[:32] if how == "flipped" else running._checksum(path, payload)
    path.write_bytes((checksum + payload)[: 0 if how == "empty" else None])


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "something else", "another run's"])
def test_a_damaged_run_is_told_of_and_trained_again(how, cache, capfd):
    runs = RUNS[:2]
    before = running.run_all(runs, jobs=1)
    first, second = (cache / f"{running._key(run)}.run" for run in runs)
    if how == "another run's":
        first.write_bytes(second.read_bytes())
    else:
        damage(first, how)
    after = running.run_all(runs, jobs=1)
    assert "was damaged and is trained again" in capfd.readouterr().err
    assert [after[run].weights_hash for run in runs] == [before[run].weights_hash for run in runs]
    assert running._checksum(first, first.read_bytes()[32:]) == first.read_bytes()[:32]


def test_a_planted_pickle_is_not_executed(cache, tmp_path):
    running.run_all([SHORT], jobs=1)
    path = cache / f"{running._key(SHORT)}.run"

    class Planted:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    payload = io.BytesIO()
    np.savez(payload, description=np.array([Planted()], dtype=object))
    path.write_bytes(running._checksum(path, payload.getvalue()) + payload.getvalue())
    assert running._restore(path, SHORT) is None
    assert not (tmp_path / "executed").exists()


def test_what_another_build_evicts_is_no_error(cache, monkeypatch):
    cache.mkdir()
    for name in "abc":
        (cache / f"{name}.run").write_bytes(bytes(100))
    monkeypatch.setattr(running, "LIMIT", 0)
    stat = pathlib.Path.stat

    def gone(path, **options):
        if path.name == "b.run":
            path.unlink(missing_ok=True)
        return stat(path, **options)

    monkeypatch.setattr(pathlib.Path, "stat", gone)
    running._evict(cache, keep=set())
    assert not list(cache.glob("*.run"))


def test_a_full_cache_leaves_nothing_half_written(cache, monkeypatch):
    """A small file system in memory takes the place of a full disk, where one may be mounted."""
    cache.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", cache], capture_output=True
    ).returncode:
        pytest.skip("a small file system could not be mounted")
    try:
        for _ in range(3):
            with pytest.raises(OSError, match="No space left"):
                running._write(cache / "a.run", bytes(100_000))
            assert not list(cache.iterdir())
        running._write(cache / "a.run", bytes(1000))
        assert (cache / "a.run").stat().st_mode & 0o044
    finally:
        subprocess.run(["umount", cache], check=True)


def test_a_run_is_kept_under_the_code_that_this_process_runs(monkeypatch):
    """An edit under an open notebook: the code that is loaded stays the one that counts."""
    key = running._key(SHORT)
    monkeypatch.setattr(pathlib.Path, "read_text", lambda *_: "edited = True")
    assert running._key(SHORT) == key


@pytest.mark.parametrize("what", ["code", "oneDNN", "processor"])
def test_a_worker_whose_results_would_be_others_refuses(what, cache, monkeypatch):
    path = cache / f"{running._key(SHORT)}.run"
    if what == "code":
        monkeypatch.setattr(running, "_source", lambda module: "other = True")
    elif what == "oneDNN":
        monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    else:
        read_text = pathlib.Path.read_text
        monkeypatch.setattr(
            pathlib.Path,
            "read_text",
            lambda path, *rest, **options: (
                "flags: another's" if path.name == "cpuinfo" else read_text(path, *rest, **options)
            ),
        )
    running._machine.cache_clear()
    try:
        with pytest.raises(
            RuntimeError, match=r"code, versions, settings and kind of processor. Received: key"
        ):
            running._train_and_keep(SHORT, path, waits=False)
    finally:
        running._machine.cache_clear()


def test_progress_is_told_in_lines(capfd, monkeypatch):
    running.run_all([SHORT], jobs=1)
    assert "runs: 6 of 6 steps, 1 of 1 runs, 00:00 left" in capfd.readouterr().err


def test_a_short_loop_shows_no_progress_and_a_long_one_its_time_left(capfd, monkeypatch):
    assert list(running.progress(range(3), "short")) == [0, 1, 2]
    assert capfd.readouterr().err == ""
    list(running.progress(range(3), "long", delay=0, unit="step"))
    assert capfd.readouterr().err.splitlines() == [
        "long: 0 of 3 steps, ? left",
        "long: 3 of 3 steps, 00:00 left",
    ]
    monkeypatch.delenv("NORMLIB_PROGRESS")
    list(running.progress(range(3), "long", delay=0))
    assert "3/3 [00:00<00:00" in capfd.readouterr().err


@pytest.mark.slow
def test_nothing_but_progress_is_told():
    """TensorFlow is silent, here and in the workers."""
    study = script("running.run_all(RUNS[:2], jobs=2)")
    told = study.communicate(timeout=120)[1].splitlines()
    assert told and all(line.startswith("runs: ") for line in told), told


# --- a cluster -----------------------------------------------------------------------------------------------------


def test_a_worker_out_of_the_callers_reach_trains_what_is_damaged_in_its_own_cache(cache, tmp_path, capfd):
    path = tmp_path / "of the caller" / f"{running._key(SHORT)}.run"
    running._train_and_keep(SHORT, path, waits=False)
    damage(cache / path.name, "flipped")
    where, content = running._train_and_keep(SHORT, path, waits=False)
    assert "was damaged and is trained again" in capfd.readouterr().err
    assert where == path and not path.parent.exists()
    assert running._checksum(path, content[32:]) == content[:32]


def test_two_builds_with_caches_of_their_own_share_a_clusters_run(tmp_path):
    first, second = (tmp_path / name / f"{running._key(SHORT)}.run" for name in ("first", "second"))
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        asked = client.submit(running._train_and_keep, SHORT, first, False, key=first.stem)
        results = running._results_of_cluster(cluster.scheduler_address, [SHORT], {SHORT: second}, False)
        assert list(results) == [(second, asked.result()[1])]


@pytest.mark.slow
def test_a_cluster_gives_the_same_bits_though_a_worker_dies(cache, tmp_path, monkeypatch):
    port_file = tmp_path / "scheduler.json"
    dask, file = [sys.executable, "-m"], ["--scheduler-file", str(port_file)]
    started = [
        subprocess.Popen(
            [*dask, "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard", *file],
            stderr=subprocess.DEVNULL,
        )
    ]
    try:
        for name in ("a", "b"):
            started.append(
                subprocess.Popen(
                    [
                        *dask,
                        "distributed.cli.dask_worker",
                        "--nthreads",
                        "1",
                        "--no-nanny",
                        "--no-dashboard",
                        *file,
                    ],
                    env=os.environ | {"NORMLIB_CACHE": str(tmp_path / name)},
                    stderr=subprocess.DEVNULL,
                )
            )
        while not port_file.exists():
            time.sleep(0.1)
        monkeypatch.setenv("NORMLIB_CLUSTER", json.loads(port_file.read_text())["address"])

        def kill_one():
            while len(list(cache.glob("*.step"))) < 2:
                time.sleep(0.05)
            started[-1].kill()

        long = [dataclasses.replace(run, steps=200, evaluate_every=100) for run in RUNS]
        threading.Thread(target=kill_one, daemon=True).start()
        found = running.run_all(long)
        assert started[-1].poll() is not None
    finally:
        for process in started:
            process.kill()
            process.wait()
    monkeypatch.delenv("NORMLIB_CLUSTER")
    assert [found[run].weights_hash for run in long] == [training.train(run).weights_hash for run in long]
