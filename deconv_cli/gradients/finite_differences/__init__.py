"""Finite differences with an error bar, and the search for the element that is wrong."""
