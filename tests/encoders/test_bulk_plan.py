"""Claims about how many texts are divided: batches, threads, windows."""

import threading
import time

import numpy as np
import pytest

from embedstore.cores import count_cores, read_quota, usable_cores
from embedstore.encoders.ahead import one_ahead
from embedstore.encoders.batching import batches, run_all
from embedstore.encoders.threads import Plan, plan_bulk, tokenizing_threads, window_texts


def skewed_lengths(n):
    """Most texts short, a few cut at the limit: as in a folder of notes with some papers among them."""
    lengths = np.random.default_rng(0).lognormal(mean=3.2, sigma=1.0, size=n)
    return np.clip(lengths.astype(int) + 3, 3, 256).tolist()


def padding_share(lengths, groups):
    padded = sum(len(group) * max(lengths[position] for position in group) for group in groups)
    return 1 - sum(lengths) / padded


@pytest.mark.parametrize(("n_texts", "n_cores"), [(512, 2), (2048, 2), (65_536, 64)])
def test_less_than_three_percent_of_a_skewed_bulk_is_padding(n_texts, n_cores):
    lengths = skewed_lengths(n_texts)
    groups = batches(lengths, plan_bulk(sum(lengths), n_cores).tokens_per_batch)
    assert padding_share(lengths, groups) < 0.03
    in_order = [list(range(start, start + 32)) for start in range(0, n_texts, 32)]
    assert padding_share(lengths, in_order) > 0.5, "these lengths are skewed"


def test_a_batch_on_a_gpu_is_filled_too():
    lengths = skewed_lengths(16_384)
    groups = batches(lengths, 32_768)
    assert padding_share(lengths, groups) < 0.05
    assert len(groups) < 2.5 * sum(lengths) / 32_768


@pytest.mark.parametrize("tokens_per_batch", [1, 7, 128, 512])
def test_every_text_is_in_one_batch_that_holds_no_more_than_asked(tokens_per_batch):
    lengths = [*skewed_lengths(500), 0, 1, 256]
    groups = batches(lengths, tokens_per_batch)
    assert sorted(position for group in groups for position in group) == list(range(len(lengths)))
    for group in groups:
        longest = max(lengths[position] for position in group)
        assert len(group) == 1 or longest * len(group) <= tokens_per_batch


def test_texts_of_one_length_fill_their_batches():
    assert [len(group) for group in batches([64] * 20, 512)] == [8, 8, 4]


def test_vectors_come_back_in_the_order_of_their_texts():
    texts = [[number] * length for number, length in enumerate(skewed_lengths(300))]
    found = run_all(texts, lambda ids, mask: (ids * mask).max(axis=1)[:, None], dim=1, pad_id=0, plan=Plan(3, 64))
    assert found.ravel().tolist() == list(range(300))


def test_an_interrupt_does_not_wait_for_batches_that_have_not_begun():
    begun = []

    def run(ids, mask):
        begun.append(1)
        time.sleep(0.005)  # batches take a while, in which the caller hears of the first one's end
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all([[1]] * 1000, run, dim=1, pad_id=0, plan=Plan(2, 1))
    assert len(begun) < 1000


# ---- threads


@pytest.mark.parametrize(
    ("n_tokens", "n_cores", "n_runs", "tokens_per_batch"),
    [
        (1_000_000, 2, 2, 512), (1_000_000, 64, 64, 512), (1_000_000, 1, 1, 512),
        (65_536, 64, 64, 256),  # smaller batches, so that all cores have four
        (4096, 64, 32, 128),  # no batch so small that weights are read for little
        (100, 2, 1, 128), (0, 2, 1, 128),
    ],
)  # fmt: skip
def test_a_bulk_runs_once_on_each_core_that_has_work(n_tokens, n_cores, n_runs, tokens_per_batch):
    assert plan_bulk(n_tokens, n_cores) == Plan(n_runs, tokens_per_batch)


@pytest.mark.parametrize(
    ("allowed", "siblings", "quota", "n_cores"),
    [
        ({0, 1}, {0: "0", 1: "1"}, None, 2),
        ({0, 1, 2, 3}, {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, None, 2),  # two threads on each of two cores
        ({0, 2}, {0: "0,2", 2: "0,2"}, None, 1),
        ({0, 1, 2}, {}, None, 3),  # nothing is said about cores
        (set(range(64)), {}, 3.5, 4), (set(range(64)), {}, 0.5, 1), ({0, 1}, {}, 8.0, 2),
    ],
)  # fmt: skip
def test_a_core_counts_once_and_a_quota_counts(allowed, siblings, quota, n_cores):
    assert count_cores(allowed, siblings, quota) == n_cores


@pytest.mark.parametrize(
    ("text", "quota"), [("200000 100000", 2.0), ("50000 100000", 0.5), ("max 100000", None), ("", None), ("1 0", None)]
)
def test_a_quota_is_read_as_linux_writes_it(text, quota):
    assert read_quota(text) == quota


def test_this_machine_has_no_more_cores_than_the_process_may_use():
    import os

    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize("n_cores", [1, 2, 8, 64, 256])
def test_a_window_has_batches_for_all_cores_and_a_bound(n_cores):
    n_short_tokens = 20 * window_texts(n_cores)
    assert n_short_tokens // plan_bulk(n_short_tokens, n_cores).tokens_per_batch >= 2 * n_cores
    assert window_texts(n_cores) <= 65_536


def test_only_a_gpu_needs_several_threads_that_tokenize():
    assert [tokenizing_threads(n, gpu=False) for n in (1, 2, 64)] == [1, 1, 1]
    assert [tokenizing_threads(n, gpu=True) for n in (1, 2, 64)] == [1, 2, 8]


# ---- one window ahead


def test_the_next_window_is_worked_on_while_the_caller_holds_one_and_no_further_one():
    begun = {number: threading.Event() for number in range(4)}

    def work(number):
        begun[number].set()
        return number * 10

    found = []
    for results in one_ahead(([number] for number in range(4)), work, 1):
        found += results
        following = len(found)
        if following < 4:
            assert begun[following].wait(10), "the next window is begun without being asked for"
        assert not any(begun[later].is_set() for later in range(following + 1, 4))
    assert found == [0, 10, 20, 30]


def test_parts_of_a_window_stay_in_order_on_several_threads():
    windows = [range(start, start + 50) for start in range(0, 200, 50)]
    found = list(one_ahead(windows, lambda number: -number, 4))
    assert [one for results in found for one in results] == [-number for number in range(200)]


def test_an_error_ahead_is_raised_where_its_window_is_due():
    def work(number):
        if number == 2:
            raise ValueError("two")
        return number

    results = one_ahead([[0], [1], [2], [3]], work, 1)
    assert [next(results), next(results)] == [[0], [1]]
    with pytest.raises(ValueError, match="two"):
        next(results)


def test_a_caller_that_gives_up_leaves_no_thread_behind():
    results = one_ahead([[0], [1], [2]], lambda number: number, 2)
    next(results)
    results.close()
    assert not [one for one in threading.enumerate() if one.name.startswith("embedstore-ahead")]
