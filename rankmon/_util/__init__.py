"""What knows nothing of networks or ranks: checks, files, text, warnings, JAX's names for primitives."""
