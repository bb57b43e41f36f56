"""Test the worker thread: jobs in order, errors kept for the user, copies that stay valid."""

import threading
import time
from functools import partial

from rankmon._util.errors import ErrorPolicy
from rankmon.monitor.worker import Worker


def test_jobs_are_done_in_order_one_at_a_time():
    worker, done, running = Worker(50, "block", errors=ErrorPolicy("raise")), [], []

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
    worker, done = Worker(0, "skip", errors=ErrorPolicy("raise")), []
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
