"""What a command does, on tensors, silently."""
