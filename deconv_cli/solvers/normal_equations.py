"""What every iteration solves: (AᴴA + μLᴴL) x = Aᴴy + g, for data y, another right-hand side g, or both.

Aᴴ is applied to the residual y − Ax, never AᴴA to x alone, so that no digits are lost to a difference of two large
gradients. A right-hand side without data comes with y = 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.linear_operator import Identity, LinearOperator
from deconv_cli.regularizers import find_penalty
from deconv_cli.solvers.norms import inner, norm, relative
from deconv_cli.solvers.problem import MAX_LAMBDA_IN_FLOAT32, TikhonovProblem


@dataclass(frozen=True)
class NormalEquations:
    """The normal equations of min ‖Ax − y‖² + μ‖Lx‖² − 2⟨g, x⟩.

    Attributes:
        operator: A.
        y: shape `(*batch, *operator.output_shape)`.
        penalty: L; `None` where μ = 0.
        weight: μ.
        g: shape `(*batch, *operator.input_shape)`; `None` stands for zero.
        needs_float64: rounding of the penalty's gradient in float32 would be larger than what is to be reached.
        is_derived: small singular values have been divided by on the way to y, so that Aᴴy may be smaller than the
            rounding of its parts; the scale is then that of the parts.
    """

    operator: LinearOperator
    y: Tensor
    penalty: LinearOperator | None = None
    weight: float = 0.0
    needs_float64: bool = False
    g: Tensor | None = None
    is_derived: bool = False

    @classmethod
    def of_data(cls, problem: TikhonovProblem, y: Tensor) -> NormalEquations:
        """Write down the problem itself, for data `y` of shape `(*batch, C_out, *output_size)`."""
        return cls(problem.operator, y, *_penalty(problem))

    @classmethod
    def of_gradient(cls, problem: TikhonovProblem, g: Tensor) -> NormalEquations:
        """Write down the problem's normal equations for a right-hand side `g` of shape `(*batch, C_in, *size)`."""
        batch = g.shape[: g.ndim - problem.n_dims]
        return cls(problem.operator, g.new_zeros(*batch, *problem.operator.output_shape), *_penalty(problem), g=g)

    @classmethod
    def of_image(cls, problem: TikhonovProblem, p: Tensor) -> NormalEquations:
        """Write down min ‖Ax − p‖ for a `p` that solves `of_transpose`, shape `(*batch, C_out, *output_size)`."""
        return cls(problem.operator, p, is_derived=True)

    @classmethod
    def of_transpose(cls, problem: TikhonovProblem, g: Tensor) -> NormalEquations:
        """Write down min ‖Aᴴp − g‖ for `g` of shape `(*batch, C_in, *size)`: the transposed problem with μ = 0."""
        return cls(problem.operator.H, g, is_derived=True)

    @property
    def n_dims(self) -> int:
        """Axes of one unknown x."""
        return len(self.operator.input_shape)

    @cached_property
    def right_side(self) -> Tensor:
        """The right-hand side Aᴴy + g, shape `(*batch, *operator.input_shape)`."""
        return self._with_g(self.operator.adjoint(self.y))

    @cached_property
    def scale(self) -> Tensor:
        """What the certificate is relative to, shape `(*batch,)`: ‖Aᴴy + g‖, or ‖A‖‖y‖ for derived data."""
        size = self.norm(self.right_side)
        if not self.is_derived:
            return size
        # ‖A‖ as the right-hand side shows it: a lower bound, of the norm's order.
        n_outputs = len(self.operator.output_shape)
        gain = relative(norm(self.operator.forward(self.right_side), n_outputs), size)
        return torch.maximum(size, gain * norm(self.y, n_outputs))

    @property
    def least_curvature(self) -> float | None:
        """A lower bound of the eigenvalues of AᴴA + μLᴴL: μ for the identity, else none is known."""
        return self.weight if isinstance(self.penalty, Identity) else None

    def norm(self, x: Tensor) -> Tensor:
        """Compute the norms of unknowns, shape `(*batch,)`."""
        return norm(x, self.n_dims)

    def zero(self) -> Tensor:
        """Return the estimate that every iteration may start from, shape `(*batch, *operator.input_shape)`.

        It takes no memory, and is not to be written to.
        """
        batch = self.y.shape[: self.y.ndim - len(self.operator.output_shape)]
        return self.y.new_zeros(()).expand(*batch, *self.operator.input_shape)

    def residual(self, x: Tensor) -> Tensor:
        """Compute y − Ax."""
        return self.y - self.operator.forward(x)

    def remaining(self, x: Tensor, residual: Tensor) -> Tensor:
        """Compute Aᴴ(y − Ax) + g − μLᴴLx from `x` and y − Ax; it vanishes at the solution."""
        gradient = self._with_g(self.operator.adjoint(residual))
        if self.penalty is None:
            return gradient
        return torch.sub(gradient, self.penalty.apply_gram(x), alpha=self.weight)

    def curvature(self, direction: Tensor, image: Tensor) -> Tensor:
        """Compute ‖Ad‖² + μ‖Ld‖² from d and Ad, shape `(*batch,)`."""
        n_outputs = len(self.operator.output_shape)
        curvature = inner(image, image, n_outputs)
        if self.penalty is None:
            return curvature
        penalized = self.penalty.forward(direction)
        return curvature + self.weight * inner(penalized, penalized, len(self.penalty.output_shape))

    def distance(self, gradient: Tensor, least: float) -> Tensor:
        """Bound ‖x − x*‖ by the gradient at x, with its rounding, over the least eigenvalue, shape `(*batch,)`."""
        return (self.norm(gradient) + torch.finfo(gradient.dtype).eps * self.scale) / least

    def in_float64(self) -> NormalEquations | None:
        """Return the same equations in double precision; `None` where they are so already, or cannot be."""
        operator = self.operator
        if self.y.dtype == torch.float64 or self.y.device.type == "mps" or not isinstance(operator, Convolution):
            return None
        g = None if self.g is None else self.g.double()
        return replace(self, operator=operator.in_float64(), y=self.y.double(), g=g, needs_float64=False)

    def _with_g(self, gradient: Tensor) -> Tensor:
        return gradient if self.g is None else gradient + self.g


def _penalty(problem: TikhonovProblem) -> tuple[LinearOperator | None, float, bool]:
    if problem.weight == 0:
        return None, 0.0, False
    is_heavy = problem.lam > MAX_LAMBDA_IN_FLOAT32 and find_penalty(problem.penalty).takes_differences
    return problem.penalty_operator, problem.weight, is_heavy
