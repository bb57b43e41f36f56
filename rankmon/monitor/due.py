"""Which step is due, by the schedule, the steps measured so far, and the overhead limit."""

from rankmon.monitor.overhead import Overhead
from rankmon.monitor.pipeline import Pipeline
from rankmon.monitor.schedule import Schedule
from rankmon.monitor.worker import Worker


class DueSteps:
    """The steps of one run that are due, given those that were handed over.

    Args:
      schedule: the points at which to measure.
      overhead: what probes cost, and may cost.
      pipeline: has the last record.
      worker: the thread that measures, if it is not the thread of the call.
      writing: the thread that writes.
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
        # A step that was skipped, and the last one before it that was not.
        self._skipped: tuple[int, int | None] | None = None

    @property
    def submitted(self) -> int | None:
        """The last step that was handed over: it waits, is being measured, or has a record."""
        for worker in (self._worker, self._writing):
            if worker is not None and worker.unfinished:
                step = worker.newest_step()
                if step is not None:
                    return step
        return self._pipeline.last

    @property
    def last(self) -> int | None:
        """The step that the schedule counts from: the last one that was measured or skipped."""
        submitted = self.submitted
        if self._skipped is not None and self._skipped[1] == submitted:
            return self._skipped[0]
        return submitted

    def is_scheduled(self, step: int) -> bool:
        """Return whether the step is due by the schedule alone."""
        return self._schedule.due(step, self.last)

    def is_due(self, step: int) -> bool:
        """Return whether the step is due, and another probe affordable."""
        if not self._schedule.due(step, self.last):
            return False
        under_way = 0 if self._worker is None else self._worker.unfinished
        return self.is_back(step) or self._overhead.affords(under_way)

    def is_back(self, step: int) -> bool:
        """Return whether training went back: records of later steps have to be superseded now."""
        return self.last is not None and step < self.last

    def skip(self, step: int, before: int | None) -> None:
        """Take a step as done that the worker skipped.

        Args:
          step: that one.
          before: the last step that was handed over before.
        """
        self._skipped = step, before

    def forget_skipped(self) -> None:
        """Count from the last step that was measured."""
        self._skipped = None
