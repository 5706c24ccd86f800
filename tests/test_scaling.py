"""The simulation behind report/scaling.md, on cases that can be reckoned by hand."""

import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import scaling  # noqa: E402


@pytest.mark.parametrize(
    ("case", "seconds"),
    [
        ((1, 1, 10.0, 0.0, 0.0), 10.0),
        ((10, 2, 10.0, 0.0, 3.0), 53.0),  # five rounds, after the start
        ((100, 100, 10.0, 1.0, 0.0), 110.0),  # the last one waits for the scheduler a hundred times
        ((100, 4, 1.0, 1.0, 0.0), 101.0),  # the scheduler is the limit: more workers would not help
    ],
)
def test_makespans(case, seconds):
    assert scaling.makespan(*case) == pytest.approx(seconds)


def test_the_page_is_what_the_script_writes():
    written = (ROOT / "report" / "scaling.md").read_text()
    found = {"start": 8.0, "around": 1.0, "scheduler": 1e-3, "bytes": 4_000}
    fresh = scaling.page(found, scaling.table(found))
    for line in (line for line in fresh.splitlines() if line and not any(c.isdigit() for c in line)):
        assert line in written
