"""Differences between neighboring pixels: the operators behind smoothness penalties."""

from __future__ import annotations

import torch
from torch import Tensor

from deconv_cli.operators.linear_operator import LinearOperator, Shape


class Gradient(LinearOperator):
    """Forward differences along rows and columns, stacked ahead of the channels.

    Only differences between pixels of the image are taken; on a torus (`periodic`) the last pixel's neighbor is the
    first. Shape `(*batch, C, H, W)` → `(*batch, 2, C, H, W)`, zero where a pixel has no neighbor.
    """

    def __init__(self, shape: Shape, *, periodic: bool) -> None:
        self.input_shape = shape
        self.output_shape = (2, *shape)
        self.periodic = periodic

    def forward(self, x: Tensor) -> Tensor:
        """Take differences of `x` of shape `(*batch, C, H, W)`."""
        return torch.stack([self._difference(x, -2), self._difference(x, -1)], dim=-4)

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the transpose (the negative divergence) to `y` of shape `(*batch, 2, C, H, W)`."""
        vertical, horizontal = y.unbind(-4)
        return self._transposed(vertical, -2) + self._transposed(horizontal, -1)

    def _difference(self, x: Tensor, axis: int) -> Tensor:
        difference = x.roll(-1, axis) - x
        if not self.periodic:
            difference.narrow(axis, -1, 1).zero_()
        return difference

    def _transposed(self, y: Tensor, axis: int) -> Tensor:
        if not self.periodic:
            y = y.clone()
            y.narrow(axis, -1, 1).zero_()
        return y.roll(1, axis) - y
