"""Readers of the network's program: dense stacks, activations, kernels and their axes."""
