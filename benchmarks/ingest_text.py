"""Ingest of real abstracts with minilm, beside SentenceTransformer.encode alone on the same texts, sorted by length."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from report import data_folder, save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=512, help="how many abstracts (5,183 are there)")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with (data_folder() / "scifact" / "corpus.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    rows = rows[:: max(1, len(rows) // options.n)][: options.n]
    texts = [f"{row['title']} {row['text']}" for row in rows]

    from sentence_transformers import SentenceTransformer

    import embedstore
    from embedstore.encoders import load_encoder

    ours = load_encoder("minilm")
    model = SentenceTransformer(ours.spec.location, local_files_only=True)
    ordered = sorted(texts, key=len)
    model.encode(ordered[:8])
    ours.encode(texts[:8])
    pairs = []
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "rows.jsonl"
        path.write_text("".join(json.dumps({"id": row["_id"], "text": text}) + "\n"
                                for row, text in zip(rows, texts, strict=True)))
        for turn in range(options.rounds):
            with embedstore.open(Path(scratch) / f"store{turn}") as store:
                started = time.perf_counter()
                store.collection("c").ingest(path)
                ingest = time.perf_counter() - started
            started = time.perf_counter()
            model.encode(ordered)
            pairs.append((ingest, time.perf_counter() - started))
    save("ingest_text", {
        "n_texts": len(texts),
        "ingest_seconds": round(statistics.median(one for one, _ in pairs), 2),
        "sentence_transformers_encode_seconds": round(statistics.median(two for _, two in pairs), 2),
        "ratio": round(statistics.median(one / two for one, two in pairs), 3),
    })


if __name__ == "__main__":
    main()
