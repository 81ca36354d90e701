"""Captured layers are spaces like any other: filled, followed, searched, and gone on with."""

import numpy as np
import pytest

import embedstore
from embedstore import EncoderUnavailable, InvalidInput, probing
from embedstore.states import Tap, open_states
from probing.made import SENTENCES


def filled(store, n=20):
    collection = store.collection("papers", encoder="none")
    texts = [SENTENCES[i % 4] + (" the fish" * (i // 4)) for i in range(n)]
    collection.add([{"key": str(i), "text": text, "n": i} for i, text in enumerate(texts)])
    return collection, texts


def test_every_layer_is_a_space_that_holds_its_states(any_store, model_of):
    collection, texts = filled(any_store)
    states = probing.capture(collection, str(model_of("llama")), sites=["hidden", "final_norm", "mlp", "head"])
    assert [space.name for space in states.spaces][:5] == ["layer-00", "layer-01", "layer-02", "layer-03", "final-norm"]
    assert states.report.encoded == 20 and len(states.names) == 5 + 3 + 12
    model = open_states(str(model_of("llama")))
    found = model.pooled(model.tokenize(texts), list(states.names), "mean")
    for tap, name in states.names.items():
        held = collection.vectors([str(i) for i in range(20)], space=name)
        np.testing.assert_allclose(held, found[tap], atol=1e-5)
    assert states[2].name == "layer-02" and states[-1].name == "layer-03"
    assert any_store.verify().problems == []


def test_what_comes_later_is_captured_in_one_pass(store, model_of, monkeypatch):
    from embedstore.states.running import StateModel

    collection, _ = filled(store)
    probing.capture(collection, str(model_of("bert")))
    ran, run = [], StateModel.pooled_all
    monkeypatch.setattr(StateModel, "pooled_all", lambda self, *a, **k: ran.append(1) or run(self, *a, **k))
    collection.add([{"key": "late", "text": "a big fish"}])
    assert ran == [1]
    collection.upsert([{"key": "3", "text": "the small dog", "n": 3}])
    assert collection.space("layer-02").describe()["n_vectors"] == 21
    hits = collection.search("the small dog", k=1, space="layer-02")
    assert hits.keys == ["3"] and hits[0].score == pytest.approx(1.0, abs=1e-5)
    with embedstore.open(store.path) as again:
        other = again.collection("papers")
        assert other.search("a big fish", k=1, space="layer-01").keys == ["late"]
        other.add([{"key": "later", "text": "a fish of the cat"}])
        assert other.vectors(["later"], space="layer-03").shape == (1, 16)
    assert store.verify().problems == []


def test_an_interrupted_capture_goes_on(store, model_of, monkeypatch):
    from embedstore import making_spaces

    collection, _ = filled(store)
    monkeypatch.setattr(making_spaces, "_PAGE", 8)
    commit = making_spaces.commit_missing_vectors
    done = []

    def once(*arguments):
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return commit(*arguments)

    monkeypatch.setattr(making_spaces, "commit_missing_vectors", once)
    with pytest.raises(KeyboardInterrupt):
        probing.capture(collection, str(model_of("bert")))
    assert collection.space("layer-00").describe()["n_vectors"] == 8
    monkeypatch.setattr(making_spaces, "commit_missing_vectors", commit)
    assert probing.capture(collection, str(model_of("bert"))).report.encoded == 12
    assert {space.describe()["n_vectors"] for space in collection.spaces() if space.name != "vector"} == {20}
    assert probing.capture(collection, str(model_of("bert"))).report.encoded == 0


def test_more_layers_and_other_models_stand_beside(store, model_of):
    collection, _ = filled(store)
    probing.capture(collection, str(model_of("bert")), layers=[1])
    assert probing.capture(collection, str(model_of("bert")), layers=[0, 1, -1]).report.encoded == 20
    with pytest.raises(InvalidInput, match="a space 'layer-0[01]' of another encoder; give the new ones a prefix"):
        probing.capture(collection, str(model_of("llama")))
    with pytest.raises(InvalidInput, match="a space 'layer-0[01]' of another encoder"):
        probing.capture(collection, str(model_of("bert")), pool="max")
    probing.capture(collection, str(model_of("llama")), prefix="llama-", layers=[2])
    probing.capture(collection, str(model_of("bert")), prefix="random-", layers=[1], random_seed=0)
    names = [space.name for space in collection.spaces()]
    assert names == ["vector", "layer-01", "layer-00", "layer-03", "llama-layer-02", "random-layer-01"]
    learned, drawn = (collection.vectors(["0"], space=name) for name in ("layer-01", "random-layer-01"))
    assert np.abs(learned - drawn).max() > 0.01


@pytest.mark.parametrize(
    ("options", "told", "kind"),
    [
        ({"layers": [9]}, "layer 9 is not there", InvalidInput),
        ({"pool": "median"}, "pool is 'median'", InvalidInput),
        ({"sites": ["here"]}, "sites is", InvalidInput),
        ({"sites": ["final_norm"]}, "has no final norm", InvalidInput),
        ({"metric": "near"}, "metric", InvalidInput),
        ({"recipe": "absent"}, "absent", InvalidInput),
        ({"dtype": "int3"}, "dtype is 'int3'", InvalidInput),
        ({"stack": "decoder"}, "one stack only", InvalidInput),
        ({"threads": 0}, "threads is 0", InvalidInput),
        ({"max_tokens": 0}, "max_tokens", InvalidInput),
        ({"prefix": "\n"}, "cannot be used", InvalidInput),
        ({"model": "nobody/nothing"}, "neither a folder nor in the", EncoderUnavailable),
        ({"model": 3}, "model", InvalidInput),
    ],
)
def test_bad_requests_get_one_line_and_leave_nothing(store, model_of, options, told, kind):
    collection, _ = filled(store)
    with pytest.raises(kind, match=told) as raised:
        probing.capture(collection, **{"model": str(model_of("bert")), **options})
    assert "\n" not in str(raised.value)
    assert [space.name for space in collection.spaces()] == ["vector"]


def test_a_layer_can_be_named_as_an_encoder(store, model_of):
    name = f"hf:{model_of('llama')}@site=mlp,layer=2,pool=max,special=false"
    collection = store.collection("papers", encoder=name)
    collection.add([{"key": "a", "text": SENTENCES[0]}])
    model = open_states(str(model_of("llama")))
    states = model.token_states(model.tokenize(SENTENCES[:1]), [Tap("mlp", 2)])[0][Tap("mlp", 2)]
    np.testing.assert_allclose(collection.vectors(["a"])[0], states[1:-1].max(axis=0), atol=1e-5)
    assert collection.space().encoder_name == name
    for wrong, told in (
        ("head=1", "goes with site=head"), ("site=head", "goes with site=head"),
        ("site=hidden,layer=x", "layer is 'x'"), ("site=hidden,normalize=true", "normalize does not go"),
        ("site=hidden,special=maybe", "special is 'maybe'"), ("site=hidden,random=x", "random is 'x'"),
    ):  # fmt: skip
        with pytest.raises(InvalidInput, match=told):
            store.load_encoder(f"hf:{model_of('llama')}@{wrong}")


def test_words_are_records_with_states_of_their_own(any_store, model_of):
    collection = any_store.collection("sentences", encoder="none")
    texts = ["the red cat sees a dog .", "a dog likes the cat"]
    collection.add([
        {"key": f"s{i}", "text": text, "tags": list("DJNVDN.")[: len(text.split())]} for i, text in enumerate(texts)
    ])  # fmt: skip
    states = probing.words(collection, "words", str(model_of("bert")), fields=["tags"])
    words = any_store.collection("words")
    assert len(words) == 12 and states.report.added == 12
    record = words.get("s1#1")
    assert record.content == "dog" and record.metadata["tags"] == "J"
    assert {"source": "s1", "position": 1, "start": 2, "end": 5}.items() <= record.metadata.items()
    model = open_states(str(model_of("bert")))
    found = model.token_states(model.tokenize(texts), [Tap("hidden", 2)])
    np.testing.assert_allclose(words.vectors(["s0#4"], space="layer-02")[0], found[0][Tap("hidden", 2)][5], atol=1e-5)
    hits = words.search(like=["s0#2"], where={"source": "s1"}, space="layer-00", k=9)
    assert len(hits) == 5 and "cat" in [hit.record.content for hit in hits]
    assert probing.words(collection, "words", str(model_of("bert")), fields=["tags"]).report.added == 0
    probing.words(collection, "words", str(model_of("bert")), fields=["tags"], layers=[1], sites=["mlp"])
    assert words.space("mlp-01").describe()["n_vectors"] == 12
    assert any_store.verify().problems == []


def test_a_word_is_the_mean_first_or_last_of_its_tokens(store):
    collection = store.collection("sentences", encoder="none")
    text = "Unbelievably, electroencephalography don't lie."
    listed = ["Unbelievably", ",", "electroencephalography", "do", "n't", "lie", "."]
    collection.add([{"key": "s", "text": text, "words": listed}])
    model = open_states("minilm")
    tokens = model.tokenize([text])[0]
    states = model.token_states([tokens], [Tap("hidden", 3)])[0][Tap("hidden", 3)]
    mine = (tokens.offsets[:, 0] >= 14) & (tokens.offsets[:, 1] <= 36) & ~tokens.special
    assert mine.sum() > 2
    for pool, wanted in (("mean", states[mine].mean(axis=0)), ("first", states[mine][0]), ("last", states[mine][-1])):
        probing.words(collection, pool, "minilm", split="words", pool=pool, layers=[3])
        held = store.collection(pool)
        np.testing.assert_allclose(held.vectors(["s#2"], space="layer-03")[0], wanted, atol=1e-5)
    assert [held.get(f"s#{i}").content for i in (3, 4)] == ["do", "n't"]
    probing.words(collection, "tokens", "minilm", unit="token", layers=[3])
    assert len(store.collection("tokens")) == len(tokens.ids) - 2
    probing.words(collection, "some", "minilm", only=["LIE", "absent"], layers=[3])
    assert [one.content for one in store.collection("some").records()] == ["lie"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"unit": "letter"}, "unit is 'letter'"), ({"pool": "max"}, "pool is 'max'"),
        ({"into": "sentences"}, "names the collection itself"), ({"fields": "tags"}, "fields is 'tags'"),
        ({"fields": ["absent"]}, "the field 'absent' has no list for 3 words"),
        ({"fields": ["short"]}, "the field 'short' has 1 for 3 words"),
        ({"split": "absent"}, "the field 'absent' lists no words"),
        ({"split": "wrong"}, "the word 'dog' of 'wrong' is not in its text from 3 on"),
        ({"unit": "token", "split": "wrong"}, "with unit='token'"), ({"layers": [7]}, "layer 7 is not there"),
    ],
)
def test_words_that_cannot_be_made_get_one_line(store, model_of, options, told):
    collection = store.collection("sentences", encoder="none")
    collection.add([{"key": "s", "text": "the red cat", "short": ["D"], "wrong": ["the", "dog"]}])
    with pytest.raises(InvalidInput, match=told):
        probing.words(collection, **{"into": "words", "model": str(model_of("bert")), **options})


def test_words_of_another_model_are_refused_and_those_of_changed_texts_made_anew(store, model_of):
    collection = store.collection("sentences", encoder="none")
    collection.add([{"key": "a", "text": "the red cat sees a dog"}, {"key": "b", "text": "a fish"}])
    bert = str(model_of("bert"))
    probing.words(collection, "words", bert, layers=[2])
    words = store.collection("words")
    for options in ({"model": str(model_of("roberta"))}, {"pool": "last"}, {"random_seed": 3}):
        with pytest.raises(InvalidInput, match="holds states of another model, or reduced in another way"):
            probing.words(collection, "words", **{"model": bert, "layers": [2], **options})
    before = words.vectors(["a#0"], space="layer-02")
    collection.upsert([{"key": "a", "text": "the big cat"}])
    report = probing.words(collection, "words", bert, layers=[2]).report
    assert (report.deleted, report.added) == (6, 3) and len(words) == 5
    assert np.abs(words.vectors(["a#0"], space="layer-02") - before).max() > 1e-3
    words.export(str(store.path) + "-words.jsonl")
    copy = store.collection("copy")
    copy.import_(str(store.path) + "-words.jsonl")
    assert probing.words(collection, "copy", bert, layers=[2]).report.added == 0
    with pytest.raises(InvalidInput, match="holds states of another model"):
        probing.words(collection, "copy", bert, layers=[2], pool="last")
    assert store.verify().problems == []


def test_words_keep_their_marks(store):
    collection = store.collection("sentences", encoder="none")
    collection.add([{"key": "a", "text": "cafe\u0301 हिन्दी don't x-y"}])
    probing.words(collection, "words", "minilm", layers=[1])
    assert [one.content for one in store.collection("words").records()] == [
        "cafe\u0301", "हिन्दी", "don't", "x", "-", "y"
    ]  # fmt: skip


def test_a_text_without_tokens_is_named_and_leaves_no_spaces(store, model_of):
    collection = store.collection("papers", encoder="none")
    collection.add([{"key": "good", "text": "the cat"}, {"key": "bad", "text": "\u200b"}])
    with pytest.raises(embedstore.InvalidRecord, match="bad.*has no tokens"):
        probing.capture(collection, "minilm", special=False)
    assert [space.name for space in collection.spaces()] == ["vector"]
    probing.capture(collection, str(model_of("bert")))
    with pytest.raises(InvalidInput, match="compares by 'cosine', not by 'euclidean'"):
        probing.capture(collection, str(model_of("bert")), metric="euclidean")


def test_heads_can_be_probed(store, model_of):
    collection, _ = filled(store, 40)
    collection.update([{"key": str(i), "odd": bool(i % 2)} for i in range(40)])
    probing.capture(collection, str(model_of("llama")), sites=["hidden", "head", "final_norm"], layers=[0, 2, 3])
    report = probing.linear(collection, "odd", site="head", layers=[2], control=False)
    assert [one.space for one in report.layers] == [f"head-02-{head:02d}" for head in range(4)]
    assert all("space" in row for row in report.to_rows())
    assert [one.layer for one in probing.linear(collection, "odd", site="final_norm", control=False).layers] == [3]


def test_words_that_were_cut_otherwise_are_refused_and_nothing_is_left_of_what_failed(store, model_of):
    collection = store.collection("sentences", encoder="none")
    collection.add([{"key": "a", "text": "the red cat", "mine": ["the red", "cat"], "ours": ["the", "cat"]}])
    bert = str(model_of("bert"))
    probing.words(collection, "words", bert, split="mine", layers=[1])
    for options in ({"layers": [2]}, {"split": "ours", "layers": [2]}, {"unit": "token", "layers": [1]}):
        with pytest.raises(InvalidInput, match="made with another unit or split"):
            probing.words(collection, "words", bert, **options)
    collection.upsert([{"key": "a", "text": "the red cat", "mine": ["the", "red cat"]}])
    report = probing.words(collection, "words", bert, split="mine", layers=[1]).report
    assert (report.deleted, report.added) == (2, 2)
    for options, told in (({"split": "absent"}, "lists no words"), ({"only": ["zzz"]}, "has such a word"),
                          ({"where": "nothing = 1"}, "nothing")):  # fmt: skip
        with pytest.raises(InvalidInput, match=told):
            probing.words(collection, "other", bert, **options)
    assert "other" not in store.collections()


def test_spans_of_characters_are_pooled(store, model_of):
    collection = store.collection("sentences", encoder="none")
    text = "the red cat sees a dog"
    collection.add([{"key": "a", "text": text, "spans": [[4, 11], [0, 22]], "wrong": [[4, 99]], "kind": ["np", "s"]}])
    probing.words(collection, "spans", str(model_of("bert")), split="spans", fields=["kind"], layers=[2])
    spans = store.collection("spans")
    model = open_states(str(model_of("bert")))
    states = model.token_states(model.tokenize([text]), [Tap("hidden", 2)])[0][Tap("hidden", 2)]
    np.testing.assert_allclose(spans.vectors(["a#0"])[0], states[2:4].mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(spans.vectors(["a#1"])[0], states[1:-1].mean(axis=0), atol=1e-5)
    assert spans.get("a#0").content == "red cat" and spans.get("a#0").metadata["kind"] == "np"
    with pytest.raises(InvalidInput, match="4, 99. of 'wrong' is no span of its 22 characters"):
        probing.words(collection, "other", str(model_of("bert")), split="wrong")

