"""Make the weights of the prior for photographs: `python -m training`."""
