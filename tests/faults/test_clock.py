"""No answer depends on the clock: it may run backwards."""

import datetime
import os
import time
from itertools import count

import pytest
from stores.write import answers, contents, fill

import embedstore
from embedstore.storage import catalog

DAY = 86_400


def run_backwards(monkeypatch):
    """Set the clock back by a year, and by a further day whenever somebody looks at it."""
    days = count(365)
    begun = time.time()
    monkeypatch.setattr(time, "time", lambda: begun - next(days) * DAY)
    monkeypatch.setattr(time, "time_ns", lambda: int((begun - next(days) * DAY) * 1e9))

    class Backwards(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromtimestamp(begun - next(days) * DAY, tz)

    monkeypatch.setattr(catalog.datetime, "datetime", Backwards)


@pytest.mark.parametrize("moment", ["from the beginning", "half way"])
def test_a_clock_that_runs_backwards_changes_nothing(tmp_path, monkeypatch, moment):
    found = []
    for name in ("forwards", "backwards"):
        files = tmp_path / name
        files.mkdir()
        if name == "backwards" and moment == "from the beginning":
            run_backwards(monkeypatch)
        with embedstore.open(files / "store") as store:
            fill(store, files)
            before = answers(store)
        if name == "backwards":
            if moment == "half way":
                run_backwards(monkeypatch)
            for path in (files / "store").rglob("*"):
                os.utime(path, (0, 0))  # what is on disk is then from the future, or from long ago
        with embedstore.open(files / "store") as store:
            store.collection("points").update([{"key": "origin", "later": True}])
            store.collection("words").upsert([{"key": "w00", "text": "a bad decade"}])
            store.collection("far").delete(["f3"])
            store.collection("far").index(recipe="hnsw")
            store.compact()
            assert store.verify().problems == []
            found.append((before, contents(store), answers(store)))
        monkeypatch.undo()
    assert found[0] == found[1]
