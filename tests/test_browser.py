"""The page in a browser: what a reader does with it, by mouse, by keyboard, on a phone and in the dark."""

import csv
import functools
import io

import pytest
import test_report
from axe_playwright_python.sync_playwright import Axe
from conftest import in_own_thread
from PIL import Image
from playwright.sync_api import sync_playwright

TEXT = r"""# A toy section

A sentence [@ioffe2015] with $\gamma$, and [Equation](#eq-toy), [Figure](#fig-toy), [Table](#tbl-toy).

$$ y = \gamma \hat x + \beta + a + b + c + d + e + f + g + h + i + j + k + l + m + n + o + p + q . \label{eq-toy} $$

## First

Words.

## Second

Words again, [Section](#sec-provenance).
"""
SHOW = """
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from study import present
present.use_style()
figure, axes = plt.subplots()
for method, height in (("BN", 3.0), ("none", 1.0)):
    axes.plot([1, 2], [height, height + 0.25], label=method, **present.style(method))
axes.set(xlabel="step", ylabel="accuracy")
present.figure(figure, "fig-toy", "BN is above none.", "How to read it.")
figure, axes = plt.subplots()
axes.imshow(np.array([[0.0, 1.0], [1.0, 0.0]]), cmap="cividis")
axes.set(xticks=[0, 1], xticklabels=["BN", "LN"], yticks=[0, 1], yticklabels=["scale", "shift"])
axes.text(0, 0, "same", color="white")
axes.text(1, 0, "changes", color="black")
present.figure(figure, "fig-map", "A map.")
methods = pd.DataFrame({
    "method": ["none", "BN", "LN", "WN", "GN"],
    "a measured quantity": ["+1.5", "−3", "2.0 × 10⁻³", "inf", "1,100"],
    "another measured quantity": ["0.5", "", "0.25", "not reached", "1.0"],
    "one more measured quantity": [1.0, 2.0, 3.0, 4.0, 5.0],
    "what is to be said of it": ["a sentence of some length, of several words"] * 5,
})
present.table(methods, "tbl-toy", "Five methods.")
for place in range(12):
    present.verdict("V1", f"toy.{place}", f"claim {place}", 0.5, 1.0, True)
present.verdicts("V1", "tbl-verdicts", "Toy verdicts.")
present.state("The level is high. The rest is long.", key="bn.answer")
present.source(present.figure)
"""
OPEN = "document.querySelectorAll('details').forEach(details => { details.open = true; })"
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
PHONE = {"width": 390, "height": 844}
NATURAL = "document.querySelector('#fig-toy img').naturalWidth"


@pytest.fixture(scope="module")
def address(tmp_path_factory, chromium):
    folder = in_own_thread(test_report.make, tmp_path_factory.mktemp("page"), TEXT, SHOW)
    return (folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser(chromium):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_address(browser):
    """A function that opens a page and notes all that it asks for and all that it complains of."""
    contexts = []

    def opened(address, **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.requested, page.complaints = [], []
        page.on("request", lambda request: page.requested.append(request.url))
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture
def open_page(open_address, address):
    """A function that opens the toy page."""
    return functools.partial(open_address, address)


def tab_to(page, selector, presses=80):
    """Go to an element as a reader without a mouse does."""
    for _ in range(presses):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"Expected {selector} within {presses} presses of the tabulator")


@pytest.mark.parametrize(("scheme", "viewport"), [("light", {"width": 1280, "height": 900}), ("dark", PHONE)])
def test_nothing_bars_a_reader(open_page, scheme, viewport):
    assert violations(open_page(color_scheme=scheme, viewport=viewport)) == []


def violations(page):
    """What axe finds with everything unfolded."""
    page.evaluate(OPEN)
    found = Axe().run(page, options=RULES).response["violations"]
    return [(v["id"], [node["html"] for node in v["nodes"]]) for v in found]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_bars_a_reader_of_the_whole_report(report, open_address, scheme):
    address = (report / "report.html").as_uri()
    page = open_address(address, color_scheme=scheme, viewport={"width": 1280, "height": 900})
    assert violations(page) == []
    page.set_viewport_size({"width": 320, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    assert [url for url in page.requested if not url.startswith("data:")] == [address]
    assert page.complaints == []


def test_the_page_asks_for_nothing_and_complains_of_nothing(open_page, address):
    page = open_page()
    page.mouse.wheel(0, 5000)
    page.hover("a[href='#fig-toy']")
    page.wait_for_selector("#preview:visible")
    assert [url for url in page.requested if not url.startswith("data:")] == [address]
    assert page.complaints == []
    assert page.evaluate(
        "document.fonts.check('16px Report') && document.fonts.check('16px \"Report Math\"')"
    )


def test_a_phone_scrolls_wide_things_in_their_own_boxes(open_page):
    page = open_page(viewport=PHONE)
    page.evaluate(OPEN)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    page.wait_for_function("document.querySelector('.equation').tabIndex === 0")
    for box in (".scroll:has(table)", ".sourceCode", ".equation"):
        assert page.evaluate(f"(b => b.scrollWidth > b.clientWidth)(document.querySelector('{box}'))")
        tab_to(page, box)
        page.wait_for_selector(f"{box}.goes-on-right:not(.goes-on-left)")  # it fades where it goes on
        page.evaluate(f"document.querySelector('{box}').scrollLeft = 9999")
        page.wait_for_selector(f"{box}.goes-on-left:not(.goes-on-right)")


def test_on_a_phone_the_contents_close_by_escape_and_by_a_tap_outside(open_page):
    page = open_page(viewport=PHONE, has_touch=True)
    for close in (lambda: page.keyboard.press("Escape"), lambda: page.touchscreen.tap(200, 800)):
        page.click("nav summary")
        assert page.is_visible("nav a >> nth=0")
        close()
        assert not page.is_visible("nav a >> nth=0")
    page.click("nav summary")
    page.click("nav a[href='#second']")
    assert not page.is_visible("nav a >> nth=0")
    page.wait_for_function("document.getElementById('here').textContent.includes('Second')")


def test_a_figure_of_one_panel_is_shown_whole_on_a_phone_and_not_stretched_elsewhere(open_page):
    for width in (390, 1366):
        page = open_page(viewport={"width": width, "height": 800})
        box, image = (page.locator(f"#fig-toy {part}").bounding_box() for part in (".scroll", "img"))
        assert image["width"] <= min(box["width"], page.evaluate(NATURAL)) + 0.5
        assert image["width"] >= min(box["width"], 0.7 * page.evaluate(NATURAL))


def test_a_preview_stays_in_the_window(open_page):
    page = open_page(viewport={"width": 390, "height": 330})
    for target in ("fig-toy", "tbl-toy"):
        page.evaluate(
            f"document.querySelector('main a[href=\"#{target}\"]').scrollIntoView({{block: 'center'}})"
        )
        page.keyboard.press("Tab")
        page.evaluate(f"document.querySelector('main a[href=\"#{target}\"]').focus()")
        box = page.locator("#preview:visible").bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= 330


def test_print_keeps_figures_and_short_tables_whole(open_page):
    page = open_page()
    page.emulate_media(media="print")
    for label, rule in {"fig-toy": "avoid", "tbl-toy": "avoid", "tbl-verdicts": "auto"}.items():
        assert page.evaluate(f"getComputedStyle(document.getElementById('{label}')).breakInside") == rule
    assert page.locator("#fig-toy img").bounding_box()["height"] < 280  # two on a page, and their text
    assert not page.is_visible("nav")


def test_one_switch_opens_and_closes_all_code_by_keyboard(open_page):
    page = open_page()
    states = "[...document.querySelectorAll('details.code')].map(details => details.open)"
    assert page.evaluate(states) == [False, False]
    tab_to(page, "#code-switch")
    page.keyboard.press("Space")
    assert page.evaluate(states) == [True, True]
    page.keyboard.press("Enter")
    assert page.evaluate(states) == [False, False]


def test_a_reference_shows_what_it_leads_to(open_page):
    page = open_page()
    told = {"fig-toy": "BN is above none.", "tbl-toy": "inf", "eq-toy": "γ", "ref-ioffe2015": "Accelerating"}
    for target, words in told.items():
        page.evaluate("document.getElementById('text').focus()")
        tab_to(page, f"a[href='#{target}']")
        assert words in page.text_content("#preview:visible")
        assert page.get_attribute(f"main a[href='#{target}']", "aria-describedby") == "preview"
        page.keyboard.press("Escape")
        assert not page.is_visible("#preview")
    page.hover("main a[href='#sec-provenance']")
    assert "Where this comes from" in page.text_content("#preview:visible")
    page.hover("#preview")  # it stays while it is looked at
    page.wait_for_timeout(400)
    assert page.is_visible("#preview")


def test_a_table_sorts_by_size_and_back(open_page):
    page = open_page()
    column = "rows => rows.map(row => row.cells[0].textContent)"
    tab_to(page, "#tbl-toy th:nth-child(2) button")
    page.keyboard.press("Enter")
    assert page.eval_on_selector_all("#tbl-toy tbody tr", column) == ["BN", "LN", "plain", "GN", "WN"]
    assert page.get_attribute("#tbl-toy th:nth-child(2)", "aria-sort") == "ascending"
    page.keyboard.press("Enter")
    assert page.eval_on_selector_all("#tbl-toy tbody tr", column) == ["WN", "GN", "plain", "LN", "BN"]
    for _ in range(2):  # what is no number comes last, both ways
        page.click("#tbl-toy th:nth-child(3) button")
        assert set(page.eval_on_selector_all("#tbl-toy tbody tr", column)[3:]) == {"BN", "WN"}
    page.click("#tbl-toy th:nth-child(1) button")
    assert page.eval_on_selector_all("#tbl-toy tbody tr", column) == ["BN", "GN", "LN", "plain", "WN"]
    assert page.get_attribute("#tbl-toy th:nth-child(2)", "aria-sort") is None


def test_figures_and_tables_give_their_data(open_page):
    page = open_page()

    def rows(label):
        with page.expect_download() as download:
            page.click(f"#{label} a.data")
        assert download.value.suggested_filename == f"{label}.csv"
        return list(csv.reader(io.StringIO(download.value.path().read_text())))

    assert rows("fig-toy") == [
        ["series", "step", "accuracy"],
        ["BN", "1", "3"],
        ["BN", "2", "3.25"],
        ["none", "1", "1"],
        ["none", "2", "1.25"],
    ]
    assert rows("fig-map")[:3] == [["x", "y", "value"], ["BN", "scale", "0"], ["LN", "scale", "1"]]
    assert rows("tbl-toy")[2][:3] == ["BN", "-3", ""]
    assert len(rows("tbl-verdicts")) == 13


def test_the_contents_mark_where_one_is(open_page):
    page = open_page(viewport={"width": 1280, "height": 500})
    assert page.locator("#TOC a[aria-current]").count() == 0  # above all sections
    for target in ("second", "sec-provenance", "references", "first", "sec-01_toy"):
        page.click(f"#TOC a[href='#{target}']")
        page.wait_for_selector(f"#TOC a[aria-current][href='#{target}']")
        assert page.locator("#TOC a[aria-current]").count() == 1
        assert page.evaluate("document.getElementById('TOC').getBoundingClientRect().top") == 0


def test_figures_are_light_on_dark(open_page):
    def shades(scheme, label):
        page = open_page(color_scheme=scheme)
        image = Image.open(io.BytesIO(page.locator(f"#{label} img").screenshot())).convert("L")
        return image.getpixel((1, 1)), image.getextrema()

    paper, (darkest, lightest) = shades("light", "fig-toy")
    assert (paper, darkest < 60, lightest) == (255, True, 255)
    paper, (darkest, lightest) = shades("dark", "fig-toy")
    assert paper < 30 and darkest < 30 and lightest > 200


def test_the_page_is_whole_without_scripts(open_page):
    page = open_page(java_script_enabled=False)
    assert not page.is_visible("#code-switch")
    assert page.is_visible("#tbl-toy td >> nth=0")
    assert not page.is_visible("#tbl-verdicts td >> nth=0")
    page.click("#tbl-verdicts summary")
    assert page.is_visible("#tbl-verdicts td >> nth=0")
    with page.expect_download():
        page.click("#fig-toy a.data")
