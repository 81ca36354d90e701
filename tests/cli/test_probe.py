"""``embedstore probe``: each command on a small model, and what it refuses."""

import json

import pytest
from PIL import Image
from probing.made import SENTENCES, make

import embedstore


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model without a head, and one with."""
    root = tmp_path_factory.mktemp("models")
    return make("bert", root / "bert"), make("llama", root / "llama", head=True)


@pytest.fixture
def probe(run_cli, tmp_path):
    """Runs ``embedstore probe`` on a store of sentences."""
    with embedstore.open(tmp_path / "store") as store:
        collection = store.collection("papers", encoder="none")
        collection.add([
            {"key": str(i), "text": SENTENCES[i % 3] + " the fish" * (i // 12), "odd": bool(i % 2), "n": i + 0.5}
            for i in range(60)
        ])  # fmt: skip
    return run_cli


def told(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_layers_are_captured_probed_compared_and_reported(probe, folders, tmp_path):
    bert = str(folders[0])
    report = told(probe("--format", "json", "probe", "capture", "papers", bert, "--layers", "0,2,-1", "--threads", "1"))
    assert report["spaces"] == ["layer-00", "layer-02", "layer-03"] and report["updated"] == 60
    assert told(probe("--format", "json", "search", "papers", SENTENCES[0], "--space", "layer-02", "-k", "1"))
    report = told(probe("--format", "json", "probe", "linear", "papers", "odd", "--store-as", "odd", "--plot", "p.png"))
    assert [one["layer"] for one in report["layers"]] == [0, 2, 3] and report["baselines"]["majority"] == 0.5
    with Image.open(tmp_path / "p.png") as drawn:
        assert drawn.size[0] > 500
    table = probe("probe", "linear", "papers", "n", "--no-control")
    assert table.returncode == 0 and "spearman" in table.stdout and "best: layer" in table.stderr
    rows = told(probe("--format", "json", "probe", "score", "papers", "odd", "the cat", "a dog", "--layer", "2"))
    assert [row["text"] for row in rows] == ["the cat", "a dog"] and rows[0]["says"] in ("True", "False")
    rows = told(probe("--format", "json", "probe", "code", "papers", "odd"))
    assert [row["layer"] for row in rows] == [0, 2, 3] and rows[0]["uniform"] == 60
    assert set(told(probe("--format", "json", "probe", "mix", "papers", "odd"))["shares"]) == {"0", "2", "3"}
    made = told(probe("--format", "json", "probe", "similarity", "papers", "--plot", "h.png", "--measure", "rsa"))
    assert made["values"][1][1] == 1.0 and (tmp_path / "h.png").exists()
    done = probe("probe", "report", "papers", "--label", "odd", "--out", "r.html", "--lens", str(folders[1]))
    assert done.returncode == 0, done.stderr
    assert "What each layer would say" in (tmp_path / "r.html").read_text()
    refused = probe("probe", "linear", "papers", "absent")
    assert refused.returncode == 2 and "has the field 'absent'" in refused.stderr
    refused = probe("probe", "capture", "papers", bert, "--layers", "a,b")
    assert refused.returncode == 2 and "give all, or numbers" in refused.stderr
    refused = probe("probe", "capture", "papers", "no/such/folder")
    assert refused.returncode == 2 or refused.returncode == 1
    assert "Traceback" not in refused.stderr


def test_words_are_kept_and_their_contexts_measured(probe, folders):
    report = told(probe("--format", "json", "probe", "words", "papers", "words", str(folders[0]), "--layers", "0,3"))
    assert report["collection"] == "words" and report["added"] > 300
    rows = told(probe("--format", "json", "probe", "contextual", "words"))
    assert [row["layer"] for row in rows] == [0, 3] and rows[0]["n_words"] > 5


def test_lenses_are_shown_trained_and_used(probe, folders, tmp_path):
    model = str(folders[1])
    report = told(probe("--format", "json", "probe", "lens", model, SENTENCES[0], "--top", "2", "--html", "l.html"))
    assert report["kl"]["3"] == 0.0 and len(report["said"]) == 4 * 9 and (tmp_path / "l.html").exists()
    (tmp_path / "t.txt").write_text("\n".join(f"{one} {number}" for number in ("", "a", "the") for one in SENTENCES))
    rows = told(probe("--format", "json", "probe", "lens", model, "--file", "t.txt", "--tune", "l.safetensors"))
    assert [row["layer"] for row in rows] == [0, 1, 2] and all(row["kl_tuned"] < row["kl"] for row in rows)
    tuned = told(probe("--format", "json", "probe", "lens", model, SENTENCES[1], "--tuned", "l.safetensors"))
    assert tuned["method"] == "tuned"
    for arguments, line in (
        (("lens", model), "there are no texts"), (("lens", str(folders[0]), "a"), "hold no language-modelling head"),
        (("lens", model, "--file", "absent.txt"), "cannot be read"),
        (("lens", model, "a", "--tune", "x.bin"), "must end in"),
    ):
        refused = probe("probe", *arguments)
        assert refused.returncode in (1, 2) and line in refused.stderr and "Traceback" not in refused.stderr


def test_the_best_layer_for_search_is_named(probe, folders, tmp_path):
    (tmp_path / "pairs.csv").write_text("".join(
        f"{SENTENCES[i]},{SENTENCES[j]},{5 if i == j else i + j}\n" for i in range(4) for j in range(4)))  # fmt: skip
    report = told(probe("--format", "json", "probe", "retrieval", str(folders[0]), "pairs.csv", "--pools", "mean,max",
                        "--center"))  # fmt: skip
    assert report["metric"] == "spearman" and report["encoder"].startswith(f"hf:{folders[0]}@site=hidden,layer=")
    assert len(report["scores"]) == 4 * 2 * 2


def test_examples_in_the_prompt_are_measured(probe, folders):
    report = told(probe(
        "--format", "json", "probe", "in-context", "papers", str(folders[1]), "odd", "--queries", "n > 6 AND n < 12",
        "--candidates", "n > 13 AND n < 20", "--demonstrations", "1", "--choose", "random,concept", "--example",
        "{text} {label}\\n", "--query", "{text} ",
    ))  # fmt: skip
    assert set(report["accuracy"]) == {"none", "random", "concept"} and report["n_queries"] == 6
