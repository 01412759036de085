"""What every iteration solves: (AᴴA + μLᴴL) x = Aᴴy + g, for data y, for any other right-hand side g, or for both.

The data stay data: Aᴴ is applied to y − Ax, never AᴴA to x alone, so that no digits are lost to a difference of two
large gradients. A right-hand side that no data stand behind comes with y = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from deconv_cli.operators.linear_operator import LinearOperator
from deconv_cli.solvers.problem import TikhonovProblem, accumulation_dtype, inner, norm, relative


@dataclass(frozen=True)
class NormalEquations:
    """The normal equations of min ‖Ax − y‖² + μ‖Lx‖² − 2⟨g, x⟩.

    Attributes:
        operator: A.
        y: shape `(*batch, *operator.output_shape)`.
        penalty: L; `None` where μ = 0.
        weight: μ.
        g: shape `(*batch, *operator.input_shape)`; `None` stands for zero.
        is_derived: small singular values have been divided by on the way to y, so that Aᴴy may be smaller than the
            rounding of its parts; the scale is then that of the parts.
    """

    operator: LinearOperator
    y: Tensor
    penalty: LinearOperator | None = None
    weight: float = 0.0
    g: Tensor | None = None
    is_derived: bool = False

    @classmethod
    def of_data(cls, problem: TikhonovProblem, y: Tensor) -> NormalEquations:
        """Pose the problem itself, for data `y` of shape `(*batch, C_out, H_y, W_y)`."""
        return cls(problem.operator, y, *_penalty(problem))

    @classmethod
    def of_gradient(cls, problem: TikhonovProblem, g: Tensor) -> NormalEquations:
        """Pose the problem's normal equations for a right-hand side `g` of shape `(*batch, C_in, H, W)`."""
        y = g.new_zeros(*g.shape[:-3], *problem.operator.output_shape)
        return cls(problem.operator, y, *_penalty(problem), g)

    @classmethod
    def of_image(cls, problem: TikhonovProblem, p: Tensor) -> NormalEquations:
        """Pose min ‖Ax − p‖ for a `p` that was found by `of_transpose`, shape `(*batch, C_out, H_y, W_y)`."""
        return cls(problem.operator, p, is_derived=True)

    @classmethod
    def of_transpose(cls, problem: TikhonovProblem, g: Tensor) -> NormalEquations:
        """Pose min ‖Aᴴp − g‖ for `g` of shape `(*batch, C_in, H, W)`: the transposed problem with μ = 0."""
        return cls(problem.operator.H, g, is_derived=True)

    @cached_property
    def right_side(self) -> Tensor:
        """The right-hand side Aᴴy + g, shape `(*batch, *operator.input_shape)`."""
        return self._with_g(self.operator.adjoint(self.y))

    @cached_property
    def scale(self) -> Tensor:
        """What the certificate is relative to, shape `(*batch,)`: ‖Aᴴy + g‖, or ‖A‖‖y‖ for derived data."""
        size = norm(self.right_side)
        if not self.is_derived:
            return size
        # ‖A‖ as the right-hand side shows it: a lower bound, of the norm's order.
        gain = relative(norm(self.operator.forward(self.right_side)), size)
        return torch.maximum(size, gain * norm(self.y))

    def zero(self) -> Tensor:
        """Give the estimate that every iteration may start from, shape `(*batch, *operator.input_shape)`.

        It takes no memory, and is not to be written to.
        """
        return self.y.new_zeros(()).expand(*self.y.shape[:-3], *self.operator.input_shape)

    def residual(self, x: Tensor) -> Tensor:
        """Compute y − Ax."""
        return self.y - self.operator.forward(x)

    def remaining(self, x: Tensor, residual: Tensor) -> Tensor:
        """Compute Aᴴ(y − Ax) + g − μLᴴLx from `x` and y − Ax; it vanishes at the solution."""
        gradient = self._with_g(self.operator.adjoint(residual))
        if self.penalty is None:
            return gradient
        return gradient - self.weight * self.penalty.adjoint(self.penalty.forward(x))

    def curvature(self, direction: Tensor, image: Tensor) -> Tensor:
        """Compute ‖Ad‖² + μ‖Ld‖² from d and Ad, shape `(*batch,)`."""
        curvature = inner(image, image)
        if self.penalty is None:
            return curvature
        penalized = self.penalty.forward(direction)
        # L may have added an axis ahead of the channels.
        axes = tuple(range(direction.ndim - 3 - penalized.ndim, 0))
        return curvature + self.weight * penalized.square().sum(dim=axes, dtype=accumulation_dtype(penalized))

    def _with_g(self, gradient: Tensor) -> Tensor:
        return gradient if self.g is None else gradient + self.g


def _penalty(problem: TikhonovProblem) -> tuple[LinearOperator | None, float]:
    return (problem.penalty_operator, problem.weight) if problem.weight > 0 else (None, 0.0)
