"""Kernels from pairs of pictures, sharp and blurred."""
