"""Trains an image autoencoder on a user's own pictures, from files to a finished model folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embedstore.errors import InvalidInput
from embedstore.names import check_path
from embedstore.pictures import SUFFIXES, PictureFile
from embedstore.storage.files import SCRATCH_CHARACTERS, storage_errors
from embedstore.vae.checkpoint import training_folder
from embedstore.vae.devices import torch_device
from embedstore.vae.image_model import ImageModel, load_image_model, save_image_model
from embedstore.vae.image_network import ImageArchitecture, ImageNetwork
from embedstore.vae.item_feed import ItemFeed
from embedstore.vae.model_folder import CARD, REPORT, refuse_existing
from embedstore.vae.pixels import Written, looks_grey, write_pixels
from embedstore.vae.preparation import ImagePreparation
from embedstore.vae.scoring import AnomalyScore, calibration
from embedstore.vae.training import LEAST_ITEMS, Trained, TrainingSettings, bound_of, split, train

_LOOKED_AT = 200
_AT_ONCE = 128
_STARTED_FROM_BYTES = 64 << 20
_ACTIVE_VARIANCE = 0.01
_WIDTHS = {1: 16, 3: 32}


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What a training came to.

    negative_elbo, reconstruction, kl: nats a picture, on what was held out; mse: mean squared error of a pixel in 0 to
    1 there. active_units: latent dimensions whose mean varies by more than 0.01 (Burda, Grosse and Salakhutdinov 2016).
    """

    folder: Path
    n_pictures: int
    refused: Sequence[str]
    negative_elbo: float
    reconstruction: float
    kl: float
    mse: float
    active_units: int
    latent_dim: int
    trained: Trained

    def to_dict(self) -> dict[str, Any]:
        """The numbers by name."""
        return {
            "model": str(self.folder), "pictures": self.n_pictures, "refused": len(self.refused),
            "epochs": len(self.trained.epochs), "ended": self.trained.ended,
            "negative_elbo": round(self.negative_elbo, 3), "reconstruction": round(self.reconstruction, 3),
            "kl": round(self.kl, 3), "mse": round(self.mse, 6),
            "active_units": self.active_units, "latent_dim": self.latent_dim,
        }  # fmt: skip


def train_image(
    pictures: str | os.PathLike[str] | np.ndarray | Iterable[Any],
    out: str | os.PathLike[str],
    *,
    size: int = 64,
    mode: str | None = None,
    fit: str = "crop",
    background: tuple[int, int, int] = (255, 255, 255),
    architecture: ImageArchitecture | None = None,
    latent_dim: int = 32,
    likelihood: str | None = None,
    settings: TrainingSettings | None = None,
    device: str = "auto",
    progress: Callable[[str], None] = lambda _: None,
) -> TrainingReport:
    """Train a variational autoencoder on pictures, and write it to the folder ``out``, which must not exist.

    pictures: a folder, whose pictures below it are all taken; an array of uint8 (n, h, w) or (n, h, w, 3); or
    whatever can be iterated over twice and gives paths, bytes, arrays or Pillow images. Broken ones are left out, and
    listed in the report. mode: 'grey' or 'colour'; None: what the first 200 are. likelihood: 'bernoulli' or
    'gaussian'; None: the first for grey. architecture: widths and kind of the network; its size, channels, latent_dim
    and likelihood are those given here; None: a convolutional one, of width 16 for grey pictures, 32 for colour.
    device: 'cpu', 'cuda', 'cuda:1'; 'auto' takes a GPU where there is one.

    A training that was interrupted goes on after its last epoch when it is called again in the same way: until it is
    done it lies in a folder beside ``out`` whose name ends in ``.training``.

    Raises InvalidInput for too few pictures or such as are all the same, TrainingFailed where it comes to nothing.
    """
    target = Path(os.path.abspath(out))
    check_path(target, room=SCRATCH_CHARACTERS)
    refuse_existing(target)
    torch_device(device)  # a GPU that is not there is told before anything is prepared
    chosen = settings or TrainingSettings()
    chosen.check()
    given: Sequence[Any] = _listed(pictures)
    grey = looks_grey(list(islice(given, _LOOKED_AT))) if mode is None else mode == "grey"
    preparation = ImagePreparation(size, mode or ("grey" if grey else "colour"), fit, background)
    preparation.check()
    chosen_likelihood = likelihood or ("bernoulli" if preparation.channels == 1 else "gaussian")
    made = replace(
        architecture or ImageArchitecture(width=_WIDTHS[preparation.channels]), size=size,
        channels=preparation.channels, latent_dim=latent_dim, likelihood=chosen_likelihood,
        straight=chosen_likelihood == "gaussian",
    )  # fmt: skip
    made.check()
    with storage_errors(target), training_folder(target) as work:
        progress(f"preparing {len(given):,} pictures")
        written = write_pixels(work / "pixels", given, preparation)
        _refuse_useless(written)
        feed = ItemFeed(work / "pixels", (made.channels, size, size), np.uint8, scale=1 / 255)
        try:
            report = _trained(feed, written, made, preparation, chosen, target, work, device, progress)
            return replace(report, folder=Path(out))
        finally:
            feed.close()


def _trained(
    feed: ItemFeed, written: Written, made: ImageArchitecture, preparation: ImagePreparation,
    settings: TrainingSettings, target: Path, work: Path, device: str, progress: Callable[[str], None],
) -> TrainingReport:  # fmt: skip
    from embedstore.vae.image_report import card, html_report

    torch.manual_seed(settings.seed)
    network = ImageNetwork(made).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    learned, held_out = split(len(feed), settings)
    if made.straight:
        n_looked_at = max(made.latent_dim + 1, _STARTED_FROM_BYTES // (4 * int(np.prod(feed.shape))))
        network.start_from(feed.batch(learned[:: max(1, len(learned) // n_looked_at)]))
    described = {name: getattr(settings, name) for name in settings.__slots__}
    identity = {
        "architecture": made.to_json(), "preparation": preparation.to_json(), "settings": described,
        "pixels": written.digest,
    }  # fmt: skip
    trained = train(
        network, feed, settings, folder=work, identity=identity, device=torch_device(device), progress=progress
    )
    report = _measured(network, preparation, feed, held_out, trained, target, written)
    about = {
        "pictures": written.n, "refused": len(written.refused), "pixels": written.digest, "settings": described,
        "held_out": {name: value for name, value in report.to_dict().items() if name not in ("model", "pictures")},
        "anomaly": _calibrated(ImageModel(network, preparation, {}), feed, held_out),
    }  # fmt: skip
    model = ImageModel(network, preparation, about)
    files = {CARD: card(model, report), REPORT: html_report(model, report, feed, learned, held_out)}
    save_image_model(target, model, files)
    load_image_model(target)  # what was written can be read
    return report


def _calibrated(model: ImageModel, feed: ItemFeed, held_out: np.ndarray) -> dict[str, list[float]]:
    """The quantiles of the anomaly scores of what was held out."""
    places = [held_out[start : start + _AT_ONCE] for start in range(0, len(held_out), _AT_ONCE)]
    return calibration({
        by: np.concatenate([model.anomaly_scores(feed.items(chunk), by) for chunk in places]) for by in AnomalyScore
    })


def _measured(
    network: ImageNetwork, preparation: ImagePreparation, feed: ItemFeed, held_out: np.ndarray, trained: Trained,
    target: Path, written: Written,
) -> TrainingReport:  # fmt: skip
    reconstruction, kl = bound_of(network, feed, held_out)
    model = ImageModel(network, preparation, {})
    squared, means = 0.0, []
    for start in range(0, len(held_out), _AT_ONCE):
        pixels = feed.items(held_out[start : start + _AT_ONCE])
        mu, _ = model.encode(pixels)
        squared += float(np.square(model.decode_exactly(mu) - pixels / np.float32(255)).mean(axis=(1, 2, 3)).sum())
        means.append(mu)
    active = int((np.concatenate(means).var(axis=0) > _ACTIVE_VARIANCE).sum())
    return TrainingReport(
        target, written.n, written.refused, reconstruction + kl, reconstruction, kl, squared / len(held_out), active,
        network.architecture.latent_dim, trained,
    )  # fmt: skip


def _listed(pictures: Any) -> Sequence[Any]:
    """The pictures as a sequence; those of a folder sorted by their paths."""
    if isinstance(pictures, (str, os.PathLike)):
        folder = os.fsdecode(os.fspath(pictures))
        if not os.path.isdir(folder):
            raise InvalidInput(f"there is no folder {folder!r} with pictures to learn from")
        found = [
            os.path.join(inner, name)
            for inner, _, names in os.walk(folder)
            for name in names
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
        if not found:
            raise InvalidInput(f"the folder {folder!r} holds no pictures; their names end in {', '.join(SUFFIXES)}")
        return [PictureFile(folder, path) for path in sorted(found)]
    if isinstance(pictures, np.ndarray):
        if pictures.dtype != np.uint8 or pictures.ndim not in (3, 4):
            raise InvalidInput(
                f"pictures as an array must be uint8 (n, h, w) or (n, h, w, 3), not {pictures.dtype} of shape"
                f" {pictures.shape}"
            )
        return pictures  # type: ignore[return-value]
    return list(pictures)


def _refuse_useless(written: Written) -> None:
    refused = f"; {len(written.refused):,} were refused, the first: {written.refused[0]}" if written.refused else ""
    if written.n < LEAST_ITEMS:
        raise InvalidInput(f"there are {written.n} pictures to learn from; at least {LEAST_ITEMS} are needed{refused}")
    if not written.differ:
        raise InvalidInput(f"all {written.n:,} pictures are the same, so there is nothing to learn{refused}")

