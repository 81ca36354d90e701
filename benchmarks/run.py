"""Runs every benchmark, one after the other, and writes docs/benchmarks.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from report import NOT_HERE

HERE = Path(__file__).parent
SCRIPTS = ("startup.py", "store_speed.py", "single_add.py", "ingest_text.py", "bulk_encoding.py", "scifact.py",
           "recipes.py", "gpu.py", "scale.py", "tuning.py", "peers.py", "image_vae.py", "image_anomaly.py", "emoji.py",
           "image_encoding.py", "tables.py", "adbench.py", "analogies.py", "digit_arithmetic.py",
           "emoji_directions.py", "latent_figures.py", "latent_million.py", "probing_figures.py",
           "probing_capture.py", "in_context.py", "table.py")


def main() -> None:
    for name in SCRIPTS:
        print(f"==> {name}", flush=True)
        done = subprocess.run([sys.executable, HERE / name], check=False, cwd=HERE)
        if done.returncode not in (0, NOT_HERE):
            sys.exit(done.returncode)


if __name__ == "__main__":
    main()
