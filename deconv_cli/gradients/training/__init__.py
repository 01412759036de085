"""A training script as it runs: its forward pass recorded, its backward pass checked, its optimizers watched."""
