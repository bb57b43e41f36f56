"""`Worker`: a thread that does jobs in order, from a bounded queue, each whole under interrupts.

Python raises KeyboardInterrupt, and whatever else a signal's handler raises, on the main thread
between any two instructions, and nowhere else. So a job that must be done whole is done on a thread
of its own. The main thread hands it over by one operation of a deque, and takes no lock on the way
that an interrupt could leave taken: it looks at what has been done, and is woken for speed alone.
"""

import atexit
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import dataclass
from functools import cache, partial
from operator import attrgetter
from queue import SimpleQueue
from typing import Any, Literal

import jax

from rankmon._util.errors import ErrorPolicy

_here = attrgetter("jax_enable_x64", "jax_default_device")

_PATIENCE = 1.0  # seconds, after which a waiting thread looks again, should its bell be lost


@dataclass(frozen=True)
class ThreadSettings:
    """The settings that belong to a thread and that a measurement does not set itself.

    Attributes:
      x64: whether JAX has float64.
      device: where JAX computes by default, None for its own choice.
      context: a copy of its context variables.
    """

    x64: bool
    device: Any
    context: Context

    @classmethod
    def here(cls) -> "ThreadSettings":
        """Return those of this thread."""
        return cls(*_here(jax.config), copy_context())

    def run(self, job: Callable[[], Any]) -> Any:
        """Return what the job returns on a thread with these settings."""
        with jax.enable_x64(self.x64), jax.default_device(self.device):
            return self.context.run(job)


class _Job:
    """An action that a thread does once.

    Args:
      action: raises nothing.
      step: the training step that it records, if any.

    Attributes:
      done: whether it was done.
      result: what the action returned.
    """

    def __init__(self, action: Callable[[], Any], step: int | None = None) -> None:
        self.step, self.done = step, False
        self.result: Any = None
        self._action: Callable[[], Any] | None = action
        self._bell = threading.Lock()
        self._bell.acquire()

    def run(self) -> None:
        """Do the action, and drop it."""
        if self._action is not None:
            self.result = self._action()
        self._action = None

    def finish(self) -> None:
        """Wake the thread that waits."""
        self.done = True
        self._bell.release()

    def wait(self) -> None:
        """Return once the job is done, and perhaps before."""
        self._bell.acquire(timeout=_PATIENCE)


class _Queue:
    """Jobs and their results: all that the thread holds, so that a worker may be dropped.

    Attributes:
      jobs: the one that runs, and those that wait.
      latest: what the last submitted job returned.
      runner: the identity of the thread that runs a job just now.
    """

    def __init__(self) -> None:
        self.jobs: deque[_Job] = deque()
        self.latest: Any = None
        self.runner: int | None = None
        self._calls: SimpleQueue[None] = SimpleQueue()
        self._ends = self._ended = False
        self._running = threading.Lock()

    def put(self, job: _Job) -> None:
        """Append the job, and wake the thread."""
        self.jobs.append(job)
        self.wake()

    def wake(self) -> None:
        """Have the jobs done; on this thread, if their own has ended."""
        self._calls.put(None)
        if self._ended:
            self._run_all()

    def wait_for(self, job: _Job) -> None:
        """Return when the job is done."""
        while not job.done:
            self.wake()  # an interrupt may have come before, in `put`
            job.wait()

    def end(self) -> None:
        """Let the thread end once all is done."""
        self._ends = True
        self._calls.put(None)

    def serve(self) -> None:
        """Do all jobs until `end`: the thread's whole life."""
        while not self._ends:
            self._calls.get()
            self._run_all()
        self.end_here()

    def end_here(self) -> None:
        """Leave all jobs from now on to the thread that puts them."""
        self._ended = True
        self._run_all()

    def _run_all(self) -> None:
        with self._running:
            self.runner = threading.get_ident()
            while self.jobs:
                job = self.jobs[0]
                job.run()
                self.jobs.popleft()
                job.finish()
            self.runner = None


class Worker:
    """One thread that does what is submitted, in order, under the settings of who submits it.

    All submitted jobs are finished when the interpreter exits, and when the worker is dropped.
    Submit to a bounded queue from one thread at a time.

    Args:
      waiting: how many jobs may wait, apart from the one that runs.
      when_full: whether `submit` waits ("block") or leaves the job out ("skip").
      errors: keeps the warnings and errors of the jobs.
    """

    def __init__(
        self, waiting: int, when_full: Literal["block", "skip"], *, errors: ErrorPolicy
    ) -> None:
        self._waiting = waiting
        self._when_full = when_full
        self._errors = errors
        self._skipped = self._blocked = 0
        self._queue = _Queue()
        weakref.finalize(self, self._queue.end).atexit = False
        self._thread = threading.Thread(target=self._queue.serve, name="rankmon", daemon=True)
        _threads[self._thread] = self._queue
        _finish_at_exit()
        try:
            self._thread.start()
        except RuntimeError:  # the interpreter is exiting, or there are no more threads
            self._queue.end_here()

    def submit(
        self,
        prepare: Callable[[], Callable[[], Any]],
        *,
        must: bool = False,
        step: int | None = None,
    ) -> bool:
        """Queue a job. Return False if the queue was full and the job was skipped.

        Args:
          prepare: makes the job, here and once there is a place for it.
          must: wait for a place, whatever the policy.
          step: as for `newest_step`.
        """
        if not self._admit(must):
            return False
        run = partial(ThreadSettings.here().run, prepare())
        self._queue.put(_Job(partial(_keep_result, self._queue, self._errors, run), step))
        return True

    def _admit(self, must: bool) -> bool:
        if self.unfinished <= self._waiting:
            return True
        if self._when_full == "skip" and not must:
            self._skipped += 1
            return False
        self._blocked += 1
        while self.unfinished > self._waiting:
            with suppress(IndexError):  # all were done in the meantime
                self._queue.wait_for(self._queue.jobs[0])
        return True

    def do(self, action: Callable[[], Any], *, step: int | None = None) -> Any:
        """Do an action after all other jobs, and return or raise what it does.

        It is done even if the wait is interrupted. From inside a job it is done at once.

        Args:
          action: what is done.
          step: as for `newest_step`.
        """
        if self.is_here:
            return action()
        job = _Job(partial(self._errors.outcome, partial(ThreadSettings.here().run, action)), step)
        self._queue.put(job)
        self._queue.wait_for(job)
        result, error = job.result
        if error is None:
            return result
        try:
            raise error
        finally:
            del error, job  # its traceback holds this frame

    @property
    def unfinished(self) -> int:
        """The number of jobs that wait or run."""
        return len(self._queue.jobs)

    def newest_step(self) -> int | None:
        """Return the step of the last unfinished job that has one; None without any."""
        if not self._queue.jobs:
            return None
        steps = (job.step for job in reversed(tuple(self._queue.jobs)))
        return next((step for step in steps if step is not None), None)

    def counts(self) -> dict[str, float]:
        """Return how many jobs were left out, and how many had to wait for a place."""
        return {"monitor/skipped": self._skipped, "monitor/blocked": self._blocked}

    def wait(self) -> Any:
        """Return what the last submitted job returned, once all are done; None if it failed.

        A job of its own (a writer that asks for the monitor's state) does not wait for itself.
        """
        if self.is_here:
            return None
        with suppress(IndexError):
            self._queue.wait_for(self._queue.jobs[-1])
        return self._queue.latest

    @property
    def is_here(self) -> bool:
        """Whether the caller is one of its jobs."""
        return threading.get_ident() == self._queue.runner

    def refuse_here(self) -> None:
        """Refuse to be closed by one of its own jobs.

        Raises:
          RuntimeError: on its own thread.
        """
        if self.is_here:
            raise RuntimeError(
                "expected close to be called from the training thread, got a call from a probe, "
                "writer or alert on rankmon's worker, which would wait for itself; close it in the "
                "loop"
            )

    def close(self, job: Callable[[], Any]) -> None:
        """Do one more job after all others, even if this wait is interrupted, and end the thread.

        Raises:
          RuntimeError: if one of its own jobs asks for it.
        """
        self.refuse_here()
        last = _Job(partial(self._errors.attempt, job))
        self._queue.put(last)
        self._queue.end()
        self._queue.wait_for(last)
        _join(self._thread)


def _keep_result(queue: _Queue, errors: ErrorPolicy, job: Callable[[], Any]) -> None:
    queue.latest = errors.attempt(job)


_threads: "weakref.WeakKeyDictionary[threading.Thread, _Queue]" = weakref.WeakKeyDictionary()


@cache
def _finish_at_exit() -> None:
    """Register `_finish_all`, after JAX's own functions and those of weakref: it comes first."""
    atexit.register(_finish_all)


def _finish_all() -> None:
    threads = list(_threads.items())
    for _, queue in threads:
        queue.end()
    for thread, _ in threads:
        _join(thread)


def _join(thread: threading.Thread) -> None:
    with suppress(RuntimeError):  # it never started
        thread.join()
