"""Zeros outside, as networks pad their tensors."""

from deconv_cli.operators.boundaries.rule import BoundaryRule


class ZeroBoundary(BoundaryRule):
    """All pixels outside are zero: `0 0 | a b c | 0 0`."""

    name = "zero"
    description = "zeros were taken to lie outside"
    is_zero = True


ZERO = ZeroBoundary()
