"""Runs read back from a log folder, without JAX."""
