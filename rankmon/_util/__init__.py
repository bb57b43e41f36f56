"""General helpers: checks of options, files, text, warnings, and JAX's names of primitives."""
