"""Where kernels come from, and the one form in which the operators take them."""
