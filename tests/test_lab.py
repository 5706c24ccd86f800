"""The notebooks by hand: what there is to explore, and JupyterLab in a browser."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import ipywidgets
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from playwright.sync_api import sync_playwright

from study import explore, profiles

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIRST = ROOT / "notebooks" / "01_batch_normalization.ipynb"
BASE = profiles.start("smoke")[0]


# --- what there is to explore --------------------------------------------------------------------------------------


def test_a_view_shows_the_method_beside_none():
    figure, statistics = explore.view(BASE, "BN", None, 1e-5, 32, 0.01)
    histogram, filters, losses = figure.axes
    assert len(histogram.patches) == len(filters.lines) == len(losses.lines) == 2
    assert list(statistics.index) == ["plain", "BN"]
    assert statistics.deviation["BN"] == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(filters.lines[1].get_ydata(), 1, atol=0.01)
    assert all(np.isfinite(line.get_ydata()).all() for line in losses.lines)
    plt.close(figure)


def test_a_training_that_explodes_is_called_diverged_and_stays_in_the_figure():
    figure, statistics = explore.view(BASE, "none", None, 1e-5, 2, 1e30)
    assert list(statistics.index) == ["plain"]
    assert statistics["loss at the end"]["plain"] == "diverged"
    assert figure.axes[2].get_ylim()[1] <= explore.WORST
    plt.close(figure)


def test_epsilon_and_axis_reach_the_layer():
    plain, blunt = (explore.activations(BASE, explore.layer_of("LN", None, e), 4) for e in (1e-5, 1.0))
    assert blunt.std() < 0.5 * plain.std()
    rows = explore.activations(BASE, explore.layer_of("LN", 1, 1e-7), 4)
    np.testing.assert_allclose(rows.mean(axis=1), 0, atol=1e-4)


@pytest.fixture
def panel(monkeypatch):
    """A panel without trainings: its knobs, and what they asked for."""
    asked, shown = [], []

    def view(base, **chosen):
        asked.append(chosen)
        if chosen["axis"] == 1:
            raise ValueError("Expected another axis")
        return "figure", "statistics"

    monkeypatch.setattr(explore, "view", view)
    monkeypatch.setattr(explore, "display", lambda *things: shown.extend(things))
    explore.panel(BASE, "LN")
    [box] = [thing for thing in shown if isinstance(thing, ipywidgets.VBox)]
    knobs = {knob.description: knob for row in box.children[:2] for knob in row.children}
    return knobs, asked, shown


def test_the_panel_follows_each_knob(panel):
    knobs, asked, shown = panel
    assert asked == [{"method": "LN", "axis": None, "epsilon": 1e-5, "size": 100, "rate": 0.01}]
    moves = {"method": "BN", "axis": 3, "ε": 0.1, "batch": 8, "rate": 0.3}
    for description, value in moves.items():
        knobs[description].value = value
    assert list(asked[-1].values()) == list(moves.values())
    assert len(asked) == 6 == shown.count("figure")


def test_the_panel_says_what_is_no_layer_and_which_knobs_do_nothing(panel, capsys):
    knobs, _, shown = panel
    knobs["axis"].value = 1
    assert "There is no such layer. Expected another axis" in capsys.readouterr().out
    knobs["axis"].value = None
    assert shown.count("figure") == 2
    assert not knobs["ε"].disabled
    knobs["method"].value = "WN"
    assert knobs["ε"].disabled and knobs["axis"].disabled


# --- JupyterLab ----------------------------------------------------------------------------------------------------


@pytest.fixture
def lab(tmp_path):
    """A JupyterLab that was started on a short first notebook, and the address that it opened a browser with."""
    made = nbformat.read(FIRST, as_version=4)
    code = [cell for cell in made.cells if cell.cell_type == "code"]
    [parameters] = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    parameters.source = parameters.source.replace('= "quick"', '= "smoke"')
    begin = nbformat.v4.new_code_cell("base, seeds = profiles.start(PROFILE, DATASET, SEED)")
    made.cells = [
        code[0],
        parameters,
        begin,
        *(c for c in made.cells if "explore" in c.metadata.get("tags", [])),
    ]
    nbformat.write(made, tmp_path / FIRST.name)
    (tmp_path / "browser.py").write_text("import sys; open('opened', 'w').write(sys.argv[1])")
    places = ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")
    environment = os.environ | {place: str(tmp_path / place) for place in places}
    environment["BROWSER"] = f"{sys.executable} {tmp_path / 'browser.py'} %s"
    started = subprocess.Popen(
        [sys.executable, "-m", "jupyter", "lab", FIRST.name, "--port=0", "--allow-root"],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        opened, until = tmp_path / "opened", time.monotonic() + 60
        while not (opened.exists() and opened.read_text()):
            assert started.poll() is None and time.monotonic() < until, "JupyterLab did not start"
            time.sleep(0.2)
        yield opened.read_text()
    finally:
        started.terminate()  # it ends its kernels
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(timeout=20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.xdist_group("browser")
def test_in_jupyterlab_a_knob_changes_the_figure(lab, chromium):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1400})
        page.set_default_timeout(60_000)
        page.goto(lab)
        page.wait_for_selector("text=/\\| Idle/")  # the kernel is there
        page.click(".lm-MenuBar-itemLabel >> text=Run")
        page.click(".lm-Menu-itemLabel >> text=/^Run All Cells$/")
        figure = page.locator(".jp-OutputArea-output img")
        before = figure.get_attribute("src")
        page.locator(".widget-dropdown select").first.select_option("LN")
        page.wait_for_selector(".jp-OutputArea-output table >> text=LN")
        assert figure.get_attribute("src") != before
        browser.close()
