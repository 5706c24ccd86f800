"""Many runs: one on a core or a cluster's worker, each finished one kept on disk.

A run is kept under a key made of all that decides its result, as plain arrays behind their checksum: an interrupted
study goes on where it stopped, and builds that share a cache share its runs.
"""

import ast
import contextlib
import dataclasses
import functools
import hashlib
import inspect
import io
import json
import os
import pathlib
import sys
import tempfile
import threading
import warnings

import joblib
import numpy as np
import psutil
from filelock import FileLock, Timeout
from joblib.externals.loky.process_executor import TerminatedWorkerError
from tqdm import tqdm

import normlib
from study import network, training

LIMIT = 4e9  # bytes of kept runs; beyond it those that were used longest ago go
MEMORY = 1.2e9  # bytes that a worker needs
EVERY = 20.0  # seconds between two lines of progress


def run_all(runs, jobs=0, description="runs"):
    """Train all runs that are not kept yet, one on a core, longest first.

    Args:
        runs: iterable of Run.
        jobs: processes at a time; 0 for one on each core. Where the environment variable NORMLIB_CLUSTER names a Dask
            scheduler, such as tcp://scheduler:8786, its workers train instead.
        description: shown beside the progress bar.

    Returns:
        dict Run -> History.

    Raises:
        RuntimeError: worker processes died twice; the message names the runs that are not finished.
    """
    runs = list(dict.fromkeys(runs))
    cache = _cache_folder()
    paths = {run: cache / f"{_key(run)}.run" for run in runs}
    found = {run: _restore(path, run) for run, path in paths.items()}
    missing = sorted((run for run in runs if found[run] is None), key=_work, reverse=True)
    if missing:
        bar = _Progress(missing, [paths[run].with_suffix(".step") for run in missing], description)
        with bar, _workers(jobs, len(missing)) as jobs, warnings.catch_warnings():
            # A worker whose memory has grown is replaced between two runs, and nothing is lost.
            warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
            deaths = 0
            # A run that another build is at is passed over at first, and waited for when nothing else is left.
            waits = False
            while left := [run for run in missing if not paths[run].exists()]:
                work = (joblib.delayed(_train_and_keep)(run, paths[run], waits) for run in left)
                try:
                    for path, content in joblib.Parallel(jobs, return_as="generator_unordered", batch_size=1)(
                        work
                    ):
                        if content is not None and not path.exists():
                            _write(path, content)
                    waits = True
                except TerminatedWorkerError as error:  # killed, or out of memory
                    deaths += 1
                    left = [run for run in missing if not paths[run].exists()]
                    if deaths == 2:
                        raise RuntimeError(f"Worker processes died twice. Not finished: {left}") from error
                    _tell(f"A worker process died; {len(left)} runs are tried once more.")
        found |= {run: _restore(paths[run], run) for run in missing}
        _evict(cache, keep=set(paths.values()))
    return found


def run_groups(groups, jobs=0, description="runs"):
    """Train labelled groups of runs: dict label -> list of Run becomes dict label -> list of History."""
    histories = run_all([run for runs in groups.values() for run in runs], jobs, description)
    return {label: [histories[run] for run in runs] for label, runs in groups.items()}


def _work(run):
    """A run's length, roughly: in float64, and with another's layer, a step takes longer."""
    own = run.norm is None or run.norm.startswith("normlib:")
    return run.steps * run.batch_size * (4 if run.dtype == "float64" else 1) * (1 if own else 2)


@contextlib.contextmanager
def _workers(jobs, most):
    """Where joblib's work goes: to processes here, as many as cores and memory allow, or to a Dask cluster."""
    address = os.environ.get("NORMLIB_CLUSTER")
    if not address:
        fit = max(1, int(psutil.virtual_memory().available // MEMORY))
        with joblib.parallel_config("loky"):
            yield min(jobs or joblib.cpu_count(), fit, most)
        return
    from distributed import Client

    with Client(address, set_as_default=False) as client, joblib.parallel_config("dask", client=client):
        yield -1


def _train_and_keep(run, path, waits):
    """Train a run, in a worker, and keep it. On a cluster the caller's path may be out of reach: then it is kept in the
    worker's own cache, and always its content comes back too; None where another process is at it and this one does
    not wait."""
    here = path if path.parent.is_dir() else _cache_folder() / path.name
    try:
        with FileLock(here.with_suffix(".lock"), timeout=-1 if waits else 0):
            if not here.exists():
                step_file = here.with_suffix(".step")
                try:
                    step_file.write_text("0")
                    _keep(here, training.train(run, lambda step: step_file.write_text(str(step))))
                finally:
                    step_file.unlink(missing_ok=True)
            return path, here.read_bytes()
    except Timeout:
        return path, None


def progress(iterable=None, description="", delay=3.0, **options):
    """The iterable with a bar that says the time left, if it takes longer than `delay` seconds; where the environment
    variable NORMLIB_PROGRESS is "lines", a line now and then. The options are tqdm's."""
    options |= {"desc": description, "delay": delay, "miniters": 1, "mininterval": 1.0}
    if os.environ.get("NORMLIB_PROGRESS") == "lines":
        form = "{desc}: {n:,} of {total:,} {unit}s{postfix}, {remaining} left"
        options |= {"file": _Lines(), "bar_format": form, "mininterval": EVERY}
    return tqdm(iterable, **options)


class _Lines:
    """Stderr for a bar, whose states are each to be a line: nothing is overwritten in a file or a pipe."""

    def write(self, text):
        if text.strip():
            print(text.strip(), file=sys.stderr)

    def flush(self):
        sys.stderr.flush()


class _Progress:
    """Progress over steps, fed by the small files that the workers leave in the cache."""

    def __init__(self, runs, step_files, description):
        self._lengths = dict(zip(step_files, (run.steps for run in runs), strict=True))
        self._bar = progress(None, description, 0, total=sum(self._lengths.values()), unit="step")
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
            else:
                with contextlib.suppress(OSError, ValueError):  # not begun, or just being written
                    done += int(step_file.read_text())
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


def _tell(text):
    tqdm.write(text, file=sys.stderr)


def _cache_folder():
    folder = pathlib.Path(os.environ.get("NORMLIB_CACHE") or pathlib.Path.home() / ".cache" / "normlib")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _key(run):
    """SHA-256 of all that decides a run's result: its description, the code, the data, the versions."""
    sources = [normlib, network, training]
    if run.norm and not run.norm.startswith(("normlib:", "keras.", "tensorflow_probability.")):
        sources.append(sys.modules[network.resolve(run.norm).__module__])
    decisive = [
        dataclasses.asdict(run),
        [_code(inspect.getsource(module)) for module in sources],
        training.load(run.dataset, run.sample).digest,
        training.versions(),
    ]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


@functools.cache
def _code(source):
    """What of a source decides: not its comments, docstrings and line breaks."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if getattr(node, "body", None) and isinstance(node.body, list):
            texts = [n for n in node.body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
            node.body = [n for n in node.body if n not in texts]
    return ast.dump(tree)


def _keep(path, history):
    """Write a history as plain arrays behind their checksum, whole or not at all."""
    fields = {f.name: getattr(history, f.name) for f in dataclasses.fields(history)}
    arrays = {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}
    for group in ("trace", "weights"):
        arrays |= {f"{group}:{name}": value for name, value in fields.pop(group).items()}
    rest = {n: v for n, v in fields.items() if n not in arrays} | {"run": dataclasses.asdict(history.run)}
    payload = io.BytesIO()
    np.savez_compressed(payload, description=np.frombuffer(json.dumps(rest).encode(), "uint8"), **arrays)
    _write(path, hashlib.sha256(payload.getvalue()).digest() + payload.getvalue())


def _write(path, content):
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.replace(file.name, path)


def _restore(path, run):
    """Read a kept history; None if there is none, or if it was damaged."""
    if not path.exists():
        return None
    stored = path.read_bytes()
    if hashlib.sha256(stored[32:]).digest() != stored[:32]:
        path.unlink(missing_ok=True)
        _tell(f"A kept run was damaged and is trained again: {path.name}")
        return None
    with np.load(io.BytesIO(stored[32:]), allow_pickle=False) as arrays:
        fields = json.loads(arrays["description"].tobytes()) | {"run": run, "trace": {}, "weights": {}}
        for name in arrays.files:
            group, _, key = name.partition(":")
            if key:
                fields[group][key] = arrays[name]
            elif name != "description":
                fields[name] = arrays[name]
    os.utime(path)  # it was used: see _evict
    return training.History(**fields)


def _evict(cache, keep):
    """Remove the kept runs that were used longest ago, beyond the limit, but for those of now."""
    files = sorted(cache.glob("*.run"), key=lambda path: path.stat().st_mtime)
    excess = sum(path.stat().st_size for path in files) - LIMIT
    for path in files:
        if excess > 0 and path not in keep:
            excess -= path.stat().st_size
            path.unlink(missing_ok=True)
            path.with_suffix(".lock").unlink(missing_ok=True)
