"""Everything that was measured of a collection's layers, in one page, one JSON file, or one table."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from embedstore.errors import InvalidInput
from embedstore.filters.parse import Where
from embedstore.html_pages import curves, heat_map, table, write_page
from embedstore.names import check_file
from embedstore.probing.description import CodeLength, description_length
from embedstore.probing.lens import LensReport, lens
from embedstore.probing.linear import ProbeReport, linear
from embedstore.probing.similarity import LayerSimilarity, similarity
from embedstore.states.taps import HIDDEN
from embedstore.storage.files import replace_file, storage_errors

if TYPE_CHECKING:
    from embedstore.collection import Collection


@dataclass(slots=True)
class LayerReport:
    """What was measured, by the function that measured it; None for what was not asked for."""

    title: str
    probes: list[ProbeReport] = field(default_factory=list)
    code: Mapping[str, list[CodeLength]] = field(default_factory=dict)
    alike: LayerSimilarity | None = None
    lens: LensReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {
            "title": self.title, "probes": [one.to_dict() for one in self.probes],
            "description_length": {name: [one.to_dict() for one in found] for name, found in self.code.items()},
            "similarity": None if self.alike is None else self.alike.to_dict(),
            "lens": None if self.lens is None else self.lens.to_dict(),
        }  # fmt: skip

    def to_rows(self) -> list[dict[str, Any]]:
        """A row for each figure: measure, label, layer, value, and its interval where there is one."""
        rows: list[dict[str, Any]] = []

        def add(measure: str, label: str, layer: int | None, value: float, low: Any = None, high: Any = None) -> None:
            rows.append({
                "measure": measure, "label": label, "layer": layer, "value": float(value), "low": low, "high": high,
            })  # fmt: skip

        for report in self.probes:
            for one in report.layers:
                add(report.metric, report.label, one.layer, one.score, one.low, one.high)
                if one.control is not None:
                    add("control", report.label, one.layer, one.control)
                    add("selectivity", report.label, one.layer, one.selectivity or 0.0)
                for name, value in one.other.items():
                    add(name, report.label, one.layer, value)
            for name, value in report.baselines.items():
                add(f"baseline: {name}", report.label, None, value)
        for label, found in self.code.items():
            for length in found:
                add("bits", label, length.layer, length.bits)
                add("compression", label, length.layer, length.compression)
        if self.lens is not None:
            for layer, value in self.lens.kl.items():
                add(f"{self.lens.method} lens, KL", "", layer, value)
        return rows

    def to_html(self) -> list[str]:
        """Its parts as HTML."""
        parts = []
        for report in self.probes:
            lines = {report.kind: {one.layer: (one.score, one.low, one.high) for one in report.layers}}
            controls = {one.layer: one.control for one in report.layers if one.control is not None}
            if controls:
                lines["control"] = {layer: (value, value, value) for layer, value in controls.items()}
            for name in dict.fromkeys(name for one in report.layers for name in one.other):
                if report.task == "classes":
                    lines[name] = {one.layer: (one.other[name],) * 3 for one in report.layers if name in one.other}
            for name, value in report.baselines.items():
                lines[name] = {one.layer: (value, value, value) for one in report.layers}
            parts.append(
                f"<h2>{html.escape(report.label)}: {report.metric} of a {report.kind} probe</h2>"
                f"<p>{report.n:,} records in {report.n_groups:,} groups; bands are 95 % intervals by the bootstrap."
                f" Best: layer {report.best.layer}. {html.escape(_why(report))}</p>"
                f"{curves(lines, report.metric)}{table(report.to_rows())}"
            )
        for label, found in self.code.items():
            lengths = table([one.to_dict() for one in found])
            parts.append(f"<h2>{html.escape(label)}: online code length</h2>{lengths}")
        if self.alike is not None:
            shown = heat_map(self.alike.values.tolist(), self.alike.rows, self.alike.columns)
            parts.append(
                f"<h2>How alike the layers are ({self.alike.measure}, {self.alike.n:,} records)</h2>{shown}"
            )
        if self.lens is not None:
            kl: list[dict[str, object]] = [
                {"layer": layer, "KL to the end, nats": round(value, 4), "same word": round(self.lens.agree[layer], 4)}
                for layer, value in self.lens.kl.items()
            ]
            said = f"{table(kl)}{self.lens.to_html()}"
            parts.append(f"<h2>What each layer would say ({self.lens.method} lens)</h2>{said}")
        return parts

    def write(self, file: str | os.PathLike[str]) -> None:
        """Write it: .html (a page that needs no other file), .json or .parquet (a row a figure)."""
        path = check_file(file, (".html", ".htm", ".json", ".parquet"), "report")
        if path.suffix in (".html", ".htm"):
            write_page(path, self.title, self.to_html())
            return
        if path.suffix == ".json":
            content = orjson.dumps(self.to_dict(), option=orjson.OPT_INDENT_2)
        else:
            import io

            import pyarrow
            import pyarrow.parquet

            buffer = io.BytesIO()
            types = {"measure": pyarrow.string(), "label": pyarrow.string(), "layer": pyarrow.int64(),
                     "value": pyarrow.float64(), "low": pyarrow.float64(), "high": pyarrow.float64()}  # fmt: skip
            held = pyarrow.Table.from_pylist(self.to_rows(), schema=pyarrow.schema(list(types.items())))
            pyarrow.parquet.write_table(held, buffer)
            content = buffer.getvalue()
        with storage_errors(path):
            replace_file(path, content)


def _why(report: ProbeReport) -> str:
    return "" if report.without_control is None else f"No control task: {report.without_control}."


def report(
    collection: Collection,
    labels: Sequence[str],
    *,
    layers: str | int | Iterable[int] = "all",
    prefix: str = "",
    site: str = HIDDEN,
    where: Where | None = None,
    group_by: str | None = None,
    control_by: str | None = None,
    folds: int = 5,
    measure: str | None = "cka",
    code: bool = True,
    beside: Sequence[str] = (),
    lens_model: str | None = None,
    lens_texts: Sequence[str] | None = None,
    seed: int = 0,
) -> LayerReport:
    """Probe labels layer by layer, with code lengths, the layers' likeness, and what a lens shows if one is asked for.

    lens_model: a language model with its head; lens_texts: what it reads, else the first five texts of the collection.
    """
    if isinstance(labels, str) or not labels:
        raise InvalidInput(f"labels is {labels!r}; give a list of fields: labels=['venue']")
    made = LayerReport(f"The layers of {collection.name}{f' ({prefix})' if prefix else ''}")
    common: dict[str, Any] = {"layers": layers, "prefix": prefix, "site": site, "where": where, "seed": seed}
    lengths = {}
    for label in labels:
        found = linear(
            collection, label, group_by=group_by, control_by=control_by, folds=folds, beside=beside, **common
        )
        made.probes.append(found)
        if code and found.task == "classes":
            lengths[label] = description_length(collection, label, **common)
    made.code = lengths
    if measure is not None:
        made.alike = similarity(collection, measure=measure, **common)
    if lens_model is not None:
        texts = lens_texts or [one.content for one in collection.records(where, limit=5) if one.content]
        allowed = collection.store.allows_network
        made.lens = lens(lens_model, [text or "" for text in texts], shown=5, allow_network=allowed)
    return made
