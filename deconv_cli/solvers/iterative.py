"""The true operator under any border, inverted by preconditioned conjugate gradients from an FFT estimate."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.circulant import BlockCirculant, next_fast_size, to_float64, torus_symbol
from deconv_cli.operators.extension import close_smoothly
from deconv_cli.operators.linear_operator import LinearOperator, Shape
from deconv_cli.operators.spectrum import kernel_spectrum
from deconv_cli.regularizers import find_penalty
from deconv_cli.solvers.cgls import conjugate_gradients, iterate
from deconv_cli.solvers.fourier import gram_inverse_blocks
from deconv_cli.solvers.inverse import Inverse
from deconv_cli.solvers.normal_equations import NormalEquations
from deconv_cli.solvers.problem import TikhonovProblem, norm
from deconv_cli.solvers.refinement import Course, Progress, StoppingRule
from deconv_cli.solvers.solution import Solution, Status
from deconv_cli.solvers.strip import StripSystem
from deconv_cli.vocabulary import Size

# Room around the image on the preconditioner's torus, so that opposite edges do not feel each other.
TORUS_MARGIN = 16
# By how much an answer for λ = 0 may change when it is found again from its own output.
MAX_CHANGE = 1e-3
# Measured for random kernels of 4 channels that lose 40 modes: 8 to 14 iterations with 1e-8, 26 to 50 with 1e-6.
PRECONDITIONER_LAMBDA = 1e-8
# Conjugate gradients want the same preconditioner in every iteration.
PRECONDITIONER_RULE = StoppingRule(tolerance=1e-10, max_iterations=2000)


class IterativeInverse(Inverse):
    """Inverse of one problem, ready for many outputs.

    For λ > 0 the normal equations are preconditioned by the inverse of a circulant approximation on a larger torus,
    and started from the circular estimate. For λ = 0 and at least as many outputs as pixels the preconditioner is the
    exact solution for a tiny λ: it leaves no more iterations than there are modes that the border all but loses. With
    fewer outputs nothing but a start from zero without a preconditioner keeps the iteration in the range of Aᴴ, where
    the solution of least norm lies.
    """

    def __init__(self, problem: TikhonovProblem, rule: StoppingRule) -> None:
        self.problem = problem
        self.rule = rule
        self._preconditioner: LinearOperator | None = None
        if problem.weight > 0:
            self._preconditioner = TorusPreconditioner(problem)
        elif not problem.operator.boundary.has_factors and all(
            o >= i for o, i in zip(problem.operator.output_shape, problem.operator.input_shape, strict=True)
        ):
            self._preconditioner = StripPreconditioner(problem)

    def solve(self, y: Tensor, progress: Progress | None = None) -> Solution:
        """Solve for data `y` of shape `(*batch, C_out, H_y, W_y)`."""
        if self.problem.weight == 0:
            return self._solve_exactly(y, progress)
        assert isinstance(self._preconditioner, TorusPreconditioner)
        start = self._better_start(y, self._preconditioner.estimate(y))
        return conjugate_gradients(
            self.problem, y, self.rule, start=start, preconditioner=self._preconditioner, progress=progress
        )

    def _solve_exactly(self, y: Tensor, progress: Progress | None) -> Solution:
        """Solve with λ = 0, and make sure that the preconditioner has not filled the null space with rounding.

        The certificate does not see images that A annihilates, of which the preconditioner multiplies what rounding
        leaves by 1 / λ. So the answer must be found again from its own output; else the plain iteration, which never
        leaves the range of Aᴴ, has the last word.
        """
        if self._preconditioner is None:
            return conjugate_gradients(self.problem, y, self.rule, progress=progress)

        def solve(data: Tensor) -> Solution:
            return conjugate_gradients(
                self.problem, data, self.rule, preconditioner=self._preconditioner, progress=progress
            )

        solution = solve(y)
        again = solve(self.problem.operator.forward(solution.value))
        differs = norm(again.value - solution.value) > MAX_CHANGE * norm(solution.value)
        if not synchronize.holds_anywhere(differs):
            return solution
        plain = conjugate_gradients(self.problem, y, self.rule, progress=progress)
        if plain.status.is_success:
            return plain
        return replace(solution, status=Status.UNDETERMINED)

    def solve_normal(self, g: Tensor) -> Tensor:
        """Compute H⁺g for `g` of shape `(*batch, C_in, H, W)`."""
        if self.problem.weight > 0:
            equations = NormalEquations.of_gradient(self.problem, g)
        else:
            equations = NormalEquations.of_image(self.problem, self.solve_transposed(g))
        return iterate(equations, self.rule, preconditioner=self._preconditioner).warn_for_status().value

    def solve_transposed(self, g: Tensor) -> Tensor:
        """Compute AH⁺g for `g` of shape `(*batch, C_in, H, W)`; for λ = 0 by an iteration on Aᴴ itself."""
        if self.problem.weight > 0:
            return super().solve_transposed(g)
        return iterate(NormalEquations.of_transpose(self.problem, g), self.rule).warn_for_status().value

    def _better_start(self, y: Tensor, estimate: Tensor) -> Tensor:
        """Keep the estimate for those images of the batch that it brings closer than zero would."""
        residual = norm(y - self.problem.operator.forward(estimate)).square()
        penalty = (self.problem.penalty_gram(estimate) * estimate).sum(dim=(-3, -2, -1))
        better = residual + penalty < norm(y).square()
        return torch.where(better[..., None, None, None], estimate, 0)


class StripPreconditioner(LinearOperator):
    """(AᴴA + μ)⁻¹ for a tiny μ, by the exact solution on the strip (`strip.py`)."""

    def __init__(self, problem: TikhonovProblem) -> None:
        operator = problem.operator
        self.input_shape: Shape = operator.input_shape
        self.output_shape: Shape = operator.input_shape
        sigma_max = kernel_spectrum(operator.kernel.detach(), operator.geometry.image_size).sigma_max
        self._system = StripSystem(TikhonovProblem(operator, PRECONDITIONER_LAMBDA, sigma_max, "identity"))

    def forward(self, x: Tensor) -> Tensor:
        """Apply to `x` of shape `(*batch, C_in, H, W)`."""
        return self._system.solve(None, x, Course(PRECONDITIONER_RULE, norm(x)))

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the transpose, which is the operator itself."""
        return self.forward(y)


class TorusPreconditioner(LinearOperator):
    """`Eᵀ(KᴴK + μ|l|²)⁻¹E`: zero-pad onto a torus, divide in frequency, crop."""

    def __init__(self, problem: TikhonovProblem) -> None:
        operator = problem.operator
        self.input_shape: Shape = operator.input_shape
        self.output_shape: Shape = operator.input_shape
        self._operator = operator
        taps = operator.kernel
        torus = _roomy_torus(operator.geometry.extended_size, operator.geometry.kernel_size)
        # Double precision: the smallest eigenvalues of KᴴK + μ would drown in float32's rounding of the largest.
        wide = to_float64(taps)
        symbol = torus_symbol(wide, torus)
        penalty = find_penalty(problem.penalty).symbol(torus, wide.dtype, taps.device)
        gram_inverse = gram_inverse_blocks(symbol, problem.weight, penalty)
        narrow = taps.dtype.to_complex()
        self._gram_inverse = BlockCirculant(gram_inverse.to(narrow), torus)
        self._symbol = BlockCirculant(symbol.to(narrow), torus)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to `x` of shape `(*batch, C_in, H, W)`."""
        return self._gram_inverse.forward(x)[..., : self.input_shape[1], : self.input_shape[2]]

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the transpose, which is the operator itself."""
        return self.forward(y)

    def estimate(self, y: Tensor) -> Tensor:
        """Restore data as if the torus were the world; shape `(*batch, C_in, H, W)`.

        Data beyond the frame are zero where the image is known to be, else a blend of mirror images of the opposite
        edges, so that the torus has no seam.
        """
        if not self._operator.boundary.is_zero:
            y = close_smoothly(y, self._gram_inverse.torus)
        estimate = self._gram_inverse.forward(self._symbol.adjoint(y))
        pads, (_, height, width) = self._operator.geometry.pads, self.input_shape
        top, left = (0, 0) if self._operator.boundary.is_unknown else pads.before
        return estimate[..., top : top + height, left : left + width]


def _roomy_torus(size: Size, kernel_size: Size) -> Size:
    height, width = (n + max(k, TORUS_MARGIN) for n, k in zip(size, kernel_size, strict=True))
    return next_fast_size(height), next_fast_size(width)
