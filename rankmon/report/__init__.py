"""Reports on runs: summaries, tables, files, pictures and pages, without JAX."""
