"""How the notebooks show what they find: figures with captions, tables, computed sentences, numbers and verdicts.

Each display carries, under the key "study" of its metadata, all that the report needs of it; an executed notebook is
therefore enough to build the report from.
"""

import collections
import inspect
import io
import pathlib
import textwrap
import typing

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display
from matplotlib.category import StrCategoryFormatter
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.ticker import FixedFormatter, FuncFormatter


class Look(typing.NamedTuple):
    """How a method is drawn and called: its colour, its dashes and gaps (None: solid), its marker, its words."""

    colour: str
    dashes: tuple | None
    marker: str
    words: str


# One look for each method, everywhere. The colours are Okabe and Ito's, safe for colour-blind readers, or darkened to a
# contrast of 3 on white. No two methods share the pattern of a line or a marker: grey print tells them apart.
LOOKS = {
    "none": Look("#595959", (1, 1), "o", "without normalization"),
    "BN": Look("#0072B2", None, "s", "with BN"),
    "LN": Look("#D55E00", (6, 2), "^", "with LN"),
    "WN": Look("#009E73", (6, 2, 1, 2), "D", "with WN"),
    "LN-C": Look("#8B3E00", (12, 2.5), "v", "with LN-C"),
    "GN": Look("#BF6496", (3, 2), "P", "with GN"),
    "IN": Look("#B87F00", (1, 3), "X", "with IN"),
    "RMS": Look("#3B93CB", (6, 1.5, 1, 1.5, 1, 1.5), "<", "with RMS"),
    "WN+MO": Look("#004D38", (9, 2, 3, 2), ">", "with WN+MO"),
    "input": Look("#5D3A9B", (5, 5), "p", "with standardized images"),
    "first": Look("#A3195B", (2, 1, 2, 4), "*", "with a standardized first batch"),
    "noisy BN": Look("#004C7F", (1, 1, 1, 4), "h", "with noisy BN"),
    "ghost BN": Look("#2F6690", (2, 1.5, 7, 1.5, 2, 4), "x", "with ghost BN"),
    "affine": Look("#8F8F8F", (2, 5), "d", "with γ and β alone"),
    "DyT": Look("#7F6000", (3, 1, 1, 1, 1, 1, 1, 1), "H", "with DyT"),
}

# A method at another place ("BN, dense") has the method's colour, the place's dashes and a hollow marker.
PLACES = {
    "dense": ((1, 2), "after the dense layer"),
    "both": ((4, 1.5), "after both layers"),
    "after ReLU": ((8, 1.5, 2, 1.5), "after the ReLU"),
    "as large": ((7, 1, 2, 1), "starting as large as without"),
}

# What is not a method has greys, and dashes and markers of an order: faults, axes, kinds of statistics.
SERIES = (
    Look("#1a1a1a", None, "o", ""),
    Look("#595959", (6, 2), "s", ""),
    Look("#7f7f7f", (1, 1), "^", ""),
    Look("#333333", (6, 2, 1, 2), "D", ""),
    Look("#8c8c8c", (12, 2.5), "v", ""),
    Look("#1a1a1a", (3, 2), "P", ""),
    Look("#595959", (1, 3), "X", ""),
    Look("#7f7f7f", (9, 2, 3, 2), "<", ""),
)

_pending = {}  # records that wait for the next display
_verdicts = {}  # rows of each table of verdicts


def use_style():
    """Give all figures of the notebook the project's look."""
    plt.style.use(pathlib.Path(__file__).with_name("study.mplstyle"))
    _pending.clear()
    _verdicts.clear()


def style(method, reference=False, points=None):
    """The look of a method's line, for `plot`; a reference is drawn over it, thin, black and dotted.

    Args:
        method: a key of `LOOKS`, or the place of a series that is no method.
        reference: whether it is TensorFlow's layer of that method.
        points: how many the line has; some six of them are marked. Default None: no markers.
    """
    if reference:
        return {"color": "black", "ls": (0, (2, 2)), "lw": 1.0}
    name, _, place = (method, "", "") if isinstance(method, int) else method.partition(", ")
    look = SERIES[name] if isinstance(name, int) else LOOKS[name]
    dashes = PLACES[place][0] if place in PLACES else look.dashes
    drawn = {"color": look.colour, "ls": "-" if dashes is None else (0, dashes)}
    if points is None:
        return drawn
    every = max(1, points // 6)
    first = (name if isinstance(name, int) else list(LOOKS).index(name)) % every
    return drawn | {"marker": look.marker, "markevery": (first, every)} | ({"mfc": "white"} if place else {})


def words(*methods):
    """Methods in a sentence: "without normalization", "with BN and LN"."""
    told = []
    for method in methods:
        name, _, place = method.partition(", ")
        what = LOOKS[name].words if name in LOOKS else f"with {name}"
        told.append(
            f"{what} {PLACES[place][1]}" if place in PLACES else f"{what}, {place}" if place else what
        )
    if all(one.startswith("with ") for one in told):
        told[1:] = [one.removeprefix("with ") for one in told[1:]]
    return listed(told)


def listed(names):
    """A list in a sentence: "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def power(value):
    """A power of ten as figures write it: 1e-5."""
    return f"{value:.0e}".replace("e-0", "e-")


def short(method):
    """A method in a legend or a table: the network without normalization is called plain."""
    return {"none": "plain", "input": "input alone", "first": "first batch alone"}.get(method, method)


def symbol(name):
    """A parameter as text and figures write it: the variable of the code is called gamma."""
    return {"gamma": "γ", "beta": "β", "kernel": "v"}.get(name, name)


# --- records: they ride on the next display -----------------------------------------------------------------------


def number(name, value, interval=None, unit="", seeds=None):
    """Record a number for results.json.

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


def verdict(table, id, claim, measured, tolerance, holds, above=False):
    """Record a verdict for results.json; `verdicts` shows them. What is claimed to differ lies above the tolerance."""
    row = {
        "table": table,
        "id": id,
        "claim": claim,
        "measured": float(measured),
        "tolerance": float(tolerance),
        "above": above,
        "verdict": "holds" if holds else "fails",
    }
    _pending.setdefault("verdicts", []).append(row)
    _verdicts.setdefault(table, []).append(row)


def judged(name, frame, claim, measured, tolerance):
    """Record a table for results.json whose rows carry a verdict of their own, and return it.

    Args:
        name: "V1" to "V5".
        frame: with a column verdict.
        claim, measured: for each row what is judged, and by what: a number, words, or nan.
        tolerance: a number or words: the rule.
    """
    rows = [
        {"table": name, "id": f"{name}.{number}"} | row | {"claim": c, "measured": m, "tolerance": tolerance}
        for number, (row, c, m) in enumerate(zip(frame.to_dict("records"), claim, measured, strict=True), 1)
    ]
    _pending.setdefault("verdicts", []).extend(rows)
    return frame


def runs(groups):
    """Record all runs of labelled groups (dict label -> list of History) for results.json."""
    _pending.setdefault("runs", []).extend(h.row() for histories in groups.values() for h in histories)


def waiting():
    """What is recorded, and not displayed yet."""
    return dict(_pending)


# --- what a figure draws ---------------------------------------------------------------------------------------------


def drawn(figure):
    """What a figure draws: a row for each point of a line (of a long one, 300), each bar, each field of a map."""
    panels = _panels(figure)
    rows = [
        {"panel": axes.get_title() or axes.get_title("left") or axes.get_ylabel()} | row
        for axes in panels
        for row in _points(axes)
    ]
    frame = pd.DataFrame(rows, columns=["panel", "series", "x", "y", "value"]).dropna(axis=1, how="all")
    told = {axis: {getattr(axes, f"get_{axis}label")() for axes in panels} - {""} for axis in "xy"}
    names = {axis: labels.pop() for axis, labels in told.items() if len(labels) == 1}
    return frame.drop(columns="panel" if len(panels) == 1 else [], errors="ignore").rename(columns=names)


def _panels(figure):
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def _points(axes):
    """Series, x and y of all that one panel draws in its own coordinates."""
    named = {line.get_label() for line in _labelled(axes)}
    bars = [c for c in axes.containers if isinstance(c, BarContainer)]
    errors = [c for c in axes.containers if isinstance(c, ErrorbarContainer)]
    runs = collections.Counter()
    inside = {id(line) for c in errors for line in (c.lines[0], *c.lines[1])}
    for line in axes.lines:
        if id(line) in inside or line.get_transform() != axes.transData:  # a reference across the panel
            continue
        series = line.get_label()
        if series.startswith("_"):
            like = series[1:]  # a thin line is labelled so
            runs[like] += 1
            series = f"{like}, run {runs[like]}" if like in named else ""
        points = np.column_stack(line.get_data())
        for x, y in points[np.unique(np.linspace(0, len(points) - 1, 300, dtype=int))]:
            yield {"series": series, "x": _tick(axes.xaxis, x), "y": _tick(axes.yaxis, y)}
    for container in errors:
        (x,), (y,) = container.lines[0].get_data()
        for (_, low), (_, high) in container.lines[2][0].get_segments():
            for series, value in (("mean", y), ("interval, low", low), ("interval, high", high)):
                yield {"series": series, "x": _tick(axes.xaxis, x), "y": value}
    for container in bars:
        for bar in container:
            (x, y), (right, top) = bar.get_bbox().min, bar.get_bbox().max
            if container.orientation == "horizontal":
                x, y = right, _tick(axes.yaxis, (y + top) / 2)
            else:
                x, y = _tick(axes.xaxis, (x + right) / 2), top
            series = container.get_label()
            yield {"series": "" if series.startswith("_") else series, "x": x, "y": y}
    for image in axes.images:
        for (i, j), value in np.ndenumerate(np.ma.filled(image.get_array(), np.nan)):
            yield {"x": _tick(axes.xaxis, j), "y": _tick(axes.yaxis, i), "value": value}


def _labelled(axes):
    return [line for line in axes.lines if not line.get_label().startswith("_")]


def _tick(axis, value):
    """The word at a place of an axis of words, or the place itself."""
    form = axis.get_major_formatter()
    if not isinstance(form, (FixedFormatter, FuncFormatter, StrCategoryFormatter)):
        return value
    places = np.asarray(axis.get_majorticklocs())
    return form.format_ticks(places)[int(np.argmin(np.abs(places - value)))]


def _kind(figure):
    """What kind of chart it is, and of what."""
    panels = _panels(figure)
    axes = panels[0]
    if axes.images:
        kind = "Colour map"
    elif any(isinstance(c, BarContainer) for c in axes.containers):
        kind = "Bar chart"
    else:
        kind = "Line chart" if _labelled(axes) else "Chart"
    told = f"{kind} of {axes.get_ylabel()}" if axes.get_ylabel() else kind
    told += f" by {axes.get_xlabel()}" if axes.get_xlabel() and axes.get_ylabel() else ""
    return told + (f", in {len(panels)} panels." if len(panels) > 1 else ".")


def _told(frame):
    """Each series in a few words: all places of an axis of words, else the two ends."""
    if "value" in frame:
        place, row = frame.columns[:2]
        rows = [
            f"{name}: {_brief(of['value'].min())} ({of[place][of['value'].idxmin()]}) to "
            f"{_brief(of['value'].max())} ({of[place][of['value'].idxmax()]})"
            for name, of in frame.dropna(subset="value").groupby(row, sort=False)
        ]
        return "; ".join(rows) + "."
    if not len(frame):
        return ""
    shown = frame[~frame.series.str.contains(r", run \d+$|^interval")]
    shown = shown[shown.series != ""] if any(shown.series != "") else shown
    keys = [k for k in ("panel", "series") if k in frame]
    x, y = [c for c in frame if c not in keys]
    words = [c for c in (x, y) if shown[c].map(lambda value: isinstance(value, str)).all()]
    place, height = (y, x) if words == [y] else (x, y)
    parts = []
    for names, rows in shown.groupby(keys, sort=False):
        rows = rows if words else rows.iloc[[0, -1]]
        ends = [f"{_brief(h)} at {_brief(at)}" for h, at in zip(rows[height], rows[place], strict=True)]
        name = ", ".join(name for name in names if name)
        parts.append((f"{name}: " if name else "") + (", " if words else " to ").join(ends))
    return "; ".join(parts) + "."


def _brief(value):
    """A word, a whole number, or three digits of another."""
    if isinstance(value, str):
        return value
    return f"{value if float(value).is_integer() else float(f'{value:.3g}'):,.10g}"


# --- displays -------------------------------------------------------------------------------------------------------


def figure(figure, label, message, reading="", runs=None):
    """Show a figure and its caption: first its message, then how to read it, then seeds and what the faint lines are.

    Args:
        figure: a matplotlib figure; it is closed.
        label: such as "fig-bn-accuracy", unique in the report.
        message: one sentence, what the figure shows.
        reading: how to read it.
        runs: the Histories drawn, from which the seeds are told.
    """
    points = drawn(figure)
    alt = f"{_kind(figure)} {_told(points)}".strip()  # what the caption does not say
    on_images = [part for axes in figure.axes if axes.images for part in (*axes.texts, *axes.patches)]
    for place, part in enumerate(on_images):  # they keep their colour when the page is dark
        part.set_gid(f"on-image-{place}")
    faint = any(
        line.get_alpha() and line.get_linestyle() != "None" for ax in figure.axes for line in ax.lines
    )
    svg = io.StringIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    plt.close(figure)
    about = _seeds(runs, faint) if runs else ""
    caption = " ".join(part for part in (f"**{message}**", reading, about) if part)
    record = {"kind": "figure", "label": label, "caption": caption, "alt": alt}
    record["data"] = points.to_csv(index=False, float_format="%.7g")
    _show({"image/svg+xml": svg.getvalue(), "text/plain": alt}, record)
    _show_caption(label, caption)


def table(frame, label, message, reading="", formats=None):
    """Show a DataFrame as a table with a caption.

    Args:
        frame: the table, without its index.
        label: such as "tbl-comparison", unique in the report.
        message: one sentence, what the table shows.
        reading: how to read it.
        formats: column -> format string, of columns that the table may have. Default: as they print.
    """
    shown = frame.copy()
    for column, form in ((c, f) for c, f in (formats or {}).items() if c in frame):
        shown[column] = [form.format(value) if pd.notna(value) else "" for value in frame[column]]
    shown = shown.astype(str)
    for column, name in (("method", short), ("quantity", symbol)):
        if column in shown:
            shown[column] = shown[column].map(name)
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
    _show_caption(label, caption)


def verdicts(name, label, message):
    """Show a table of the verdicts recorded in this notebook since the last such table."""
    rows = _verdicts.pop(name, [])
    if not rows:
        raise ValueError(f"Expected a table of verdicts that has rows. Received: {name!r}")
    failing = sum(row["verdict"] == "fails" for row in rows)
    told = "All hold." if not failing else f"{failing} of {len(rows)} fail."
    frame = pd.DataFrame(rows)
    limits = [f"{'> ' if row['above'] else ''}{row['tolerance']:.1e}" for row in rows]
    above = " Where something is to move, > stands before the least that it must." if any(frame.above) else ""
    table(
        frame.assign(tolerance=limits)[["claim", "measured", "tolerance", "verdict"]],
        label,
        f"{message} {told}",
        f"A claim holds if the measured value is within the tolerance.{above}",
        {"measured": "{:.1e}"},
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


def _show_caption(label, caption):
    """By hand: behind the label, by which the text refers to it. The report numbers figures and tables."""
    _show({"text/markdown": f"`{label}`: {caption}"}, {"kind": "caption"})


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


def _seeds(histories, faint):
    """Over which seeds and how long; of curves, what the thin ones are."""
    seeds = sorted({h.run.seed for h in histories})
    steps = f"{histories[0].run.steps:,} steps"
    if len(seeds) == 1:
        return f"Seed {seeds[0]}, {steps}."
    thin = " Thin: each seed; thick: their mean." if faint else ""
    return f"{len(seeds)} seeds ({seeds[0]} to {seeds[-1]}), {steps}.{thin}"
