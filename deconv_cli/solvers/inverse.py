"""The common base of all inverses, which turn data into an estimate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from deconv_cli.errors import warnings_here
from deconv_cli.operators import synchronize
from deconv_cli.regularizers import find_penalty
from deconv_cli.solvers.normal_equations import NormalEquations, refine_equations
from deconv_cli.solvers.problem import MIN_LAMBDA_IN_FLOAT32, TikhonovProblem, check_constants
from deconv_cli.solvers.solution import GradientLog, Progress, Solution, Status, StoppingRule


class Inverse(ABC):
    """The inverse of one problem, built once and ready for many outputs.

    With H = AᴴA + μLᴴL an inverse computes x = H⁺Aᴴy. Its derivatives need H⁺ alone (`pseudo_inverse.py`). An iteration
    that does not reach the tolerance warns by a `RuntimeWarning`, except in `solve`, which returns its status.

    Attributes:
        problem: the problem.
        rank: how many singular values of A are above rounding; `None` if they were not counted.
        is_closed_form: whether `apply` computes the estimate in one go, so that a certificate would double the work.
    """

    problem: TikhonovProblem
    is_closed_form = False
    rank: int | None = None

    @abstractmethod
    def solve(self, y: Tensor, progress: Progress | None = None) -> Solution:
        """Solve for data `y` of shape `(*batch, C_out, *output_size)`; `progress` is called after every iteration."""

    def apply(self, y: Tensor) -> Tensor:
        """Compute the estimate alone, for data of shape `(*batch, C_out, *output_size)`."""
        return self.solve(y).warn_for_status(stacklevel=4).value

    @abstractmethod
    def solve_normal(self, g: Tensor) -> Tensor:
        """Compute H⁺g for any `g` of shape `(*batch, C_in, *size)`."""

    def approximate_normal(self, g: Tensor) -> Tensor:
        """Compute about H⁺g, for an outer iteration that corrects the rest itself; by default `solve_normal`."""
        with warnings_here("ignore"):
            return self.solve_normal(g)

    def solve_transposed(self, g: Tensor) -> Tensor:
        """Compute AH⁺g, shape `(*batch, C_out, *output_size)`, for `g` of shape `(*batch, C_in, *size)`."""
        return self.problem.operator.forward(self.solve_normal(g))


class ClosedFormInverse(Inverse):
    """An inverse that is applied in one go, without iterations."""

    is_closed_form = True

    def solve(self, y: Tensor, progress: Progress | None = None) -> Solution:
        """Solve for data `y` of shape `(*batch, C_out, *output_size)`; without iterations there is no progress."""
        del progress
        x = self.apply(y)
        certificate = synchronize.as_number(self.problem.certificate(x, y).max())
        return Solution(x, Status.CLOSED_FORM, 0, certificate, distance_bound=self._bound_rounding(x, y))

    @abstractmethod
    def apply(self, y: Tensor) -> Tensor:
        """Compute the estimate alone, without its certificate."""

    @abstractmethod
    def _bound_rounding(self, x: Tensor, y: Tensor) -> float:
        """Bound or estimate what rounding does to the estimate `x` of the data `y`, relative to ‖x‖."""


# Under small λ a penalty on differences left eigenvalues below λ: by up to a factor of four in 1,000 random problems.
SMOOTH_SAFETY = 8.0


class IteratedInverse(Inverse):
    """An inverse by iterations on normal equations."""

    rule: StoppingRule

    @abstractmethod
    def _iterate(self, equations: NormalEquations, *, transposed: bool = False) -> Solution:
        """Solve normal equations of the problem, or with λ = 0 of its transpose."""

    def solve_normal(self, g: Tensor) -> Tensor:
        """Compute H⁺g for `g` of shape `(*batch, C_in, *size)`."""
        if self.problem.weight > 0:
            equations = NormalEquations.of_gradient(self.problem, g)
        else:
            equations = NormalEquations(self.problem.operator, self.solve_transposed(g), is_derived=True)
        return self._iterate(equations).warn_for_status().value

    def solve_transposed(self, g: Tensor) -> Tensor:
        """Compute AH⁺g for `g` of shape `(*batch, C_in, *size)`; for λ = 0 it is the p of min ‖Aᴴp − g‖."""
        if self.problem.weight > 0:
            return super().solve_transposed(g)
        equations = NormalEquations(self.problem.operator.H, g, is_derived=True)
        return self._iterate(equations, transposed=True).warn_for_status().value


class CompletingSystem(Protocol):
    """Solves normal equations by completing them on a torus, until the remaining gradient is small enough."""

    def solve(
        self, residual: Tensor | None, gradient: Tensor | None, log: GradientLog, *, closes: bool = False
    ) -> Tensor:
        """Solve (AᴴA + μLᴴL) x = Aᴴ·residual + gradient; see `StripSystem.solve`."""

    def approximate(self, gradient: Tensor, log: GradientLog) -> Tensor:
        """Solve for a gradient, as well as an outer iteration needs it; see `StripSystem.approximate`."""

    def solve_transposed(self, g: Tensor, log: GradientLog) -> Tensor:
        """Compute A(AᴴA + μLᴴL)⁺g; see `StripSystem.solve_transposed`."""


class BorderInverse(IteratedInverse):
    """Inverse of one problem, ready for many outputs, by a system that completes it on a torus.

    `least` is a lower bound of the eigenvalues of AᴴA + μLᴴL; by default they are taken to be at least about μ.

    Raises:
        SingularSystemError: λ = 0 and the symbol has not full rank, or constants are undetermined on the torus.
    """

    def __init__(
        self,
        problem: TikhonovProblem,
        rule: StoppingRule,
        make_system: Callable[[TikhonovProblem], CompletingSystem],
        least: float | None = None,
    ) -> None:
        self.problem = problem
        self.rule = rule
        check_constants(problem)
        self._system = make_system(problem)
        # Differences penalize smooth images by less than their norm, which matters for small λ.
        is_estimate = find_penalty(problem.penalty).takes_differences and problem.lam < MIN_LAMBDA_IN_FLOAT32
        usual = problem.least_eigenvalue / (SMOOTH_SAFETY if is_estimate else 1)
        self._least = usual if least is None else least

    def solve(self, y: Tensor, progress: Progress | None = None) -> Solution:
        """Solve for data `y` of shape `(*batch, C_out, *output_size)`.

        With other penalties than `identity` the distance is an estimate. It assumes that the penalty of an image
        without a constant part is at least its norm.
        """
        is_begun = False

        def improve(equations: NormalEquations, x: Tensor, gradient: Tensor, log: GradientLog) -> Tensor:
            nonlocal is_begun
            if not is_begun:
                is_begun = True
                return self._system.solve(equations.y, None, log, closes=True)
            return self._improve(equations, x, gradient, log)

        equations = NormalEquations.of_data(self.problem, y)

        def bound(equations: NormalEquations, gradient: Tensor) -> Tensor:
            return equations.distance(gradient, self._least)

        distance = bound if self.problem.weight > 0 else None
        return refine_equations(equations, None, self.rule, improve, progress, distance)

    def _iterate(self, equations: NormalEquations, *, transposed: bool = False) -> Solution:
        improve = self._improve_transposed if transposed else self._improve
        return refine_equations(equations, None, self.rule, improve)

    def approximate_normal(self, g: Tensor) -> Tensor:
        """Compute about H⁺g by one solve of the system, without refinement."""
        equations = NormalEquations.of_gradient(self.problem, g)
        if self.problem.weight == 0 or equations.needs_float64:
            return super().approximate_normal(g)
        return self._system.approximate(g, GradientLog(self.rule, equations.norm(g)))

    def _improve(self, equations: NormalEquations, x: Tensor, gradient: Tensor, log: GradientLog) -> Tensor:
        """Solve the system for the residual, or for the gradient, and add the result."""
        if self.problem.weight == 0:
            return x + self._system.solve(equations.residual(x), None, log)
        return x + self._system.solve(None, gradient, log)

    def _improve_transposed(self, equations: NormalEquations, p: Tensor, gradient: Tensor, log: GradientLog) -> Tensor:
        """Add the outputs that the system computes for the residual of the transpose."""
        return p + self._system.solve_transposed(equations.residual(p), log)
