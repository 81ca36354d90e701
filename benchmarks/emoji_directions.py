"""Attributes of emoji as directions, learned on half of the base emoji and applied to the other half.

For every emoji of the other half that has a counterpart (the same base, gender and profession with another skin tone;
the same with another gender): the vector plus the direction, and whether the counterpart is among the three nearest of
all emoji but itself. By the autoencoder's means, by these as its decoder sees distances, by pixels, and by PCA of the
same size.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from report import save
from sklearn.decomposition import PCA

import embedstore
from embedstore.latent.strips import save_strip
from embedstore.pictures import read_picture
from embedstore.vae.image_network import ImageArchitecture
from embedstore.vae.image_training import train_image
from embedstore.vae.preparation import ImagePreparation
from embedstore.vae.training import TrainingSettings

DATA = Path(os.environ.get("EMBEDSTORE_DATA", Path(__file__).resolve().parents[1] / "../shared/data"))
IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
SIZE, DIM, NEAREST = 64, 64, 3


def emoji(folder: Path) -> tuple[np.ndarray, list[dict]]:
    """Pixels uint8 (n, 64, 64, 3) over white, and what the table says of each."""
    with zipfile.ZipFile(DATA / "emoji_noto" / "emoji_png.zip") as archive:
        archive.extractall(folder)
    with (DATA / "emoji_noto" / "emoji.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    held = {path.name: path for path in folder.rglob("*.png")}
    rows = [row for row in rows if Path(row["file"]).name in held]
    preparation = ImagePreparation(SIZE, fit="pad")
    pixels = [preparation.apply(read_picture(held[Path(row["file"]).name])) for row in rows]
    return np.stack(pixels).transpose(0, 2, 3, 1), rows


def counterparts(rows: list[dict], field: str, start: str, end: str) -> list[tuple[int, int, str]]:
    """Places of emoji that differ in one attribute alone, and what they are the same in."""
    def rest(row: dict) -> str:
        name = row["name"]
        for word in ("light skin tone", "medium-light skin tone", "medium skin tone", "medium-dark skin tone",
                     "dark skin tone") if field == "skin_tone" else ("woman", "women", "man", "men"):  # fmt: skip
            name = name.replace(word, "#")
        other = row["gender" if field == "skin_tone" else "skin_tone"]
        return f"{name}|{other}|{row['subgroup']}"

    of_end = {rest(row): place for place, row in enumerate(rows) if row[field] == end}
    return [
        (place, of_end[rest(row)], base_of(rest(row)))
        for place, row in enumerate(rows)
        if row[field] == start and rest(row) in of_end
    ]


def base_of(rest: str) -> str:
    return rest.split("|")[0]


def among_nearest(vectors: np.ndarray, pairs: list[tuple[int, int, str]], learned: set[str]) -> tuple[int, float]:
    """How many pairs were asked, and how often the counterpart was among the three nearest."""
    ways = [vectors[end] - vectors[start] for start, end, base in pairs if base in learned]
    direction = np.mean(ways, axis=0)
    asked = [(start, end) for start, end, base in pairs if base not in learned]
    lengths = np.einsum("ij,ij->i", vectors, vectors)
    found = 0
    for start, end in asked:
        distances = lengths - 2 * (vectors @ (vectors[start] + direction))
        distances[start] = np.inf
        found += end in np.argpartition(distances, NEAREST)[:NEAREST]
    return len(asked), found / len(asked)


def main() -> None:
    """Measure and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a folder of 'train image' of these emoji; else one is trained, in minutes")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--strip", action="store_true", help="draw docs/images/emoji-skin-tone.png, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, embedstore.open(Path(scratch) / "store") as store:
        pictures, rows = emoji(Path(scratch) / "png")
        model = options.model or str(Path(scratch) / "model")
        if options.model is None:
            train_image(
                pictures, model, size=SIZE, latent_dim=DIM, mode="colour", architecture=ImageArchitecture(width=32),
                likelihood="bernoulli", progress=print,
                settings=TrainingSettings(epochs=options.epochs, batch=64, patience=0),
            )  # fmt: skip
        collection = store.collection("emoji", encoder=model)
        for start in range(0, len(rows), 1000):
            collection.add([
                {"key": str(place), "image": pictures[place], **rows[place]}
                for place in range(start, min(start + 1000, len(rows)))
            ])  # fmt: skip
        keys = [str(place) for place in range(len(rows))]
        collection.add_space("seen", reduce="pullback")
        means, seen = collection.vectors(keys), collection.vectors(keys, space="seen")
        flat = pictures.reshape(len(pictures), -1) / np.float32(255)
        spaces = {
            "autoencoder": means, "its pullback": seen, "PCA-64": PCA(DIM, random_state=0).fit_transform(flat),
            "pixels": flat,
        }  # fmt: skip
        figures: dict = {}
        for field, start, end in (
            ("skin_tone", "light", "dark"), ("skin_tone", "dark", "light"), ("skin_tone", "medium", "dark"),
            ("gender", "man", "woman"), ("gender", "woman", "man"),
        ):  # fmt: skip
            pairs = counterparts(rows, field, start, end)
            bases = sorted({base for _, _, base in pairs})
            learned = set(np.random.default_rng(0).permutation(bases)[: len(bases) // 2].tolist())
            name = f"{field}: {start} to {end}"
            for space, vectors in spaces.items():
                n, share = among_nearest(vectors, pairs, learned)
                figures.setdefault(name, {"asked": n})[space] = round(share, 4)
            way = collection.space().fit_direction(
                f"{start} to {end}", pairs=[(str(a), str(b)) for a, b, base in pairs if base in learned], method="mean"
            )
            if options.strip and (field, start) == ("skin_tone", "light"):
                unseen = [a for a, _, base in pairs if base not in learned][:: max(1, len(pairs) // 8)][:3]
                strip(collection.space(), way, unseen, IMAGES / "emoji-skin-tone.png")
    for name, found in figures.items():
        print(name, found)
    save("emoji_directions", figures)


def strip(space, way, places: list[int], file: Path) -> None:
    """Emoji that were not learned from, from where they are along a direction."""
    steps = np.linspace(0.0, 1.5, 7).tolist()
    save_strip([[(space[str(place)] + share * way).decode() for share in steps] for place in places], file)


if __name__ == "__main__":
    main()
