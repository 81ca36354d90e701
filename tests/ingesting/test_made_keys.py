"""Keys that are made for an input: they come back with it, and never fall on the records of another."""

import datetime
import logging

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from embedstore import InvalidInput
from embedstore.ingesting.keys import ContentKeys


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def texts(collection):
    return sorted(record.content for record in collection.records())


def test_another_file_of_the_same_name_does_not_overwrite_the_rows_of_the_first(any_store, tmp_path):
    first = write(tmp_path / "a" / "data.csv", "text\none\ntwo\n")
    other = write(tmp_path / "b" / "data.csv", "text\nthree\n")
    collection = any_store.collection("c", encoder="letters")
    assert collection.ingest(first).added == 2
    with pytest.raises(InvalidInput, match=r"keys such as 'data.csv:1' are those of .*/a/data.csv, which would be"):
        collection.ingest(other)
    assert collection.ingest(first).unchanged == 2
    first.rename(tmp_path / "moved.csv")  # then it may as well be the same file in another place
    assert collection.ingest(other).updated == 1
    assert any_store.collection("d", encoder="letters").ingest(other).added == 1


def test_another_folder_does_not_overwrite_files_of_the_same_name(any_store, tmp_path):
    write(tmp_path / "a" / "n.md", "one")
    write(tmp_path / "b" / "n.md", "two")
    write(tmp_path / "b" / "m.md", "three")
    collection = any_store.collection("c", encoder="letters")
    collection.ingest(tmp_path / "a")
    with pytest.raises(InvalidInput, match=r"key 'n.md' is that of .*/a/n.md', whose record would be overwritten"):
        collection.ingest(tmp_path / "b")
    report = collection.ingest(tmp_path / "b", on_error="skip")
    assert (report.added, report.failed) == (1, 1)
    assert texts(collection) == ["one", "three"]
    write(tmp_path / "a" / "n.md", "one, changed")
    assert collection.ingest(tmp_path / "a").updated == 1


def test_files_are_told_apart_wherever_they_were_named_from_and_however_they_are_kept(store, tmp_path, monkeypatch):
    collection = store.collection("c", encoder="letters")
    for name in ("one", "two"):
        write(tmp_path / name / "docs" / "n.md", f"of {name}")
    monkeypatch.chdir(tmp_path / "one")
    collection.ingest("docs")
    monkeypatch.chdir(tmp_path / "two")
    with pytest.raises(InvalidInput, match="would be overwritten"):
        collection.ingest("docs")
    assert texts(collection) == ["of one"]
    pieces = store.collection("pieces", encoder="letters")
    pieces.ingest(tmp_path / "one" / "docs", chunk=8)
    with pytest.raises(InvalidInput, match="would be overwritten"):
        pieces.ingest(tmp_path / "two" / "docs", chunk=8)
    pictures = store.collection("pictures", encoder="none")
    for name in ("one", "two"):
        Image.new("RGB", (4, 4), "red" if name == "one" else "blue").save(tmp_path / name / "p.png")
    pictures.ingest(tmp_path / "one" / "p.png", image=True, embed_bytes=True)
    report = pictures.ingest(tmp_path / "two" / "p.png", image=True, embed_bytes=True)
    assert (report.updated, report.failed) == (0, 1)


def test_what_is_the_same_or_to_be_replaced_or_is_gone_is_not_refused(any_store, tmp_path):
    first = write(tmp_path / "a" / "data.csv", "text\none\n")
    other = write(tmp_path / "b" / "data.csv", "text\ntwo\n")
    (tmp_path / "way").symlink_to(tmp_path / "a")
    collection = any_store.collection("c", encoder="letters")
    collection.ingest(first, [{"key": "k", "text": "beside"}])
    with pytest.raises(InvalidInput, match="would be overwritten"):
        collection.ingest(other, [{"key": "k", "text": "beside"}])
    assert collection.ingest(tmp_path / "way" / "data.csv").unchanged == 1
    assert collection.ingest(other, prune=True).updated == 1
    assert texts(collection) == ["two"]
    collection.delete(where="_key = 'data.csv:1'")
    assert collection.ingest(first).added == 1


@pytest.mark.parametrize("made", [list, pd.DataFrame])
def test_what_has_no_name_has_keys_of_what_it_holds(store, made):
    collection = store.collection("c", encoder="letters")
    one = made([{"text": "a", "n": 1}, {"text": "a", "n": 1}, {"text": "b", "n": 2}])
    other = made([{"text": "c", "n": 1}, {"text": "b", "n": 2}])
    assert collection.ingest(one).added == 3
    report = collection.ingest(other)
    assert (report.added, report.unchanged, report.updated) == (1, 1, 0)
    assert collection.ingest(one).unchanged == 3
    assert texts(collection) == ["a", "a", "b", "c"]


def test_a_file_that_was_exported_is_no_data(store, tmp_path):
    collection = store.collection("c", encoder="letters")
    collection.add([{"key": "a", "text": "one"}])
    for name in ("c.parquet", "c.jsonl"):
        collection.export(str(tmp_path / name))
        with pytest.raises(InvalidInput, match=f"{name} was written by export; bring it in with import"):
            store.collection("d", encoder="letters").ingest(tmp_path / name)
    assert list(store.collections()) == ["c"]


def test_pictures_beside_texts_are_named_as_left_out(store, tmp_path, caplog):
    write(tmp_path / "notes" / "n.md", "one")
    write(tmp_path / "notes" / "p.png", "")
    with caplog.at_level(logging.WARNING):
        store.collection("c", encoder="letters").ingest(tmp_path / "notes")
    assert "only its texts are read" in caplog.text and "p.png" in caplog.text


def test_the_same_content_has_the_same_key_of_whatever_kind_it_is():
    def keys(*records):
        made = ContentKeys("list")
        return [made.key_of(record) for record in records]

    wide = np.arange(4000.0).reshape(2, 2000)
    changed = wide.copy()
    changed[0, 1000] += 1
    kinds = [
        {"vector": wide[0]}, {"vector": changed[0]}, {"vector": wide[:, 5]}, {"vector": wide.T[7]},
        {"image": Image.new("RGB", (4, 4), "red")}, {"image": Image.new("RGB", (4, 4), "blue")},
        {"when": datetime.datetime(2020, 1, 1)}, {"when": pd.Timestamp("2020-01-02")}, {"blob": b"a"}, {"n": 2**80},
        {1: "a"}, {"text": "\ud800"}, {"n": float("nan")}, {},
    ]  # fmt: skip
    first, again = keys(*kinds), keys(*[dict(one) for one in kinds])
    assert first == again and len(set(first)) == len(kinds)
    assert keys({"a": 1, "b": 2, "key": "x"}) == keys({"b": 2, "a": 1})
    assert keys({"v": np.asfortranarray(wide)}) == keys({"v": wide.tolist()}) and keys({"n": 2.0}) == keys({"n": 2})
    pictures = [Image.new("L", (4, 16)), Image.new("L", (8, 8)), Image.new("P", (8, 8)), Image.new("P", (8, 8))]
    pictures[3].putpalette([9] * 768)
    assert len(set(keys(*({"image": one} for one in pictures)))) == 4
    assert len(set(keys(*[{"text": "a"}] * 5000))) == 5000
    assert keys({"a": 1}, {"a": 1}, {"a": 1})[1:] == [f"{keys({'a': 1})[0]}-2", f"{keys({'a': 1})[0]}-3"]


@pytest.mark.parametrize("odd", [{"n": 2**80}, {"text": "\ud800"}, {"m": {1: {2}}}])
def test_what_cannot_be_stored_is_refused_with_its_field_without_a_key_too(store, odd):
    with pytest.raises(InvalidInput, match="row 1"):
        store.collection("c", encoder="letters").ingest([{"text": "a", **odd}])
