"""Where a benchmark's figures go: one JSON file each, with the machine and the versions they were measured on."""

from __future__ import annotations

import datetime
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("embedstore", "faiss-cpu", "faiss-gpu", "numpy", "onnxruntime", "torch", "sentence-transformers", "lancedb",
            "sqlite-vec", "hnswlib", "chromadb", "openvino", "usearch", "qdrant-client")


NOT_HERE = 77
"""The exit code of a benchmark of what this machine does not have."""


def data_folder() -> Path:
    """The folder of real data sets: EMBEDSTORE_DATA, or ../shared/data beside the checkout."""
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("EMBEDSTORE_DATA") or root.parent / "shared" / "data")
    if not folder.is_dir():
        raise SystemExit(f"there is no folder {folder}; say where the data sets are with EMBEDSTORE_DATA")
    return folder


def machine() -> dict:
    """What the figures were measured on."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "cpu": cpu, "cores": len(os.sched_getaffinity(0)), "python": platform.python_version(),
        "date": datetime.date.today().isoformat(), "versions": versions,
    }


def save(name: str, figures: dict) -> None:
    """Print figures and keep them as ``results/NAME.json``."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine(), "figures": figures}, indent=2)
    print(text)
    (RESULTS / f"{name}.json").write_text(text + "\n")
