"""Test errors of several threads, which are kept until the user's thread asks for them."""

import threading
from functools import partial

import pytest

from rankmon._util.errors import ErrorPolicy


def test_every_error_since_the_last_call_is_told():
    policy = ErrorPolicy("raise")

    def fail(word):
        raise RuntimeError(word)

    for word in ("one", "two"):
        policy.attempt(partial(fail, word))
    with pytest.raises(RuntimeError, match="one") as caught:
        policy.tell()
    where, others = caught.value.__notes__
    assert "test_errors.py" in where
    assert "in fail" in where
    assert others.endswith("RuntimeError: two")
    policy.tell()


def test_threads_lose_no_error():
    policy = ErrorPolicy("warn")

    def fail():
        for _ in range(2000):
            policy.guard("it", lambda: 1 / 0)

    threads = [threading.Thread(target=policy.attempt, args=(fail,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert policy.errors == 8000
    assert len(policy.kept) == 1
    policy.kept.clear()
