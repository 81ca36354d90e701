"""Layers are judged as search engines are, and words by their contexts."""


import numpy as np
import pytest

from embedstore import InvalidInput, probing
from embedstore.probing.retrieval import _ndcg
from probing.made import SENTENCES


def test_the_last_layer_of_minilm_orders_pairs_as_sentence_transformers_does(data):
    from embedstore.probing.judgements import read_judged_pairs

    pairs, wanted = read_judged_pairs(str(data / "stsb" / "stsb-en-dev.csv"))
    report = probing.similar_pairs("minilm", pairs, wanted, layers=[0, 3, 6], pools=["mean", "first"], center=True)
    by = {(one.layer, one.pool, one.centered): one.score for one in report.scores}
    assert by[6, "mean", False] == pytest.approx(0.8672, abs=1e-4)
    assert by[0, "mean", True] > by[0, "mean", False] + 0.02 and by[3, "mean", True] > by[3, "mean", False] + 0.01
    assert by[0, "first", False] == 0.0  # the embedding of the first token is the same everywhere
    assert report.encoder == "hf:minilm@site=hidden,layer=6,pool=mean" and report.best.layer == 6
    assert len(report.to_rows()) == 3


def test_the_encoder_that_is_named_makes_those_vectors(store, model_of):
    folder = str(model_of("llama"))
    pairs = [(SENTENCES[i], SENTENCES[(i + j) % 4]) for i in range(4) for j in (1, 2)]
    report = probing.similar_pairs(folder, pairs, list(range(8)))
    assert {one.site for one in report.scores} == {"hidden", "final_norm"}
    collection = store.collection("texts", encoder=report.encoder)
    collection.add([{"key": str(i), "text": text} for i, text in enumerate(SENTENCES)])
    assert collection.search(SENTENCES[2], k=1).keys == ["2"]


def test_ranks_are_discounted_as_scikit_learn_does():
    from sklearn.metrics import ndcg_score

    drawn = np.random.default_rng(0)
    documents, queries = (drawn.standard_normal((n, 6)).astype(np.float32) for n in (40, 9))
    gains = drawn.integers(0, 3, (9, 40))
    gains[:, 0] = 1
    relevance = {str(q): {str(d): float(gains[q, d]) for d in range(40)} for q in range(9)}
    found = _ndcg(documents, queries, [str(d) for d in range(40)], [str(q) for q in range(9)], relevance, 10)
    assert found == pytest.approx(ndcg_score(gains, queries @ documents.T, k=10), abs=1e-6)


def test_documents_are_ranked_by_every_layer(model_of, tmp_path):
    from embedstore.probing.judgements import read_ranking

    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text("".join(
        f'{{"_id": "{i}", "title": "", "text": "{text}"}}\n' for i, text in enumerate(SENTENCES)))  # fmt: skip
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "a fish ."}\n{"_id": "none", "text": "a"}\n')
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\t1\t1\n")
    report = probing.ranked_answers(str(model_of("bert")), *read_ranking(str(tmp_path)))
    assert report.metric == "ndcg@10" and report.n == 1
    assert {one.layer: round(one.score, 6) for one in report.scores} == {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0}


@pytest.mark.parametrize(
    ("content", "told"),
    [("a,b,1\nc,d\n", "line 2: 2 columns"), ("a,b,c\nd,e,f\n", "line 2: the similarity 'f' is no number"),
     ("a,b,1\nc,d,1\ne,f,1\n", "all the same"), ("a,b,1\n", "3 pairs or more")],
)  # fmt: skip
def test_bad_pairs_get_one_line(model_of, tmp_path, content, told):
    from embedstore.probing.judgements import read_judged_pairs

    (tmp_path / "pairs.csv").write_text(content)
    with pytest.raises(InvalidInput, match=told):
        probing.similar_pairs(str(model_of("bert")), *read_judged_pairs(str(tmp_path / "pairs.csv")))


def test_a_word_with_one_vector_is_the_same_everywhere_and_contexts_tell_it_apart(store):
    sentences = store.collection("sentences", encoder="none")
    texts = [f"{first} the bank of the {rest}" for first in ("near", "at", "on") for rest in
             ("river was muddy", "city closed early", "country lent money", "stream was green")]  # fmt: skip
    sentences.add([{"key": str(i), "text": text} for i, text in enumerate(texts)])
    probing.words(sentences, "words", "minilm", layers=[0, 3, 5])
    found = probing.contextuality(store.collection("words"), least=4)
    by_layer = {one.layer: one for one in found}
    assert by_layer[0].self_similarity > 0.95  # but for where the word stands
    assert by_layer[5].adjusted_self_similarity < by_layer[0].adjusted_self_similarity
    assert all(-1 <= one.anisotropy <= one.self_similarity for one in found)
    words = store.collection("words")
    bank = next(one for one in words.records({"source": "0"}) if one.content == "bank")
    near = words.search(like=[bank.key], where={"source": {"$ne": "0"}}, space="layer-05", k=6)
    banks = [texts[int(hit.record.metadata["source"])] for hit in near if hit.record.content == "bank"]
    assert sum("river" in text or "stream" in text for text in banks) >= 2
    with pytest.raises(InvalidInput, match="no word stands in 50 texts"):
        probing.contextuality(words, least=50)


def test_contextual_figures_are_means_of_cosines(store, model_of):
    sentences = store.collection("sentences", encoder="none")
    sentences.add([{"key": str(i), "text": text} for i, text in enumerate(SENTENCES[:3])])
    probing.words(sentences, "words", str(model_of("bert")), layers=[2], only=["the", "fish", "dog", "a"])
    words = store.collection("words")
    vectors = {one.key: (one.content, words.vectors([one.key], space="layer-02")[0]) for one in words.records()}
    found = probing.contextuality(words, least=2)[0]

    def cosine(a, b):
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    means = []
    for word in ("the", "fish", "dog", "a"):
        firsts = {}
        for key, (content, vector) in vectors.items():
            if content == word:
                firsts.setdefault(key.split("#")[0], vector)
        held = list(firsts.values())
        if len(held) >= 2:
            means.append(np.mean([cosine(a, b) for i, a in enumerate(held) for b in held[i + 1 :]]))
    assert found.self_similarity == pytest.approx(np.mean(means), abs=1e-5) and found.n_words == len(means)


def test_parts_of_speech_by_layer_are_those_that_were_published(store, data):
    from probing_figures import sentences as sentences_of

    rows = sentences_of(data)
    sentences = store.collection("sentences", encoder="none")
    sentences.add(rows)
    states = probing.words(sentences, "words", "minilm", split="words", fields=["upos"], layers=[0, 2, 6])
    assert states.report.added == 25147
    report = probing.linear(store.collection("words"), "upos", group_by="source", folds=1)
    for one, accuracy, control in zip(report.layers, (0.884, 0.942, 0.856), (0.668, 0.610, 0.461), strict=True):
        assert one.score == pytest.approx(accuracy, abs=0.02)
        assert one.control == pytest.approx(control, abs=0.035)


def test_a_report_is_a_page_a_mapping_and_a_table(store, model_of, stories, tmp_path):
    import json

    import pyarrow.parquet

    collection = store.collection("papers", encoder="none")
    collection.add([{"key": str(i), "text": f"the {'red' if i % 2 else 'big'} cat " * (1 + i % 7), "red": bool(i % 2),
                     "length": 1.5 + i % 7} for i in range(60)])  # fmt: skip
    probing.capture(collection, str(model_of("bert")))
    made = probing.report(collection, ["red", "length"], lens_model=stories, lens_texts=["Once upon a time"])
    for suffix in ("html", "json", "parquet"):
        made.write(tmp_path / f"r.{suffix}")
    page = (tmp_path / "r.html").read_text()
    assert page.count("<svg") == 2 and "online code length" in page and "What each layer would say" in page
    assert "http" not in page and "<script" not in page
    told = json.loads((tmp_path / "r.json").read_text())
    assert [one["label"] for one in told["probes"]] == ["red", "length"]
    rows = pyarrow.parquet.read_table(tmp_path / "r.parquet").to_pylist()
    found = [one for one in rows if one["measure"] == "accuracy" and one["layer"] == 2]
    assert found[0]["value"] == pytest.approx(told["probes"][0]["layers"][2]["score"])
    with pytest.raises(InvalidInput, match="must end in"):
        made.write(tmp_path / "r.txt")
    with pytest.raises(InvalidInput, match="labels is 'red'"):
        probing.report(collection, "red")
