"""What a space is like: dimensions, evenness, hubs, duplicates, drift, overlap, against what is known of drawn data."""

import numpy as np
import pytest

import embedstore
from embedstore.latent.report import report_on, write_report
from embedstore.latent.structure import isotropy, mle, mmd_test, two_nn


def near(vectors, k=10):
    squared = np.square(vectors[:, None].astype(np.float64) - vectors[None]).sum(axis=2)
    np.fill_diagonal(squared, np.inf)
    return np.sqrt(np.sort(squared, axis=1)[:, :k])


def stored(store, vectors, name="points", metric="euclidean", **fields):
    collection = store.collection(name, encoder="none", metric=metric)
    collection.add([
        {"key": str(i), "vector": one, **{field: values[i] for field, values in fields.items()}}
        for i, one in enumerate(vectors)
    ])  # fmt: skip
    return collection


def test_intrinsic_dimension_is_that_of_the_published_formulas():
    drawn = np.random.default_rng(0)
    plane = np.zeros((800, 20))
    plane[:, :3] = drawn.uniform(size=(800, 3))
    distances = near(plane @ np.linalg.qr(drawn.standard_normal((20, 20)))[0])
    ratios = np.sort(distances[:, 1] / distances[:, 0])
    kept = 720
    x, y = np.log(ratios[:kept]), -np.log(1 - np.arange(1, kept + 1) / 800)
    assert two_nn(distances) == pytest.approx((x @ y) / (x @ x), abs=1e-9)
    inverse = np.mean([np.log(line[-1] / line[:-1]).sum() / 8 for line in distances])
    assert mle(distances) == pytest.approx(1 / inverse, abs=1e-9)
    assert 2.5 < two_nn(distances) < 3.5 and 2.4 < mle(distances) < 3.5


def test_isotropy_is_one_for_equal_variances_and_zero_for_a_single_one():
    assert isotropy(np.ones(8)) == pytest.approx(1.0)
    assert isotropy(np.array([5.0, 0, 0, 0])) == pytest.approx(0.0, abs=1e-9)
    assert 0.2 < isotropy(np.array([2.0, 1.0, 1.0, 0.1])) < 0.9


def test_a_space_is_told_of(any_store):
    drawn = np.random.default_rng(1)
    vectors = np.zeros((300, 10), np.float32)
    vectors[:, :4] = drawn.standard_normal((300, 4))
    vectors[7] = vectors[3]
    vectors[9] = vectors[4] + 1e-4
    found = stored(any_store, vectors).space().structure()
    assert (found.n, found.dim, found.components_90) == (300, 10, 4)
    assert 3 < found.two_nn < 5 and abs(found.anisotropy) < 0.05 and 0.2 < found.isotropy < 0.45
    assert found.duplicates == [("3", "7")] and found.near_duplicates == [("4", "9")]
    assert 0 <= found.orphans < 0.2 and 0 <= found.hubs < 0.2
    shifted = stored(any_store, vectors + 10, "shifted").space().structure()
    assert shifted.anisotropy > 0.95 and shifted.two_nn == pytest.approx(found.two_nn, rel=0.02)


def test_a_far_outlier_makes_no_duplicates_of_others(store):
    vectors = np.random.default_rng(1).standard_normal((200, 6)).astype(np.float32)
    vectors[5] = 1e8
    found = stored(store, vectors).space().structure()
    assert found.duplicates == [] and np.isfinite(found.two_nn)


def test_drift_is_found_where_it_is_and_not_where_it_is_not(store):
    drawn = np.random.default_rng(2)
    vectors = drawn.standard_normal((400, 6)).astype(np.float32)
    vectors[300:] += 0.7
    space = stored(store, vectors, n=list(range(400))).space()
    assert space.drift("n < 150", "n >= 150 AND n < 300").p_value > 0.05
    moved = space.drift("n < 150", "n >= 300")
    assert (moved.n_first, moved.n_second) == (150, 100) and moved.p_value < 0.01 and moved.mmd > 0.01
    with pytest.raises(embedstore.InvalidInput, match="only 1 records fit"):
        space.drift("n < 1", "n > 5")


def test_the_discrepancy_is_that_of_the_definition():
    drawn = np.random.default_rng(3)
    a, b = drawn.standard_normal((30, 4)), drawn.standard_normal((20, 4)) + 0.5
    both = np.concatenate([a, b])
    squared = np.square(both[:, None] - both[None]).sum(axis=2)
    kernel = np.exp(-squared / np.median(squared[np.triu_indices(50, 1)]))
    xx = (kernel[:30, :30].sum() - 30) / (30 * 29)
    yy = (kernel[30:, 30:].sum() - 20) / (20 * 19)
    assert mmd_test(a, b, 0).mmd == pytest.approx(xx + yy - 2 * kernel[:30, 30:].mean(), abs=1e-9)


def test_overlap_is_the_share_of_common_neighbours(store):
    drawn = np.random.default_rng(4)
    collection = stored(store, drawn.standard_normal((120, 8)).astype(np.float32))
    collection.add_space("same", reduce="pca", dim=8)
    collection.add_space("part", reduce="pca", dim=3)
    same, part = collection.space().likeness("same"), collection.space().likeness("part")
    assert (same.n, same.overlap, same.cka) == (120, pytest.approx(1.0), pytest.approx(1.0))
    assert 0.1 < part.overlap < 0.9 and 0.3 < part.cka < 0.95
    again = collection.space("part").likeness("vector")
    assert (again.overlap, again.cka) == (pytest.approx(part.overlap), pytest.approx(part.cka))
    keys = [str(i) for i in range(120)]
    x, y = collection.vectors(keys), collection.vectors(keys, space="part")
    centring = np.eye(120) - 1 / 120
    k, m = (centring @ (one.astype(np.float64) @ one.T) @ centring for one in (x, y))
    assert part.cka == pytest.approx((k * m).sum() / np.linalg.norm(k) / np.linalg.norm(m), abs=1e-6)


def test_a_report_is_one_page(store, square_model, tmp_path):
    from vae.made import squares

    shapes = store.collection("shapes", encoder=str(square_model))
    shapes.add([{"key": str(i), "image": one, "half": i % 2} for i, one in enumerate(squares(60)[0])])
    told = report_on(shapes, None, label="half", drift=("half = 0", "half = 1"))
    assert {"two_nn", "hubness", "kl_by_dimension", "active_units", "completeness", "drift", "probes"} <= told.keys()
    write_report(told, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.startswith("<!doctype html>") and "kl by dimension" in page and "<svg" in page and "http" not in page
    with pytest.raises(embedstore.InvalidInput, match=r"must end in \.html"):
        write_report(told, tmp_path / "report.txt")
    plain = stored(store, np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32))
    assert "kl_by_dimension" not in report_on(plain, None)
    with pytest.raises(embedstore.InvalidInput, match="for which alone a label is of use"):
        report_on(plain, None, label="half")
    with pytest.raises(embedstore.InvalidInput, match="sample is 3"):
        plain.space().structure(sample=3)
    few = stored(store, np.eye(5, dtype=np.float32), "few")
    with pytest.raises(embedstore.InvalidInput, match="there are 5 vectors; a space is looked at through 20"):
        few.space().structure()
