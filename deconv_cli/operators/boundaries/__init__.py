"""What may lie outside an image: one rule a file."""
