"""Diagonals of the Fisher matrix and of the generalized Gauss-Newton matrix."""
