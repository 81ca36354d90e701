"""What the global options say, and the store they lead to."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from embedstore.collection import Collection
    from embedstore.store import Store


@dataclass(frozen=True, slots=True)
class State:
    """The global options of one call."""

    store: str
    database: str | None
    format_: str
    timeout: float
    allow_download: bool
    device: str
    quiet: bool
    debug: bool

    @contextmanager
    def opened(self, *, builds: bool | None = None) -> Iterator[Store]:
        """The store; closed at the end. builds: whether searches may begin to build an index that lags."""
        import embedstore

        with embedstore.open(
            self.store, database=self.database, lock_timeout=self.timeout, allow_network=self.allow_download,
            device=self.device, build_in_background=builds,
        ) as store:  # fmt: skip
            yield store

    @contextmanager
    def collection(self, name: str) -> Iterator[Collection]:
        """A collection that must exist; the store is closed at the end."""
        with self.opened() as store:
            yield store.existing_collection(name)

    def note(self, line: str) -> None:
        """A message for the person, on stderr."""
        if not self.quiet:
            print(line, file=sys.stderr)


pass_state = click.make_pass_decorator(State)


def pair_of(text: str, option: str) -> tuple[str, str]:
    """The name and the value of an option that is written NAME=VALUE."""
    name, equals, value = text.rpartition("=")
    if not equals or not name:
        raise click.UsageError(f"{option} {text!r} cannot be read; write it as NAME=VALUE")
    return name, value
