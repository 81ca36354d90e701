"""Colour pictures with alpha: Noto's emoji at 64 x 64, a tenth of them held out.

The mean squared error of held-out pictures, and how often the nearest learned picture of a held-out one is of its
subgroup, by the autoencoder's means, by pixels, and by PCA of the same size.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
import time
import zipfile
from pathlib import Path

import faiss
import numpy as np
from report import save
from sklearn.decomposition import PCA

from embedstore.pictures import read_picture
from embedstore.vae.image_model import load_image_model
from embedstore.vae.image_network import ImageArchitecture
from embedstore.vae.image_training import train_image
from embedstore.vae.preparation import ImagePreparation
from embedstore.vae.training import TrainingSettings

DATA = Path(os.environ.get("EMBEDSTORE_DATA", Path(__file__).resolve().parents[1] / "../shared/data"))
SIZE, DIM = 64, 64


def emoji(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 (n, 64, 64, 3) over white, and subgroups, in an order drawn once."""
    with zipfile.ZipFile(DATA / "emoji_noto" / "emoji_png.zip") as archive:
        archive.extractall(folder)
    with (DATA / "emoji_noto" / "emoji.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    held = {path.name: path for path in folder.rglob("*.png")}
    preparation = ImagePreparation(SIZE, fit="pad")
    rows = [row for row in rows if Path(row["file"]).name in held]
    pixels = np.stack([preparation.apply(read_picture(held[Path(row["file"]).name])) for row in rows])
    order = np.random.default_rng(0).permutation(len(rows))
    groups = np.asarray([row["subgroup"] for row in rows], dtype="U")
    return pixels[order].transpose(0, 2, 3, 1), groups[order]


def same_subgroup(learned: np.ndarray, unseen: np.ndarray, groups: np.ndarray, true: np.ndarray, k: int = 5) -> dict:
    index = faiss.IndexFlatL2(learned.shape[1])
    index.add(np.ascontiguousarray(learned, np.float32))
    _, found = index.search(np.ascontiguousarray(unseen, np.float32), k)
    same = groups[found] == true[:, None]
    return {"nearest": round(float(same[:, 0].mean()), 4), f"of {k}": round(float(same.mean()), 4)}


def main() -> None:
    """Measure and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--beta", type=float, default=1.0)
    parser.add_argument("--width", type=int, default=32)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pictures, groups = emoji(Path(folder) / "png")
        cut = len(pictures) * 9 // 10
        started = time.process_time()
        train_image(
            pictures[:cut], Path(folder) / "model", size=SIZE, latent_dim=DIM, mode="colour",
            architecture=ImageArchitecture(width=options.width), progress=print,
            settings=TrainingSettings(epochs=options.epochs, beta=options.beta, batch=64, patience=0),
        )  # fmt: skip
        cpu_minutes = (time.process_time() - started) / 60
        model = load_image_model(Path(folder) / "model")
    pixels = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
    means = np.concatenate([model.encode(pixels[start : start + 200])[0] for start in range(0, len(pixels), 200)])
    given_back = np.concatenate(
        [model.decode_exactly(means[start : start + 200]) for start in range(cut, len(pixels), 200)]
    )
    flat = pixels.reshape(len(pixels), -1) / np.float32(255)
    fitted = PCA(DIM, random_state=0).fit(flat[:cut])
    codes = fitted.transform(flat)
    of_pca = fitted.inverse_transform(codes[cut:])
    seen, true = groups[:cut], groups[cut:]
    figures = {
        "emoji": len(pictures), "held_out": len(pictures) - cut, "cpu_minutes": round(cpu_minutes, 2),
        "autoencoder": {
            "mse": round(float(np.square(given_back.reshape(len(true), -1) - flat[cut:]).mean()), 5),
            **same_subgroup(means[:cut], means[cut:], seen, true),
        },
        "PCA-64": {
            "mse": round(float(np.square(of_pca - flat[cut:]).mean()), 5),
            **same_subgroup(codes[:cut], codes[cut:], seen, true),
        },
        "pixels": same_subgroup(flat[:cut], flat[cut:], seen, true),
    }  # fmt: skip
    for name, one in figures.items():
        print(name, one)
    save("emoji", {"epochs": options.epochs, "beta": options.beta, "width": options.width, **figures})


if __name__ == "__main__":
    main()
