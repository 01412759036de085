"""Undo a convolution, under its real borders, and say how far to trust the result."""

__version__ = "0.1.0"
