"""One digit of MNIST is ordinary and the nine others are not, ten times: how well an autoencoder's scores tell them.

Trained on one digit among the first 50,000 pictures; the last 10,000 are scored. Beside PCA of the same size. With
``--left-out`` it is the other way round: trained on nine digits, and the one left out is strange.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from mnist import N_HELD_OUT, digits
from report import save
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from embedstore.vae.image_model import load_image_model
from embedstore.vae.image_network import ImageArchitecture
from embedstore.vae.image_training import train_image
from embedstore.vae.scoring import AnomalyScore
from embedstore.vae.training import TrainingSettings

DIM = 20


def scores(folder: Path, learned: np.ndarray, unseen: np.ndarray, epochs: int, width: int) -> dict[str, np.ndarray]:
    """By the word of each score, how strange the unseen pictures are."""
    train_image(learned, folder, size=28, latent_dim=DIM, architecture=ImageArchitecture(width=width),
                settings=TrainingSettings(epochs=epochs, batch=32))  # fmt: skip
    model = load_image_model(folder)
    chunks = [unseen[start : start + 500, None] for start in range(0, len(unseen), 500)]
    found = {by.value: np.concatenate([model.anomaly_scores(chunk, by) for chunk in chunks]) for by in AnomalyScore}
    flat, others = (part.reshape(len(part), -1) / np.float32(255) for part in (learned, unseen))
    fitted = PCA(DIM, random_state=0).fit(flat)
    given_back = fitted.inverse_transform(fitted.transform(others))
    return {**found, "PCA-20": np.square(given_back - others).mean(axis=1)}


def main() -> None:
    """Measure and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--left-out", action="store_true", help="train on nine digits instead of one")
    options = parser.parse_args()
    pictures, labels = digits()
    cut = len(pictures) - N_HELD_OUT
    areas: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for digit in range(10):
            ordinary = (labels != digit) if options.left_out else (labels == digit)
            learned = pictures[:cut][ordinary[:cut]]
            found = scores(Path(folder) / str(digit), learned, pictures[cut:], options.epochs, options.width)
            for name, one in found.items():
                areas.setdefault(name, []).append(float(roc_auc_score(~ordinary[cut:], one)))
            print(digit, {name: round(values[-1], 4) for name, values in areas.items()}, flush=True)
    figures = {
        name: {"mean_auroc": round(float(np.mean(values)), 4), "by_digit": [round(value, 4) for value in values]}
        for name, values in areas.items()
    }
    print({name: one["mean_auroc"] for name, one in figures.items()})
    save("image_anomaly", {
        "epochs": options.epochs, "width": options.width,
        "trained on": "nine digits" if options.left_out else "one digit", **figures,
    })  # fmt: skip


if __name__ == "__main__":
    main()
