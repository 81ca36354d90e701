"""The exported model in the cache folder: made once, checked, and made again where it is damaged."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedstore.encoders import bert_graph
from embedstore.encoders.batching import Tokens, pad
from embedstore.encoders.cache import (
    cache_folder,
    known_sha256,
    read_json,
    remember_sha256,
    sha256_of,
    write_json,
)
from embedstore.encoders.fidelity import LEAST_COSINE, SAMPLE, Fidelity, measure_fidelity
from embedstore.encoders.model_folder import TextModel
from embedstore.encoders.onnx_text import OnnxText, open_session, run_session
from embedstore.encoders.reference import CHECK_TEXTS, MINILM_BEGINNINGS, differs
from embedstore.encoders.spec import MINILM, MINILM_INT8, EncoderSpec
from embedstore.encoders.tokens import load_tokenizer
from embedstore.encoders.torch_text import TorchText, pad_id
from embedstore.errors import EncoderUnavailable
from embedstore.model import FloatMatrix

logger = logging.getLogger("embedstore")

EXPORTER_VERSION = 2
"""Part of the folder's name; raised whenever an export would come out differently."""

_GRAPH = "model.onnx"
_TOKENIZER = "tokenizer.json"
_RECORD = "export.json"
_PATIENCE_SECONDS = 900.0
_PACKAGES = ("onnxruntime", "onnxscript", "torch", "transformers", "sentence-transformers")


@dataclass(frozen=True, slots=True)
class Export:
    """A model that onnxruntime can open, with its tokenizer."""

    folder: Path

    @property
    def graph(self) -> Path:
        """The ONNX file; its weights lie beside it."""
        return self.folder / _GRAPH

    @property
    def tokenizer(self) -> Path:
        """The tokenizer as the model's own library sets it up."""
        return self.folder / _TOKENIZER


class ExportFailed(Exception):
    """The model cannot be exported, or the export makes other vectors."""


def export_folder(spec: EncoderSpec) -> Path:
    """Where the export of an encoder lies or would lie."""
    return cache_folder() / "onnx" / f"{spec.fingerprint}-{EXPORTER_VERSION}"


def exported_fidelity(spec: EncoderSpec) -> dict[str, Any] | None:
    """The ``Fidelity`` that was measured when a quantised encoder was exported, JSON-ready; None before that."""
    found = read_json(export_folder(spec) / _RECORD).get("fidelity")
    return found if isinstance(found, dict) else None


def ensure_export(model: TextModel, spec: EncoderSpec) -> Export | None:
    """The model's export, made now where there is none; None where the model cannot be exported.

    Safe to call from several processes: one makes it, the others wait.
    Raises EncoderUnavailable where the model itself cannot be loaded.
    """
    folder = export_folder(spec)
    found = _checked(folder)
    if found is not None:
        return found.export
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(folder.parent, os.W_OK):
            raise PermissionError(13, "not writable", str(folder.parent))
    except OSError as error:
        return _export_for_this_process(model, spec, error)
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder.with_suffix(".lock"), timeout=_PATIENCE_SECONDS):
            found = _checked(folder, warn=True)
            if found is None:
                found = _make(model, spec, folder)
            return found.export
    except Timeout:
        raise EncoderUnavailable(
            f"another process has been preparing {spec.name} in {folder} for"
            f" {_PATIENCE_SECONDS / 60:.0f} minutes; wait for it or end it, then try again"
        ) from None


@dataclass(frozen=True, slots=True)
class _Found:
    """What the cache says of a model: its export, or None since it cannot be exported."""

    export: Export | None


def _checked(folder: Path, *, warn: bool = False) -> _Found | None:
    """What lies in ``folder`` if it is whole; None where it must be made, or tried with newer versions."""
    record = read_json(folder / _RECORD)
    if not record:
        return None
    if "failed" in record:
        return _Found(None) if record.get("versions") == _versions() else None
    files = record.get("files", {})
    for name in (_GRAPH, _TOKENIZER, *files):
        path = folder / name
        try:
            wanted = files[name]
            whole = path.stat().st_size == wanted["size"] and known_sha256(path) == wanted["sha256"]
        except (OSError, KeyError, TypeError):
            whole = False
        if not whole:
            if warn:
                logger.warning("%s is damaged; it is made again", path)
            return None
    return _Found(Export(folder))


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found


def _make(model: TextModel, spec: EncoderSpec, folder: Path) -> _Found:
    """Export into a temporary folder beside ``folder`` and put it in place whole."""
    for left_over in folder.parent.glob(f".{folder.name}.*"):  # by a process that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        record: dict[str, Any] = {"spec": dataclasses.asdict(spec), "versions": _versions()}
        try:
            fidelity = _write_export(model, spec, temporary)
            if fidelity is not None:
                record["fidelity"] = dataclasses.asdict(fidelity)
            record["files"] = {path.name: _kept(path) for path in sorted(temporary.iterdir())}
        except ExportFailed as error:
            logger.warning("%s cannot run on onnxruntime, since its export to ONNX failed: %s", spec.name, error)
            record["failed"] = str(error)
        write_json(temporary / _RECORD, record)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
        for name, kept in record.get("files", {}).items():
            remember_sha256(folder / name, kept["sha256"])
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return _Found(None if "failed" in record else Export(folder))


def _export_for_this_process(model: TextModel, spec: EncoderSpec, error: OSError) -> Export | None:
    """Export into a folder that goes with the process, since the cache folder cannot be written."""
    import atexit

    logger.warning(
        "the cache folder cannot be written (%s); %s is prepared anew in every process: set EMBEDSTORE_CACHE",
        error, spec.name,
    )  # fmt: skip
    temporary = tempfile.mkdtemp(prefix="embedstore-")
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return _make(model, spec, Path(temporary) / spec.fingerprint).export


def _kept(path: Path) -> dict[str, Any]:
    """Flush a file to the disk; its size and SHA-256."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"size": path.stat().st_size, "sha256": sha256_of(path)}


def _write_export(model: TextModel, spec: EncoderSpec, folder: Path) -> Fidelity | None:
    """Write graph, weights and tokenizer, and check them; ExportFailed says what is wrong.

    Returns how near the vectors are to the exact ones, where the graph is quantised.
    """
    if spec.family in (MINILM, MINILM_INT8):  # known to the byte, so torch need not be there
        bert_graph.write_bert_graph(model, folder)
        shutil.copyfile(model.transformer / "tokenizer.json", folder / _TOKENIZER)
        _check(model, folder, MINILM_BEGINNINGS, MINILM_BEGINNINGS.shape[1])
        return None if spec.family == MINILM else _quantise(model, folder)
    torch_text = TorchText(model)
    torch_text.tokenizer.save(str(folder / _TOKENIZER))
    texts = check_tokens(model, folder)
    expected = np.stack([torch_text.encode_query(text) for text in texts])
    if bert_graph.is_possible(model):
        try:
            bert_graph.write_bert_graph(model, folder)
            _check(model, folder, expected, model.dim)
            return None
        except (ExportFailed, KeyError, ValueError, TypeError) as error:
            logger.info("%s does not fit the BERT graph (%s); torch exports it", spec.name, error)
            _remove_graph(folder)
    _export_with_torch(torch_text, folder)
    _check(model, folder, expected, model.dim)
    return None


def _quantise(model: TextModel, folder: Path) -> Fidelity:
    """Put the graph in eight bits in the place of the exact one, and measure it against that."""
    tokenizer = load_tokenizer(folder / _TOKENIZER, model.max_tokens)
    texts = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(SAMPLE))]

    def vectors() -> FloatMatrix:
        return OnnxText(folder / _GRAPH, dim=model.dim, pad_id=pad_id(model)).encode(texts)

    exact = vectors()
    _remove_graph(folder)
    bert_graph.write_bert_graph(model, folder, int8=True)
    try:
        fidelity = measure_fidelity(vectors(), exact)
    # onnxruntime raises its own errors, RuntimeError and ValueError for a graph it cannot run.
    except Exception as error:
        raise ExportFailed(f"onnxruntime cannot run it: {' '.join(str(error).split())[:300]}") from error
    if not fidelity.mean_cosine >= LEAST_COSINE:
        raise ExportFailed(f"its vectors have a mean cosine of {fidelity.mean_cosine} with the exact ones")
    return fidelity


def check_tokens(model: TextModel, folder: Path) -> list[Tokens]:
    """The token ids of the texts that an export is checked with."""
    tokenizer = load_tokenizer(folder / _TOKENIZER, model.max_tokens)
    return [encoding.ids for encoding in tokenizer.encode_batch(list(CHECK_TEXTS))]


def _check(model: TextModel, folder: Path, expected: Any, n_numbers: int) -> None:
    """Raise ExportFailed unless the export in ``folder`` makes the expected beginnings of vectors."""
    texts = check_tokens(model, folder)
    try:
        runner = OnnxText(folder / _GRAPH, dim=model.dim, pad_id=pad_id(model))
        alone = np.stack([runner.encode_query(text) for text in texts])
        together = run_session(open_session(folder / _GRAPH, packed=True), *pad(texts, pad_id(model)))
    # onnxruntime raises its own errors, RuntimeError and ValueError for a graph it cannot run.
    except Exception as error:
        raise ExportFailed(f"onnxruntime cannot run it: {' '.join(str(error).split())[:300]}") from error
    for vectors, how in ((alone, "alone"), (together, "in a batch")):
        wrong = differs(vectors[:, :n_numbers], expected)
        if wrong is not None:
            raise ExportFailed(f"texts encoded {how}: {wrong}")


def _remove_graph(folder: Path) -> None:
    for name in ("model.onnx", bert_graph.WEIGHTS_FILE):
        (folder / name).unlink(missing_ok=True)


def _export_with_torch(torch_text: TorchText, folder: Path) -> None:
    """Export with torch's exporter, then let onnxruntime fuse what it can."""
    from embedstore.encoders.quiet_onnx import load_onnxruntime

    onnxruntime = load_onnxruntime()
    import torch

    ids = torch.randint(1, 5, (3, 17), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0  # so that nothing is specialised for texts of one length
    size = {
        0: torch.export.Dim("n_texts", min=1, max=65536),
        1: torch.export.Dim("n_tokens", min=2, max=65536),
    }
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        plain = Path(scratch) / "plain.onnx"
        try:
            with warnings.catch_warnings(), torch.inference_mode(), _silent_exporter():
                warnings.simplefilter("ignore")
                program = torch.onnx.export(
                    torch_text.module, (ids, mask), dynamo=True, verbose=False, opset_version=18,
                    input_names=["input_ids", "attention_mask"], output_names=["sentence_embedding"],
                    dynamic_shapes={"input_ids": size, "attention_mask": size},
                )  # fmt: skip
                if program is None:
                    raise ExportFailed("torch's exporter returned nothing")
                program.save(str(plain), external_data=True)
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            options.optimized_model_filepath = str(folder / _GRAPH)
            options.add_session_config_entry(
                "session.optimized_model_external_initializers_file_name", bert_graph.WEIGHTS_FILE
            )
            onnxruntime.InferenceSession(str(plain), options, providers=["CPUExecutionProvider"])
        # The exporter's and onnxruntime's errors have no common root below Exception.
        except Exception as error:
            raise ExportFailed(f"torch cannot export it: {' '.join(str(error).split())[:300]}") from error
        finally:
            torch_text.module.eval()  # the exporter leaves it in training mode


@contextlib.contextmanager
def _silent_exporter() -> Iterator[None]:
    """The exporter's own log lines, about absent packages and each of its passes, are not shown."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = [each.level for each in loggers]
    try:
        for each in loggers:
            each.setLevel(logging.ERROR)
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
