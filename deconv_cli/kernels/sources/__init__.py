"""Kernels from formulas: simple blurs, and blurs of optics, sampled as a camera sees them."""
