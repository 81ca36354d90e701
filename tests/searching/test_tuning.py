"""Tuning: the recall that was asked for is reached on vectors that were never seen, and what was measured is kept."""

import json

import numpy as np
import pytest

import embedstore
from embedstore import InvalidInput
from embedstore.searching import plan

DIM = 24


def clustered(n: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = random.standard_normal((60, DIM))
    return (centres[random.integers(0, 60, n)] + 0.5 * random.standard_normal((n, DIM))).astype(np.float32)


def filled(store, matrix, **options):
    collection = store.collection("c", encoder="none", **options)
    collection.add({"key": str(i), "vector": row} for i, row in enumerate(matrix))
    return collection


@pytest.fixture(autouse=True)
def index_is_used(monkeypatch):
    monkeypatch.setattr(plan, "index_cost", lambda *_, **__: 0.0)


@pytest.mark.parametrize(("recipe", "wanted"), [("ivf-sq8", 0.9), ("hnsw-sq8", 0.97), ("ivf-pq-refine", 0.8)])
def test_a_tuned_index_reaches_the_recall_on_vectors_it_never_saw(store, recipe, wanted):
    everything = clustered(4500)
    matrix, unseen = everything[:4000], everything[4000:]
    collection = filled(store, matrix, metric="euclidean")
    report = collection.tune(recall=wanted, recipes=[recipe])
    found = [collection.search(query, 10).keys for query in unseen]
    truth = [np.argsort(np.linalg.norm(matrix - query, axis=1))[:10] for query in unseen]
    recall = np.mean([len({int(key) for key in keys} & set(best.tolist())) / 10
                      for keys, best in zip(found, truth, strict=True)])  # fmt: skip
    assert recall >= wanted
    assert report.recall_at_least >= wanted
    assert report.recipe in (recipe, "flat")


def test_no_recipe_is_chosen_whose_recall_is_below_what_was_asked(store):
    collection = filled(store, clustered(1500))
    assert collection.tune(recall=1.0).recipe == "flat"
    assert collection.space().describe()["recipe"] == "flat"


def test_the_chosen_setting_is_what_searches_use(store):
    collection = filled(store, clustered(3000))
    report = collection.tune(recall=0.9, recipes=["ivf"])
    if report.recipe == "flat":
        pytest.fail("of 3,000 vectors in lists, flat cannot be the only one to reach 0.9")
    (name, value), = report.settings.items()
    assert f"{name} {value}" in collection.search(clustered(1, 9)[0]).plan
    store.close()
    with embedstore.open(store.path) as again:
        assert f"{name} {value}" in again.collection("c").search(clustered(1, 9)[0]).plan
        again.collection("c").index(recipe="ivf-sq8")
        assert "nprobe 48" in again.collection("c").search(clustered(1, 9)[0]).plan  # its own, not that of ivf


def test_what_was_measured_is_kept_and_shown(any_store):
    collection = filled(any_store, clustered(2000))
    report = collection.tune(recall=0.9, recipes=["hnsw", "ivf"], seed=3)
    assert {point.recipe for point in report.curve} == {"flat", "hnsw", "ivf"}
    shown = collection.stats()["spaces"][0]
    assert (shown["recall"], shown["recall_at"], shown["recipe"]) == (report.recall, 10, report.recipe)
    assert shown["measured_at"] == report.measured_at
    assert shown["tune_again"] is None
    assert len(collection.space().tuning_curve()) == len(report.curve)
    assert any_store.verify().problems == []


def test_a_space_that_grew_or_drifted_says_that_it_should_be_tuned_again(store):
    collection = filled(store, clustered(2000))
    collection.tune(recall=0.9, recipes=["hnsw"])
    collection.add({"key": f"more{i}", "vector": row} for i, row in enumerate(clustered(1100, 5)))
    assert "2,000 vectors when it was tuned, and has 3,100 now" in collection.stats()["spaces"][0]["tune_again"]
    collection.delete([f"more{i}" for i in range(1100)])
    assert collection.stats()["spaces"][0]["tune_again"] is None
    collection.upsert({"key": str(i), "vector": row + 3} for i, row in enumerate(clustered(900, 7)))
    assert "drifted" in collection.stats()["spaces"][0]["tune_again"]


def test_a_recall_is_not_shown_for_a_recipe_that_it_was_not_measured_of(store):
    collection = filled(store, clustered(1500))
    report = collection.tune(recall=0.9, recipes=["hnsw"])
    collection.index(recipe="ivf")
    shown = collection.stats()["spaces"][0]
    assert shown["recall"] is None
    assert shown["tune_again"] == f"it was tuned with {report.recipe!r}; its recipe is 'ivf' now"


def test_what_cannot_be_tuned_is_refused(store):
    collection = filled(store, clustered(100))
    with pytest.raises(InvalidInput, match="holds 100 vectors; tuning measures on 500 or more"):
        collection.tune()
    collection.add({"key": f"x{i}", "vector": row} for i, row in enumerate(clustered(600)))
    with pytest.raises(InvalidInput, match="recall is 1.5; it must be above 0 and at most 1"):
        collection.tune(recall=1.5)
    with pytest.raises(InvalidInput, match="there is no recipe 'nonsense'"):
        collection.tune(recipes=["nonsense"])
    for wrong, words in [({"k": 0}, "k is 0"), ({"k": 560}, "k is 560; it must be less than the 560 vectors"),
                         ({"recall": "high"}, "recall is 'high'"), ({"recipes": "hnsw"}, "give a list of names"),
                         ({"recipes": []}, "give a list of names"), ({"recall": True}, "recall is True"),
                         ({"seed": -1}, "seed is -1")]:  # fmt: skip
        with pytest.raises(InvalidInput, match=words):
            collection.tune(**wrong)
    with pytest.raises(InvalidInput, match="'ivf' needs 1,000 vectors beside those .* has 700"):
        collection.tune(recipes=["ivf"])


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e6])
def test_vectors_of_any_scale_are_measured_rightly(store, scale):
    spread = np.random.default_rng(0).standard_normal((2500, DIM)).astype(np.float32)
    collection = filled(store, spread * np.float32(scale), metric="euclidean")
    report = collection.tune(recall=0.9, recipes=["ivf"])
    least = min(point.recall for point in report.curve)
    assert least < 0.9  # four lists of fifty cannot hold all neighbours of vectors without clusters
    assert collection.space().tuning()["tune_again"] is None


def test_equal_vectors_neither_fail_nor_drift(store):
    collection = filled(store, np.repeat(clustered(1), 700, axis=0))
    assert collection.tune(recall=0.9, recipes=["hnsw"]).recall == 1.0
    assert collection.space().tuning()["tune_again"] is None


def test_damage_on_the_disk_that_tuning_reads_is_made_good(store, caplog):
    collection = filled(store, clustered(2500), recipe="ivf-disk")
    collection.index()
    store.close()
    (path,) = (store.path / "cache" / "space-1").glob("exact-*.f32")
    content = bytearray(path.read_bytes())
    content[-5000] ^= 1
    path.write_bytes(content)
    collection.tune(recall=0.8, recipes=["ivf"])
    assert "cache damaged" in caplog.text
    assert store.verify().ok


def test_a_damaged_tuning_is_found(store):
    collection = filled(store, clustered(600))
    collection.tune(recall=0.9, recipes=["hnsw"])
    with store.database.write() as transaction:
        transaction.run("UPDATE tunings SET report = replace(report, 'hnsw', 'hnsv')")
    assert any("tuning" in problem.what for problem in store.verify().problems)
    with pytest.raises(embedstore.StoreDamaged):
        store.collection("c").stats()


def test_the_command_line_tunes_draws_and_shows(run_cli, tmp_path):
    lines = "\n".join(
        json.dumps({"key": str(i), "vector": row.tolist()}) for i, row in enumerate(clustered(700).astype(float))
    )
    (tmp_path / "v.jsonl").write_text(lines)
    run_cli("ingest", "c", str(tmp_path / "v.jsonl"), "--encoder", "none", "--vector", "vector")
    done = run_cli("index", "c", "--tune", "--recipe", "hnsw", "--recall", "0.9", "--plot", str(tmp_path / "curve.png"),
                   "--format", "json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert "hnsw (efSearch" in done.stderr
    if shown["recipe"] == "hnsw":
        assert shown["recall"] >= 0.9
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    for arguments, words in [
        (["--plot", str(tmp_path / "curve.txt")], "is no name of a picture"),
        (["--tune", "--plot", str(tmp_path / "no" / "curve.png")], "there is no folder"),
        (["--recall", "0.9"], "--recall is for --tune"),
        (["-k", "3"], "-k is for --tune"),
        (["--tune", "--recall", "2"], "recall is 2.0"),
    ]:
        done = run_cli("index", "c", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr
