"""Bulk encoding: embedstore's encoder against ``SentenceTransformer.encode`` alone, on the same texts.

Abstracts of SciFact, sorted by length for sentence-transformers, which then pads least. The two take
turns; the figure is the ratio of medians, below 1 where embedstore is faster. Loading is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np


def abstracts(n_texts: int) -> list[str]:
    """Titles with abstracts, spread over the corpus."""
    folder = Path(os.environ.get("EMBEDSTORE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    with (folder / "scifact" / "corpus.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    step = max(1, len(rows) // n_texts)
    return [f"{row['title']} {row['text']}" for row in rows[::step]][:n_texts]


def main() -> None:
    """Print the medians, the ratio and the greatest difference of a number as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=256, help="how many texts")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from sentence_transformers import SentenceTransformer

    from embedstore.encoders import load_encoder
    from embedstore.encoders.onnx_text import available_cores

    encoder = load_encoder("minilm")
    assert encoder is not None and encoder.spec.location is not None
    texts = abstracts(arguments.n)
    texts.sort(key=lambda text: -encoder.count_tokens(text))
    alone = SentenceTransformer(
        encoder.spec.location, device="cpu", local_files_only=True, model_kwargs={"use_safetensors": True}
    )
    runs = {
        "embedstore": lambda: encoder.encode(texts).vectors,
        "sentence-transformers": lambda: alone.encode(texts, batch_size=32, show_progress_bar=False),
    }
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    vectors = {}
    for number in range(arguments.rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            vectors[name] = run()
            seconds[name].append(time.perf_counter() - began)
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    difference = float(np.abs(vectors["embedstore"] - vectors["sentence-transformers"]).max())
    report = {
        "n_texts": len(texts),
        "n_rounds": arguments.rounds,
        "n_cores": available_cores(),
        "median_seconds": {name: round(value, 3) for name, value in medians.items()},
        "ratio": round(medians["embedstore"] / medians["sentence-transformers"], 3),
        "greatest_difference": difference,
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
