"""Build the report: run the notebooks, put them together, number and link, write one HTML and one PDF.

Written to report/build (or --output):
  report.html    the report, one file that asks nothing of any network
  report.pdf     the same as a paper
  results.json   every number and verdict, and where they come from
  notebooks/     the notebooks as they ran
A build of some sections alone is written to a folder of its own in there, such as report/build/only-02: the whole
report stays as it is. Whatever goes wrong, the last good report stays until a new one is whole.

Profiles, and their times on 2 cores, not the fastest, with no finished runs kept:
  smoke      4 minutes, a few steps on a sample of the data: that everything works, and evidence of nothing
  quick     10 minutes, 30 steps and 2 seeds: the notebooks by hand, and evidence of nothing
  default   20 minutes, 500 steps and 3 seeds: speed of convergence
  thorough  90 minutes, 2,750 steps and 8 seeds: what is published
Finished runs are kept: a stopped build goes on where it was, and a second one takes two to four minutes.

Environment:
  NORMLIB_CACHE        folder of the finished runs; default ~/.cache/normlib
  NORMLIB_CACHE_BYTES  its size at most; default 4e9: beyond it, the runs used longest ago go
  NORMLIB_DATA         folder that holds the data files, as --data-dir
  NORMLIB_CLUSTER      a Dask scheduler whose workers train, as --cluster
  NORMLIB_PROGRESS     "bar" or "lines"; default bars on a terminal, lines elsewhere

Examples:
  python report/build.py --open
  python report/build.py --profile smoke --only 02 --only 03
  python report/build.py --set DATASET=mnist --set SEED=7
  python report/build.py --set CANDIDATE=mymodule:MyBatchNormalization --only 01

Exit codes:
  0    built
  1    a notebook failed, or the report could not be put together
  2    wrong arguments
  3    data missing or damaged
  129  its terminal was closed
  130  interrupted
  143  terminated
"""

import argparse
import ast
import contextlib
import datetime
import importlib.metadata
import io
import json
import os
import pathlib
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import webbrowser

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # here and in the kernels
if __name__ == "__main__":  # also while the packages below are imported; it leaves by way of every `finally`
    for kind, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        if signal.getsignal(kind) != signal.SIG_IGN:  # as under nohup
            signal.signal(kind, lambda *_, code=code: sys.exit(code))

import nbformat
import papermill
from filelock import FileLock, Timeout
from jupyter_client import AsyncKernelManager
from tqdm import tqdm

from compose import HERE, BuildError, compose, has_tag, records
from to_html import write_html
from to_pdf import write_pdf

PROFILES = ("smoke", "quick", "default", "thorough")
ROOT = HERE.parent
SECTIONS = "[0-9][0-9]_*.ipynb"
PARTS = ("notebooks", "report.html", "report.pdf", "results.json")  # of a report
INSERTED_TAGS = {"injected-parameters", "papermill-error-cell-tag"}
UNASKED_TAGS = {"explore", *INSERTED_TAGS}  # a notebook that ran once may be given, too
KEPT = "Finished runs are kept: the next build goes on from there."
LIKE = 3  # up to so many times as long as another, a build has found as many runs kept


def main(arguments=None):
    """Build the report, and exit with a code."""
    options = parse(arguments)
    try:
        build(options)
    except BuildError as error:
        print(f"\nNot built: {error}", file=sys.stderr)
        sys.exit(error.code)
    except KeyboardInterrupt:
        leave(130, f"Interrupted. {KEPT}")
    except SystemExit as stopped:  # by a signal
        leave(stopped.code, f"Stopped by a signal. {KEPT}")
    except OSError as error:  # a full disk, a folder that may not be written
        leave(1, f"Not built: {error}")
    if options.open:
        webbrowser.open((options.output / "report.html").as_uri())


def leave(code, message):
    """Say one thing and exit: what asyncio tells of the tasks that it had to drop is no news."""
    with contextlib.suppress(OSError):  # the terminal was closed
        print(f"\n{message}", file=sys.stderr, flush=True)
    sys.stderr = io.StringIO()
    sys.exit(code)


def parse(arguments=None):
    """The command line."""
    usage, _, more = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python report/build.py",
        description=usage,
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--profile", default="default", choices=PROFILES, help="how much is computed; default: %(default)s")
    add("--jobs", type=int, default=0, metavar="N", help="trainings at a time; default: one on each core")
    add("--cluster", metavar="ADDRESS", help="a Dask scheduler whose workers train: tcp://scheduler:8786")
    folder = {"type": pathlib.Path, "metavar": "FOLDER"}
    add("--data-dir", **folder, help="that holds the data files")
    told = "a parameter of the notebooks, such as DATASET (fashion_mnist, mnist, cifar10), SEED or CANDIDATE"
    add("--set", action="append", default=[], metavar="NAME=VALUE", help=told)
    add("--only", action="append", default=[], metavar="NN", help="build this section alone, such as 02")
    add("--open", action="store_true", help="open the report when it is built")
    add("--output", **folder, default=HERE / "build", help="default: report/build")
    add("--notebooks", **folder, default=ROOT / "notebooks", help="of the sections; default: notebooks")
    options = parser.parse_args(arguments)
    options.output = options.output.resolve()
    if options.only:
        options.output /= "only-" + "-".join(sorted(set(options.only)))
    if options.data_dir:
        os.environ["NORMLIB_DATA"] = str(options.data_dir.resolve())
    if options.cluster:
        os.environ["NORMLIB_CLUSTER"] = options.cluster
    os.environ.setdefault("NORMLIB_PROGRESS", "bar" if sys.stderr.isatty() else "lines")
    return options


def build(options):
    """Run, put together, write: into a temporary folder first."""
    started, code = time.time(), of_git()
    notebooks = find_notebooks(options)
    parameters = read_parameters(options, notebooks)
    dataset = find_data(options, parameters)
    options.output.mkdir(parents=True, exist_ok=True)
    with workplace(options.output) as folder:
        executed, seconds, tell = [], {}, stages([*(n.stem for n in notebooks), "writing"], options)
        for notebook in notebooks:
            tell(notebook.stem)
            before = time.time()
            executed.append(execute(notebook, parameters[notebook], folder / "notebooks" / notebook.name))
            seconds[notebook.stem] = round(time.time() - before, 1)
        seconds["all"] = round(time.time() - started, 1)
        results = {"provenance": describe(options, parameters, dataset, code, seconds)} | collect(executed)
        tell("writing")
        document = compose(notebooks, executed, results, folder, elsewhere(options, notebooks))
        write_html(document, folder)
        write_pdf(document, folder)
        (folder / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        install(folder, options.output)
    print(
        f"{options.output / 'report.html'} and report.pdf, in {time.time() - started:.0f} s", file=sys.stderr
    )


def stages(names, options):
    """A function that says which stage begins, and about how long the rest takes: by the seconds of the last such build
    here, in proportion to what this one has taken so far; nothing, if the one trained what the other found kept."""
    last = {}
    with contextlib.suppress(OSError, ValueError, KeyError):  # there is none, or it is not whole
        built = json.loads((options.output / "results.json").read_text())["provenance"]
        last = built["seconds"] if built["profile"] == options.profile else {}
    expected = {name: last.get(name, min(last.values(), default=1.0)) for name in names}
    started = time.time()

    def tell(name):
        place, passed = names.index(name), time.time() - started
        done, left = (sum(expected[n] for n in part) for part in (names[:place], names[place:]))
        pace = passed / done if done else 1.0
        known = 1 / LIKE < pace < LIKE if last else done
        about = f", about {tqdm.format_interval(left * pace)} left" if known else ""
        told = f"[{place + 1}/{len(names)}] {name}: {tqdm.format_interval(passed)} passed{about}"
        print(told, file=sys.stderr, flush=True)

    return tell


@contextlib.contextmanager
def workplace(output):
    """A folder to build in, inside the output folder: what is built can be renamed into its place, on whatever disk.

    First the folders of builds that were killed go, whose locks nobody holds, and a whole report is put in its place.
    One build at a time does so: it never finds another's new folder before that is locked.
    """
    with contextlib.ExitStack() as held:
        with FileLock(output / ".lock"):
            put_in_place(output)
            for left in output.glob(".building-*"):
                with contextlib.suppress(Timeout), FileLock(left / "lock", timeout=0):
                    shutil.rmtree(left, ignore_errors=True)
            folder = tempfile.TemporaryDirectory(dir=output, prefix=".building-", ignore_cleanup_errors=True)
            held.enter_context(folder)
            held.enter_context(FileLock(f"{folder.name}/lock"))
        yield pathlib.Path(folder.name)


# --- run ------------------------------------------------------------------------------------------------------------


def find_notebooks(options):
    """The notebooks of the report, in their order."""
    found = sorted(options.notebooks.glob(SECTIONS))
    if not found:
        raise BuildError(f"Expected notebooks NN_*.ipynb in the folder. Received: {options.notebooks}", 2)
    names = [n.name[:2] for n in found]
    if set(options.only) - set(names):
        raise BuildError(f"Expected --only among {', '.join(names)}. Received: {', '.join(options.only)}", 2)
    return [n for n in found if not options.only or n.name[:2] in options.only]


def read_parameters(options, notebooks):
    """The parameters of each notebook: those given that it knows. Values are parsed, never evaluated."""
    given = {"PROFILE": options.profile, "JOBS": options.jobs}
    for setting in options.set:
        name, equals, value = setting.partition("=")
        if not equals or name in ("PROFILE", "JOBS"):
            raise BuildError(
                f"Expected --set NAME=VALUE, and --profile and --jobs for these two. Received: {setting!r}", 2
            )
        try:
            given[name] = ast.literal_eval(value)
        except (ValueError, TypeError, SyntaxError):
            given[name] = value
    known, defaults = {}, {"PROFILE": "", "JOBS": 0}
    for notebook in notebooks:
        try:
            known[notebook] = papermill.inspect_notebook(str(notebook))
            defaults |= {name: ast.literal_eval(of["default"]) for name, of in known[notebook].items()}
        except (ValueError, SyntaxError, nbformat.ValidationError) as error:
            raise BuildError(
                f"Expected parameters with literals in {notebook.name}. Received: {error}", 2
            ) from error
    from study import check

    try:
        check.given(given, defaults)
    except (TypeError, ValueError) as error:
        raise BuildError(str(error), 2) from error
    for name in ("CANDIDATE", "REFERENCE"):
        if name in given and len(asked := [n.name[:2] for n in notebooks if name in known[n]]) > 1:
            raise BuildError(
                f"Expected --only with {name}: a layer takes the place of one. Received: {', '.join(asked)}",
                2,
            )
    return {n: {name: given[name] for name in given if name in known[n]} for n in notebooks}


def find_data(options, parameters):
    """Get the data before anything runs. The smoke profile does with the embedded sample."""
    from study import data

    name = next((p["DATASET"] for p in parameters.values() if "DATASET" in p), "fashion_mnist")
    try:
        return data.load(name, sample=True) if options.profile == "smoke" else data.load_or_sample(name)
    except data.DataError as error:
        raise BuildError(str(error), 3) from error


class QuietKernel(AsyncKernelManager):
    """A kernel that tells by its messages alone: what it writes when it is stopped is no news."""

    async def _async_launch_kernel(self, kernel_cmd, **options):
        await super()._async_launch_kernel(kernel_cmd, **options | {"stderr": subprocess.DEVNULL})


# The last cell: what a thread has to say reaches the notebook only while a cell runs (joblib's waits for work), and
# what is recorded only with what is displayed.
LAST = """
import sys, threading, time
until = time.monotonic() + 10
for thread in threading.enumerate():
    if not thread.daemon and thread.name not in ("MainThread", "ExecutorManagerThread"):
        thread.join(max(0, until - time.monotonic()))
if "study.present" in sys.modules and (lost := sys.modules["study.present"].waiting()):
    raise RuntimeError(f"Expected a figure, a table or a sentence behind all that is recorded. Received: {lost}")
"""


def execute(notebook, parameters, target):
    """Run one notebook, but for what is there to explore by hand, and make sure that it ran whole."""
    target.parent.mkdir(exist_ok=True)
    source = nbformat.v4.upgrade(nbformat.read(notebook, as_version=4))
    named = [(f"cell {n}", cell) for n, cell in enumerate(source.cells, 1) if not has_tag(cell, UNASKED_TAGS)]
    named.append(("after its last cell", nbformat.v4.new_code_cell(LAST)))
    source.cells = [cell for _, cell in named]
    nbformat.write(source, target)
    failure = "this cell was not run, or left early"
    try:
        papermill.execute_notebook(
            str(target),
            str(target),
            parameters=parameters,
            kernel_name="python3",  # this environment's, whatever the notebook was saved with
            progress_bar=False,
            stderr_file=sys.stderr,
            extra_arguments=["--log-level=40"],
            kernel_manager_class=QuietKernel,
        )
    except (papermill.PapermillExecutionError, RuntimeError) as error:  # the latter: a kernel that died
        failure = str(error)
    executed = nbformat.read(target, as_version=4)
    # papermill calls a notebook a success in which a cell left by sys.exit, and never runs the cells after it.
    own_cells = [cell for cell in executed.cells if not has_tag(cell, INSERTED_TAGS)]
    for (name, _), cell in zip(named, own_cells, strict=True):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        told = [f"{o.ename}: {o.evalue}" for o in cell.outputs if o.output_type == "error"]
        if any("Exception in thread" in o.text for o in cell.outputs if o.get("name") == "stderr"):
            told = ["an exception in a thread"]
        answered = cell.execution_count and "shell.execute_reply" in cell.metadata.get("execution", {})
        if not answered or cell.metadata.get("papermill", {}).get("exception"):
            told.append(failure)
        if told:
            raise BuildError(f"{notebook.name}, {name}: {told[0]}")
    executed.cells.pop()
    for cell in own_cells:  # warnings and progress were shown, and name this machine's folders
        if "outputs" in cell:
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    del executed.metadata["papermill"]  # so do its paths
    nbformat.write(executed, target)
    return executed


def elsewhere(options, notebooks):
    """The labels of the sections that this build leaves out."""
    labels = set()
    for path in set(options.notebooks.glob(SECTIONS)) - set(notebooks):
        text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
        labels |= {f"sec-{path.stem}", *re.findall(r'(?:\\label\{|\{#|")((?:fig|tbl|eq|sec)-[\w-]+)', text)}
    return labels


# --- collect --------------------------------------------------------------------------------------------------------


def collect(executed):
    """Every number, verdict, run and sentence of the notebooks."""
    results = {"verdicts": [], "sentences": {}, "numbers": {}, "runs": []}
    for record in records(executed):
        if record.get("key"):
            results["sentences"][record["key"]] = record["text"]
        carried = record.get("records", {})
        results["numbers"] |= carried.get("numbers", {})
        for kind in ("verdicts", "runs"):
            results[kind] += [row for row in carried.get(kind, []) if row not in results[kind]]
    return results


def describe(options, parameters, dataset, code, seconds):
    """Where the results come from."""
    needed = importlib.metadata.requires("normlib")
    packages = [re.match(r"[\w-]+", one)[0] for one in needed if ";" not in one]  # none of an extra
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "profile": options.profile,
        "parameters": {notebook.stem: given for notebook, given in parameters.items()},
        "data": {
            "name": dataset.name,
            "source": dataset.source,
            "sample": dataset.is_sample,
            "sha256": dataset.digest,
        },
        **code,
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "system": platform.platform(terse=True),
        },
        "threads of a run": 1,
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in packages},
        "seconds": seconds,
    }


def of_git():
    """The code that begins to run: while it does, git may be given other."""
    return {
        "commit": _git("rev-parse", "HEAD") or "unknown",
        "uncommitted changes": bool(_git("status", "--porcelain")),
    }


def _git(*arguments):
    command = ["git", "-C", ROOT, *arguments]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True).strip()
    return ""


def _processor():
    with contextlib.suppress(OSError, IndexError):
        return re.findall(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())[0]
    return platform.processor() or platform.machine()


# --- install ---------------------------------------------------------------------------------------------------------


def install(folder, output):
    """Put what was built in the place of the last report, one build at a time. The parts are first gathered under one
    name: from then on the new report counts, and if this build is killed amid, the next one finishes."""
    with FileLock(output / ".lock"):
        put_in_place(output)
        whole = folder / "whole"
        whole.mkdir()
        for name in PARTS:
            os.replace(folder / name, whole / name)
        os.replace(whole, output / ".whole")
        put_in_place(output)


def put_in_place(output):
    """Move the parts of a whole report, if there is one, to where they are looked for."""
    whole = output / ".whole"
    for name in PARTS:
        if (whole / name).exists():
            if (output / name).is_dir():
                shutil.rmtree(output / name)
            os.replace(whole / name, output / name)
    shutil.rmtree(whole, ignore_errors=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which the running of notebooks knows to handle
    main()
