from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedstore.ingesting.sources import open_sources


@pytest.fixture
def source_of(tmp_path: Path) -> Callable[..., Any]:
    """Writes bytes under a name and gives the one source that reads them."""

    def make(name: str, content: bytes, **options: Any) -> Any:
        path = tmp_path / name
        path.write_bytes(content)
        [source] = open_sources([path], **options)
        return source

    return make


@pytest.fixture
def fields_of(source_of: Callable[..., Any]) -> Callable[..., list[dict[str, Any]]]:
    """Writes bytes under a name and gives the fields of every row."""

    def read(name: str, content: bytes, **options: Any) -> list[dict[str, Any]]:
        return [row.fields for row in source_of(name, content, **options).rows()]

    return read
