"""The Ranks tab of TensorBoard; imports no JAX."""
