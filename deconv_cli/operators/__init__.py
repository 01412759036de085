"""What the blur does: linear operators with exact adjoints, and their shapes."""
