"""One document of all notebooks, its sections, figures, tables and equations numbered and linked."""

import collections
import io
import itertools
import pathlib
import re
import subprocess

import nbformat
import panflute as pf
import pypandoc

HERE = pathlib.Path(__file__).resolve().parent
PANDOC = pypandoc.get_pandoc_path()
pf.elements.RAW_FORMATS.add("typst")  # younger than panflute's list
HIDDEN_TAGS = {"parameters", "injected-parameters", "remove-cell"}


class BuildError(Exception):
    """What went wrong, and the exit code that says so."""

    def __init__(self, message, code=1):
        super().__init__(message)
        self.code = code


def compose(notebooks, executed, results, folder, left_out):
    """One document of all: a panflute Doc whose figures, tables, equations and sections are numbered and linked."""
    (folder / "media").mkdir()
    parts = []
    for path, notebook in zip(notebooks, executed, strict=True):
        parts += cells(path, notebook, folder / "media")
    parts.insert(0, front_matter(results, "\n".join(parts)))
    parts.append(provenance_section(results["provenance"]))
    parts.append("::: {#appendix}\n:::\n\n# References {-}\n\n::: {#refs}\n:::\n")
    read = pandoc("\n\n".join(parts), "--to=json", "--standalone", "--columns=9999")
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
    start = "# All verdicts {.unnumbered}\n\nEach follows from a rule that could have decided otherwise.\n\n"
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
    numeric = [all(map(is_numeric, column)) for column in zip(*rows, strict=True)]
    rule = ["---:" if right else "---" for right in numeric]
    heads = [str(name).replace("|", "\\|") for name in record["columns"]]
    lines = ["| " + " | ".join(row) + " |" for row in [heads, rule, *rows]]
    return "\n".join(lines) + f"\n\n: {record['caption']} {{#{record['label']}}}"


NOTHING = "—"
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
NUMBER = r"([+−-]?(?:[\d,]*\.?\d+(?:e[+-]\d+|\s×\s10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?|inf))"
INTERVAL = rf"{NUMBER}\s\({NUMBER}\sto\s{NUMBER}\)"


def is_numeric(cell):
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


def has_tag(cell, tags):
    """Whether a cell has one of these tags."""
    return bool(tags & set(cell.metadata.get("tags", [])))


def records(executed):
    """All that the displays of the notebooks carry, in order."""
    for notebook in executed:
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                if record := output.get("metadata", {}).get("study"):
                    yield record


# --- for both outputs -----------------------------------------------------------------------------------------------

OF_JSON = ["--from=json", "--standalone", "--wrap=none", "--number-sections", "--citeproc"]
OF_JSON += [f"--bibliography={HERE / 'references.bib'}", "--metadata=link-citations:true"]
LONG = 8  # rows of exact verdicts from which a table is folded, or stands in the PDF's appendix


def texts_of(table):
    """What stands in a table, row by row."""
    rows = [*table.head.content, *(row for body in table.content for row in body.content)]
    return [[pf.stringify(cell).strip() for cell in row.content] for row in rows]


def is_long(texts):
    """Whether a table is one of many exact verdicts, of which the caption tells enough."""
    return "tolerance" in texts[0] and len(texts) > LONG


def points(drawn):
    """How wide and how high an SVG is."""
    start = re.search(r"<svg[^>]*>", drawn.read_text())[0]
    return [float(re.search(rf' {side}="([\d.]+)pt"', start)[1]) for side in ("width", "height")]


def as_json(document, adapt=None):
    """pandoc's JSON of a document, or of a copy of it that is adapted to one output."""
    stream = io.StringIO()
    pf.dump(document, stream)
    if not adapt:
        return stream.getvalue()
    stream.seek(0)
    return as_json(pf.load(stream).walk(adapt))


def pandoc(text, *arguments):
    """pandoc; its warnings are errors."""
    command = [PANDOC, "--fail-if-warnings", *arguments]
    answer = subprocess.run(command, input=text, capture_output=True, text=True)
    if answer.returncode:
        raise BuildError(f"pandoc: {answer.stderr.strip()}")
    return answer.stdout
