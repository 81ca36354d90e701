"""Claims about the exported model in the cache folder, and about how light a query is."""

import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest

from embedstore.encoders import load_encoder, onnx_export
from embedstore.encoders.weights import MINILM_SPEC

HEAVY = (
    "torch", "transformers", "sentence_transformers", "onnxruntime", "onnx", "tokenizers", "huggingface_hub",
)  # fmt: skip


def in_new_process(code):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_encoders_is_light():
    code = f"import sys, embedstore.encoders; print([m for m in {HEAVY} if m in sys.modules])"
    assert in_new_process(code).strip() == "[]"


def test_a_query_loads_neither_torch_nor_transformers(cached, minilm_folder):
    load_encoder("minilm").encode_query("so that the export is there")
    code = (
        "import sys, time; from embedstore.encoders import load_encoder;"
        "v = load_encoder('minilm').encode_query('fungal disease in cereals');"
        f"print(v.shape, [m for m in {HEAVY} if m in sys.modules])"
    )
    assert in_new_process(code).strip() == "(384,) ['onnxruntime', 'tokenizers']"


@pytest.mark.parametrize("name", ["weights.bin", "model.onnx", "tokenizer.json"])
def test_a_damaged_export_is_made_again(isolated, tiny_bert, caplog, name):
    encoder = load_encoder(f"hf:{tiny_bert}@layer=1,pool=max")
    expected = encoder.encode_query("text")
    path = onnx_export.export_folder(encoder.spec) / name
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(stat.st_size // 2)
        byte = file.read(1)
        file.seek(stat.st_size // 2)
        file.write(bytes([byte[0] ^ 255]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with caplog.at_level(logging.WARNING):
        again = load_encoder(encoder.spec.name)
        np.testing.assert_array_equal(again.encode_query("text"), expected)
    assert "damaged" in caplog.text and name in caplog.text


def test_an_export_with_other_vectors_is_never_accepted(isolated, tiny_bert, monkeypatch, caplog):
    from embedstore.encoders import bert_graph

    read = bert_graph._Graph.weight

    def wrong(graph, name):
        weights = read(graph, name)
        return weights * 1.5 if name.endswith("intermediate.dense.weight") else weights

    def not_tried(*_):
        raise onnx_export.ExportFailed("torch's exporter is not tried here")

    monkeypatch.setattr(bert_graph._Graph, "weight", wrong)
    monkeypatch.setattr(onnx_export, "_export_with_torch", not_tried)
    encoder = load_encoder(f"hf:{tiny_bert}")
    with caplog.at_level(logging.INFO):
        found = encoder.encode_query("text")
    assert "vectors differ" in caplog.text
    monkeypatch.undo()
    monkeypatch.setenv("EMBEDSTORE_CACHE", str(isolated / "second"))
    expected = load_encoder(f"hf:{tiny_bert}").encode_query("text")
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


def test_a_folder_left_by_a_killed_process_is_cleared(isolated, tiny_bert):
    encoder = load_encoder(f"hf:{tiny_bert}@layer=1")
    folder = onnx_export.export_folder(encoder.spec)
    left_over = folder.parent / f".{folder.name}.abc"
    left_over.mkdir(parents=True)
    encoder.encode_query("text")
    assert not left_over.exists()


def test_an_export_is_not_hashed_again_by_the_next_process(isolated, tiny_bert, monkeypatch):
    from embedstore.encoders import cache

    load_encoder(f"hf:{tiny_bert}@layer=1").encode_query("text")
    monkeypatch.setattr(cache, "sha256_of", None)
    load_encoder(f"hf:{tiny_bert}@layer=1").encode_query("text")


def test_the_record_names_the_spec(cached, minilm_folder):
    load_encoder("minilm").encode_query("so that the export is there")
    record = json.loads((onnx_export.export_folder(MINILM_SPEC) / "export.json").read_text())
    assert record["spec"]["name"] == "minilm"
    assert sorted(record["files"]) == ["model.onnx", "tokenizer.json", "weights.bin"]


def test_two_processes_that_export_at_once_do_not_clash(isolated, minilm_folder):
    code = (
        "from embedstore.encoders import load_encoder; print(load_encoder().encode_query('x')[:3].tolist())"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], outputs
    assert len({output for output, _ in outputs}) == 1
    folders = [entry.name for entry in (isolated / "onnx").iterdir() if entry.is_dir()]
    assert folders == [onnx_export.export_folder(MINILM_SPEC).name]


def test_a_cache_folder_that_cannot_be_written_is_warned_about(isolated, minilm_folder, caplog):
    isolated.write_text("a file in the way")
    assert load_encoder("minilm").encode_query("x").shape == (384,)
    assert "EMBEDSTORE_CACHE" in caplog.text
