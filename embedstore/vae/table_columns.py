"""What the columns of a table are, fixed when they are first looked at, and how a row becomes numbers and back.

Each column becomes a block of features: a number made normal (Yeo and Johnson 2000) and standardised, a date in the
same way with the turn of the year and of the week, a category as one of those seen with one more for any other and one
for a missing value, a text as counts of hashed character n-grams reduced by a truncated SVD.
"""

from __future__ import annotations

import datetime
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

import numpy as np

from embedstore.checks import shown
from embedstore.errors import InvalidInput
from embedstore.model import FloatMatrix

MAX_CATEGORIES = 40
MAX_FREQUENT = 40
TEXT_DIM = 16
_HASHED = 4096
_TEXT_SHARE = 0.5
_LARGEST = 1e100
_MOST = 12.0  # standard deviations: what lies beyond tells no more
_DAY = 86_400.0
_YEAR, _WEEK = 365.2425, 7.0
_FIRST_DAY, _LAST_DAY = -719_161.0, 2_932_895.0  # of what a datetime can be, since 1970


class ColumnKind(Enum):
    """What a column holds."""

    NUMBER = "number"
    CATEGORY = "category"
    TEXT = "text"
    DATE = "date"
    EMPTY = "empty"
    """no value at all when it was looked at, so nothing can be learned of it"""


@dataclass(slots=True)
class Column:
    """One column: its kind, the types its values had, and what its block of features is made by.

    categories: those seen, the most frequent first. Of numbers: ``middle`` and ``scale`` by which they are made
    comparable, the exponent of the transform that makes them normal, mean and deviation after it, the least and the
    greatest, and whether all were whole. n_seen: how many values there were.
    """

    name: str
    kind: ColumnKind
    types: list[str]
    categories: list[str] = field(default_factory=list)
    boolean: bool = False
    whole: bool = False
    middle: float = 0.0
    scale: float = 1.0
    exponent: float = 1.0
    mean: float = 0.0
    deviation: float = 1.0
    least: float = 0.0
    greatest: float = 0.0
    n_seen: int = 0

    @property
    def n_gaussian(self) -> int:
        """How many of its features are numbers with a Gaussian likelihood."""
        return {ColumnKind.NUMBER: 1, ColumnKind.DATE: 5, ColumnKind.TEXT: TEXT_DIM}.get(self.kind, 0)

    @property
    def n_categories(self) -> int:
        """How many categories it has: those seen, any other, and none; a column of numbers has present and missing."""
        if self.kind is ColumnKind.EMPTY:
            return 0
        if self.kind in (ColumnKind.NUMBER, ColumnKind.DATE):
            return 2
        return len(self.categories) + 2

    @property
    def width(self) -> int:
        """How many features it has."""
        return self.n_gaussian + self.n_categories

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {**asdict(self), "kind": self.kind.value}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Column:
        """Read what ``to_json`` gave; InvalidInput for anything else."""
        try:
            made = cls(**{**fields, "kind": ColumnKind(fields["kind"])})
        except (TypeError, ValueError, KeyError) as error:
            raise InvalidInput(f"the description of a column cannot be read: {error}") from None
        texts = isinstance(made.name, str) and isinstance(made.types, list) and isinstance(made.categories, list)
        numbers = (
            made.middle, made.scale, made.exponent, made.mean, made.deviation, made.least, made.greatest, made.n_seen
        )
        fits = texts and all(isinstance(one, str) for one in (*made.types, *made.categories))
        if not fits or not all(type(one) in (int, float) and math.isfinite(one) for one in numbers) or not made.scale:
            raise InvalidInput(f"the description of the column {made.name!r} holds values that were never written")
        return made


def find_columns(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """The columns of some rows, in their order; InvalidInput for rows of other columns than the first, and infinity."""
    if not rows:
        raise InvalidInput("there are no rows to learn from")
    names = list(rows[0])
    for number, row in enumerate(rows, start=1):
        if row.keys() != rows[0].keys():
            odd = ", ".join(sorted(map(str, row.keys() ^ rows[0].keys())))
            raise InvalidInput(f"row {number} has other columns than row 1: {odd}")
    return [_column(name, [row[name] for row in rows]) for name in names]


def _column(name: str, values: Sequence[Any]) -> Column:
    given = [value for value in values if value is not None]
    if not given:
        return Column(name, ColumnKind.EMPTY, [])
    types = sorted({_type_of(name, value) for value in given})
    n_seen = len(given)
    if types == ["boolean"]:
        counts = Counter(str(value).lower() for value in given)
        return Column(name, ColumnKind.CATEGORY, types, _frequent(counts), boolean=True, n_seen=n_seen)
    if types == ["number"]:
        return _number_column(name, _floats(name, given), ColumnKind.NUMBER, types, n_seen)
    if set(types) <= {"date", "text"}:
        dates = [_seconds(value) for value in given]
        n_dates = sum(one is not None for one in dates)
        if n_dates == n_seen:
            seconds = np.asarray(dates, np.float64) / _DAY
            return _number_column(name, seconds, ColumnKind.DATE, types, n_seen)
    if len(types) > 1:
        raise InvalidInput(f"the column {name!r} holds {' and '.join(types)}; a column is of one type")
    counts = Counter(str(value) for value in given)
    if len(counts) <= MAX_CATEGORIES:
        return Column(name, ColumnKind.CATEGORY, types, _frequent(counts), n_seen=n_seen)
    frequent = _frequent(counts)[:MAX_FREQUENT] if len(counts) <= _TEXT_SHARE * n_seen else []
    return Column(name, ColumnKind.TEXT, types, frequent, n_seen=n_seen)


def _number_column(name: str, values: np.ndarray, kind: ColumnKind, types: list[str], n_seen: int) -> Column:
    from scipy.stats import yeojohnson

    if not (np.abs(values) < _LARGEST).all():
        raise InvalidInput(
            f"the column {name!r} holds infinity, NaN or a number beyond {_LARGEST:g}, of which nothing can be learned;"
            " leave it out"
        )
    whole = bool((values == np.rint(values)).all())
    least, greatest = float(values.min()), float(values.max())
    middle, scale = float(np.median(values)), float(values.std()) or 1.0
    exponent = 1.0
    scaled = (values - middle) / scale
    if kind is ColumnKind.NUMBER and len(np.unique(values)) > 2:
        with np.errstate(all="ignore"):
            _, found = yeojohnson(scaled)
        exponent = float(np.clip(found, -4.0, 4.0)) if np.isfinite(found) else 1.0
    made = yeo_johnson(scaled, exponent)
    return Column(
        name, kind, types, whole=whole, middle=middle, scale=scale, exponent=exponent, mean=float(made.mean()),
        deviation=float(made.std()) or 1.0, least=least, greatest=greatest, n_seen=n_seen,
    )  # fmt: skip


def yeo_johnson(values: np.ndarray, exponent: float) -> np.ndarray:
    """The transform of Yeo and Johnson (2000), a power that takes negative numbers too."""
    positive = values >= 0
    made = np.empty_like(values, dtype=np.float64)
    up, down = values[positive], -values[~positive]
    made[positive] = np.log1p(up) if abs(exponent) < 1e-8 else ((up + 1) ** exponent - 1) / exponent
    rest = 2 - exponent
    made[~positive] = -np.log1p(down) if abs(rest) < 1e-8 else -((down + 1) ** rest - 1) / rest
    return made


def yeo_johnson_inverse(made: np.ndarray, exponent: float) -> np.ndarray:
    """What ``yeo_johnson`` was given; the nearest number that has a transform where there is none."""
    positive = made >= 0
    values = np.empty_like(made, dtype=np.float64)
    up, down = made[positive], -made[~positive]
    if abs(exponent) < 1e-8:
        values[positive] = np.expm1(up)
    else:
        values[positive] = np.maximum(up * exponent + 1, 1e-9) ** (1 / exponent) - 1
    rest = 2 - exponent
    if abs(rest) < 1e-8:
        values[~positive] = -np.expm1(down)
    else:
        values[~positive] = 1 - np.maximum(down * rest + 1, 1e-9) ** (1 / rest)
    return values


def _floats(name: str, values: Sequence[Any]) -> np.ndarray:
    try:
        return np.asarray(values, np.float64)
    except OverflowError:
        raise InvalidInput(f"the column {name!r} holds a whole number that is too large; leave it out") from None


def _frequent(counts: Counter[str]) -> list[str]:
    return [value for value, _ in sorted(counts.items(), key=lambda one: (-one[1], one[0]))]


def _type_of(name: str, value: Any) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "boolean"
    if isinstance(value, (int, float, np.integer, np.floating)):
        return "number"
    if isinstance(value, (datetime.date, datetime.datetime)):
        return "date"
    if isinstance(value, str):
        return "text"
    raise InvalidInput(
        f"the column {name!r} holds {type(value).__name__}; a table holds numbers, texts, booleans, dates, and nulls"
    )


def _seconds(value: Any) -> float | None:
    """A date, or a text that is one in ISO 8601, as seconds since 1970; None for any other text."""
    if isinstance(value, str):
        if not value[:4].isdigit() or len(value) < 8:
            return None
        try:
            value = datetime.datetime.fromisoformat(value)
        except ValueError:
            return None
    if not isinstance(value, datetime.datetime):
        value = datetime.datetime.combine(value, datetime.time())
    if value.tzinfo is None:
        value = value.replace(tzinfo=datetime.UTC)
    return float(value.timestamp())


@dataclass(slots=True)
class TextReduction:
    """How the texts of one column become TEXT_DIM numbers: a projection (4096, TEXT_DIM), means and deviations."""

    projection: FloatMatrix
    mean: np.ndarray
    deviation: np.ndarray


class TableSchema:
    """The columns of a table with what reduces its texts; turns rows into features and back."""

    def __init__(self, columns: Sequence[Column], reductions: Mapping[str, TextReduction]) -> None:
        self.columns = list(columns)
        self.reductions = dict(reductions)
        self.starts = np.concatenate([[0], np.cumsum([column.width for column in self.columns])]).astype(int).tolist()

    @property
    def width(self) -> int:
        """How many features a row has."""
        return int(self.starts[-1])

    @property
    def names(self) -> list[str]:
        """The columns' names."""
        return [column.name for column in self.columns]

    @classmethod
    def fit(cls, rows: Sequence[Mapping[str, Any]], seed: int = 0) -> TableSchema:
        """The schema of some rows; InvalidInput where nothing can be learned of them."""
        columns = find_columns(rows)
        if all(column.kind is ColumnKind.EMPTY for column in columns):
            raise InvalidInput("no column holds any value, so there is nothing to learn")
        reductions = {
            column.name: _reduction([row[column.name] for row in rows], seed)
            for column in columns if column.kind is ColumnKind.TEXT
        }  # fmt: skip
        return cls(columns, reductions)

    def check(self, row: Mapping[str, Any], *, partial: bool = False) -> None:
        """Raise InvalidInput, with names, for columns that are missing or too many, and for values of other types.

        partial: columns may be missing, and are taken for null.
        """
        known = set(self.names)
        missing = [name for name in self.names if name not in row]
        extra = [str(name) for name in row if name not in known]
        if extra or (missing and not partial):
            parts = [f"lacks {', '.join(map(repr, missing))}"] if missing and not partial else []
            if extra:
                parts.append(f"has {', '.join(map(repr, extra))} too (name them as metadata, or leave them out)")
            raise InvalidInput(
                f"the row {' and '.join(parts)}; the model was trained on the columns {', '.join(self.names)}"
            )
        for column in self.columns:
            value = row.get(column.name)
            if value is None or column.kind is ColumnKind.EMPTY:
                continue
            came = _type_of(column.name, value)
            if came not in column.types and not (column.kind is ColumnKind.DATE and _seconds_of(value) is not None):
                raise InvalidInput(
                    f"the column {column.name!r} holds {came} {shown(str(value))}; when the model was trained it held"
                    f" {' and '.join(column.types)}"
                )
            if came == "number" and not _fits(value):
                told = f"{float(value)}" if isinstance(value, float) else "a whole number beyond 1e100"
                raise InvalidInput(f"the column {column.name!r} holds {told}; every number must be finite")
            if column.kind is ColumnKind.DATE and _seconds_of(value) is None:
                raise InvalidInput(f"the column {column.name!r} holds {shown(str(value))}, which is no date")

    def transform(self, rows: Sequence[Mapping[str, Any]]) -> tuple[FloatMatrix, int]:
        """Features of checked rows, float32 (n, width), and how many values were of no category that was seen."""
        features = np.zeros((len(rows), self.width), np.float32)
        n_unknown = 0
        for start, column in zip(self.starts, self.columns, strict=False):
            values = [row.get(column.name) for row in rows]
            block = features[:, start : start + column.width]
            if column.kind in (ColumnKind.NUMBER, ColumnKind.DATE):
                _fill_numbers(block, column, values)
            elif column.kind is not ColumnKind.EMPTY:
                n_unknown += self._fill_categories(block, column, values)
        return features, n_unknown

    def _fill_categories(self, block: np.ndarray, column: Column, values: Sequence[Any]) -> int:
        place = {category: number for number, category in enumerate(column.categories)}
        n_gaussian, n_known, n_unknown = column.n_gaussian, len(column.categories), 0
        for line, value in enumerate(values):
            if value is None:
                found = n_known + 1
            else:
                found = place.get(str(value).lower() if column.boolean else str(value), n_known)
                n_unknown += found == n_known and column.kind is ColumnKind.CATEGORY
            block[line, n_gaussian + found] = 1.0
        if column.kind is ColumnKind.TEXT:
            reduction = self.reductions[column.name]
            reduced = (_hashed(values) @ reduction.projection - reduction.mean) / reduction.deviation
            present = block[:, n_gaussian + n_known + 1] == 0
            block[:, :n_gaussian] = np.where(present[:, None], np.clip(reduced, -_MOST, _MOST), 0.0)
        return n_unknown

    def rows_of(self, features: FloatMatrix) -> list[dict[str, Any]]:
        """Rows of decoded features (n, width): means of numbers, the likeliest categories; null for free text."""
        columns = [
            self._values(column, features[:, start : start + column.width])
            for start, column in zip(self.starts, self.columns, strict=False)
        ]
        return [dict(zip(self.names, cells, strict=True)) for cells in zip(*columns, strict=True)]

    def _values(self, column: Column, block: np.ndarray) -> list[Any]:
        n_gaussian = column.n_gaussian
        if column.kind is ColumnKind.EMPTY:
            return [None] * len(block)
        likeliest = block[:, n_gaussian:].argmax(axis=1)
        if column.kind in (ColumnKind.NUMBER, ColumnKind.DATE):
            numbers = numbers_of(column, block[:, 0])
            made: list[Any] = [_shown_number(column, one) for one in numbers.tolist()]
            return [None if missing else one for one, missing in zip(made, likeliest.tolist(), strict=True)]
        known = len(column.categories)
        if column.kind is ColumnKind.TEXT and not known:
            return [None] * len(block)
        names: list[Any] = [one == "true" for one in column.categories] if column.boolean else [*column.categories]
        return [names[one] if one < known else None for one in likeliest.tolist()]

    def to_json(self) -> list[dict[str, Any]]:
        """The columns as JSON objects."""
        return [column.to_json() for column in self.columns]


def numbers_of(column: Column, features: np.ndarray) -> np.ndarray:
    """The numbers (days since 1970 for dates) that features stand for, kept within what was seen: float64 (n,)."""
    made = features.astype(np.float64) * column.deviation + column.mean
    with np.errstate(all="ignore"):
        values = yeo_johnson_inverse(made, column.exponent) * column.scale + column.middle
    return np.clip(np.nan_to_num(values, nan=column.middle), column.least, column.greatest)


def _shown_number(column: Column, value: float) -> Any:
    if column.kind is ColumnKind.DATE:
        value = min(max(value, _FIRST_DAY), _LAST_DAY)
        day = datetime.datetime.fromtimestamp((round(value) if column.whole else value) * _DAY, datetime.UTC)
        return day.date().isoformat() if column.whole else day.isoformat(timespec="seconds")
    return round(value) if column.whole else value


def _fits(value: Any) -> bool:
    """Whether a number can be computed with."""
    return bool(abs(value) < _LARGEST)  # which is False of NaN


def _seconds_of(value: Any) -> float | None:
    return _seconds(value) if isinstance(value, (str, datetime.date)) else None


def _fill_numbers(block: np.ndarray, column: Column, values: Sequence[Any]) -> None:
    given = [line for line, value in enumerate(values) if value is not None]
    block[[line for line, value in enumerate(values) if value is None], column.n_gaussian + 1] = 1.0
    if not given:
        return
    if column.kind is ColumnKind.DATE:
        numbers = np.asarray([(_seconds_of(values[line]) or 0.0) / _DAY for line in given])
    else:
        numbers = np.asarray([float(values[line]) for line in given])
    with np.errstate(over="ignore", invalid="ignore"):
        made = (yeo_johnson((numbers - column.middle) / column.scale, column.exponent) - column.mean) / column.deviation
    block[given, 0] = np.clip(np.nan_to_num(made, nan=0.0, posinf=_MOST, neginf=-_MOST), -_MOST, _MOST)
    block[given, column.n_gaussian] = 1.0
    if column.kind is ColumnKind.DATE:
        for place, period in ((1, _YEAR), (3, _WEEK)):
            angle = 2 * np.pi * (numbers / period)
            block[given, place], block[given, place + 1] = np.sin(angle), np.cos(angle)


def _hashed(values: Iterable[Any]) -> Any:
    """Counts of character n-grams, hashed: sparse (n, 4096). The hash is fixed, so there is nothing to keep of it."""
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(analyzer="char_wb", ngram_range=(2, 4), n_features=_HASHED, lowercase=True)
    return vectorizer.transform(["" if value is None else str(value) for value in values])


def _reduction(values: Sequence[Any], seed: int) -> TextReduction:
    from sklearn.decomposition import TruncatedSVD

    counts = _hashed(values)
    n_components = min(TEXT_DIM, max(1, counts.shape[0] - 1))
    fitted = TruncatedSVD(n_components, random_state=seed).fit(counts)
    projection = np.zeros((_HASHED, TEXT_DIM), np.float32)
    projection[:, :n_components] = fitted.components_.T
    reduced = counts @ projection
    deviation = reduced.std(axis=0)
    return TextReduction(
        projection, reduced.mean(axis=0).astype(np.float32),
        np.where(deviation > 1e-6, deviation, 1.0).astype(np.float32),
    )  # fmt: skip
