"""How fast pictures come in: the encoder of pictures in files beside the bare PyTorch model on tensors.

The bare model runs on pixels that are in memory, in its best batch of 32 to 512. The encoder is given the pixels as
``prepare`` makes them, and in another line the files, which are decoded ahead of it. Decoding is measured by itself
too, beside Pillow's own, which does not look at checksums; all in turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from report import save

from embedstore.encoders import load_encoder
from embedstore.encoders.ahead import one_ahead
from embedstore.side_by_side import side_by_side
from embedstore.vae.image_network import ImageArchitecture
from embedstore.vae.image_training import train_image
from embedstore.vae.training import TrainingSettings


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def windows(files: list[Path]) -> list[list[Path]]:
    return [files[start : start + 256] for start in range(0, len(files), 256)]


def measured(size: int, channels: int, n: int, rounds: int, scratch: Path) -> dict:
    drawn = np.random.default_rng(0)
    shape = (n, size, size) if channels == 1 else (n, size, size, 3)
    pictures = drawn.integers(0, 256, shape, np.uint8)
    model_folder = scratch / f"model-{size}"
    train_image(pictures[:200], model_folder, size=size, latent_dim=32, architecture=ImageArchitecture(),
                settings=TrainingSettings(epochs=1))  # fmt: skip
    files = []
    for place, pixels in enumerate(pictures):
        files.append(scratch / f"{size}-{place}.png")
        Image.fromarray(pixels).save(files[-1], compress_level=1)
    encoder = load_encoder(str(model_folder))
    prepared = [encoder.prepare(picture) for picture in pictures]
    network = encoder.model.network
    tensor = encoder.model.tensor(np.stack(prepared))

    def bare(batch: int) -> None:
        with torch.inference_mode():
            for start in range(0, n, batch):
                network.encode(tensor[start : start + batch])

    def decoded(window: list[Path]) -> list[np.ndarray]:
        return side_by_side(window, encoder.prepare)

    def from_files() -> None:
        for (window,) in one_ahead([[one] for one in windows(files)], decoded, 1):
            encoder.encode(window)

    def by_pillow() -> None:
        for window in windows(files):
            side_by_side(window, lambda file: np.asarray(Image.open(file)))

    batches = (32, 64, 128, 256, 512)
    best = min(batches, key=lambda batch: statistics.median(seconds(lambda: bare(batch)) for _ in range(3)))
    times: dict[str, list[float]] = {"bare": [], "encoder": [], "files": [], "decoded": [], "pillow": []}
    for _ in range(rounds):
        times["bare"].append(seconds(lambda: bare(best)))
        times["encoder"].append(seconds(lambda: encoder.encode(prepared)))
        times["files"].append(seconds(from_files))
        times["decoded"].append(seconds(lambda: [decoded(window) for window in windows(files)]))
        times["pillow"].append(seconds(by_pillow))
    middle = {name: statistics.median(found) for name, found in times.items()}
    return {
        "pictures": n, "best_batch": best,
        **{f"{name}_pictures_per_second": round(n / value) for name, value in middle.items()},
        "ratio_encoder": round(middle["encoder"] / middle["bare"], 3),
        "ratio_files": round(middle["files"] / middle["bare"], 3),
        "ratio_decoded_to_pillow": round(middle["decoded"] / middle["pillow"], 3),
    }  # fmt: skip


def main() -> None:
    """Measure and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = {
            "28 x 28 grey": measured(28, 1, 4000, options.rounds, Path(folder)),
            "64 x 64 colour": measured(64, 3, 2000, options.rounds, Path(folder)),
        }
    for name, one in figures.items():
        print(name, one)
    save("image_encoding", figures)


if __name__ == "__main__":
    main()
