"""Publish the built report: copy it to report/published/, its main figure too, and say in the README what it found."""

import json
import pathlib
import re
import shutil

import nbformat

from build import SECTIONS
from compose import beginning, together

HERE = pathlib.Path(__file__).parent
BUILT, PUBLISHED, README = HERE / "build", HERE / "published", HERE.parent / "README.md"
FRONT = "fig-comparison"
FOUND = (  # what is said in bold, and the sentences behind it
    ("One learning rate for all.", ("comparison.answer",)),
    ("A learning rate for each.", ("comparison.tuned", "comparison.scale")),
    ("The size of the batch.", ("comparison.when",)),
    ("Our layers and TensorFlow's.", ("bn.same", "ln.same", "wn.same")),
    ("The drift seen in 2019.", ("bn.drift",)),
    ("Why that study's LN ended higher.", ("ln.reason",)),
    ("Second derivatives.", ("mechanisms.second",)),
)


def main():
    """Copy, and rewrite the README between its marks."""
    results = json.loads((BUILT / "results.json").read_text())
    refuse_unfit(results["provenance"])
    readme, figure = with_findings(README.read_text(), results), front(BUILT / "notebooks")
    PUBLISHED.mkdir(exist_ok=True)
    for name in ("report.html", "report.pdf", "results.json"):
        shutil.copy(BUILT / name, PUBLISHED)
    (PUBLISHED / "front.svg").write_text(figure)
    README.write_text(readme)


def refuse_unfit(about):
    """Only a whole report of committed code that may claim something, about the data of which the README speaks."""
    sections = {path.stem for path in (HERE.parent / "notebooks").glob(SECTIONS)}
    others = {name for given in about["parameters"].values() for name in given} - {"PROFILE", "JOBS"}
    if (
        set(about["parameters"]) != sections
        or about["profile"] in ("smoke", "quick")
        or about["data"]["sample"]
        or others
        or about["uncommitted changes"]
        or about["commit"] == "unknown"
    ):
        raise SystemExit(
            "Expected a build of all sections and of committed code, on the full data, of the default or the thorough "
            f"profile, without other parameters. Received: {', '.join(about['parameters'])}; "
            f"{about['data']['source']}; profile {about['profile']}; {', '.join(sorted(others)) or 'no'} parameters; "
            f"commit {about['commit']}; uncommitted changes: {about['uncommitted changes']}"
        )


def front(notebooks):
    """The SVG of the report's main figure."""
    for path in sorted(notebooks.glob("*.ipynb")):
        for cell in nbformat.read(path, nbformat.NO_CONVERT).cells:
            for output in cell.get("outputs", []):
                if output.get("metadata", {}).get("study", {}).get("label") == FRONT:
                    return "".join(output["data"]["image/svg+xml"])
    raise SystemExit(f"Expected a build with the figure {FRONT}. Received: {notebooks}")


def with_findings(readme, results):
    """The README with the beginnings of these results' sentences in their place."""
    about = results["provenance"]
    told = results["sentences"]
    lines = [f"* **{subject}** {together([beginning(told[key]) for key in keys])}" for subject, keys in FOUND]
    lines.append(f"\n(The `{about['profile']}` profile, {about['date'][:10]}.)")
    block = "<!-- found -->\n" + "\n".join(lines) + "\n<!-- /found -->"
    return re.sub("<!-- found -->.*<!-- /found -->", lambda _: block, readme, flags=re.S)


if __name__ == "__main__":
    main()
