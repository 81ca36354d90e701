"""Retrieval quality on SciFact (BEIR), through the command line alone: ingest, all queries, nDCG@10.

The published figure of all-MiniLM-L6-v2 on these 809 queries is 0.66020.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections import defaultdict

from report import data_folder, save

PUBLISHED = 0.66020


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", help="keep the store here, and use it again")
    options = parser.parse_args()
    folder = data_folder() / "scifact"
    with tempfile.TemporaryDirectory() as scratch:
        store = options.store or f"{scratch}/store"
        command = [sys.executable, "-m", "embedstore", "--store", store, "--format", "ndjson"]
        started = time.perf_counter()
        subprocess.run(
            [*command, "ingest", "scifact", str(folder / "corpus.jsonl"), "--text", "title,text", "--key", "_id",
             "--metadata", "title"],
            check=True,
        )
        figures = {"ingest_seconds": round(time.perf_counter() - started, 1), "published_ndcg_at_10": PUBLISHED}
        for mode in ("vector", "hybrid", "text"):
            started = time.perf_counter()
            done = subprocess.run(
                [*command, "search", "scifact", "--queries", str(folder / "queries.train.jsonl"), "-k", "10",
                 "--mode", mode],
                check=True, stdout=subprocess.PIPE,
            )
            figures[f"{mode}_seconds"] = round(time.perf_counter() - started, 1)
            figures[f"{mode}_ndcg_at_10"] = round(ndcg(done.stdout, folder / "qrels" / "train.tsv"), 5)
    save("scifact", figures)


def ndcg(answers: bytes, qrels) -> float:
    """Mean nDCG@10 over the queries of ``qrels``, from the hits as JSON lines."""
    relevant: dict[str, dict[str, int]] = defaultdict(dict)
    for line in qrels.read_text().splitlines()[1:]:
        query, document, grade = line.split("\t")
        relevant[query][document] = int(grade)
    ranked: dict[str, list[str]] = defaultdict(list)
    for line in answers.splitlines():
        hit = json.loads(line)
        ranked[hit["query"]].append(hit["key"])
    total = 0.0
    for query, grades in relevant.items():
        gain = sum(
            (2 ** grades.get(document, 0) - 1) / math.log2(rank + 1)
            for rank, document in enumerate(ranked[query][:10], start=1)
        )
        best = sorted(grades.values(), reverse=True)[:10]
        total += gain / sum((2**grade - 1) / math.log2(rank + 1) for rank, grade in enumerate(best, start=1))
    return total / len(relevant)


if __name__ == "__main__":
    main()
