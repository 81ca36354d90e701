"""Vectors that come as columns of numbers, or as the rows of a matrix in a file of NumPy's."""

import numpy as np
import pytest

from embedstore import InvalidInput, InvalidRecord

CITIES = "name,lat,lon,people\nparis,48.85,2.35,2.1\nlyon,45.76,4.83,0.5\nnice,43.7,7.26,0.3\n"


@pytest.fixture
def cities(tmp_path):
    path = tmp_path / "cities.csv"
    path.write_text(CITIES)
    return path


def empty(store):
    return store.collection("c", encoder="none", metric="euclidean")


@pytest.mark.parametrize("named", ["lat,lon", "lat, lon", ["lat", "lon"], "l*", ["l*", "lon"]])
def test_columns_make_a_vector_and_stay_to_be_filtered_by(store, cities, named):
    collection = empty(store)
    assert collection.ingest(cities, key="name", vector=named).added == 3
    assert np.allclose(collection.vectors(["paris", "nice"]), [[48.85, 2.35], [43.7, 7.26]])
    assert collection.search([45.0, 5.0], 2, where="lat > 45").keys == ["lyon", "paris"]
    assert collection.get("lyon").metadata == {"lat": 45.76, "lon": 4.83, "people": 0.5}


def test_columns_come_in_the_order_in_which_they_are_named_and_others_can_be_left_out(store, cities):
    collection = empty(store)
    collection.ingest(cities, key="name", vector="people,lat", metadata=["lon"])
    assert np.allclose(collection.vectors(["paris"]), [[2.1, 48.85]])
    assert collection.get("paris").metadata == {"lon": 2.35}


def test_a_number_that_is_missing_is_told_with_its_row(store, cities):
    cities.write_text(CITIES + "nowhere,,1.0,0\n")
    with pytest.raises(InvalidRecord, match=r"row 4, field 'lat': .*'lat' is missing"):
        empty(store).ingest(cities, key="name", vector="lat,lon")
    assert not store.exists()
    report = empty(store).ingest(cities, key="name", vector="lat,lon", on_error="skip")
    assert (report.added, report.failed) == (3, 1) and "'lat' is missing" in report.errors[0]
    with pytest.raises(InvalidRecord, match="'name' is of type str"):
        store.collection("d", encoder="none").ingest(cities, vector="lat,name")


def test_numbers_of_numpy_and_a_column_alone_are_taken(store):
    rows = [{"key": str(i), "x": np.float32(i), "y": np.int64(2)} for i in range(3)]
    collection = empty(store)
    assert collection.ingest(rows, vector=["x", "y"]).added == 3
    assert np.array_equal(collection.vectors(["2"]), [[2, 2]])
    assert store.collection("one", encoder="none", metric="euclidean").ingest(rows, vector="x*,").added == 3
    for wrong in (5, [1, 2]):
        with pytest.raises(InvalidInput, match="it is the name of a field, or a list of names"):
            collection.ingest(rows, vector=wrong)


def test_a_column_that_is_not_there_is_named(store, cities):
    for named in ("lat,lom", "z*"):
        with pytest.raises(InvalidInput, match="no field '(lom|z\\*)', which was named for vector"):
            empty(store).ingest(cities, vector=named)


@pytest.mark.parametrize("dtype", ["uint8", "float16", ">f8", "int64"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_rows_of_a_matrix_are_records(store, tmp_path, dtype, order):
    matrix = np.random.default_rng(0).integers(0, 200, (1500, 12)).astype(dtype, order=order)
    np.save(tmp_path / "X.npy", matrix)
    collection = empty(store)
    assert collection.ingest(tmp_path / "X.npy").added == 1500
    assert np.array_equal(collection.vectors(["X.npy:1", "X.npy:1500"]), matrix[[0, -1]].astype(np.float32))
    assert collection.ingest(tmp_path / "X.npy").unchanged == 1500


def test_what_is_no_matrix_of_numbers_is_refused(store, tmp_path):
    collection = empty(store)
    cases = {
        "flat": (np.ones(3), "the shape \\(3,\\)"), "cube": (np.ones((2, 3, 4)), "the shape"),
        "bool": (np.ones((2, 3), bool), "holds bool"), "text": (np.array([["a"]]), "holds <U1"),
        "objects": (np.array([[None]], object), "cannot be read"),
    }  # fmt: skip
    for name, (array, said) in cases.items():
        np.save(tmp_path / f"{name}.npy", array, allow_pickle=True)
        with pytest.raises(InvalidInput, match=said):
            collection.ingest(tmp_path / f"{name}.npy")
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cube.npy").read_bytes()[:150])
    for name in ("empty", "cut"):
        with pytest.raises(InvalidInput, match="cannot be read"):
            collection.ingest(tmp_path / f"{name}.npy")
    np.save(tmp_path / "nan.npy", np.array([[1.0, 2.0], [np.nan, 1.0]]))
    with pytest.raises(InvalidRecord, match=r"nan\.npy, row 2"):
        collection.ingest(tmp_path / "nan.npy")
    with pytest.raises(InvalidInput, match="encoder none"):
        store.collection("texts").ingest(tmp_path / "nan.npy")
    assert not store.exists()


def test_a_folder_is_not_searched_for_matrices(store, tmp_path):
    (tmp_path / "a.csv").write_text("id,text\n1,abc\n")
    np.save(tmp_path / "cached.npy", np.ones((2, 2)))
    assert store.collection("t", encoder="letters").ingest(tmp_path).added == 1
