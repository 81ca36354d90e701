"""Tells what kind of model of embedstore's own a folder holds, without importing torch."""

from __future__ import annotations

import json
from pathlib import Path


def model_format(folder: Path) -> str | None:
    """The format that a folder's ``config.json`` names, such as 'embedstore-image-vae'; None where it names none."""
    try:
        found = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return None
    named = found.get("format") if isinstance(found, dict) else None
    return named if isinstance(named, str) else None
