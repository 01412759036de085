"""The gradient checker: for every parameter, does its gradient arrive, is it right, and which line is at fault."""
