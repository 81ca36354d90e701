"""What is done side by side comes in order, on one thread or many, with its errors."""

import threading
import time

import pytest

from embedstore.side_by_side import side_by_side


@pytest.mark.parametrize("seconds", [0.0, 0.002])
def test_results_come_in_order(seconds):
    def work(part):
        time.sleep(seconds)
        return part * 2

    for n in (0, 1, 8, 9, 100):
        assert side_by_side(list(range(n)), work) == [2 * part for part in range(n)]


def test_work_that_takes_long_is_shared_and_short_work_is_not():
    seen = {}

    def work(part):
        time.sleep(seen["seconds"])
        return threading.get_ident()

    seen["seconds"] = 0.0
    assert set(side_by_side(list(range(100)), work)) == {threading.get_ident()}
    seen["seconds"] = 0.005
    assert len(set(side_by_side(list(range(100)), work))) > 1


@pytest.mark.parametrize("at", [0, 50])
def test_errors_are_raised(at):
    def work(part):
        time.sleep(0.001)
        if part == at:
            raise ValueError(part)

    with pytest.raises(ValueError, match=str(at)):
        side_by_side(list(range(100)), work)
