"""Arithmetic with digits: a held-out digit of MNIST plus the way from its class to another, decoded and judged.

The way is the difference of the classes' centroids, a direction that the store fits and keeps. A classifier of pixels,
which knows nothing of the autoencoder, judges what is decoded; the same is done with pixels themselves. Then midpoints
between digits of different classes, along the great circle and straight: how sure the classifier is of them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from mnist import N_HELD_OUT, digits
from report import save
from sklearn.neural_network import MLPClassifier

import embedstore
from embedstore.latent.strips import save_strip
from embedstore.vae.image_training import train_image

OF_EACH, MIDPOINTS = 100, 2000
IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"


def main() -> None:
    """Measure and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a folder of 'train image' of 20 dimensions; else one is trained, in minutes")
    parser.add_argument("--strip", action="store_true", help="draw docs/images/digits.png, too")
    options = parser.parse_args()
    pictures, labels = digits()
    cut = len(pictures) - N_HELD_OUT
    judge = MLPClassifier((256,), max_iter=20, early_stopping=True, random_state=0)
    judge.fit(pictures[:cut].reshape(cut, -1) / np.float32(255), labels[:cut])
    accuracy = judge.score(pictures[cut:].reshape(N_HELD_OUT, -1) / np.float32(255), labels[cut:])
    with tempfile.TemporaryDirectory() as scratch, embedstore.open(Path(scratch) / "store") as store:
        model = options.model or str(Path(scratch) / "model")
        if options.model is None:
            train_image(pictures[:cut], model, size=28, latent_dim=20, progress=print)
        collection = store.collection("digits", encoder=model)
        for start in range(cut, len(pictures), 2000):
            collection.add([
                {"key": str(place), "image": pictures[place], "digit": int(labels[place])}
                for place in range(start, min(start + 2000, len(pictures)))
            ])  # fmt: skip
        figures = {"judge_accuracy": round(float(accuracy), 4), **measured(collection, pictures, labels, cut, judge)}
        if options.strip:
            draw(collection, labels, cut)
    for name, found in figures.items():
        print(name, found)
    save("digit_arithmetic", figures)


def judged(judge: MLPClassifier, space, latents: np.ndarray) -> np.ndarray:
    """The classifier's shares (n, 10) of what latent vectors decode to."""
    images = space.decode(latents.astype(np.float32))
    pixels = np.stack([np.asarray(one, np.float32) for one in images]).reshape(len(images), -1) / 255
    return judge.predict_proba(pixels)


def measured(collection, pictures: np.ndarray, labels: np.ndarray, cut: int, judge: MLPClassifier) -> dict:
    space = collection.space()
    vectors = collection.vectors([str(place) for place in range(cut, len(pictures))])
    unseen, true = pictures[cut:].reshape(N_HELD_OUT, -1) / np.float32(255), labels[cut:]
    right: dict[str, list[float]] = {"strength 1": [], "strength 1.5": [], "pixels, strength 1": []}
    for a in range(10):
        places = np.flatnonzero(true == a)[:OF_EACH]
        for b in range(10):
            if a == b:
                continue
            way = space.fit_direction(f"{a} to {b}", positive=f"digit = {b}", negative=f"digit = {a}").array
            for strength in (1.0, 1.5):
                found = judged(judge, space, vectors[places] + strength * way).argmax(axis=1)
                right[f"strength {strength:g}"].append(float((found == b).mean()))
            moved = unseen[places] + unseen[true == b].mean(axis=0) - unseen[true == a].mean(axis=0)
            found = judge.predict_proba(np.clip(moved, 0, 1)).argmax(axis=1)
            right["pixels, strength 1"].append(float((found == b).mean()))
    drawn = np.random.default_rng(0)
    pairs = drawn.integers(0, N_HELD_OUT, (2 * MIDPOINTS, 2))
    pairs = pairs[true[pairs[:, 0]] != true[pairs[:, 1]]][:MIDPOINTS]
    sure = {}
    for way in ("slerp", "lerp"):
        made = [
            getattr(space.vector(vectors[one]), way)(space.vector(vectors[other]), 0.5).array for one, other in pairs
        ]
        sure[way] = round(float(judged(judge, space, np.stack(made)).max(axis=1).mean()), 4)
    return {**{name: round(float(np.mean(found)), 4) for name, found in right.items()}, "certainty_of_midpoints": sure}


def draw(collection, labels: np.ndarray, cut: int) -> None:
    """Strips for the docs: a walk between two digits, and a digit on its way to other classes."""
    space = collection.space()
    of = {digit: str(cut + int(np.flatnonzero(labels[cut:] == digit)[3])) for digit in range(10)}
    rows = [space.interpolate(of[a], of[b], 9) for a, b in ((3, 8), (4, 9), (0, 6))]
    rows.append([space[of[7]] + share * space.direction("7 to 2") for share in np.linspace(-0.5, 1.5, 9).tolist()])
    save_strip([[point.decode() for point in row] for row in rows], IMAGES / "digits.png")


if __name__ == "__main__":
    main()
