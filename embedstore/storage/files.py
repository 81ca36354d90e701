"""Folders on disk: made for their owner alone, and made durable."""

from __future__ import annotations

import os
from pathlib import Path


def make_private(folder: Path) -> None:
    """Create a folder, and those above it that are missing, readable by their owner alone; OSError where it cannot."""
    if not folder.is_dir():
        make_private(folder.parent)
        folder.mkdir(exist_ok=True, mode=0o700)


def sync_folder(folder: Path) -> None:
    """Make names that were created or renamed in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
