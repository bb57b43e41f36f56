"""Runs read back from a log folder; imports no JAX."""
