"""A finished result as JSON and as a table."""
