"""`Worker`: a thread that runs jobs in order from a bounded queue, safe against interrupts.

Python raises KeyboardInterrupt, and any other exception of a signal handler, only on the main
thread, but there between any two instructions. A job that must not be cut short therefore runs on a
thread of its own. The main thread submits it by a single operation on a deque and takes no lock,
which an interrupt could leave locked. While it waits it polls the job's state; the wake-up call
only makes that faster.
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

_PATIENCE = 1.0  # seconds between two looks of a waiting thread, in case its wake-up call is lost


@dataclass(frozen=True)
class ThreadSettings:
    """The thread-local settings that a measurement inherits from the thread of the call.

    Attributes:
      x64: whether JAX has float64 enabled.
      device: JAX's default device, None for its own choice.
      context: a copy of the thread's context variables.
    """

    x64: bool
    device: Any
    context: Context

    @classmethod
    def here(cls) -> "ThreadSettings":
        """Return the settings of this thread."""
        return cls(*_here(jax.config), copy_context())

    def run(self, job: Callable[[], Any]) -> Any:
        """Run the job with these settings and return its result."""
        with jax.enable_x64(self.x64), jax.default_device(self.device):
            return self.context.run(job)


class _Job:
    """An action that a thread runs once.

    Args:
      action: a function that raises no exceptions.
      step: the training step that it records, if any.

    Attributes:
      done: whether the action has run.
      result: the action's result.
    """

    def __init__(self, action: Callable[[], Any], step: int | None = None) -> None:
        self.step, self.done = step, False
        self.result: Any = None
        self._action: Callable[[], Any] | None = action
        # A lock that the thread releases once: an Event has a lock of its own, which an interrupt
        # could leave locked.
        self._bell = threading.Lock()
        self._bell.acquire()

    def run(self) -> None:
        """Run the action, and drop the reference to it."""
        if self._action is not None:
            self.result = self._action()
        self._action = None

    def finish(self) -> None:
        """Mark the job as done and wake the waiting thread."""
        self.done = True
        self._bell.release()

    def wait(self) -> None:
        """Wait for the wake-up call or the timeout; the job may be unfinished after that."""
        self._bell.acquire(timeout=_PATIENCE)


class _Queue:
    """Jobs and their results. The thread refers to nothing else, so its `Worker` can be dropped.

    Attributes:
      jobs: the running job, then the waiting ones.
      latest: the result of the last submitted job.
      runner: the identity of the thread that is running a job now.
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
        """Wake the thread; if it has ended, run the jobs on this one."""
        self._calls.put(None)
        if self._ended:
            self._run_all()

    def wait_for(self, job: _Job) -> None:
        """Wait until the job is done."""
        while not job.done:
            self.wake()  # an interrupt in `put` may have prevented it
            job.wait()

    def end(self) -> None:
        """Make the thread end after all jobs."""
        self._ends = True
        self._calls.put(None)

    def serve(self) -> None:
        """Run all jobs until `end`: the thread's main function."""
        while not self._ends:
            self._calls.get()
            self._run_all()
        self.end_here()

    def end_here(self) -> None:
        """Make `put` run all later jobs on the calling thread."""
        self._ended = True
        self._run_all()

    def _run_all(self) -> None:
        """Run all jobs in order, on one thread at a time."""
        with self._running:
            self.runner = threading.get_ident()
            while self.jobs:
                job = self.jobs[0]
                job.run()
                # It stays first while it runs, so that `unfinished` counts it.
                self.jobs.popleft()
                job.finish()
            self.runner = None


class Worker:
    """A thread that runs the submitted jobs in order, with the settings of the submitting thread.

    All submitted jobs are finished when the interpreter exits, and when the worker is dropped.
    Only one thread at a time may submit to a bounded queue.

    Args:
      waiting: the number of jobs that may wait, not counting the running one.
      when_full: whether `submit` waits ("block") or skips the job ("skip") if the queue is full.
      errors: the error policy, which keeps the warnings and errors of the jobs.
    """

    def __init__(
        self, waiting: int, when_full: Literal["block", "skip"], *, errors: ErrorPolicy
    ) -> None:
        self._waiting = waiting
        self._when_full = when_full
        self._errors = errors
        self._skipped = self._blocked = 0
        self._queue = _Queue()
        # The finalizer ends the thread if the worker is dropped; at exit `_finish_all` does it, and
        # also waits.
        weakref.finalize(self, self._queue.end).atexit = False
        self._thread = threading.Thread(target=self._queue.serve, name="rankmon", daemon=True)
        _threads[self._thread] = self._queue
        _finish_at_exit()
        try:
            self._thread.start()
        except RuntimeError:  # the interpreter is exiting, or no more threads can be started
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
          prepare: returns the job; called on this thread once the queue has space.
          must: wait for space even if the policy is to skip.
          step: the training step that the job records, for `newest_step`.
        """
        if not self._admit(must):
            return False
        run = partial(ThreadSettings.here().run, prepare())
        self._queue.put(_Job(partial(_keep_result, self._queue, self._errors, run), step))
        return True

    def _admit(self, must: bool) -> bool:
        """Return whether a job may be queued; wait for space unless the policy is to skip it."""
        if self.unfinished <= self._waiting:
            return True
        if self._when_full == "skip" and not must:
            self._skipped += 1
            return False
        self._blocked += 1
        while self.unfinished > self._waiting:
            with suppress(IndexError):  # all jobs were finished in the meantime
                self._queue.wait_for(self._queue.jobs[0])
        return True

    def do(self, action: Callable[[], Any], *, step: int | None = None) -> Any:
        """Run an action after all other jobs; return its result or raise its exception.

        The action runs even if the wait for it is interrupted. From inside a job it runs at once.

        Args:
          action: the function to run.
          step: the training step that the action records, for `newest_step`.
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
        """The number of waiting and running jobs."""
        return len(self._queue.jobs)

    def newest_step(self) -> int | None:
        """Return the step of the last unfinished job that has one, or None."""
        if not self._queue.jobs:
            return None
        steps = (job.step for job in reversed(tuple(self._queue.jobs)))
        return next((step for step in steps if step is not None), None)

    def counts(self) -> dict[str, float]:
        """Return the numbers of skipped jobs and of jobs that had to wait, as scalars."""
        return {"monitor/skipped": self._skipped, "monitor/blocked": self._blocked}

    def wait(self) -> Any:
        """Wait for all jobs and return the result of the last one; None if it failed.

        Called from inside a job (a writer that reads the monitor's state), it does not wait.
        """
        if self.is_here:
            return None
        with suppress(IndexError):
            self._queue.wait_for(self._queue.jobs[-1])
        return self._queue.latest

    @property
    def is_here(self) -> bool:
        """Whether the caller is one of the worker's own jobs."""
        return threading.get_ident() == self._queue.runner

    def refuse_here(self) -> None:
        """Refuse to be closed by one of the worker's own jobs.

        Raises:
          RuntimeError: if one of its own jobs makes this call.
        """
        if self.is_here:
            raise RuntimeError(
                "expected close to be called from the training thread, got a call from a probe, "
                "writer or alert on rankmon's worker, which would wait for itself; call close in "
                "the training loop"
            )

    def close(self, job: Callable[[], Any]) -> None:
        """Run one last job, even if this wait is interrupted, and end the thread.

        Raises:
          RuntimeError: if one of its own jobs makes this call.
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
    """Register `_finish_all` after JAX's and weakref's exit functions, so that it runs first."""
    atexit.register(_finish_all)


def _finish_all() -> None:
    """Finish all jobs of all workers."""
    threads = list(_threads.items())
    for _, queue in threads:  # all of them first, so that they finish at the same time
        queue.end()
    for thread, _ in threads:
        _join(thread)


def _join(thread: threading.Thread) -> None:
    with suppress(RuntimeError):  # it never started
        thread.join()
