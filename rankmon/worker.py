"""The thread that measures: jobs in order, a bounded queue, what is done when it is full."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any, Literal

import jax

from rankmon._trouble import Trouble

_here = attrgetter("jax_enable_x64", "jax_default_device")


@dataclass(frozen=True)
class ThreadSettings:
    """The settings of JAX that belong to a thread and that a measurement does not set itself.

    Attributes:
      x64: whether JAX has float64.
      device: where JAX computes by default, None for its own choice.
    """

    x64: bool
    device: Any

    @classmethod
    def here(cls) -> "ThreadSettings":
        """Those of this thread."""
        return cls(*_here(jax.config))

    def run(self, job: Callable[[], Any]) -> Any:
        """What the job returns on a thread with these settings."""
        with jax.enable_x64(self.x64), jax.default_device(self.device):
            return job()


class Worker:
    """One thread that does what is submitted, in order, under the settings of who submits it.

    An interpreter that exits finishes what was submitted; a worker that is dropped does, too.

    Args:
      waiting: how many jobs may wait, beside the one that runs.
      when_full: whether `submit` waits ("block") or leaves the job out ("skip").
      trouble: keeps the warnings and errors of the jobs.
    """

    def __init__(
        self, waiting: int, when_full: Literal["block", "skip"], *, trouble: Trouble
    ) -> None:
        self._when_full = when_full
        self._trouble = trouble
        self._free = threading.Semaphore(waiting + 1)
        self._order = threading.Lock()  # of submitting, for `wait` to wait for the last job
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rankmon")
        self._latest: Future[Any] | None = None
        self._ident: int | None = None
        self._skipped = self._blocked = 0

    def submit(self, prepare: Callable[[], Callable[[], Any]], *, must: bool = False) -> bool:
        """Has a job done after all others; whether it was taken.

        Args:
          prepare: makes the job, here and once there is a place for it.
          must: wait for a place, whatever the policy.
        """
        if not self._admit(must):
            return False
        try:
            job = partial(self._run, prepare(), ThreadSettings.here())
        except BaseException:
            self._free.release()
            raise
        with self._order:
            try:
                self._latest = self._pool.submit(job)
                return True
            except RuntimeError:  # the interpreter is exiting, and has waited for the thread
                pass
        job()
        return True

    def _admit(self, must: bool) -> bool:
        if self._free.acquire(blocking=False):
            return True
        if self._when_full == "skip" and not must:
            self._skipped += 1
            return False
        self._blocked += 1
        return self._free.acquire()

    def _run(self, job: Callable[[], Any], settings: ThreadSettings) -> Any:
        self._ident = threading.get_ident()
        try:
            return self._trouble.attempt(partial(settings.run, job))
        finally:
            self._free.release()

    def counts(self) -> dict[str, float]:
        """How many jobs were left out, and how many had to wait for a place."""
        return {"monitor/skipped": self._skipped, "monitor/blocked": self._blocked}

    def wait(self) -> Any:
        """What the last job returned, once all are done; None where it failed.

        A job of its own (a writer that asks for the monitor's state) does not wait for itself.
        """
        if self._latest is None or self._is_here():
            return None
        return self._latest.result()

    def _is_here(self) -> bool:
        return threading.get_ident() == self._ident

    def refuse_here(self) -> None:
        """Refuses to be closed by one of its own jobs.

        Raises:
          RuntimeError: on its own thread.
        """
        if self._is_here():
            raise RuntimeError(
                "expected close to be called from the training thread, got a call from a probe, "
                "writer or alert on rankmon's worker, which would wait for itself; close it in the "
                "loop"
            )

    def close(self, job: Callable[[], Any]) -> None:
        """Has one more job done, after all others even where this wait is interrupted.

        Raises:
          RuntimeError: where one of its own jobs asks for it.
        """
        self.refuse_here()
        try:
            last = self._pool.submit(self._trouble.attempt, job)
        except RuntimeError:  # the interpreter is exiting, and has waited for the thread
            job()
            return
        last.result()
        self._pool.shutdown()
