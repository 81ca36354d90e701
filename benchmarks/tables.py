"""What 16 numbers of a table autoencoder are worth, beside PCA and TruncatedSVD of the same preprocessing.

One column of each table is left out of the vectors and predicted from them, by logistic regression and by the 15
nearest neighbours, in five stratified folds; the latter with each dimension standardised, and as the vectors are.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path

import numpy as np
from report import save
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from embedstore.ingesting.sources import open_sources
from embedstore.vae.table_model import checked_features, load_table_model
from embedstore.vae.table_training import train_table

DATA = Path(os.environ.get("EMBEDSTORE_DATA", Path(__file__).resolve().parents[1] / "../shared/data"))
DIM, MOST_ROWS = 16, 8000


def tables() -> dict[str, tuple[list[dict], str, tuple[str, ...]]]:
    """By name the rows, the column to be predicted, and those that give it away."""
    found = {
        "penguins": (_rows(DATA / "seaborn/penguins.csv"), "species", ()),
        "titanic": (_rows(DATA / "seaborn/titanic.csv"), "survived", ("alive",)),
        "diamonds": (_rows(DATA / "seaborn/diamonds.csv"), "cut", ()),
    }
    adult = (DATA / "tabular_uci/adult-train.csv").read_text().splitlines()
    german = (DATA / "tabular_uci/german.csv").read_text().splitlines()
    found["adult"] = (_headless(adult), "c14", ())
    found["german"] = (_headless(german), "c20", ())
    return found


def _rows(path: Path) -> list[dict]:
    (source,) = open_sources([path])
    return [row.fields for row in source.rows()]


def _headless(lines: list[str]) -> list[dict]:
    """Rows of a file without a header; '?' is a missing value, and a column of numbers is one."""
    cells = [[one.strip().strip("'") for one in line.split(",")] for line in lines if line.strip()]
    columns = []
    for column in zip(*cells, strict=True):
        given = [None if value == "?" else value for value in column]
        try:
            columns.append([None if value is None else float(value) for value in given])
        except ValueError:
            columns.append(given)
    names = [f"c{place}" for place in range(len(columns))]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def accuracies(vectors: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    models = {
        "logistic": make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        "15-nn": make_pipeline(StandardScaler(), KNeighborsClassifier(15)), "15-nn unscaled": KNeighborsClassifier(15),
    }  # fmt: skip
    return {
        name: round(float(cross_val_score(one, vectors, labels, cv=folds).mean()), 4) for name, one in models.items()
    }


def main() -> None:
    """Measure and keep the figures."""
    warnings.simplefilter("ignore")
    figures: dict[str, dict] = {}
    for name, (rows, target, given_away) in tables().items():
        rows = [row for row in rows if row[target] is not None]
        if len(rows) > MOST_ROWS:
            chosen = np.random.default_rng(0).choice(len(rows), MOST_ROWS, replace=False)
            rows = [rows[place] for place in sorted(chosen.tolist())]
        labels = np.asarray([str(row[target]) for row in rows], dtype="U")
        known = [{key: row[key] for key in row if key != target and key not in given_away} for row in rows]
        with tempfile.TemporaryDirectory() as folder:
            report = train_table(known, Path(folder) / "model")
            model = load_table_model(Path(folder) / "model")
        features = checked_features(model.schema, known)
        n = min(DIM, features.shape[1] - 1)
        figures[name] = {
            "rows": len(rows), "features": features.shape[1],
            "autoencoder": accuracies(model.encode(features)[0], labels),
            "PCA": accuracies(PCA(n, random_state=0).fit_transform(features), labels),
            "TruncatedSVD": accuracies(TruncatedSVD(n, random_state=0).fit_transform(features), labels),
            "mean_numeric_r2": report.to_dict()["mean_numeric_r2"],
            "mean_categorical_accuracy": report.to_dict()["mean_categorical_accuracy"],
        }
        print(name, figures[name], flush=True)
    mean = {}
    for way in ("autoencoder", "PCA", "TruncatedSVD"):
        kinds = ("logistic", "15-nn", "15-nn unscaled")
        found = {kind: [one[way][kind] for one in figures.values()] for kind in kinds}
        mean[way] = {kind: round(float(np.mean(values)), 4) for kind, values in found.items()}
    print("mean", mean)
    save("tables", {**figures, "mean": mean})


if __name__ == "__main__":
    main()
