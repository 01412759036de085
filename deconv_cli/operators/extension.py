"""The boundary rule as a linear operator: it takes an image to the image with its border."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from deconv_cli.operators.axes import crop, space_axes
from deconv_cli.operators.boundary_rules import BoundaryRule
from deconv_cli.operators.geometry import Geometry
from deconv_cli.operators.linear_operator import LinearOperator
from deconv_cli.vocabulary import Size


class Extension(LinearOperator):
    """Surround an image `(*batch, C, *size)` by its border, for a rule that copies pixels or that of zeros.

    The adjoint folds the border back: each border pixel, times its factor, is added to its source. Only the border
    strips are gathered; the interior is moved as a whole.

    Raises:
        ShapeError: the border is wider than the rule can supply.
    """

    def __init__(self, geometry: Geometry, n_channels: int, boundary: BoundaryRule) -> None:
        geometry.check_boundary(boundary)
        self.input_shape = (n_channels, *geometry.image_size)
        self.output_shape = (n_channels, *geometry.extended_size)
        self.boundary = boundary
        self._pads = geometry.pads
        n_axes = len(geometry.image_size)
        # The last axis first: its strips are thin slices of contiguous rows.
        self._sides = [
            side
            for side in zip(
                space_axes(n_axes), geometry.pads.before, geometry.pads.after, geometry.image_size, strict=True
            )
            if side[1] or side[2]
        ][::-1]

    def forward(self, x: Tensor) -> Tensor:
        """Extend `x` of shape `(*batch, C, *size)`."""
        if self.boundary.is_zero:
            pads = zip(reversed(self._pads.before), reversed(self._pads.after), strict=True)
            return functional.pad(x, [n for pair in pads for n in pair])
        for axis, before, after, length in self._sides:
            positions = outside_positions(before, after, length, x.device)
            first, last = (self._copy(x, axis, position, length) for position in positions)
            x = torch.cat([first, x, last], axis)
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        """Fold `y` of shape `(*batch, C, *extended size)` back onto the image."""
        if self.boundary.is_zero:
            return crop(y, self._pads.before, self.input_shape[1:])
        for axis, before, after, length in reversed(self._sides):
            positions = outside_positions(before, after, length, y.device)
            strips = (y.narrow(axis, 0, before), y.narrow(axis, before + length, after))
            y = y.narrow(axis, before, length).clone()  # the input stays as it is
            for position, strip in zip(positions, strips, strict=True):
                sources = self.boundary.sources(position, length)
                y.index_add_(axis, sources, self._scale(strip, axis, position, length))
        return y

    def _copy(self, x: Tensor, axis: int, position: Tensor, length: int) -> Tensor:
        return self._scale(x.index_select(axis, self.boundary.sources(position, length)), axis, position, length)

    def _scale(self, strip: Tensor, axis: int, position: Tensor, length: int) -> Tensor:
        factors = self.boundary.factors(position, length)
        return strip if factors is None else strip * factors.to(strip.dtype).reshape(-1, *[1] * (-1 - axis))


def outside_positions(before: int, after: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Number the border pixels of a line: −before, …, −1 ahead of it, and length, …, length + after − 1 behind it."""
    return torch.arange(-before, 0, device=device), torch.arange(length, length + after, device=device)


def close_smoothly(y: Tensor, torus: Size) -> Tensor:
    """Lengthen `y` of shape `(*batch, C, *size)` to a torus so that each end runs smoothly into the beginning.

    Along each axis a blend of the mirror images of both ends fills the gap, so that the torus has no seam.
    """
    for axis, length in zip(space_axes(len(torus)), torus, strict=True):
        n = y.shape[axis]
        gap = length - n
        if gap == 0:
            continue
        step = torch.arange(gap, device=y.device)
        fade = (0.5 - 0.5 * torch.cos(torch.pi * (step + 0.5) / gap)).to(y.dtype).reshape(-1, *[1] * (-1 - axis))
        after_end = y.index_select(axis, (n - 1 - step).clamp_min(0))
        before_start = y.index_select(axis, (gap - 1 - step).clamp_max(n - 1))
        y = torch.cat([y, after_end * (1 - fade) + before_start * fade], axis)
    return y
