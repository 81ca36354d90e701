"""``embedstore latent``: what it prints, draws, keeps and refuses."""

import json

import numpy as np
import pytest
from PIL import Image
from vae.made import people, squares

import embedstore


@pytest.fixture
def words(run_cli, tmp_path):
    """Runs the command on a store of words, whose vectors are drawn with two directions among them."""
    drawn = np.random.default_rng(0)
    base, royal, female = drawn.standard_normal((3, 8)) * 2
    vectors = {"man": base, "king": base + royal, "woman": base + female, "queen": base + royal + female}
    vectors |= {f"w{i}": drawn.standard_normal(8) * 2 for i in range(60)}
    with embedstore.open(tmp_path / "store") as store:
        collection = store.collection("words", encoder="none")
        collection.add([
            {"key": key, "text": key, "vector": one, "n": i, "half": i % 2 == 0}
            for i, (key, one) in enumerate(vectors.items())
        ])  # fmt: skip
    return run_cli


@pytest.fixture
def shapes(run_cli, tmp_path, square_model, people_model):
    """Runs the command on a store of pictures, and of rows."""
    with embedstore.open(tmp_path / "store") as store:
        collection = store.collection("shapes", encoder=str(square_model))
        pictures, places = squares(60)
        collection.add([
            {"key": str(i), "image": picture, "left": bool(places[i][1] < 7)} for i, picture in enumerate(pictures)
        ])  # fmt: skip
        rows = store.collection("people", encoder=str(people_model))
        rows.add([{"key": str(i), "row": row} for i, row in enumerate(people(30))])
    return run_cli


def told(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_an_analogy_is_an_expression_or_a_method(words):
    for method in ("3cosadd", "3cosmul", "pairdirection"):
        rows = told(words("--format", "json", "latent", "analogy", "words", "king", "--minus", "man", "--plus", "woman",
                          "-k", "3", "--method", method))  # fmt: skip
        assert len(rows) == 3 and {"key": "queen", "text": "queen"}.items() <= rows[method == "3cosmul"].items()
    rows = told(words("--format", "json", "latent", "analogy", "words", "king", "--include-sources", "-k", "1"))
    assert rows[0]["key"] == "king"
    refused = words("latent", "analogy", "words", "king", "--method", "3cosmul")
    assert refused.returncode == 2 and "takes one --plus and one --minus" in refused.stderr


def test_where_distances_are_compared_an_expression_is_as_long_as_it_is(shapes):
    rows = told(shapes("--format", "json", "latent", "analogy", "shapes", "3", "--include-sources", "-k", "1"))
    assert rows[0]["key"] == "3" and abs(rows[0]["score"]) < 1e-6


def test_a_file_of_analogies_is_solved_by_section(words, tmp_path):
    (tmp_path / "q.txt").write_text(": family\nman king woman queen\nman king woman nobody\n")
    done = words("--format", "json", "latent", "analogies", "words", "q.txt")
    assert told(done) == [
        {"section": "family", "questions": 1, "right": 1, "accuracy": 1.0},
        {"section": "total", "questions": 1, "right": 1, "accuracy": 1.0},
    ]
    assert "1 questions hold a word that is no record's key" in done.stderr


def test_walks_are_shown_or_drawn(words, shapes, tmp_path):
    rows = told(words("--format", "json", "latent", "interpolate", "words", "man", "king", "--steps", "3"))
    assert [row["step"] for row in rows] == [0, 1, 2] and (rows[0]["key"], rows[2]["key"]) == ("man", "king")
    for arguments, size in (
        (("interpolate", "shapes", "1", "2", "--steps", "4", "--out", "walk.png"), (4 * 98 - 2, 96)),
        (("traverse", "shapes", "1", "--dimension", "0", "--dimension", "2", "--out", "walk.png"), (7 * 98 - 2, 194)),
        (("decode", "shapes", "1", "2", "3", "--out", "walk.png"), (3 * 98 - 2, 96)),
        (("sample", "shapes", "-n", "5", "--out", "walk.png"), (5 * 98 - 2, 96)),
        (("sample", "shapes", "-n", "2", "--of", "posterior", "--out", "walk.png"), (2 * 98 - 2, 96)),
    ):
        done = shapes("latent", *arguments)
        assert done.returncode == 0 and done.stdout == "", done.stderr
        with Image.open(tmp_path / "walk.png") as drawn:
            assert drawn.size == size
    assert shapes("latent", "interpolate", "shapes", "1", "2", "--moving", "--out", "walk.webp").returncode == 0
    with Image.open(tmp_path / "walk.webp") as drawn:
        assert drawn.n_frames == 16
    rows = told(shapes("--format", "json", "latent", "decode", "people", "1", "2"))
    assert len(rows) == 2 and set(rows[0]) == set(people(1)[0])
    refused = shapes("latent", "decode", "people", "1", "--out", "walk.png")
    assert refused.returncode == 2 and "is no picture" in refused.stderr
    refused = words("latent", "interpolate", "words", "man", "king", "--out", "walk.png")
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1


def test_samples_are_kept_as_records(shapes, tmp_path):
    refused = shapes("latent", "sample", "shapes", "--into", "never", "--out", "x.bmp")
    assert refused.returncode == 2 and "never" not in shapes("collections").stdout
    refused = shapes("latent", "sample", "shapes", "--into", "shapes")
    assert refused.returncode == 2 and "names the collection itself" in refused.stderr
    report = told(shapes("--format", "json", "latent", "sample", "shapes", "-n", "3", "--seed", "7", "--into", "drawn"))
    assert (report["collection"], report["added"]) == ("drawn", 3)
    with embedstore.open(tmp_path / "store") as store:
        assert store.collection("drawn").get("prior-7-0").metadata["seed"] == 7


def test_directions_are_fitted_listed_applied_and_forgotten(words, shapes, tmp_path):
    report = told(shapes("--format", "json", "latent", "direction", "shapes", "left", "--positive", "left = true",
                         "--negative", "left = false"))  # fmt: skip
    assert report["direction"] == "left" and report["auroc"] > 0.8
    assert shapes("latent", "move", "shapes", "3", "left", "--strength", "2", "--out", "m.gif").returncode == 0
    with Image.open(tmp_path / "m.gif") as moved:
        assert moved.n_frames == 12
    rows = told(shapes("--format", "json", "latent", "move", "shapes", "3", "left", "-k", "4"))
    assert len(rows) == 4 and "3" not in [row["key"] for row in rows]
    (tmp_path / "pairs.tsv").write_text("man\tking\nwoman\tqueen\n")
    report = told(words("--format", "json", "latent", "direction", "words", "royal", "--pairs", "pairs.tsv"))
    assert (report["method"], report["n_positive"]) == ("pairs", 2)
    assert [row["direction"] for row in told(words("--format", "json", "latent", "directions", "words"))] == ["royal"]
    assert words("latent", "direction", "words", "royal", "--forget").returncode == 0
    assert told(words("--format", "json", "latent", "directions", "words")) == []
    (tmp_path / "pairs.tsv").write_text("man\tking\nwoman queen\n")
    refused = words("latent", "direction", "words", "royal", "--pairs", "pairs.tsv")
    assert refused.returncode == 2 and "line 2: 1 parts; a pair is two keys with a tab between" in refused.stderr
    refused = words("latent", "direction", "words", "royal", "--forget", "--positive", "n = 1")
    assert refused.returncode == 2 and "--forget goes with no other option" in refused.stderr
    refused = words("latent", "direction", "words", "royal", "--pairs", "pairs.tsv", "--positive", "n = 1")
    assert refused.returncode == 2
    refused = words("latent", "move", "words", "man", "royal")
    assert refused.returncode == 2 and "has no direction 'royal'" in refused.stderr


def test_clusters_are_counted_and_kept(words, tmp_path):
    report = told(words("--format", "json", "latent", "cluster", "words", "--clusters", "4", "--store-as", "group"))
    assert report["clusters"] == 4 and sum(report["sizes"]) == 64
    counted = told(words("--format", "json", "count", "words", "--where", "group.label = 0"))
    assert counted["count"] == report["sizes"][0]
    refused = words("latent", "cluster", "words")
    assert refused.returncode == 2 and "kmeans needs the number of clusters" in refused.stderr


def test_spaces_are_reduced_mapped_and_drawn(words, tmp_path):
    report = told(words("--format", "json", "latent", "reduce", "words", "--dim", "3"))
    assert (report["name"], report["dim"], report["made_of"], report["n_vectors"]) == ("pca", 3, "vector", 64)
    assert report["fidelity"]["trustworthiness"] > 0.5
    assert told(words("--format", "json", "latent", "reduce", "words", "--method", "erase", "--label", "half",
                      "--name", "even"))["name"] == "even"  # fmt: skip
    again = words("latent", "reduce", "words", "--dim", "3")
    assert again.returncode == 2 and "has a space 'pca' already" in again.stderr
    for label in ("half", "n"):
        report = told(words("--format", "json", "latent", "map", "words", "--method", "pca", "--label", label,
                            "--out", f"{label}.png"))  # fmt: skip
        assert report["dim"] == 2
        with Image.open(tmp_path / f"{label}.png") as drawn:
            assert drawn.size == (960, 840)
    assert told(words("--format", "json", "latent", "map", "words", "--out", "again.png"))["method"] == "pca"
    refused = words("latent", "map", "words", "--name", "pca", "--out", "x.png")
    assert refused.returncode == 2 and "there is a space 'pca' already, of 3 numbers, made by pca" in refused.stderr
    refused = words("latent", "map", "words", "--method", "umap")
    assert refused.returncode == 2 and "made by pca of vector; give the map another --name" in refused.stderr
    refused = words("latent", "map", "words", "--method", "pca", "--name", "new", "--label", "zzz", "--out", "x.png")
    assert refused.returncode == 2 and "zzz" in refused.stderr and not (tmp_path / "x.png").exists()
    assert "new" not in words("spaces", "words").stdout
    with embedstore.open(tmp_path / "store") as store:
        places, _ = store.collection("words").space("map").places()
        assert np.linalg.norm(places, axis=1).std() > 0.05  # no ring


def test_a_space_is_diagnosed(words, shapes, tmp_path):
    words("latent", "reduce", "words", "--dim", "3")
    report = told(words("--format", "json", "latent", "diagnose", "words", "--beside", "pca", "--html", "page.html",
                        "--drift", "n < 30", "n >= 30"))  # fmt: skip
    assert (report["space"], report["beside"]["space"]) == ("words/vector", "pca")
    assert report["drift"]["p_value"] > 0.01
    assert "words/vector" in (tmp_path / "page.html").read_text()
    refused = words("latent", "diagnose", "words", "--html", "absent/page.html")
    assert refused.returncode == 2 and "there is no folder 'absent'" in refused.stderr
    report = told(shapes("--format", "json", "latent", "diagnose", "shapes", "--label", "left"))
    assert report["active_units"] >= 1 and report["two_nn"] > 0
    assert set(report["reconstruction_by_label"]) == {"True", "False"}
