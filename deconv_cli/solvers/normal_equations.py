"""The equations that every iteration solves: (AᴴA + μLᴴL) x = Aᴴy + g, for data y, another right-hand side g, or both.

Aᴴ is applied to the residual y − Ax, never AᴴA to x alone, so that no digits are lost to a difference of two large
gradients. A right-hand side without data comes with y = 0.

Recurrences drift in the last digits, and a solver may run in less precision than its answer needs. So every solver runs
again on the remainder of its own answer, until that is small enough or no longer falls (iterative refinement; Higham,
Accuracy and Stability of Numerical Algorithms, 2002, chapter 12).

A small gradient g does not imply a small error ‖H⁻¹g‖, with H = AᴴA + μLᴴL. If a solver can bound the error, the
refinement continues until the bound is below `MAX_DISTANCE`, if necessary with residuals in double precision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import as_factor, inner, norm, relative
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.linear_operator import Identity, LinearOperator
from deconv_cli.regularizers import find_penalty
from deconv_cli.solvers.problem import MAX_LAMBDA_IN_FLOAT32, TikhonovProblem
from deconv_cli.solvers.solution import GradientLog, Progress, Solution, Status, StoppingRule


@dataclass(frozen=True)
class NormalEquations:
    """The normal equations of min ‖Ax − y‖² + μ‖Lx‖² − 2⟨g, x⟩.

    Attributes:
        operator: A.
        y: shape `(*batch, *operator.output_shape)`.
        penalty: L; `None` for μ = 0.
        weight: μ.
        g: shape `(*batch, *operator.input_shape)`; `None` means zero.
        needs_float64: rounding of the penalty's gradient in float32 exceeds the tolerance.
        is_derived: y is the result of divisions by small singular values, so that Aᴴy may be smaller than the rounding
            of its parts; the scale is then that of the parts.
    """

    operator: LinearOperator
    y: Tensor
    penalty: LinearOperator | None = None
    weight: float = 0.0
    needs_float64: bool = False
    g: Tensor | None = None
    is_derived: bool = False

    @classmethod
    def of_data(cls, problem: TikhonovProblem, y: Tensor) -> NormalEquations:
        """Write down the problem itself, for data `y` of shape `(*batch, C_out, *output_size)`."""
        return cls(problem.operator, y, *_penalty(problem))

    @classmethod
    def of_gradient(cls, problem: TikhonovProblem, g: Tensor) -> NormalEquations:
        """Write down the problem's normal equations for a right-hand side `g` of shape `(*batch, C_in, *size)`."""
        batch = g.shape[: g.ndim - problem.n_dims]
        return cls(problem.operator, g.new_zeros(*batch, *problem.operator.output_shape), *_penalty(problem), g=g)

    @property
    def n_dims(self) -> int:
        """Axes of one unknown x."""
        return len(self.operator.input_shape)

    @cached_property
    def right_side(self) -> Tensor:
        """The right-hand side Aᴴy + g, shape `(*batch, *operator.input_shape)`."""
        return self._with_g(self.operator.adjoint(self.y))

    @cached_property
    def scale(self) -> Tensor:
        """What the certificate is relative to, shape `(*batch,)`: ‖Aᴴy + g‖, or ‖A‖‖y‖ for derived data."""
        size = self.norm(self.right_side)
        if not self.is_derived:
            return size
        # ‖A‖ as the right-hand side shows it: a lower bound, of the norm's order.
        n_outputs = len(self.operator.output_shape)
        gain = relative(norm(self.operator.forward(self.right_side), n_outputs), size)
        return torch.maximum(size, gain * norm(self.y, n_outputs))

    @property
    def least_curvature(self) -> float | None:
        """A lower bound of the eigenvalues of AᴴA + μLᴴL: μ for the identity, else none is known."""
        return self.weight if isinstance(self.penalty, Identity) else None

    def norm(self, x: Tensor) -> Tensor:
        """Compute the norms of unknowns, shape `(*batch,)`."""
        return norm(x, self.n_dims)

    def zero(self) -> Tensor:
        """Return the start zero, `(*batch, *operator.input_shape)`; it takes no memory and must not be written to."""
        batch = self.y.shape[: self.y.ndim - len(self.operator.output_shape)]
        return self.y.new_zeros(()).expand(*batch, *self.operator.input_shape)

    def residual(self, x: Tensor) -> Tensor:
        """Compute y − Ax."""
        return self.y - self.operator.forward(x)

    def remaining(self, x: Tensor, residual: Tensor) -> Tensor:
        """Compute Aᴴ(y − Ax) + g − μLᴴLx from `x` and y − Ax; it vanishes at the solution."""
        gradient = self._with_g(self.operator.adjoint(residual))
        if self.penalty is None:
            return gradient
        return torch.sub(gradient, self.penalty.apply_gram(x), alpha=self.weight)

    def curvature(self, direction: Tensor, image: Tensor) -> Tensor:
        """Compute ‖Ad‖² + μ‖Ld‖² from d and Ad, shape `(*batch,)`."""
        n_outputs = len(self.operator.output_shape)
        curvature = inner(image, image, n_outputs)
        if self.penalty is None:
            return curvature
        penalized = self.penalty.forward(direction)
        return curvature + self.weight * inner(penalized, penalized, len(self.penalty.output_shape))

    def distance(self, gradient: Tensor, least: float) -> Tensor:
        """Bound ‖x − x*‖ by the gradient at x, with its rounding, over the least eigenvalue, shape `(*batch,)`."""
        return (self.norm(gradient) + torch.finfo(gradient.dtype).eps * self.scale) / least

    def in_float64(self) -> NormalEquations | None:
        """Return the same equations in double precision; `None` if they are so already, or cannot be."""
        operator = self.operator
        if self.y.dtype == torch.float64 or self.y.device.type == "mps" or not isinstance(operator, Convolution):
            return None
        g = None if self.g is None else self.g.double()
        return replace(self, operator=operator.in_float64(), y=self.y.double(), g=g, needs_float64=False)

    def _with_g(self, gradient: Tensor) -> Tensor:
        return gradient if self.g is None else gradient + self.g


def _penalty(problem: TikhonovProblem) -> tuple[LinearOperator | None, float, bool]:
    if problem.weight == 0:
        return None, 0.0, False
    is_heavy = problem.lam > MAX_LAMBDA_IN_FLOAT32 and find_penalty(problem.penalty).takes_differences
    return problem.penalty_operator, problem.weight, is_heavy


MAX_ROUNDS = 8
# The largest distance of an accurate estimate from the minimizer, relative to its norm.
MAX_DISTANCE = 0.01
# The gradient is brought to this part of what that asks for.
SAFETY = 0.5

Improve = Callable[[NormalEquations, Tensor, Tensor, GradientLog], Tensor]
"""Takes the equations, an estimate, the negative gradient there and the log, and gives a better estimate."""
Distance = Callable[[NormalEquations, Tensor], Tensor]
"""Bounds ‖x − x*‖, shape `(*batch,)`, given the equations and the negative gradient at x."""


def refine_equations(
    equations: NormalEquations,
    start: Tensor | None,
    rule: StoppingRule,
    improve: Improve,
    progress: Progress | None = None,
    distance: Distance | None = None,
) -> Solution:
    """Call `improve` until the certificate is reached, the iterations are spent, or nothing is gained.

    The start has the shape `(*batch, *operator.input_shape)`; `None` is zero, which costs nothing to check. `distance`
    bounds or estimates the distance from the minimizer, if anything is known.
    """
    dtype = equations.y.dtype
    if equations.needs_float64:
        equations = equations.in_float64() or equations
        start = None if start is None else start.to(equations.y.dtype)
    refinement = _Refinement(equations, GradientLog(rule, equations.scale, progress), improve, distance)
    found = refinement.repeat(None if start is None else _Estimate.of(equations, start))
    log, bound = refinement.log, refinement.relative_distance(found)
    status = Status.CONVERGED
    if not synchronize.holds_everywhere(refinement.is_reached(found) & torch.isfinite(log.scale)):
        status = Status.MAX_ITERATIONS if log.is_spent else Status.STAGNATED
    elif bound is not None and not _is_near(bound):
        refinement, found, bound = refinement.approach(found)
        status = Status.CONVERGED if _is_near(bound) else Status.INACCURATE
    if found.x.dtype != dtype:
        found, lost = refinement.round(found, dtype)
        bound = None if bound is None else bound + lost
    if bound is not None and not synchronize.holds_everywhere(torch.isfinite(bound)):
        bound = None
    value = found.x.contiguous()  # a zero that was never improved takes no memory of its own
    return Solution(
        value,
        status,
        len(log.history),
        synchronize.as_number(relative(equations.norm(found.gradient), log.scale).max()),
        tuple(log.history),
        distance_bound=None if bound is None else synchronize.as_number(bound.max()),
        left_over=None if found.residual is None else (value, found.residual),
    )


@dataclass(frozen=True)
class _Estimate:
    """An estimate x and the negative gradient there, both of shape `(*batch, *operator.input_shape)`.

    The residual y − Ax of the last one is kept too, if it belongs to all images.
    """

    x: Tensor
    gradient: Tensor
    residual: Tensor | None = None

    @classmethod
    def of(cls, equations: NormalEquations, x: Tensor) -> _Estimate:
        residual = equations.residual(x)
        return cls(x, equations.remaining(x, residual), residual)


@dataclass(frozen=True)
class _Refinement:
    equations: NormalEquations
    log: GradientLog
    improve: Improve
    distance: Distance | None

    def repeat(self, found: _Estimate | None) -> _Estimate:
        """Improve an estimate, by default zero, round by round; return the best one of each image."""
        equations, goal = self.equations, self.log.goal
        found = _Estimate(equations.zero(), equations.right_side) if found is None else found
        vars(equations).pop("right_side", None)  # nothing else needs it, and its memory is for the iterations
        best = equations.norm(found.gradient)
        for _ in range(MAX_ROUNDS):
            if self.log.is_spent or synchronize.holds_everywhere(self.is_reached(found)):
                break
            before = found.x
            improved = self.improve(equations, before, found.gradient, self.log)
            del found  # large images have no room for the last round's gradient; it is seldom needed again
            found = _Estimate.of(equations, improved)
            reached = equations.norm(found.gradient)
            is_better = reached < best
            if not synchronize.holds_everywhere(is_better):
                keeps, last = as_factor(is_better, is_better, equations.n_dims), _Estimate.of(equations, before)
                x = torch.where(keeps, found.x, before)
                found = _Estimate(x, torch.where(keeps, found.gradient, last.gradient))
            # A round that does not halve the gradient is the last; the batch continues while one image gains.
            gains = (reached <= 0.5 * best) & (reached > goal)
            best = torch.minimum(reached, best)
            if not synchronize.holds_anywhere(gains):
                break
        return found

    def is_reached(self, found: _Estimate) -> Tensor:
        """Return which images are solved, shape `(*batch,)`: those whose gradient is as small as the goal.

        Under a heavy penalty on differences, rounding keeps the gradient above the goal. Then an image is solved too if
        it is as near to the minimizer as the tolerance.
        """
        is_small = self.equations.norm(found.gradient) <= self.log.goal
        # The penalty is the identity, or all images are solved: nothing else has to be looked at.
        if self.equations.least_curvature is not None or synchronize.holds_everywhere(is_small):
            return is_small
        bound = self.relative_distance(found)
        return is_small if bound is None else is_small | (bound <= self.log.rule.tolerance)

    def relative_distance(self, found: _Estimate) -> Tensor | None:
        """Bound ‖x − x*‖ / ‖x‖, shape `(*batch,)`."""
        if self.distance is None:
            return None
        return relative(self.distance(self.equations, found.gradient), self.equations.norm(found.x))

    def approach(self, found: _Estimate) -> tuple[_Refinement, _Estimate, Tensor]:
        """Continue until the minimizer is near, with residuals in double precision if necessary.

        Returns:
            In the precision of the last residual: the refinement, the estimate, and its distance.
        """
        found = self._go_on(found)
        bound, wide = self.relative_distance(found), self.equations.in_float64()
        assert bound is not None
        if wide is None or _is_near(bound):
            return self, found, bound
        x = found.x.double()
        precise = replace(self, equations=wide)
        found = precise._go_on(_Estimate.of(wide, x))
        bound = precise.relative_distance(found)
        assert bound is not None
        return precise, found, bound

    def _go_on(self, found: _Estimate) -> _Estimate:
        """Lower the goal as far as the distance requires, and iterate if the rounding error allows it."""
        bound, log = self.relative_distance(found), self.log
        assert bound is not None
        wanted = SAFETY * MAX_DISTANCE * self.equations.norm(found.gradient) / bound.clamp_min(MAX_DISTANCE)
        log.goal = torch.where(bound > MAX_DISTANCE, torch.minimum(log.goal, wanted), log.goal)
        is_lost = log.goal < torch.finfo(found.x.dtype).eps * log.scale
        return found if synchronize.holds_anywhere(is_lost) else self.repeat(found)

    def round(self, found: _Estimate, dtype: torch.dtype) -> tuple[_Estimate, Tensor]:
        """Round an estimate to a dtype; return it with its gradient in double precision, and the relative change."""
        equations, x = self.equations, found.x.to(dtype)
        again = x.to(found.x.dtype)
        lost = relative(equations.norm(again - found.x), equations.norm(found.x))
        return _Estimate(x, equations.remaining(again, equations.residual(again))), lost


def _is_near(bound: Tensor) -> bool:
    return synchronize.holds_everywhere(bound <= MAX_DISTANCE)
