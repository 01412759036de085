"""Kernels learned by gradient descent."""
