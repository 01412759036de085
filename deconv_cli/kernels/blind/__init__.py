"""Which blur is it: a kernel from one blurred picture."""
