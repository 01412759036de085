"""The exact answer under any boundary, at any size: an iteration on the border's unknowns alone (`strip_system.py`)."""

from __future__ import annotations

import math

from deconv_cli.regularizers import find_penalty
from deconv_cli.solvers.border_inverse import BorderInverse
from deconv_cli.solvers.embedding import TorusLayout
from deconv_cli.solvers.factors import Factors
from deconv_cli.solvers.inverse import Inverse
from deconv_cli.solvers.iteration_log import StoppingRule
from deconv_cli.solvers.problem import TikhonovProblem, check_ramps
from deconv_cli.solvers.solver import Cost, Solver, general_refusal, symbol_bytes, transform_operations
from deconv_cli.solvers.strip_system import StripSystem, krylov_basis

BYTES_PER_NUMBER = 16
# The matrices across a wide border grow with its cube: beyond so many symbols' memory, FFTs of the whole do better.
MAX_BAND_SYMBOLS = 8
MIN_BAND_BYTES = 2**26


class StripSolver(Solver):
    """An iteration on the unknowns along the border, in two dimensions."""

    def covers(self, problem: TikhonovProblem) -> str | None:
        """Cover λ > 0, but for differences on an image that wraps around; for λ = 0 what is well posed by its shape.

        That is more outputs than pixels or more pixels than outputs along either axis or in the channels; where there
        are fewer outputs no pixel may repeat another. Copies that are multiplied by factors are not covered.
        """
        operator = problem.operator
        if problem.n_dims != 3 or operator.boundary.has_factors:
            return "is for two dimensions, and boundaries that copy pixels as they are"
        if problem.lam > 0:
            wraps = operator.boundary.is_periodic and find_penalty(problem.penalty).takes_differences
            is_covered = not wraps
        else:
            sizes = zip(operator.output_shape, operator.input_shape, (1, *operator.geometry.kernel_size), strict=True)
            is_square = problem.n_outputs == problem.n_inputs
            is_covered = problem.has_full_rank_by_shape and not (
                is_square and any(n_outputs == n_pixels and k > 1 for n_outputs, n_pixels, k in sizes)
            )
        if is_covered and _band_bytes(problem) > max(MIN_BAND_BYTES, MAX_BAND_SYMBOLS * symbol_bytes(problem)):
            return "is for borders that are narrow beside the image, and this kernel reaches too far for it"
        if not is_covered:
            return (
                "does not cover this problem (λ = 0 with an output of unchanged size, a periodic penalty, or "
                "constants that nothing determines)"
            )
        return general_refusal(problem)

    def cost(self, problem: TikhonovProblem) -> Cost:
        """Count the iterations, each of which applies the border's system twice, and the vectors that GMRES stores."""
        # Measured for blurs and layers: 3 to 10 iterations at a condition number of 1e2, 10 to 60 at 1e6. To set it up
        # takes as long as ten.
        digits = min(6.0, math.log10(problem.condition))
        n_operations = 4 * transform_operations(problem) * (10 + digits**2)
        n_bytes = symbol_bytes(problem) + _band_bytes(problem)
        return Cost.of_transforms(problem, n_operations, n_bytes_factored=n_bytes, basis=krylov_basis(problem))

    def reason(self, problem: TikhonovProblem) -> str:
        """Name what is diagonal, and what is iterated."""
        del problem
        return "all but a strip along the border is diagonal in frequency, and an iteration settles the strip"

    def build(self, problem: TikhonovProblem, rule: StoppingRule, factors: Factors | None = None) -> Inverse:
        """Build the border's system."""
        del factors
        check_ramps(problem)
        return BorderInverse(problem, rule, StripSystem)


STRIP = StripSolver()


def _band_bytes(problem: TikhonovProblem) -> int:
    """Estimate the memory of the band solvers: a matrix across the border at each frequency along it."""
    layout = TorusLayout.plan(problem.operator.geometry, problem.operator.boundary)
    widths = [
        problem.n_outputs * (n - n_outputs) + problem.n_inputs * (n - n_pixels)
        for n, n_outputs, n_pixels in zip(layout.torus, layout.output_size, layout.image_size, strict=True)
    ]
    lines = zip(widths, reversed(layout.torus), strict=True)
    return sum(BYTES_PER_NUMBER * (n // 2 + 1) * width**2 for width, n in lines)
