"""Kernels from formulas: one source a file, each integrated over the pixels."""
