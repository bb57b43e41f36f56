"""What the network's program reveals: layers, activations, kernels and their axes."""
