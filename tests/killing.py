"""Kill a build again and again at random moments: does it end as one that was left alone, to the last bit?

python tests/killing.py [--times 10] [--only 03] [--seed 0]
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

import psutil

BUILD = pathlib.Path(__file__).resolve().parent.parent / "report" / "build.py"


def begin(folder, only):
    """Begin a build of one section in the smoke profile, with a cache of its own."""
    command = [sys.executable, BUILD, "--profile", "smoke", "--only", only, "--output", folder / "out"]
    environment = os.environ | {"NORMLIB_CACHE": str(folder / "cache")}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def kill(process):
    """As a power failure does: the build, its kernel and its workers, all at once."""
    with contextlib.suppress(psutil.Error):
        all_of_it = [*psutil.Process(process.pid).children(recursive=True), process]
        for each in all_of_it:
            with contextlib.suppress(psutil.Error):
                each.kill()
    process.communicate()


def killed_amid(folder, only, seconds):
    """Begin a build and kill it after so many seconds: whether it was still at work."""
    process = begin(folder, only)
    time.sleep(seconds)
    amid = process.poll() is None
    kill(process)
    return amid


def results(folder, only):
    """What a build found, without its times."""

    def timeless(value):
        if isinstance(value, dict):
            return {k: timeless(v) for k, v in value.items() if "milliseconds" not in k and "ms per" not in k}
        return [timeless(item) for item in value] if isinstance(value, list) else value

    found = json.loads((folder / "out" / f"only-{only}" / "results.json").read_text())
    for name in ("date", "seconds"):
        del found["provenance"][name]
    return timeless(found)


def finish(folder, only):
    process = begin(folder, only)
    told = process.communicate()[1]
    if process.returncode:
        raise SystemExit(f"Expected a build that ends well. Received: exit code {process.returncode}\n{told}")


def main():
    """0 if the two are the same, 1 if they are not."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--only", default="03", help="the section that is built")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as top:
        alone, killed = pathlib.Path(top, "alone"), pathlib.Path(top, "killed")
        started = time.monotonic()
        finish(alone, options.only)
        length = time.monotonic() - started
        for _ in range(options.times):
            while not killed_amid(killed, options.only, moments.uniform(0.1, 0.9) * length):
                length *= 0.8  # the first build may have been slowed down by others, and this one found runs
                shutil.rmtree(killed)
        kept = len(list((killed / "cache").glob("*.run")))
        finish(killed, options.only)
        same = results(alone, options.only) == results(killed, options.only)
        left = [path.name for path in (killed / "out").rglob(".building-*")]
    print(
        f"Killed {options.times} times, {kept} runs kept: {'the same' if same else 'not the same'}; left behind: {left}"
    )
    return 0 if same and not left else 1


if __name__ == "__main__":
    sys.exit(main())
