"""The report: built whole from notebooks, or not at all and with the reason named."""

import base64
import csv
import getpass
import io
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import panflute as pf
import pypdf
import pytest

import build
import compose
import to_html
import to_pdf
from study import data, present, profiles

ROOT = pathlib.Path(__file__).resolve().parent.parent

TEXT = r"""# A toy section

A sentence [@ioffe2015] with $|v|$, 95 % of it (0.5 to 1.5 × 10⁻¹⁴), `1 % 2`, and
[Equation](#eq-toy), [Figure](#fig-toy), [Table](#tbl-toy).

$$ y = \gamma \hat x + \beta . \label{eq-toy} $$
"""
WORDS = "# A toy section\n\nWords."
SHOW = """
import matplotlib.pyplot as plt
import pandas as pd
from study import present
present.use_style()
figure, axes = plt.subplots()
axes.plot([1, 2, 3], LEVEL * pd.Series([1, 2, 3]))
present.number("toy.level", LEVEL, interval=(0, 1), unit="fraction", seeds=3)
present.figure(figure, "fig-toy", "The line rises.", "How to read it.")
present.table(pd.DataFrame({"a|b": ["x", "y"], "n": [1, 2]}), "tbl-toy", "Two rows.")
numbers = {
    "error": ["3.1e-06", "nan"],
    "accuracy": ["0.859 (0.855 to 0.864)", "−1,100 (−1,200 to 2)"],
    "source": ["@ba2016 [sec. 6]", "x^{3/2} of [@xu2019]"],
}
present.table(pd.DataFrame(numbers), "tbl-numbers", "Numbers.")
present.verdict("V1", "toy", "nothing is wrong", float("inf"), 1.0, False)
present.verdicts("V1", "tbl-toy-verdicts", "Toy verdicts.")
present.state(f"The level is {LEVEL}.", key="bn.answer")
present.source(present.number)
print("printed")
"""


def notebook(folder, *cells, name="01_toy"):
    """A notebook of its parameters and the given cells: Markdown where one starts with '# '."""
    folder.mkdir(exist_ok=True)
    made = [nbformat.v4.new_code_cell("LEVEL = 0.5\nNAME = 'toy'", metadata={"tags": ["parameters"]})]
    for cell in cells:
        kind = nbformat.v4.new_markdown_cell if cell.startswith("# ") else nbformat.v4.new_code_cell
        made.append(kind(cell))
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(
        nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": spec}), folder / f"{name}.ipynb"
    )
    return folder


def make(tmp_path, *cells, arguments=()):
    folder = tmp_path / "notebooks"
    if cells:
        notebook(folder, *cells)
    build.main(
        ["--profile", "smoke", "--notebooks", str(folder), "--output", str(tmp_path / "out"), *arguments]
    )
    return tmp_path / "out"


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make(tmp_path_factory.mktemp("toy"), TEXT, SHOW, arguments=["--set", "LEVEL=0.25"])


def network_requests(html):
    """Every address that a browser would fetch when it opens the page."""
    tags = "img|script|link|iframe|source|video|audio|object|embed"
    fetching = rf'<(?:{tags})\b[^>]*?(?:src|href|data)\s*=\s*["\']?([^"\'\s>]+)'
    found = (
        re.findall(fetching, html)
        + re.findall(r"url\(\s*[\"']?([^)\"']+)", html)
        + re.findall(r"@import\s+(\S+)", html)
    )
    return [address for address in found if not address.startswith(("data:", "#"))]


# --- the toy report ------------------------------------------------------------------------------------------------


def test_the_page_asks_nothing_of_the_network(toy):
    assert network_requests((toy / "report.html").read_text()) == []
    assert (
        network_requests('<img src="https://example.org/a.png"><style>a{background:url(b.png)}</style>') != []
    )


def test_the_page_has_numbers_links_captions_and_alternative_texts(toy):
    html = (toy / "report.html").read_text()
    for text in (
        "Figure 1.",
        "The line rises.",
        "Table 2.",
        "Two rows.",
        "<math",
        "<td",
        "Ioffe",
        "The level is 0.25.",
    ):
        assert text in html
    for target in ("eq-toy", "fig-toy", "tbl-toy"):
        assert f'href="#{target}"' in html
        assert html.count(f'id="{target}"') == 1
    assert 'alt="Chart. 0.25 at 1\u00a0to\u00a00.75 at 3."' in html  # what the caption does not say
    assert "a|b" in html
    assert "sample of the data" in html


def test_the_pdf_has_pages_text_and_figures(toy):
    pdf = pypdf.PdfReader(toy / "report.pdf")
    text = "".join(page.extract_text() for page in pdf.pages)
    for words in ("Normalization layers", "The line rises", "Two rows", "References", "def number"):
        assert words in text
    assert pdf.trailer["/Root"]["/MarkInfo"]["/Marked"]
    assert str(pdf.trailer["/Root"]["/Lang"]) == "en"


def words_below(page, height):
    """What is written in the lower margin of a page."""
    found = []

    def visit(text, matrix, of_text, *_):
        if text.strip() and of_text[5] * matrix[3] + matrix[5] < height:
            found.append(text.strip())

    page.extract_text(visitor_text=visit)
    return found


def fonts_of(page):
    return [font.get_object() for font in page["/Resources"]["/Font"].values()]


def test_the_pdf_is_for_all_readers_and_brings_its_fonts(toy):
    pdf = pypdf.PdfReader(toy / "report.pdf")
    assert pdf.metadata.title == "Normalization layers, from scratch"
    assert pdf.metadata.author == "The normlib authors"
    assert b"<pdfuaid:part>1</pdfuaid:part>" in pdf.trailer["/Root"]["/Metadata"].get_data()
    assert "LibertinusMath" in str([font["/BaseFont"] for page in pdf.pages for font in fonts_of(page)])
    fonts = {str(font): font for page in pdf.pages for font in page["/Resources"]["/Font"].values()}
    for font in fonts.values():
        described = font["/DescendantFonts"][0]["/FontDescriptor"]
        assert {"/FontFile2", "/FontFile3"} & set(described)


def test_a_section_begins_with_its_answer(toy):
    for text in (
        (toy / "report.html").read_text(),
        "".join(page.extract_text() for page in pypdf.PdfReader(toy / "report.pdf").pages),
    ):
        assert -1 < text.find("In short:") < text.find("A sentence")


def offered(html):
    """The data behind each figure and table of a page."""
    links = re.findall(
        r'download="([\w-]+)\.csv"[^>]*href="data:text/csv;charset=utf-8;base64,([^"]+)"', html
    )
    return {label: base64.b64decode(data).decode() for label, data in links}


def test_the_page_holds_the_data_of_its_figures_and_tables(toy):
    data = offered((toy / "report.html").read_text())
    assert data["fig-toy"] == "series,x,y\n,1,0.25\n,2,0.5\n,3,0.75\n"
    assert data["tbl-toy"] == "a|b,n\nx,1\ny,2\n"


def test_numbers_are_printed_in_one_form_and_never_broken(toy):
    html = (toy / "report.html").read_text()
    table = re.search(r'<figure class="table" id="tbl-numbers">.*?</figure>', html, flags=re.S)[0]
    cells = re.findall(r'<td( style="text-align: right;")?>(.*?)</td>', table, flags=re.S)
    assert [(bool(right), text) for right, text in cells if "<" not in text] == [
        (True, "3.1\u00a0×\u00a010⁻⁶"),
        (True, "0.859\u00a0(0.855\u00a0to\u00a00.864)"),
        (True, "—"),
        (True, "−1,100\u00a0(−1,200\u00a0to\u00a02)"),
    ]
    assert "{3/2}" not in re.sub("<annotation.*?</annotation>", "", table)
    assert "95\u00a0% of it (0.5\u00a0to\u00a01.5\u00a0×\u00a010⁻¹⁴)" in html
    assert "1 % 2" in html  # code stays as it is


def test_the_data_of_a_table_are_plain_numbers(toy):
    rows = list(csv.reader(io.StringIO(offered((toy / "report.html").read_text())["tbl-numbers"])))
    assert [row[:-1] for row in rows] == [
        ["error", "accuracy", "accuracy, low", "accuracy, high"],
        ["3.1e-6", "0.859", "0.855", "0.864"],
        ["", "-1100", "-1200", "2"],
    ]


def test_cells_of_a_table_cite(toy):
    html = (toy / "report.html").read_text()
    pdf = "".join(page.extract_text() for page in pypdf.PdfReader(toy / "report.pdf").pages)
    assert re.search(r'<td>[^/]*<a href="#ref-ba2016"', html)
    for text in (html, pdf):
        assert "Understanding and Improving Layer Normalization" in " ".join(text.split())
    assert "2016, sec. 6" in re.sub(r"\s+", " ", pdf)


def test_what_is_cited_is_in_the_bibliography_and_links_to_its_paper():
    entries = re.findall(
        r"^@\w+\{(\w+),\n(.*?)^\}$", (ROOT / "report/references.bib").read_text(), re.M | re.S
    )
    sources = [*(ROOT / "notebooks").rglob("*.ipynb"), *(ROOT / "notebooks").rglob("*.py")]
    text = "".join(path.read_text() for path in (*sources, ROOT / "report/front_matter.md"))
    assert sorted(key for key, _ in entries) == sorted(set(re.findall(r"@([a-z]+(?:19|20)\d\d)\b", text)))
    for _, entry in entries:
        assert re.search(r"(url = \{https://arxiv\.org/abs/\d{4}\.\d{5}|doi = \{10\.)", entry), entry


@pytest.fixture
def pages_with(tmp_path):
    """A function that typesets sections, each with a figure of the height given, and returns the text of each page."""
    (tmp_path / "media").mkdir()

    def pages(heights):
        text = "---\ntitle: T\nlang: en\nauthor: A\n---\n\n# One"
        for part, height in enumerate(heights):
            drawn = tmp_path / f"media/{part}.svg"
            size = f'width="518pt" height="{height}pt"'
            drawn.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" {size}></svg>')
            figure = f"![Caption{part}.]({drawn}){{#fig-{part} alt='a'}}"
            text += f"\n\n## Part{part}\n\nWords. Words.\n\n{figure}\n\n" + 60 * "Words again. "
        text += "\n\n# Two\n\nWords.\n\n| a |\n|---|\n| without a label |\n\n: A table."
        document = pf.convert_text(text, standalone=True, pandoc_path=compose.PANDOC)
        compose.number(document, [])
        to_pdf.write_pdf(document, tmp_path)
        return [page.extract_text() for page in pypdf.PdfReader(tmp_path / "report.pdf").pages]

    return pages


def test_figures_of_the_pdf_follow_their_sentence_and_leave_no_gap(pages_with, monkeypatch):
    found = pages_with(9 * [330])
    for part in range(9):
        (named,) = (n for n, page in enumerate(found) if f"Part{part}" in page)
        (drawn,) = (n for n, page in enumerate(found) if f"Caption{part}" in page)
        assert named <= drawn <= named + 1
    assert all("One" in page for page in found[2:-1])  # the running head
    monkeypatch.setattr(to_pdf, "_places", lambda *_: {})
    assert len(found) < len(pages_with(9 * [330]))


def test_a_small_figure_of_the_pdf_does_not_overtake_a_large_one(pages_with):
    for heights in (4 * [330, 90], 3 * [420, 60, 200], [200, 200, 500, 60, 60, 60, 300, 90]):
        captions = re.findall(r"Caption(\d)", " ".join(pages_with(heights)))
        assert captions == sorted(captions)
        assert len(captions) == len(heights)


@pytest.mark.parametrize("rows", [compose.LONG - 1, compose.LONG])
def test_many_exact_verdicts_are_folded_in_html_and_in_an_appendix_of_the_pdf(rows, tmp_path):
    table = "\n".join(f"| row{n} | 1 |" for n in range(rows))
    text = (
        "---\ntitle: T\nlang: en\nauthor: A\n---\n\n# One\n\nSee [](#tbl-a).\n\n| claim | tolerance |\n|---|--:|\n"
        f"{table}\n\n: All hold. {{#tbl-a}}\n\nLast words.\n\n::: {{#appendix}}\n:::\n\n# References {{-}}"
    )
    document = pf.convert_text(text, standalone=True, pandoc_path=compose.PANDOC)
    compose.number(document, [])
    to_html.write_html(document, tmp_path)
    to_pdf.write_pdf(document, tmp_path)
    pdf = "".join(page.extract_text() for page in pypdf.PdfReader(tmp_path / "report.pdf").pages)
    pdf, html = pdf[pdf.index("See Table") :], (tmp_path / "report.html").read_text()
    long = rows == compose.LONG
    assert (f"All {rows} rows" in html) == ("in the appendix" in pdf) == long
    assert pdf.count("All hold.") == 1 + long  # where the section tells of it, and at its rows
    assert (pdf.index("Last words.") < pdf.index("row0")) == long
    assert "Appendix" not in html


def test_columns_of_sentences_share_the_line_by_their_text_and_short_ones_stay_whole():
    rows = [["claim", "source", "measured", "verdict"]]
    rows += [["BN trains faster", "Authors (2015, section 2)", 9 * "a longer sentence ", "not settled"]]
    texts = "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], 4 * ["---"], *rows[1:]])
    (table,) = pf.convert_text(texts, pandoc_path=compose.PANDOC)
    to_pdf._share_line(table, rows)
    claim, source, measured, verdict = (share * to_pdf.LINE for _, share in table.colspec)
    assert sum(share for _, share in table.colspec) == pytest.approx(1)
    assert measured > 2 * max(claim, source)
    assert verdict >= len("not settled")
    assert min(claim, source) > len("trains")


def test_results_hold_numbers_verdicts_and_provenance(toy):
    results = json.loads((toy / "results.json").read_text())
    assert results["numbers"]["toy.level"] == {
        "value": 0.25,
        "interval": [0.0, 1.0],
        "unit": "fraction",
        "seeds": 3,
    }
    (verdict,) = results["verdicts"]
    assert (verdict["verdict"], verdict["measured"], verdict["id"]) == ("fails", "inf", "toy")
    assert results["sentences"]["bn.answer"] == "The level is 0.25."
    provenance = results["provenance"]
    assert provenance["data"]["sample"] is True
    assert {"date", "profile", "commit", "machine", "versions", "seconds", "threads of a run"} <= set(
        provenance
    )


def test_a_second_build_is_the_same_to_the_byte_but_for_its_provenance(toy, tmp_path):
    again = make(tmp_path, TEXT, SHOW, arguments=["--set", "LEVEL=0.25"])

    def without_provenance(folder):
        html = (folder / "report.html").read_text()
        return re.sub(r'<section id="sec-provenance".*?</section>', "", html, flags=re.S)

    assert without_provenance(again) == without_provenance(toy)


def test_sentences_that_differ_in_one_word_are_said_once():
    same, other = (f"Nothing but rounding separates {m} from it." for m in ("BN", "LN"))
    assert compose.together([same, other, same]) == "Nothing but rounding separates BN, LN and BN from it."
    assert (
        compose.together([same, "More than rounding separates LN from it."])
        == f"{same} More than rounding separates LN from it."
    )
    assert compose.together([same]) == same
    assert compose.together([same, same]) == same


# --- figures -------------------------------------------------------------------------------------------------------


def test_what_a_figure_draws_is_read_from_it():
    figure, (points, bars) = plt.subplots(1, 2)
    points.plot([-0.1, -0.1], [1.0, 3.0], "o")
    points.errorbar(0.1, 2.0, [[0.5], [0.75]], capsize=4)
    points.axhline(1.5)
    points.set(xticks=[0], xticklabels=["BN"], ylabel="accuracy")
    bars.barh([0, 1], [0.1, 0.2], label="float32")
    bars.set(yticks=[0, 1], yticklabels=["one", "two"], title="drift")
    assert present.drawn(figure).fillna("").values.tolist() == [
        ["accuracy", "", "BN", 1.0],
        ["accuracy", "", "BN", 3.0],
        ["accuracy", "mean", "BN", 2.0],
        ["accuracy", "interval, low", "BN", 1.5],
        ["accuracy", "interval, high", "BN", 2.75],
        ["drift", "float32", 0.1, "one"],
        ["drift", "float32", 0.2, "two"],
    ]
    plt.close(figure)


def test_thin_lines_are_runs_of_the_line_whose_label_they_bear():
    figure, axes = plt.subplots()
    look = present.style("BN")
    axes.plot([0, 1], [[1.0, 2.0], [3.0, 4.0]], label="_BN", **look | {"lw": 0.8, "alpha": 0.3})
    axes.plot([0, 1], [1.5, 3.5], label="BN", **look)
    assert present.drawn(figure).series.tolist() == 2 * ["BN, run 1"] + 2 * ["BN, run 2"] + 2 * ["BN"]
    plt.close(figure)


def test_of_a_long_line_a_few_hundred_points_are_given():
    figure, axes = plt.subplots()
    axes.plot(np.arange(100_000))
    drawn = present.drawn(figure)
    assert len(drawn) == 300
    assert drawn.iloc[[0, -1]]["y"].tolist() == [0, 99_999]
    plt.close(figure)


# --- what can go wrong ---------------------------------------------------------------------------------------------


def fails(capsys, code, tmp_path, *cells, arguments=()):
    with pytest.raises(SystemExit) as stopped:
        make(tmp_path, *cells, arguments=arguments)
    assert stopped.value.code == code
    return capsys.readouterr().err


def test_a_failing_cell_is_named_and_the_last_report_stays(capsys, tmp_path):
    good = make(tmp_path, TEXT, SHOW)
    before = {f.name: f.read_bytes() for f in good.iterdir() if f.is_file()}
    told = fails(capsys, 1, tmp_path, TEXT, "1 / 0")
    assert "01_toy.ipynb, cell 3: ZeroDivisionError: division by zero" in re.sub(r"\x1b\S*?m", "", told)
    assert {f.name: f.read_bytes() for f in good.iterdir() if f.is_file()} == before
    assert not list(tmp_path.rglob(".building-*"))


def test_a_report_is_put_in_place_whole_though_the_build_before_was_killed_amid(tmp_path):
    def built(name, text):
        (folder := tmp_path / name).mkdir()
        (folder / "notebooks").mkdir()
        for part in build.PARTS[1:]:
            (folder / part).write_text(text)
        (folder / "notebooks" / text).write_text(text)
        return folder

    out = tmp_path / "out"
    out.mkdir()
    build.install(built("a", "first"), out)
    whole = built("b", "second")  # a build that was killed when two of its four parts were in place
    os.replace(whole, out / ".whole")
    for part in build.PARTS[1:3]:
        os.replace(out / ".whole" / part, out / part)
    with build.workplace(out):
        pass
    assert {(out / part).read_text() for part in build.PARTS[1:]} == {"second"}
    assert [path.name for path in (out / "notebooks").iterdir()] == ["second"]
    with ThreadPoolExecutor(4) as pool:  # and many at once
        list(pool.map(lambda n: build.install(built(f"c{n}", f"c{n}"), out), range(40)))
    [last] = {(out / part).read_text() for part in build.PARTS[1:]}
    assert [path.name for path in (out / "notebooks").iterdir()] == [last]
    assert not (out / ".whole").exists()


def test_no_build_removes_the_folder_of_one_that_just_begins(tmp_path, monkeypatch):
    def another():
        with build.workplace(tmp_path):
            pass

    class Locking(build.FileLock):
        def acquire(self, *arguments, **options):
            if ".building-" in self.lock_file and threading.current_thread() is threading.main_thread():
                thread.start()
                thread.join(0.5)
                assert pathlib.Path(self.lock_file).parent.exists()
            return super().acquire(*arguments, **options)

    thread = threading.Thread(target=another)
    monkeypatch.setattr(build, "FileLock", Locking)
    with build.workplace(tmp_path) as folder:
        thread.join()
        assert list(tmp_path.glob(".building-*")) == [folder]


@pytest.mark.parametrize("where", ["full", "read-only"])
def test_a_disk_that_is_full_or_may_not_be_written(where, tmp_path, capsys):
    (out := tmp_path / "out").mkdir()
    size = "256k" if where == "full" else "64m"
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(out)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system could not be mounted")
    try:
        (out / "report.html").write_text("the last good one")
        if where == "read-only":
            subprocess.run(["mount", "-o", "remount,ro", str(out)], check=True)
        told = fails(capsys, 1, tmp_path, TEXT, SHOW)
        assert "Not built:" in told
        assert "Traceback" not in told
        assert (out / "report.html").read_text() == "the last good one"
    finally:
        subprocess.run(["umount", str(out)], check=True)


TRAIN = """
from study import running, training
running.run_all([training.Run(sample=True, steps=2, trace=True)])
"""


@pytest.mark.slow
def test_a_disk_that_is_full_when_a_run_is_kept(tmp_path, capsys, monkeypatch):
    good = make(tmp_path, TEXT, SHOW)
    before = {f.name: f.read_bytes() for f in good.iterdir() if f.is_file()}
    (cache := tmp_path / "cache").mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(cache)], capture_output=True
    ).returncode:
        pytest.skip("a small file system could not be mounted")
    try:
        monkeypatch.setenv("NORMLIB_CACHE", str(cache))
        told = fails(capsys, 1, tmp_path, WORDS, TRAIN)
        assert "01_toy.ipynb, cell 3" in told and "No space left on device" in told
        assert not list(cache.glob("*.run"))
    finally:
        subprocess.run(["umount", str(cache)], check=True)
    assert {f.name: f.read_bytes() for f in good.iterdir() if f.is_file()} == before
    make(tmp_path, WORDS, TRAIN)  # with space again, it goes on


def test_a_missing_font_is_named(tmp_path, capsys, monkeypatch):
    other = tmp_path / "report"
    shutil.copytree(build.HERE, other, ignore=shutil.ignore_patterns("build", "published", "math.otf"))
    monkeypatch.setattr(to_html, "HERE", other)
    assert "math.otf" in fails(capsys, 1, tmp_path, WORDS)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_build_that_is_stopped_says_so_shortly_and_leaves_nothing(kind, code, tmp_path):
    folder = notebook(tmp_path / "notebooks", TEXT, "import time; time.sleep(60)")
    arguments = ["--profile", "smoke", "--notebooks", str(folder), "--output", str(tmp_path / "out")]
    command = ["env", "--default-signal=HUP", sys.executable, build.__file__, *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "out").glob(".building-*/notebooks/*.ipynb")):
        time.sleep(0.1)
    time.sleep(4)  # in the cell
    process.send_signal(getattr(signal, kind))
    told = process.communicate(timeout=60)[1]
    assert process.returncode == code, told
    assert "Traceback" not in told
    assert "Finished runs are kept: the next build goes on from there." in told
    assert len(told.splitlines()) < 6, told
    assert not list((tmp_path / "out").glob(".building-*"))


@pytest.mark.slow
def test_a_build_under_nohup_outlives_its_terminal(tmp_path):
    folder, out = notebook(tmp_path / "notebooks", WORDS, "import time; time.sleep(8)"), tmp_path / "out"
    command = ["nohup", sys.executable, build.__file__, "--profile", "smoke", "--notebooks", folder]
    process = subprocess.Popen([*command, "--output", out], stderr=subprocess.PIPE, text=True)
    while not list(out.glob(".building-*/notebooks/*.ipynb")):
        time.sleep(0.1)
    process.send_signal(signal.SIGHUP)
    told = process.communicate(timeout=120)[1]
    assert process.returncode == 0, told


DIVERGE = """
from study import figures, present, running, training
run = training.Run(sample=True, steps=8, evaluate_every=4, batch_size=20, learning_rate=1e20)
histories = {"none": list(running.run_all([run], jobs=1).values())}
present.runs(histories)
present.number("final loss", histories["none"][0].loss[-1])
present.figure(figures.accuracy_curves(histories), "fig-toy", "A message.", "How to read it.")
"""


@pytest.mark.slow
def test_a_run_that_diverges_is_a_result(tmp_path):
    out = make(tmp_path, WORDS + " [Figure](#fig-toy)", DIVERGE)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    results = json.loads((out / "results.json").read_text(), parse_constant=refuse)
    assert [run["diverged"] for run in results["runs"]] == [True]
    assert results["runs"][0]["final_loss"] == results["numbers"]["final loss"]["value"] == "nan"


def test_a_cell_that_leaves_early_is_a_failure(capsys, tmp_path):
    told = fails(capsys, 1, tmp_path, TEXT, "import sys; sys.exit(0)", "print('never')")
    assert "01_toy.ipynb, cell" in told


def test_an_exception_in_a_thread_is_a_failure(capsys, tmp_path):
    start = "import threading, time\nthread = threading.Thread(target=lambda: time.sleep(1) or 1 / 0)\nthread.start()"
    assert "cell 3: an exception in a thread" in fails(capsys, 1, tmp_path, WORDS, f"{start}\nthread.join()")
    assert "after its last cell: an exception in a thread" in fails(capsys, 1, tmp_path, WORDS, start)


def test_a_number_that_no_display_carries_is_a_failure(capsys, tmp_path):
    told = fails(capsys, 1, tmp_path, WORDS, SHOW, 'present.number("late", 1.0)')
    assert "after its last cell: RuntimeError: Expected a figure" in told and "late" in told


def test_a_kernel_that_dies_is_a_failure(capsys, tmp_path):
    dies = "import os, time; time.sleep(1); os._exit(1)"
    assert "01_toy.ipynb, cell 3: Kernel died" in fails(capsys, 1, tmp_path, TEXT, dies, "print('never')")


def test_a_reference_to_nothing_is_named(capsys, tmp_path):
    assert "#fig-missing" in fails(capsys, 1, tmp_path, "# A\n\nSee [Figure](#fig-missing).")


def test_a_label_given_twice_is_named(capsys, tmp_path):
    assert "fig-toy" in fails(capsys, 1, tmp_path, TEXT, SHOW, SHOW.split("present.table")[0])


def test_a_formula_that_cannot_be_converted_is_an_error(capsys, tmp_path):
    assert "pandoc" in fails(capsys, 1, tmp_path, "# A\n\n$$ \\nosuchcommand{x} $$")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("NOPE=1", "among PROFILE, JOBS, LEVEL, NAME. Received: NOPE=1"),
        ("LEVEL=high", "type float. Received: LEVEL='high'"),
        ("LEVEL", "NAME=VALUE"),
    ],
)
def test_a_wrong_setting_is_refused(capsys, tmp_path, setting, message):
    assert message in fails(capsys, 2, tmp_path, TEXT, arguments=["--set", setting])


def test_a_setting_is_parsed_never_evaluated(tmp_path, capsys):
    mark = tmp_path / "evaluated"
    fails(capsys, 2, tmp_path, TEXT, arguments=["--set", f"LEVEL=open({str(mark)!r}, 'w')"])
    assert not mark.exists()


@pytest.mark.parametrize("name", ["PROFILE", "JOBS"])
def test_what_has_an_option_of_its_own_is_not_set(capsys, tmp_path, name):
    assert f"--{name.lower()}" in fails(capsys, 2, tmp_path, TEXT, arguments=["--set", f"{name}=1"])


def test_an_unknown_section_is_refused(capsys, tmp_path):
    assert "among 01. Received: 07" in fails(capsys, 2, tmp_path, TEXT, arguments=["--only", "07"])


def test_damaged_data_have_their_own_exit_code(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("NORMLIB_DATA", "")  # which --data-dir sets: no later test finds it
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"half a fi")
    folder, output = notebook(tmp_path / "notebooks", TEXT), tmp_path / "out"
    options = ["--notebooks", folder, "--output", output, "--data-dir", tmp_path]
    with pytest.raises(SystemExit) as stopped:
        build.main([str(option) for option in options])
    assert stopped.value.code == 3
    assert "Remedies" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.slow
def test_without_a_network(tmp_path):
    """In a network of its own, of no machine but this: not even that is up."""
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        pytest.skip("Not allowed to take the network away: unshare --net")
    out, environment = tmp_path / "out", os.environ | {"KERAS_HOME": str(tmp_path / "keras")}
    environment.pop("NORMLIB_DATA", None)
    command = ["unshare", "--net", sys.executable, build.__file__, "--output", out, "--set", "DATASET=mnist"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 3 and not out.exists()
    assert "let this machine reach https://" in ran.stderr and "Traceback" not in ran.stderr
    look = "from study import data; print(data.load_or_sample().is_sample)"
    ran = subprocess.run(
        [*command[:3], "-W", "always", "-c", look], env=environment, capture_output=True, text=True
    )
    at_hand = data.DEBIAN_FOLDER.exists()
    assert ran.stdout.strip() == str(not at_hand)
    assert at_hand or "The embedded sample takes the place of the data" in ran.stderr


# --- the command line ------------------------------------------------------------------------------------------------


def test_help_says_all(capsys):
    with pytest.raises(SystemExit) as stopped:
        build.parse(["--help"])
    assert stopped.value.code == 0
    told = capsys.readouterr().out
    assert tuple(profiles.PROFILES) == build.PROFILES
    for profile, settings in profiles.PROFILES.items():
        [length] = re.findall(rf"^  {profile} +\d+ minutes, (.*?):", told, flags=re.M)
        expected = "a few steps on a sample" if settings["sample"] else f"{settings['steps']:,} steps and "
        assert length.startswith(expected)
        assert settings["sample"] or length.endswith(f" {settings['seeds']} seeds")
    files = [*ROOT.glob("report/*.py"), *ROOT.glob("notebooks/study/*.py")]
    source = "".join(path.read_text() for path in files)
    for variable in set(re.findall(r'environ[^"]*"(NORMLIB_\w+)"', source)):
        assert re.search(rf"^  {variable} ", told, flags=re.M), variable
    for line in re.findall(r"^  python report/build.py (.*)$", told, flags=re.M):
        assert build.parse(line.split())


def test_exit_codes_are_the_same_in_help_and_readme():
    told = re.findall(r"^  (\d+) +(.*)$", build.__doc__.partition("Exit codes:")[2], flags=re.M)
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert len(told) == 7
    assert ", ".join(f"{code} {meaning}" for code, meaning in told) in readme.replace(";", ",")


def test_the_stages_and_the_time_left_are_told_in_lines(capsys, tmp_path):
    make(tmp_path, WORDS)
    told = capsys.readouterr().err
    assert "[1/2] 01_toy: 00:00 passed\n[2/2] writing: " in told
    assert re.search(r"writing: \d\d:\d\d passed, about \d\d:\d\d left\n", told)
    make(tmp_path, WORDS)  # the last build tells from the start
    assert re.search(r"01_toy: 00:00 passed, about \d\d:\d\d left\n", capsys.readouterr().err)


@pytest.mark.parametrize(("passed", "told"), [(30, "about 02:30 left"), (300, "passed\n"), (1, "passed\n")])
def test_a_build_that_trains_what_another_found_kept_does_not_guess(
    passed, told, tmp_path, capsys, monkeypatch
):
    last = {"provenance": {"profile": "default", "seconds": {"01": 20, "02": 100, "all": 120}}}
    (tmp_path / "results.json").write_text(json.dumps(last))
    clock = [1_000.0]
    monkeypatch.setattr(build, "time", types.SimpleNamespace(time=lambda: clock[0]))
    tell = build.stages(["01", "02"], types.SimpleNamespace(output=tmp_path, profile="default"))
    tell("01")
    assert "about 02:00 left" in capsys.readouterr().err
    clock[0] += passed
    tell("02")
    assert told in capsys.readouterr().err


def test_a_notebook_saved_with_another_kernel_runs_in_this_environment(tmp_path):
    folder = notebook(tmp_path / "notebooks", WORDS, "import study")
    made = nbformat.read(folder / "01_toy.ipynb", as_version=4)
    made.metadata["kernelspec"] |= {"name": "elsewhere"}
    nbformat.write(made, folder / "01_toy.ipynb")
    assert (make(tmp_path) / "report.html").is_file()


def test_a_parameter_that_is_no_literal_is_refused(tmp_path):
    folder = notebook(tmp_path / "notebooks", WORDS)
    made = nbformat.read(folder / "01_toy.ipynb", as_version=4)
    made.cells[0].source = "LEVEL = len('abc')"
    nbformat.write(made, folder / "01_toy.ipynb")
    with pytest.raises(SystemExit) as left:
        make(tmp_path)
    assert left.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--only", "01", "--only", "7"], "Expected --only among 01, 02, .*Received: 01, 7"),
        (["--set", "CANDIDATE=a:B"], "Expected --only with CANDIDATE.*Received: 01, 02, 03"),
    ],
)
def test_what_is_asked_of_no_section_or_of_several_is_refused(arguments, told):
    options = build.parse(arguments)
    with pytest.raises(build.BuildError, match=told) as refused:
        build.read_parameters(options, build.find_notebooks(options))
    assert refused.value.code == 2
    options = build.parse(["--set", "CANDIDATE=a:B", "--only", "02"])
    [given] = build.read_parameters(options, build.find_notebooks(options)).values()
    assert given["CANDIDATE"] == "a:B"


def test_a_folder_without_notebooks_is_refused(capsys, tmp_path):
    (tmp_path / "notebooks").mkdir()
    assert "Expected notebooks NN_*.ipynb in the folder. Received: " in fails(capsys, 2, tmp_path)


def test_the_built_report_is_opened(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(build.webbrowser, "open", opened.append)
    output = make(tmp_path, WORDS, arguments=["--open"])
    assert opened == [(output / "report.html").as_uri()]
    with pytest.raises(SystemExit):
        make(tmp_path, "1 / 0", arguments=["--open"])
    assert len(opened) == 1


def test_what_is_there_to_explore_is_neither_run_nor_shown_nor_counted(capsys, tmp_path):
    folder = notebook(tmp_path / "notebooks", WORDS, "1 / 0", "print('told')", "2 / 0")
    path = folder / "01_toy.ipynb"
    made = nbformat.read(path, as_version=4)
    made.cells[2].metadata["tags"] = ["explore"]
    nbformat.write(made, path)
    assert "cell 5: ZeroDivisionError" in re.sub(r"\x1b\S*?m", "", fails(capsys, 1, tmp_path))
    made.cells[4].metadata["tags"] = ["explore"]
    nbformat.write(made, path)
    page = (make(tmp_path) / "report.html").read_text()
    assert "told" in page and "1 / 0" not in page


def test_notebooks_that_ran_once_are_built_again_and_raw_cells_are_passed_over(tmp_path):
    folder = notebook(tmp_path / "notebooks", WORDS, "print('level', LEVEL)")
    path = folder / "01_toy.ipynb"
    made = nbformat.read(path, as_version=4)
    made.cells.append(nbformat.v4.new_raw_cell("raw words"))
    nbformat.write(made, path)
    ran = make(tmp_path, arguments=["--set", "LEVEL=0.25"]) / "notebooks"
    again = tmp_path / "again"
    build.main(["--profile", "smoke", "--notebooks", str(ran), "--output", str(again)])
    page = (again / "report.html").read_text()
    assert "level 0.5" in page and "raw words" not in page


# --- some sections alone --------------------------------------------------------------------------------------------


def test_a_part_names_what_it_leaves_out_and_leaves_the_whole_alone(capsys, tmp_path):
    folder = tmp_path / "notebooks"
    notebook(
        folder,
        TEXT.replace("toy", "other"),
        SHOW.replace("toy", "other").replace("tbl-n", "tbl-other-n"),
        name="02_other",
    )
    refers = "[Equation](#eq-other), [Figure](#fig-other), [Section](02_other.ipynb), [Table](#tbl-missing)."
    whole = make(tmp_path, TEXT, SHOW)
    before = {f.name: f.read_bytes() for f in whole.iterdir() if f.is_file()}
    told = fails(capsys, 1, tmp_path, f"# A toy\n\n{refers}", arguments=["--only", "01"])
    assert "not there: #tbl-missing" in told
    notebook(folder, f"# A toy\n\n{refers.replace(', [Table](#tbl-missing)', '')}")
    part = make(tmp_path, arguments=["--only", "01"]) / "only-01"
    page = (part / "report.html").read_text()
    for words in (
        "Equation <code>eq-other</code>",
        "Figure <code>fig-other</code>",
        "Section <code>sec-02_other</code>",
    ):
        assert words in page
    assert (part / "report.pdf").exists()
    assert {f.name: f.read_bytes() for f in whole.iterdir() if f.is_file()} == before


@pytest.mark.parametrize("section", ["01", "02", "03", "04", "05"])
def test_every_section_can_stand_alone(report, tmp_path, section):
    options = build.parse(["--only", section])
    [path] = build.find_notebooks(options)
    executed = [nbformat.read(report / "notebooks" / path.name, as_version=4)]
    results = build.collect(executed) | {
        "provenance": json.loads((report / "results.json").read_text())["provenance"]
    }
    assert compose.compose([path], executed, results, tmp_path, build.elsewhere(options, [path]))


# --- the real report, in the smoke profile ---------------------------------------------------------------------------


def test_the_whole_report_is_built(report):
    html = (report / "report.html").read_text()
    assert network_requests(html) == []
    for section in (
        "Batch normalization",
        "Layer normalization",
        "Weight normalization",
        "All methods compared",
        "Exact facts and mechanisms",
    ):
        assert section in html
    assert len(re.findall(r"<figure", html)) >= 12
    assert "not computed in this build" not in html
    assert "evidence of nothing" in html
    pdf = pypdf.PdfReader(report / "report.pdf")
    assert len(pdf.pages) >= 12
    for page in pdf.pages:
        assert words_below(page, 2 / 2.54 * 72) == [str(page.page_number + 1)]
    assert len(list((report / "notebooks").glob("0*.ipynb"))) == 5


def test_every_figure_of_the_report_gives_its_data_and_tells_it(report):
    html = (report / "report.html").read_text()
    assert len(html) < 8e6
    data = offered(html)
    figures = re.findall(r'<figure id="(fig-[\w-]+)">.*?alt="([^"]*)"', html, flags=re.S)
    assert len(figures) >= 12
    for label, alt in figures:
        assert data[label].count("\n") > 2, label
        assert re.match(r"(Line chart|Bar chart|Colour map|Chart)\b.*\d", alt), label


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("One thing. Another.", "One thing."),
        ("One thing; and more.", "One thing."),
        ("One [by 1 (0. to 2.) points] and [a link](#there). Two.", "One and [a link](#there)."),
        (
            "One (86 %; without b nothing. Or so), and 1.5 more; another.",
            "One (86 %; without b nothing. Or so), and 1.5 more.",
        ),
    ],
)
def test_a_beginning_ends_outside_brackets(text, first):
    assert compose.beginning(text) == first


def test_captions_are_short_and_say_their_message_first(report):
    executed = [nbformat.read(path, as_version=4) for path in (report / "notebooks").glob("0*.ipynb")]
    captions = {r["label"]: r["caption"] for r in compose.records(executed) if "caption" in r}
    assert len(captions) >= 40
    for label, caption in captions.items():
        message, reading = re.fullmatch(r"\*\*(.*?)\*\*(.*)", caption).groups()
        longest = (210, 240) if label.startswith("fig") else (300, 600)  # a table's columns are explained
        assert len(message) <= longest[0], (label, message)  # 210: two lines of print
        assert len(reading) <= longest[1], (label, reading)
        assert not re.search(r"\bnone\b(?! of)", message), message


def test_own_and_tensorflows_layers_agree_in_the_report(report):
    results = json.loads((report / "results.json").read_text())
    verdicts = {row["id"]: row for row in results["verdicts"]}
    for method in ("bn", "ln", "wn"):
        for name in ("paired.float64", "drift"):
            assert verdicts[f"{method}.{name}"]["verdict"] == "holds"


def test_parameters_reach_the_notebooks(report):
    results = json.loads((report / "results.json").read_text())
    # Other batches, a mechanism of drift, are those of a seed 1,000 further on.
    assert {run["seed"] for run in results["runs"]} == {7, 8, 9, 1007}
    assert all(p["SEED"] == 7 for p in results["provenance"]["parameters"].values())


def named_in(folder, names):
    """Which of these names stand in a report, and in which file of it."""
    pdf = pypdf.PdfReader(folder / "report.pdf")
    texts = {"report.pdf": str(pdf.metadata) + "".join(page.extract_text() for page in pdf.pages)}
    files = [folder / "report.html", folder / "results.json"]
    for file in [*files, *folder.glob("*.svg"), *folder.glob("notebooks/*.ipynb")]:
        # Not what looks like a name by chance, in a font or in a picture.
        texts[file.name] = re.sub(r"base64,[\w+/=]+", "", file.read_text())
    return [
        (file, name)
        for file, text in texts.items()
        for name in names
        if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)
    ]


def test_nothing_that_is_published_names_a_folder_of_whoever_built_it():
    found = named_in(ROOT / "report" / "published", ["/root", "/home", "/tmp", "/work", "TensorFlow"])
    assert {name for _, name in found} == {"TensorFlow"}


def test_nothing_that_is_handed_out_names_this_machine_or_its_user(report):
    host = socket.gethostname()
    names = [str(ROOT), str(pathlib.Path.home()), str(report), sys.prefix, f"{getpass.getuser()}@"]
    if len(host) > 3:  # a shorter name may be a word
        names.append(host)
    assert named_in(report, names) == []
    provenance = json.loads((report / "results.json").read_text())["provenance"]
    assert host not in map(str, (*provenance.values(), *provenance["machine"].values()))
