"""A finished result as JSON, as a page, as pictures, and in a notebook."""
