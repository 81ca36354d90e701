"""Bulk encoding by minilm in each runtime, beside ``SentenceTransformer.encode`` with its default batch of 32.

Abstracts of SciFact and short definitions of WordNet, in the order of their files. Tokenizing counts, loading does not.
The runs take turns. CPU-seconds are those of the whole process, user and system. Ratios are of medians, and beside them
of the best rounds: torch's threads wait for each other by turning, so sentence-transformers loses CPU-seconds where
others use the machine, and the best rounds are those with the least of that.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
from report import data_folder, save

Encode = Callable[[list[str]], np.ndarray]

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def abstracts(n: int) -> list[str]:
    """Titles with abstracts, spread over the corpus."""
    with (data_folder() / "scifact" / "corpus.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [f"{row['title']} {row['text']}" for row in rows[:: len(rows) // n]][:n]


def glosses(n: int) -> list[str]:
    """Short definitions, spread over the dictionary."""
    with gzip.open(data_folder() / "wordnet_glosses" / "glosses.tsv.gz", "rt", encoding="utf-8") as file:
        column = file.readline().rstrip("\n").split("\t").index("gloss")
        found = [line.rstrip("\n").split("\t")[column] for line in file]
    return found[:: len(found) // n][:n]


def encoders(texts: list[str]) -> dict[str, Encode]:
    """What is compared: sentence-transformers, each runtime that is installed, the one that is chosen, and int8."""
    from sentence_transformers import SentenceTransformer

    from embedstore.encoders import load_encoder
    from embedstore.encoders.bulk import Runner, installed_runtimes
    from embedstore.encoders.openvino_text import OpenVinoText
    from embedstore.encoders.race import Runtime
    from embedstore.encoders.torch_text import TorchText

    chosen, int8 = load_encoder("minilm", device="cpu"), load_encoder("minilm-int8", device="cpu")
    alone = SentenceTransformer(chosen.spec.location, device="cpu", local_files_only=True,
                                model_kwargs={"use_safetensors": True})
    tokenizer, graph = chosen._tokens(), chosen._export.graph

    def through(runner: Runner) -> Encode:
        return lambda texts: runner.encode(tokenizer.encode_all(texts)[0])

    compared: dict[str, Encode] = {"sentence-transformers": lambda texts: alone.encode(texts, show_progress_bar=False)}
    for runtime in installed_runtimes():
        if runtime is Runtime.ONNX:
            compared["onnxruntime"] = through(chosen._onnx)
        elif runtime is Runtime.OPENVINO:
            compared["openvino"] = through(OpenVinoText(graph, dim=384, pad_id=0))
        else:
            compared["torch"] = through(TorchText(chosen._model))
    while chosen._bulk._outcome is None:  # until the race is over
        chosen.encode(texts)
    compared["embedstore"] = lambda texts: chosen.encode(texts).vectors
    compared["minilm-int8"] = lambda texts: int8.encode(texts).vectors
    return compared


def measured(texts: list[str], compared: dict[str, Encode], n_rounds: int) -> dict:
    """Medians, and ratios of medians against sentence-transformers: above 1 where we are faster."""
    seconds: dict[str, list[float]] = {name: [] for name in compared}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in compared}
    vectors = {}
    for encode in compared.values():
        encode(texts[:16])
    names = list(compared)
    for turn in range(n_rounds):
        for name in itertools.islice(itertools.cycle(names), turn, turn + len(names)):  # nobody is always first
            began, cpu_began = time.perf_counter(), time.process_time()
            vectors[name] = compared[name](texts)
            cpu_seconds[name].append(time.process_time() - cpu_began)
            seconds[name].append(time.perf_counter() - began)
        print(f"round {turn + 1} of {n_rounds}", file=sys.stderr)
    exact = vectors["sentence-transformers"]
    wall = {name: statistics.median(values) for name, values in seconds.items()}
    cpu = {name: statistics.median(values) for name, values in cpu_seconds.items()}
    return {
        name: {
            "texts_per_second": round(len(texts) / wall[name], 1),
            "texts_per_cpu_second": round(len(texts) / cpu[name], 1),
            "ratio_per_second": round(wall["sentence-transformers"] / wall[name], 3),
            "ratio_per_cpu_second": round(cpu["sentence-transformers"] / cpu[name], 3),
            "ratio_of_best_per_cpu_second": round(
                min(cpu_seconds["sentence-transformers"]) / min(cpu_seconds[name]), 3
            ),
            "greatest_difference": float(f"{np.abs(vectors[name] - exact).max():.2g}"),
            "least_cosine": round(float((vectors[name] * exact).sum(axis=1).min()), 5),
        }
        for name in compared
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--abstracts", type=int, default=64)
    parser.add_argument("--glosses", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    both = {"abstracts": abstracts(options.abstracts), "glosses": glosses(options.glosses)}
    compared = encoders(both["abstracts"])
    from embedstore.cores import usable_cores
    from embedstore.encoders import describe_runtime

    figures: dict = {"n_rounds": options.rounds, "n_cores": usable_cores(), "load_before": os.getloadavg()[0]}
    for name, texts in both.items():
        figures[name] = {"n_texts": len(texts), **measured(texts, compared, options.rounds)}
    runtime = describe_runtime(verify=False)
    figures["race"] = {"winner": runtime["export"]["faster"], "ratios": runtime["export"]["ratios"]}
    figures["openvino"] = runtime["optional_versions"]["openvino"]
    figures["int8_fidelity"] = runtime["int8"]["fidelity"]
    save("bulk_encoding", figures)


if __name__ == "__main__":
    main()
