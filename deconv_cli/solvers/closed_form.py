"""The inverse of a periodic convolution of unchanged size: one multiplication a frequency, in closed form."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import half_spectrum, norm, relative
from deconv_cli.operators.circulant import BlockCirculant, to_float64, torus_symbol
from deconv_cli.operators.spectrum import has_one_sign, largest_singular_value
from deconv_cli.regularizers import find_penalty
from deconv_cli.solvers.fourier import block_norms, default_rcond, gram_inverse_blocks, inverse_blocks
from deconv_cli.solvers.inverse import ClosedFormInverse, Factors, Inverse
from deconv_cli.solvers.problem import MIN_LAMBDA_IN_FLOAT32, TikhonovProblem
from deconv_cli.solvers.solution import StoppingRule
from deconv_cli.solvers.solver import N_IMAGES_IN_CLOSED_FORM, Cost, Solver, general_refusal
from deconv_cli.vocabulary import Size


class CircularSolver(Solver):
    """Division in frequency, for boundary `circular` and an output as large as the image."""

    why = "a circular convolution of unchanged size is diagonal in frequency"

    def covers(self, problem: TikhonovProblem) -> str | None:
        """Cover periodic problems of unchanged size."""
        geometry = problem.operator.geometry
        if not (problem.operator.boundary.is_periodic and geometry.output_size == geometry.image_size):
            return "inverts circular convolutions of unchanged size only"
        return general_refusal(problem) if problem.rcond is not None and problem.lam > 0 else None

    def cost(self, problem: TikhonovProblem) -> Cost:
        """Count the symbol, its inverse, and a few images."""
        return Cost.of_transforms(problem, 0.0, n_images=N_IMAGES_IN_CLOSED_FORM)

    def build(self, problem: TikhonovProblem, rule: StoppingRule, factors: Factors | None = None) -> Inverse:
        """Invert the symbol."""
        return CircularInverse(problem, factors)


CIRCULAR = CircularSolver()


class CircularInverse(ClosedFormInverse):
    """Inverse of one circular problem, ready for many outputs.

    Args:
        problem: boundary `circular`, and an output as large as the image.
        factors: those of an equal inverse, which are then not computed.
    """

    def __init__(self, problem: TikhonovProblem, factors: Factors | None = None) -> None:
        self.problem = problem
        taps, torus = problem.operator.kernel, problem.operator.geometry.image_size
        threshold = default_rcond(taps.dtype) if problem.rcond is None else problem.rcond
        self.rcond = threshold if problem.lam == 0 else None
        if factors is None:
            blocks = self._invert_symbol(torus, threshold)
        else:
            shape = (*half_spectrum(torus), taps.shape[1], taps.shape[0])
            blocks = factors.take("blocks", shape, taps.dtype.to_complex())
        self._inverse = BlockCirculant(blocks, torus)

    def _invert_symbol(self, torus: Size, rcond: float) -> Tensor:
        """Factor for use in the data's precision: in double, where float32 would lose the small singular values."""
        problem = self.problem
        taps = problem.operator.kernel
        # A blur of one channel is divided by a sum of squares, large where the penalty is zero.
        is_safe = has_one_sign(taps) and problem.lam >= MIN_LAMBDA_IN_FLOAT32
        wide = taps if is_safe else to_float64(taps)
        symbol = torus_symbol(wide, torus, problem.operator.geometry.pads.before)
        penalty = find_penalty(problem.penalty).symbol(torus, wide.dtype, taps.device)
        blocks = inverse_blocks(
            symbol,
            problem.weight,
            penalty,
            rcond,
            lambda: largest_singular_value(taps, torus)[0],
            overwrite=True,
        )
        # Constants that nothing determines have a gain by rounding alone, and would take the digits of all else.
        of_constants = blocks[(0,) * len(torus)]
        for constant in problem.null_space_constants:
            line = constant.flatten().to(blocks.dtype)
            of_constants -= torch.outer(line, line @ of_constants)
        return blocks.to(taps.dtype.to_complex())

    def factors(self) -> dict[str, Tensor]:
        """Return the inverse blocks."""
        return {"blocks": self._inverse.blocks.matrices}

    def apply(self, y: Tensor) -> Tensor:
        """Compute the estimate alone, without its certificate."""
        return self._inverse.forward(y)

    def solve_normal(self, g: Tensor) -> Tensor:
        """Compute H⁺g for `g` of shape `(*batch, C_in, *size)`."""
        if self.problem.weight == 0:
            # (AᴴA)⁺ = A⁺(A⁺)ᴴ: the truncation is the same, and nothing is squared.
            return self._inverse.forward(self._inverse.adjoint(g))
        return self._gram_inverse.forward(g)

    def solve_transposed(self, g: Tensor) -> Tensor:
        """Compute AH⁺g for `g` of shape `(*batch, C_in, *size)`: the transposed blocks."""
        return self._inverse.adjoint(g)

    def _bound_rounding(self, x: Tensor, y: Tensor) -> float:
        """Bound what rounding may do to x = By, relative to ‖x‖: (1 + √log₂ N) units in the last place of ‖B‖‖y‖.

        The FFTs' part is Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 24.1, for errors that
        are independent of one another. Those of the symbol itself, in double precision, a small λ enlarges once more.
        """
        n_dims = self.problem.n_dims
        ulps = torch.finfo(x.dtype).eps * (1 + math.sqrt(math.log2(max(2, math.prod(x.shape[1 - n_dims :])))))
        gain = ulps * self._norm
        if x.dtype == torch.float64 and self.problem.lam < MIN_LAMBDA_IN_FLOAT32:
            taps = self.problem.operator.kernel
            gain += torch.finfo(x.dtype).eps * synchronize.as_number(taps.abs().sum()) * self._gram_norm
        return synchronize.as_number((gain * relative(norm(y, n_dims), norm(x, n_dims))).max())

    @cached_property
    def _gram_norm(self) -> float:
        """‖(KᴴK + μ|l|²)⁺‖, by the largest block's Frobenius norm; for λ = 0 it is ‖B‖²."""
        if self.problem.lam == 0:
            return self._norm**2
        return synchronize.as_number(block_norms(self._gram_inverse.blocks.matrices).max())

    @cached_property
    def _norm(self) -> float:
        """‖B‖, by the largest block's Frobenius norm."""
        return synchronize.as_number(block_norms(self._inverse.blocks.matrices).max())

    @cached_property
    def _gram_inverse(self) -> BlockCirculant:
        """(KᴴK + μ|l|²)⁺, which only the derivative in the kernel needs."""
        torus = self.problem.operator.geometry.image_size
        taps = self.problem.operator.kernel
        wide = to_float64(taps)
        penalty = find_penalty(self.problem.penalty).symbol(torus, wide.dtype, taps.device)
        blocks = gram_inverse_blocks(torus_symbol(wide, torus), self.problem.weight, penalty)
        return BlockCirculant(blocks.to(taps.dtype.to_complex()), torus)
