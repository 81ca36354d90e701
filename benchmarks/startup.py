"""What a command costs from process start to its end: wall and CPU seconds, medians."""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from report import save


def cost(command: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of a whole process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        store = os.path.join(scratch, "store")
        base = [sys.executable, "-m", "embedstore"]
        subprocess.run([*base, "-q", "demo", "--keep", store], check=True, stdout=subprocess.DEVNULL)
        commands = {
            "embedstore --help": [*base, "--help"],
            "import embedstore": [sys.executable, "-c", "import embedstore"],
            "embedstore search, a text query": [*base, "--store", store, "search", "things", "keeping soup warm"],
            "the same with a filter": [
                *base, "--store", store, "search", "things", "keeping soup warm", "--where", "year < 1900",
            ],
            "python -c pass": [sys.executable, "-c", "pass"],
        }
        for command in commands.values():
            cost(command)  # caches
        samples: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(options.rounds):
            for name, command in commands.items():
                samples[name].append(cost(command))
    save("startup", {
        name: {
            "wall_seconds": round(statistics.median(wall for wall, _ in found), 3),
            "cpu_seconds": round(statistics.median(cpu for _, cpu in found), 3),
        }
        for name, found in samples.items()
    })


if __name__ == "__main__":
    main()
