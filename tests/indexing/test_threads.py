"""FAISS stays on one thread where it is told to, and is told so without giving up the interpreter's lock."""

import threading

import pytest

from embedstore.indexing import threads
from embedstore.indexing.threads import OneThread
from embedstore.optional import load_faiss


@pytest.fixture(params=["openmp", "faiss"])
def faiss(request, monkeypatch):
    """FAISS, told by its OpenMP or by its own functions."""
    threads._setting.cache_clear()
    if request.param == "faiss":
        monkeypatch.setattr(threads, "_loaded_openmp", lambda: [])
    yield load_faiss()
    threads._setting.cache_clear()


def test_within_the_block_faiss_uses_one_thread_and_afterwards_as_many_as_before(faiss):
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(3)
    try:
        with OneThread(faiss):
            assert faiss.omp_get_max_threads() == 1
            with OneThread(faiss):
                assert faiss.omp_get_max_threads() == 1
            assert faiss.omp_get_max_threads() == 1
        assert faiss.omp_get_max_threads() == 3
        with pytest.raises(ZeroDivisionError), OneThread(faiss):
            1 / 0  # noqa: B018
        assert faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(before)


def test_other_threads_keep_their_own_number(faiss):
    before = faiss.omp_get_max_threads()
    inside, asked, seen = threading.Event(), threading.Event(), []

    def other():
        faiss.omp_set_num_threads(2)
        inside.wait(10)
        seen.append(faiss.omp_get_max_threads())
        asked.set()

    thread = threading.Thread(target=other)
    thread.start()
    with OneThread(faiss):
        inside.set()
        assert asked.wait(10)
    thread.join()
    assert seen == [2]
    assert faiss.omp_get_max_threads() == before


def test_only_a_library_that_faiss_listens_to_is_asked(monkeypatch):
    """Others may be there, of torch or scikit-learn, and files that are gone."""
    faiss = load_faiss()
    heard = threads._loaded_openmp()
    if not heard:
        pytest.skip("this system does not tell which libraries are loaded")
    threads._setting.cache_clear()
    monkeypatch.setattr(threads, "_loaded_openmp", lambda: ["/nowhere/libgomp.so", *heard])
    before = faiss.omp_get_max_threads()
    setting = threads._setting(faiss)
    assert setting.ask is not faiss.omp_get_max_threads
    assert setting.ask() == faiss.omp_get_max_threads() == before
    threads._setting.cache_clear()
