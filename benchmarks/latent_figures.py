"""Erasure, reduction, and mixtures, each on real or drawn data: what they keep and what they take away.

Erasure: whether a word of the analogies begins with a capital, and the kind of a question of TREC, in the vectors of
minilm, erased by LEACE. Reduction: sentence pairs of STS-B (dev) by minilm and by its PCA of 128. Mixture: weights of
vehicles of four types that overlap by a twentieth, in which a Gaussian mixture finds the types.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from report import data_folder, save
from scipy.stats import norm, spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import cross_val_score

import embedstore


def erasure(store, texts: list[str], labels: list[str], name: str) -> dict:
    """A linear probe before and after, and how much of the neighbourhoods is kept."""
    collection = store.collection(name, encoder="minilm")
    for start in range(0, len(texts), 2000):
        collection.add([
            {"key": str(place), "text": texts[place], "label": labels[place]}
            for place in range(start, min(start + 2000, len(texts)))
        ])  # fmt: skip
    space = collection.add_space("erased", reduce="erase", label="label")
    keys = [str(place) for place in range(len(texts))]
    before, after = collection.vectors(keys), collection.vectors(keys, space="erased")
    probe = LogisticRegression(max_iter=2000)
    _, counts = np.unique(labels, return_counts=True)
    figures = {
        "records": len(texts), "majority": round(float(counts.max() / len(texts)), 4),
        "probe_before": round(float(cross_val_score(probe, before, labels, cv=5).mean()), 4),
        "probe_after": round(float(cross_val_score(probe, after, labels, cv=5).mean()), 4),
        "probe_after_in_sample": round(float(probe.fit(after, labels).score(after, labels)), 4),
        "neighbours_kept": space.describe()["fidelity"]["recall"],
    }  # fmt: skip
    try:
        import torch
        from concept_erasure import LeaceEraser
    except ImportError:
        return figures
    onehot = np.stack([np.asarray(labels) == one for one in np.unique(labels)], axis=1)
    unit = torch.from_numpy((before / np.linalg.norm(before, axis=1, keepdims=True)).astype(np.float64))
    eraser = LeaceEraser.fit(unit, torch.from_numpy(onehot.astype(np.float64)), shrinkage=False)
    figures["greatest_difference_to_concept_erasure"] = float(np.abs(eraser(unit).numpy() - after).max())
    return figures


def questions() -> tuple[list[str], list[str]]:
    """The training questions of TREC, and what kind each is of."""
    lines = (data_folder() / "sentence_clf" / "TREC.train.all").read_text(encoding="latin-1").splitlines()
    pairs = [line.split(" ", 1) for line in lines if line.strip()]
    seen = {text: label for label, text in pairs}  # each once
    return list(seen), list(seen.values())


def reduction(store) -> dict:
    """Spearman's correlation with people's judgement, of all numbers and of 128."""
    import csv

    with (data_folder() / "stsb" / "stsb-en-dev.csv").open(encoding="utf-8", newline="") as lines:
        pairs = [(first, second, float(score)) for first, second, score in csv.reader(lines)]
    texts = sorted({text for a, b, _ in pairs for text in (a, b)})
    place = {text: str(number) for number, text in enumerate(texts)}
    collection = store.collection("pairs", encoder="minilm")
    for start in range(0, len(texts), 2000):
        collection.add([{"key": place[text], "text": text} for text in texts[start : start + 2000]])
    collection.add_space("pca", reduce="pca", dim=128)
    figures = {"pairs": len(pairs)}
    for space in ("text", "pca"):
        left = collection.vectors([place[a] for a, _, _ in pairs], space=space)
        right = collection.vectors([place[b] for _, b, _ in pairs], space=space)
        cosines = np.einsum("ij,ij->i", left, right) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
        figures[f"spearman_{space}"] = round(float(spearmanr(cosines, [one for _, _, one in pairs])[0]) * 100, 2)
    return figures


def mixture(store) -> dict:
    """Types of vehicles that nobody noted, of weights alone: a bridge that weighs what goes over it."""
    drawn = np.random.default_rng(0)
    means, deviation = np.array([1.5, 8.0, 17.0, 30.0]), np.array([0.3, 1.8, 2.8, 3.8])
    kinds = ("car", "bus", "lorry", "articulated lorry")
    types = drawn.choice(4, 4000, p=[0.6, 0.1, 0.2, 0.1])
    weights = drawn.normal(means[types], deviation[types])
    crossings = (means[:-1] * deviation[1:] + means[1:] * deviation[:-1]) / (deviation[1:] + deviation[:-1])
    overlap = [float(norm.sf(x, means[i], deviation[i]) + norm.cdf(x, means[i + 1], deviation[i + 1]))
               for i, x in enumerate(crossings)]  # fmt: skip
    collection = store.collection("bridge", encoder="none", metric="euclidean")
    collection.add([
        {"key": str(place), "vector": [float(weight)], "true": kinds[kind]}
        for place, (weight, kind) in enumerate(zip(weights, types, strict=True))
    ])  # fmt: skip
    found = collection.cluster(method="gmm", store_as="type")
    labels = {key: label for key, label in zip(found.keys, found.labels.tolist(), strict=True)}
    agreed = adjusted_rand_score(types, [labels[str(place)] for place in range(4000)])
    return {
        "vehicles": 4000, "greatest_overlap_of_neighbours": round(max(overlap), 4), "parts_found": len(found.sizes),
        "adjusted_rand_index": round(float(agreed), 4),
    }  # fmt: skip


def main() -> None:
    """Measure and keep the figures."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    lines = (data_folder() / "analogies" / "questions-words.txt").read_text().splitlines()
    words = sorted({word for line in lines if not line.startswith(":") for word in line.split()})
    capital = ["capital" if word[0].isupper() else "small" for word in words]
    with tempfile.TemporaryDirectory() as folder, embedstore.open(Path(folder)) as store:
        figures = {
            "erasure of capitals": erasure(store, words, capital, "words"),
            "erasure of kinds of questions": erasure(store, *questions(), "questions"),
            "reduction": reduction(store), "mixture": mixture(store),
        }  # fmt: skip
    for name, found in figures.items():
        print(name, found)
    save("latent_figures", figures)


if __name__ == "__main__":
    main()
