"""How the notebooks show what they find: figures with captions, tables, computed sentences, numbers and verdicts.

Each display carries, under the key "study" of its metadata, all that the report needs of it; an executed notebook is
therefore enough to build the report from.
"""

import inspect
import io
import pathlib
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display

# One colour (Okabe and Ito's, safe for colour-blind readers) and one line style for each method, everywhere.
COLORS = {
    "none": "#595959",
    "BN": "#0072B2",
    "LN": "#D55E00",
    "WN": "#009E73",
    "GN": "#CC79A7",
    "IN": "#E69F00",
    "RMS": "#56B4E9",
    "LN-C": "#8B3E00",
    "affine": "#999999",
    "DyT": "#7F6000",
    "WN+MO": "#004D38",
    "input": "#5D3A9B",
    "first": "#A0522D",
    "noisy BN": "#004C7F",
    "detached BN": "#5FA8D3",
    "BN, dense": "#5FA8D3",
}
LINES = {
    "none": (0, (1, 1)),
    "BN": "-",
    "LN": (0, (6, 1.5)),
    "WN": (0, (4, 1.5, 1, 1.5)),
    "GN": (0, (3, 1)),
    "IN": (0, (2, 2)),
    "RMS": (0, (5, 1, 1, 1, 1, 1)),
    "LN-C": (0, (8, 2)),
    "affine": (0, (1, 2)),
    "DyT": (0, (3, 1, 1, 1)),
    "WN+MO": (0, (1, 1, 4, 1)),
    "input": (0, (5, 2)),
    "first": (0, (2, 1)),
    "noisy BN": (0, (1, 1)),
    "detached BN": (0, (4, 1)),
    "BN, dense": (0, (2, 1)),
}

_pending = {}  # records that wait for the next display
_verdicts = {}  # rows of each table of verdicts


def use_style():
    """Give all figures of the notebook the project's look."""
    plt.style.use(pathlib.Path(__file__).with_name("study.mplstyle"))
    _pending.clear()
    _verdicts.clear()


def style(method, reference=False):
    """The look of a method's line, for `plot`; a reference is drawn over it, thin, black and dotted."""
    if reference:
        return {"color": "black", "ls": (0, (2, 2)), "lw": 1.0}
    return {"color": COLORS.get(method, "#000000"), "ls": LINES.get(method, "-")}


# --- records: they ride on the next display -----------------------------------------------------------------------


def number(name, value, interval=None, unit="", seeds=None):
    """Record a number for results.json, and return it.

    Args:
        name: dotted, such as "bn.accuracy.final".
        value: finite, or inf or nan where that is the result.
        interval: (low, high) or None.
        unit: such as "fraction" or "steps".
        seeds: over how many.
    """
    interval = None if interval is None else [float(v) for v in interval]
    _pending.setdefault("numbers", {})[name] = {
        "value": float(value),
        "interval": interval,
        "unit": unit,
        "seeds": seeds,
    }
    return value


def verdict(table, id, claim, measured, tolerance, holds):
    """Record a verdict for results.json; `verdicts` shows them."""
    row = {
        "table": table,
        "id": id,
        "claim": claim,
        "measured": float(measured),
        "tolerance": float(tolerance),
        "verdict": "holds" if holds else "fails",
    }
    _pending.setdefault("verdicts", []).append(row)
    _verdicts.setdefault(table, []).append(row)


def judged(name, frame):
    """Record a table for results.json whose rows carry a verdict of their own, and return it."""
    rows = [
        {"table": name, "id": f"{name}.{number}"} | row
        for number, row in enumerate(frame.to_dict("records"), 1)
    ]
    _pending.setdefault("verdicts", []).extend(rows)
    return frame


def runs(groups):
    """Record all runs of labelled groups (dict label -> list of History) for results.json."""
    _pending.setdefault("runs", []).extend(h.row() for histories in groups.values() for h in histories)


# --- displays -------------------------------------------------------------------------------------------------------


def figure(figure, label, message, reading="", runs=None, data=None):
    """Show a figure and its caption: first its message, then how to read it, then seeds and what the faint lines are.

    Args:
        figure: a matplotlib figure; it is closed.
        label: such as "fig-bn-accuracy", unique in the report.
        message: one sentence, what the figure shows.
        reading: how to read it.
        runs: the Histories drawn, from which the seeds are told.
        data: DataFrame of what is drawn, or None.
    """
    svg = io.StringIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    plt.close(figure)
    about = _seeds(runs) if runs else ""
    caption = " ".join(part for part in (f"**{message}**", reading, about) if part)
    alt = " ".join(
        part for part in ("Line chart." if "urve" in label else "Chart.", message, reading) if part
    )
    record = {"kind": "figure", "label": label, "caption": caption, "alt": alt}
    if data is not None:
        record["data"] = data.to_csv(index=False)
    _show({"image/svg+xml": svg.getvalue(), "text/plain": alt}, record)
    _show({"text/markdown": caption}, {"kind": "caption"})


def table(frame, label, message, reading="", formats=None):
    """Show a DataFrame as a table with a caption.

    Args:
        frame: the table, without its index.
        label: such as "tbl-comparison", unique in the report.
        message: one sentence, what the table shows.
        reading: how to read it.
        formats: column -> format string. Default: as they print.
    """
    shown = frame.copy()
    for column, form in (formats or {}).items():
        shown[column] = [form.format(value) if pd.notna(value) else "" for value in frame[column]]
    shown = shown.astype(str)
    caption = " ".join(part for part in (f"**{message}**", reading) if part)
    columns = [str(c) for c in shown.columns]
    record = {
        "kind": "table",
        "label": label,
        "caption": caption,
        "columns": columns,
        "rows": shown.values.tolist(),
    }
    _show({"text/html": shown.to_html(index=False), "text/plain": shown.to_string(index=False)}, record)
    _show({"text/markdown": caption}, {"kind": "caption"})


def verdicts(name, label, message):
    """Show a table of the verdicts recorded in this notebook since the last such table."""
    rows = _verdicts.pop(name, [])
    if not rows:
        raise ValueError(f"Expected a table of verdicts that has rows. Received: {name!r}")
    failing = sum(row["verdict"] == "fails" for row in rows)
    told = "All hold." if not failing else f"{failing} of {len(rows)} fail."
    frame = pd.DataFrame(rows)[["claim", "measured", "tolerance", "verdict"]]
    table(
        frame,
        label,
        f"{message} {told}",
        "A claim holds if the measured value is within the tolerance.",
        {"measured": "{:.1e}", "tolerance": "{:.1e}"},
    )


def state(text, key=None):
    """Show a computed sentence, in Markdown.

    Args:
        text: the sentence.
        key: the name under which results.json and the abstract know it, such as "bn.answer". Default None: neither.
    """
    _show({"text/markdown": text, "text/plain": text}, {"kind": "state", "key": key, "text": text})


def source(thing):
    """Show the source of a function or a class, as it stands in the project."""
    code = textwrap.dedent(inspect.getsource(thing)).rstrip()
    name = f"{thing.__module__}.{thing.__qualname__}"
    _show({"text/markdown": f"```python\n{code}\n```"}, {"kind": "source", "name": name, "code": code})


def _show(bundle, record):
    if record["kind"] != "caption":
        record = record | {"records": dict(_pending)}
        _pending.clear()
    display(bundle, raw=True, metadata={"study": _plain(record)})


def _plain(value):
    """For JSON, which knows no nan and no inf."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (float, np.floating)) and not np.isfinite(value):
        return str(float(value))
    return value.item() if isinstance(value, np.generic) else value


def _seeds(histories):
    seeds = sorted({h.run.seed for h in histories})
    steps = histories[0].run.steps
    if len(seeds) == 1:
        return f"Seed {seeds[0]}, {steps:,} steps."
    return (
        f"{len(seeds)} seeds ({seeds[0]} to {seeds[-1]}), {steps:,} steps; thick: the mean; faint: each seed."
    )
