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
_GAP = 3  # between columns
_CELL_ROOM = 40
_TEXT_ROOM = 30
_LONG = ("text", "advice", "summary", "found", "error")
"""Columns that shrink first and take what room is left."""


def print_rows(
    rows: Iterable[Mapping[str, Any]], format_: str, *, empty: str = "nothing found", columns: Sequence[str] = ()
) -> None:
    """Print mappings. JSON is a list; JSON lines flow as they come; a table is cut to the window.

    columns: those that CSV names where there are no rows.
    """
    if format_ == "ndjson":
        for row in rows:
            _write(orjson.dumps(row, option=_OPTIONS | orjson.OPT_APPEND_NEWLINE))
    elif format_ == "json":
        _write(orjson.dumps(list(rows), option=_OPTIONS | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    elif format_ == "csv":
        _print_csv(rows, columns)
    else:
        _print_table([_flat(row) for row in rows], empty)


def print_mapping(fields: Mapping[str, Any], format_: str) -> None:
    """Print one mapping: a line a field as a table, one object as JSON or JSON lines, one row as CSV."""
    if format_ == "json":
        _write(orjson.dumps(fields, option=_OPTIONS | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    elif format_ == "table":
        for line in _lines(_flat(fields), ""):
            _write(f"{line}\n".encode(errors="backslashreplace"))
    else:
        print_rows([fields], format_)


def print_lines(lines: Iterable[object]) -> None:
    """Print a line each, whole: what somebody has to act on is not cut to the window."""
    for line in lines:
        _write(f"{_harmless(' '.join(str(line).split()))}\n".encode(errors="backslashreplace"))


def _lines(fields: Mapping[str, Any], indent: str) -> Iterator[str]:
    """A line a field; what is nested stands indented below its name."""
    width = max((len(name) for name in fields), default=0)
    for name, value in fields.items():
        if isinstance(value, Mapping) and value:
            yield f"{indent}{name}"
            yield from _lines(value, f"{indent}  ")
        elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            for one in value:
                yield f"{indent}{name}"
                yield from _lines(one, f"{indent}  ")
        elif isinstance(value, list):
            yield f"{indent}{name:<{width}}  {', '.join(_cell(one) for one in value)}"
        else:
            yield f"{indent}{name:<{width}}  {' '.join(_cell(value).split())}"


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
        return f"{value:.6g}"
    if isinstance(value, (dict, list)):
        return orjson.dumps(value, option=_OPTIONS).decode()
    return _harmless(str(value))


def _harmless(text: str) -> str:
    """A text without the characters by which it could steer a terminal; blanks and line ends stay."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one.isspace() else f"\\x{ord(one):02x}" for one in text if one != "\r"
    )


def _print_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """CSV with a header. The columns are those of every row, so the rows are gathered first."""
    flat = [_flat(row) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row)) or columns
    if not names:
        return
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

    cells = [{name: " ".join(_cell(value).split()) for name, value in row.items()} for row in rows]
    # A window's width; away from a terminal, wide enough for every column to be read.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "160"))
    widths = _fitting(cells, width)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name, room in widths.items():
        numbers = all(isinstance(row.get(name), (int, float, type(None))) for row in rows)
        table.add_column(
            Text(name), justify="right" if numbers else "left", width=room, no_wrap=True, overflow="ellipsis"
        )
    for line in cells:
        table.add_row(*(Text(line.get(name, "")) for name in widths))
    Console(width=width, highlight=False).print(table)
    dropped = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in widths]
    if dropped:
        print(f"(no room for: {', '.join(dropped)}; --format json shows all)", file=sys.stderr)


def _fitting(cells: Sequence[Mapping[str, str]], width: int) -> dict[str, int]:
    """The columns that fit side by side, with their widths; ``text`` takes what room the others leave."""
    from rich.cells import cell_len

    names = list(dict.fromkeys(name for line in cells for name in line))
    natural = {name: max(cell_len(name), *(cell_len(line.get(name, "")) for line in cells)) for name in names}
    widths: dict[str, int] = {}
    free = width
    for name in names:
        room = min(natural[name], _TEXT_ROOM if name in _LONG else _CELL_ROOM)
        if widths and room + _GAP > free:
            continue
        widths[name] = room
        free -= room + _GAP
    for name in _LONG:
        if name in widths:
            more = min(natural[name] - widths[name], free)
            widths[name] += more
            free -= more
    return widths


def records_as_rows(records: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Records, or hits, as mappings."""
    for record in records:
        yield record.to_dict()
