"""Ways through a space: great circles, single dimensions, points drawn at random; and the strips that show them."""

import numpy as np
import pytest
from PIL import Image
from vae.made import people, squares

from embedstore import InvalidInput, StorageFailed
from embedstore.latent.strips import save_strip


@pytest.fixture
def shapes(store, square_model):
    collection = store.collection("shapes", encoder=str(square_model))
    collection.add([{"key": str(i), "image": picture} for i, picture in enumerate(squares(60)[0])])
    return collection


def test_a_way_is_along_the_great_circle_and_lengths_go_evenly(store):
    drawn = np.random.default_rng(0)
    collection = store.collection("points", encoder="none", metric="euclidean")
    vectors = drawn.standard_normal((2, 9)).astype(np.float32) * np.array([[1.0], [3.0]], np.float32)
    collection.add([{"key": key, "vector": vector} for key, vector in zip("ab", vectors, strict=True)])
    space = collection.space()
    walked = space.interpolate("a", "b", 7)
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors, axis=1, keepdims=True)
    angle = np.arccos(unit[0] @ unit[1])
    lengths = np.linalg.norm(vectors, axis=1)
    for share, point in zip(np.linspace(0, 1, 7), walked, strict=True):
        direction = (np.sin((1 - share) * angle) * unit[0] + np.sin(share * angle) * unit[1]) / np.sin(angle)
        np.testing.assert_allclose(point.array, direction * ((1 - share) * lengths[0] + share * lengths[1]), atol=1e-6)
    straight = space.interpolate(space["a"], "b", 3, way="lerp")
    np.testing.assert_allclose(straight[1].array, vectors.mean(axis=0), atol=1e-6)
    for options, told in (({"steps": 1}, "steps is 1"), ({"way": "x"}, "way is 'x'")):
        with pytest.raises(InvalidInput, match=told):
            space.interpolate("a", "b", **options)


def test_projections_are_those_of_the_formula(store):
    drawn = np.random.default_rng(1)
    collection = store.collection("points", encoder="none")
    a, b = drawn.standard_normal((2, 9)).astype(np.float32)
    collection.add([{"key": "a", "vector": a}, {"key": "b", "vector": b}])
    space = collection.space()
    along = (a.astype(np.float64) @ b) / (b.astype(np.float64) @ b) * b.astype(np.float64)
    np.testing.assert_allclose(space["a"].project(space["b"]).array, along, atol=1e-6)
    np.testing.assert_allclose(space["a"].reject(space["b"]).array, a - along, atol=1e-6)
    with pytest.raises(InvalidInput, match="no direction to project onto"):
        space["a"].project(space["b"] * 0)


def test_points_beyond_all_bounds_and_numbers_of_hits_that_cannot_be_are_refused(shapes):
    space = shapes.space()
    for make in (lambda: space["1"] * 1e39, lambda: space["1"] * 1e38 * 1e5, lambda: space["1"] / 1e-45):
        with pytest.raises(InvalidInput, match="beyond what float32 holds"):
            make()
    for k in (0, -3, "a"):
        with pytest.raises(InvalidInput, match="k is .*; it must be a whole number from 1 on"):
            space["1"].nearest(k)
    with pytest.raises(InvalidInput, match="a mean is taken of points"):
        space.mean(["1", "2"])


def test_one_number_changes_at_a_time(shapes):
    space = shapes.space()
    made = space.traverse("3", 1, [-1.0, 2.0])
    expected = np.repeat(space["3"].array[None], 2, axis=0)
    expected[:, 1] = [-1.0, 2.0]
    np.testing.assert_array_equal(np.stack([one.array for one in made]), expected)
    assert len(space.traverse(space["3"], 0)) == 7
    with pytest.raises(InvalidInput, match="dimension is 99; it must be from 0 to"):
        space.traverse("3", 99)
    for value in (float("nan"), "x", True):
        with pytest.raises(InvalidInput, match="it must be a finite number"):
            space.traverse("3", 0, [value])


def test_points_are_drawn_of_the_prior_and_of_what_the_space_holds(shapes, store):
    space = shapes.space()
    prior = np.stack([one.array for one in space.sample(4000, seed=1)])
    np.testing.assert_allclose(prior.mean(axis=0), 0, atol=0.1)
    np.testing.assert_allclose(prior.std(axis=0), 1, atol=0.1)
    held = shapes.vectors([str(i) for i in range(60)])
    drawn = np.stack([one.array for one in space.sample(4000, of="posterior", seed=1)])
    np.testing.assert_allclose(drawn.mean(axis=0), held.mean(axis=0), atol=0.3)
    np.testing.assert_allclose(drawn.std(axis=0), held.std(axis=0), rtol=0.25)
    np.testing.assert_array_equal(space.sample(3, seed=4)[2].array, space.sample(3, seed=4)[2].array)
    assert not np.array_equal(space.sample(1, seed=4)[0].array, space.sample(1, seed=5)[0].array)
    assert space.sample(1)[0].decode().size == (16, 16)
    plain = store.collection("plain", encoder="none")
    plain.add([{"key": str(i), "vector": np.random.default_rng(i).standard_normal(4)} for i in range(30)])
    with pytest.raises(InvalidInput, match="has no prior; take of=.posterior"):
        plain.space().sample(2)
    assert len(plain.space().sample(2, of="posterior")) == 2
    for options, told in (({"n": 0}, "n is 0"), ({"of": "x"}, "of is 'x'")):
        with pytest.raises(InvalidInput, match=told):
            space.sample(**options)


def test_what_is_decoded_is_kept_as_records(shapes, store, people_model):
    points = shapes.space().sample(5, seed=2)
    report = shapes.keep_decoded(points, "drawn", about={"of": "prior", "seed": 2})
    drawn = store.collection("drawn")
    assert report.added == 5 and drawn.space().dim == shapes.space().dim
    record = drawn.get("prior-2-3")
    assert record.metadata == {"of": "prior", "seed": 2, "number": 3, "decoded_from": "shapes/vae"}
    assert np.asarray(record.image()).tolist() == np.asarray(points[3].decode()).tolist()
    assert shapes.keep_decoded(points, "drawn", about={"of": "prior", "seed": 2}).unchanged == 5
    rows = store.collection("rows", encoder=str(people_model))
    rows.add([{"key": str(i), "row": row} for i, row in enumerate(people(30))])
    assert rows.keep_decoded(rows.space().sample(3), "more").added == 3
    assert set(store.collection("more").get("point-1").row) == set(people(1)[0])
    shapes.add_space("turned", reduce="pca", dim=shapes.space().dim)
    turned = shapes.keep_decoded([shapes.space("turned")["4"]], "turned", about={"n": 1})
    assert turned.added == 1 and np.asarray(store.collection("turned").get("1-0").image()).shape == (16, 16)
    with pytest.raises(InvalidInput, match="no points to keep"):
        rows.keep_decoded([], "none")


def test_a_strip_holds_what_was_decoded(shapes, tmp_path):
    rows = [[one.decode() for one in shapes.space().interpolate("1", "2", 5)] for _ in range(2)]
    save_strip(rows, tmp_path / "strip.png")
    with Image.open(tmp_path / "strip.png") as strip:
        assert strip.size == (5 * 96 + 4 * 2, 2 * 96 + 2)
        assert strip.crop((0, 0, 96, 96)).resize((16, 16), Image.Resampling.NEAREST).tobytes() == rows[0][0].tobytes()
    save_strip(rows[:1], tmp_path / "walk.gif")
    with Image.open(tmp_path / "walk.gif") as walk:
        assert walk.n_frames == 8  # to and fro
    save_strip(rows, tmp_path / "strip.webp")
    save_strip(rows[:1], tmp_path / "walk.webp", moving=True)
    with Image.open(tmp_path / "walk.webp") as walk, Image.open(tmp_path / "strip.webp") as still:
        assert (walk.n_frames, walk.size, still.size) == (8, (96, 96), (488, 194))
    with pytest.raises(InvalidInput, match="cannot move"):
        save_strip(rows, tmp_path / "walk.png", moving=True)
    for file, told in (("strip.txt", "must end in .png"), ("absent/strip.png", "there is no folder")):
        with pytest.raises(InvalidInput, match=told):
            save_strip(rows, tmp_path / file)
    with pytest.raises(InvalidInput, match="is no picture"):
        save_strip([[{"age": 3}]], tmp_path / "row.png")
    (tmp_path / "dir.png").mkdir()
    with pytest.raises(StorageFailed, match="cannot be written"):
        save_strip(rows, tmp_path / "dir.png")
