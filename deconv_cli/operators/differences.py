"""Differences between neighboring pixels: the operators behind smoothness penalties."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.operators.linear_operator import LinearOperator, Shape
from deconv_cli.vocabulary import Size


@dataclass(frozen=True)
class Difference:
    """A forward difference: `rows` times along the rows and `columns` times along the columns, times a factor.

    Of order (1, 0) it is `x[i + 1, j] − x[i, j]`; of order (0, 0) the pixel itself.
    """

    rows: int
    columns: int
    factor: float = 1.0

    def observed(self, size: Size) -> Size:
        """Tell for how many rows and columns of an image it takes pixels of that image alone."""
        return max(size[0] - self.rows, 0), max(size[1] - self.columns, 0)

    def symbol(self, torus: Size, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """Evaluate it at the frequencies of `torch.fft.rfft2`, as a product of what either axis contributes.

        Returns:
            Complex, shapes `(N1, 1)` and `(N2 // 2 + 1,)`; the factor is in the first.
        """
        down = _axis_symbol(torus[0], torus[0], self.rows, dtype, device)
        across = _axis_symbol(torus[1], torus[1] // 2 + 1, self.columns, dtype, device)
        return self.factor * down[:, None], across


GRADIENT = (Difference(1, 0), Difference(0, 1))
"""‖∇x‖², the differences between neighbors."""

CURVATURE = (Difference(2, 0), Difference(0, 2), Difference(1, 1, math.sqrt(2)))
"""The energy of a bent plate, ‖∂xx‖² + ‖∂yy‖² + 2‖∂xy‖². On a torus it equals ‖Δx‖², the energy of the Laplacian;
inside a frame, unlike that, it takes nothing from beyond the edge and leaves no pixel out."""


class Differences(LinearOperator):
    """Several differences at once, stacked ahead of the channels: `(*batch, C, H, W)` → `(*batch, n, C, H, W)`.

    Only differences between pixels of the image are taken, and the rest is zero; on a torus (`periodic`) the last
    pixel's neighbor is the first.
    """

    def __init__(self, shape: Shape, terms: tuple[Difference, ...], *, periodic: bool) -> None:
        self.input_shape = shape
        self.output_shape = (len(terms), *shape)
        self.terms = terms
        self.periodic = periodic

    def forward(self, x: Tensor) -> Tensor:
        """Take differences of `x` of shape `(*batch, C, H, W)`."""
        return torch.stack([self._difference(x, term) for term in self.terms], dim=-4)

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the transpose to `y` of shape `(*batch, n, C, H, W)`."""
        terms = zip(y.unbind(-4), self.terms, strict=True)
        return torch.stack([self._transposed(plane, term) for plane, term in terms]).sum(0)

    def _difference(self, x: Tensor, term: Difference) -> Tensor:
        for axis, order in ((-2, term.rows), (-1, term.columns)):
            for _ in range(order):
                x = x.roll(-1, axis) - x
        return self._without_crossings(term.factor * x, term)

    def _transposed(self, y: Tensor, term: Difference) -> Tensor:
        y = self._without_crossings(term.factor * y, term)
        for axis, order in ((-2, term.rows), (-1, term.columns)):
            for _ in range(order):
                y = y.roll(1, axis) - y
        return y

    def _without_crossings(self, field: Tensor, term: Difference) -> Tensor:
        """Zero the differences that would take a pixel from beyond the edge."""
        if self.periodic:
            return field
        height, width = term.observed((field.shape[-2], field.shape[-1]))
        gaps = (0, field.shape[-1] - width, 0, field.shape[-2] - height)
        return torch.nn.functional.pad(field[..., :height, :width], gaps)


def _axis_symbol(length: int, n_frequencies: int, order: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    angle = torch.arange(n_frequencies, dtype=dtype, device=device) * (2 * math.pi / length)
    return (torch.polar(torch.ones_like(angle), angle) - 1) ** order
