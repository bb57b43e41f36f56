"""Read runs back from a log folder, without JAX."""
