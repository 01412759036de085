"""Point-spread functions from pictures and stacks of small beads."""
