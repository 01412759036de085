"""The exact answer where nothing but outputs or zeros is missing on a torus, in one dimension, three or more.

An iteration on what is missing alone (`slab_system.py`), with what is missing in the slab across each axis solved by
FFTs along it.
"""

from __future__ import annotations

import math
from dataclasses import replace

from deconv_cli.operators.circulant import MAX_PAIRS_AS_PLANES
from deconv_cli.operators.differences import Difference
from deconv_cli.regularizers import find_penalty
from deconv_cli.solvers.border_inverse import BorderInverse
from deconv_cli.solvers.embedding import TorusLayout
from deconv_cli.solvers.factors import Factors
from deconv_cli.solvers.inverse import Inverse
from deconv_cli.solvers.iteration_log import StoppingRule
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.solvers.slab_system import SlabSystem, most_numbers
from deconv_cli.solvers.solver import CALL_OPERATIONS, Cost, Solver, general_refusal, symbol_bytes, transform_operations

# Images with the channels of input and output that an application keeps at once, for each kind of unknowns.
N_IMAGES = 3
# Copies of the symbol among all channels of a slab that inverting it keeps, measured on stacks of 96³.
N_JOINT = 4
# Tens of calls of torch to invert the slabs.
N_CALLS = 40


class SlabSolver(Solver):
    """An iteration on what is missing outside the frame, in slabs."""

    takes_mixed = True

    def covers(self, problem: TikhonovProblem) -> str | None:
        """Cover what lacks outputs alone, or zeros alone (padding `full`): not in two dimensions, where bands do.

        For λ = 0 there must be as many outputs as pixels at least, or as many pixels as outputs. Penalties on first
        and second differences are covered where outputs alone are missing, those on higher ones are not.
        """
        operator = problem.operator
        layout = TorusLayout.plan(operator.geometry, operator.boundary)
        if problem.n_dims == 3 and not operator.boundary.is_mixed:
            return "is for one dimension and three, and method strip for two"
        if operator.boundary.is_periodic or (
            layout.n_tied > 0 and (layout.n_unobserved > 0 or not operator.boundary.is_zero)
        ):
            return (
                "is for boundary unknown, for padding valid, and for padding full with zeros outside, but boundary "
                f"{operator.boundary.name} ties pixels to others, or to zero where outputs are missing"
            )
        orders = [sum(term.orders) for term in find_penalty(problem.penalty).terms(problem.n_dims - 1)]
        if problem.lam > 0 and max(orders) > (0 if layout.n_tied > 0 else 2):
            return (
                "takes penalty identity, and gradient and laplacian where no pixels are tied, but the penalty is "
                f"{problem.penalty}"
            )
        if problem.lam == 0 and not problem.has_full_rank_by_shape:
            return "needs λ > 0 here, since neither do the outputs determine the image, nor has it room for all of them"
        return general_refusal(problem)

    def cost(self, problem: TikhonovProblem) -> Cost:
        """Count the iterations, in each of which what is missing is transformed once there and back."""
        # Measured for blurs and layers: 5 iterations at a condition number of 10, 10 to 60 at 1e3, and about as many
        # at 1e4. To invert the slabs takes as long as some more. Differences take up to five times as long, but
        # then the iteration on the whole image takes up to twenty times as many steps as its condition number tells.
        digits = min(6.0, math.log10(problem.condition))
        n_kinds = 1 + len(_differences(problem)) * problem.n_inputs / problem.n_outputs / 2
        n_operations = 2 * transform_operations(problem) * (5 + 4 * digits) + N_CALLS * CALL_OPERATIONS
        layout = TorusLayout.plan(problem.operator.geometry, problem.operator.boundary)
        n_bytes, n_images = _symbol_bytes(problem, layout), math.ceil(N_IMAGES * n_kinds)
        cost = Cost.of_transforms(problem, n_operations, n_bytes_factored=n_bytes, n_images=n_images)
        # There are no images yet while the slabs are inverted.
        beyond = max(_joint_bytes(problem, layout) - cost.n_bytes_per_image, 0)
        return replace(cost, n_bytes_built=cost.n_bytes_built + beyond)

    def reason(self, problem: TikhonovProblem) -> str:
        """Name what is diagonal, and what is iterated."""
        del problem
        return "all but what is missing outside the frame is diagonal in frequency, and an iteration settles that"

    def build(self, problem: TikhonovProblem, rule: StoppingRule, factors: Factors | None = None) -> Inverse:
        """Invert the system on the slabs."""
        del factors
        return BorderInverse(problem, rule, SlabSystem)


SLAB = SlabSolver()


def _differences(problem: TikhonovProblem) -> tuple[Difference, ...]:
    """List the differences that are penalized."""
    penalty = find_penalty(problem.penalty)
    return penalty.terms(problem.n_dims - 1) if problem.lam > 0 and penalty.takes_differences else ()


def _joint_bytes(problem: TikhonovProblem, layout: TorusLayout) -> int:
    """Estimate what inverting a slab takes in which outputs and differences are missing together."""
    terms = _differences(problem)
    if not terms:
        return 0
    n_together = max(sum(term.orders[axis] > 0 for term in terms) for axis in range(problem.n_dims - 1))
    n_channels = problem.n_outputs + n_together * problem.n_inputs
    return N_JOINT * problem.operator.kernel.itemsize * n_channels**2 * math.prod(layout.torus)


def _symbol_bytes(problem: TikhonovProblem, layout: TorusLayout) -> int:
    """Estimate the memory of the symbol, of a copy of it while the slabs are inverted, and of their inverses."""
    is_tied = layout.n_tied > 0
    n_channels, box = (problem.n_inputs, layout.image_size) if is_tied else (problem.n_outputs, layout.output_size)
    n_places = math.prod(layout.torus)
    matrices = sum(
        n_places // length * (n_channels * (length - n)) ** 2 // 2 for n, length in zip(box, layout.torus, strict=True)
    )
    itemsize = problem.operator.kernel.itemsize if problem.runs_in_own_precision and not is_tied else 8
    n_numbers = min(most_numbers(layout.torus), matrices) + n_places * n_channels**2
    if _differences(problem):
        n_numbers += n_places * problem.n_outputs * problem.n_inputs
    transient = symbol_bytes(problem) if n_channels**2 > MAX_PAIRS_AS_PLANES else 0
    return 2 * itemsize * n_numbers + transient
