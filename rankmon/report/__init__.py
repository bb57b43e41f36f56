"""Reports on runs, without JAX: summaries, comparisons, tables, files, pictures and pages."""
