"""Writes docs/benchmarks.md from the results that are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
TITLES = {
    "startup": "From process start to its end",
    "store_writing": "Durable writing: 60,000 records with text, four metadata fields and a vector of 384 numbers",
    "store_cold": "A new process to its first ten hits, 60,000 vectors, vector given",
    "single_add": "One durable add beside a bare SQLite commit of the same row; opening 60,000 vectors",
    "store_searching": "Queries over 60,000 vectors, top 10 with text and metadata",
    "recipes": "Recipes over 60,000 vectors of 384 numbers, each beside the raw FAISS index that it wraps",
    "peers": "Queries over 60,000 vectors beside other stores, top 10 with text and metadata",
    "scale": "1,000,000 vectors of 128 numbers",
    "tuning": "Tunings held against queries that were never seen",
    "bulk_encoding": "Bulk encoding of texts beside SentenceTransformer.encode, unsorted, its default batch",
    "ingest_text": "Ingest of scientific abstracts with minilm",
    "scifact": "SciFact (BEIR): 5,183 abstracts, 809 queries, through the command line",
    "image_vae": "Image autoencoders on MNIST, trained on 50,000 digits, measured on 10,000 others; 20 dimensions",
    "image_anomaly": "One digit of MNIST against the nine others: area under the curve of scores, mean of ten digits",
    "emoji": "Emoji in colour with alpha at 64 x 64, 64 dimensions, a tenth held out",
    "image_encoding": "Encoding of pictures beside the bare PyTorch model in its best batch",
    "tables": "16 numbers a row: accuracy of predicting a column that was left out, beside PCA and TruncatedSVD",
    "analogies": "Word analogies by minilm, the words of the questions alone, beside gensim",
    "digit_arithmetic": "Digits of MNIST moved to another class and decoded, judged by a classifier of pixels",
    "emoji_directions": "Skin and gender of emoji as directions: the counterpart among the three nearest",
    "latent_figures": "Concept erasure, reduction to 128 numbers, and types of vehicles by weight",
    "latent_million": "Mean, direction and PCA of a million vectors beside NumPy on the mapped array",
    "probing_figures": "What the layers of minilm and of a small causal model know",
    "probing_capture": "Capturing all seven layers of minilm into a store: throughput beside the bare forward pass",
    "probing_memory": "Capturing all seven layers of minilm for 100,000 short texts",
    "in_context": "Learning in context where the concept is known: accuracy by choice of demonstrations, and steered",
    "adbench": "Distance to the fifth neighbour as an anomaly score, PyOD's protocol",
}


def flat(figures: Any, path: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """Nested figures as rows of a name and a value."""
    if isinstance(figures, dict):
        return [row for name, value in figures.items() for row in flat(value, (*path, name.replace("_", " ")))]
    if isinstance(figures, list):
        return []
    value = f"{figures:,}" if isinstance(figures, int) else str(figures)
    return [(", ".join(path), value)]


def page() -> str:
    """The whole page."""
    parts = [
        "# Benchmarks\n",
        "Written by `benchmarks/table.py` from `benchmarks/results/`. The machines are shared: the ratios are the"
        " figures, each taken within one run, interleaved, as medians. `make bench` measures them anew.\n",
    ]
    for name, title in TITLES.items():
        path = HERE / "results" / f"{name}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        machine = result["machine"]
        versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
        script = "store_speed.py " + name.removeprefix("store_") if name.startswith("store_") else f"{name}.py"
        parts.append(f"## {title}\n")
        where = f"{machine['cpu']}, {machine['cores']} cores, {machine['date']}"
        parts.append(f"`benchmarks/{script}`; {where}; {versions}\n")
        parts.append("| figure | value |\n|---|---|")
        parts += [f"| {label} | {value} |" for label, value in flat(result["figures"])]
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE.name}")
