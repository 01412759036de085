"""The exact inverse under any boundary: one dense system on the border of a torus, factored once.

The system of `dense_border.py` is as large as the border, and serves any number of outputs; if there are as many
outputs as pixels, FFTs eliminate half of it first (`square_border.py`). The penalty's norm runs over the torus. It
differs from ‖Lx‖² if border pixels repeat pixels of the image, or if a penalty on differences would wrap around: then
the inverse preconditions conjugate gradients on the true problem, which end after a few steps.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import half_spectrum, norm
from deconv_cli.solvers.cgls import conjugate_gradients, iterate
from deconv_cli.solvers.dense_border import BoundarySystem, choose_twists
from deconv_cli.solvers.embedding import TorusLayout
from deconv_cli.solvers.fourier import SingularSystemError
from deconv_cli.solvers.inverse import Inverse, IteratedInverse
from deconv_cli.solvers.normal_equations import NormalEquations, refine_equations
from deconv_cli.solvers.problem import TikhonovProblem, check_constants, check_ramps
from deconv_cli.solvers.solution import GradientLog, Progress, Solution, StoppingRule
from deconv_cli.solvers.solver import CALL_OPERATIONS, Cost, Solver, general_refusal
from deconv_cli.solvers.square_border import MAX_PROBE_ERROR, SquareBorderSystem

BYTES_PER_NUMBER = 8
# A factorization was measured to run this many times more operations a second than an iteration does.
FACTORIZATION_SPEED = 4.0
# Finding the place of an entry of its matrices takes about as long as this many operations (measured).
OPERATIONS_PER_PLACE = 60
N_CALLS = 40


class DirectSolver(Solver):
    """A factorization of the system on the border."""

    memory_grows_with_border = True

    def covers(self, problem: TikhonovProblem) -> str | None:
        """Cover λ > 0 where it is determined, and for λ = 0 what has full rank by its shape."""
        if problem.operator.kernel.device.type == "mps":
            return "needs double precision, which this device does not support"
        if problem.lam == 0 and not problem.has_full_rank_by_shape:
            return "needs λ > 0 here (with penalty identity, if the kernel has fewer outputs than inputs)"
        return general_refusal(problem)

    def cost(self, problem: TikhonovProblem) -> Cost:
        """Count the dense matrices, the blocks at every frequency, and the operations of the factorization."""
        n_eliminated, n_left = _unknowns(problem)
        layout = TorusLayout.plan(problem.operator.geometry, problem.operator.boundary)
        # Half as many complex frequencies as places, for the symbol, P, M, N and one real kernel at a time.
        n_frequencies = math.prod(half_spectrum(layout.torus))
        channels = 4 * max(problem.n_outputs, problem.n_inputs) ** 2 + 2 * problem.n_outputs * problem.n_inputs
        if n_eliminated is not None:
            n_entries = n_left**2 + 8 * n_left * n_eliminated
            n_operations = 2 * n_left**2 * n_eliminated + 2 / 3 * n_left**3
        else:
            n_tied, n_unobserved = problem.n_inputs * layout.n_tied, problem.n_outputs * layout.n_unobserved
            n_entries = 2 * n_tied**2 + 2 * n_tied * n_unobserved + 3 * n_unobserved**2
            n_operations = (n_tied**3 + n_unobserved**3) / 3 + n_tied * n_unobserved * (n_tied + n_unobserved)
        n_places = n_entries / (problem.n_outputs * problem.n_inputs)
        n_operations = n_operations / FACTORIZATION_SPEED + OPERATIONS_PER_PLACE * n_places
        n_operations += N_CALLS * CALL_OPERATIONS
        n_bytes = BYTES_PER_NUMBER * (n_entries + 2 * n_frequencies * channels)
        return Cost.of_transforms(problem, n_operations, n_bytes_factored=n_bytes)

    def reason(self, problem: TikhonovProblem) -> str:
        """Name the size of the system."""
        n_eliminated, n_left = _unknowns(problem)
        if not n_eliminated:
            return f"the border's system of {n_left} unknowns is factored once, exactly"
        return (
            f"the border's system of {n_eliminated + n_left} unknowns is solved exactly: FFTs eliminate "
            f"{n_eliminated} of them, and the others are factored once"
        )

    def build(self, problem: TikhonovProblem, rule: StoppingRule) -> Inverse:
        """Factor the system."""
        check_ramps(problem)
        return DirectInverse(problem, rule)


DIRECT = DirectSolver()


def _is_square(problem: TikhonovProblem) -> bool:
    """Return whether there are as many outputs as pixels in two dimensions: FFTs may eliminate rows then."""
    operator = problem.operator
    is_plain = problem.n_dims == 3 and not operator.boundary.has_factors
    return problem.lam == 0 and operator.input_shape == operator.output_shape and is_plain


def _unknowns(problem: TikhonovProblem) -> tuple[int | None, int]:
    """Count the unknowns that FFTs eliminate, `None` if they eliminate none, and the remaining ones."""
    layout = TorusLayout.plan(problem.operator.geometry, problem.operator.boundary)
    n_unobserved = problem.n_outputs * layout.n_unobserved
    if not _is_square(problem):
        return None, n_unobserved + problem.n_inputs * layout.n_tied
    n_columns = problem.n_outputs * layout.image_size[0] * (layout.torus[1] - layout.image_size[1])
    return n_unobserved - n_columns, n_columns


class DirectInverse(IteratedInverse):
    """Inverse of one problem, ready for many outputs.

    Raises:
        SingularSystemError: the system on the border is singular to working precision.
    """

    def __init__(self, problem: TikhonovProblem, rule: StoppingRule) -> None:
        self.problem = problem
        self.rule = rule
        self._system = _factor(problem)

    def solve(self, y: Tensor, progress: Progress | None = None) -> Solution:
        """Solve for data `y` of shape `(*batch, C_out, *output_size)`."""
        if self.problem.weight == 0:
            return self._refine(NormalEquations.of_data(self.problem, y), self._system.estimate, progress)
        assert isinstance(self._system, BoundarySystem)
        return conjugate_gradients(
            self.problem,
            y,
            self.rule,
            start=self._system.estimate(y),
            preconditioner=self._system,
            is_inverse=True,
            progress=progress,
        )

    def _iterate(self, equations: NormalEquations, *, transposed: bool = False) -> Solution:
        if self.problem.weight == 0:
            return self._refine(equations, self._system.estimate_transposed if transposed else self._system.estimate)
        assert isinstance(self._system, BoundarySystem)
        assert equations.g is not None
        start = self._system.forward(equations.g)
        return iterate(equations, self.rule, start=start, preconditioner=self._system)

    def _refine(
        self, equations: NormalEquations, approximate: Callable[[Tensor], Tensor], progress: Progress | None = None
    ) -> Solution:
        def improve(equations: NormalEquations, x: Tensor, gradient: Tensor, log: GradientLog) -> Tensor:
            better = x + approximate(equations.residual(x))
            log.add(equations.norm(gradient))
            return better

        return refine_equations(equations, approximate(equations.y), self.rule, improve, progress)


def _factor(problem: TikhonovProblem) -> BoundarySystem | SquareBorderSystem:
    """Factor the system on the border, with its rows eliminated first where it is square and that can be done."""
    if _is_square(problem):
        with contextlib.suppress(SingularSystemError):
            square = SquareBorderSystem(problem.operator)
            # It is sound in double precision, and must be in that of the data too.
            if _is_sound(problem, square):
                return square
    check_constants(problem)
    system = BoundarySystem(problem, choose_twists(problem))
    if problem.weight == 0 and not _is_sound(problem, system):
        raise SingularSystemError("the system on the border is singular to working precision")
    return system


def _is_sound(problem: TikhonovProblem, system: BoundarySystem | SquareBorderSystem) -> bool:
    """Invert a known image: A⁺AA⁺y = A⁺y, unless rounding was divided by a singular value that is zero."""
    shape = problem.operator.output_shape
    taps = problem.operator.kernel
    # Numbers without a pattern, the same on every device.
    y = torch.arange(math.prod(shape), dtype=torch.float64, device=taps.device).square().cos().reshape(shape)
    x = system.estimate(y)
    again = system.estimate(problem.operator.forward(x.to(taps.dtype)).double())
    n_dims = problem.n_dims
    return synchronize.as_number(norm(again - x, n_dims)) <= MAX_PROBE_ERROR * synchronize.as_number(norm(x, n_dims))
