"""Analogies: what comes out is what the definitions say, one at a time and by the file."""

import numpy as np
import pytest

from embedstore import InvalidInput, RecordNotFound

WORDS = ("man", "king", "woman", "queen", "apple", "pear", "Paris", "France", "Berlin", "Germany", "run", "ran")


def reference(vectors, a, b, c, method):
    """Scores of every vector by the published definitions, in float64."""
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    va, vb, vc = unit[a], unit[b], unit[c]
    if method == "3cosadd":
        target = vb - va + vc
        return unit @ target / np.linalg.norm(target)
    if method == "3cosmul":
        share = (1 + unit @ np.stack([va, vb, vc]).T) / 2
        return share[:, 1] * share[:, 2] / (share[:, 0] + 1e-6)
    way = unit - vc
    lengths = np.linalg.norm(way, axis=1)
    scores = way @ (vb - va) / np.linalg.norm(vb - va)
    return np.divide(scores, lengths, out=np.zeros_like(scores), where=lengths > 0)


@pytest.fixture
def words(store):
    drawn = np.random.default_rng(3)
    vectors = drawn.standard_normal((200, 16)).astype(np.float32)
    royal, female = drawn.standard_normal((2, 16)) * 2
    vectors[1] = vectors[0] + royal
    vectors[2] = vectors[0] + female
    vectors[3] = vectors[0] + royal + female
    keys = [*WORDS, *(f"w{i}" for i in range(200 - len(WORDS)))]
    collection = store.collection("words", encoder="none")
    collection.add([{"key": key, "vector": vectors[i], "n": i} for i, key in enumerate(keys)])
    return collection, vectors, keys


@pytest.mark.parametrize("method", ["3cosadd", "3cosmul", "pairdirection"])
def test_scores_are_those_of_the_definitions(words, method):
    collection, vectors, keys = words
    space = collection.space()
    hits = space.analogy("man", "king", "woman", 197, method=method)
    expected = reference(vectors, 0, 1, 2, method)
    assert len(hits) == 197 and not {"man", "king", "woman"} & set(hits.keys)
    for hit in hits:
        assert hit.score == pytest.approx(expected[keys.index(hit.key)], abs=1e-6)
    assert hits.keys == [keys[i] for i in np.argsort(-expected) if i > 2]
    assert hits.keys[0] == "queen"


def test_the_given_records_can_be_asked_for_and_filters_hold(words):
    collection, _, _ = words
    space = collection.space()
    assert {"king", "woman"} & set(space.analogy("man", "king", "woman", 3, include_sources=True).keys)
    assert all(hit.record.metadata["n"] > 50 for hit in space.analogy("man", "king", "woman", 5, where="n > 50"))
    collection.delete(["queen"])
    assert "queen" not in space.analogy("man", "king", "woman", 200).keys


def test_a_file_is_solved_by_section_and_what_is_missing_is_counted(words, tmp_path):
    collection, vectors, keys = words
    lines = [": family", "man king woman queen", "man woman king queen", "", ": places",
             "Paris France Berlin Germany", "paris france berlin germany", "Paris France Rome Italy"]  # fmt: skip
    path = tmp_path / "questions.txt"
    path.write_text("\n".join(lines))
    for method in ("3cosadd", "3cosmul", "pairdirection"):
        report = collection.space().analogies(path, method=method)
        assert [(one.name, one.n) for one in report.sections] == [("family", 2), ("places", 2)]
        assert (report.n_left_out, report.total.n, report.n_candidates) == (1, 4, 8)
        asked = [(0, 1, 2, 3), (0, 2, 1, 3), (6, 7, 8, 9), (6, 7, 8, 9)]
        candidates = [0, 1, 2, 3, 6, 7, 8, 9]
        right = 0
        for a, b, c, d in asked:
            scores = reference(vectors[candidates], *(candidates.index(one) for one in (a, b, c)), method)
            scores[[candidates.index(one) for one in (a, b, c)]] = -np.inf
            right += candidates[int(scores.argmax())] == d
        assert report.total.n_right == right
    assert report.total.accuracy == right / 4


def test_words_are_found_in_other_cases_where_they_are_not_there_as_written(words):
    collection, _, _ = words
    report = collection.space().analogies([("MAN", "King", "woman", "queen"), ("paris", "FRANCE", "Berlin", "germany")])
    assert (report.total.n, report.n_left_out, report.n_candidates) == (2, 0, 8)


@pytest.mark.parametrize(
    ("questions", "told"),
    [
        ("one two three\n", "line 1: 3 words; a question has four"),
        (": only\n", "holds no questions"),
        (b"\xff\xfe\x00", "are not UTF-8"),
        ([("a", "b", "c")], "question 1 is"),
        ([("x", "y", "z", "w")], "none of the 4 words is the key"),
    ],
)
def test_bad_questions_get_one_line(words, tmp_path, questions, told):
    collection, _, _ = words
    given = questions
    if not isinstance(questions, list):
        given = tmp_path / "questions.txt"
        given.write_bytes(questions if isinstance(questions, bytes) else questions.encode())
    with pytest.raises((InvalidInput, RecordNotFound), match=told):
        collection.space().analogies(given)


def test_other_bad_requests_get_one_line(words, tmp_path):
    space = words[0].space()
    with pytest.raises(InvalidInput, match="method is 'x'; it must be one of 3cosadd"):
        space.analogy("man", "king", "woman", method="x")
    with pytest.raises(RecordNotFound, match="'nobody'"):
        space.analogy("man", "king", "nobody")
    with pytest.raises(InvalidInput, match="k is 0"):
        space.analogy("man", "king", "woman", 0)
    with pytest.raises(InvalidInput, match="cannot be read: No such file"):
        space.analogies(tmp_path / "absent")
