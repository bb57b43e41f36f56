"""The Ranks tab of TensorBoard, without JAX."""
