"""Errors that wait until they are told, from several threads."""

import threading
from functools import partial

import pytest

from rankmon._util.errors import Trouble


def test_every_error_since_the_last_call_is_told():
    trouble = Trouble("raise")

    def fail(word):
        raise RuntimeError(word)

    for word in ("one", "two"):
        trouble.attempt(partial(fail, word))
    with pytest.raises(RuntimeError, match="one") as caught:
        trouble.tell()
    where, others = caught.value.__notes__
    assert "test_errors.py" in where
    assert "in fail" in where
    assert others.endswith("RuntimeError: two")
    trouble.tell()


def test_threads_lose_no_error():
    trouble = Trouble("warn")

    def fail():
        for _ in range(2000):
            trouble.guard("it", lambda: 1 / 0)

    threads = [threading.Thread(target=trouble.attempt, args=(fail,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert trouble.errors == 8000
    assert len(trouble.kept) == 1
    trouble.kept.clear()
