"""A model that learns in context is shown what tells most, and can be steered to where that leads."""

import numpy as np
import pytest

from embedstore import InvalidInput, probing
from embedstore.probing.incontext import label_scores, likeliest
from embedstore.probing.steering import last_states, next_log_probabilities

TEMPLATE = probing.Template("{text} {label} ", "{text} ")


@pytest.fixture(scope="session")
def languages(tmp_path_factory):
    """A model, trained for half a minute, that answers in one of four languages, as examples in its prompt do."""
    from concept_tasks import train

    return probing.open_headed(str(train(tmp_path_factory.mktemp("models") / "languages", "languages", steps=700)))


def letters(store, language, encoder="letters"):
    from concept_tasks import PLAIN, TELLING, label_of

    collection = store.collection("letters", encoder=encoder)
    collection.add([
        {"key": f"{part}{number}", "text": one, "label": label_of(language, one, "languages"), "part": part}
        for part, those in (("shown", TELLING[:3] + PLAIN), ("asked", TELLING[3:]))
        for number, one in enumerate(those)
    ])  # fmt: skip
    return collection


def all_labels():
    from concept_tasks import PLAIN, TELLING, label_of

    return sorted(label_of(c, one, "languages") for c in range(4) for one in TELLING + PLAIN)


def test_demonstrations_tell_the_language_and_so_does_the_task_vector(store, languages):
    for language in (1, 3):
        collection = letters(store, language)
        report = probing.in_context(
            collection, languages, "label", queries="part = 'asked'", n_demonstrations=2, template=TEMPLATE,
            labels=all_labels(),
        )  # fmt: skip
        assert report.accuracy["none"] <= 0.34 and report.n_queries == 3
        assert min(report.accuracy[way] for way in ("random", "nearest", "concept")) == 1.0
        assert report.steered[1] == 1.0  # added behind the first block, it does what the examples did
        assert len(report.concept) == 2 and all(label.endswith(str(language)) for _, label in report.concept)
        assert report.to_dict()["accuracy"]["random"] == 1.0
        collection.drop()


def test_examples_of_the_concept_are_likelier_before_it(languages):
    pairs = [(one, f"{one}2") for one in "abcdefmn"] + [("o", "o1"), ("p", "p3")]
    chosen = likeliest(languages, pairs, all_labels(), TEMPLATE, 4, 0)
    assert all(label.endswith("2") for _, label in chosen) and len({text for text, _ in chosen}) == 4


def test_a_vector_is_added_where_and_as_long_as_it_is_asked_for(languages):
    prompts = [languages.token_ids(one) for one in ("a a0 b ", "c ", "d d3 e e3 f ")]
    before, states = next_log_probabilities(languages, prompts), last_states(languages, prompts)
    added = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    with probing.steering(languages, {2: added}):
        steered = last_states(languages, prompts)
        changed = next_log_probabilities(languages, prompts)
    np.testing.assert_allclose(steered[:2], states[:2], atol=1e-5)
    np.testing.assert_allclose(steered[2], states[2] + added, atol=1e-5)
    assert np.abs(changed - before).max() > 0.01
    np.testing.assert_allclose(next_log_probabilities(languages, prompts), before, atol=1e-5)
    with probing.steering(languages, {1: added}, everywhere=True):
        everywhere = last_states(languages, prompts)
    np.testing.assert_allclose(everywhere[1], states[1] + added, atol=1e-5)
    with pytest.raises(RuntimeError, match="stop"), probing.steering(languages, {1: added}):
        raise RuntimeError("stop")
    assert not any(block._forward_hooks for block in languages.anatomy.blocks)
    vectors = probing.task_vectors(languages, prompts[:1], prompts[1:2])
    np.testing.assert_allclose(vectors[3], states[3, 0] - states[3, 1], atol=1e-5)


def test_labels_of_several_tokens_are_scored_by_the_sum(stories):
    import torch

    model = probing.open_headed(stories)
    prompt, labels = "Once upon a time there was a", [" little girl", " big dog", " xylophone"]
    found = label_scores(model, [prompt, "The"], labels)
    assert found.shape == (2, 3) and found[0].argmax() == 0
    ids = model.token_ids(prompt + labels[0])
    n = len(model.token_ids(prompt))
    with torch.no_grad():
        logs = model.network(input_ids=torch.tensor([ids])).logits[0].log_softmax(dim=1).numpy()
    wanted = sum(logs[place - 1, ids[place]] for place in range(n, len(ids)))
    assert found[0, 0] == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"choose": ["best"]}, "choose is"), ({"choose": "random"}, "choose is 'random'"),
        ({"n_demonstrations": 0}, "n_demonstrations is 0"), ({"n_demonstrations": 99}, "9 records may be shown"),
        ({"queries": "part = 'none'"}, "under the filter has a text and the field 'label'"),
        ({"candidates": "part = 'shown' AND text = 'a'"}, "text"),
        ({"labels": ["a1"]}, "there must be two labels"), ({"seed": -1}, "seed"),
    ],
)
def test_bad_requests_get_one_line(store, languages, options, told):
    collection = letters(store, 1)
    with pytest.raises(InvalidInput, match=told) as raised:
        given = {"queries": "part = 'asked'", "template": TEMPLATE, **options}
        probing.in_context(collection, languages, "label", **given)
    assert "\n" not in str(raised.value)


def test_a_masked_model_cannot_go_on_with_a_prompt(store, model_of):
    collection = letters(store, 1)
    with pytest.raises(InvalidInput, match="is no causal one"):
        probing.in_context(collection, str(model_of("bert", head=True)), "label", queries="part = 'asked'")


def test_steering_refuses_what_does_not_fit(languages):
    with pytest.raises(InvalidInput, match="is steered at 1 to 3"), probing.steering(languages, {0: np.zeros(64)}):
        pass
    with pytest.raises(InvalidInput, match="has 64 numbers"), probing.steering(languages, {1: np.zeros(3)}):
        pass
    with pytest.raises(InvalidInput, match="a task vector needs prompts"):
        probing.task_vectors(languages, [], [[1]])
    with pytest.raises(InvalidInput, match="the longest prompt has 200 tokens; the model reads 1 to 128"):
        languages.run([[1] * 200])


def test_prompts_are_whole_and_not_ended(model_of, stories):
    model = probing.open_headed(str(model_of("llama", head=True)))
    assert model.token_ids("the red") == [2, 4, 7]  # begun, and not ended
    with pytest.raises(InvalidInput, match="the longest prompt has 61 tokens; the model reads 1 to 36"):
        next_log_probabilities(model, [model.token_ids("the cat " * 30)])
    with pytest.raises(InvalidInput, match="cannot be filled in; it may hold {text}"):
        probing.Template(query="{txt}")
    added = {1: np.full(16, 3.0, np.float32)}
    read = model.read("the red cat sees")
    with probing.steering(model, added):
        steered = model.read("the red cat sees")
    moved = np.abs(steered.states[1] - read.states[1]).max(axis=1)
    assert moved[-1] > 1 and moved[:-1].max() < 1e-5


def test_no_record_is_its_own_example(store, languages):
    collection = letters(store, 2)
    report = probing.in_context(
        collection, languages, "label", queries="part = 'asked'", candidates="part = 'shown' OR part = 'asked'",
        n_demonstrations=1, template=TEMPLATE, labels=all_labels(), choose=["nearest"],
    )  # fmt: skip
    assert report.accuracy["nearest"] > report.accuracy["none"]


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_a_model_can_be_steered_from_its_first_prompts_on(model_of, kind):
    model = probing.open_headed(str(model_of(kind, head=True)))
    prompts = [model.token_ids(one) for one in ("the red", "the red cat sees a dog", "a")]
    added = np.random.default_rng(0).standard_normal(16).astype(np.float32)
    with probing.steering(model, {2: added}):
        steered = next_log_probabilities(model, prompts)
    assert np.abs(steered - next_log_probabilities(model, prompts)).max() > 1e-3

