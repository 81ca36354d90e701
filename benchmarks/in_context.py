"""Learning in context where the concept is known: which demonstrations help, and what a task vector does.

Two small causal models are trained, in minutes. The first tells the label of a letter by a code that only some letters
tell of; its demonstrations are chosen at random, by likeness, and by the likelihood of the concept. The second answers
in one of four languages; the task vector is what demonstrations of a language add to the last token's state.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from concept_tasks import CODES, FAMILIES, PLAIN, TELLING, label_of, train
from report import save

import embedstore
from embedstore.probing import Template, in_context

TEMPLATE = Template("{text} {label} ", "{text} ")
ASKED = 3  # of the telling letters, the last ones are asked about and never shown


def main() -> None:
    """Measure and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", help="a folder of both models, which are trained there if they are not")
    options = parser.parse_args()
    figures: dict = {}
    with tempfile.TemporaryDirectory() as scratch:
        models = Path(options.models or scratch)
        for family in FAMILIES:
            if not (models / family).is_dir():
                train(models / family, family)
            figures[family] = measured(family, str(models / family), Path(scratch))
    for family, found in figures.items():
        print(family, found)
    save("in_context", figures)


def measured(family: str, model: str, scratch: Path) -> dict:
    """Mean accuracies over the concepts."""
    reports = []
    letters = [*TELLING, *PLAIN]
    labels = sorted({label_of(concept, one, family) for concept in range(len(CODES)) for one in letters})
    for concept in range(len(CODES)):
        with embedstore.open(scratch / f"{family}-{concept}") as store:
            collection = store.collection("letters", encoder="minilm")
            drawn = np.random.default_rng(concept)
            shown = [one for one in letters if one not in TELLING[ASKED:]]
            rows = [
                {"key": f"{part}{number}", "text": one, "label": label_of(concept, one, family), "part": part}
                for part, those, n in (("shown", shown, 60), ("asked", TELLING[ASKED:], 60))
                for number, one in enumerate(drawn.choice(list(those), n).tolist())
            ]
            collection.add(rows)
            reports.append(in_context(
                collection, model, "label", queries="part = 'asked'", n_demonstrations=2, template=TEMPLATE,
                labels=labels, seed=concept,
            ))  # fmt: skip
    ways = reports[0].accuracy
    return {
        "accuracy": {way: round(float(np.mean([one.accuracy[way] for one in reports])), 4) for way in ways},
        "steered": {
            str(layer): round(float(np.mean([one.steered[layer] for one in reports])), 4)
            for layer in reports[0].steered
        },
        "concept": [one.concept for one in reports],
    }  # fmt: skip


if __name__ == "__main__":
    main()
