"""The gradient doctor: for every parameter, whether its gradient arrives, whether it is right, and what stands in the way."""
