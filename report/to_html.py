"""The report as a page: one HTML file that asks nothing of any network."""

import base64
import csv
import io
import pathlib
import re

import panflute as pf

from compose import (
    HERE,
    INTERVAL,
    NOTHING,
    NUMBER,
    OF_JSON,
    SUPERSCRIPT,
    as_json,
    is_long,
    is_numeric,
    pandoc,
    points,
    texts_of,
)

FROM_SUPERSCRIPT = {raised: plain for plain, raised in SUPERSCRIPT.items()}


def write_html(document, folder):
    """Write report.html into a folder that holds the figures in `media`."""

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
            width, height = points(drawn)
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
    pandoc(as_json(document, adapt), *OF_JSON, *form, *files, f"--output={folder / 'report.html'}")


PHONE = 380  # points of a figure that a phone shows whole
TALL = 330  # points of a figure that is more than half a page of print


def _folded(summary, blocks, attributes=""):
    start = f"<details {attributes}><summary>{summary}</summary>"
    return [pf.RawBlock(start, format="html"), *blocks, pf.RawBlock("</details>", format="html")]


def _told(element):
    """The number of a figure or a table, in words."""
    return pf.stringify(element.caption.content[0].content[0]).rstrip(".")


def _download(element, text):
    """A link that holds the data of a figure or a table."""
    address = "data:text/csv;charset=utf-8;base64," + base64.b64encode(text.encode()).decode()
    name = f'class="data" download="{element.identifier}.csv" aria-label="Data (CSV) of {_told(element)}"'
    return [pf.Space(), pf.RawInline(f'<a {name} href="{address}">Data (CSV)</a>', format="html")]


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
        if any(found) and all(map(is_numeric, cells)):
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
    texts = texts_of(table)
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
    if is_long(texts):
        content = _folded(f"All {len(texts) - 1} rows", content)
    head = [pf.RawBlock(start, format="html"), pf.Plain(*told), pf.RawBlock("</figcaption>", format="html")]
    return [*head, *content, pf.RawBlock("</figure>", format="html")]


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
