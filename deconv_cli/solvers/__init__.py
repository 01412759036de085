"""How a convolution is undone: one algorithm a file."""
