"""The gradient doctor: for every parameter, does its gradient arrive, is it right, and what stands in the way."""
