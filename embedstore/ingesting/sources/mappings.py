"""Records from Python: any iterable of mappings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from embedstore.errors import InvalidRecord
from embedstore.ingesting.sources.source import OnError, SourceRow, refuse


class Mappings:
    """The mappings of an iterable; a sequence (a list, a tuple) can be read again and knows its length."""

    unit = "rows"

    def __init__(self, mappings: Iterable[Mapping[str, Any]]) -> None:
        self.name = type(mappings).__name__
        self.rereadable = isinstance(mappings, Sequence)
        self.total: int | None = len(mappings) if isinstance(mappings, Sequence) else None
        self._mappings = mappings

    def fingerprint(self) -> None:
        """None: objects in memory have no lasting identity."""

    def columns(self) -> None:
        """None: mappings declare no names."""

    def rows(self, on_error: OnError | None = None) -> Iterator[SourceRow]:
        """The mappings in order, each copied, numbered from 1."""
        for number, mapping in enumerate(self._mappings, start=1):
            if type(mapping) is dict or isinstance(mapping, Mapping):  # asking the abstract class takes long
                yield SourceRow(number, number, dict(mapping))
            else:
                reason = f"a record must be a mapping of fields, not {type(mapping).__name__}"
                refuse(InvalidRecord(reason, row=number), self.name, on_error)
