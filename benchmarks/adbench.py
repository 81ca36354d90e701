"""Distances to the fifth neighbour as anomaly scores, on sets of ADBench, beside the figures that PyOD publishes.

PyOD's protocol: ten splits of 60 to 40 with the seeds 0 to 9; columns standardised by the training part; a record of
the other part is scored by its distance to the fifth nearest of the training part; the mean of ten areas under it.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
from report import save
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import embedstore

PUBLISHED = {"6_cardio": 0.7236, "24_mnist": 0.8481, "28_pendigits": 0.7486}
NEIGHBOUR = 5


def area(store: embedstore.Store, name: str, rows: np.ndarray, strange: np.ndarray, seed: int) -> float:
    """The area under the curve of one split, by vectors that are stored and found in a collection."""
    learned, others, _, true = train_test_split(rows, strange, test_size=0.4, random_state=seed)
    scaler = StandardScaler().fit(learned)
    collection = store.collection(f"{name}-{seed}", encoder="none", metric="euclidean")
    collection.add(
        {"key": str(place), "vector": row} for place, row in enumerate(scaler.transform(learned).astype(np.float32))
    )
    found = collection.neighbours(scaler.transform(others).astype(np.float32), NEIGHBOUR)
    return float(roc_auc_score(true, -found.scores[:, NEIGHBOUR - 1]))


def main() -> None:
    """Measure and keep the figures."""
    data = Path(os.environ.get("EMBEDSTORE_DATA", Path(__file__).resolve().parents[1] / "../shared/data"))
    figures = {}
    for name, published in PUBLISHED.items():
        held = np.load(data / "adbench_classical" / f"{name}.npz", allow_pickle=False)
        with tempfile.TemporaryDirectory() as folder, embedstore.open(folder) as store:
            areas = [area(store, name, held["X"], held["y"].ravel(), seed) for seed in range(10)]
        figures[name] = {"auroc": round(float(np.mean(areas)), 4), "published": published}
        print(name, figures[name])
    save("adbench", figures)


if __name__ == "__main__":
    main()
