"""The settings of the spaces of a damaged store: what their rows still say, and what their vectors show."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace

import orjson

from embedstore.encoders.spec import EncoderSpec
from embedstore.errors import InvalidInput
from embedstore.indexing.recipes import DEFAULT_RECIPE, find_recipe
from embedstore.model import Metric
from embedstore.names import check_collection_name
from embedstore.storage.catalog import space_states
from embedstore.storage.layout import ID_SHIFT, id_range

Complaint = Callable[[str, str], None]
"""Takes the name of a space, and what of it is lost."""


@dataclass(frozen=True, slots=True)
class SalvagedSpace:
    """A space as it is made anew; ``n_written`` is how many vectors it had, None where that is not known."""

    name: str
    dim: int | None
    metric: str
    encoder: str
    fingerprint: str
    recipe: str
    n_written: int | None


def salvaged_spaces(found: sqlite3.Connection, collection_id: int, complain: Complaint) -> dict[int, SalvagedSpace]:
    """The spaces of a collection by their old ids, at least one; ``found`` is the scratch database of repair."""
    owners = dict(
        found.execute(
            f"SELECT v.id / {ID_SHIFT}, r.id / {ID_SHIFT} FROM vectors AS v JOIN records AS r ON r.id = v.record"
            " GROUP BY 1 ORDER BY count(*)"
        ).fetchall()
    )
    newest = found.execute(
        "SELECT spaces FROM commits WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT 1", id_range(collection_id)
    ).fetchone()
    written = {} if newest is None else space_states(newest[0])
    spaces: dict[int, SalvagedSpace] = {}
    for space_id, text in found.execute("SELECT id, row FROM spaces ORDER BY id").fetchall():
        owner, name, dim, metric, _, encoder, fingerprint, recipe, n_written = orjson.loads(text)
        if owners.get(space_id, owner) == collection_id:
            n_written = written[space_id][1] if space_id in written else n_written
            space = SalvagedSpace(name, dim, metric, encoder, fingerprint, recipe, n_written)
            taken = {one.name for one in spaces.values()}
            spaces[space_id] = _mended(space, space_id, _dim_of(found, space_id), taken, complain)
    for space_id in sorted(one for one, owner in owners.items() if owner == collection_id and one not in spaces):
        name = f"salvaged-{space_id}"
        complain(name, "its name and settings are lost; its vectors are kept under this name, compared by cosine")
        spaces[space_id] = _unknown(name, _dim_of(found, space_id))
    _check_derived(found, spaces, complain)
    if not spaces:
        complain("vector", "the collection's spaces are lost; it has an empty one now")
        spaces[0] = _unknown("vector", None)
    return spaces


def _check_derived(found: sqlite3.Connection, spaces: dict[int, SalvagedSpace], complain: Complaint) -> None:
    """Make spaces of their own of those whose parent, or whose transform, is lost."""
    for space_id, space in spaces.items():
        spec = EncoderSpec.from_json(space.encoder) if space.encoder else None
        if spec is None or not spec.parents:
            continue
        kept = found.execute("SELECT 1 FROM fitted WHERE space = ? AND name = ''", (space_id,)).fetchone()
        if kept is None or not {*spec.parents} <= {one.name for one in spaces.values()}:
            complain(space.name, "how it was made of other spaces is lost; its vectors are kept as they are")
            spaces[space_id] = replace(space, encoder="", fingerprint="")


def _unknown(name: str, dim: int | None) -> SalvagedSpace:
    return SalvagedSpace(name, dim, Metric.COSINE.value, "", "", DEFAULT_RECIPE, None)


def _dim_of(found: sqlite3.Connection, space_id: int) -> int | None:
    """The dimension that most vectors of a space have; None where there are none."""
    row = found.execute(
        "SELECT length(vec) / 4 FROM vectors WHERE id BETWEEN ? AND ? GROUP BY 1 ORDER BY count(*) DESC LIMIT 1",
        id_range(space_id),
    ).fetchone()
    return None if row is None else int(row[0])


def _mended(
    space: SalvagedSpace, space_id: int, dim: int | None, taken: set[str], complain: Complaint
) -> SalvagedSpace:
    """The space with what cannot be in its row put right."""
    try:
        check_collection_name(space.name)
        named = space.name not in taken
    except InvalidInput:
        named = False
    if not named:
        space = replace(space, name=f"salvaged-{space_id}")
        complain(space.name, "its name is lost; it has this one now")
    if dim is not None and dim != space.dim:
        complain(space.name, f"its row says that its vectors have {space.dim} numbers; they have {dim}")
        space = replace(space, dim=dim)
    try:
        find_recipe(space.recipe)
    except InvalidInput:
        complain(space.name, f"its recipe is lost; it has {DEFAULT_RECIPE!r} now")
        space = replace(space, recipe=DEFAULT_RECIPE)
    if not _encoder_is_sound(space):
        complain(space.name, "what its encoder was is lost; its vectors are kept as if they came from elsewhere")
        space = replace(space, encoder="", fingerprint="")
    return space


def _encoder_is_sound(space: SalvagedSpace) -> bool:
    if not space.encoder:
        return not space.fingerprint
    try:
        spec = EncoderSpec.from_json(space.encoder)
    except InvalidInput:
        return False
    return spec.fingerprint == space.fingerprint and spec.dim == space.dim
