"""The rules for the pixels outside an image."""
