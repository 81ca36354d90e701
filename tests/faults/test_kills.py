"""After kill -9 at any step a store holds what was acknowledged, and the operation in flight whole or not at all."""

import sqlite3
from contextlib import closing

import pytest

import embedstore
from embedstore.failpoints import NAMES
from faults import kills
from faults.oracle import Violation, acceptable, check
from faults.plans import Planner, given, states_within


@pytest.fixture
def campaign(request):
    with kills.Campaign(len(request.node.name), n_operations=9, largest=60) as opened:
        yield opened


def test_kills_at_random_moments_lose_nothing_that_was_acknowledged(campaign):
    kills.random_kills(campaign, 8)
    assert campaign.faults == []


@pytest.mark.parametrize("prefix", sorted({name.partition(".")[0] for name in NAMES} - {*kills.ELSEWHERE}))
def test_a_kill_at_every_failpoint_loses_nothing_that_was_acknowledged(campaign, prefix):
    names = [name for name in NAMES if name.startswith(f"{prefix}.")]
    assert kills.failpoint_kills(campaign, 1, names) == dict.fromkeys(names, 1)
    assert campaign.faults == []


def test_every_failpoint_has_a_scenario():
    prefixes = {name.partition(".")[0] for name in NAMES}
    assert prefixes == {*kills.SCENARIOS, *kills.ELSEWHERE}


def filled(folder):
    """A store after a plan without its last operations, and the states of the plan."""
    plan = [
        {"verb": "create", "collection": "first", "dim": 8, "metric": "cosine"},
        {"verb": "add", "collection": "first", "dim": 8, "metric": "cosine", "records": [[n, 1] for n in range(30)]},
    ]
    state = states_within(states_within({}, plan[0])[-1], plan[1])[-1]
    with embedstore.open(folder) as store:
        collection = store.collection("first", encoder="none", metric="cosine", dim=8)
        collection.add(given(number, 1, 8) for number in range(30))
    return plan, state


def test_the_oracle_accepts_what_was_acknowledged_and_what_was_in_flight(tmp_path):
    plan, state = filled(tmp_path / "store")
    assert check(tmp_path / "store", acceptable(plan, 1, 2, {}), seed=1)[0] == state
    with pytest.raises(Violation, match="none of the states"):
        check(tmp_path / "store", acceptable(plan, 2, 2, {}), seed=1)  # it has one record more by now


@pytest.mark.parametrize(
    "loss",
    [
        "DELETE FROM vectors WHERE vector_id = (SELECT max(vector_id) FROM vectors)",
        "DELETE FROM records WHERE key = 'k7'",
        "UPDATE records SET content = 'other' WHERE key = 'k7'",
        "UPDATE records SET metadata = '{}' WHERE key = 'k7'",
        "UPDATE vectors SET vec = zeroblob(32) WHERE vector_id = (SELECT min(vector_id) FROM vectors)",
        "UPDATE commits SET digest = zeroblob(16) WHERE commit_key = (SELECT max(commit_key) FROM commits)",
        "UPDATE commits SET spaces = json_set(spaces, '$.1[2]', '00000000000000000000000000000000')"
        " WHERE commit_key = (SELECT max(commit_key) FROM commits WHERE commit_key < 2 * 1099511627776)",
        "UPDATE commits SET n_records = 29 WHERE commit_key = (SELECT max(commit_key) FROM commits)",
    ],
)
def test_the_oracle_notices_every_loss(tmp_path, loss):
    plan, _ = filled(tmp_path / "store")
    with closing(sqlite3.connect(tmp_path / "store" / "store.db", isolation_level=None)) as database:
        assert database.execute(loss).rowcount == 1
    with pytest.raises(Violation):
        check(tmp_path / "store", acceptable(plan, 2, 2, {}), seed=1)


def test_the_oracle_notices_half_of_an_operation(tmp_path):
    plan, state = filled(tmp_path / "store")
    half = {"verb": "delete", "collection": "first", "numbers": list(range(10))}
    with embedstore.open(tmp_path / "store") as store:
        store.collection("first").delete([f"k{number}" for number in range(5)])
    with pytest.raises(Violation, match=r"it may be in: first lacks 0 .* 5 more .*; or: first lacks 5"):
        check(tmp_path / "store", acceptable([*plan, half], 2, 3, {}), seed=1)


def test_plans_are_drawn_from_their_seed():
    assert Planner(3).plan(40) == Planner(3).plan(40)
    assert Planner(3).plan(40) != Planner(4).plan(40)
