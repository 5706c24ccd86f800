"""Build the report: run the notebooks, put them together, number and link, write one HTML and one PDF.

    python report/build.py [--profile P] [--jobs N] [--data-dir D] [--set NAME=VALUE] [--only 02] [--open]

Exit codes: 0 built; 1 a notebook failed, or the report could not be put together; 2 wrong arguments; 3 data missing;
130 interrupted. Whatever happens, the last good report stays until a new one is whole.
"""

import argparse
import ast
import collections
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import webbrowser

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # here and in the kernels

import nbformat
import panflute as pf
import papermill
import pypandoc
import typst

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
PANDOC = pypandoc.get_pandoc_path()
pf.elements.RAW_FORMATS.add("typst")  # younger than panflute's list
INSERTED_TAGS = {"injected-parameters", "papermill-error-cell-tag"}
HIDDEN_TAGS = {"parameters", "injected-parameters", "remove-cell", "explore"}
PACKAGES = [
    "tensorflow",
    "keras",
    "tf-keras",
    "tensorflow-probability",
    "numpy",
    "scipy",
    "pandas",
    "matplotlib",
]
PACKAGES += ["seaborn", "joblib", "papermill", "pypandoc_binary", "typst"]


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
        print("\nInterrupted. Finished runs are kept: the next build goes on from there.", file=sys.stderr)
        sys.exit(130)
    if options.open:
        webbrowser.open((options.output / "report.html").as_uri())


def parse(arguments=None):
    """The command line."""
    usage, _, codes = __doc__.partition("Exit codes:")
    parser = argparse.ArgumentParser(
        prog="report/build.py", description=usage.split("\n")[0], epilog=f"Exit codes:{codes}"
    )
    parser.add_argument("--profile", default="default", choices=("smoke", "default", "thorough"))
    parser.add_argument(
        "--jobs", type=int, default=0, help="trainings at a time; 0 (default) for one on each core"
    )
    parser.add_argument("--data-dir", type=pathlib.Path, help="folder that holds the data files")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter of the notebooks, such as DATASET=mnist",
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="NN", help="build only this section, such as 02"
    )
    parser.add_argument("--open", action="store_true", help="open the report when it is built")
    parser.add_argument("--output", type=pathlib.Path, default=HERE / "build", help="folder of the result")
    parser.add_argument(
        "--notebooks", type=pathlib.Path, default=ROOT / "notebooks", help="folder of the notebooks"
    )
    options = parser.parse_args(arguments)
    options.output = options.output.resolve()
    if options.data_dir:
        os.environ["NORMLIB_DATA"] = str(options.data_dir.resolve())
    return options


def build(options):
    """Run, put together, write: into a temporary folder first."""
    started = time.time()
    notebooks = find_notebooks(options)
    parameters = read_parameters(options, notebooks)
    dataset = find_data(options, parameters)
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.output.parent, prefix=".building-") as folder:
        folder = pathlib.Path(folder)
        executed, seconds = [], {}
        for number, notebook in enumerate(notebooks, start=1):
            print(f"[{number}/{len(notebooks)}] {notebook.name}", file=sys.stderr, flush=True)
            before = time.time()
            executed.append(execute(notebook, parameters[notebook], folder / "notebooks" / notebook.name))
            seconds[notebook.stem] = round(time.time() - before, 1)
        results = collect(executed)
        provenance = describe(
            options, parameters, dataset, seconds | {"all": round(time.time() - started, 1)}
        )
        results = {"provenance": provenance} | results
        print("Writing the report", file=sys.stderr, flush=True)
        document = compose(notebooks, executed, results, folder)
        write_html(document, folder)
        write_pdf(document, folder)
        (folder / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        for name in ("notebooks", "report.html", "report.pdf", "results.json"):
            replace(folder / name, options.output / name)
    print(
        f"{options.output / 'report.html'} and report.pdf, in {time.time() - started:.0f} s", file=sys.stderr
    )


# --- run ------------------------------------------------------------------------------------------------------------


def find_notebooks(options):
    """The notebooks of the report, in their order."""
    found = sorted(options.notebooks.glob("[0-9][0-9]_*.ipynb"))
    chosen = [n for n in found if not options.only or n.name[:2] in options.only]
    if not chosen:
        names = ", ".join(n.name[:2] for n in found) or "none"
        raise BuildError(f"Expected --only among {names}. Received: {', '.join(options.only)}", 2)
    return chosen


def read_parameters(options, notebooks):
    """The parameters of each notebook: those given that it knows. Values are parsed, never evaluated."""
    given = {"PROFILE": options.profile, "JOBS": options.jobs}
    for setting in options.set:
        name, equals, value = setting.partition("=")
        if not equals:
            raise BuildError(f"Expected --set NAME=VALUE. Received: {setting!r}", 2)
        try:
            given[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            given[name] = value
    known = {notebook: papermill.inspect_notebook(str(notebook)) for notebook in notebooks}
    names = sorted({name for parameters in known.values() for name in parameters})
    for name, value in given.items():
        if name not in names and name not in ("PROFILE", "JOBS"):
            raise BuildError(f"Expected a parameter among {', '.join(names)}. Received: {name}={value!r}", 2)
        for parameters in known.values():
            default = ast.literal_eval(parameters[name]["default"]) if name in parameters else value
            if type(default) is not type(value):
                expected = type(default).__name__
                raise BuildError(f"Expected {name} of type {expected}. Received: {name}={value!r}", 2)
    return {n: {name: given[name] for name in given if name in known[n]} for n in notebooks}


def find_data(options, parameters):
    """Get the data before anything runs. The smoke profile does with the embedded sample."""
    from study import data

    name = next((p["DATASET"] for p in parameters.values() if "DATASET" in p), "fashion_mnist")
    try:
        return data.load(name, sample=True) if options.profile == "smoke" else data.load_or_sample(name)
    except data.DataError as error:
        raise BuildError(str(error), 3) from error


def execute(notebook, parameters, target):
    """Run one notebook and make sure that it ran whole."""
    target.parent.mkdir(exist_ok=True)
    failure = None
    try:
        papermill.execute_notebook(
            str(notebook),
            str(target),
            parameters=parameters,
            cwd=str(notebook.parent),
            progress_bar=False,
            stderr_file=sys.stderr,
            extra_arguments=["--log-level=40"],
        )
    except papermill.PapermillExecutionError as error:
        failure = f"{error.ename}: {error.evalue}"
    except RuntimeError as error:  # a kernel that died
        failure = str(error)
    if not target.exists():
        raise BuildError(f"{notebook.name}: {failure or 'nothing was run'}")
    executed = nbformat.read(target, as_version=4)
    # papermill calls a notebook a success in which a cell left by sys.exit, and never runs the cells after it.
    own_cells = [c for c in executed.cells if not INSERTED_TAGS & set(c.metadata.get("tags", []))]
    for number, cell in enumerate(own_cells, start=1):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        errors = [o for o in cell.outputs if o.output_type == "error"]
        told = (
            f"{errors[0].ename}: {errors[0].evalue}"
            if errors
            else failure or "this cell was not run, or left early"
        )
        if errors or cell.execution_count is None or cell.metadata.get("papermill", {}).get("exception"):
            raise BuildError(f"{notebook.name}, cell {number}: {told}")
    if failure:
        raise BuildError(f"{notebook.name}: {failure}")
    for cell in own_cells:  # warnings and progress were shown, and name this machine's folders
        if "outputs" in cell:
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    nbformat.write(executed, target)
    return executed


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
    results = {"numbers": {}, "verdicts": [], "runs": [], "sentences": {}}
    for record in records(executed):
        if record.get("key"):
            results["sentences"][record["key"]] = record["text"]
        carried = record.get("records", {})
        results["numbers"] |= carried.get("numbers", {})
        for kind in ("verdicts", "runs"):
            results[kind] += [row for row in carried.get(kind, []) if row not in results[kind]]
    return results


def describe(options, parameters, dataset, seconds):
    """Where the results come from."""
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
        "commit": _git("rev-parse", "HEAD") or "unknown",
        "uncommitted changes": bool(_git("status", "--porcelain")),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "system": platform.platform(terse=True),
        },
        "threads of a run": 1,
        "versions": {"python": platform.python_version()}
        | {p: importlib.metadata.version(p) for p in PACKAGES},
        "seconds": seconds,
    }


def _git(*arguments):
    try:
        answer = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        )
        return answer.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _processor():
    try:
        models = re.findall(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
        return models[0] if models else platform.machine()
    except OSError:
        return platform.processor() or platform.machine()


# --- put together ---------------------------------------------------------------------------------------------------


def compose(notebooks, executed, results, folder):
    """One document of all: a panflute Doc whose figures, tables, equations and sections are numbered and linked."""
    (folder / "media").mkdir()
    parts = []
    for path, notebook in zip(notebooks, executed, strict=True):
        parts += cells(path, notebook, folder / "media")
    parts.insert(0, front_matter(results, "\n".join(parts)))
    parts.append(provenance_section(results["provenance"]))
    parts.append("# References {-}\n\n::: {#refs}\n:::\n")
    document = pf.convert_text(
        "\n\n".join(parts), extra_args=["--columns=200"], standalone=True, pandoc_path=PANDOC
    )
    number(document, [n.stem for n in notebooks])
    return document


def front_matter(results, body):
    """Title, abstract and the reader's help, with the computed sentences in their places.

    `{key}` is a sentence of the notebooks, `{key:brief}` its beginning. Of the links, those stay whose aim is built.
    """

    def link(match):
        return match[0] if f"{{#{match[1] or f'sec-{match[2]}'}" in body else ""

    def fill(match):
        text = results["sentences"].get(match[1], "*(not computed in this build)*")
        return re.split(r"[.;] ", text)[0].rstrip(".") + "." if match[2] else text

    text = re.sub(r"\{((?:\w+\.)+\w+)(:brief)?\}", fill, (HERE / "front_matter.md").read_text())
    text = re.sub(r" \(\[\w+\]\((?:#([\w-]+)|([\w-]+)\.ipynb)\)\)", link, text)
    text = text.replace("<!-- verdicts -->", verdict_summary(results["verdicts"]))
    banners = []
    if results["provenance"]["data"]["sample"]:
        banners.append(
            "These results come from a **sample of the data** (5,000 training and 1,000 test images)."
        )
    if results["provenance"]["profile"] == "smoke":
        banners.append(
            "These runs are **a few steps long**: they show that everything works, and are evidence of nothing."
        )
    banner = "::: {.banner}\n" + " ".join(banners) + "\n:::\n\n" if banners else ""
    head, marker, rest = text.partition("<!-- banner -->")
    return head + banner + rest if marker else banner + text


VERDICT_TABLES = {
    "V1": "exact facts, and own layers against TensorFlow's",
    "V2": "claims of the literature",
    "V3": "the methods, measured",
    "V4": "mechanisms of drift",
}


def verdict_summary(verdicts):
    """A table of how many rows of each table of verdicts had which verdict."""
    rows = []
    for name, title in VERDICT_TABLES.items():
        found = [row.get("verdict", "measured") for row in verdicts if row["table"] == name]
        if found:
            counts = collections.Counter(found)
            rows.append(
                [title, str(len(found)), ", ".join(f"{n} {verdict}" for verdict, n in counts.most_common())]
            )
    if not rows:
        return ""
    return _pipe_table(
        {
            "columns": ["table of verdicts", "rows", "verdicts"],
            "rows": rows,
            "caption": "**All verdicts of this report, counted.** Each was computed and could have been otherwise.",
            "label": "tbl-verdict-summary",
        }
    )


def cells(path, notebook, media):
    """A notebook's cells as pandoc's Markdown."""
    for cell in notebook.cells:
        if HIDDEN_TAGS & set(cell.metadata.get("tags", [])):
            continue
        if cell.cell_type == "markdown":
            yield re.sub(r"^# (.*)$", rf"# \1 {{#sec-{path.stem}}}", cell.source, flags=re.M)
            continue
        outputs = [shown for output in cell.outputs if (shown := _output(output, media))]
        only_source = outputs and all(o.startswith("```") for o in outputs)
        if cell.source.strip() and not only_source:
            yield f"::: {{.code-cell}}\n{_fence(cell.source, 'python')}\n:::"
        yield from outputs


def _output(output, media):
    record = output.get("metadata", {}).get("study", {})
    kind = record.get("kind")
    if kind == "figure":
        name = f"{record['label']}.svg"
        (media / name).write_text("".join(output.data["image/svg+xml"]))
        alt = record["alt"].replace("**", "").replace('"', "'")
        return f'![{record["caption"]}]({media / name}){{#{record["label"]} alt="{alt}"}}'
    if kind == "table":
        return _pipe_table(record)
    if kind == "state":
        return record["text"]
    if kind == "source":
        return _fence(record["code"], "python")
    if output.output_type == "stream" and output.name == "stdout":
        return _fence("".join(output.text).rstrip(), "text")
    return None


def _fence(code, language):
    return f"````` {language}\n{code}\n`````"


def _pipe_table(record):
    rows = [[str(cell).replace("|", "\\|") for cell in row] for row in [record["columns"], *record["rows"]]]
    columns = list(zip(*rows, strict=True))
    numeric = [all(re.fullmatch(r"[+\-−]?[\d.,e+\-]*", cell) for cell in column[1:]) for column in columns]
    widths = [max(6, min(44, max(map(len, column)))) for column in columns]
    rule = ["-" * (width - 1) + (":" if right else "-") for width, right in zip(widths, numeric, strict=True)]
    lines = ["| " + " | ".join(row) + " |" for row in [rows[0], rule, *rows[1:]]]
    return "\n".join(lines) + f"\n\n: {record['caption']} {{#{record['label']}}}"


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
    text = "All of this report was computed by one command from the commit below; the numbers are in `results.json`."
    return f"# Where this comes from {{#sec-provenance}}\n\n{text}\n\n{table}"


def number(document, stems):
    """Number sections, figures, tables and equations, and turn references to them into links."""
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
        elif isinstance(element, pf.Math) and (found := re.search(r"\\label\{([\w-]+)\}", element.text)):
            element.text = element.text.replace(found[0], "").strip()
            place = count("Equation", found[1])
            return pf.Span(
                element, identifier=found[1], classes=["equation"], attributes={"number": str(place)}
            )
        return None

    def second(element, doc):
        if not isinstance(element, pf.Link):
            return None
        notebook = re.fullmatch(r"([\w-]+)\.ipynb", element.url)
        target = f"sec-{notebook[1]}" if notebook else element.url.removeprefix("#")
        if not notebook and not re.match(r"#(fig|tbl|eq|sec)-", element.url):
            return None
        if target not in labels:
            if notebook and notebook[1] not in stems and len(stems) < 4:
                return list(element.content)  # a section that this build leaves out
            raise BuildError(f"A reference to something that is not there: {element.url}")
        kind, place = labels[target]
        told = f"{kind}\u00a0({place})" if kind == "Equation" else f"{kind}\u00a0{place}"
        element.url, element.content = f"#{target}", [pf.Str(told)]
        return None

    document.walk(first)
    document.walk(second)


# --- write ----------------------------------------------------------------------------------------------------------


def write_html(document, folder):
    """One file that asks nothing of any network."""

    def adapt(element, doc):
        if isinstance(element, pf.Div) and "code-cell" in element.classes:
            fold = '<details class="code"><summary>Code</summary>'
            return [
                pf.RawBlock(fold, format="html"),
                *element.content,
                pf.RawBlock("</details>", format="html"),
            ]
        if isinstance(element, pf.Span) and "equation" in element.classes:
            label = pf.Span(pf.Str(f"({element.attributes.pop('number')})"), classes=["equation-number"])
            element.content = [*element.content, label]
        return None

    _pandoc(
        _json(document, adapt),
        *[
            "--to=html5",
            "--mathml",
            "--embed-resources",
            "--wrap=none",
            "--toc",
            "--toc-depth=2",
            "--section-divs",
        ],
        *[f"--template={HERE / 'template.html'}", f"--css={HERE / 'style.css'}", f"--resource-path={HERE}"],
        f"--output={folder / 'report.html'}",
    )


def write_pdf(document, folder):
    """A tagged PDF (PDF/UA-1) by Typst. pandoc would drop alternative texts, so images and formulas are raw."""
    formulas = _typst_formulas(document)

    def adapt(element, doc):
        if isinstance(element, pf.Div) and "code-cell" in element.classes:
            return []
        if isinstance(element, pf.Image):
            alt = json.dumps(element.attributes.get("alt") or pf.stringify(element), ensure_ascii=False)
            name = pathlib.Path(element.url).name
            return pf.RawInline(f'#image("media/{name}", alt: {alt}, width: 82%)', format="typst")
        if isinstance(element, pf.Math):
            block = "true" if element.format == "DisplayMath" else "false"
            place = getattr(element.parent, "attributes", {}).get("number")
            numbered = f', numbering: _ => "({place})"' if place else ""
            alt = json.dumps(element.text, ensure_ascii=False)
            code = f"#math.equation(block: {block}, alt: {alt}{numbered}, {formulas[element.text, element.format]})"
            return pf.RawInline(code, format="typst")
        return None

    source = folder / "report.typ"
    source.write_text(_pandoc(_json(document, adapt), "--to=typst", f"--template={HERE / 'template.typ'}"))
    try:
        typst.compile(
            str(source),
            output=str(folder / "report.pdf"),
            root=str(folder),
            ignore_system_fonts=True,
            pdf_standards=["ua-1"],
        )
    except typst.TypstError as error:
        raise BuildError(f"Typst: {error}") from error


def _typst_formulas(document):
    """Every formula of the document in Typst's notation."""
    found = []
    document.walk(lambda element, doc: found.append(element) if isinstance(element, pf.Math) else None)
    keys = list(dict.fromkeys((formula.text, formula.format) for formula in found))
    blocks = [pf.Para(pf.Math(text, format=kind)) for text, kind in keys]
    converted = _pandoc(
        _json(pf.Doc(*blocks, api_version=document.api_version)), "--to=typst", "--wrap=none", bare=True
    )
    return dict(zip(keys, re.split(r"\n\n+", converted.strip()), strict=True))


def _json(document, adapt=None):
    """pandoc's JSON of a copy of the document, adapted to one output."""
    copy = pf.load(_stream(document))
    if adapt:
        copy = copy.walk(adapt)
    return _stream(copy).getvalue()


def _stream(document):
    import io

    stream = io.StringIO()
    pf.dump(document, stream)
    stream.seek(0)
    return stream


def _pandoc(text, *arguments, bare=False):
    """pandoc on its JSON; its warnings are errors."""
    common = ["--standalone", "--number-sections", "--citeproc", f"--bibliography={HERE / 'references.bib'}"]
    common += ["--metadata=link-citations:true"]
    command = [PANDOC, "--from=json", *([] if bare else common), *arguments]
    answer = subprocess.run(command, input=text, capture_output=True, text=True)
    if answer.returncode or "WARNING" in answer.stderr:
        raise BuildError(f"pandoc: {answer.stderr.strip()}")
    return answer.stdout


def replace(new, old):
    """Put a new file or folder in the place of an old one."""
    if old.is_dir():
        shutil.rmtree(old)
    os.replace(new, old)


if __name__ == "__main__":
    main()
