"""The rows of files or tables as plain mappings, for what learns from them rather than stores them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from embedstore.errors import InvalidInput
from embedstore.ingesting.options import KEY_FIELDS
from embedstore.ingesting.sources import DelimitedFile, open_sources


def table_rows(
    given: Sequence[Any],
    columns: Sequence[str] | None = None,
    types: Mapping[str, str] | None = None,
    warn: Callable[[str], None] = lambda _: None,
) -> Callable[[], Iterator[Mapping[str, Any]]]:
    """What gives the rows of sources anew each time it is called; of all columns but keys, or of those named.

    given: as for ``Collection.ingest``, but nothing that can be read only once. A row of JSON that lacks a column which
    others have has null there. types: by CSV column, as for ``ingest``. warn: is told of columns of which odd
    cells make text. Raises InvalidInput for a column that is not there.
    """
    sources = open_sources(given, types=types)
    for source in sources:
        if not source.rereadable:
            raise InvalidInput(f"{source.name} can be read only once, and learning reads it several times; give a file")
    held = _columns(sources)
    names = [name for name in held if name not in KEY_FIELDS] if columns is None else list(columns)
    missing = [name for name in names if name not in held]
    if missing:
        raise InvalidInput(f"there is no column {', '.join(map(repr, missing))}; there are {', '.join(held)}")

    for source in sources:
        odd = source.made_text() if isinstance(source, DelimitedFile) else {}
        for name in names:
            if name in odd:
                warn(
                    f"{source.name}: the column {name!r} is learned as text because of cells such as"
                    f" {odd[name][:40]!r}; empty them where that means missing, or give --type {name}=number"
                )

    def rows() -> Iterator[Mapping[str, Any]]:
        for source in sources:
            for row in source.rows():
                yield {name: row.fields.get(name) for name in names}

    return rows


def _columns(sources: Sequence[Any]) -> list[str]:
    """Every column that any row has, in the order in which they come."""
    found: dict[str, None] = {}
    for source in sources:
        declared = source.columns()
        if declared is not None:
            found.update(dict.fromkeys(declared))
            continue
        for row in source.rows():
            found.update(dict.fromkeys(row.fields))
    return list(found)
