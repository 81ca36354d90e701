"""Prints results: tables for people, JSON, JSON lines or CSV for programs."""

from __future__ import annotations

import csv
import io
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY


def print_rows(rows: Iterable[Mapping[str, Any]], format_: str, *, empty: str = "nothing found") -> None:
    """Print mappings. JSON is a list; JSON lines and CSV flow as they come; a table is cut to the window."""
    if format_ == "ndjson":
        for row in rows:
            _write(orjson.dumps(row, option=_OPTIONS | orjson.OPT_APPEND_NEWLINE))
    elif format_ == "json":
        _write(orjson.dumps(list(rows), option=_OPTIONS | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    elif format_ == "csv":
        _print_csv(rows)
    else:
        _print_table([_flat(row) for row in rows], empty)


def print_mapping(fields: Mapping[str, Any], format_: str) -> None:
    """Print one mapping: a line a field as a table, one object as JSON or JSON lines, one row as CSV."""
    if format_ == "json":
        _write(orjson.dumps(fields, option=_OPTIONS | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    elif format_ == "table":
        flat = _flat(fields)
        width = max((len(name) for name in flat), default=0)
        for name, value in flat.items():
            _write(f"{name:<{width}}  {_cell(value)}\n".encode(errors="backslashreplace"))
    else:
        print_rows([fields], format_)


def _write(chunk: bytes) -> None:
    sys.stdout.buffer.write(chunk)


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the fields of its metadata beside its own; a name that is taken gets ``metadata.`` before it."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if name != "metadata" or not isinstance(value, Mapping):
            flat[name] = value
    metadata = row.get("metadata")
    if isinstance(metadata, Mapping):
        for name, value in metadata.items():
            flat[name if name not in flat else f"metadata.{name}"] = value
    return flat


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 1e6 and value != int(value) else f"{value:g}"
    if isinstance(value, (dict, list)):
        return orjson.dumps(value, option=_OPTIONS).decode()
    return str(value)


def _print_csv(rows: Iterable[Mapping[str, Any]]) -> None:
    """CSV with a header. The columns are those of every row, so the rows are gathered first."""
    flat = [_flat(row) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(names)
    for row in flat:
        values = [row.get(name) for name in names]
        writer.writerow([
            orjson.dumps(v, option=_OPTIONS).decode() if isinstance(v, (dict, list)) else _plain(v) for v in values
        ])
    _write(buffer.getvalue().encode(errors="backslashreplace"))


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value


def _print_table(rows: Sequence[Mapping[str, Any]], empty: str) -> None:
    if not rows:
        print(empty, file=sys.stderr)
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    names = list(dict.fromkeys(name for row in rows for name in row))
    # A window's width; away from a terminal, wide enough for every column to be read.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "160"))
    shown, dropped = _fitting(names, rows, width)
    console = Console(width=width, highlight=False, soft_wrap=False)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in shown:
        numbers = all(isinstance(row.get(name), (int, float, type(None))) for row in rows)
        table.add_column(
            Text(name), justify="right" if numbers else "left", no_wrap=True, overflow="ellipsis",
            ratio=1 if name == "text" else None,
        )  # fmt: skip
    for row in rows:
        table.add_row(*(Text(" ".join(_cell(row.get(name)).split())) for name in shown))
    console.print(table)
    if dropped:
        print(f"(not shown for want of room: {', '.join(dropped)}; --format json shows all)", file=sys.stderr)


def _fitting(names: Sequence[str], rows: Sequence[Mapping[str, Any]], width: int) -> tuple[list[str], list[str]]:
    """The columns that fit side by side, and those that do not; ``text`` takes what room the others leave."""

    def needed(name: str) -> int:
        widest = max(len(" ".join(_cell(row.get(name)).split())) for row in rows)
        return min(max(len(name), widest), 40 if name != "text" else 30) + 2

    shown: list[str] = []
    used = 0
    for name in names:
        if shown and used + needed(name) > width:
            continue
        shown.append(name)
        used += needed(name)
    return shown, [name for name in names if name not in shown]


def records_as_rows(records: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Records, or hits, as mappings."""
    for record in records:
        yield record.to_dict()
