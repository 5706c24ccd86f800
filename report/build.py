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
import base64
import collections
import contextlib
import csv
import datetime
import importlib.metadata
import io
import itertools
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
import textwrap
import time
import webbrowser

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # here and in the kernels
if __name__ == "__main__":  # also while the packages below are imported; it leaves by way of every `finally`
    for kind, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        if signal.getsignal(kind) != signal.SIG_IGN:  # as under nohup
            signal.signal(kind, lambda *_, code=code: sys.exit(code))

import nbformat
import panflute as pf
import papermill
import pypandoc
import typst
from filelock import FileLock, Timeout
from jupyter_client import AsyncKernelManager
from tqdm import tqdm

PROFILES = ("smoke", "quick", "default", "thorough")
HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
PANDOC = pypandoc.get_pandoc_path()
pf.elements.RAW_FORMATS.add("typst")  # younger than panflute's list
SECTIONS = "[0-9][0-9]_*.ipynb"
PARTS = ("notebooks", "report.html", "report.pdf", "results.json")  # of a report
INSERTED_TAGS = {"injected-parameters", "papermill-error-cell-tag"}
UNASKED_TAGS = {"explore", *INSERTED_TAGS}  # a notebook that ran once may be given, too
HIDDEN_TAGS = {"parameters", "injected-parameters", "remove-cell"}
KEPT = "Finished runs are kept: the next build goes on from there."


class BuildError(Exception):
    """What went wrong, and the exit code that says so."""

    def __init__(self, message, code=1):
        super().__init__(message)
        self.code = code


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
    here, in proportion to what this one has taken so far."""
    last = {}
    with contextlib.suppress(OSError, ValueError, KeyError):  # there is none, or it is not whole
        built = json.loads((options.output / "results.json").read_text())["provenance"]
        last = built["seconds"] if built["profile"] == options.profile else {}
    expected = {name: last.get(name, min(last.values(), default=1.0)) for name in names}
    started = time.time()

    def tell(name):
        place, passed = names.index(name), time.time() - started
        done, left = (sum(expected[n] for n in part) for part in (names[:place], names[place:]))
        left = left * passed / done if done else left if last else None
        about = "" if left is None else f", about {tqdm.format_interval(left)} left"
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
    known = {notebook: papermill.inspect_notebook(str(notebook)) for notebook in notebooks}
    defaults = {"PROFILE": "", "JOBS": 0}
    for parameters in known.values():
        defaults |= {name: ast.literal_eval(parameter["default"]) for name, parameter in parameters.items()}
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


def has_tag(cell, tags):
    """Whether a cell has one of these tags."""
    return bool(tags & set(cell.metadata.get("tags", [])))


def elsewhere(options, notebooks):
    """The labels of the sections that this build leaves out."""
    labels = set()
    for path in set(options.notebooks.glob(SECTIONS)) - set(notebooks):
        text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
        labels |= {f"sec-{path.stem}", *re.findall(r'(?:\\label\{|\{#|")((?:fig|tbl|eq|sec)-[\w-]+)', text)}
    return labels


# --- collect --------------------------------------------------------------------------------------------------------


def records(executed):
    """All that the displays of the notebooks carry, in order."""
    for notebook in executed:
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                if record := output.get("metadata", {}).get("study"):
                    yield record


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


# --- put together ---------------------------------------------------------------------------------------------------


def compose(notebooks, executed, results, folder, left_out):
    """One document of all: a panflute Doc whose figures, tables, equations and sections are numbered and linked."""
    (folder / "media").mkdir()
    parts = []
    for path, notebook in zip(notebooks, executed, strict=True):
        parts += cells(path, notebook, folder / "media")
    parts.insert(0, front_matter(results, "\n".join(parts)))
    parts.append(provenance_section(results["provenance"]))
    parts.append("::: {#appendix}\n:::\n\n# References {-}\n\n::: {#refs}\n:::\n")
    read = _pandoc("\n\n".join(parts), "--to=json", "--standalone", "--columns=9999")
    document = pf.load(io.StringIO(read))
    number(document, left_out)
    document.walk(keep_together)
    made = results["provenance"]
    document.metadata["built"] = (
        f"{made['date'][:10]}, profile {made['profile']}, commit {made['commit'][:7]}"
    )
    return document


def front_matter(results, body):
    """Title, abstract and the reader's help, with the computed sentences in their places.

    `{key}` is a sentence of the notebooks, `{key:brief}` its beginning; `{key,key:brief}` are several, `together`.
    Of the links, those stay whose aim is built.
    """

    def link(match):
        return match[0] if f"{{#{match[1] or f'sec-{match[2]}'}" in body else ""

    def fill(match):
        texts = [
            results["sentences"].get(key, "*(not computed in this build)*") for key in match[1].split(",")
        ]
        return together([beginning(text) for text in texts] if match[2] else texts)

    text = re.sub(
        r"\{((?:\w+\.)+\w+(?:,(?:\w+\.)+\w+)*)(:brief)?\}", fill, (HERE / "front_matter.md").read_text()
    )
    text = re.sub(r" \(\[\w+\]\((?:#([\w-]+)|([\w-]+)\.ipynb)\)\)", link, text)
    text = text.replace("<!-- verdicts -->", verdict_summary(results["verdicts"]))
    banners = []
    if results["provenance"]["data"]["sample"]:
        banners.append(
            "These results come from a **sample of the data** (5,000 training and 1,000 test images)."
        )
    if results["provenance"]["profile"] in ("smoke", "quick"):
        banners.append(
            "These runs are **a few steps long**: they show that everything works, and are evidence of nothing."
        )
    banner = "::: {.banner}\n" + " ".join(banners) + "\n:::\n\n" if banners else ""
    return text.replace("<!-- banner -->", banner)


def beginning(text):
    """The first sentence, or what comes before its semicolon, without what stands in square brackets; what stands in
    round ones is not split."""
    text = re.sub(r" \[[^][]*\](?!\()", "", text)
    return re.split(r"[.;] (?![^()]*\))", text)[0].rstrip(".") + "."


def together(texts):
    """Sentences one after the other; those that differ in a single word as one, with all of these words."""
    columns = list(zip(*(text.split() for text in texts), strict=False))
    other = [place for place, words in enumerate(columns) if len(set(words)) > 1]
    if len(texts) == 1 or len(other) != 1 or len({len(text.split()) for text in texts}) > 1:
        return " ".join(dict.fromkeys(texts))
    *most, last = columns[other[0]]
    merged = [words[0] for words in columns]
    merged[other[0]] = f"{', '.join(most)} and {last}"
    return " ".join(merged)


VERDICT_TABLES = {
    "V1": "exact facts, and our layers against TensorFlow's",
    "V2": "claims of the literature",
    "V3": "the methods against plain, each at its own rate",
    "V4": "mechanisms of drift",
    "V5": "numbers of the study of 2019",
}
NAMED = 12  # rows of one verdict that are named on the first pages


def verdict_summary(verdicts):
    """How many rows of each table of verdicts had which verdict, and which; but for those that hold, and for many."""
    lines = []
    for name, title in VERDICT_TABLES.items():
        found = collections.defaultdict(list)
        for row in verdicts:
            if row["table"] == name:
                found[row["verdict"]].append(row["claim"])
        told = [
            f"**{verdict}: {len(claims)}**"
            + ("" if verdict == "holds" or len(claims) > NAMED else f" ({'; '.join(claims)})")
            for verdict, claims in sorted(found.items(), key=lambda item: -len(item[1]))
        ]
        lines += [f"* {title[0].upper()}{title[1:]}: {'; '.join(told)}."] if told else []
    if not lines:
        return ""
    start = (
        "```{=typst}\n#pagebreak(weak: true)\n```\n\n# All verdicts {.unnumbered}\n\n"
        "Each follows from a rule that could have decided otherwise.\n\n"
    )
    return start + "\n".join(lines)


def cells(path, notebook, media):
    """A notebook's cells as pandoc's Markdown; below its heading what it comes to."""
    heading = rf"# \1 {{#sec-{path.stem}}}\n\n" + _lead(notebook).replace("\\", r"\\")
    code = []  # of cells that show nothing: it goes before what the next one shows
    for cell in notebook.cells:
        if has_tag(cell, HIDDEN_TAGS) or cell.cell_type == "raw":
            continue
        if cell.cell_type == "markdown":
            yield from _step(code)
            code = []
            yield re.sub(r"^# (.*)$", heading, cell.source, flags=re.M)
            continue
        outputs = [shown for output in cell.outputs if (shown := _output(output, media))]
        only_source = outputs and all(o.startswith("::: {.source") for o in outputs)
        if cell.source.strip() and not only_source:
            code.append(cell.source)
        if outputs:
            yield from _step(code, outputs)
            code = []
            yield from outputs
    yield from _step(code)


def _step(code, outputs=()):
    """The code of a step, if there is any, behind references to the figures and tables that it makes."""
    if code:
        made = re.findall(r"\{(#(?:fig|tbl)-[\w-]+)", "\n".join(outputs))
        links, code = " ".join(f"[]({label})" for label in made), _fence("\n".join(code), "python")
        yield f"::: {{.code-cell}}\n{links}\n\n{code}\n:::"


def _lead(notebook):
    """The beginnings of the sentences that a notebook ends with, behind its last heading."""
    headings = [n for n, cell in enumerate(notebook.cells) if re.search(r"^## ", cell.source, flags=re.M)]
    ending = nbformat.v4.new_notebook(cells=notebook.cells[headings[-1] :] if headings else notebook.cells)
    told = [beginning(r["text"]) for r in records([ending]) if r["kind"] == "state" and r["key"]]
    return f"::: {{.lead}}\n**In short:** {' '.join(told)}\n:::\n" if told else ""


def _output(output, media):
    record = output.get("metadata", {}).get("study", {})
    kind = record.get("kind")
    if kind == "figure":
        name = f"{record['label']}.svg"
        (media / name).write_text("".join(output.data["image/svg+xml"]))
        (media / f"{record['label']}.csv").write_text(record["data"])
        alt = printed(record["alt"]).replace('"', "'")
        return f'![{record["caption"]}]({media / name}){{#{record["label"]} alt="{alt}"}}'
    if kind == "table":
        return _pipe_table(record)
    if kind == "state":
        return record["text"]
    if kind == "source":
        return f'::: {{.source name="{record["name"]}"}}\n{_fence(record["code"], "python")}\n:::'
    if output.output_type == "stream" and output.name == "stdout":
        return _fence("".join(output.text).rstrip(), "text")
    return None


def _fence(code, language):
    return f"````` {language}\n{code}\n`````"


def _pipe_table(record):
    """A table in Markdown; columns of numbers stand to the right, an empty cell holds a dash."""
    rows = [
        [re.sub(r"\^\{.*?\}", r"$\g<0>$", str(cell)).replace("|", "\\|") for cell in row]
        for row in record["rows"]
    ]
    rows = [[NOTHING if cell in ("", "nan", "None") else cell for cell in row] for row in rows]
    numeric = [all(map(_is_numeric, column)) for column in zip(*rows, strict=True)]
    rule = ["---:" if right else "---" for right in numeric]
    heads = [str(name).replace("|", "\\|") for name in record["columns"]]
    lines = ["| " + " | ".join(row) + " |" for row in [heads, rule, *rows]]
    return "\n".join(lines) + f"\n\n: {record['caption']} {{#{record['label']}}}"


NOTHING = "—"
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
FROM_SUPERSCRIPT = {raised: plain for plain, raised in SUPERSCRIPT.items()}
NUMBER = r"([+−-]?(?:[\d,]*\.?\d+(?:e[+-]\d+|\s×\s10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?|inf))"
INTERVAL = rf"{NUMBER}\s\({NUMBER}\sto\s{NUMBER}\)"


def _is_numeric(cell):
    return cell == NOTHING or bool(re.fullmatch(f"{NUMBER}|{INTERVAL}", cell))


def printed(text):
    """Numbers as they are printed: with a minus, a power of ten in full, and no line break inside or before a %."""

    def power(match):
        sign, mantissa, exponent = match.groups()
        if not float(mantissa):
            return "0"
        return f"{sign}{mantissa} × 10{str(int(exponent)).translate(SUPERSCRIPT)}"

    text = re.sub(r"(?<![\w.])([+−-]?)(\d(?:\.\d+)?)e([+-]\d+)\b", power, text)
    text = re.sub(r"(?<![^\s(])-(?=[\d.])", "−", text)
    digit, signed = "[\\d⁰¹²³⁴⁵⁶⁷⁸⁹]", r"[+−]?\d"
    inside = rf"(?<={digit}) (?=%|× 10|to {signed}|\({signed}\S*( × \S+)? to )|(?<=%) (?=\({signed}\S* to )"
    return re.sub(rf"{inside}|(?<=×) (?=10)|(?<={digit} to) (?={signed})", "\u00a0", text)


def keep_together(element, doc):
    """The words of an element, its numbers as they are printed."""
    words = (pf.Str, pf.Space, pf.SoftBreak)
    if not any(isinstance(part, words) for part in getattr(element, "content", [])):
        return
    made = []
    for plain, run in itertools.groupby(element.content, lambda part: isinstance(part, words)):
        if plain:
            text = printed("".join(part.text if isinstance(part, pf.Str) else " " for part in run))
            run = [part for word in text.split(" ") for part in (pf.Space(), pf.Str(word))][1:]
        made += [part for part in run if not (isinstance(part, pf.Str) and not part.text)]
    element.content = made


def provenance_section(provenance):
    """The last section: a table of where the results come from."""

    def flat(value):
        if isinstance(value, dict):
            return "; ".join(f"{k}: {flat(v)}" for k, v in value.items())
        return str(value)

    rows = [[key, flat(value)] for key, value in provenance.items()]
    table = _pipe_table(
        {"columns": ["what", "value"], "rows": rows, "caption": "Provenance.", "label": "tbl-provenance"}
    )
    text = (
        "All of this report was computed by one command from the commit below; the numbers are in `results.json`. The "
        "seconds are those of this build: runs that an earlier one had finished were not trained again."
    )
    return f"# Where this comes from {{#sec-provenance}}\n\n{text}\n\n{table}"


def number(document, left_out):
    """Number sections, figures, tables and equations, and turn references to them into links; what has a label that is
    left out of this build is named."""
    counts, labels = {"Section": 0, "Figure": 0, "Table": 0, "Equation": 0}, {}

    def count(kind, identifier):
        counts[kind] += 1
        if identifier:
            if identifier in labels:
                raise BuildError(f"The label {identifier} is given twice")
            labels[identifier] = (kind, counts[kind])
        return counts[kind]

    def caption(element, kind):
        told = f"{kind} {count(kind, element.identifier)}."
        blocks = list(element.caption.content) or [pf.Plain()]
        blocks[0].content = [pf.Span(pf.Str(told), classes=["label"]), pf.Space(), *blocks[0].content]
        element.caption.content = blocks

    def first(element, doc):
        if isinstance(element, pf.Header) and element.level == 1 and "unnumbered" not in element.classes:
            count("Section", element.identifier)
        elif isinstance(element, pf.Figure):
            caption(element, "Figure")
        elif isinstance(element, pf.Table):
            caption(element, "Table")
        elif isinstance(element, pf.Math) and element.format == "DisplayMath":
            label, attributes = "", {}
            if found := re.search(r"\\label\{([\w-]+)\}", element.text):
                label, element.text = found[1], element.text.replace(found[0], "").strip()
                attributes = {"number": str(count("Equation", label))}
            return pf.Span(element, identifier=label, classes=["equation"], attributes=attributes)
        return None

    def second(element, doc):
        if not isinstance(element, pf.Link):
            return None
        notebook = re.fullmatch(r"([\w-]+)\.ipynb", element.url)
        target = f"sec-{notebook[1]}" if notebook else element.url.removeprefix("#")
        if not notebook and not re.match(r"#(fig|tbl|eq|sec)-", element.url):
            return None
        if target not in labels:
            if target in left_out:
                return [*element.content, pf.Space(), pf.Code(target)]
            raise BuildError(f"A reference to something that is not there: {element.url}")
        kind, place = labels[target]
        told = f"{kind}\u00a0({place})" if kind == "Equation" else f"{kind}\u00a0{place}"
        element.url, element.content = f"#{target}", [pf.Str(told)]
        return None

    document.walk(first)
    document.walk(second)


# --- write ----------------------------------------------------------------------------------------------------------


OF_JSON = ["--from=json", "--standalone", "--wrap=none", "--number-sections", "--citeproc"]
OF_JSON += [f"--bibliography={HERE / 'references.bib'}", "--metadata=link-citations:true"]


def write_html(document, folder):
    """One file that asks nothing of any network."""

    def adapt(element, doc):
        if isinstance(element, pf.Div) and {"code-cell", "source"} & set(element.classes):
            *links, code = element.content
            if name := element.attributes.get("name"):
                lines = code.text.count("\n") + 1
                return _folded(f"Source of <code>{name}</code>, {lines} lines", [code], 'class="code"')
            made = ", ".join(map(pf.stringify, links[0].content[::2])) if links else "this step"
            return _folded(f"Code of {made}", [code], 'class="code step"')
        if isinstance(element, pf.Div) and element.identifier == "appendix":
            return []  # in a page, what is long is folded
        if isinstance(element, pf.CodeBlock):
            element.attributes["tabindex"] = "0"
        elif isinstance(element, pf.Span) and "equation" in element.classes:
            place = element.attributes.pop("number", "")
            element.attributes |= {
                "tabindex": "0",
                "role": "group",
                "aria-label": f"Equation {place}".strip(),
            }
            label = [pf.Span(pf.Str(f"({place})"), classes=["equation-number"])] if place else []
            element.content = [*element.content, *label]
        elif isinstance(element, pf.Image):
            drawn = pathlib.Path(element.url)
            element.url = str(drawn.with_suffix(".page.svg"))
            width, height = _points(drawn)
            element.classes += ["tall"] if height > TALL else []
            least = f"{width:.0f}px"  # three quarters of its size
            element.attributes["style"] = f"min-width: {f'min(100%, {least})' if width < PHONE else least}"
            pathlib.Path(element.url).write_text(_for_both_schemes(drawn.read_text()))
        elif isinstance(element, pf.Figure):
            data = folder / "media" / f"{element.identifier}.csv"
            if data.exists():
                element.caption.content[-1].content += _download(element, data.read_text())
            group = {"tabindex": "0", "role": "group", "aria-label": _told(element)}
            element.content = [pf.Div(*element.content, classes=["scroll"], attributes=group)]
        elif isinstance(element, pf.Table):
            return _html_table(element)
        return None

    form = ["--to=html5", "--mathml", "--embed-resources", "--toc", "--toc-depth=2", "--section-divs"]
    files = [f"--template={HERE / 'template.html'}", f"--resource-path={HERE}"]
    _pandoc(_json(document, adapt), *OF_JSON, *form, *files, f"--output={folder / 'report.html'}")


PHONE = 380  # points of a figure that a phone shows whole
TALL = 330  # points of a figure that is more than half a page of print
LONG = 8  # rows of exact verdicts from which a table is folded, or stands in the PDF's appendix


def _folded(summary, blocks, attributes=""):
    start = f"<details {attributes}><summary>{summary}</summary>"
    return [pf.RawBlock(start, format="html"), *blocks, pf.RawBlock("</details>", format="html")]


def _told(element):
    """The number of a figure or a table, in words."""
    return pf.stringify(element.caption.content[0].content[0]).rstrip(".")


def _points(drawn):
    """How wide and how high an SVG is."""
    start = re.search(r"<svg[^>]*>", drawn.read_text())[0]
    return [float(re.search(rf' {side}="([\d.]+)pt"', start)[1]) for side in ("width", "height")]


def _download(element, text):
    """A link that holds the data of a figure or a table."""
    address = "data:text/csv;charset=utf-8;base64," + base64.b64encode(text.encode()).decode()
    name = f'class="data" download="{element.identifier}.csv" aria-label="Data (CSV) of {_told(element)}"'
    return [pf.Space(), pf.RawInline(f'<a {name} href="{address}">Data (CSV)</a>', format="html")]


def _texts(table):
    """What stands in a table, row by row."""
    rows = [*table.head.content, *(row for body in table.content for row in body.content)]
    return [[pf.stringify(cell).strip() for cell in row.content] for row in rows]


def _csv(texts):
    """A table as programs read it: plain numbers, and of a mean with its interval three columns."""

    def plain(text):
        if not re.fullmatch(NUMBER, text):
            return "" if text == NOTHING else text.replace("\u00a0", " ")
        text = text.replace("−", "-").replace(",", "").removeprefix("+")
        return re.sub(r"\s×\s10(.+)", lambda power: "e" + power[1].translate(FROM_SUPERSCRIPT), text)

    columns = []
    for head, *cells in zip(*texts, strict=True):
        found = [re.fullmatch(INTERVAL, cell) for cell in cells]
        if any(found) and all(map(_is_numeric, cells)):
            parts = [
                match.groups() if match else (cell, "", "") for match, cell in zip(found, cells, strict=True)
            ]
            names = (head, f"{head}, low", f"{head}, high")
            columns += [[name, *map(plain, column)] for name, *column in zip(names, *parts, strict=True)]
        else:
            columns.append([head, *map(plain, cells)])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(zip(*columns, strict=True))
    return text.getvalue()


def _html_table(table):
    """A table in a box of its own that scrolls, below its caption; long ones of exact verdicts are folded."""
    texts = _texts(table)
    ranked = "verdict" in texts[0] or any(align == "AlignRight" for align, _ in table.colspec)
    if len(texts) > 4 and ranked:
        table.classes.append("sortable")
    caption = f"{table.identifier}-caption"
    start = f'<figure class="table" id="{table.identifier}"><figcaption id="{caption}">'
    told = [*table.caption.content[0].content, *_download(table, _csv(texts))]
    longest = [max(map(len, column)) for column in zip(*texts, strict=True)]
    width = sum(min(length, 24) * 0.5 + 1.6 for length in longest)  # narrower, words would stand in columns
    table.attributes |= {"style": f"min-width: {min(width, 44):.0f}rem", "aria-labelledby": caption}
    table.identifier, table.caption = "", pf.Caption()
    box = f'<div class="scroll" tabindex="0" role="group" aria-labelledby="{caption}">'
    content = [pf.RawBlock(box, format="html"), table, pf.RawBlock("</div>", format="html")]
    if _is_long(texts):
        content = _folded(f"All {len(texts) - 1} rows", content)
    head = [pf.RawBlock(start, format="html"), pf.Plain(*told), pf.RawBlock("</figcaption>", format="html")]
    return [*head, *content, pf.RawBlock("</figure>", format="html")]


def _is_long(texts):
    """Whether a table is one of many exact verdicts, of which the caption tells enough."""
    return "tolerance" in texts[0] and len(texts) > LONG


def _for_both_schemes(svg):
    """A figure that is drawn in light ink where the page is dark: greys are turned round, colours mixed with white."""
    rules = [
        "svg { fill: #dde3ea } [id^=on-image] { fill: #000 }",
        '[id^=patch] > [style*="fill: #ffffff"] { fill: none !important }',
    ]
    for what, colour in sorted(
        set(re.findall(r"(fill|stroke): (#[0-9a-f]{6})", svg)) - {("fill", "#ffffff")}
    ):
        parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        grey = f"rgb({' '.join(3 * [str(round(225 - 0.75 * parts[0]))])})"
        light = grey if len(set(parts)) == 1 else f"color-mix(in srgb, {colour} 65%, white)"
        selector = f'[style*="{what}: {colour}"]:not([id^=on-image] *)'
        rules.append(f"{selector} {{ {what}: {light} !important }}")
    style = f"<style>@media screen and (prefers-color-scheme: dark) {{ {' '.join(rules)} }}</style>"
    return svg.replace("</svg>", f"{style}</svg>")


def write_pdf(document, folder):
    """A tagged PDF (PDF/UA-1) by Typst. pandoc would drop alternative texts, so images and formulas are raw."""
    formulas = _typst_formulas(document)
    appendix = []

    def adapt(element, doc):
        if isinstance(element, pf.Div) and element.identifier == "appendix":
            heading = pf.Header(
                pf.Str("Appendix"), level=1, identifier="sec-appendix", classes=["unnumbered"]
            )
            return [heading, *appendix] if appendix else []
        if isinstance(element, pf.Div) and "code-cell" in element.classes:
            return []
        if isinstance(element, pf.Div) and {"lead", "banner"} & set(element.classes):
            return _in_typst(f"#{element.classes[0]}[", *element.content)
        if isinstance(element, pf.CodeBlock):
            element.text = "\n".join(map(_wrapped, element.text.split("\n")))
        if isinstance(element, pf.Figure):
            return _in_typst(_turn(element), element)
        if isinstance(element, pf.Table):
            texts = _texts(element)
            _break_heads(element, texts)
            whole = (
                _turn(element)
                if sum(1 + len("".join(row)) // LINE for row in texts) <= WHOLE
                else "#place.flush()\n#[#show figure: set block(breakable: true)\n"  # no figure amid
            )
            prose = any(len(text) > PROSE and "#math" not in text for row in texts for text in row)
            if prose:
                _share_line(element, texts)
            size = 9 if prose else _table_size(texts)
            if prose or size < 9:  # too wide at full size: an interval may stand under its number
                element = element.walk(_may_break)
            shown = _in_typst(f"{whole}#show table: set text({size:.1f}pt)", element)
            if not _is_long(texts):
                return shown
            appendix.extend(shown)
            rows = pf.Link(pf.Str("Its rows"), url=f"#{element.identifier}")
            told = [*element.caption.content[0].content, pf.Space(), rows]
            return pf.Para(*told, pf.Str(" are in the appendix."))
        if isinstance(element, pf.Image):
            alt = json.dumps(element.attributes.get("alt") or pf.stringify(element), ensure_ascii=False)
            drawn = pathlib.Path(element.url)
            width, height = _points(drawn)
            width = round(100 * width / FULL_WIDTH * min(1, FULL_WIDTH / width, FULL_HEIGHT / height))
            return pf.RawInline(f'#image("media/{drawn.name}", alt: {alt}, width: {width}%)', format="typst")
        if isinstance(element, pf.Math):
            block = "true" if element.format == "DisplayMath" else "false"
            place = getattr(element.parent, "attributes", {}).get("number")
            numbered = f', numbering: _ => "({place})"' if place else ""
            alt = json.dumps(element.text, ensure_ascii=False)
            code = f"#math.equation(block: {block}, alt: {alt}{numbered}, {formulas[element.text, element.format]})"
            return pf.RawInline(code, format="typst")
        return None

    source = folder / "report.typ"
    form = ["--to=typst", f"--template={HERE / 'template.typ'}"]
    source.write_text(_pandoc(_json(document, adapt), *OF_JSON, *form))
    typeset = {"root": str(folder), "font_paths": [HERE], "ignore_system_fonts": True}
    try:
        typeset["sys_inputs"] = _places(source, typeset)
        typst.compile(str(source), output=str(folder / "report.pdf"), pdf_standards=["ua-1"], **typeset)
    except typst.TypstError as error:
        raise BuildError(f"Typst: {error}") from error


# Points of the text's width in template.typ, and of its height but for a caption: only larger figures are scaled.
FULL_WIDTH, FULL_HEIGHT = 16.4 / 2.54 * 72, 600
WHOLE = 30  # lines of a table that stays on one page; longer ones break
LINE = 108  # characters of a table in a line, at full size
PROSE = 90  # characters of a cell that are sentences
SHORT = 12  # characters of a cell among sentences that is not broken
CODE = 100  # characters of code in a line
GAP = 90  # points at the foot of a page that may stay empty


def _in_typst(start, *blocks):
    return [pf.RawBlock(start, format="typst"), *blocks, pf.RawBlock("]", format="typst")]


def _turn(element):
    """The start of a figure or a table that stays whole."""
    before = element.prev
    while isinstance(before, pf.Div) and "code-cell" in before.classes:  # not shown
        before = before.prev
    name = element.identifier
    start = f'#[#set figure(placement: placement("{name}"))\n#show figure.caption: standing.with("{name}")\n'
    if isinstance(before, pf.Header) or not name:  # a heading stays with what follows it
        return start
    return f'#turn("{name}")\n{start}'


def _places(source, typeset):
    """The figures that go to the top of the next page ("later"), and those before which all that wait are set ("last").

    A figure stands where the text speaks of it, or on the next page where it does not fit. Where that leaves a gap,
    what follows goes on before it, but for figures of two sections at most, lest headings pile up. Figures keep their
    order: one that would overtake another waits too, or the text waits for both where the page is full anyway.
    """
    later, last = [], []
    while True:
        inputs = {"later": " ".join(later), "last": " ".join(last)}
        figures = json.loads(typst.query(str(source), "<turn>", field="value", sys_inputs=inputs, **typeset))
        for number, figure in enumerate(figures):
            if figure["name"] in later:
                continue
            pages = figure["stands"] - figure["page"]  # a page between two has no room for it either
            gap = pages > 1 or (pages == 1 and figure["room"] > GAP)
            kind = figure["name"].partition("-")[0]
            before = [f for f in figures[:number] if f["name"].startswith(kind)]
            overtakes = any(f["stands"] > figure["stands"] for f in before)
            waiting = [f for f in figures if f["name"] in later and f["page"] == figure["page"]]
            held_up = overtakes or (pages > 1 and waiting)
            if held_up and figure["room"] <= GAP and figure["name"] not in last:
                last.append(figure["name"])
                break
            if overtakes or (gap and len({f["section"] for f in [*waiting, figure]}) <= 2):
                later.append(figure["name"])
                last = [name for name in last if name != figure["name"]]
                break
        else:
            return inputs


def _wrapped(line):
    """A line of code as wide as the page; what does not fit is set in below."""
    inset = (len(line) - len(line.lstrip()) + 8) * " "
    parts = textwrap.wrap(line, CODE, subsequent_indent=inset, break_on_hyphens=False)
    return "\n".join(parts) if len(line) > CODE else line


def _break_heads(table, texts):
    """Let no head of a column be wider than it must."""
    for cell, column in zip(table.head.content[0].content, zip(*texts, strict=True), strict=True):
        width = max(map(len, [*column[0].split(), *column[1:]]), default=1)
        lines = textwrap.wrap(column[0], max(1, width), break_long_words=False)
        if len(lines) > 1:
            words = [part for line in lines for part in (pf.LineBreak(), pf.Str(line))][1:]
            cell.content = [pf.Plain(*words)]


def _may_break(element, doc):
    if isinstance(element, pf.Str) and "\N{NO-BREAK SPACE}(" in element.text:
        return pf.Str(element.text.replace("\N{NO-BREAK SPACE}(", " ("))
    return None


def _table_size(texts):
    """The size of a table's type, at which its longest words fit into the line."""
    words = [  # an interval in brackets stays in one line
        [len(word) for text in column for word in re.split(r"\s(?![^(]*\))", text)]
        for column in zip(*texts, strict=True)
    ]
    return 9 * min(1, LINE / sum(max(lengths) + 3 for lengths in words))


def _share_line(table, texts):
    """The columns of a table of sentences share the line by how much text they hold; short ones keep their width."""
    columns = [[len(text) for text in column] for column in zip(*texts, strict=True)]
    whole = [max(column) for column in columns]
    words = [max(len(word) for row in texts for word in row[c].split(" ")) for c in range(len(whole))]
    least = [n if n <= SHORT else word for n, word in zip(whole, words, strict=True)]
    widths = {}
    while shared := [c for c in range(len(columns)) if c not in widths]:
        left = LINE - 3 * len(columns) - sum(widths.values())
        each = {c: left * sum(columns[c]) / sum(sum(columns[s]) for s in shared) for c in shared}
        enough = {c: whole[c] for c in shared if whole[c] <= each[c]}
        widths |= enough or {c: least[c] for c in shared if least[c] > each[c]} or each
    total = sum(widths.values()) + 3 * len(widths)
    table.colspec = [(align, (widths[c] + 3) / total) for c, (align, _) in enumerate(table.colspec)]


def _typst_formulas(document):
    """Every formula of the document in Typst's notation."""
    found = []
    document.walk(lambda element, doc: found.append(element) if isinstance(element, pf.Math) else None)
    keys = list(dict.fromkeys((formula.text, formula.format) for formula in found))
    blocks = [pf.Para(pf.Math(text, format=kind)) for text, kind in keys]
    text = _json(pf.Doc(*blocks, api_version=document.api_version))
    converted = _pandoc(text, "--from=json", "--to=typst", "--wrap=none")
    converted = re.sub(r"\\\| (.+?) \\\|", r"lr(|\1|)", converted)  # a bar alone would keep its distance
    return dict(zip(keys, re.split(r"\n\n+", converted.strip()), strict=True)) if keys else {}


def _json(document, adapt=None):
    """pandoc's JSON of a document, or of a copy of it that is adapted to one output."""
    stream = io.StringIO()
    pf.dump(document, stream)
    if not adapt:
        return stream.getvalue()
    stream.seek(0)
    return _json(pf.load(stream).walk(adapt))


def _pandoc(text, *arguments):
    """pandoc; its warnings are errors."""
    command = [PANDOC, "--fail-if-warnings", *arguments]
    answer = subprocess.run(command, input=text, capture_output=True, text=True)
    if answer.returncode:
        raise BuildError(f"pandoc: {answer.stderr.strip()}")
    return answer.stdout


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
