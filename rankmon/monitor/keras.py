"""`RankCallback`: monitor a model of Keras while `model.fit` trains it on the JAX backend."""

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from rankmon.monitor.alerts import StopTraining
from rankmon.monitor.arguments import as_writers
from rankmon.monitor.monitor import RankMonitor
from rankmon.monitor.state import decode
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

    Each `fit` measures its last step and closes the monitor. Another `fit` with the same callback,
    or with a new one that is made with `state=callback.monitor.state`, continues in the same run
    folder, and counts on if `model.compile` has set the optimizer's `iterations` to 0.

    Attributes:
      monitor: the monitor of the present or the last `fit`; None before the first.
    """

    def __init__(self, problem: Problem, **options: Any) -> None:
        """Store the problem, and the arguments for the monitor.

        Args:
          problem: network, loss and probe batch.
          options: the arguments of `RankMonitor`: logdir, every, probes and the rest.

        Raises:
          TypeError, ValueError: for invalid arguments, as for `RankMonitor`; a folder that cannot
            be written is an error when `fit` begins.
        """
        super().__init__()
        _check_arguments(problem, options)
        self.monitor: RankMonitor | None = None
        self._problem, self._options = problem, options
        self._state: Mapping[str, Any] | None = options.pop("state", None)
        self._epoch_began = self._step = 0
        self._has_begun = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Open the monitor, and measure the model before its first update if that is due."""
        self.monitor = RankMonitor(self._problem, state=self._state, **self._options)
        if not self._has_begun:
            updates = self.model.optimizer.iterations  # an array if gradients are accumulated
            self._step = int(getattr(updates, "value", updates)) or _last_step(self._state)
            self._has_begun = True
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


def _check_arguments(problem: Any, options: Mapping[str, Any]) -> None:
    """Check the arguments of a monitor, without opening its run folder.

    Raises:
      TypeError, ValueError: for invalid arguments; the message says how to fix them.
    """
    check_problem(problem)
    names = list(inspect.signature(RankMonitor).parameters)[1:]
    for name in options.keys() - set(names):
        (close,) = get_close_matches(name, names, 1, 0.0)
        raise TypeError(
            f"expected an argument of RankMonitor, got {name!r}; perhaps you mean {close!r} (the "
            f"arguments are {', '.join(names)})"
        )
    as_writers(options.get("writers", ()))
    later = {"logdir": None, "writers": (), "params": None, "state": None, "background": False}
    RankMonitor(problem, **{**options, **later}).close()


def _last_step(state: Mapping[str, Any] | None) -> int:
    """Return the last step that a saved state has measured; 0 without one."""
    if state is None:
        return 0
    own: Any = decode({"monitor": state["monitor"]})["monitor"]
    return max(0, int(own["last_step"]))
