"""How damage of the database is told."""

from __future__ import annotations

import os

from embedstore.errors import StoreDamaged


def damaged(address: str | os.PathLike[str], what: str) -> StoreDamaged:
    """The error for a database that is not what was written."""
    return StoreDamaged(
        f"{address} is damaged: {what}. 'embedstore verify' lists the damage; then restore a backup into a new folder,"
        " or salvage what is whole with 'embedstore repair'",
        what,
    )
