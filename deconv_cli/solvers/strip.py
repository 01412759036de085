"""The exact answer under any boundary, at any size: an iteration on the border's unknowns alone (`strip_system.py`)."""

from __future__ import annotations

import math

from deconv_cli.regularizers import find_penalty
from deconv_cli.solvers.border_inverse import BorderInverse
from deconv_cli.solvers.factors import Factors
from deconv_cli.solvers.inverse import Inverse
from deconv_cli.solvers.iteration_log import StoppingRule
from deconv_cli.solvers.problem import TikhonovProblem, check_ramps
from deconv_cli.solvers.solver import Cost, Solver, general_refusal, transform_operations
from deconv_cli.solvers.strip_system import StripSystem, krylov_basis


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
        return Cost.of_transforms(problem, n_operations, basis=krylov_basis(problem))

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
