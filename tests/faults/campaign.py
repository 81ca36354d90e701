"""Runs the long fault campaigns: ``python tests/faults/campaign.py [--only kills,powercut] [--quick] [--seed N]``.

Each module below has ``CAMPAIGNS``: by name, a function from a seed to its figures (``rounds``, ``violations``,
``faults`` and others). ``QUICK_CAMPAIGNS``, where a module has it, holds short forms of the same names. The figures are
merged into ``results.json``. Exits with 1 where there was a violation.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).with_name("results.json")
MODULES = ("kills", "powercut", "migrations", "concurrency", "sharing", "signals", "damage", "diskfull", "machine")

Campaign = Callable[[int], dict[str, Any]]


def campaigns(module_name: str, *, quick: bool) -> dict[str, Campaign]:
    """The campaigns of a module, in their short forms where it has them; none where there is no such module."""
    if importlib.util.find_spec(f"faults.{module_name}") is None:
        return {}
    module = importlib.import_module(f"faults.{module_name}")
    found: dict[str, Campaign] = {**module.CAMPAIGNS, **(getattr(module, "QUICK_CAMPAIGNS", {}) if quick else {})}
    return found


def run(campaign: Campaign, seed: int) -> dict[str, Any]:
    """The figures of a campaign; one that fails itself counts as a violation."""
    started = time.monotonic()
    try:
        figures = dict(campaign(seed))
    except Exception as error:
        figures = {"rounds": 0, "violations": 1, "faults": [f"the campaign failed: {type(error).__name__}: {error}"]}
    return {**figures, "seed": seed, "seconds": round(time.monotonic() - started, 1)}


def merge(name: str, figures: dict[str, Any]) -> None:
    """Put figures into the file, in the place of the older ones of that name."""
    held = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    held[name] = figures
    temporary = RESULTS.with_suffix(".tmp")
    temporary.write_text(json.dumps(held, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    os.replace(temporary, RESULTS)


def main() -> int:
    """Run what is asked for; 1 where there was a violation."""
    parser = argparse.ArgumentParser(description="Break stores on purpose, many times, and check what is left.")
    parser.add_argument("--only", default=",".join(MODULES), help="modules, separated by commas")
    parser.add_argument("--quick", action="store_true", help="short forms, whose figures are not kept")
    parser.add_argument("--seed", type=int, default=1, help="what all chance is drawn from")
    chosen = parser.parse_args()
    unknown = set(chosen.only.split(",")) - set(MODULES)
    if unknown:
        parser.error(f"no such module: {', '.join(sorted(unknown))}; there are {', '.join(MODULES)}")
    sys.path[:0] = [str(TESTS), str(TESTS / "plugin")]
    os.environ.setdefault("EMBEDSTORE_CACHE", str(TESTS.parent / ".cache"))
    logging.getLogger("embedstore").setLevel(logging.ERROR)  # damaged caches are expected by the thousand
    n_violations = 0
    for module in chosen.only.split(","):
        for name, campaign in campaigns(module, quick=chosen.quick).items():
            figures = run(campaign, chosen.seed)
            n_violations += figures["violations"]
            done = f"{figures['rounds']:,} rounds, {figures['violations']} violations, {figures['seconds']:,} s"
            print(f"{name}: {done}", flush=True)
            for fault in figures.get("faults", ()):
                print(f"    {fault}", flush=True)
            if not chosen.quick:
                merge(name, figures)
    return 1 if n_violations else 0


if __name__ == "__main__":
    sys.exit(main())
