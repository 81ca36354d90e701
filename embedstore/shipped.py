"""Finds the folders that ship beside the code: recipes, migrations and the sample corpus."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def shipped_folder(name: str) -> Path:
    """The folder ``indexes`` or ``migrations``: inside an installed package, else beside it in a checkout."""
    for candidate in (_PACKAGE / "_shipped" / name, _PACKAGE.parent / name):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"the folder {name!r} that ships with embedstore is missing; install embedstore again")


def sample_file() -> Path:
    """The sample corpus, as JSON lines."""
    return _PACKAGE / "sample" / "things.jsonl"
