"""Real vectors for benchmarks: short definitions of WordNet through minilm, made once and kept in .cache."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from report import data_folder

CACHE = Path(__file__).resolve().parents[1] / ".cache"


def rows_of(n: int) -> list[dict]:
    """``n`` rows of the file, evenly spread over it."""
    rows = []
    with gzip.open(data_folder() / "wordnet_glosses" / "glosses.tsv.gz", "rt", encoding="utf-8") as file:
        header = file.readline().rstrip("\n").split("\t")
        for line in file:
            rows.append(dict(zip(header, line.rstrip("\n").split("\t"), strict=True)))
    return rows[:: len(rows) // n][:n]


def records(n: int = 60_000) -> list[dict]:
    """``n`` records with key, text, four metadata fields and a vector (384,) of length one."""
    rows = rows_of(n)
    matrix = _vectors([row["gloss"] for row in rows], n)
    return [
        {
            "key": row["id"], "text": row["gloss"], "vector": matrix[i], "category": row["lexname"],
            "n_words": len(row["gloss"].split()), "hundredth": i % 100, "share": i / n,
        }
        for i, row in enumerate(rows)
    ]


def _vectors(texts: list[str], n: int) -> np.ndarray:
    path = CACHE / f"glosses-{n}.npy"
    if not path.exists():
        from embedstore.encoders import load_encoder

        encoder = load_encoder("minilm")
        assert encoder is not None
        CACHE.mkdir(exist_ok=True)
        np.save(path, encoder.encode(texts).vectors)
    return np.load(path)


if __name__ == "__main__":
    print(len(records()))
