"""What the layers of minilm and of a small causal model know, beside figures that were published for them.

Similarity of sentence pairs (STS-B), parts of speech of words (UD English EWT) with control tasks, by a linear probe
and by one with a hidden layer, true and false statements about cities, and the logit and the tuned lens.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from report import data_folder, save

import embedstore
from embedstore import probing
from embedstore.plots import draw_layers
from embedstore.probing.judgements import read_judged_pairs

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"


def main() -> None:
    """Measure and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draw", action="store_true", help="draw docs/images/probing-*.png, too")
    options = parser.parse_args()
    data = data_folder()
    figures: dict = {"sts": similar(data), "lens": lenses(str(data / "stories260K"))}
    with tempfile.TemporaryDirectory() as scratch, embedstore.open(Path(scratch) / "store") as store:
        figures["cities"] = cities(store, data)
        figures["parts of speech"] = parts_of_speech(store, data, draw=options.draw)
    for name, found in figures.items():
        print(name, found)
    save("probing_figures", figures)


def by_layer(values: Iterable[float | None]) -> dict[str, float]:
    """Values in the order of layers, rounded."""
    return {f"layer {layer}": round(value or 0.0, 4) for layer, value in enumerate(values)}


def similar(data: Path) -> dict:
    """Spearman correlation by layer, as it is and centred."""
    pairs, wanted = read_judged_pairs(str(data / "stsb" / "stsb-en-dev.csv"))
    report = probing.similar_pairs("minilm", pairs, wanted, center=True)
    return {
        name: by_layer(one.score for one in report.scores if one.centered == centered)
        for name, centered in (("mean", False), ("mean, centred", True))
    }


def lenses(model: str) -> dict:
    """Mean divergence from the end by layer, on stories of the model's own."""
    opened = probing.open_headed(model)
    torch.manual_seed(0)
    texts = []
    for _ in range(200):
        with torch.no_grad():
            ids = opened.network.generate(torch.tensor([[1]]), max_new_tokens=200, do_sample=True, pad_token_id=2)
        texts.append(opened.tokenizer.decode(ids[0].tolist()))
    report = probing.lens(opened, texts[:40], shown=0)
    tuned = probing.tune(opened, texts)
    return {
        "logit": by_layer(report.kl.values()),
        "held out, logit": by_layer(before for before, _ in tuned.held_out.values()),
        "held out, tuned": by_layer(after for _, after in tuned.held_out.values()),
    }


def cities(store: embedstore.Store, data: Path) -> dict:
    """Accuracy of a linear probe on cities that were held out, ten folds."""
    with open(data / "geometry_of_truth" / "cities.csv") as lines:
        rows = list(csv.DictReader(lines))
    collection = store.collection("cities", encoder="none")
    collection.add([
        {"key": str(i), "text": row["statement"], "true": row["label"] == "1", "city": row["city"]}
        for i, row in enumerate(rows)
    ])  # fmt: skip
    found = {}
    for name, model, prefix in (("minilm", "minilm", ""), ("stories260K", str(data / "stories260K"), "stories-")):
        probing.capture(collection, model, prefix=prefix)
        report = probing.linear(collection, "true", group_by="city", folds=10, control=False, prefix=prefix)
        found[name] = by_layer(one.score for one in report.layers)
    return found


def sentences(data: Path) -> list[dict]:
    """The sentences of the treebank with their words and tags."""
    rows: list[dict] = []
    text, words, tags = "", [], []
    for line in (data / "ud_ewt" / "en_ewt-ud-dev.conllu").read_text(encoding="utf8").splitlines():
        if line.startswith("# text = "):
            text = line[9:]
        elif not line and words:
            rows.append({"key": str(len(rows)), "text": text, "words": words, "upos": tags})
            words, tags = [], []
        elif line[:1].isdigit():
            cells = line.split("\t")
            if "-" not in cells[0] and "." not in cells[0]:
                words.append(cells[1])
                tags.append(cells[3])
    return rows


def parts_of_speech(store: embedstore.Store, data: Path, *, draw: bool) -> dict:
    """Accuracy, control and selectivity by layer, one fifth of the sentences held out; a hidden layer at three."""
    collection = store.collection("sentences", encoder="none")
    collection.add(sentences(data))
    probing.words(collection, "words", "minilm", split="words", fields=["upos"])
    words = store.collection("words")
    begun = time.perf_counter()
    report = probing.linear(words, "upos", group_by="source", folds=1)
    seconds = time.perf_counter() - begun
    bent = probing.linear(words, "upos", group_by="source", folds=1, kind="mlp", layers=[0, 3, 6])
    lengths = probing.description_length(words, "upos")
    if draw:
        curves: dict = {
            "linear probe": {one.layer: (one.score, one.low, one.high) for one in report.layers},
            "control task": {one.layer: one.control for one in report.layers},
            "bag of words": {one.layer: report.baselines["bag of words"] for one in report.layers},
        }
        draw_layers(curves, "Parts of speech by layer of minilm", "accuracy", str(IMAGES / "probing-layers.png"))
        probing.similarity(words).plot(IMAGES / "probing-likeness.png")
    return {
        "words": report.n, "seconds": round(seconds, 1), "baselines": report.baselines,
        "accuracy": by_layer(one.score for one in report.layers),
        "control": by_layer(one.control for one in report.layers),
        "selectivity": by_layer(one.selectivity for one in report.layers),
        "compression": by_layer(one.compression for one in lengths),
        "with a hidden layer": {
            f"layer {one.layer}": {
                "accuracy": round(one.score, 4), "control": round(one.control or 0.0, 4),
                "selectivity": round(one.selectivity or 0.0, 4),
            }
            for one in bent.layers
        },
        "center of gravity": round(float(np.round(probing.scalar_mix(words, "upos").center_of_gravity, 3)), 3),
    }  # fmt: skip


if __name__ == "__main__":
    main()
