"""The report as a paper: a tagged PDF, by Typst."""

import json
import pathlib
import re
import textwrap

import panflute as pf
import typst

from compose import HERE, OF_JSON, BuildError, as_json, is_long, pandoc, points, texts_of


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
            texts = texts_of(element)
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
            if not is_long(texts):
                return shown
            appendix.extend(shown)
            rows = pf.Link(pf.Str("Its rows"), url=f"#{element.identifier}")
            told = [*element.caption.content[0].content, pf.Space(), rows]
            return pf.Para(*told, pf.Str(" are in the appendix."))
        if isinstance(element, pf.Image):
            alt = json.dumps(element.attributes.get("alt") or pf.stringify(element), ensure_ascii=False)
            drawn = pathlib.Path(element.url)
            width, height = points(drawn)
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
    source.write_text(pandoc(as_json(document, adapt), *OF_JSON, *form))
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
    text = as_json(pf.Doc(*blocks, api_version=document.api_version))
    converted = pandoc(text, "--from=json", "--to=typst", "--wrap=none")
    converted = re.sub(r"\\\| (.+?) \\\|", r"lr(|\1|)", converted)  # a bar alone would keep its distance
    return dict(zip(keys, re.split(r"\n\n+", converted.strip()), strict=True)) if keys else {}
