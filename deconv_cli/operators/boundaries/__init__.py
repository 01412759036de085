"""What may lie outside an image."""
