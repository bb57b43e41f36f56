"""`RankCallback`: monitor a model of Keras while `model.fit` trains it on the JAX backend."""

from collections.abc import Mapping
from typing import Any

from rankmon.monitor.alerts import StopTraining
from rankmon.monitor.monitor import RankMonitor
from rankmon.problem.problem import Problem, check_problem

try:
    import keras
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"expected Keras on JAX for RankCallback, got none ({error}); run: pip install keras, and "
        "set KERAS_BACKEND=jax in the environment"
    ) from None


class RankCallback(keras.callbacks.Callback):
    """A callback for `model.fit`: `RankCallback(problem, logdir="logs/mine", every=100)`.

    The problem is `Problem.from_keras(model, ...)`. A step is a trained batch, counted from the
    optimizer's `iterations` at the first `fit`: step 0 is the model before training. With
    `steps_per_execution`, only the last step of each execution can be measured. Training is
    unchanged; an alert that stops sets `model.stop_training`.

    Each `fit` measures its last step and closes the monitor. Another `fit` with the same callback
    continues in the same run folder.

    Attributes:
      monitor: the monitor of the present or the last `fit`; None before the first.
    """

    def __init__(self, problem: Problem, **options: Any) -> None:
        """Store the problem, and the arguments for the monitor.

        Args:
          problem: network, loss and probe batch.
          options: the arguments of `RankMonitor`: logdir, every, probes and the rest.

        Raises:
          TypeError: for anything but a Problem. The other arguments are checked when `fit` begins.
        """
        super().__init__()
        check_problem(problem)
        self.monitor: RankMonitor | None = None
        self._problem, self._options = problem, options
        self._state: Mapping[str, Any] | None = options.pop("state", None)
        self._epoch_began = self._step = 0
        self._has_begun = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Open the monitor, and measure the model before its first update if that is due."""
        if not self._has_begun:
            updates = self.model.optimizer.iterations  # an array if gradients are accumulated
            self._step = int(getattr(updates, "value", updates))
            self._has_begun = True
        self.monitor = RankMonitor(self._problem, state=self._state, **self._options)
        self._measure()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Note at which step the epoch begins."""
        self._epoch_began = self._step

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Measure if the step is due."""
        # The last execution of several steps can have fewer of them than Keras counts.
        in_epoch = min(batch + 1, (self.params or {}).get("steps") or batch + 1)
        self._step = self._epoch_began + in_epoch
        self._measure()

    def on_train_end(self, logs: Any = None) -> None:
        """Measure the last step, and close the monitor."""
        if self.monitor is not None:
            self.monitor.close(self._step, self.model)
            self._state = self.monitor.state

    def _measure(self) -> None:
        if self.monitor is None or not self.monitor.is_due(self._step):
            return
        try:
            self.monitor(self._step, self._problem.unpack(self.model))
        except StopTraining:
            self.model.stop_training = True
