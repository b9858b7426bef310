"""Fast forms for a CPU: PyTorch multiplies matrices, Numba does the passes between the products."""
