"""Asks of every layer whether a probe can read a label from its states, and what that is worth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from embedstore.checks import check_seed, check_whole
from embedstore.errors import InvalidInput
from embedstore.filters.parse import Where
from embedstore.model import FloatMatrix, IntVector
from embedstore.names import check_collection_name
from embedstore.probing.baselines import bag_of_words
from embedstore.probing.cores import side_by_side
from embedstore.probing.examples import (
    Examples,
    LayerSpace,
    examples_of,
    fields_of,
    holds_lists,
    layer_spaces,
    states_of,
)
from embedstore.probing.keeping import keep_probe
from embedstore.probing.learners import LEARNERS, choose_strength
from embedstore.probing.splitting import folds_of, inner_folds, interval
from embedstore.states.taps import HIDDEN

if TYPE_CHECKING:
    from embedstore.collection import Collection

TASKS = ("auto", "classes", "number", "several")
_MOST_CLASSES = 100
_SHARES = (0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(slots=True)
class LayerScore:
    """What a probe reads from one layer.

    score: accuracy on what was held out; of numbers R², of several labels the mean average precision. low, high: its
    95 % confidence interval by the bootstrap. control: accuracy on labels that were drawn at random for each type;
    selectivity: score minus control (Hewitt and Liang 2019). strength: the inverse L2 penalty that was chosen. other:
    further figures by name. curve: score by share of the examples that were learned from.
    """

    layer: int
    space: str
    score: float
    low: float
    high: float
    control: float | None = None
    selectivity: float | None = None
    strength: float | None = None
    other: dict[str, float] = field(default_factory=dict)
    curve: dict[float, float] = field(default_factory=dict)


@dataclass(slots=True)
class ProbeReport:
    """What probes read of a label, by layer.

    baselines: the scores of models that see no states. without_control: why there is no control task, where none is.
    """

    label: str
    task: str
    kind: str
    n: int
    n_groups: int
    classes: list[str]
    folds: int
    layers: list[LayerScore]
    baselines: dict[str, float]
    without_control: str | None = None

    @property
    def best(self) -> LayerScore:
        """The layer of the greatest score."""
        return max(self.layers, key=lambda one: one.score)

    @property
    def metric(self) -> str:
        """What the score is."""
        return {"classes": "accuracy", "number": "R2", "several": "mean average precision"}[self.task]

    def to_rows(self) -> list[dict[str, Any]]:
        """A row a layer, rounded for people."""
        rows = []
        shared = len({one.layer for one in self.layers}) < len(self.layers)  # heads of one layer
        for one in self.layers:
            where = {"space": one.space} if shared else {}
            row: dict[str, Any] = {"layer": one.layer, **where, self.metric: one.score}
            row |= {"low": one.low, "high": one.high}
            if one.control is not None:
                row |= {"control": one.control, "selectivity": one.selectivity}
            rows.append({**row, **one.other})
        return [
            {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
            for row in rows
        ]  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {
            "label": self.label, "task": self.task, "kind": self.kind, "metric": self.metric, "n": self.n,
            "n_groups": self.n_groups, "classes": self.classes, "folds": self.folds, "baselines": self.baselines,
            "without_control": self.without_control,
            "layers": [
                {
                    "layer": one.layer, "space": one.space, "score": one.score, "low": one.low, "high": one.high,
                    "control": one.control, "selectivity": one.selectivity, "strength": one.strength, **one.other,
                    **({"curve": {str(share): score for share, score in one.curve.items()}} if one.curve else {}),
                }
                for one in self.layers
            ],
        }  # fmt: skip


def linear(
    collection: Collection,
    label: str,
    *,
    layers: str | int | Iterable[int] = "all",
    prefix: str = "",
    site: str = HIDDEN,
    where: Where | None = None,
    task: str = "auto",
    kind: str = "linear",
    control: bool = True,
    control_by: str | None = None,
    group_by: str | None = None,
    folds: int = 5,
    curve: bool = False,
    beside: Sequence[str] = (),
    store_as: str | None = None,
    seed: int = 0,
) -> ProbeReport:
    """Fit a probe to every captured layer for a metadata field, and measure it on records that were held out.

    task: 'classes', 'number', 'several' (lists of labels), or 'auto', by what the field holds.
    kind: 'linear' (logistic regression; ridge for numbers), 'mlp' (one hidden layer), 'mass-mean' (of two classes).
    control: whether the same probe is fitted to labels drawn at random from the same distribution, one for each type: a
        value of the field ``control_by``, else a text. A probe that learns these knows the types, not the layer. Where
        types do not come again among the records that are held out, there is none.
    group_by: a field; records that agree in it are never parted between what is learned from and what is judged by.
    folds: of a cross-validation, stratified; 1 holds one fifth out, once.
    curve: whether the probe is also fitted to shares of the examples.
    beside: prefixes of other captured spaces of the same layers, such as of the model with random weights, which are
        scored, too.
    store_as: keeps the probe, fitted to all records, with each layer's space: ``probing.probe(space, name)``.

    Standardised states; the L2 penalty is chosen within the first part that is learned from. InvalidInput for a label
    of one class, fewer records than folds, layers that were not captured.
    """
    if kind not in LEARNERS:
        raise InvalidInput(f"kind is {kind!r}; it must be one of {', '.join(LEARNERS)}")
    if task not in TASKS:
        raise InvalidInput(f"task is {task!r}; it must be one of {', '.join(TASKS)}")
    check_whole("folds", folds, 1)
    check_seed(seed)
    if not isinstance(label, str) or not label:
        raise InvalidInput(f"label is {label!r}; give the name of a field")
    if store_as is not None:
        check_collection_name(store_as)
    if store_as is not None and kind == "mlp":
        raise InvalidInput("only linear and mass-mean probes can be kept (store_as)")
    spaces = layer_spaces(collection, layers, prefix=prefix, site=site)
    others = {one: layer_spaces(collection, [s.layer for s in spaces], prefix=one, site=site) for one in beside}
    everything = [*spaces, *(space for those in others.values() for space in those)]
    if task == "auto" and holds_lists(collection, label):
        task = "several"
    examples = examples_of(
        collection, label, everything, where=where, group_by=group_by, several=task == "several"
    )
    if task == "auto":
        task = _task_of(examples.labels)
    if task != "classes" and (store_as is not None or curve or (task == "several" and beside)):
        raise InvalidInput(f"store_as, curve and beside are for classes; the label {label!r} is read as {task!r}")
    if task != "classes" and kind != "linear":
        raise InvalidInput(f"kind {kind!r} tells classes apart; the label {label!r} is read as {task!r}")
    if task == "number":
        from embedstore.probing.numbers import number_report

        return number_report(collection, label, examples, spaces, others, folds, seed)
    if task == "several":
        from embedstore.probing.several import several_report

        return several_report(collection, label, examples, spaces, folds, seed)
    names, classes = classes_of(examples.labels, label)
    _check_groups(examples, classes, names)
    held_out = folds_of(classes, examples.groups, max(folds, 2) if folds > 1 else 5, seed, names)
    parts = range(int(held_out.max()) + 1 if folds > 1 else 1)
    setting = _Setting(examples, classes, len(names), held_out, parts, kind, seed)
    types = [str(one) for one in _types(collection, examples, control_by)] if control else []
    drawn = control_labels(types, classes, seed) if control and setting.types_recur(types) else None

    def scored(space: LayerSpace) -> LayerScore:
        rows = states_of(collection, space.name, examples.record_ids)
        strength = setting.strength(rows, classes)
        right = setting.right(rows, classes, strength)
        made = LayerScore(space.layer, space.name, *setting.mean_and_interval(right), strength=strength)
        if drawn is not None:
            made.control = float(setting.right(rows, drawn, setting.strength(rows, drawn))[setting.judged].mean())
            made.selectivity = made.score - made.control
        if curve:
            made.curve = setting.curve(rows, strength)
        for other, those in others.items():
            beside_rows = states_of(
                collection, next(one.name for one in those if one.layer == space.layer), examples.record_ids
            )
            found = setting.right(beside_rows, classes, setting.strength(beside_rows, classes))
            made.other[other.rstrip("-") or "beside"] = float(found[setting.judged].mean())
        if store_as is not None:
            keep_probe(
                collection, space.name, store_as, LEARNERS[kind](rows, classes, len(names), strength, seed), names,
                {"label": label, "kind": kind, "score": made.score, "metric": "accuracy", "n": len(examples)},
            )  # fmt: skip
        return made

    scores = side_by_side(scored, spaces)
    judged = setting.judged
    counts = np.bincount(classes)
    baselines = {"majority": float((classes[judged] == counts.argmax()).mean())}
    told = bag_of_words(examples.texts, classes, held_out, parts)
    if told is not None:
        baselines["bag of words"] = float(told[judged].mean())
    why = None
    if control and drawn is None:
        why = "types hardly ever come again; name a field of fewer values (control_by, --control-by)"
    return ProbeReport(
        label, task, kind, len(examples), len(set(examples.groups)), names, folds, scores, baselines, why
    )


def classes_of(labels: Sequence[Any], label: str) -> tuple[list[str], IntVector]:
    """The classes by name, sorted, and by example its number; InvalidInput for one class, or very many."""
    words = [str(one) for one in labels]
    names = sorted(set(words))
    if len(names) < 2:
        raise InvalidInput(f"the label {label!r} has one class only, {names[0]!r}; a probe tells two or more apart")
    if len(names) > max(_MOST_CLASSES, 2) and len(names) > len(words) // 2:
        raise InvalidInput(f"the label {label!r} has {len(names):,} values for {len(words):,} records; give classes")
    numbers = {name: number for number, name in enumerate(names)}
    return names, np.array([numbers[word] for word in words], np.int64)


def _check_groups(examples: Examples, classes: IntVector, names: Sequence[str]) -> None:
    """InvalidInput for a class that lies in one group, so that it could not be learned where it is judged."""
    if len(set(examples.groups)) == len(examples.groups):
        return
    held: dict[int, set[Any]] = {}
    for one, group in zip(classes.tolist(), examples.groups, strict=True):
        held.setdefault(one, set()).add(group)
    alone = next((one for one, groups in held.items() if len(groups) < 2), None)
    if alone is not None:
        raise InvalidInput(f"all examples of the class {names[alone]!r} are in one group; group by another field")


def control_labels(types: Sequence[str], classes: IntVector, seed: int) -> IntVector:
    """A control task (Hewitt and Liang 2019): each type has one label, drawn from the distribution of the labels."""
    drawn = np.random.default_rng(seed)
    counts = np.bincount(classes).astype(np.float64)
    names = list(dict.fromkeys(types))
    label_of = dict(zip(names, drawn.choice(len(counts), len(names), p=counts / counts.sum()).tolist(), strict=True))
    return np.array([label_of[one] for one in types], np.int64)


def _task_of(labels: Sequence[Any]) -> str:
    numbers = [one for one in labels if isinstance(one, (int, float)) and not isinstance(one, bool)]
    if len(numbers) < len(labels):
        return "classes"
    if any(isinstance(one, float) and not one.is_integer() for one in numbers) or len(set(numbers)) > _MOST_CLASSES:
        return "number"
    return "classes"


def _types(collection: Collection, examples: Examples, control_by: str | None) -> Sequence[Any]:
    if control_by is None or control_by == "text":
        return examples.texts
    return fields_of(collection, control_by, examples.record_ids)


@dataclass(frozen=True, slots=True)
class _Setting:
    """Which examples are judged by which probe, and how."""

    examples: Examples
    classes: IntVector
    k: int
    held_out: IntVector
    parts: range
    kind: str
    seed: int

    @property
    def judged(self) -> np.ndarray:
        """The examples that are held out at some time, bool (n,)."""
        return np.isin(self.held_out, list(self.parts))

    def types_recur(self, types: Sequence[str]) -> bool:
        """Whether half of what is judged is of types that are learned from, so that a probe could know them."""
        known = 0
        for fold in self.parts:
            out = self.held_out == fold
            learned = {one for one, is_out in zip(types, out.tolist(), strict=True) if not is_out}
            known += sum(one in learned for one, is_out in zip(types, out.tolist(), strict=True) if is_out)
        return known >= 0.5 * int(self.judged.sum())

    def strength(self, rows: FloatMatrix, classes: IntVector) -> float:
        if self.kind != "linear":
            return 1.0
        learned = np.flatnonzero(self.held_out != 0)
        inner = inner_folds([self.examples.groups[place] for place in learned.tolist()], self.seed)
        return choose_strength(rows[learned], classes[learned], self.k, inner)

    def right(self, rows: FloatMatrix, classes: IntVector, strength: float) -> np.ndarray:
        """By example whether it was told rightly by a probe that had not seen it: 1.0 or 0.0, (n,)."""
        found = np.zeros(len(rows))
        for fold in self.parts:
            out = self.held_out == fold
            probe = LEARNERS[self.kind](rows[~out], classes[~out], self.k, strength, self.seed)
            found[out] = probe.predict(rows[out]) == classes[out]
        return found

    def mean_and_interval(self, values: np.ndarray) -> tuple[float, float, float]:
        judged = np.flatnonzero(self.judged)
        groups = [self.examples.groups[place] for place in judged.tolist()]
        return float(values[judged].mean()), *interval(values[judged], groups, self.seed)

    def curve(self, rows: FloatMatrix, strength: float) -> dict[float, float]:
        """Accuracy on the first part by share of the rest that is learned from."""
        out = self.held_out == 0
        learned = np.random.default_rng(self.seed).permutation(np.flatnonzero(~out))
        scores = {}
        for share in _SHARES:
            some = learned[: max(self.k, int(share * len(learned)))]
            if len(np.unique(self.classes[some])) < 2:
                continue  # so few tell nothing apart
            probe = LEARNERS[self.kind](rows[some], self.classes[some], self.k, strength, self.seed)
            scores[share] = float((probe.predict(rows[out]) == self.classes[out]).mean())
        return scores
