"""The inverse of a periodic convolution of unchanged size: one multiplication a frequency, in closed form."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.circulant import BlockCirculant, to_float64, torus_symbol
from deconv_cli.operators.spectrum import has_one_sign, largest_singular_value
from deconv_cli.regularizers import find_penalty
from deconv_cli.solvers.factors import Factors
from deconv_cli.solvers.fourier import default_rcond, gram_inverse_blocks, inverse_blocks
from deconv_cli.solvers.inverse import Inverse
from deconv_cli.solvers.problem import MIN_LAMBDA_IN_FLOAT32, TikhonovProblem
from deconv_cli.solvers.refinement import Progress
from deconv_cli.solvers.solution import Solution, Status
from deconv_cli.vocabulary import Size


class CircularInverse(Inverse):
    """Inverse of one circular problem, ready for many outputs.

    Args:
        problem: boundary `circular`, and an output as large as the image.
        rcond: for λ = 0, singular values up to this fraction of the largest count as zero; `None` drops only what
            rounding has made meaningless.
        kept: the factors of an equal inverse, which are then not computed.
    """

    def __init__(self, problem: TikhonovProblem, rcond: float | None = None, kept: Factors | None = None) -> None:
        self.problem = problem
        taps, torus = problem.operator.kernel, problem.operator.geometry.image_size
        self.rcond = default_rcond(taps.dtype) if rcond is None else rcond
        if kept is None:
            blocks = self._invert_symbol(torus)
        else:
            shape = (torus[0], torus[1] // 2 + 1, taps.shape[1], taps.shape[0])
            blocks = kept.take("blocks", shape, taps.dtype.to_complex())
        self._inverse = BlockCirculant(blocks, torus)

    def _invert_symbol(self, torus: Size) -> Tensor:
        """Factor for use in the data's precision: in double, where float32 would lose the small singular values."""
        problem = self.problem
        taps, pads = problem.operator.kernel, problem.operator.geometry.pads
        # A blur of one channel is divided by a sum of squares, large where the penalty sees nothing.
        is_safe = has_one_sign(taps) and problem.lam >= MIN_LAMBDA_IN_FLOAT32
        wide = taps if is_safe else to_float64(taps)
        symbol = torus_symbol(wide, torus, pads.before)
        penalty = find_penalty(problem.penalty).symbol(torus, wide.dtype, taps.device)
        blocks = inverse_blocks(
            symbol, problem.weight, penalty, self.rcond, lambda: largest_singular_value(taps, torus)[0]
        )
        return blocks.to(taps.dtype.to_complex())

    def factors(self) -> dict[str, Tensor]:
        """Give the inverse blocks."""
        return {"blocks": self._inverse.blocks.matrices}

    def solve(self, y: Tensor, progress: Progress | None = None) -> Solution:
        """Solve for data `y` of shape `(*batch, C_out, H, W)`; there is no progress to tell."""
        del progress
        x = self.apply(y)
        return Solution(x, Status.CLOSED_FORM, 0, synchronize.as_number(self.problem.certificate(x, y).max()))

    def apply(self, y: Tensor) -> Tensor:
        """Compute the estimate alone, without its certificate."""
        return self._inverse.forward(y)

    def solve_normal(self, g: Tensor) -> Tensor:
        """Compute H⁺g for `g` of shape `(*batch, C_in, H, W)`."""
        if self.problem.weight == 0:
            # (AᴴA)⁺ = A⁺(A⁺)ᴴ: the truncation is the same, and nothing is squared.
            return self._inverse.forward(self._inverse.adjoint(g))
        return self._gram_inverse.forward(g)

    def solve_transposed(self, g: Tensor) -> Tensor:
        """Compute AH⁺g for `g` of shape `(*batch, C_in, H, W)`: the transposed blocks."""
        return self._inverse.adjoint(g)

    @cached_property
    def _gram_inverse(self) -> BlockCirculant:
        """(KᴴK + μ|l|²)⁺, which only the derivative in the kernel asks for."""
        torus = self.problem.operator.geometry.image_size
        taps = self.problem.operator.kernel
        wide = to_float64(taps)
        penalty = find_penalty(self.problem.penalty).symbol(torus, wide.dtype, taps.device)
        blocks = gram_inverse_blocks(torus_symbol(wide, torus), self.problem.weight, penalty)
        return BlockCirculant(blocks.to(taps.dtype.to_complex()), torus)
