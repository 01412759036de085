"""The border rule as a linear operator: an image goes in, the image with its border comes out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from deconv_cli.operators.geometry import Geometry
from deconv_cli.operators.linear_operator import LinearOperator


class Extension(LinearOperator):
    """Surround an image `(*batch, C, H, W)` by its border.

    The adjoint folds the border back: each border pixel is added to the pixel that it was copied from. Only the border
    strips are gathered; the interior is moved as a whole.
    """

    def __init__(self, geometry: Geometry, n_channels: int, boundary: str) -> None:
        geometry.check_boundary(boundary)
        self.input_shape = (n_channels, *geometry.image_size)
        self.output_shape = (n_channels, *geometry.extended_size)
        self.boundary = boundary
        pads = geometry.pads
        # Columns first: their strips are thin slices of contiguous rows.
        self._sides = (
            (-1, pads.left, pads.right, geometry.image_size[1]),
            (-2, pads.top, pads.bottom, geometry.image_size[0]),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Extend `x` of shape `(*batch, C, H, W)`."""
        for axis, before, after, length in self._sides:
            if self.boundary == "zero":
                x = functional.pad(x, (before, after) if axis == -1 else (0, 0, before, after))
            elif before or after:
                first, last = border_sources(self.boundary, before, after, length, x.device)
                x = torch.cat([x.index_select(axis, first), x, x.index_select(axis, last)], axis)
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        """Fold `y` of shape `(*batch, C, H + pads, W + pads)` back onto the image."""
        for axis, before, after, length in reversed(self._sides):
            interior = y.narrow(axis, before, length)
            if self.boundary == "zero" or not (before or after):
                y = interior
                continue
            first, last = border_sources(self.boundary, before, after, length, y.device)
            y = (
                interior.clone()
                .index_add(axis, first, y.narrow(axis, 0, before))
                .index_add(axis, last, y.narrow(axis, before + length, after))
            )
        return y


def border_sources(boundary: str, before: int, after: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tell which pixel of a line each border pixel is copied from.

    Args:
        boundary: any rule but `zero` and `unknown`, which copy nothing.
        before: border pixels ahead of the line.
        after: border pixels behind the line.
        length: pixels of the line.
        device: where the indices are wanted.

    Returns:
        Indices into the line, of shapes `(before,)` and `(after,)`.
    """
    position = torch.cat(
        [
            torch.arange(-before, 0, device=device),
            torch.arange(length, length + after, device=device),
        ]
    )
    if boundary == "circular":
        source = position % length
    elif boundary == "replicate":
        source = position.clamp(0, length - 1)
    elif boundary == "reflect":
        source = torch.where(position < 0, -position, 2 * (length - 1) - position)
    elif boundary == "symmetric":
        source = torch.where(position < 0, -position - 1, 2 * length - 1 - position)
    else:
        raise ValueError(f"a {boundary} boundary copies no pixels")
    return source[:before], source[before:]


def close_smoothly(y: Tensor, axis: int, length: int) -> Tensor:
    """Lengthen `y` along an axis so that its end runs smoothly into its beginning.

    The gap is filled by a blend of the mirror images of both ends, so that a torus of this length has no seam.

    Args:
        y: shape `(*batch, C, H, W)`.
        axis: −2 or −1.
        length: at least the present length.
    """
    n = y.shape[axis]
    gap = length - n
    step = torch.arange(gap, device=y.device)
    fade = (0.5 - 0.5 * torch.cos(torch.pi * (step + 0.5) / gap)).to(y.dtype)
    fade = fade.reshape(-1, 1) if axis == -2 else fade
    after_end = y.index_select(axis, (n - 1 - step).clamp_min(0))
    before_start = y.index_select(axis, (gap - 1 - step).clamp_max(n - 1))
    return torch.cat([y, after_end * (1 - fade) + before_start * fade], axis)
