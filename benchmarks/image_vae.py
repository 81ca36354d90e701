"""The image autoencoder on MNIST: its bound, and what its means are worth as vectors, beside PCA of the same size.

Trained on the first 50,000 pictures, measured on the last 10,000. The bound is minus the ELBO in nats a picture, one
sample of z, summed binary cross-entropy of grey pixels.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
import torch
from mnist import N_HELD_OUT, digits
from report import save
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from embedstore.vae.image_model import load_image_model
from embedstore.vae.image_network import ImageArchitecture
from embedstore.vae.image_training import train_image
from embedstore.vae.objective import kl_from_standard_normal, sampled
from embedstore.vae.training import TrainingSettings

DIM = 20


def bound(model, pixels: np.ndarray) -> float:
    """Minus the ELBO, nats a picture."""
    torch.manual_seed(0)
    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(pixels), 500):
            items = model.tensor(pixels[start : start + 500])
            mu, log_variance = model.network.encode(items)
            missed = -model.network.log_likelihood(model.network.decode(sampled(mu, log_variance)), items)
            total += float((missed + kl_from_standard_normal(mu, log_variance).sum(1)).double().sum())
    return total / len(pixels)


def means(model, pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([model.encode(pixels[start : start + 500])[0] for start in range(0, len(pixels), 500)])


def worth(learned: np.ndarray, held_out: np.ndarray, labels: np.ndarray, true: np.ndarray) -> dict:
    """Accuracy of a linear probe and of the nearest neighbour."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(learned, labels)
    index = faiss.IndexFlatL2(learned.shape[1])
    index.add(np.ascontiguousarray(learned, np.float32))
    _, nearest = index.search(np.ascontiguousarray(held_out, np.float32), 1)
    return {
        "linear_probe": round(float(probe.score(held_out, true)), 4),
        "one_nn": round(float((labels[nearest[:, 0]] == true).mean()), 4),
    }


def measured(pictures: np.ndarray, labels: np.ndarray, name: str, settings, architecture, scratch: Path) -> dict:
    cut = len(pictures) - N_HELD_OUT
    started, wall = time.process_time(), time.perf_counter()
    train_image(pictures[:cut], scratch / name, size=28, latent_dim=DIM, settings=settings, architecture=architecture,
                progress=print)  # fmt: skip
    cpu_minutes = (time.process_time() - started) / 60
    model = load_image_model(scratch / name)
    learned, held_out = pictures[:cut, None], pictures[cut:, None]
    codes, unseen = means(model, learned), means(model, held_out)
    decoded = np.concatenate([
        model.decode_exactly(unseen[start : start + 500]) for start in range(0, len(unseen), 500)
    ])  # fmt: skip
    return {
        "cpu_minutes": round(cpu_minutes, 2), "minutes": round((time.perf_counter() - wall) / 60, 2),
        "negative_elbo": round(bound(model, held_out), 2),
        "mse": round(float(np.square(decoded - held_out / np.float32(255)).mean()), 5),
        "active_units": int((unseen.var(axis=0) > 0.01).sum()), **worth(codes, unseen, labels[:cut], labels[cut:]),
    }  # fmt: skip


def pca(pictures: np.ndarray, labels: np.ndarray) -> dict:
    flat = pictures.reshape(len(pictures), -1) / np.float32(255)
    cut = len(flat) - N_HELD_OUT
    fitted = PCA(DIM, random_state=0).fit(flat[:cut])
    codes, unseen = fitted.transform(flat[:cut]), fitted.transform(flat[cut:])
    return {
        "mse": round(float(np.square(fitted.inverse_transform(unseen) - flat[cut:]).mean()), 5),
        **worth(codes, unseen, labels[:cut], labels[cut:]),
    }


def main() -> None:
    """Measure and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=0, help="of the convolutional network; 0: as it has it")
    options = parser.parse_args()
    pictures, labels = digits()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        plain = ImageArchitecture(kind="mlp", hidden=400)
        figures = {
            "default convolutional": measured(
                pictures, labels, "conv", TrainingSettings(epochs=options.epochs), None, scratch
            ),
            "784-400-20, 10 epochs": measured(
                pictures, labels, "mlp", TrainingSettings(epochs=10, free_nats=0.0), plain, scratch
            ),
            "PCA-20": pca(pictures, labels),
        }  # fmt: skip
    for name, found in figures.items():
        print(name, found)
    save("image_vae", figures)


if __name__ == "__main__":
    main()
