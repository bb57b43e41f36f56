"""The `rankmon` command."""
