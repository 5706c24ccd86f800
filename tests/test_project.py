"""The project as a newcomer finds it: what is pinned, installed, stored and promised is the same everywhere."""

import ast
import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tomllib
import zipfile

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import publish
from study import network

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DIRECT = [
    Requirement(line)
    for lines in (PROJECT["project"]["dependencies"], PROJECT["project"]["optional-dependencies"]["test"])
    for line in lines
]
BUILT = {
    ".hypothesis",
    ".venv",
    ".git",
    "build",
    "published",
    "__pycache__",
}  # folders that are made, not written
FILES = [
    path
    for path in sorted(ROOT.rglob("*"))
    if path.is_file()
    and not any(part in BUILT or part.startswith(".building-") for part in path.relative_to(ROOT).parts)
    and not any(part.endswith((".egg-info", "_cache", "_checkpoints")) for part in path.parts)
]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
HEADINGS = [
    "The question",
    "The formula",
    "The code",
    "The experiment",
    "What we saw, and what we did not show",
]


def named(paths):
    return {"argvalues": paths, "ids": [str(path.relative_to(ROOT)) for path in paths]}


# --- dependencies -------------------------------------------------------------------------------------------------


def lock():
    """The entries of requirements.txt: (Requirement, its hashes)."""
    text = (ROOT / "requirements.txt").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    return [
        (Requirement(line.split("--hash")[0]), re.findall(r"--hash=sha256:[0-9a-f]{64}\b", line))
        for line in lines
    ]


def locked_here():
    """Package -> version, as the lock says for this Python and system."""
    entries = [
        requirement for requirement, _ in lock() if not requirement.marker or requirement.marker.evaluate()
    ]
    return {canonicalize_name(entry.name): next(iter(entry.specifier)).version for entry in entries}


def test_every_package_is_pinned_with_its_hashes():
    for requirement, hashes in lock():
        assert [clause.operator for clause in requirement.specifier] == ["=="], requirement
        assert hashes, requirement


@pytest.mark.parametrize("requirement", DIRECT, ids=str)
def test_the_lock_holds_every_dependency_as_asked(requirement):
    assert locked_here()[canonicalize_name(requirement.name)] in requirement.specifier


def test_what_is_installed_is_what_is_locked():
    installed = {name: importlib.metadata.version(name) for name in locked_here()}
    assert installed == locked_here()


def test_the_lock_can_build_the_project():
    for line in PROJECT["build-system"]["requires"]:
        requirement = Requirement(line)
        assert locked_here()[requirement.name] in requirement.specifier


def test_conda_installs_the_same_lock_on_a_python_that_fits():
    text = (ROOT / "environment.yml").read_text()
    assert re.findall(r"^ {6}- (.*)$", text, flags=re.M) == ["-r requirements.txt"]
    (version,) = re.findall(r"^ {2}- python=(.*)$", text, flags=re.M)
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(version)


def test_make_takes_only_a_python_that_fits():
    low, high = re.search(
        r"\((3, \d+)\) <= sys.version_info < \((3, \d+)\)", (ROOT / "Makefile").read_text()
    ).groups()
    expected = SpecifierSet(f">={low.replace(', ', '.')},<{high.replace(', ', '.')}")
    assert SpecifierSet(PROJECT["project"]["requires-python"]) == expected


def imports(path):
    """The modules a file imports, whole."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", **named([path for path in FILES if path.suffix == ".py"]))
def test_what_is_imported_is_declared(path):
    declared = {canonicalize_name(requirement.name) for requirement in DIRECT} | {"normlib"}
    if path.is_relative_to(ROOT / "benchmarks"):
        declared.add("torch")  # a peer to be measured against where it is installed
    of_module = importlib.metadata.packages_distributions()
    beside = {
        other.stem for folder in ("tests", "report", "benchmarks") for other in (ROOT / folder).glob("*.py")
    }
    modules = {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names - beside
    for module in modules:
        assert declared & set(map(canonicalize_name, of_module.get(module, [module]))), module


@pytest.mark.parametrize("path", **named([ROOT / "normlib.py", *(ROOT / "notebooks/study").glob("*.py")]))
def test_arrows_point_one_way(path):
    allowed = {"normlib.py": set()}.get(path.name, {"normlib", "study"})
    ours = {"normlib", "study", "report", "benchmarks", "tests", "references", "notebooks"}
    assert {name.split(".")[0] for name in imports(path)} & ours <= allowed


# --- what users are told ------------------------------------------------------------------------------------------


def test_commands_of_the_readme_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    told = set(re.findall(r"(?:^ {4}|`)make ([a-z]+)", (ROOT / "README.md").read_text(), flags=re.M))
    assert {"report", "test"} <= told <= targets


def test_make_alone_lists_every_target():
    shown = subprocess.run(["make", "-C", ROOT], capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.M)[1].split()
    assert re.findall(r"^  make (\w+) +\S", shown, flags=re.M) == phony


def test_the_files_that_make_calls_exist():
    called = re.findall(r"[\w/]+\.(?:py|ipynb|txt|toml)\b", (ROOT / "Makefile").read_text())
    assert called
    assert [name for name in called if not (ROOT / name).exists()] == []


def test_the_readme_says_what_the_published_report_found():
    readme = (ROOT / "README.md").read_text()
    results = json.loads((ROOT / "report" / "published" / "results.json").read_text())
    assert publish.with_findings(readme, results) == readme
    other = results | {"sentences": {key: "Otherwise." for key in results["sentences"]}}
    assert publish.with_findings(readme, other) != readme


@pytest.mark.parametrize(
    "unfit",
    [
        {"profile": "quick"},
        {"profile": "smoke"},
        {"commit": "unknown"},
        {"uncommitted changes": True},
        {"data": {"sample": True, "source": "the embedded sample"}},
        {"parameters": {"01_batch_normalization": {}}},
        {"SEED": 7},
        None,
    ],
)
def test_what_the_readme_does_not_speak_of_is_not_published(unfit):
    about = json.loads((ROOT / "report" / "published" / "results.json").read_text())["provenance"]
    about["parameters"] = {name: dict(given) for name, given in about["parameters"].items()}
    if unfit is None:
        publish.refuse_unfit(about)  # what is published is fit
        return
    if "SEED" in unfit:
        about["parameters"]["01_batch_normalization"] |= unfit
    else:
        about |= unfit
    with pytest.raises(SystemExit, match=r"(?s)Expected a build of all sections.*Received"):
        publish.refuse_unfit(about)


def test_the_table_of_methods_has_the_studys_groups():
    groups = dict(network.METHODS["GN"]["options"])["groups"]
    assert f"each of {groups} groups" in (ROOT / "notebooks" / "04_comparison.ipynb").read_text()


def test_the_version_is_the_same_everywhere():
    version = PROJECT["project"]["version"]
    assert importlib.metadata.version("normlib") == version
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {version}\n" in citation
    readme, title = (ROOT / "README.md").read_text(), re.search('^title: "(.*)"$', citation, flags=re.M)[1]
    year = re.search(r"^date-released: (\d+)", citation, flags=re.M)[1]
    for field, value in {"title": title, "version": version, "year": year}.items():
        assert f"{field} = {{{value}}}" in readme
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)[1] == version


def test_no_file_names_a_place_on_somebodys_machine():
    place = re.compile(
        r"(?<![\w.}~*])/(?:" + "|".join(["home", "Users", "root", "work", "tmp", "mnt"]) + r")/[\w.]+"
    )
    for path in FILES:
        if path.suffix in {
            ".py",
            ".ipynb",
            ".md",
            ".toml",
            ".yml",
            ".txt",
            ".cff",
            ".css",
            ".typ",
            ".html",
            "",
        }:
            assert not (found := place.search(path.read_text())), f"{path.relative_to(ROOT)}: {found[0]}"


# --- notebooks ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


def test_there_are_notebooks():
    assert [path.name[:3] for path in NOTEBOOKS] == ["01_", "02_", "03_", "04_", "05_"]


def test_notebooks_are_stored_without_outputs(notebook):
    assert not any(cell.outputs or cell.execution_count for cell in code(notebook))


def test_notebooks_have_parameters_that_run_as_they_are(notebook):
    (cell,) = [cell for cell in code(notebook) if "parameters" in cell.metadata.get("tags", [])]
    parameters = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(cell.source).body}
    expected = {"PROFILE": "quick", "DATASET": "fashion_mnist", "SEED": 2612, "JOBS": 0}
    assert expected.items() <= parameters.items()
    examines_a_layer = any("equivalence.paired_training" in cell.source for cell in code(notebook))
    assert ({"CANDIDATE", "REFERENCE"} <= set(parameters)) == examines_a_layer
    assert all(name.isupper() for name in parameters)


def test_notebooks_check_their_parameters_and_end_with_an_exploration(notebook):
    parameters, checked = (
        next(place for place, cell in enumerate(notebook.cells) if words in cell.source)
        for words in ("PROFILE = ", "check.parameters(globals()")
    )
    assert checked == parameters + 1
    names = [node.targets[0].id for node in ast.parse(notebook.cells[parameters].source).body]
    assert re.findall(r'"(\w+)"', notebook.cells[checked].source) == names[4:]
    tagged = [cell for cell in notebook.cells if "explore" in cell.metadata.get("tags", [])]
    assert tagged == notebook.cells[-2:]
    assert "explore.panel(base, " in tagged[-1].source


def test_notebooks_have_the_five_headings(notebook):
    *found, last = re.findall(r"^## (.*)$", "\n".join(prose(notebook)), flags=re.M)
    assert last == "Explore"
    if (
        "# Exact facts and mechanisms\n" in prose(notebook)[0]
    ):  # many small experiments, each under its own heading
        found, expected = [found[0], found[-1]], [HEADINGS[0], HEADINGS[-1]]
    else:
        expected = HEADINGS
    assert found == expected


def test_notebooks_are_short(notebook):
    lengths = [len(cell.source.splitlines()) for cell in code(notebook)]
    assert statistics.median(lengths) <= 8
    assert max(lengths) <= 25
    assert len(notebook.cells) <= 40


def test_no_measured_number_is_typed(notebook):
    for text in prose(notebook):
        assert not (found := re.search(r"\d\.\d{3,}|\d\.\d+ ?\\?%", text)), found[0]


def test_every_figure_and_table_is_spoken_of_before_it_is_shown(notebook):
    spoken_of = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            spoken_of += cell.source
        elif not re.search("^if ", cell.source, flags=re.M):  # shown where there is occasion to
            for label in re.findall(r'"((?:fig|tbl)-[\w-]+)"', cell.source):
                assert f"](#{label})" in spoken_of, label


def test_notebooks_neither_define_nor_find_what_they_use_by_tricks(notebook):
    for cell in code(notebook):
        assert "sys.path" not in cell.source
        assert not re.search(r"^\s*(?:from .* import \*|%|!)", cell.source, flags=re.M)
        assert not re.search(r"""["'](?:/|~|[A-Z]:\\)""", cell.source)


# --- the whole ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_wheel_holds_all_that_it_needs(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "notebooks/study", source / "notebooks/study")
    for name in ("normlib.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", tmp_path, source], check=True)
    with zipfile.ZipFile(*tmp_path.glob("*.whl")) as wheel:
        wheel.extractall(tmp_path / "site")
    program = "import normlib, study.data; print(normlib.__file__, study.data.load(sample=True).is_sample)"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ran.stdout.split() == [str(tmp_path / "site" / "normlib.py"), "True"], ran.stderr
