"""Stop a build again and again at random moments: does it end as one that was left alone, to the last bit?

python tests/killing.py [--times 10] [--only 03] [--seed 0]
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
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


def stopped_amid(folder, only, seconds, stop):
    """Begin a build and stop it after so many seconds: whether it was still at work."""
    process = begin(folder, only)
    time.sleep(seconds)
    stop(process)
    return end(process, 0, -signal.SIGKILL, -signal.SIGTERM, 143) != 0


def end(process, *codes):
    """The exit code of a build that should be one of these."""
    told = process.communicate()[1]
    if process.returncode not in codes:
        raise SystemExit(f"Expected exit code {codes}. Received: {process.returncode}\n{told}")
    return process.returncode


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
        end(begin(alone, options.only), 0)
        length = time.monotonic() - started
        stops = []
        while len(stops) < options.times:
            stops.append(moments.choice([kill, subprocess.Popen.terminate]))
            if not stopped_amid(killed, options.only, moments.uniform(0.1, 0.9) * length, stops[-1]):
                # It found runs of those before, or the first build was slowed down: all begins again, from nothing.
                length *= 0.8
                stops.clear()
                shutil.rmtree(killed)
        kept = len(list((killed / "cache").glob("*.run")))
        end(begin(killed, options.only), 0)
        same = results(alone, options.only) == results(killed, options.only)
        left = [path.name for path in killed.rglob(".building-*")]
    told = f"Killed {stops.count(kill)} times and terminated {len(stops) - stops.count(kill)} times, {kept} runs kept"
    print(f"{told}: {'the same' if same else 'not the same'}; left behind: {left}")
    return 0 if same and not left else 1


if __name__ == "__main__":
    sys.exit(main())
