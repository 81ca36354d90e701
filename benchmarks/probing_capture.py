"""Capturing every layer of minilm into a store, beside the bare forward pass over the same batches, and beside others.

Others are TransformerLens (its bridge, with a cache) and nnsight, where they are installed: the states of all layers,
mean-pooled, of the same batches. Runs are interleaved. ``--memory`` captures 100,000 short texts and tells how much
memory that took above the model.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from glosses import rows_of
from report import data_folder, save

import embedstore
from embedstore import probing
from embedstore.probing.judgements import read_judged_pairs
from embedstore.states import open_states
from embedstore.states.pooling import pooled

RUNS = 7


def main() -> None:
    """Measure and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", action="store_true", help="capture 100,000 texts and tell the memory instead")
    options = parser.parse_args()
    if options.memory:
        figures = memory()
    else:
        figures = throughput()
    for name, found in figures.items():
        print(name, found)
    save("probing_memory" if options.memory else "probing_capture", figures)


def throughput() -> dict:
    """Seconds of each way, and their ratios."""
    pairs, _ = read_judged_pairs(str(data_folder() / "stsb" / "stsb-en-dev.csv"))
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    model = open_states("minilm")
    tokens = model.tokenize(texts)
    batches = [(torch.from_numpy(one.ids), torch.from_numpy(one.mask)) for one in model.batched(tokens)]

    def bare() -> None:
        with torch.no_grad():
            for ids, mask in batches:
                model.network(input_ids=ids, attention_mask=mask)

    def plain() -> None:
        with torch.no_grad():
            for ids, mask in batches:
                states = model.network(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
                [pooled(one, mask, "mean").numpy() for one in states]

    def captured() -> float:
        with tempfile.TemporaryDirectory() as scratch, embedstore.open(Path(scratch) / "store") as store:
            collection = store.collection("texts", encoder="none")
            collection.add([{"key": str(place), "text": text} for place, text in enumerate(texts)])
            encoder: Any = store.load_encoder("hf:minilm@site=hidden,layer=0,pool=mean")
            encoder.shared.opened()
            begun = time.perf_counter()
            probing.capture(collection, "minilm")
            return time.perf_counter() - begun

    ways: dict[str, Callable[[], float | None]] = {
        "bare forward": bare, "output_hidden_states": plain, "capture": captured,
    }  # fmt: skip
    ways |= peers(str(model.model.folder), batches)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(RUNS + 1):
        for name, way in ways.items():
            begun = time.perf_counter()
            told = way()
            if run:  # the first one warms up
                seconds[name].append(time.perf_counter() - begun if told is None else told)
    ratios = {
        name: round(statistics.median(a / b for a, b in zip(seconds["bare forward"], those, strict=True)), 3)
        for name, those in seconds.items()
    }
    return {
        "texts": len(texts), "tokens": sum(len(one.ids) for one in tokens), "batches": len(batches),
        "median seconds": {name: round(statistics.median(those), 3) for name, those in seconds.items()},
        "throughput beside the bare forward": ratios,
    }  # fmt: skip


def peers(folder: str, batches: list[tuple[Any, Any]]) -> dict[str, Callable[[], None]]:
    """What other libraries do for the same, where they are installed."""
    found: dict[str, Callable[[], None]] = {}
    if importlib.util.find_spec("transformer_lens") is not None:
        from transformer_lens.model_bridge import TransformerBridge

        bridge = TransformerBridge.boot_transformers(folder, device="cpu")

        def with_lens() -> None:
            with torch.no_grad():
                for ids, mask in batches:
                    _, cache = bridge.run_with_cache(
                        ids, attention_mask=mask, names_filter=lambda name: name.endswith(("hook_out", "hook_embed")),
                    )
                    for states in cache.values():
                        if states.ndim == 3 and states.shape[1] == ids.shape[1]:
                            pooled(states, mask, "mean").numpy()

        found["TransformerLens"] = with_lens
    if importlib.util.find_spec("nnsight") is not None:
        from nnsight import NNsight
        from transformers import AutoModel

        network = NNsight(AutoModel.from_pretrained(folder).eval())

        def with_nnsight() -> None:
            with torch.no_grad():
                for ids, mask in batches:
                    held = []
                    with network.trace(input_ids=ids, attention_mask=mask):
                        for block in network.encoder.layer:
                            held.append(block.output.save())
                    for one in held:
                        states = one[0] if isinstance(one, tuple) else one
                        pooled(states, mask, "mean").numpy()

        found["nnsight"] = with_nnsight
    return found


def memory() -> dict:
    """The greatest memory of a capture of 100,000 short texts, above that of the loaded model."""
    texts = [row["gloss"] for row in rows_of(100_000)]
    with tempfile.TemporaryDirectory() as scratch, embedstore.open(Path(scratch) / "store") as store:
        collection = store.collection("texts", encoder="none")
        for start in range(0, len(texts), 10_000):
            collection.add([
                {"key": str(start + place), "text": text} for place, text in enumerate(texts[start : start + 10_000])
            ])  # fmt: skip
        encoder: Any = store.load_encoder("hf:minilm@site=hidden,layer=0,pool=mean")
        encoder.encode(["a text"])
        before = _peak()
        begun = time.perf_counter()
        states = probing.capture(collection, "minilm")
        seconds = time.perf_counter() - begun
        return {
            "texts": len(texts), "layers": len(states.names), "seconds": round(seconds, 1),
            "megabytes above the model": round(_peak() - before),
        }  # fmt: skip


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
