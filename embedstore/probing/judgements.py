"""Reads what people judged: pairs of texts by their similarity, documents by their relevance."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from embedstore.errors import InvalidInput


def read_judged_pairs(file: str) -> tuple[list[tuple[str, str]], list[float]]:
    """Pairs of texts and their similarities from a CSV or TSV file of three columns, with a header or without."""
    pairs: list[tuple[str, str]] = []
    similarities: list[float] = []
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            for number, row in enumerate(csv.reader(lines, delimiter="\t" if file.endswith(".tsv") else ","), start=1):
                if not row:
                    continue
                if len(row) != 3:
                    raise InvalidInput(f"{file}, line {number}: {len(row)} columns; there are two texts and a number")
                try:
                    value = float(row[2])
                except ValueError:
                    if number == 1:
                        continue
                    raise InvalidInput(f"{file}, line {number}: the similarity {row[2]!r} is no number") from None
                pairs.append((row[0], row[1]))
                similarities.append(value)
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidInput(f"{file} is no table of texts: {error}") from None
    return pairs, similarities


def read_ranking(folder: str) -> tuple[dict[str, str], dict[str, str], dict[str, dict[str, float]]]:
    """Documents, queries and relevance from a folder in BEIR's layout: title and text joined by a blank."""
    place = Path(folder)
    documents = {
        one: " ".join(part for part in (fields.get("title"), fields.get("text")) if part)
        for one, fields in _rows(place / "corpus.jsonl").items()
    }
    splits = [name for name in ("test", "dev", "train") if (place / "qrels" / f"{name}.tsv").is_file()]
    if not splits:
        raise InvalidInput(f"{folder} has no qrels/test.tsv")
    found, own = place / "qrels" / f"{splits[0]}.tsv", place / f"queries.{splits[0]}.jsonl"
    asked = _rows(own if own.is_file() else place / "queries.jsonl")
    queries = {one: str(fields.get("text", "")) for one, fields in asked.items()}
    relevance: dict[str, dict[str, float]] = {}
    try:
        for number, line in enumerate(found.read_text(encoding="utf-8").splitlines()):
            parts = line.split("\t")
            if number and len(parts) == 3:
                relevance.setdefault(parts[0], {})[parts[1]] = float(parts[2])
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{found} cannot be read: {error}") from None
    return documents, queries, relevance


def _rows(file: Path) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    try:
        with open(file, encoding="utf-8") as lines:
            for line in lines:
                fields = json.loads(line)
                found[str(fields["_id"])] = fields
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{file} is not as BEIR has it: {error}") from None
    return found
