"""Parameters of a notebook: wrong ones are refused at its top, and a module beside it is found."""

import inspect
import os
import pathlib
import subprocess
import sys

import keras
import nbformat
import pytest

from study import check, equivalence, network, present

FIRST = pathlib.Path(__file__).resolve().parent.parent / "notebooks" / "01_batch_normalization.ipynb"
FINE = {
    "PROFILE": "smoke",
    "DATASET": "mnist",
    "SEED": 7,
    "JOBS": 1,
    "CANDIDATE": "normlib:BatchNormalization",
    "REFERENCE": "keras.layers:BatchNormalization",
    "METHODS": ["none", "BN", "LN", "WN", "GN"],
}


def test_what_is_fine_is_let_through_among_all_else_in_a_notebook():
    check.parameters(FINE | {"seeds": [7], "In": [""], "_": "", "base": None, "replace": len}, *check.OTHERS)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"STEPS": 3}, ValueError, "a parameter among PROFILE, DATASET, SEED, JOBS, .*Received: STEPS=3"),
        ({"seed": 3}, ValueError, "a parameter among .*Received: seed=3"),
        ({"SEED": "7"}, TypeError, "SEED of type int. Received: SEED='7'"),
        ({"SEED": True}, TypeError, "SEED of type int. Received: SEED=True"),
        ({"SEED": -1}, ValueError, "SEED of at least 0. Received: SEED=-1"),
        ({"PROFILE": "fast"}, ValueError, "PROFILE among smoke, quick, .*Received: PROFILE='fast'"),
        ({"DATASET": "svhn"}, ValueError, "DATASET among fashion_mnist, .*Received: DATASET='svhn'"),
        ({"METHODS": ["none", "XN"]}, ValueError, "METHODS among none, BN, .*Received: METHODS="),
        ({"METHODS": ["none", "BN"]}, ValueError, "METHODS with none, BN, LN, WN. Received: METHODS="),
        ({"CANDIDATE": "normlib:NoSuchLayer"}, ValueError, "import path .*Received: 'normlib:NoSuchLayer'"),
        ({"REFERENCE": "normlib:standardize"}, ValueError, "REFERENCE to name a class. Received"),
    ],
)
def test_what_is_wrong_is_named(wrong, error, message):
    with pytest.raises(error, match=message):
        check.parameters(FINE | wrong, *check.OTHERS)


def test_a_parameter_of_another_notebook_is_unknown():
    with pytest.raises(ValueError, match="Received: METHODS="):
        check.parameters(FINE, "CANDIDATE", "REFERENCE")


MODULE = """
import normlib

class MyBatchNorm(normlib.BatchNormalization):
    pass
"""
TRAINED = """
from study import training
runs = [training.Run(sample=True, steps=2, evaluate_every=2, norm=CANDIDATE, seed=SEED + k) for k in range(2)]
print(*sorted(run.seed for run in running.run_all(runs, jobs=2)))
"""


def top_cells(path):
    """Imports, parameters, their check, and the examination of a layer that is not the project's."""
    cells = nbformat.read(path, as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code"][:4]


@pytest.fixture
def top(tmp_path):
    """The first notebook's imports, parameters and check, and a training, in a folder as in the project."""
    made = nbformat.read(FIRST, as_version=4)
    made.cells = top_cells(FIRST)[:3]
    assert made.cells[-1].source.startswith("check.parameters(")
    made.cells.append(nbformat.v4.new_code_cell(TRAINED))
    (tmp_path / "notebooks").mkdir()
    nbformat.write(made, tmp_path / "notebooks" / FIRST.name)
    return tmp_path / "notebooks" / FIRST.name


def papermill(folder, notebook, *parameters):
    """The exit code, and the cells as they ran."""
    ran = subprocess.run(
        [sys.executable, "-m", "papermill", notebook.relative_to(folder), "out.ipynb", *parameters],
        cwd=folder,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
        capture_output=True,
    )
    return ran.returncode, nbformat.read(folder / "out.ipynb", as_version=4).cells


@pytest.mark.slow
@pytest.mark.parametrize("place", [".", "notebooks"])
def test_a_notebook_is_pointed_at_a_layer_beside_the_caller(place, tmp_path, top):
    (tmp_path / place / "mymodule.py").write_text(MODULE)
    given = ["-p", "SEED", "7", "-p", "CANDIDATE", "mymodule:MyBatchNorm"]
    code, cells = papermill(tmp_path / place, top, *given)
    assert code == 0
    assert [o.text for o in cells[-1].outputs if o.get("name") == "stdout"] == ["7 8\n"]


@pytest.mark.slow
def test_a_notebook_stops_at_its_top(tmp_path, top):
    code, cells = papermill(tmp_path, top, "-p", "SEEDS", "7")
    assert code != 0
    [failed] = [cell for cell in cells if any(o.output_type == "error" for o in cell.get("outputs", []))]
    assert failed.source.startswith("check.parameters(")
    assert "Received: SEEDS=7" in failed.outputs[-1].evalue


# --- a candidate is examined before anything else calls it ---------------------------------------------------------


class Crashes(keras.layers.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        raise RuntimeError("no idea")


class OtherSignature(keras.layers.Layer):
    def __init__(self, height, channels, **options):
        super().__init__(**options)


class OtherShape(keras.layers.BatchNormalization):
    def __init__(self, **options):
        super().__init__(axis=1, **options)


class Forgets(keras.layers.BatchNormalization):
    """Cannot be loaded, which nothing in a notebook does."""

    def get_config(self):
        return {"sides": 3}


@pytest.fixture
def examined(monkeypatch):
    """Run the top of the notebook of a method with a candidate: what it shows."""
    equal = {"float64": 0.0, "moving": 0.0, "early": {}}
    monkeypatch.setattr(equivalence, "paired_training", lambda *_, **__: equal)  # it would take its time
    shown = []
    monkeypatch.setattr(present, "display", lambda _, metadata, **__: shown.append(metadata["study"]))

    def run(method, candidate, reference=None):
        [path] = FIRST.parent.glob(f"{['BN', 'LN', 'WN'].index(method) + 1:02}_*.ipynb")
        imports, parameters, checked, examination = (cell.source for cell in top_cells(path))
        namespace = {}
        given = f"CANDIDATE = {candidate!r}" + (f"\nREFERENCE = {reference!r}" if reference else "")
        for source in (imports, parameters, given, checked, examination):
            exec(source, namespace)

    return run, shown


@pytest.mark.parametrize("method", ["BN", "LN", "WN"])
def test_a_good_candidate_gets_its_certificate(method, examined):
    run, shown = examined
    run(method, network.REFERENCES[method]["norm"])
    table, _, sentence = shown
    assert table["label"] == f"tbl-{method.lower()}-examination"
    assert {row[3] for row in table["rows"]} == {"same"}
    assert sentence["key"] == f"{method.lower()}.examination"
    assert "is the same as" in sentence["text"]


def test_the_studys_own_layers_are_not_examined_and_another_reference_is(examined):
    run, shown = examined
    run("BN", network.METHODS["BN"]["norm"])
    assert not shown
    run("BN", network.METHODS["BN"]["norm"], f"{__name__}:Forgets")
    assert f"is the same as {__name__}:Forgets" in shown[-1]["text"]


@pytest.mark.parametrize(
    ("method", "candidate", "message"),
    [
        ("BN", Crashes, "fails in 'inference, float32'. RuntimeError: no idea Arg"),
        ("BN", OtherSignature, "fails in 'making and building'. TypeError: .*'channels'"),
        ("BN", OtherShape, r"Its parameters have the shapes \[\(6,\), \(6,\)\] rather than"),
        ("LN", OtherSignature, "fails in 'making and building'. TypeError: .*'channels'"),
        (
            "WN",
            OtherSignature,
            "fails in 'making and building'. ValueError: Expected two layers, or two wrap",
        ),
    ],
)
def test_a_candidate_with_which_the_rest_cannot_run_stops_it(method, candidate, message, examined):
    run, shown = examined
    path = f"{__name__}:{candidate.__name__}"
    reference = network.REFERENCES[method]["norm"]
    expected = f"Expected a layer .* in the place of {reference}. Received: {path}, which .*{message}"
    with pytest.raises(ValueError, match=expected):
        run(method, path)
    assert [record["kind"] for record in shown] == [
        "table",
        "caption",
        "state",
    ]  # what was found is seen first


def test_a_candidate_that_only_cannot_be_loaded_does_not_stop_it(examined):
    run, shown = examined
    run("BN", f"{__name__}:Forgets")
    assert "could not be examined in saving and loading" in shown[-1]["text"]


@pytest.mark.slow
def test_a_notebook_ends_with_what_is_wrong_with_a_candidate(tmp_path, top):
    made = nbformat.read(top, as_version=4)
    made.cells[3] = top_cells(FIRST)[3]
    nbformat.write(made, top)
    (tmp_path / "mymodule.py").write_text(f"import keras\n\n{inspect.getsource(OtherSignature)}")
    code, cells = papermill(tmp_path, top, "-p", "CANDIDATE", "mymodule:OtherSignature")
    assert code != 0
    [failed] = [cell for cell in cells if any(o.output_type == "error" for o in cell.get("outputs", []))]
    assert "examination.of_reader(" in failed.source
    assert "Received: mymodule:OtherSignature, which fails in 'making and" in failed.outputs[-1].evalue
