"""The strangest records: by what an autoencoder does not give back, by its bound, and by distance."""

import numpy as np
import pytest
from vae.made import people, squares

from embedstore import InvalidInput
from embedstore.vae.image_model import load_image_model
from embedstore.vae.scoring import negative_elbo, share_below, threshold_at


def with_odd_ones(store, square_model):
    """A hundred squares and three pictures of something else."""
    rng = np.random.default_rng(0)
    shapes = store.collection("shapes", encoder=str(square_model))
    shapes.add([{"key": str(i), "image": picture} for i, picture in enumerate(squares(100, seed=3)[0])])
    shapes.add([{"key": f"odd{i}", "image": rng.integers(0, 256, (16, 16), np.uint8)} for i in range(3)])
    return shapes


@pytest.mark.parametrize("method", ["reconstruction", "elbo"])
def test_what_is_no_square_is_the_strangest(store, square_model, method):
    report = with_odd_ones(store, square_model).anomalies(method=method, top=5)
    assert {one.key for one in report.anomalies[:3]} == {"odd0", "odd1", "odd2"}
    assert all(one.strange and one.share == 1.0 and one.score > report.threshold for one in report.anomalies[:3])
    assert report.n_scored == 103 and 3 <= report.n_strange < 15
    scores = [one.score for one in report.anomalies]
    assert scores == sorted(scores, reverse=True)


def test_the_score_is_the_squared_error_of_the_mean_code(store, square_model):
    shapes = with_odd_ones(store, square_model)
    model = load_image_model(square_model)
    pixels = squares(100, seed=3)[0][:, None]
    expected = np.square(model.decode_exactly(model.encode(pixels)[0]) - pixels / 255).mean(axis=(1, 2, 3))
    found = {one.key: one.score for one in shapes.anomalies(top=200).anomalies}
    np.testing.assert_allclose([found[str(i)] for i in range(100)], expected, rtol=1e-5)


def test_the_bound_of_an_item_does_not_depend_on_its_neighbours(square_model):
    model = load_image_model(square_model)
    pixels = squares(20)[0][:, None]
    together = negative_elbo(model.network, model.tensor(pixels))
    for place in (0, 7, 19):
        alone = negative_elbo(model.network, model.tensor(pixels[place : place + 1]))
        assert alone[0] == pytest.approx(together[place], rel=1e-5)


def test_scores_are_calibrated_by_what_was_held_out():
    quantiles = [0.0, 1.0, 3.0]
    np.testing.assert_allclose(share_below(np.array([-1.0, 0.5, 1.0, 2.0, 9.0]), quantiles), [0, 0.25, 0.5, 0.75, 1])
    assert threshold_at(quantiles, 0.75) == 2.0


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
def test_the_distance_to_the_nth_neighbour_is_that_of_brute_force(any_store, metric):
    matrix = np.random.default_rng(1).standard_normal((80, 6)).astype(np.float32)
    points = any_store.collection("points", encoder="none", metric=metric)
    points.add([{"key": str(i), "vector": row, "even": i % 2 == 0} for i, row in enumerate(matrix)])
    rows = matrix.astype(np.float64)
    if metric == "cosine":
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        distances = 1 - rows @ rows.T
    elif metric == "dot":
        distances = -rows @ rows.T
    else:
        distances = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    found = {one.key: one.score for one in points.anomalies(method="knn", neighbour=3, top=80).anomalies}
    np.testing.assert_allclose([found[str(i)] for i in range(80)], np.sort(distances, axis=1)[:, 2], atol=1e-5)
    evens = points.anomalies(method="knn", neighbour=1, top=80, where="even = true")
    assert evens.n_scored == 40
    expected = np.sort(distances[::2, ::2], axis=1)[:, 0]
    np.testing.assert_allclose(sorted(one.score for one in evens.anomalies), np.sort(expected), atol=1e-5)


def test_scores_that_are_stored_can_be_filtered_by(store, people_model):
    folk = store.collection("folk", encoder=str(people_model))
    folk.add([{"key": str(i), "row": row} for i, row in enumerate(people(60, seed=2))])
    giant = {**people(1)[0], "height": 230.0, "weight": 40.0}
    folk.add([{"key": "giant", "row": giant}])
    report = folk.anomalies(store_as="odd")
    assert report.anomalies[0].key == "giant"
    assert folk.count("odd.strange = true") == report.n_strange and folk.get("giant").metadata["odd"]["share"] == 1.0
    assert folk.count("odd.score > 0") + folk.count("odd.score <= 0") == 61 and store.verify().ok
    assert folk.get("giant").row == giant


def test_a_picture_whose_file_is_gone_is_told_and_the_others_are_scored(store, tmp_path, square_model):
    from PIL import Image

    shapes = store.collection("shapes", encoder=str(square_model))
    for i, picture in enumerate(squares(5)[0]):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    shapes.add([{"key": str(i), "image": tmp_path / f"{i}.png"} for i in range(5)])
    (tmp_path / "2.png").unlink()
    report = shapes.anomalies()
    assert report.n_scored == 4 and len(report.unreadable) == 1 and report.unreadable[0].startswith("2: the picture")


def test_what_cannot_be_scored_is_refused(store):
    points = store.collection("points", encoder="letters")
    points.add([{"key": "a", "text": "abc"}])
    with pytest.raises(InvalidInput, match="is no trained autoencoder; method='knn' needs none"):
        points.anomalies()
    for wrong in ({"method": "x"}, {"top": 0}, {"quantile": 1.0}, {"neighbour": 0}):
        with pytest.raises(InvalidInput, match="must"):
            points.anomalies(**{"method": "knn", **wrong})
    assert points.anomalies(method="knn").n_scored == 1


def test_scores_are_not_stored_over_other_fields(store, square_model):
    pictures, _ = squares(30)
    shapes = store.collection("shapes", encoder=str(square_model))
    shapes.add([{"key": str(i), "image": picture, "colour": "red"} for i, picture in enumerate(pictures)])
    refused = (("colour", "holds something else"), ("_key", "begins with no underscore"), ("", "name of a field"))
    for name, told in refused:
        with pytest.raises(InvalidInput, match=told):
            shapes.anomalies(store_as=name)
    shapes.anomalies(store_as="odd")
    shapes.anomalies(store_as="odd")
    assert shapes.count("odd.score >= 0 AND colour = 'red'") == 30


def test_a_space_is_diagnosed_without_the_pictures_that_are_gone(store, square_model, tmp_path):
    from PIL import Image

    for i, picture in enumerate(squares(40)[0]):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    shapes = store.collection("shapes", encoder=str(square_model))
    shapes.ingest(str(tmp_path), image=True)
    (tmp_path / "7.png").unlink()
    found = shapes.diagnose()
    assert found.n_items == 39 and "7.png" in found.unreadable[0]
    for i in range(40):
        (tmp_path / f"{i}.png").unlink(missing_ok=True)
    with pytest.raises(InvalidInput, match="none of 40 records could be read"):
        shapes.diagnose()
    with pytest.raises(InvalidInput, match="none of 40 records could be scored"):
        shapes.anomalies()
