"""Many runs: one on a core or a cluster's worker, each finished one kept on disk.

A run is kept under a key made of all that decides its result, as plain arrays behind their checksum: an interrupted
study goes on where it stopped, and builds that share a cache share its runs.
"""

import ast
import collections
import contextlib
import dataclasses
import functools
import hashlib
import importlib
import inspect
import io
import json
import multiprocessing
import os
import pathlib
import platform
import re
import shutil
import sys
import tempfile
import threading
import time
import warnings

import joblib
import numpy as np
import psutil
from filelock import FileLock, Timeout
from joblib.externals.loky import process_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError
from tqdm import tqdm

from study import network, training

try:
    LIMIT = float(
        os.environ.get("NORMLIB_CACHE_BYTES", 4e9)
    )  # of kept runs; beyond it, those used longest ago go
except ValueError as error:
    raise ValueError(
        f"Expected NORMLIB_CACHE_BYTES to be a number, such as 4e9. Received: {error}"
    ) from error
MEMORY = 1.2e9  # bytes that a worker is taken to need, until one has needed more
GROWTH = 1.5e9  # bytes that a worker may grow by before it is replaced: TensorFlow keeps what it has compiled
PIECE = 50_000  # images times steps: a worker gets so many of one program's runs at a time
EVERY = 20.0  # seconds between two lines of progress
ABANDONED = 3600.0  # seconds after which nobody is writing a run any more
WITHOUT_WORKERS = 60.0  # seconds that a cluster may have none
PARENT = os.getppid()
DECISIVE = (
    "normlib",
    "study",
    "study.data",
    "study.network",
    "study.training",
)  # modules that decide a result
# Whose classes a layer may derive from without a change of its key: normlib counts anyway.
LIBRARIES = {*sys.stdlib_module_names, "keras", "tensorflow", "tf_keras", "tensorflow_probability", "normlib"}

# Each new worker imports TensorFlow; by joblib's own limit, a fifth of this, there was one every twenty programs.
process_executor._MAX_MEMORY_LEAK_SIZE = GROWTH


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
        ValueError: jobs under 0.
        study.data.DataError: the data cannot be had.
        RuntimeError: a run failed, or worker processes died at it twice: the message names it; or a cluster has no
            workers, or workers with other code, versions, settings or processors.
    """
    runs = list(dict.fromkeys(runs))
    cache = _cache_folder()
    paths = {run: cache / f"{_key(run)}.run" for run in runs}
    found = {run: _restore(path, run) for run, path in paths.items()}
    for run in runs:  # what a killed build has left begun is not begun now
        if found[run] is None:
            _clear_left(paths[run])
    # Another build may evict what this one has just finished: then it is trained again.
    while missing := sorted((run for run in runs if found[run] is None), key=_work, reverse=True):
        with _Progress(missing, [paths[run].with_suffix(".step") for run in missing], description):
            _train_all(missing, paths, jobs)
        found |= {run: _restore(paths[run], run) for run in missing}
    _evict(cache, keep=set(paths.values()))
    return found


def _train_all(runs, paths, jobs):
    """Train runs until each is kept. One at which worker processes died is tried once more, and then named."""
    died = collections.Counter()
    # A run that another build is at is passed over at first, and waited for when nothing else is left.
    waits = False
    while left := [run for run in runs if not paths[run].exists()]:
        try:
            for path, content in _results(left, paths, waits, jobs):
                if content is not None and not path.exists():
                    _write(path, content)
            waits = True
        except TerminatedWorkerError as error:  # killed, or out of memory
            died.update([run for run in left if _clear_left(paths[run])] or left)
            if twice := [run for run in left if died[run] == 2]:
                raise RuntimeError(f"Worker processes died twice at: {twice}") from error
            _tell(f"A worker process died; {len(left)} runs are tried once more.")


def _clear_left(path):
    """Forget that a run was begun where nobody is at it. Returns whether it was."""
    with contextlib.suppress(Timeout), FileLock(path.with_suffix(".lock"), timeout=0):
        begun = path.with_suffix(".step").exists()
        for left in (".step", ".lock"):
            path.with_suffix(left).unlink(missing_ok=True)
        return begun
    return False


def _results(runs, paths, waits, jobs):
    """What `_train_and_keep` returns for each run, as they finish: from processes here or from a cluster's workers."""
    if address := os.environ.get("NORMLIB_CLUSTER"):
        yield from _results_of_cluster(address, runs, paths, waits)
        return
    pieces = _pieces(runs, _workers(jobs, len(runs)))
    work = (joblib.delayed(_train_piece)([(run, paths[run]) for run in piece], waits) for piece in pieces)
    for results in _in_workers(work, len(pieces), jobs):
        yield from results


def _pieces(runs, workers):
    """Runs in pieces for one worker each, longest first: short runs of one program stay together, for it is compiled
    by each worker that trains one of them. No piece is longer than PIECE or a worker's share, but for a single run."""
    longest = min(PIECE, sum(map(_work, runs)) / workers)
    pieces, open_pieces = [], {}
    for run in runs:
        piece = open_pieces.get(program := training.program_key(run))
        if piece is None or sum(map(_work, piece)) + _work(run) > longest:
            pieces.append(piece := [])
            open_pieces[program] = piece
        piece.append(run)
    return sorted(pieces, key=lambda piece: sum(map(_work, piece)), reverse=True)


def _train_piece(piece, waits):
    return [_train_and_keep(run, path, waits) for run, path in piece]


def _in_workers(work, most, jobs):
    """What joblib's delayed calls give, in any order, one of them on a core."""
    with warnings.catch_warnings():
        # A worker whose memory has grown is replaced between two runs, and nothing is lost.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
        # A cluster's backend for joblib, such as Ray's, may have no generators; what is finished is kept all the same.
        backend, _ = joblib.parallel.get_active_backend()
        form = "generator_unordered" if backend.supports_return_generator else "list"
        yield from joblib.Parallel(_workers(jobs, most), return_as=form, batch_size=1)(work)


def _workers(jobs, most):
    """How many processes: no more than asked for, than cores, than fit into memory, than there is work."""
    if jobs < 0:
        raise ValueError(f"Expected jobs of at least 0. Received: jobs={jobs}")
    idle = psutil.Process().children()  # workers that wait for more, and are taken again
    free = psutil.virtual_memory().available + sum(map(_memory, idle))
    fit = max(1, int(free // _needed_memory(_cache_folder())))
    cores = joblib.effective_n_jobs(-1)  # here, or of the backend that joblib was told to use
    return min(jobs or cores, cores, fit, most)


def _memory(process):
    """Bytes that a process has in memory."""
    with contextlib.suppress(psutil.Error):  # it has ended
        return process.memory_info().rss
    return 0


def _needed_memory(cache):
    """Bytes that a worker needs: the most that one has had at the end of a run that is kept in this cache."""
    with contextlib.suppress(OSError, ValueError):  # none has been measured, or the file is damaged
        return max(MEMORY, float((cache / "memory").read_text()))
    return MEMORY


def _measure_memory(cache):
    """Remember the memory of this process, if it is more than a worker is taken to need."""
    size = _memory(psutil.Process())
    if size > _needed_memory(cache):
        with contextlib.suppress(OSError):  # it is but for the number of workers
            _write(cache / "memory", str(size).encode())


def _results_of_cluster(address, runs, paths, waits):
    """From the workers of a Dask cluster, which may come and go. One whose results would be others refuses."""
    from distributed import Client, KilledWorker, wait

    try:
        client = Client(address, timeout=WITHOUT_WORKERS)
    except OSError as error:
        raise RuntimeError(f"Expected a Dask scheduler. Received: {address!r} ({error})") from error
    with client:
        pending = {
            client.submit(_train_and_keep, run, paths[run], waits, key=paths[run].stem, priority=-place): run
            for place, run in enumerate(runs)
        }
        while pending:
            try:
                done = wait(list(pending), WITHOUT_WORKERS, "FIRST_COMPLETED").done
            except TimeoutError:
                if not client.nthreads():
                    raise RuntimeError(
                        f"Expected workers at {address}. Received: none for {WITHOUT_WORKERS:.0f} seconds; finished "
                        "runs are kept"
                    ) from None
                continue
            for future in done:
                run = pending.pop(future)
                try:
                    # Of two builds that ask for one run the scheduler keeps the first's call, with the first's path.
                    _, content = future.result()
                    yield paths[run], content
                except KilledWorker as error:
                    raise RuntimeError(f"Workers of the cluster died at: {run}") from error


def run_groups(groups, jobs=0, description="runs"):
    """Train labelled groups of runs: dict label -> list of Run becomes dict label -> list of History."""
    histories = run_all([run for runs in groups.values() for run in runs], jobs, description)
    return {label: [histories[run] for run in runs] for label, runs in groups.items()}


def at_once(calls, jobs=0, description="measurements"):
    """Make several calls, one on a core. Nothing of them is kept.

    Args:
        calls: dict name -> (function, *arguments); the function can be imported.
        jobs, description: as in `run_all`.

    Returns:
        dict name -> what the call gave.

    Raises: what a call raises; ValueError: jobs under 0.
    """
    work = (joblib.delayed(_named)(name, *call) for name, call in calls.items())
    results = _in_workers(work, len(calls), jobs)
    found = dict(progress(results, description, total=len(calls), unit="part"))
    return {name: found[name] for name in calls}


def _named(name, function, *arguments):
    return name, function(*arguments)


def _work(run):
    """A run's length, roughly: in float64, and with another's layer, a step takes longer."""
    own = run.norm is None or run.norm.startswith("normlib:")
    return run.steps * run.batch_size * (4 if run.dtype == "float64" else 1) * (1 if own else 2)


def _train_and_keep(run, path, waits):
    """Train a run, in a worker, and keep it. On a cluster the caller's path may be out of reach: then it is kept in the
    worker's own cache, and always its content comes back too; None where another process is at it and this one does
    not wait."""
    if (key := _key(run)) != path.stem:
        raise RuntimeError(
            f"Expected a worker with the caller's code, versions, settings and kind of processor. Received: key "
            f"{key[:8]} for {path.stem[:8]}, on {platform.node()}"
        )
    here = path if path.parent.is_dir() else _cache_folder() / path.name
    step_file = here.with_suffix(".step")

    def tell(step):
        if multiprocessing.current_process().name.startswith("Loky") and os.getppid() != PARENT:
            os._exit(1)  # whoever asked for this run was killed
        with contextlib.suppress(OSError):  # it is but for progress
            step_file.write_text(str(step))

    try:
        with FileLock(here.with_suffix(".lock"), timeout=-1 if waits else 0):
            if _restore(here, run) is None:
                try:
                    tell(0)
                    _keep(here, training.train(run, tell))
                    _measure_memory(here.parent)
                except Exception as error:
                    raise RuntimeError(f"This run failed: {error} It was {run}") from error
                finally:
                    step_file.unlink(missing_ok=True)
            return path, here.read_bytes()
    except (Timeout, FileNotFoundError):  # of which the second: another build has just evicted it
        return path, None


def progress(iterable=None, description="", delay=3.0, unit="step", **options):
    """The iterable with a bar that says the time left, if it takes longer than `delay` seconds; where the environment
    variable NORMLIB_PROGRESS is "lines", a line now and then. The options are tqdm's."""
    options |= {"desc": description, "delay": delay, "unit": unit, "miniters": 1, "mininterval": 1.0}
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
        self._bar = progress(None, description, 0, total=sum(self._lengths.values()))
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
    """SHA-256 of all that decides a run's result: its description, the code, the data, the versions, the machine."""
    modules = list(DECISIVE)
    if run.norm and not run.norm.startswith(("normlib:", "keras.", "tensorflow_probability.")):
        modules += _modules_of(network.resolve(run.norm))
    decisive = [
        dataclasses.asdict(run),
        [_code(_source(module)) for module in modules],
        training.load(run.dataset, run.sample).digest,
        training.versions(),
        _machine(),
    ]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _modules_of(layer):
    """The modules whose code makes a layer: its own and those of its bases and, of another's, whatever these import,
    but for installed packages."""
    found, waiting = {}, [base.__module__ for base in layer.__mro__]
    while waiting:
        name = waiting.pop(0)
        if name in found or name.partition(".")[0] in LIBRARIES:
            continue
        found[name] = None
        if not name.startswith("study."):
            imported = [
                value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None)
                for value in vars(importlib.import_module(name)).values()
            ]
            waiting += [other for other in imported if isinstance(other, str) and _is_own(other)]
    return list(found)


def _is_own(module):
    """Whether a module is a file beside others of whoever runs this, and no installed package's."""
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return file.endswith(".py") and "site-packages" not in pathlib.Path(file).parts


@functools.cache
def _source(module):
    """A module's source when it was first asked for: an edit reaches no process that runs already."""
    return pathlib.Path(inspect.getsourcefile(importlib.import_module(module))).read_text("utf-8")


@functools.cache
def _machine():
    """What of this machine decides the bits: its kind, what its processor can do, and whether oneDNN is on."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
        cpu = re.search(r"^(?:flags|Features)\s*:(.*)", text, re.M)[1]  # as Intel and ARM call them
    except (OSError, TypeError):
        cpu = platform.processor()
    names = ("TF_ENABLE_ONEDNN_OPTS", "ONEDNN_MAX_CPU_ISA", "XLA_FLAGS", "TF_XLA_FLAGS")
    settings = {name: os.environ.get(name) for name in names}
    return [platform.machine(), hashlib.sha256(cpu.encode()).hexdigest(), settings]


@functools.cache
def _code(source):
    """SHA-256 of what of a source decides: not its comments, docstrings and line breaks."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if getattr(node, "body", None) and isinstance(node.body, list):
            texts = [n for n in node.body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
            node.body = [n for n in node.body if n not in texts]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _keep(path, history):
    """Write a history as plain arrays behind their checksum, whole or not at all."""
    fields = {f.name: getattr(history, f.name) for f in dataclasses.fields(history)}
    arrays = {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}
    for group in ("trace", "weights"):
        arrays |= {f"{group}:{name}": value for name, value in fields.pop(group).items()}
    rest = {n: v for n, v in fields.items() if n not in arrays} | {"run": dataclasses.asdict(history.run)}
    payload = io.BytesIO()
    np.savez_compressed(payload, description=np.frombuffer(json.dumps(rest).encode(), "uint8"), **arrays)
    _write(path, _checksum(path, payload.getvalue()) + payload.getvalue())


def _checksum(path, payload):
    """Of the payload and the key that it is kept under: no run can take another's place."""
    return hashlib.sha256(path.stem.encode() + payload).digest()


def _write(path, content):
    """Write a file whole or not at all, for all users to read."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
        file = pathlib.Path(folder, path.name)
        file.write_bytes(content)
        os.replace(file, path)


def _restore(path, run):
    """Read a kept history; None if there is none, or if it was damaged. One that may not be read is an error."""
    try:
        stored = path.read_bytes()
    except FileNotFoundError:  # there is none, or it was just evicted
        return None
    try:
        if _checksum(path, stored[32:]) != stored[:32]:
            raise ValueError("another checksum")
        with np.load(io.BytesIO(stored[32:]), allow_pickle=False) as arrays:
            fields = json.loads(arrays["description"].tobytes()) | {"run": run, "trace": {}, "weights": {}}
            for name in arrays.files:
                group, _, key = name.partition(":")
                if key:
                    fields[group][key] = arrays[name]
                elif name != "description":
                    fields[name] = arrays[name]
        history = training.History(**fields)
    except Exception as error:  # whatever is wrong with a kept run, it can be trained again
        path.unlink(missing_ok=True)
        _tell(f"A kept run was damaged and is trained again: {path.name} ({error})")
        return None
    with contextlib.suppress(OSError):  # it was used: see _evict
        os.utime(path)
    return history


def _evict(cache, keep):
    """Remove the kept runs that were used longest ago, beyond the limit, but for those of now; and what was left."""
    sizes = {}
    for path in cache.glob("*.run"):
        with contextlib.suppress(OSError):  # another build evicted it
            sizes[path] = (path.stat().st_mtime, path.stat().st_size)
    excess = sum(size for _, size in sizes.values()) - LIMIT
    for path in sorted(sizes, key=sizes.get):
        if excess > 0 and path not in keep:
            excess -= sizes[path][1]
            path.unlink(missing_ok=True)
    for lock in cache.glob("*.lock"):  # of runs that were evicted, failed or killed
        if not lock.with_suffix(".run").exists():
            _clear_left(lock)
    for folder in cache.glob(".writing-*"):
        with contextlib.suppress(OSError):  # a build of now has just moved it
            if folder.stat().st_mtime < time.time() - ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)


for module in DECISIVE:  # as this process runs them
    _source(module)
