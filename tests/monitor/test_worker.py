"""The worker thread and what crosses to it: jobs in order, trouble that waits, copies that stay."""

import threading
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankmon._util.errors import Trouble
from rankmon.monitor.worker import Worker
from rankmon.problem.device_copy import copies


def test_jobs_are_done_in_order_one_at_a_time():
    worker, done, running = Worker(50, "block", trouble=Trouble("raise")), [], []

    def job(i):
        running.append(i)
        time.sleep(0.001)
        assert running == [i]
        done.append(running.pop())
        return i

    for i in range(30):
        assert worker.submit(lambda i=i: partial(job, i))
    assert worker.wait() == 29
    assert done == list(range(30))
    worker.close(lambda: done.append("closed"))
    assert done[-1] == "closed"


def test_a_full_queue_leaves_out_what_may_be_left_out_alone():
    worker, done = Worker(0, "skip", trouble=Trouble("raise")), []
    began, release = threading.Event(), threading.Event()

    def hold():
        began.set()
        release.wait(30)

    assert worker.submit(lambda: hold)
    assert began.wait(30)
    assert not worker.submit(lambda: partial(done.append, "may be left out"))
    threading.Timer(0.05, release.set).start()
    assert worker.submit(lambda: partial(done.append, "must be done"), must=True)
    worker.close(lambda: None)
    assert done == ["must be done"]
    assert worker.counts() == {"monitor/skipped": 1, "monitor/blocked": 1}


def test_every_error_since_the_last_call_is_told():
    trouble = Trouble("raise")

    def fail(word):
        raise RuntimeError(word)

    for word in ("one", "two"):
        trouble.attempt(partial(fail, word))
    with pytest.raises(RuntimeError, match="one") as caught:
        trouble.tell()
    where, others = caught.value.__notes__
    assert "test_worker.py" in where
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


def test_copies_keep_dtypes_and_bits_whatever_the_settings():
    with jax.enable_x64(True):
        double = jnp.asarray([0.1, np.nan])
    single, host, number = jnp.asarray([0.1]), np.arange(3, dtype=np.int16), 0.5
    with jax.transfer_guard("disallow_explicit"), jax.debug_nans(True), jax.disable_jit():
        got = copies([double, host, single, number])
    assert [a.dtype for a in got] == [np.float64, np.int16, np.float32, np.float64]
    assert all(type(a) is type(b) for a, b in zip(got[:3], (double, host, single), strict=True))
    assert got[0].unsafe_buffer_pointer() != double.unsafe_buffer_pointer()
    jax.jit(lambda a: a + 1, donate_argnums=0)(single)
    assert single.is_deleted()
    np.testing.assert_array_equal(got[0], np.array([0.1, np.nan]))
    assert got[2][0] == np.float32(0.1)
    assert copies([]) == []
