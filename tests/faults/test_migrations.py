"""An upgrade that is killed or raced leaves the old tables or the new ones, with everything in them."""

from random import Random

import pytest

from faults.migrations import POSTGRES_STEPS, SQLITE_STEPS, after_a_kill, copy_old, load_old, race


@pytest.mark.parametrize("step", SQLITE_STEPS)
def test_an_upgrade_that_is_killed_is_made_up_for(tmp_path, step):
    copy_old(tmp_path / "store")
    assert after_a_kill(tmp_path / "store", None, step) == []


@pytest.mark.parametrize("seed", range(2))
def test_an_upgrade_that_is_killed_at_any_moment_is_made_up_for(tmp_path, seed):
    copy_old(tmp_path / "store")
    assert after_a_kill(tmp_path / "store", None, "", delay=Random(seed).uniform(0.4, 1.0)) == []


def test_of_many_processes_one_upgrades_and_readers_see_old_or_new(tmp_path):
    copy_old(tmp_path / "store")
    assert race(tmp_path / "store", None, n_openers=3, n_watchers=1) == []


@pytest.mark.postgres
@pytest.mark.parametrize("step", POSTGRES_STEPS)
def test_an_upgrade_of_postgres_that_is_killed_is_made_up_for(tmp_path, fresh_database, step):
    load_old(fresh_database)
    assert after_a_kill(tmp_path, fresh_database, step) == []


@pytest.mark.postgres
def test_of_many_processes_one_upgrades_postgres(tmp_path, fresh_database):
    load_old(fresh_database)
    assert race(tmp_path, fresh_database, n_openers=3, n_watchers=1) == []
