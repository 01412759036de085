"""The image repeated, as the discrete Fourier transform assumes."""

from torch import Tensor

from deconv_cli.operators.boundaries.rule import BoundaryRule


class CircularBoundary(BoundaryRule):
    """The image repeats itself: `b c | a b c | a b`."""

    name = "circular"
    description = "the image was taken to repeat itself"
    is_periodic = True

    def reach(self, length: int) -> int:
        """Reach as far as the line is long."""
        return length

    def sources(self, position: Tensor, length: int) -> Tensor:
        """Count on from the other end."""
        return position % length


CIRCULAR = CircularBoundary()
