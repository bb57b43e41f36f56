"""Settings of every test: JAX as it comes (x64 off), on the CPU, one BLAS thread a worker."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# xdist keeps the cores busy already; threads that wait for one another take minutes instead.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
