"""Writes docs/benchmarks.md from the results that are there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
TITLES = {
    "startup": "From process start to its end",
    "store_writing": "Durable writing: 60,000 records with text, four metadata fields and a vector of 384 numbers",
    "store_cold": "A new process to its first ten hits, 60,000 vectors, vector given",
    "single_add": "One durable add beside a bare SQLite commit of the same row; opening 60,000 vectors",
    "store_searching": "Queries over 60,000 vectors, top 10 with text and metadata",
    "recipes": "Recipes over 60,000 vectors of 384 numbers, each beside the raw FAISS index that it wraps",
    "gpu": "Recipes of a GPU beside FAISS's own classes and beside the CPU",
    "peers": "Queries over 60,000 vectors beside other stores, top 10 with text and metadata",
    "scale": "1,000,000 vectors of 128 numbers",
    "tuning": "Tunings held against queries that were never seen",
    "bulk_encoding": "Bulk encoding of texts beside SentenceTransformer.encode, unsorted, its default batch",
    "ingest_text": "Ingest of scientific abstracts with minilm",
    "scifact": "SciFact (BEIR): 5,183 abstracts, 809 queries, through the command line",
    "image_vae": "Image autoencoders on MNIST, trained on 50,000 digits, measured on 10,000 others; 20 dimensions",
    "image_anomaly": "One digit of MNIST against the nine others: area under the curve of scores, mean of ten digits",
    "emoji": "Emoji in colour with alpha at 64 x 64, 64 dimensions, a tenth held out",
    "image_encoding": "Encoding of pictures beside the bare PyTorch model in its best batch",
    "tables": "16 numbers a row: accuracy of predicting a column that was left out, beside PCA and TruncatedSVD",
    "analogies": "Word analogies by minilm, the words of the questions alone, beside gensim",
    "digit_arithmetic": "Digits of MNIST moved to another class and decoded, judged by a classifier of pixels",
    "emoji_directions": "Skin and gender of emoji as directions: the counterpart among the three nearest",
    "latent_figures": "Concept erasure, reduction to 128 numbers, and types of vehicles by weight",
    "latent_million": "Mean, direction and PCA of a million vectors beside NumPy on the mapped array",
    "probing_figures": "What the layers of minilm and of a small causal model know",
    "probing_capture": "Capturing all seven layers of minilm into a store: throughput beside the bare forward pass",
    "probing_memory": "Capturing all seven layers of minilm for 100,000 short texts",
    "in_context": "Learning in context where the concept is known: accuracy by choice of demonstrations, and steered",
    "adbench": "Distance to the fifth neighbour as an anomaly score, PyOD's protocol",
}
_MOST_COLUMNS = 9
_RECIPES = """\
All figures are of ten hits with their texts and metadata. "Raw" is the FAISS index that a recipe wraps, with candidates
compared exactly as the recipe does, and one read of SQLite for the hits. A ratio is of times where milliseconds stand
beside it (less is better for the store), of rates else (more is better); in brackets the least and the greatest of the
rounds. Neighbours are numbers and scores alone, as the raw index gives them; `search_batch` reads the records too.
Threads of one process share Python's interpreter lock, and so do those that ask FAISS and SQLite directly.
"""
_CURVES = """\
Recall and time of each recipe over its useful settings, by 100 queries that are stored vectors with some noise
(`indexes/NAME.curve.json`). Such queries are easier than those that lie apart from everything stored: `embedstore index
--tune` measures with queries of your own space.

![Curves of recall against time, one for each recipe](images/recipes.png)
"""


def page() -> str:
    """The whole page."""
    results = {}
    for name in TITLES:
        path = HERE / "results" / f"{name}.json"
        if path.exists():
            results[name] = json.loads(path.read_text())
    parts = [
        "# Benchmarks\n",
        "Written by `benchmarks/table.py` from `benchmarks/results/`. The machines are shared: the ratios are the"
        " figures, each taken within one run, interleaved, as medians. `make bench` measures them anew.\n",
    ]
    parts += [f"- [{TITLES[name]}](#{anchor(TITLES[name])})" for name in results]
    parts.append("")
    for name, result in results.items():
        machine = result["machine"]
        versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
        script = "store_speed.py " + name.removeprefix("store_") if name.startswith("store_") else f"{name}.py"
        where = f"{machine['cpu']}, {machine['cores']} cores, {machine['date']}"
        parts.append(f"## {TITLES[name]}\n")
        parts.append(f"`benchmarks/{script}`; {where}; {versions}\n")
        parts += of_recipes(result["figures"]) if name == "recipes" else of_figures(result["figures"])
    return "\n".join(parts).rstrip() + "\n"


def anchor(title: str) -> str:
    """The name by which a heading is linked to."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def of_figures(figures: dict[str, Any], title: str = "") -> Iterator[str]:
    """Nested figures as tables: what has the same figures as others is a line of one table."""
    scalars = {name: value for name, value in figures.items() if is_figure(value)}
    nested = {name: value for name, value in figures.items() if isinstance(value, dict)}
    if nested and all(map(is_figure, (one for value in nested.values() for one in value.values()))):
        yield from _titled(title)
        if scalars:
            yield from table(("figure", "value"), [(name, shown(value)) for name, value in scalars.items()])
        yield from _pivot(nested)
        return
    if scalars:
        yield from _titled(title)
        yield from table(("figure", "value"), [(name, shown(value)) for name, value in scalars.items()])
    alike = {name: dict(leaves(value)) for name, value in nested.items()}
    columns = list(dict.fromkeys(column for value in alike.values() for column in value))
    n_held = sum(map(len, alike.values()))
    if len(alike) > 1 and len(columns) <= _MOST_COLUMNS and n_held >= 0.6 * len(alike) * len(columns):
        yield from _pivot(alike)
        return
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, value in alike.items():
        groups.setdefault(tuple(value), []).append(name)
    for names in groups.values():
        if len(names) > 1 and all(map(is_figure, (one for name in names for one in nested[name].values()))):
            yield from _titled(f"{title}, {' and '.join(names)}" if title else " and ".join(names))
            yield from _pivot({name: alike[name] for name in names})
            continue
        for name in names:
            yield from of_figures(nested[name], f"{title}, {name}" if title else name)


def _pivot(lines: dict[str, dict[str, Any]]) -> Iterator[str]:
    """One line for each name, with the figures as columns; the other way round where that is narrower."""
    columns = list(dict.fromkeys(column for values in lines.values() for column in values))
    if len(columns) > _MOST_COLUMNS and len(lines) < len(columns):
        rows = [(column, *(shown(values.get(column)) for values in lines.values())) for column in columns]
        yield from table(("figure", *lines), rows)
        return
    yield from table(
        ("", *columns),
        [(name, *(shown(values.get(column)) for column in columns)) for name, values in lines.items()],
    )


def of_recipes(figures: dict[str, Any]) -> Iterator[str]:
    """The figures of the recipes, each a line of a table for queries, one for filters, one for what they take."""
    yield _RECIPES
    queries, filters, costs = [], [], []
    for name, one in figures.items():
        asked = one["query_milliseconds"]
        raw_threads = one.get("raw_two_threads_against_one", {})
        queries.append((
            name, shown(one["recall_at_10"]), shown(asked["ours"]), shown(asked["other"]), ratio(asked),
            ratio(one["neighbours_of_500_queries_a_second"]), ratio(one["search_batch_of_500_queries_a_second"]),
            ratio(one["two_threads_against_one"]), ratio(raw_threads),
        ))  # fmt: skip
        cells = [
            f"{shown(part['unseen_milliseconds'])} / {shown(part['repeated_milliseconds'])}"
            for part in one["filtered"].values()
        ]
        least = min(part["recall_at_10"] for part in one["filtered"].values())
        filters.append((name, *cells, shown(least)))
        built = one["build"]
        costs.append((name, shown(built["seconds"]), shown(built["raw_seconds"]), shown(one["memory_megabytes"])))
    percents = next(iter(figures.values()))["filtered"]
    yield from table(
        ("recipe", "recall@10", "query, ms", "raw, ms", "ratio", "neighbours of 500, rate beside raw",
         "search_batch of 500, rate beside raw", "two threads beside one", "the same of raw"), queries,
    )  # fmt: skip
    yield "Milliseconds under a filter that lets so many pass, with values not seen before / repeated:\n"
    yield from table(("recipe", *percents, "least recall@10"), filters)
    yield "Building it, beside the raw index, and the memory of a process that opened the store and searched once:\n"
    yield from table(("recipe", "build, s", "raw, s", "MB beyond Python and FAISS"), costs)
    yield _CURVES


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    """The lines of a table in Markdown, and an empty one."""
    yield "| " + " | ".join(one.replace("_", " ") for one in head) + " |"
    yield "|" + "---|" * len(head)
    for name, *cells in rows:
        yield "| " + " | ".join((name.replace("_", " "), *cells)) + " |"
    yield ""


def _titled(title: str) -> Iterator[str]:
    if title:
        yield f"{title[0].upper()}{title[1:]}:\n".replace("_", " ")


def ratio(figures: dict[str, Any]) -> str:
    """A ratio with the least and the greatest of its rounds."""
    if not figures:
        return ""
    least, greatest = figures["ratio_spread"]
    return f"{figures['ratio']:.2f} ({least:.2f} to {greatest:.2f})"


def leaves(figures: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Nested figures by their names, joined."""
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, name))
        elif is_figure(value):
            yield ", ".join((*path, name)), value


def is_figure(value: Any) -> bool:
    """Whether a value is one that a cell of a table shows: a number, a word, or the two ends of a range."""
    return not isinstance(value, (dict, list)) or is_range(value)


def is_range(value: Any) -> bool:
    """Whether a value is the least and the greatest of some figures."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(end, float) for end in value)


def shown(value: Any) -> str:
    """A figure as a cell of a table: at most four digits where it is no whole number."""
    if value is None:
        return ""
    if is_range(value):
        return " to ".join(map(shown, value))
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if type(value) is int else str(value)


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE.name}")
