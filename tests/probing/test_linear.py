"""Probes find what is there and nothing else, and say how sure that is."""

import numpy as np
import pytest

from embedstore import InvalidInput, RecordNotFound, probing
from embedstore.making_spaces import add_vector_spaces
from embedstore.model import Metric
from embedstore.probing.description import PORTIONS, online_bits
from embedstore.probing.learners import Standard, fit_mass_mean
from embedstore.probing.linear import control_labels
from embedstore.probing.softmax import fit_softmax
from embedstore.probing.splitting import folds_of, interval

DIM = 8


def filled(store, n=400, name="states"):
    """Three layers: the first says nothing of the class, the second half of it, the third all; there are 20 types."""
    drawn = np.random.default_rng(0)
    types = drawn.integers(0, 20, n)
    classes = drawn.integers(0, 3, n)
    type_vectors = drawn.standard_normal((20, DIM))
    layers = [drawn.standard_normal((n, DIM)) + type_vectors[types] for _ in range(3)]
    layers[1][:, 0] += 2 * classes
    layers[2][:, 0] += 12 * (classes == 1)
    layers[2][:, 1] += 12 * (classes == 2)
    collection = store.collection(name, encoder="none")
    add_vector_spaces(collection, {f"layer-{i:02d}": DIM for i in range(3)}, metric=Metric.COSINE, default="layer-02")
    collection.add([
        {"key": str(i), "text": f"word{types[i]}", "class": f"c{classes[i]}", "type": int(types[i]), "source": i // 4,
         "size": float(3 * layers[1][i, 2] + 1), "two": bool(classes[i]), "one": "x", "unique": f"u{i}",
         "several": [f"c{classes[i]}", *(["odd"] if layers[1][i, 3] > 0 else [])],
         "vectors": {f"layer-{j:02d}": layers[j][i] for j in range(3)}}
        for i in range(n)
    ])  # fmt: skip
    return collection, layers, classes, types


def test_the_solver_is_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    drawn = np.random.default_rng(0)
    rows = drawn.standard_normal((500, 12)).astype(np.float32)
    classes = (rows @ drawn.standard_normal((12, 4)) + drawn.standard_normal((500, 4))).argmax(axis=1)
    for c in (1e-3, 1e-1, 10.0):
        reference = LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(rows, classes)
        found = fit_softmax(rows, classes, 4, c)
        np.testing.assert_allclose(found.weights, reference.coef_, atol=2e-3, rtol=2e-3)
        log_probabilities = found.log_probabilities(rows)
        np.testing.assert_allclose(log_probabilities, reference.predict_log_proba(rows), atol=5e-3, rtol=2e-3)
    unseen = fit_softmax(rows, classes, 6, 0.1)  # two classes that never come
    assert np.isfinite(unseen.log_probabilities(rows)).all() and set(unseen.predict(rows)) <= {0, 1, 2, 3}


def test_layers_are_told_by_what_they_hold(any_store):
    collection, _, classes, _ = filled(any_store)
    report = probing.linear(collection, "class")
    low, middle, high = report.layers
    assert low.score < 0.45 and 0.5 < middle.score < 0.95 and high.score > 0.98 and report.best is high
    assert all(one.low < one.score < one.high or one.score == one.high for one in report.layers)
    assert report.baselines["majority"] == pytest.approx(np.bincount(classes).max() / 400)
    assert report.baselines["bag of words"] < 0.45
    assert report.classes == ["c0", "c1", "c2"] and report.n == 400
    assert [row["layer"] for row in report.to_rows()] == [0, 1, 2]
    assert report.to_dict()["layers"][2]["score"] == high.score


def test_a_control_task_is_learned_from_types_alone(store):
    collection, _, classes, types = filled(store, n=1500)
    report = probing.linear(collection, "class", control_by="type", folds=3)
    for one in report.layers:
        assert one.control > 0.45 and one.selectivity == pytest.approx(one.score - one.control)
    assert report.layers[2].selectivity > 0.3 > report.layers[0].selectivity
    drawn = control_labels([str(one) for one in types], classes, 0)
    assert all(len(set(drawn[types == one].tolist())) == 1 for one in range(20))
    same = probing.linear(collection, "class", folds=3)  # types are texts where nothing else is said
    assert same.layers[1].control == pytest.approx(report.layers[1].control, abs=0.12)


def test_a_hidden_layer_gains_control_more_than_it_gains_accuracy(store):
    drawn = np.random.default_rng(0)
    types, classes = drawn.integers(0, 24, 3000), drawn.integers(0, 2, 3000)
    rows = 4 * drawn.standard_normal((24, 4))[types] + drawn.standard_normal((3000, 4))
    rows = np.concatenate([rows, 3 * classes[:, None] + drawn.standard_normal((3000, 1))], axis=1)
    collection = store.collection("states", encoder="none")
    add_vector_spaces(collection, {"layer-02": 5}, metric=Metric.COSINE, default="layer-02")
    collection.add([
        {"key": str(i), "text": f"word{types[i]}", "type": int(types[i]), "class": f"c{classes[i]}",
         "vectors": {"layer-02": rows[i]}} for i in range(3000)
    ])  # fmt: skip
    straight = probing.linear(collection, "class", control_by="type", folds=1, layers=[2])
    bent = probing.linear(collection, "class", control_by="type", folds=1, layers=[2], kind="mlp")
    assert bent.layers[0].score > straight.layers[0].score - 0.02
    assert bent.layers[0].control > straight.layers[0].control + 0.1
    assert bent.layers[0].selectivity < straight.layers[0].selectivity


def test_groups_are_never_parted():
    groups = [i // 3 for i in range(90)]
    classes = np.array([i % 3 for i in range(90)])
    folds = folds_of(classes, groups, 5, 0)
    assert all(len({folds[i] for i in range(90) if groups[i] == group}) == 1 for group in set(groups))
    plain = folds_of(classes, list(range(90)), 5, 0)
    for fold in range(5):
        np.testing.assert_array_equal(np.bincount(classes[plain == fold]), [6, 6, 6])


def test_an_interval_covers_the_mean_and_is_wider_for_groups():
    drawn = np.random.default_rng(0)
    values = np.repeat(drawn.integers(0, 2, 100), 10).astype(float)
    alone = interval(values, list(range(1000)), 0)
    together = interval(values, [i // 10 for i in range(1000)], 0)
    assert alone[0] < values.mean() < alone[1]
    assert together[1] - together[0] > 2 * (alone[1] - alone[0])
    error = np.sqrt(values.var() / 1000)
    assert alone[1] - alone[0] == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_numbers_are_told_by_ridge(any_store):
    collection, _, _, _ = filled(any_store)
    report = probing.linear(collection, "size")
    assert report.task == "number" and report.metric == "R2"
    assert report.layers[1].score > 0.98 and report.layers[1].other["spearman"] > 0.98
    assert abs(report.layers[0].score) < 0.3 and abs(report.baselines["mean"]) < 0.05
    assert report.layers[1].low <= report.layers[1].score <= report.layers[1].high


def test_several_labels_are_told_each_by_itself(store):
    collection, _, _, _ = filled(store)
    report = probing.linear(collection, "several", task="several")
    assert report.task == "several" and sorted(report.classes) == ["c0", "c1", "c2", "odd"]
    by_layer = {one.layer: one for one in report.layers}
    assert by_layer[2].score > by_layer[0].score + 0.2 and 0 < by_layer[2].other["f1"] <= 1


def test_a_mass_mean_probe_points_from_one_mean_to_the_other():
    drawn = np.random.default_rng(0)
    classes = drawn.integers(0, 2, 3000)
    rows = (drawn.standard_normal((3000, 5)) + 2 * classes[:, None] * np.array([1, 0, 0, 0, 0])).astype(np.float32)
    probe = fit_mass_mean(rows, classes, 2, 1.0, 0)
    direction = probe.model.weights[1] * probe.standard.scale
    assert abs(direction[0]) / np.linalg.norm(direction) > 0.98
    assert (probe.predict(rows) == classes).mean() > 0.82
    with pytest.raises(InvalidInput, match="tells two classes apart; the label has 3"):
        fit_mass_mean(rows, classes, 3, 1.0, 0)


def test_curves_baselines_of_random_weights_and_kept_probes(any_store):
    collection, layers, classes, _ = filled(any_store)
    spaces = {f"random-layer-{i:02d}": DIM for i in range(3)}
    add_vector_spaces(collection, spaces, metric=Metric.COSINE, default="layer-02")
    collection.upsert([
        {"key": str(i), "text": record.content, **record.metadata, "vectors": {name: layers[0][i] for name in spaces}}
        for i, record in enumerate(collection.records())
    ])  # fmt: skip
    report = probing.linear(collection, "class", beside=["random-"], curve=True, store_as="kind")
    assert report.layers[2].other["random"] < 0.45
    assert sorted(report.layers[2].curve) == [0.05, 0.1, 0.2, 0.5, 1.0]
    assert report.layers[2].curve[1.0] > 0.95
    kept = probing.probe(collection.space("layer-02"), "kind")
    assert kept.classes == ["c0", "c1", "c2"] and kept.about["label"] == "class"
    told = kept.predict(layers[2].astype(np.float32))
    assert np.mean([one == f"c{true}" for one, true in zip(told, classes, strict=True)]) > 0.98
    np.testing.assert_allclose(kept.probabilities(layers[2][:5].astype(np.float32)).sum(axis=1), 1, atol=1e-6)
    assert collection.space("layer-02").directions() == []
    with pytest.raises(RecordNotFound, match="has no probe 'other'; it has: kind"):
        probing.probe(collection.space("layer-02"), "other")
    with pytest.raises(InvalidInput, match="put it into a list"):
        kept.predict("a text")
    with pytest.raises(InvalidInput, match="scores vectors of 8 numbers"):
        kept.predict(np.zeros((2, 3), np.float32))
    assert any_store.verify().problems == []


def test_the_online_code_is_the_sum_of_surprises():
    from sklearn.linear_model import LogisticRegression

    drawn = np.random.default_rng(0)
    rows = drawn.standard_normal((2000, 6)).astype(np.float32)
    told = (rows[:, 0] + 0.5 * drawn.standard_normal(2000) > 0).astype(np.int64)
    noise = drawn.integers(0, 2, 2000)
    assert online_bits(rows, told, 2, 0) < 0.6 * 2000 < 0.95 * 2000 < online_bits(rows, noise, 2, 0) < 1.1 * 2000
    # By another implementation, with the penalty that was chosen for it.
    from embedstore.probing.learners import choose_strength

    strength = choose_strength(rows, told, 2, folds_of(None, list(range(2000)), 3, 0))
    ends = sorted({max(20, round(share * 2000)) for share in PORTIONS})
    bits = float(ends[0])
    for start, end in zip(ends, ends[1:], strict=False):
        standard = Standard.of(rows[:start])
        # Of two classes, scikit-learn has one weight vector: half the penalty of a pair that differ by it.
        model = LogisticRegression(C=2 * strength, tol=1e-8, max_iter=5000)
        model.fit(standard.apply(rows[:start]), told[:start])
        shares = model.predict_log_proba(standard.apply(rows[start:end]))
        bits -= float(shares[np.arange(end - start), told[start:end]].sum() / np.log(2))
    assert online_bits(rows, told, 2, 0) == pytest.approx(bits, rel=2e-3)


def test_code_lengths_and_mixtures_by_layer(store):
    collection, _, _, _ = filled(store, n=800)
    codes = probing.description_length(collection, "class")
    assert codes[0].bits > codes[1].bits > codes[2].bits and codes[2].compression > 3
    assert codes[0].uniform == pytest.approx(800 * np.log2(3))
    mix = probing.scalar_mix(collection, "class")
    assert mix.shares[2] == max(mix.shares.values()) and sum(mix.shares.values()) == pytest.approx(1, abs=1e-5)
    assert 1 < mix.center_of_gravity <= 2 and mix.accuracy > 0.95


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"label": "one"}, "the label 'one' has one class only, 'x'"),
        ({"label": "absent"}, "no record of 'states' has the field 'absent'"),
        ({"label": "unique"}, "'unique' has 400 values for 400 records"),
        ({"layers": [5]}, "layer 5 was not captured; there are 0, 1, 2"),
        ({"layers": "some"}, "layers is 'some'"),
        ({"prefix": "no-"}, "holds no 'hidden' layers under the prefix 'no-' .it has layer-02"),
        ({"site": "mlp"}, "holds no 'mlp' layers"),
        ({"site": "x"}, "site is 'x'"),
        ({"folds": 0}, "folds is 0"),
        ({"folds": 200}, "the class .c1. has .* fewer than the 200 parts"),
        ({"where": "type = 3", "group_by": "one"}, "all examples of the class .* are in one group"),
        ({"kind": "magic"}, "kind is 'magic'"),
        ({"kind": "mass-mean"}, "the label has 3"),
        ({"kind": "mlp", "label": "size"}, "kind 'mlp' tells classes apart"),
        ({"task": "magic"}, "task is 'magic'"),
        ({"task": "number"}, "which is no number"),
        ({"control_by": "absent"}, "have no field 'absent'"),
        ({"store_as": "x", "kind": "mlp"}, "only linear and mass-mean probes can be kept"),
        ({"seed": -1}, "seed"), ({"label": None}, "label is None"), ({"store_as": ""}, "name"),
        ({"label": "size", "store_as": "x"}, "are for classes; the label 'size' is read as 'number'"),
        ({"where": "type = 99", "label": "class"}, "under the filter has the field"),
        ({"group_by": "absent"}, "has no field 'absent' to be grouped by"),
    ],
)
def test_bad_requests_get_one_line(store, options, told):
    collection, _, _, _ = filled(store)
    given = {"label": "class", **options}
    with pytest.raises(InvalidInput, match=told) as raised:
        probing.linear(collection, given.pop("label"), **given)
    assert "\n" not in str(raised.value)


def test_cities_are_told_true_or_false_as_published(store, data):
    import csv

    with open(data / "geometry_of_truth" / "cities.csv") as lines:
        rows = list(csv.DictReader(lines))
    collection = store.collection("cities", encoder="none")
    collection.add([
        {"key": str(i), "text": row["statement"], "true": row["label"] == "1", "city": row["city"]}
        for i, row in enumerate(rows)
    ])  # fmt: skip
    probing.capture(collection, "minilm")
    report = probing.linear(collection, "true", group_by="city", control=False)
    wanted = (0.480, 0.654, 0.711, 0.738, 0.725, 0.732, 0.711)
    for one, value in zip(report.layers, wanted, strict=True):
        assert one.score == pytest.approx(value, abs=0.045)


def test_without_types_that_recur_there_is_no_control_and_a_reason(store):
    collection = store.collection("states", encoder="none")
    add_vector_spaces(collection, {"layer-00": 3}, metric=Metric.COSINE, default="layer-00")
    drawn = np.random.default_rng(0)
    collection.add([
        {"key": str(i), "text": f"a text of its own, number {i}", "class": "ab"[i % 2],
         "vectors": {"layer-00": drawn.standard_normal(3)}} for i in range(60)
    ])  # fmt: skip
    report = probing.linear(collection, "class", layers=[0, 0])
    assert len(report.layers) == 1 and report.layers[0].control is None
    assert "types hardly ever come again" in report.without_control and "control" not in report.to_rows()[0]
    assert probing.linear(collection, "class", control=False).without_control is None

