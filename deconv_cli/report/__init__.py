"""A finished result as one JSON-able record."""
