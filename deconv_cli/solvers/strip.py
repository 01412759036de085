"""The exact answer under any boundary, at any size: an iteration on the border's unknowns alone (`strip_system.py`).

The same system with another right-hand side solves the normal equations for any gradient, which refines the answer to
the last digit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deconv_cli.regularizers import find_penalty
from deconv_cli.solvers.factors import Factors
from deconv_cli.solvers.inverse import Inverse
from deconv_cli.solvers.iteration_log import GradientLog, Progress, StoppingRule
from deconv_cli.solvers.normal_equations import NormalEquations
from deconv_cli.solvers.problem import MAX_LAMBDA_IN_FLOAT32, TikhonovProblem, check_constants, check_ramps
from deconv_cli.solvers.refinement import refine_equations
from deconv_cli.solvers.solution import Solution
from deconv_cli.solvers.solver import Cost, Solver, general_refusal, transform_operations
from deconv_cli.solvers.strip_system import StripSystem, krylov_basis

# A distance is taken to be so many times as long as it comes out. Solved to 1e-2 of the gradient it came out up to
# seven times too short, since what is hardly penalized is a small part of that.
DISTANCE_RULE = StoppingRule(tolerance=1e-4, max_iterations=100)
DISTANCE_SAFETY = 2.0


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
        return StripInverse(problem, rule)


STRIP = StripSolver()


class StripInverse(Inverse):
    """Inverse of one problem, ready for many outputs.

    Args:
        problem: one that `covers` accepts.
        rule: when to stop.

    Raises:
        SingularSystemError: λ = 0 and the symbol has not full rank, or constants are undetermined on the torus.
    """

    def __init__(self, problem: TikhonovProblem, rule: StoppingRule) -> None:
        self.problem = problem
        self.rule = rule
        check_constants(problem)
        self._system = StripSystem(problem)
        self._least = min(problem.weight, problem.least_constant_gain**2)

    def solve(self, y: Tensor, progress: Progress | None = None) -> Solution:
        """Solve for data `y` of shape `(*batch, C_out, H_y, W_y)`.

        With other penalties than `identity` the distance is an estimate: what is not constant is taken to be penalized
        by its own norm at least. See `_distance` for λ above 1.
        """
        is_begun = False

        def improve(equations: NormalEquations, x: Tensor, gradient: Tensor, log: GradientLog) -> Tensor:
            nonlocal is_begun
            if not is_begun:
                is_begun = True
                return self._system.solve(equations.y, None, log, closes=True)
            return self._improve(equations, x, gradient, log)

        equations = NormalEquations.of_data(self.problem, y)
        is_bounded = self.problem.weight > 0
        return refine_equations(equations, None, self.rule, improve, progress, self._distance if is_bounded else None)

    def solve_normal(self, g: Tensor) -> Tensor:
        """Compute H⁺g for `g` of shape `(*batch, C_in, H, W)`."""
        if self.problem.weight == 0:
            equations = NormalEquations.of_image(self.problem, self.solve_transposed(g))
        else:
            equations = NormalEquations.of_gradient(self.problem, g)

        return refine_equations(equations, None, self.rule, self._improve).warn_for_status().value

    def solve_transposed(self, g: Tensor) -> Tensor:
        """Compute AH⁺g for `g` of shape `(*batch, C_in, H, W)`; for λ = 0 by the system itself, read as outputs."""
        if self.problem.weight > 0:
            return super().solve_transposed(g)
        equations = NormalEquations.of_transpose(self.problem, g)

        def improve(equations: NormalEquations, p: Tensor, gradient: Tensor, log: GradientLog) -> Tensor:
            del gradient
            return p + self._system.solve_transposed(equations.residual(p), log)

        return refine_equations(equations, None, self.rule, improve).warn_for_status().value

    def _distance(self, equations: NormalEquations, gradient: Tensor) -> Tensor:
        """Bound ‖x − x*‖; under a heavy penalty on differences estimate it by what the system makes of the gradient.

        There most of the gradient is rounding, in directions that are penalized by far more than the least.
        """
        bound = equations.distance(gradient, self._least)
        if equations.least_curvature is not None or self.problem.lam <= MAX_LAMBDA_IN_FLOAT32:
            return bound
        log = GradientLog(DISTANCE_RULE, equations.norm(gradient))
        return torch.minimum(bound, DISTANCE_SAFETY * equations.norm(self._system.solve(None, gradient, log)))

    def _improve(self, equations: NormalEquations, x: Tensor, gradient: Tensor, log: GradientLog) -> Tensor:
        """Add what the system makes of what is left over."""
        if self.problem.weight == 0:
            return x + self._system.solve(equations.residual(x), None, log)
        return x + self._system.solve(None, gradient, log)
