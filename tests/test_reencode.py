"""A space is made anew with another encoder: the old one serves meanwhile, and one commit changes their places."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from vae.made import people, squares

import embedstore
from embedstore import InvalidInput

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    """Another autoencoder of squares, of other weights and with more dimensions."""
    from vae.made import SMALL

    from embedstore.vae.image_training import train_image
    from embedstore.vae.training import TrainingSettings

    folder = tmp_path_factory.mktemp("models") / "other"
    train_image(squares(200)[0], folder, size=16, latent_dim=6, architecture=SMALL, settings=TrainingSettings(epochs=1))
    return folder


def shapes_of(store, model):
    shapes = store.collection("shapes", encoder=str(model))
    shapes.add([{"key": str(i), "image": picture, "n": i} for i, picture in enumerate(squares(60)[0])])
    return shapes


def test_a_space_has_the_vectors_of_the_new_encoder_and_its_name(any_store, square_model, other_model):
    shapes = shapes_of(any_store, square_model)
    before = shapes.space().space_id
    assert shapes.reencode(str(other_model)).updated == 60
    space = shapes.space()
    assert (space.name, space.dim, str(other_model) in space.describe()["encoder"]) == ("vae", 6, True)
    assert space.space_id != before and [one.name for one in shapes.spaces()] == ["vae"]
    expected = embedstore.encoders.load_encoder(str(other_model)).encode(list(squares(60)[0])).vectors
    np.testing.assert_allclose(shapes.vectors([str(i) for i in range(60)]), expected, atol=1e-5)
    assert shapes.search(squares(60)[0][9], k=1, where="n < 20").keys == ["9"]
    shapes.upsert([{"key": "new", "image": squares(61)[0][60]}])
    assert shapes.vectors(["new"]).shape == (1, 6) and any_store.verify().problems == []


def test_the_old_space_can_be_kept_and_dropped_later(store, square_model, other_model):
    shapes = shapes_of(store, square_model)
    old = shapes.vectors(["3"])
    shapes.reencode(str(other_model), keep=True)
    np.testing.assert_array_equal(shapes.vectors(["3"], space="vae.old"), old)
    with pytest.raises(InvalidInput, match="'vae' is the default space of 'shapes', which always has one"):
        shapes.drop_space("vae")
    assert shapes.drop_space("vae.old") == 60 and [one.name for one in shapes.spaces()] == ["vae"]
    assert store.verify().problems == [] and not (store.path / "cache" / "space-1").exists()


def test_what_cannot_be_encoded_again_is_refused_and_changes_nothing(store, square_model):
    shapes = shapes_of(store, square_model)
    points = store.collection("points", encoder="none")
    points.add([{"key": "a", "vector": [1.0]}])
    for collection, encoder, said in (
        (shapes, str(square_model), "is made by that very encoder"), (shapes, "letters", "does not read image"),
        (points, "letters", "were computed elsewhere"), (shapes, "none", "'none' encodes nothing"),
    ):  # fmt: skip
        with pytest.raises(InvalidInput, match=said):
            collection.reencode(encoder)
    assert [one.name for one in shapes.spaces()] == ["vae"]


def test_one_that_was_killed_is_gone_on_with_and_the_old_space_served_meanwhile(store, square_model, other_model):
    shapes = shapes_of(store, square_model)
    script = (
        "import sys, os, signal, embedstore\n"
        "from embedstore import making_spaces\n"
        "from embedstore.storing.committing import commit_missing_vectors\n"
        "making_spaces._PAGE = 25\n"
        "n = 0\n"
        "def commit(*given):\n"
        "    global n; n += 1\n"
        "    if n == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return commit_missing_vectors(*given)\n"
        "making_spaces.commit_missing_vectors = commit\n"
        "embedstore.open(sys.argv[1]).collection('shapes').reencode(sys.argv[2])\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, store.path, other_model], check=False,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'plugin'}"},
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    assert [one.name for one in shapes.spaces()] == ["vae", "vae.next"]
    assert shapes.search(squares(60)[0][9], k=1).keys == ["9"] and shapes.space().dim == 4
    shapes.delete(["59"])
    shapes.add([{"key": "late", "image": squares(70)[0][69]}])
    report = shapes.reencode(str(other_model))
    assert report.updated == 60 - 1 - 25  # but for what was done, deleted, or encoded when it was written
    assert [one.name for one in shapes.spaces()] == ["vae"] and shapes.space().dim == 6
    assert shapes.search(squares(70)[0][69], k=1).keys == ["late"] and store.verify().problems == []


def test_a_reader_of_another_process_follows_the_switch(store, square_model, other_model):
    shapes = shapes_of(store, square_model)
    with embedstore.open(store.path) as other:
        reader = other.collection("shapes")
        assert reader.search(squares(60)[0][5], k=1).keys == ["5"]
        shapes.reencode(str(other_model))
        assert reader.search(squares(60)[0][5], k=1).keys == ["5"] and reader.space().dim == 6


def test_a_space_of_that_name_that_is_not_of_this_encoder_is_left_alone(store, square_model, other_model):
    shapes = shapes_of(store, square_model)
    shapes.add_space("vae.next", encoder="none", dim=2)
    shapes.upsert([{"key": "0", "image": squares(60)[0][0], "vectors": {"vae.next": [1.0, 2.0]}}])
    with pytest.raises(InvalidInput, match="there is a space 'vae.next', not of this encoder; drop it first"):
        shapes.reencode(str(other_model))
    assert shapes.vectors(["0"], space="vae.next").tolist() == [[1.0, 2.0]]
    shapes.drop_space("vae.next")
    shapes.reencode(str(other_model))
    assert [one.name for one in shapes.spaces()] == ["vae"] and shapes.space().dim == 6


def test_an_encoder_that_cannot_encode_a_record_leaves_the_collection_as_it_was(store, people_model, tmp_path):
    from embedstore.vae.table_network import TableArchitecture
    from embedstore.vae.table_training import train_table

    train_table([{**row, "age": i} for i, row in enumerate(people(40))], tmp_path / "wider",
                architecture=TableArchitecture(3, 8, 1))  # fmt: skip
    folk = store.collection("folk", encoder=str(people_model))
    folk.add([{"key": str(i), "row": row} for i, row in enumerate(people(5))])
    with pytest.raises(InvalidInput, match="the row lacks 'age'"):
        folk.reencode(str(tmp_path / "wider"))
    assert [one.name for one in folk.spaces()] == ["vae"]
    assert folk.add([{"key": "new", "row": people(6)[5]}]).added == 1 and store.verify().ok
