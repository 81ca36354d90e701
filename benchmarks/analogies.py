"""Analogies between the word vectors of minilm, of the words of word2vec's questions alone, the given ones excluded.

With gensim installed, both are run on the same vectors, and their results by section held against each other:

    pip install gensim && python benchmarks/analogies.py
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from report import data_folder, save

import embedstore

METHODS = ("3cosadd", "3cosmul", "pairdirection")


def by_gensim(words: list[str], vectors: np.ndarray, questions: Path, method: str) -> tuple[dict[str, tuple], float]:
    """By section how many questions there were and how many were solved, and the seconds that it took."""
    from gensim.models import KeyedVectors

    class CosMul(KeyedVectors):
        """Solves by the product, which ``evaluate_word_analogies`` itself has no way to ask for."""

        def most_similar(self, positive, negative, topn, **_):  # noqa: ANN001, ANN003, ANN202
            return self.most_similar_cosmul(positive, negative, topn=topn)

    model = (CosMul if method == "3cosmul" else KeyedVectors)(vectors.shape[1])
    model.add_vectors(words, vectors)
    model.fill_norms()
    started = time.perf_counter()
    _, sections = model.evaluate_word_analogies(
        str(questions), restrict_vocab=len(words), case_insensitive=False
    )
    seconds = time.perf_counter() - started
    found = {}
    for one in sections[:-1]:
        found[one["section"]] = (len(one["correct"]) + len(one["incorrect"]), len(one["correct"]))
    return found, seconds


def main() -> None:
    """Measure and keep the figures."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    questions = data_folder() / "analogies" / "questions-words.txt"
    lines = [line.split() for line in questions.read_text().splitlines() if not line.startswith(":")]
    words = sorted({word for line in lines for word in line})
    figures: dict = {"words": len(words)}
    with tempfile.TemporaryDirectory() as folder, embedstore.open(folder) as store:
        collection = store.collection("words", encoder="minilm")
        collection.add([{"key": word, "text": word} for word in words])
        space = collection.space()
        vectors = collection.vectors(words)
        for method in METHODS:
            started = time.perf_counter()
            report = space.analogies(questions, method=method)
            seconds = time.perf_counter() - started
            mine = {one.name: (one.n, one.n_right) for one in report.sections}
            figures[method] = {"accuracy": round(report.total.accuracy, 4), "seconds": round(seconds, 2)}
            if method == "pairdirection":
                continue
            try:
                theirs, seconds = by_gensim(words, vectors, questions, method)
            except ImportError:
                continue
            total = sum(right for _, right in theirs.values()) / sum(n for n, _ in theirs.values())
            figures[method] |= {
                "gensim_accuracy": round(total, 4), "gensim_seconds": round(seconds, 2),
                "sections_that_differ": sum(mine.get(name) != theirs[name] for name in theirs),
            }  # fmt: skip
    for name, found in figures.items():
        print(name, found)
    save("analogies", figures)


if __name__ == "__main__":
    main()
