"""Run an example in a process of its own."""

import os
import subprocess
import sys

from paths import ROOT


def run(name, *options):
    # One thread each: xdist already keeps the cores busy.
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": ""}  # they run for long
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment)
