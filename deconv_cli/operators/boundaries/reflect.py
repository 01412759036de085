"""The image mirrored about the centers of its outermost pixels."""

import torch
from torch import Tensor

from deconv_cli.operators.boundaries.rule import BoundaryRule


class ReflectBoundary(BoundaryRule):
    """A mirror image that does not repeat the outermost pixels: `c b | a b c | b a`."""

    name = "reflect"
    description = "its mirror image was taken to lie outside"

    def reach(self, length: int) -> int:
        """Reach up to the pixel at the other end."""
        return length - 1

    def sources(self, position: Tensor, length: int) -> Tensor:
        """Mirror about the centers of pixels 0 and `length - 1`."""
        return torch.where(position < 0, -position, 2 * (length - 1) - position)


REFLECT = ReflectBoundary()
