"""Random sequences of operations and failures leave a store as its model says."""

import logging

import pytest
from hypothesis.stateful import run_state_machine_as_test

from faults.machine import StoreMachine, limits, workers


@pytest.fixture(autouse=True)
def quiet():
    """Damaged caches are told by warnings, which are expected here."""
    logger = logging.getLogger("embedstore")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)
    workers.end()


def test_a_store_is_what_its_model_says_after_any_sequence_of_operations():
    run_state_machine_as_test(StoreMachine, settings=limits(20, 25, derandomize=True))
