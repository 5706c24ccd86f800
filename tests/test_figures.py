"""Figures tell methods apart by colour and in grey, draw all of the data as they are, and stay legible."""

import itertools
import pathlib
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text

import to_pdf
from study import equivalence, figures, laws, network, present, training, tuning


@pytest.fixture(autouse=True)
def drawn_in_style():
    with plt.rc_context():
        present.use_style()
        yield
        plt.close("all")


# --- looks ---------------------------------------------------------------------------------------------------------


def ink(look):
    """One period of a line as 0 and 1 at 240 places, and its length in line widths."""
    dashes = np.array(look.dashes or (1, 0), float)
    ends = np.cumsum(dashes) / dashes.sum()
    return np.searchsorted(ends, (np.arange(240) + 0.5) / 240) % 2 == 0, dashes.sum()


def alike(one, other):
    """Whether two lines cannot be told apart: the same ink, shifted and stretched, but for a tenth."""
    (a, long), (b, short) = ink(one), ink(other)
    apart = min(np.mean(a != np.roll(b, shift)) for shift in range(240))
    return apart < 0.1 and max(long / short, short / long) < 1.6


@pytest.mark.parametrize(
    "looks", [list(present.LOOKS.values()), list(present.SERIES)], ids=["methods", "series"]
)
def test_lines_are_told_apart_without_their_colours(looks):
    for one, other in itertools.combinations(looks, 2):
        assert not alike(one, other), (one, other)
        assert one.marker != other.marker
        assert one.colour != other.colour or one in present.SERIES


def test_lines_that_look_the_same_are_found():
    look = present.LOOKS["LN"]
    assert alike(look, look._replace(dashes=(6.5, 2)))
    assert alike(look, look._replace(dashes=(8, 2.5)))
    assert not alike(look, present.LOOKS["BN"])


def test_every_method_has_a_look_of_enough_contrast_and_no_other_series_has_its_colour():
    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return np.dot([0.2126, 0.7152, 0.0722], linear)

    assert {method.partition(", ")[0] for method in network.METHODS} <= present.LOOKS.keys()
    for look in (*present.LOOKS.values(), *present.SERIES):
        assert 1.05 / (luminance(look.colour) + 0.05) >= 3, look
    of_methods = {look.colour for name, look in present.LOOKS.items() if name != "none"}
    cycle = {to_rgb(c) for c in plt.rcParams["axes.prop_cycle"].by_key()["color"]}
    assert not cycle & {to_rgb(c) for c in of_methods}
    assert all(len(set(to_rgb(look.colour))) == 1 for look in present.SERIES)


def test_a_method_at_another_place_has_its_colour_and_a_line_of_its_own():
    looks = [present.style(method, points=1) for method in ("BN", "BN, dense", "BN, both", "BN, after ReLU")]
    assert len({look["color"] for look in looks}) == 1
    assert len({str(look["ls"]) for look in looks}) == 4
    assert ["mfc" in look for look in looks] == [False, True, True, True]
    with pytest.raises(KeyError):
        present.style("XN")


def test_methods_have_words():
    assert present.words("none") == "without normalization"
    assert (
        present.words("BN", "LN, dense", "TensorFlow's WN")
        == "with BN, LN after the dense layer and TensorFlow's WN"
    )
    assert present.words("BN", "none") == "with BN and without normalization"
    assert [present.short(m) for m in ("none", "BN")] == ["plain", "BN"]


def test_more_series_than_looks_are_an_error_and_not_left_out():
    drift = pd.DataFrame({"step": [1, 2], "largest": [1e-3, 1e-2]})
    with pytest.raises(IndexError):
        figures.attribution({f"fault {k}": drift for k in range(len(present.SERIES) + 1)})


# --- what is drawn is the data ---------------------------------------------------------------------------------------


def drift(largest):
    rows = [
        (s, f"norm_conv/{p}", k * v, v)
        for p, k in (("gamma", 1), ("beta", -1))
        for s, v in enumerate(largest, 1)
    ]
    return pd.DataFrame(rows, columns=["step", "parameter", "mean", "largest"])


FAULTS = (
    "repeated updates and other initial weights",
    "repeated updates",
    "other initial weights",
    "neither",
)
DRIFTS = {name: drift([1e-4, 1e-2]) for name in FAULTS} | {equivalence.NO_FAULT_64: drift([0.0, 1e-15])}


def histories(accuracy, seeds=3):
    steps = np.arange(1, 31)
    for seed in range(seeds):
        curve = np.linspace(0.5, accuracy + 0.001 * seed, len(steps))
        yield training.History(
            training.Run(seed=seed, steps=30), steps, curve, 1 - curve, np.ones(30), {}, {}, "", 1.0, {}
        )


def groups():
    return {m: list(histories(a)) for m, a in (("none", 0.7), ("BN", 0.8), ("LN", 0.75), ("WN", 0.701))}


def test_all_combinations_of_faults_are_drawn_and_zero_is_zero():
    drawn = present.drawn(figures.attribution(DRIFTS))
    assert list(drawn.series.unique()) == list(DRIFTS)
    values = drawn[drawn.series == equivalence.NO_FAULT_64].iloc[:, -1]
    assert values.tolist() == [0.0, 1e-15]


def test_bars_are_as_long_as_the_data_and_zero_is_none():
    table = pd.DataFrame({"mechanism": ["this", "that"], "float32": [0.0, 1e-3], "float64": [0.0, 1e-15]})
    drawn = present.drawn(figures.mechanism_bars(table.assign(band=1e-4, layer="BN")))
    drawn = drawn[drawn.series.str.startswith("float")]
    assert drawn.iloc[:, 1].tolist() == [0.0, 1e-3, 0.0, 1e-15]


def test_changes_are_given_as_they_are_and_not_as_their_logarithm():
    changes = np.array([[0.0, 0.5], [2.0, 1e-15]])
    drawn = present.drawn(figures.invariance_map(changes, changes < 1e-9, ["a", "b"], ["BN", "LN"]))
    assert drawn["value"].tolist() == changes.ravel().tolist()


def test_nothing_that_is_conserved_is_clipped():
    frame = pd.DataFrame(
        {
            "step": [1, 2],
            "kernel": [0.1, 0.5],
            "bias": [0.0, 1e-14],
            "length": 1e-8,
            "growth": 0.1,
            "filters": 0.0,
        }
    )
    drawn = present.drawn(figures.conservation_curves({"BN": frame}))
    assert drawn[drawn.panel == "biases"].iloc[:, -1].tolist() == [0.0, 2e-14]


def test_percentiles_are_named():
    frame = pd.DataFrame(
        {"method": ["none", "BN"], "step": 1, "accuracy": 0.5, "low": -1.0, "middle": 0.0, "high": 1.0}
    )
    series = set(present.drawn(figures.percentile_curves(frame)).series)
    assert series == {"plain", "BN", "85th percentile", "50th", "15th"}


def test_curves_that_coincide_are_told_apart_by_their_difference():
    drawn = present.drawn(figures.accuracy_curves(groups()))
    rows = drawn[(drawn.panel == "minus plain, points") & (drawn.series == "WN")]
    assert rows.iloc[-1, -1] == pytest.approx(0.1)


# --- legible ---------------------------------------------------------------------------------------------------------


def methods(*names, **columns):
    rows = [
        {"method": method} | dict(zip(columns, values, strict=True))
        for method in names or (*tuning.MAIN, *tuning.OTHERS)
        for values in zip(*columns.values(), strict=True)
    ]
    return pd.DataFrame(rows)


BY_BATCH = pd.DataFrame(
    [
        (m, size, 0.8, [0.7, 0.9])
        for m in ("none", "BN", "LN", "GN", "BN, dense", "LN, dense")
        for size in (2, 512)
    ],
    columns=["method", "size", "accuracy", "each"],
)
OF_SETS = pd.DataFrame({"set": ["a filter", "a position"], "epsilon": 1e-3, "share": 0.5})
LEARNED = pd.DataFrame(
    {"seed": 1, "step": [10, 300] * 2, "statistics": ["exact"] * 2 + ["moving"] * 2, "accuracy": 0.5}
)
CONSERVED = pd.DataFrame(
    {"step": [1, 2], "kernel": 0.1, "bias": 1e-6, "length": 1e-8, "growth": 0.1, "filters": 1e-7}
)
UNIT = pd.DataFrame(
    {"method": ["none", "BN"], "step": 1, "accuracy": 0.5, "low": -1.0, "middle": 0.0, "high": 1.0}
)
MECHANISMS = pd.concat(
    pd.DataFrame(
        {
            "mechanism": list(equivalence.mechanisms(m, training.Run(**network.METHODS[m]))),
            "float32": 1e-3,
            "float64": 1e-15,
            "band": 1e-3,
            "layer": m,
        }
    )
    for m in ("BN", "LN", "WN")
)
SAME = np.array([[word == "yes" for word in words.split()] for words in laws.INVARIANCES.values()])
ALL = {
    "accuracy": lambda: figures.accuracy_curves(groups()),
    "points": lambda: figures.accuracy_points(groups()),
    "drift": lambda: figures.drift_curves(
        {"as in 2019": DRIFTS["neither"], "paired": DRIFTS[equivalence.NO_FAULT_64]}
    ),
    "arms": lambda: figures.arm_curves(
        {f"arm {k}": list(histories(0.7)) for k in range(len(present.SERIES))}, "arm 2"
    ),
    "rate map": lambda: figures.rate_map(
        methods(
            exponent=tuple(range(-6, 3)),
            accuracy=(0.5,) * 8 + (0.8,),
            diverged=(0,) * 8 + (1,),
            collapsed=(0,) * 7 + (1, 2),
            seeds=(2,) * 9,
        )
    ),
    "penalty": lambda: figures.penalty_curves(
        pd.DataFrame(
            {
                "layer": ["own"] * 2 + ["TensorFlow's"] * 2,
                "step": [1, 2] * 2,
                "loss": 1.0,
                "apart": [0, 1e-9] * 2,
            }
        )
    ),
    "attribution": lambda: figures.attribution(DRIFTS),
    "budget": lambda: figures.budget_curves(methods(*tuning.MAIN, tried=(1, 2, 3), accuracy=(0.5, 0.8, 0.9))),
    "batch": lambda: figures.batch_curves(BY_BATCH),
    "invariances": lambda: figures.invariance_map(
        np.where(SAME, 1e-15, 1), SAME, list(laws.INVARIANCES), laws.COLUMNS
    ),
    "epsilon": lambda: figures.epsilon_shares(OF_SETS),
    "depth": lambda: figures.depth_curves(
        methods("none", "BN", "LN", layer=(1, 2, 3), cosine=(0.3, 0.5, 0.9), growth=(0.5, 1, 1.4))
    ),
    "conservation": lambda: figures.conservation_curves({m: CONSERVED for m in ("BN", "LN", "LN-C", "WN")}),
    "statistics": lambda: figures.statistics_curves(LEARNED),
    "mechanisms": lambda: figures.mechanism_bars(MECHANISMS),
    "landscape": lambda: figures.landscape_curves(
        methods("none", "BN", "LN", step=(0, 10), lowest=(1, 1), highest=(2, 9), change=(4, 7), seed=(1, 1))
    ),
    "percentiles": lambda: figures.percentile_curves(UNIT),
}


def test_every_figure_is_looked_at():
    source = pathlib.Path(figures.__file__).read_text()
    assert len(ALL) == len(re.findall(r"^def [a-z]", source, flags=re.M))


@pytest.mark.parametrize("name", ALL)
def test_a_figure_fits_the_page_unscaled_and_its_words_are_of_8_points_and_inside(name):
    figure = ALL[name]()
    figure.canvas.draw()
    assert figure.get_figwidth() * 72 <= to_pdf.FULL_WIDTH
    assert figure.get_figheight() * 72 <= to_pdf.FULL_HEIGHT
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(box.x0, box.y0, width - box.x1, height - box.y1) > -0.02
    sizes = {text.get_text(): text.get_size() for text in figure.findobj(Text)}
    assert min(sizes.values()) >= 8, sizes


@pytest.mark.parametrize("name", ALL)
def test_a_legend_covers_no_panel(name):
    figure = ALL[name]()
    figure.canvas.draw()
    assert not any(axes.get_legend() for axes in figure.axes)
    for legend in figure.legends:
        box = legend.get_window_extent()
        for axes in figure.axes:
            assert not box.overlaps(axes.get_window_extent())


def test_words_fit_the_fields_of_the_map():
    figure = ALL["invariances"]()
    figure.canvas.draw()
    axes = figure.axes[0]
    field = axes.get_window_extent().width / len(laws.COLUMNS)
    assert max(text.get_window_extent().width for text in axes.texts) < field


def test_only_curves_speak_of_thin_lines(monkeypatch):
    shown = []
    monkeypatch.setattr(present, "_show", lambda bundle, record: shown.append(record))
    runs = [h for hs in groups().values() for h in hs]
    for draw in (figures.accuracy_curves, figures.accuracy_points):
        present.figure(draw(groups()), "fig", "Message.", runs=runs)
    curves, points = [record["caption"] for record in shown if record["kind"] == "figure"]
    assert curves.endswith("3 seeds (0 to 2), 30 steps. Thin: each seed; thick: their mean.")
    assert points.endswith("3 seeds (0 to 2), 30 steps.")
