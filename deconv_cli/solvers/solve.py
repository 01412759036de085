"""Least squares for any linear operator, min ‖Ax − y‖² + λ·σ²max·‖Lx‖², and for any differentiable function.

The nonlinear ½‖F(x) − y‖² + ½μ‖Lx‖² takes inexact Gauss–Newton steps. Each minimizes the linearized problem by
conjugate gradients, only as far as the gradient has come down already (Dembo, Eisenstat and Steihaug, Inexact Newton
methods, SIAM Journal on Numerical Analysis 19, 1982). A truncated step still leads downhill, and is halved until it
does so by Armijo's rule (Nocedal and Wright, Numerical Optimization, 2006, chapters 3 and 10).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deconv_cli.errors import ShapeError, UsageError
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import accumulation_dtype, as_factor, inner, norm, relative, safe_ratio
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.linear_operator import Function, Linearization, LinearOperator
from deconv_cli.regularizers import find_penalty
from deconv_cli.settings import MAX_ITERATIONS
from deconv_cli.solvers.cgls import RitzValues, iterate
from deconv_cli.solvers.estimator import check_finite, to_unit
from deconv_cli.solvers.normal_equations import NormalEquations
from deconv_cli.solvers.problem import TikhonovProblem, check_weight
from deconv_cli.solvers.solution import IterationLog, Progress, Solution, Status, StoppingRule, default_tolerance
from deconv_cli.solvers.solver import build_inverse, choose_method

# The power method ends when σmax changes by less than this part of itself, or after this number of iterations.
POWER_ACCURACY = 1e-4
MAX_POWER_ITERATIONS = 200


def solve(
    A: LinearOperator,
    y: Tensor,
    *,
    penalty: str | LinearOperator | None = "identity",
    lam: float = 0.0,
    tolerance: float | None = None,
    max_iterations: int = MAX_ITERATIONS,
    progress: Progress | None = None,
) -> Solution:
    """Minimize ‖Ax − y‖² + λ·σ²max·‖Lx‖² over x; for λ = 0 the solution of least norm.

    A `Convolution` under a registered penalty goes to the exact solvers; everything else to conjugate gradients on the
    normal equations (Björck, Numerical Methods for Least Squares Problems, 1996, section 7.4).

    Args:
        A: what gave the data; sums, products and adjoints of operators are operators too.
        y: data, shape `(*batch, *A.output_shape)`, real; its dtype is that of the arithmetic.
        penalty: L: the name of a penalty, or an operator on tensors of `A.input_shape`; `None` for none.
        lam: λ ≥ 0, in units of A's largest squared singular value. That is a convolution's largest over all
            frequencies; of other operators it is found by the power method, to about 1 %.
        tolerance: the certificate at which an iteration stops; by default 1e-10 in float64 and 1e-6 in float32.
        max_iterations: iterations at most.
        progress: called after every iteration.

    Returns:
        The solution; its value has the shape `(*batch, *A.input_shape)`.

    Raises:
        ShapeError: `y` or L does not fit A.
        UsageError: λ without a penalty, a number outside its range, or something of another type.
        MalformedInputError: `y` holds NaN or infinite values.
    """
    _check(A, y, penalty, lam)
    rule = _stopping_rule(default_tolerance(y.dtype) if tolerance is None else tolerance, max_iterations)
    data, unit = to_unit(y, len(A.output_shape))
    if type(A) is Convolution and isinstance(penalty, str | None):
        problem = TikhonovProblem(A, lam, penalty=penalty or "identity")
        choice = choose_method(problem)
        check_weight(problem)
        solution = build_inverse(problem, rule, choice)[0].solve(data, progress)
        solution = replace(solution, value=problem.split_null_space(solution.value)[0])
    elif lam == 0:
        solution = iterate(NormalEquations(A, data), rule, progress=progress)
    else:
        L = find_penalty(penalty).operator(A.input_shape, periodic=False) if isinstance(penalty, str) else penalty
        equations = NormalEquations(A, data, L, lam * largest_singular_value_of(A, data) ** 2)
        # Without a preconditioner, the data of random numbers hardly show what they leave undetermined.
        ritz = RitzValues(None, determined=lambda x: x)
        solution = iterate(equations, rule, progress=progress, ritz=ritz)
    if unit is None:
        return solution
    # Images whose squares would leave the range of their type were divided by a power of two.
    factor = unit.reshape(*y.shape[: y.ndim - len(A.output_shape)], *[1] * len(A.input_shape))
    return replace(solution, value=factor * solution.value)


def _check(A: object, y: object, penalty: object, lam: object) -> None:
    if not isinstance(A, LinearOperator):
        raise UsageError(f"the operator must be a LinearOperator, such as a Convolution, but is {_kind(A)}.")
    if not isinstance(y, Tensor) or y.dtype not in (torch.float32, torch.float64):
        raise UsageError(f"data must be a tensor of float32 or float64, but y is {_kind(y)}; convert it.")
    n_dims = len(A.output_shape)
    if y.ndim < n_dims or tuple(y.shape[y.ndim - n_dims :]) != tuple(A.output_shape):
        raise ShapeError(
            f"data of this operator must have a shape that ends in {tuple(A.output_shape)}, but y has {tuple(y.shape)}."
        )
    if isinstance(penalty, LinearOperator) and tuple(penalty.input_shape) != tuple(A.input_shape):
        raise ShapeError(
            f"the penalty acts on tensors of shape {tuple(penalty.input_shape)}, but the operator acts on "
            f"{tuple(A.input_shape)}."
        )
    if y.numel() == 0:
        raise ShapeError(f"data must hold at least one image, but y has the shape {tuple(y.shape)}.")
    if not isinstance(penalty, str | LinearOperator | None):
        raise UsageError(f"the penalty must be a name, a LinearOperator or None, but is {_kind(penalty)}.")
    if not isinstance(lam, int | float) or not 0 <= lam < math.inf or (lam > 0 and penalty is None):
        raise UsageError(f"lam must be zero, or a positive number with a penalty, but is {lam} with {penalty}.")
    if A.dtype not in (None, y.dtype) or A.device not in (None, y.device):
        raise UsageError(f"the operator is {A.dtype} on {A.device}, but y is {y.dtype} on {y.device}; convert one.")
    check_finite(y)


def _stopping_rule(tolerance: object, max_iterations: object) -> StoppingRule:
    is_count = isinstance(max_iterations, int) and not isinstance(max_iterations, bool) and max_iterations >= 1
    if not (isinstance(tolerance, int | float) and 0 < tolerance < 1 and is_count):
        raise UsageError(
            "tolerance must be between 0 and 1, and max_iterations a whole number from 1 on, "
            f"but they are {tolerance} and {max_iterations}."
        )
    assert isinstance(max_iterations, int)
    return StoppingRule(tolerance, max_iterations)


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def largest_singular_value_of(A: LinearOperator, like: Tensor) -> float:
    """Estimate σmax of any operator from below by the power method on AᴴA, in the dtype and on the device of `like`.

    Golub and Van Loan, Matrix Computations, 2013, section 8.2.1.
    """
    n_dims, found = len(A.input_shape), 0.0
    x = synchronize.normal_numbers(like, tuple(A.input_shape), seed=0)
    for _ in range(MAX_POWER_ITERATIONS):
        size = norm(x, n_dims)
        if synchronize.as_number(size) == 0:
            return 0.0
        x = A.adjoint(A.forward(x / size.to(x.dtype)))
        previous, found = found, synchronize.as_number(norm(x, n_dims)) ** 0.5
        if found - previous <= POWER_ACCURACY * found:
            break
    return found


OBJECTIVE = "½‖F(x) − y‖² + ½λσ²max‖Lx‖²"
LARGEST_REST = 0.1
"""A step leaves at most this part of the gradient of its linearized problem."""
ARMIJO = 1e-4
MAX_HALVINGS = 40
PATIENCE = 6
"""Number of steps without halving the certificate that ends the iteration."""


@dataclass(frozen=True)
class NonlinearProblem:
    """The function F on batches, the data y, the penalty L (`None` for μ = 0) and its weight μ."""

    function: Function
    y: Tensor
    penalty: LinearOperator | None = None
    weight: float = 0.0

    def residual(self, x: Tensor) -> Tensor:
        """Compute y − F(x)."""
        with torch.no_grad():
            return self.y - self.function(x[None])[0]

    def penalty_gradient(self, x: Tensor) -> Tensor:
        """Compute μLᵀLx."""
        return torch.zeros_like(x) if self.penalty is None else self.weight * self.penalty.gram.forward(x)


@dataclass(frozen=True)
class _Point:
    """An estimate, its residual y − F(x), and the penalized Lx; `None` without a penalty."""

    x: Tensor
    residual: Tensor
    penalized: Tensor | None

    @classmethod
    def at(cls, problem: NonlinearProblem, x: Tensor) -> _Point:
        penalized = None if problem.penalty is None else problem.penalty.forward(x)
        return cls(x, problem.residual(x), penalized)

    @property
    def is_finite(self) -> bool:
        return synchronize.holds_everywhere(torch.isfinite(self.residual))

    def decrease_to(self, other: _Point, weight: float) -> float:
        """Compute the decrease of the objective to another point, without the difference of two large sums."""
        total = _dot(self.residual - other.residual, self.residual + other.residual)
        if self.penalized is not None and other.penalized is not None:
            total += weight * _dot(self.penalized - other.penalized, self.penalized + other.penalized)
        return 0.5 * total


def solve_nonlinear(
    problem: NonlinearProblem,
    start: Tensor,
    rule: StoppingRule,
    progress: Progress | None = None,
) -> Solution:
    """Minimize from a start, an image without a batch axis at which F is finite.

    The certificate is ‖Jᵀ(y − F(x)) − μLᵀLx‖ / ‖Jᵀy‖ with the derivative J at x: 0 at a local minimum. From zero and
    with μ = 0, a linear F is solved with least norm. The iterations of conjugate gradients and the steps count
    together.
    """
    log, point = IterationLog(rule, progress), _Point.at(problem, start)
    while True:
        jacobian = Linearization(problem.function, point.x)
        gradient = jacobian.adjoint(point.residual) - problem.penalty_gradient(point.x)
        n_dims = gradient.ndim
        certificate = synchronize.as_number(relative(norm(gradient, n_dims), norm(jacobian.adjoint(problem.y), n_dims)))
        status = _ending(log, certificate)
        if status is None:
            step = _linearized_step(problem, point, jacobian, gradient, certificate, log)
            found = _search(problem, point, step, synchronize.as_number(inner(gradient, step, n_dims)))
            if found is not None:
                point = found
                log.record(certificate)
                continue
            status = Status.LOCAL_MINIMUM
        return Solution(point.x, status, log.n_iterations, certificate, (*log.history, certificate), OBJECTIVE)


def _ending(log: IterationLog, certificate: float) -> Status | None:
    if certificate <= log.rule.tolerance:
        return Status.CONVERGED
    if not math.isfinite(certificate):
        return Status.LOCAL_MINIMUM
    if log.is_spent:
        return Status.TIME_LIMIT if log.rule.is_overdue else Status.MAX_ITERATIONS
    best_before = min(log.history[:-PATIENCE], default=math.inf)
    return Status.LOCAL_MINIMUM if min([*log.history[-PATIENCE:], certificate]) > 0.5 * best_before else None


def _linearized_step(
    problem: NonlinearProblem,
    point: _Point,
    jacobian: LinearOperator,
    gradient: Tensor,
    certificate: float,
    log: IterationLog,
) -> Tensor:
    """Minimize ½‖Jd − (y − F(x))‖² + ½μ‖L(x + d)‖² over d, as exactly as the step needs."""
    rest = min(LARGEST_REST, max(certificate, 0.5 * log.rule.tolerance / certificate))
    g = None if problem.penalty is None else -problem.penalty_gradient(point.x)
    equations = NormalEquations(jacobian, point.residual, problem.penalty, problem.weight, g=g)
    found = iterate(equations, log.rest(rest))
    log.n_inner += found.n_iterations
    if synchronize.holds_anywhere(found.value != 0):
        return found.value
    # Conjugate gradients that were cut short may have left no better gradient; steepest descent still leads on.
    curvature = equations.curvature(gradient, jacobian.forward(gradient))
    return (
        as_factor(safe_ratio(inner(gradient, gradient, gradient.ndim), curvature), gradient, gradient.ndim) * gradient
    )


def _search(problem: NonlinearProblem, point: _Point, step: Tensor, slope: float) -> _Point | None:
    """Halve a step until it leads downhill; `None` if it never does."""
    size = 1.0
    # What rounding of F leaves of a decrease: at a solution the last steps are smaller than that.
    sizes = _dot(problem.y, problem.y) ** 0.5 * _dot(point.residual, point.residual) ** 0.5
    rounding = 4 * torch.finfo(step.dtype).eps * sizes
    for _ in range(MAX_HALVINGS):
        other = _Point.at(problem, point.x + size * step)
        if other.is_finite and point.decrease_to(other, problem.weight) >= ARMIJO * size * slope - rounding:
            return other
        size *= 0.5
    return None


def _dot(a: Tensor, b: Tensor) -> float:
    return synchronize.as_number((a * b).sum(dtype=accumulation_dtype(a)))
