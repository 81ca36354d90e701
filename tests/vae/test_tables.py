"""Rows of a table: their columns are fixed once, what does not match is refused, and each kind is given back."""

import datetime
import json
import math

import numpy as np
import pytest
import torch
from sklearn.preprocessing import PowerTransformer

import embedstore
from embedstore import InvalidInput, InvalidRecord
from embedstore.vae.table_columns import ColumnKind, TableSchema, numbers_of, yeo_johnson, yeo_johnson_inverse
from embedstore.vae.table_network import TableArchitecture, TableNetwork
from embedstore.vae.table_training import TABLE_SETTINGS, train_table
from vae.made import people


def table(**columns):
    """Rows of columns."""
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def kinds(rows):
    return {column.name: column.kind.value for column in TableSchema.fit(rows).columns}


def test_kinds_of_columns_are_told_by_their_values():
    n = 60
    rows = table(
        number=[i * 0.5 for i in range(n)], whole=list(range(n)), flag=[i % 2 == 0 for i in range(n)],
        few=[f"c{i % 3}" for i in range(n)], many=[f"text number {i} of a kind" for i in range(n)],
        day=[f"2020-01-{1 + i % 28:02}" for i in range(n)],
        moment=[datetime.datetime(2020, 1, 1 + i % 28) for i in range(n)],
        nothing=[None] * n, some=[None if i % 2 else 3.0 + i for i in range(n)],
    )  # fmt: skip
    assert kinds(rows) == {
        "number": "number", "whole": "number", "flag": "category", "few": "category", "many": "text", "day": "date",
        "moment": "date", "nothing": "empty", "some": "number",
    }  # fmt: skip


@pytest.mark.parametrize("exponent", [-1.5, 0.0, 0.3, 1.0, 2.0, 3.0])
def test_the_transform_of_numbers_is_that_of_scikit_learn_and_leads_back(exponent):
    values = np.random.default_rng(0).standard_normal(200) * 2
    theirs = PowerTransformer(standardize=False)
    theirs.fit(values[:, None])
    theirs.lambdas_ = np.array([exponent])
    np.testing.assert_allclose(yeo_johnson(values, exponent), theirs.transform(values[:, None])[:, 0], atol=1e-9)
    np.testing.assert_allclose(yeo_johnson_inverse(yeo_johnson(values, exponent), exponent), values, atol=1e-6)


def test_features_lead_back_to_the_row_they_were_made_of():
    rows = people(200)
    schema = TableSchema.fit(rows)
    features, n_unknown = schema.transform(rows)
    assert n_unknown == 0 and features.shape == (200, schema.width)
    for row, back in zip(rows, schema.rows_of(features), strict=True):
        assert {name: row[name] for name in ("sex", "smokes", "city", "born")} == {
            name: back[name] for name in ("sex", "smokes", "city", "born")
        }
        assert back["height"] == pytest.approx(row["height"], abs=0.05)
    height = schema.columns[1]
    assert numbers_of(height, np.array([1e6, -1e6])).tolist() == [height.greatest, height.least]


def test_a_category_that_was_not_seen_is_any_other_and_counted():
    schema = TableSchema.fit(people(100))
    features, n_unknown = schema.transform([{**people(1)[0], "city": "Lima"}, {**people(1)[0], "city": None}])
    assert n_unknown == 1
    assert not np.array_equal(features[0], features[1])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sex": ...}, "the row lacks 'sex'; the model was trained on the columns sex, height, weight, smokes, born"),
        ({"age": 3}, "the row has 'age' too"),
        ({"sex": ..., "age": 3}, "the row lacks 'sex' and has 'age' too"),
        ({"height": "tall"}, "the column 'height' holds text 'tall'; when the model was trained it held number"),
        ({"city": 5}, "the column 'city' holds number '5'; when the model was trained it held text"),
        ({"smokes": 1}, "the column 'smokes' holds number '1'; when the model was trained it held boolean"),
        ({"height": math.inf}, "the column 'height' holds inf; every number must be finite"),
        ({"height": float("1e999")}, "the column 'height' holds inf"),
        ({"height": 10**400}, "the column 'height' holds a whole number beyond 1e100"),
        ({"born": "soon"}, "the column 'born' holds 'soon', which is no date"),
        ({"city": ["Oslo"]}, "the column 'city' holds list; a table holds numbers, texts, booleans, dates, and nulls"),
    ],
)
def test_a_row_that_does_not_match_is_refused_with_names(change, said):
    schema = TableSchema.fit(people(100))
    row = {name: value for name, value in {**people(1)[0], **change}.items() if value is not ...}
    with pytest.raises(InvalidInput, match=said):
        schema.check(row)


def test_unknown_categories_are_counted_and_told_when_rows_come_in(store, run_cli, people_model):
    rows = [{**row, "city": "Lima" if i < 3 else row["city"]} for i, row in enumerate(people(10))]
    folk = store.collection("folk", encoder=str(people_model))
    report = folk.add([{"key": str(i), "row": row} for i, row in enumerate(rows)])
    assert report.unknown == 3 and "3 values of unknown categories" in str(report)
    assert folk.count("city = 'Lima'") == 3 and folk.get("0").row["city"] == "Lima"
    lines = "".join(json.dumps({"key": f"n{i}", **row}) + "\n" for i, row in enumerate(rows))
    done = run_cli("ingest", "folk", "-", stdin=lines)
    assert "3 value(s) are of categories that the model had not seen, and count as any other" in done.stderr


def test_columns_named_as_a_records_own_fields_are_columns_all_the_same(store, tmp_path):
    columns = {"uri": "abc", "vector": "left", "metadata": "plain", "text": "words", "key": 3.0, "n": 1.0}
    rows = [{**columns, "n": float(i % 5), "vector": "right" if i % 2 else "left"} for i in range(30)]
    train_table(rows, tmp_path / "model", architecture=TableArchitecture(2, 8, 1))
    odd = store.collection("odd", encoder=str(tmp_path / "model"))
    odd.add([{"key": "a", "row": rows[1], "uri": "file:a", "n": 9}])
    record = odd.get("a")
    assert record.row == rows[1] and record.uri == "file:a"
    assert record.metadata == {**rows[1], "n": 9} and odd.count("vector = 'right'") == 1


def test_a_row_that_is_known_in_part_is_one_with_missing_values():
    schema = TableSchema.fit(people(100))
    schema.check({"height": 180.0}, partial=True)
    with pytest.raises(InvalidInput, match="has 'age' too"):
        schema.check({"age": 3}, partial=True)
    whole = dict.fromkeys(schema.names) | {"height": 180.0}
    np.testing.assert_array_equal(schema.transform([{"height": 180.0}])[0], schema.transform([whole])[0])


def test_the_likelihood_counts_each_column_by_its_kind():
    rows = [*people(50), {**people(1)[0], "height": None}]
    schema = TableSchema.fit(rows)
    features = torch.from_numpy(schema.transform(rows)[0])
    network = TableNetwork(TableArchitecture(latent_dim=2, hidden=4, layers=1), schema.columns)
    decoded = torch.randn(len(rows), schema.width)
    expected = torch.zeros(len(rows))
    for start, column in zip(schema.starts, schema.columns, strict=False):
        middle, end = start + column.n_gaussian, start + column.width
        categorical = torch.distributions.OneHotCategorical(logits=decoded[:, middle:end])
        expected += categorical.log_prob(features[:, middle:end])
        if column.n_gaussian:
            deviation = torch.exp(network.log_deviation[start:middle])
            normal = torch.distributions.Normal(decoded[:, start:middle], deviation)
            expected += normal.log_prob(features[:, start:middle]).sum(1) * (1 - features[:, end - 1])
    torch.testing.assert_close(network.log_likelihood(decoded, features), expected)


def test_a_network_starts_as_a_principal_component_analysis():
    from sklearn.decomposition import PCA

    schema = TableSchema.fit(people(300))
    features = schema.transform(people(300))[0]
    network = TableNetwork(TableArchitecture(latent_dim=4, hidden=8), schema.columns)
    network.start_from(features)
    with torch.inference_mode():
        means = network.encode(torch.from_numpy(features))[0].numpy()
        back = network.decode(torch.from_numpy(means)).numpy()
    theirs = PCA(4, whiten=True).fit(features)
    np.testing.assert_allclose(np.abs(means), np.abs(theirs.transform(features)), atol=0.02)
    np.testing.assert_allclose(back, theirs.inverse_transform(theirs.transform(features)), atol=1e-3)


def test_hidden_columns_are_as_missing_ones():
    schema = TableSchema.fit(people(50))
    features = torch.from_numpy(schema.transform(people(50))[0])
    network = TableNetwork(TableArchitecture(latent_dim=2, hidden=4), schema.columns)
    nothing = schema.transform([dict.fromkeys(schema.names)])[0]
    torch.testing.assert_close(network.hidden(features, 1.0), torch.from_numpy(nothing).expand(50, -1))
    torch.testing.assert_close(network.hidden(features, 0.0), features)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "there are 0 rows to learn from; at least 10 are needed"),
        (people(2), "there are 2 rows to learn from"),
        (people(1) * 50, "all 50 rows are the same, so there is nothing to learn"),
        (table(a=[None] * 20, b=[None] * 20), "no column holds any value, so there is nothing to learn"),
        (table(a=[1.0, math.inf] * 10), "the column 'a' holds infinity, NaN or a number beyond"),
        (table(a=[1e308, -1e308] * 10), "the column 'a' holds infinity, NaN or a number beyond 1e\\+100"),
        (table(a=[10**400, 1] * 10), "the column 'a' holds a whole number that is too large; leave it out"),
        ([1] * 20, "a row is a mapping of columns to values, not int"),
        (table(a=[1, "x"] * 10), "the column 'a' holds number and text; a column is of one type"),
        ([*people(20), {"sex": "f"}], "row 21 has other columns than row 1: born, city, height, smokes, weight"),
    ],
)
def test_rows_that_nothing_can_be_learned_of_are_refused(tmp_path, rows, said):
    with pytest.raises(InvalidInput, match=said):
        train_table(rows, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_many_categories_texts_and_an_empty_column_are_learned_and_kept_without_pickle(tmp_path):
    from dataclasses import replace

    rows = table(
        code=[f"code-{i % 10_000}" for i in range(12_000)], empty=[None] * 12_000,
        size=[float(i % 7) for i in range(12_000)],
    )  # fmt: skip
    settings = replace(TABLE_SETTINGS, epochs=1)
    report = train_table(rows, tmp_path / "model", settings=settings, architecture=TableArchitecture(4, 16, 1))
    assert report.empty_columns == ["empty"]
    encoder = embedstore.encoders.load_encoder(str(tmp_path / "model"))
    one, other, same = encoder.encode([encoder.prepare(rows[i]) for i in (1, 2, 1)]).vectors
    np.testing.assert_allclose(one, same, atol=1e-5)
    assert not np.allclose(one, other)
    assert encoder.decode(np.stack([one]))[0]["code"] is None
    assert {path.suffix for path in (tmp_path / "model").iterdir()} == {".json", ".safetensors", ".md", ".html"}


def test_rows_are_stored_found_by_part_of_a_row_filtered_and_decoded(store, people_model):
    rows = people(200, seed=4)
    folk = store.collection("folk", encoder=str(people_model))
    folk.add([{"key": str(i), "row": row, "group": i % 3} for i, row in enumerate(rows)])
    assert folk.get("7").row == rows[7] and folk.get("7").metadata["group"] == 1
    assert folk.count("sex = 'f'") == sum(row["sex"] == "f" for row in rows)
    assert folk.space().metric.value == "euclidean"
    assert folk.search(rows[9], k=1).keys == ["9"]
    women, men = (folk.search({"sex": sex}, k=20) for sex in ("f", "m"))
    n_women, n_among_men = (sum(hit.record.row["sex"] == "f" for hit in hits) for hits in (women, men))
    assert n_women > 10 > n_among_men
    assert all(hit.record.metadata["group"] == 2 for hit in folk.search(rows[9], k=10, where="group = 2"))
    back = folk.space()["9"].decode()
    assert back["sex"] == rows[9]["sex"] and abs(back["height"] - rows[9]["height"]) < 12
    with pytest.raises(InvalidRecord, match="row 1, field 'row': the row lacks 'city'"):
        folk.add([{"key": "x", "row": {name: rows[0][name] for name in rows[0] if name != "city"}}])
    with pytest.raises(InvalidInput, match="reads row; the query is a text"):
        folk.search("hello")
    assert store.verify().ok and len(folk) == 200


def test_a_frame_and_a_file_are_ingested_as_rows(store, tmp_path, people_model):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([{"key": f"p{i}", **row} for i, row in enumerate(people(30))])
    folk = store.collection("folk", encoder=str(people_model))
    assert folk.ingest(frame).added == 30
    assert folk.get("p3").row == people(30)[3] and folk.get("p3").metadata["sex"] == people(30)[3]["sex"]
    assert folk.count("height > 170") == sum(row["height"] > 170 for row in people(30))
    frame.assign(note="x").to_csv(tmp_path / "more.csv", index=False)
    with pytest.raises(InvalidRecord, match="the row has 'note' too"):
        folk.ingest(tmp_path / "more.csv")
    assert folk.ingest(tmp_path / "more.csv", metadata=["note"]).updated == 30
    assert folk.get("p3").metadata["note"] == "x" and folk.get("p3").row == people(30)[3]


def test_tables_are_trained_on_and_searched_from_the_command_line(run_cli, tmp_path):
    lines = ["key,sex,height,weight"]
    lines += [f"{i},{row['sex']},{row['height']},{row['weight']}" for i, row in enumerate(people(120))]
    (tmp_path / "people.csv").write_text("\n".join(lines) + "\n")

    def run(*arguments, code=0):
        done = run_cli(*arguments)
        assert done.returncode == code, done.stderr
        return done

    trained = run("train", "table", "people.csv", "--out", "model", "--latent-dim", "3", "--epochs", "2").stdout
    assert "rows                       120\n" in trained and "columns                    3\n" in trained
    assert "encoded     120\n" in run("-q", "ingest", "people", "people.csv", "--encoder", "model").stdout
    found = run("--format", "csv", "search", "people", "--row", '{"sex": "f", "height": 165}', "-k", "2").stdout
    assert len(found.splitlines()) == 3
    assert "has 'foo' too" in run("search", "people", "--row", '{"foo": 1}', code=2).stderr
    assert "cannot be read as JSON" in run("search", "people", "--row", "{", code=2).stderr
    assert "trained on the columns" in run("search", "people", "--row", '{"foo": 1}', code=2).stderr
    wrong = run("train", "table", "people.csv", "--out", "m", "--columns", "height,wieght", code=2).stderr
    assert "there is no column 'wieght'; there are key, sex, height, weight" in wrong


def test_dates_at_the_ends_of_time_and_points_far_away_decode_to_something():
    ends = ["0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59.999999"]
    schema = TableSchema.fit(table(day=ends * 10, n=list(range(20)), word=["unknown", "2020-01-01"] * 10))
    assert [column.kind for column in schema.columns] == [ColumnKind.DATE, ColumnKind.NUMBER, ColumnKind.CATEGORY]
    rows = schema.rows_of(np.array([[9e9] * schema.width, [-3e38] * schema.width], np.float32))
    assert rows[0]["day"].startswith("9999-12-3") and 0 <= rows[0]["n"] <= 19


def test_a_training_of_categories_alone_goes_on_where_it_was(tmp_path):
    from dataclasses import replace

    from embedstore.vae.checkpoint import read_checkpoint
    from embedstore.vae.training import train

    schema = TableSchema.fit(table(a=["x", "y"] * 20, b=["p", "p", "q", "r"] * 10))
    features = schema.transform(table(a=["x", "y"] * 20, b=["p", "p", "q", "r"] * 10))[0]

    class Feed:
        def __len__(self):
            return len(features)

        def batch(self, places):
            return torch.from_numpy(features[places])

    settings = replace(TABLE_SETTINGS, epochs=1, batch=8)
    train(TableNetwork(TableArchitecture(2, 8, 1), schema.columns), Feed(), settings, folder=tmp_path, identity={})
    assert read_checkpoint(tmp_path, {}) is not None
    more = replace(settings, epochs=3)
    found = train(TableNetwork(TableArchitecture(2, 8, 1), schema.columns), Feed(), more, folder=tmp_path, identity={})
    assert [one.number for one in found.epochs] == [1, 2, 3]


def test_columns_are_read_as_the_model_has_them_and_their_odd_cells_refused(store, people_model, tmp_path):
    rows = people(40)
    names = list(rows[0])
    cells = [["" if row[name] is None else str(row[name]) for name in names] for row in rows]
    lines = [",".join(line) for line in [names, *cells]]
    odd = lines[7].split(",")
    numeric = next(name for name in names if isinstance(rows[6][name], (int, float)) and rows[6][name] is not True)
    odd[names.index(numeric)] = "heavy"
    lines[7] = ",".join(odd)
    path = tmp_path / "odd.csv"
    path.write_text("\n".join(lines) + "\n")
    report = store.collection("people", encoder=str(people_model)).ingest(str(path), on_error="skip")
    assert (report.added, report.failed) == (39, 1)
    assert "row 7" in report.errors[0] and "'heavy' is not of the type number" in report.errors[0]
    with pytest.raises(InvalidInput, match="row 7"):
        store.collection("again", encoder=str(people_model)).ingest(str(path))
    assert "again" not in store.collections()


def test_a_column_of_which_few_cells_make_text_is_told(run_cli, tmp_path):
    lines = ["a,b", *(f"{i / 7:.3f},{'xyz'[i % 3]}" for i in range(60))]
    (tmp_path / "one.csv").write_text("\n".join([*lines, "inf,x"]) + "\n")
    done = run_cli("train", "table", "one.csv", "--out", "model", "--epochs", "1")
    assert done.returncode == 0
    assert "the column 'a' is learned as text because of cells such as 'inf'" in done.stderr
    assert "column 'b'" not in done.stderr
    done = run_cli("train", "table", "one.csv", "--out", "model2", "--epochs", "1", "--type", "a=number")
    assert done.returncode == 2 and "row 61, field 'a': 'inf' is not of the type number" in done.stderr
