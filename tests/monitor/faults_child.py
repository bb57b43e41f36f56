"""A small training program that is killed, interrupted and starved, for `test_faults`.

One process imports and compiles everything; each training is a fork of it, which costs no import.
It reads orders from its input, one JSON object per line, and answers with the result of each. A
fork counts every open, write, rename and so on before it is passed to the operating system, so that
it can kill itself before such a call, or in the middle of a write.
"""

import gc
import io
import json
import os
import pickle
import random
import resource
import select
import shutil
import signal
import sys
import time
import traceback
import warnings
from contextlib import suppress
from pathlib import Path

PATIENCE = 60.0
STEPS, EVERY, SAVED = 16, 2, 6


class Tap:
    """Counts what reaches the operating system, and kills this process at one of these events."""

    def __init__(self):
        self.names, self.at, self.how, self.folder = [], None, "", None

    def watch(self, folder, at, how):
        self.names, self.at, self.how, self.folder = [], at, how, str(folder)

    def passes(self, name, action, *args, torn=None):
        if self.folder is not None:
            self.names.append(name)
            if self.at == len(self.names) - 1:
                if self.how == "torn":
                    torn()
                die()
        return action(*args)


def removed(folder):
    """Remove a folder in which a thread may be writing: it can put a file there meanwhile."""
    for _ in range(100):
        try:
            return shutil.rmtree(folder)
        except OSError:
            time.sleep(0.01)
    return shutil.rmtree(folder)


def die():
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(PATIENCE)


tap = Tap()
_File = io.FileIO


class TappedFile(_File):
    def __init__(self, file, *args, **options):
        name = "open" if isinstance(file, int) else f"open {Path(os.fspath(file)).suffix}"
        tap.passes(name, lambda: _File.__init__(self, file, *args, **options))

    def write(self, data):
        start = b'"start"' in bytes(data[:10]) or b"custom_scalars" in bytes(data)
        name = "start" if start else "write"
        half = bytes(data)[: len(data) // 2]
        return tap.passes(name, _File.write, self, data, torn=lambda: _File.write(self, half))

    def truncate(self, *args):
        return tap.passes("truncate", _File.truncate, self, *args)


tell = os.write
io.FileIO = TappedFile  # before the modules that take it from there
for name in ("open", "write", "replace", "rename", "fsync", "unlink", "ftruncate", "mkdir", "link"):
    original = getattr(os, name)
    setattr(os, name, lambda *a, n=name, o=original, **k: tap.passes(n, lambda: o(*a, **k)))


def _on_audit(event, args):
    """Counts the files that the C code opens."""
    if event == "open" and tap.folder is not None and str(args[0]).startswith(tap.folder):
        tap.passes("open in C", lambda: None)


sys.addaudithook(_on_audit)

import jax  # noqa: E402
import numpy as np  # noqa: E402

import rankmon  # noqa: E402

jax.config.update("jax_cpu_enable_async_dispatch", False)

# The data, the network, and a train step that is NumPy's alone


X = np.linspace(-1.0, 1.0, 8, dtype=np.float32).reshape(4, 2)
Y = np.array([[0.3], [-0.2], [0.1], [0.4]], np.float32)


def network(params, x):
    return jax.numpy.tanh(x @ params["V"]) @ params["W"]


def first_params():
    V = np.array([[0.5, -0.3], [0.2, 0.8]], np.float32)
    return {"V": V, "W": np.array([[0.7], [-0.4]], np.float32)}


def trained(params):
    V, W = params["V"], params["W"]
    h = np.tanh(X @ V)
    e = (h @ W - Y) / np.float32(len(X))
    lr = np.float32(0.2)
    return {"V": V - lr * (X.T @ ((e @ W.T) * (1 - h * h))), "W": W - lr * (h.T @ e)}


PROBLEM = rankmon.Problem(network, loss="mse", inputs=X, targets=Y)

# One training


def thread_settings():
    """JAX's settings of this thread that a measurement changes for itself."""
    names = ("enable_x64", "disable_jit", "numpy_dtype_promotion", "numpy_rank_promotion")
    names += ("default_matmul_precision", "debug_nans", "debug_infs")
    names += ("transfer_guard_host_to_device", "transfer_guard_device_to_host")
    return [getattr(jax.config, f"jax_{name}") for name in names]


def loaded(folder):
    """Step, parameters and the monitor's state to go on from."""
    path = folder / "checkpoint"
    return pickle.loads(path.read_bytes()) if path.exists() else (0, first_params(), None)


def save(folder, *what):
    with suppress(OSError):  # a full disk
        (folder / "new").write_bytes(pickle.dumps(what))
        (folder / "new").replace(folder / "checkpoint")


def limit_files(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


class Interrupts:
    """Has SIGINT raise KeyboardInterrupt while it is armed, once each time."""

    def __init__(self):
        self.count, self.armed = 0, False
        signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, *_):
        if self.armed:
            self.armed = False
            raise KeyboardInterrupt

    def persist(self, action, *args, **options):
        """The action's result, begun again after each interrupt."""
        while True:
            try:
                self.armed = True
                result = action(*args, **options)
                self.armed = False
                return result
            except KeyboardInterrupt:
                self.count += 1


def train(order, say):
    folder = Path(order["folder"])
    step, params, state = loaded(folder)
    say("begins", step)
    began = time.monotonic()
    tap.watch(folder / "run", order.get("event"), order.get("how", ""))
    interrupts = Interrupts()
    memory = rankmon.MemoryWriter()
    settings = thread_settings()
    monitor = rankmon.RankMonitor(
        PROBLEM,
        logdir=folder / "run",
        every=EVERY,
        background=order["background"],
        state=state,
        hparams={"rate": 0.2},
        probes=["hessian"],
        writers=[memory],
    )
    persist = interrupts.persist
    with monitor:
        while step < order.get("steps", STEPS) or interrupts.count < order.get("interrupts", 0):
            if step == order.get("full_from"):
                limit_files(1)
            if step == order.get("full_until"):
                limit_files(resource.RLIM_INFINITY)
            if step == order.get("removed_at"):
                removed(folder / "run")
            if step == order.get("dies_at"):
                die()
            if persist(monitor, step, params) is not None:
                say("returned", step)
            if step % 6 == 5:
                persist(monitor.flush)
                say("flushed", step)
            params, step = trained(params), step + 1
            if step % SAVED == 0 and "steps" not in order:
                save(folder, step, params, persist(lambda: monitor.state))
        limit_files(resource.RLIM_INFINITY)
        monitor.close(step, params)
        say("closed", step)
        say("seconds", time.monotonic() - began)
    tap.folder = None
    say("steps", [record.step for record in memory.all_records])
    say("interrupts", interrupts.count)
    say("settings", thread_settings() == settings)
    say("events", tap.names)


# The process whose forks these are


def forked(order):
    """The exit status of a training (None where it hangs), and what it said."""
    ours, its = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(ours)
            train(order, lambda *what: tell(its, json.dumps(what).encode() + b"\n"))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(its)
    said, hangs = _overseen(child, ours, order)
    os.close(ours)
    if hangs:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return {"status": None if hangs else os.waitstatus_to_exitcode(status), "said": said}


def _overseen(child, pipe, order):
    """What the fork says until it ends or hangs; signals are sent to it on the way."""
    rng, began, data = random.Random(order.get("seed")), time.monotonic(), b""
    kill_at = began + order["after"] if "after" in order else None
    pause = order.get("pause")
    while True:
        wait = 0.05
        if kill_at is not None:
            wait = max(kill_at - time.monotonic(), 0)
        if pause is not None:
            wait = rng.uniform(0, 2 * pause)
        if select.select([pipe], [], [], wait)[0]:
            more = os.read(pipe, 1 << 16)
            data += more
            if not more:
                break
            if pause is None:
                continue
        if kill_at is not None and time.monotonic() >= kill_at:
            os.kill(child, signal.SIGKILL)
            kill_at = None
        if pause is not None:
            time.sleep(rng.uniform(0, pause))
            os.kill(child, signal.SIGINT)
        if time.monotonic() - began > PATIENCE:
            return _lines(data), True
    return _lines(data), False


def _lines(data):
    return [json.loads(line) for line in data.splitlines()]


def main():
    # The forks run one thread of JAX's, and what forking says of the others is known.
    warnings.filterwarnings("ignore", message=r".*fork\(\)")
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        order = json.loads(line)
        if order.pop("here", False):
            train(order, lambda *_: None)
            gc.collect()
            gc.freeze()  # a fork's collections would copy every page
            answer = {}
        else:
            answer = forked(order)
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
