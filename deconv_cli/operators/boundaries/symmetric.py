"""The image mirrored about its edges."""

import torch
from torch import Tensor

from deconv_cli.operators.boundaries.rule import BoundaryRule


class SymmetricBoundary(BoundaryRule):
    """A mirror image that repeats the outermost pixels: `b a | a b c | c b`."""

    name = "symmetric"
    description = "its mirror image, the edge repeated, was taken to lie outside"

    def reach(self, length: int) -> int:
        """Reach as far as the line is long."""
        return length

    def sources(self, position: Tensor, length: int) -> Tensor:
        """Mirror about the outer sides of pixels 0 and `length - 1`."""
        return torch.where(position < 0, -position - 1, 2 * length - 1 - position)


SYMMETRIC = SymmetricBoundary()
