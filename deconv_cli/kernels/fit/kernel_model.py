"""Kernels as a module, in coordinates in which the squared error is equally steep in all directions.

Pictures have little power in fine detail, so the error is thousands of times flatter along some kernels than along
others. With the Cholesky factor R of XᵀX/n + μLᵀL the coordinates are Rk. A step of gradient descent for the squared
error is then a step of Newton's method (Nocedal and Wright, Numerical Optimization, 2006, section 3.3), and for other
losses close to one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from deconv_cli.kernels.fit.pair_equations import solve_constrained
from deconv_cli.operators.convolution import CONVOLUTIONS
from deconv_cli.vocabulary import Size


@dataclass(frozen=True)
class Constraint:
    """A constraint on the taps of a kernel: none is negative, they add up to `total`, or both."""

    nonnegative: bool
    total: float | None

    @property
    def is_empty(self) -> bool:
        """Whether there is no constraint."""
        return not self.nonnegative and self.total is None


class KernelModel(nn.Module):
    """Kernels of G groups of channels as a module with one parameter, `coordinates`, shape `(G, N, C_out)`.

    Args:
        metric: XᵀX/n + μLᵀL of each group, positive definite, shape `(G, N, N)` with N = C_in·prod(k).
        penalty: μLᵀL, of the same shape.
        columns: the taps to start from, shape `(G, N, C_out)`.
        size: of the kernel.
        constraint: on the taps.
    """

    def __init__(self, metric: Tensor, penalty: Tensor, columns: Tensor, size: Size, constraint: Constraint) -> None:
        super().__init__()
        self.size = size
        self.constraint = constraint
        self.register_buffer("metric", metric)
        self.register_buffer("penalty", penalty)
        self.register_buffer("factor", torch.linalg.cholesky(metric, upper=True))
        self.coordinates = nn.Parameter(self.coordinates_of(columns))
        self.project_()

    def columns(self) -> Tensor:
        """Return the taps, shape `(G, N, C_out)`."""
        return torch.linalg.solve_triangular(cast(Tensor, self.factor), self.coordinates, upper=True)

    def coordinates_of(self, columns: Tensor) -> Tensor:
        """Return the coordinates of taps `(G, N, C_out)`."""
        return cast(Tensor, self.factor) @ columns

    def forward(self, wide: Tensor) -> Tensor:
        """Convolve images that include their border.

        Args:
            wide: shape `(B, G·C_in, *(size + k − 1))`.

        Returns:
            Shape `(B, G·C_out, *size)`.
        """
        return convolve(wide, self.columns(), self.size)

    def roughness(self) -> Tensor:
        """Return ½ Σ kᵀμLᵀLk."""
        columns = self.columns()
        return 0.5 * (columns * (cast(Tensor, self.penalty) @ columns)).sum()

    @torch.no_grad()
    def project_(self) -> None:
        """Project the taps onto the constraint, in the metric of the coordinates."""
        if not self.constraint.is_empty:
            self.coordinates.copy_(self.nearest(self.coordinates))

    def nearest(self, coordinates: Tensor) -> Tensor:
        """Return the nearest coordinates that obey the constraint."""
        if self.constraint.is_empty:
            return coordinates
        metric, factor = cast(Tensor, self.metric), cast(Tensor, self.factor)
        right, how = factor.mT @ coordinates, self.constraint
        found = [
            [solve_constrained(h, column, nonnegative=how.nonnegative, total=how.total) for column in columns]
            for h, columns in zip(metric, right.mT, strict=True)
        ]
        return self.coordinates_of(torch.stack([torch.stack(columns, 1) for columns in found]))


def convolve(wide: Tensor, columns: Tensor, size: Size) -> Tensor:
    """Convolve images that include their border, as `KernelModel` does, by taps `(G, N, C_out)`."""
    weight = columns.mT.reshape(len(columns) * columns.shape[-1], -1, *size)
    return CONVOLUTIONS[len(size)](wide, weight, groups=len(columns))
