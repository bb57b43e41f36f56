"""`DueSteps`: decide from schedule, measured steps and overhead limit whether a step is due."""

from rankmon.monitor.overhead import Overhead
from rankmon.monitor.pipeline import Pipeline
from rankmon.monitor.schedule import Schedule
from rankmon.monitor.worker import Worker


class DueSteps:
    """Decides which steps of one run are due, given the steps submitted so far.

    Args:
      schedule: the points at which to measure.
      overhead: the time that probes took, and the limit on it.
      pipeline: knows the step of the last record.
      worker: the thread that measures; None to measure on the caller's thread.
      writing: the thread that writes records.
    """

    def __init__(
        self,
        schedule: Schedule,
        overhead: Overhead,
        *,
        pipeline: Pipeline,
        worker: Worker | None,
        writing: Worker,
    ) -> None:
        self._schedule = schedule
        self._overhead = overhead
        self._pipeline = pipeline
        self._worker = worker
        self._writing = writing
        # A step that was skipped, and the last step submitted before it.
        self._skipped: tuple[int, int | None] | None = None

    @property
    def submitted(self) -> int | None:
        """The last step that was submitted: it waits, is being measured, or has a record."""
        for worker in (self._worker, self._writing):
            if worker is not None and worker.unfinished:
                step = worker.newest_step()
                if step is not None:
                    return step
        return self._pipeline.last

    @property
    def last(self) -> int | None:
        """The last step that was submitted or skipped: the schedule counts from it."""
        submitted = self.submitted
        # Once another step is submitted, the skipped one no longer counts.
        if self._skipped is not None and self._skipped[1] == submitted:
            return self._skipped[0]
        return submitted

    def is_scheduled(self, step: int) -> bool:
        """Return whether the step is due according to the schedule, whatever the overhead."""
        return self._schedule.due(step, self.last)

    def is_due(self, step: int) -> bool:
        """Return whether the step is due and the overhead limit allows another probe.

        A step back is due whatever the limit, because it begins a new attempt.
        """
        if not self._schedule.due(step, self.last):
            return False
        under_way = 0 if self._worker is None else self._worker.unfinished
        return self.is_back(step) or self._overhead.affords(under_way)

    def is_back(self, step: int) -> bool:
        """Return whether training went back, so that records of later steps are superseded."""
        return self.last is not None and step < self.last

    def skip(self, step: int, before: int | None) -> None:
        """Count a step that the worker skipped as done.

        Args:
          step: the skipped step.
          before: the last step that was submitted before it.
        """
        self._skipped = step, before

    def forget_skipped(self) -> None:
        """Count from the last submitted step again, ignoring skipped ones."""
        self._skipped = None
