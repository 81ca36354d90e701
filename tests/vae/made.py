"""Pictures and rows whose latent variables are known, and small models trained on them."""

import random

import numpy as np

from embedstore.vae.image_network import ImageArchitecture
from embedstore.vae.image_training import train_image
from embedstore.vae.table_network import TableArchitecture
from embedstore.vae.table_training import TABLE_SETTINGS, train_table
from embedstore.vae.training import TrainingSettings

SIZE = 16
SMALL = ImageArchitecture(width=8, hidden=64)


def squares(n, seed=0):
    """Grey pictures of a light square: uint8 (n, 16, 16), and where its middle is, (n, 2)."""
    places = np.random.default_rng(seed).integers(3, SIZE - 3, (n, 2))
    pictures = np.zeros((n, SIZE, SIZE), np.uint8)
    for picture, (down, right) in zip(pictures, places, strict=True):
        picture[down - 2 : down + 3, right - 2 : right + 3] = 230
    return pictures, places


def people(n, seed=0):
    """Rows in which height follows sex, and weight height; one column in twenty values is missing."""
    drawn = random.Random(seed)
    rows = []
    for _ in range(n):
        sex = drawn.choice(["f", "m"])
        height = drawn.gauss(165 if sex == "f" else 179, 6)
        rows.append({
            "sex": sex, "height": round(height, 1), "weight": round(height * 0.9 - 85 + drawn.gauss(0, 4), 1),
            "smokes": drawn.random() < 0.2, "born": f"19{drawn.randint(50, 99)}-0{drawn.randint(1, 9)}-15",
            "city": drawn.choice(["Oslo", "Rome", "Bonn", None]),
        })  # fmt: skip
    return rows


def trained_on_squares(out, **options):
    """A small model of squares."""
    chosen = {
        "epochs": 20, "batch": 32, "learning_rate": 3e-3, "free_nats": 0.0, "patience": 0, "beta": 0.3, "warm_up": 0.5,
        **options,
    }  # fmt: skip
    return train_image(
        squares(1000)[0], out, size=SIZE, latent_dim=4, architecture=SMALL, settings=TrainingSettings(**chosen)
    )


def trained_on_people(out, n=400, **options):
    """A small model of people."""
    from dataclasses import replace

    settings = replace(TABLE_SETTINGS, **{"epochs": 15, "batch": 32, **options})
    return train_table(people(n), out, architecture=TableArchitecture(latent_dim=6, hidden=32), settings=settings)
