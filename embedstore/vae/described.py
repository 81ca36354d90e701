"""Reads what a data class was written as, field by field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from embedstore.errors import InvalidInput


class Checked(Protocol):
    """What can tell whether its fields make sense."""

    def check(self) -> None:
        """Raise InvalidInput where they do not."""


Made = TypeVar("Made", bound=Checked)


def made_from(kind: type[Made], fields: Mapping[str, Any], what: str) -> Made:
    """A checked object of fields that ``dataclasses.asdict`` gave; InvalidInput, with ``what``, for any others."""
    try:
        made = kind(**fields)
    except TypeError as error:
        raise InvalidInput(f"the description of {what} cannot be read: {error}") from None
    made.check()
    return made
