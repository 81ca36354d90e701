"""``embedstore search``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedstore.checks import is_numbers, shown
from embedstore.cli.state import State, pass_state
from embedstore.wording import first_line

if TYPE_CHECKING:
    from embedstore.collection import Collection
    from embedstore.model import Hits

_COLUMNS = ("rank", "score", "key", "text")


@click.command("search")
@click.argument("collection")
@click.argument("query", required=False)
@click.option("--image", metavar="FILE", help="Near this picture.")
@click.option("--row", metavar="JSON", help="Near this row, of which columns may be missing: '{\"age\": 39}'.")
@click.option("--vector", metavar="JSON", help="Near this vector: '[0.1, 0.2]', or a file, .json or .npy, with it.")
@click.option("-k", "k", type=int, default=10, show_default=True, help="How many hits.")
@click.option("--where", metavar="EXPR", help="Only records for which this holds: \"year >= 2015 AND lang = 'en'\".")
@click.option("--mode", type=click.Choice(["vector", "text", "hybrid"]), default="vector", show_default=True,
              help="By meaning, by keywords, or both ranks fused; then QUERY may be the words beside a --vector.")
@click.option("--space", metavar="NAME", help="The space to search; else the collection's default one.")
@click.option("--like", multiple=True, metavar="KEY", help="Near this record. Repeatable.")
@click.option("--unlike", multiple=True, metavar="KEY", help="Far from this record. Repeatable.")
@click.option("--mmr", type=float, metavar="W", help="From 0 to 1: below 1, hits are chosen to differ as well.")
@click.option("--offset", type=int, default=0, show_default=True, help="How many hits to skip.")
@click.option("--queries", metavar="FILE", help="Many queries at once: a file, or -, of rows with a field text, or"
              " vector (of both, the one that the space is of), or a .npy matrix; each hit names its query, by the"
              " row's key, id or number.")
@click.option("--explain", is_flag=True, help="Say on stderr how the answer was computed.")
@pass_state
def search_command(
    state: State, /, collection: str, query: str | None, queries: str | None, image: str | None,
    row: str | None, vector: str | None, explain: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Find the records of COLLECTION that are nearest to QUERY.

    \b
    embedstore search films "a heist in space" --where "year >= 1990" -k 5
    embedstore search films --like alien --unlike aliens
    embedstore search films --vector query.npy
    embedstore search films "space crew" --vector query.npy --mode hybrid
    """
    from embedstore.cli.output import print_rows, records_as_rows

    ways = {"QUERY": query, "--queries": queries, "--image": image, "--row": row, "--vector": vector}
    given = [name for name, value in ways.items() if value is not None]
    words = None
    if options["mode"] == "hybrid" and len(given) == 2 and query is not None and queries is None:
        words, query = query, None  # of which the other is the vector's side
    elif len(given) > 1:
        takes_both = query is not None and queries is None
        both = "; --mode hybrid takes the words of QUERY beside one of the others" if takes_both else ""
        raise click.UsageError(f"give either {' or '.join(given)}{both}")
    with state.collection(collection) as found:
        if queries is not None:
            rows = _many(found, queries, options, explain=explain)
            print_rows(rows, state.format_, columns=("query", *_COLUMNS))
            return
        asked: Any = query if image is None else Path(image)
        if row is not None:
            asked = _row(row)
        elif vector is not None:
            asked = _vector(vector)
        hits = found.search(asked, words=words, **options)
        print_rows(records_as_rows(hits), state.format_, columns=_COLUMNS)
        if explain:
            _explain(hits)


def _row(text: str) -> dict[str, Any]:
    import orjson

    try:
        row = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise click.UsageError(f"--row cannot be read as JSON: {error}") from None
    if not isinstance(row, dict):
        raise click.UsageError("--row must be a JSON object of columns and values")
    return row


def _vector(text: str) -> Any:
    """The vector that is written as JSON, or lies in a file: a list or an array, which the search checks."""
    import numpy as np

    vector = _array(text, "--vector")
    is_row = isinstance(vector, np.ndarray) and vector.ndim == 2 and len(vector) == 1
    return vector[0] if is_row else vector


_WANTED = {
    "--vector": "a list of numbers, '[0.1, 0.2]', or a .json or .npy file with one",
    "--queries": "a file of rows with a field text or vector, or a .npy matrix of vectors",
}


def _array(text: str, option: str) -> Any:
    """Numbers that are written as JSON, or lie in a .json or .npy file."""
    import orjson

    from embedstore.errors import InvalidInput
    from embedstore.ingesting.sources.npy_files import read_array

    try:
        if text.lstrip().startswith("["):
            read = orjson.loads(text)
        elif text.endswith(".npy"):
            read = read_array(text)
        else:
            read = orjson.loads(Path(text).read_bytes())
    except OSError as error:
        what = f"{option} {shown(text)}: {error.strerror or error}"
        raise click.UsageError(f"{what}; give {_WANTED[option]}") from None
    except InvalidInput as error:
        raise click.UsageError(f"{option} takes {_WANTED[option]}: {error}") from None
    except ValueError as error:
        raise click.UsageError(f"{option} cannot be read as a list of numbers: {first_line(error)}") from None
    if not is_numbers(read):
        raise click.UsageError(f"{option} takes {_WANTED[option]}; this is something else")
    return read


def _explain(hits: Hits, query: str = "") -> None:
    exactness = "exact" if hits.exact else "approximate"
    details = ", ".join(f"{name} {value}" for name, value in hits.explanation.items())
    print(query + f"{exactness}: {hits.plan}" + (f" ({details})" if details else ""), file=sys.stderr)


def _many(
    collection: Collection, path: str, options: dict[str, Any], *, explain: bool
) -> Iterator[dict[str, Any]]:
    """The hits of every query in a file, each with the query's key."""
    plain = options["mode"] == "vector" and not (options["like"] or options["unlike"] or options["offset"])
    for names, asked, words in _queries(collection, path, options["space"], options["mode"]):
        if plain and options["mmr"] is None:
            answers = collection.search_batch(asked, options["k"], where=options["where"], space=options["space"])
        else:
            each = zip(names, asked, words, strict=True)
            answers = [_alone(collection, name, one, said, options) for name, one, said in each]
        for name, hits in zip(names, answers, strict=True):
            if explain:
                _explain(hits, f"{name}: ")
            for hit in hits:
                yield {"query": name, **hit.to_dict()}


def _alone(collection: Collection, name: str, query: Any, words: str | None, options: dict[str, Any]) -> Hits:
    """The hits of one of many queries; the error says which one it is."""
    from embedstore.errors import EmbedstoreError

    try:
        return collection.search(query, words=words, **options)
    except EmbedstoreError as error:
        raise type(error)(f"query {name}: {error}") from None


def _queries(
    collection: Collection, path: str, space: str | None, mode: str
) -> Iterator[tuple[list[str], Any, list[str | None]]]:
    """What is asked in a file: how each query is called, texts and vectors, and the words beside a vector.

    The file has rows with texts, vectors or both, or is a matrix in a .npy file.
    """
    from embedstore.errors import InvalidInput
    from embedstore.ingesting.options import KEY_FIELDS, as_list
    from embedstore.ingesting.sources import open_sources

    if path.endswith(".npy"):
        matrix = _array(path, "--queries")
        if getattr(matrix, "ndim", 0) != 2:
            raise InvalidInput(f"{path}: queries are a matrix, (n, dim); this has the shape {matrix.shape}")
        yield [str(number) for number in range(1, len(matrix) + 1)], matrix, [None] * len(matrix)
        return
    encodes = collection.space(space).has_encoder
    for source in open_sources([path], stdin=sys.stdin.buffer):
        names: list[str] = []
        asked: list[Any] = []
        words: list[str | None] = []
        for row in source.rows():
            text, vector = row.fields.get("text"), as_list(row.fields.get("vector"))
            has_text = isinstance(text, str) and bool(text.strip())
            by_vector = is_numbers(vector) and mode != "text" and not (has_text and encodes)
            words.append(text if by_vector and has_text and mode == "hybrid" else None)
            if by_vector:
                asked.append(vector)
            elif has_text:
                asked.append(text)
            else:
                what = "" if vector is None else f"; its vector is no list of numbers but {type(vector).__name__}"
                raise InvalidInput(
                    f"{source.name}, row {row.number}: a query needs a field 'text' with words, or 'vector'{what}"
                )
            key = next((row.fields[name] for name in KEY_FIELDS if row.fields.get(name) is not None), row.number)
            names.append(str(key))
        yield names, asked, words
