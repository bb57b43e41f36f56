"""Settings of every test: JAX as it comes (x64 off), on the CPU."""
