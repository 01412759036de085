"""Repeat an iteration until the certificate, computed afresh, is reached and the minimizer is near.

Recurrences drift from the truth in the last digits, and a solver may run in less precision than its answer needs. So
every solver is run again on what its own answer leaves over, until that is small enough or no longer falls (iterative
refinement; Higham, Accuracy and Stability of Numerical Algorithms, 2002, chapter 12).

A small gradient g is not yet a small error: that is ‖H⁻¹g‖, with H = AᴴA + μLᴴL. Where a solver can bound it, the
refinement goes on until the bound is below `MAX_DISTANCE`, if need be with residuals in double precision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.solvers.normal_equations import NormalEquations
from deconv_cli.solvers.norms import as_factor, relative
from deconv_cli.solvers.solution import Solution, Status

Progress = Callable[[int, float], None]
"""Called after each iteration with its number and the certificate so far."""

MAX_ROUNDS = 8
# How far an estimate may be from the minimizer, relative to its norm, to count as accurate.
MAX_DISTANCE = 0.01
# The gradient is brought to this part of what that asks for.
SAFETY = 0.5


@dataclass(frozen=True)
class StoppingRule:
    """When an iteration ends.

    Attributes:
        tolerance: the certificate to reach.
        max_iterations: iterations at most, all rounds together.
    """

    tolerance: float
    max_iterations: int


def default_tolerance(dtype: torch.dtype) -> float:
    """Return the certificate that an iteration of this precision should reach."""
    return 1e-10 if dtype == torch.float64 else 1e-6


@dataclass
class IterationLog:
    """The iterations of one solve, all rounds together.

    Attributes:
        rule: when to stop.
        progress: called after every iteration.
        history: the certificate after every iteration.
    """

    rule: StoppingRule
    progress: Progress | None = None
    history: list[float] = field(default_factory=list)

    @property
    def is_spent(self) -> bool:
        """Whether the iterations have run out."""
        return len(self.history) >= self.rule.max_iterations

    def record(self, certificate: float) -> None:
        """Record an iteration."""
        self.history.append(certificate)
        if self.progress is not None:
            self.progress(len(self.history), certificate)


class GradientLog(IterationLog):
    """The iterations of one solve of normal equations.

    Args:
        rule: when to stop.
        scale: the norm of the right-hand side, ‖Aᴴy‖ for data, shape `(*batch,)`.
        progress: called after every iteration.

    Attributes:
        goal: the norm of the gradient to be reached, shape `(*batch,)`.
    """

    def __init__(self, rule: StoppingRule, scale: Tensor, progress: Progress | None = None) -> None:
        super().__init__(rule, progress)
        self.scale = scale
        self.goal = rule.tolerance * scale

    def add(self, remaining: Tensor) -> None:
        """Record an iteration that left a gradient of norm `remaining`, shape `(*batch,)`."""
        self.record(synchronize.as_number(relative(remaining, self.scale).max()))


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

    Args:
        equations: what to solve.
        start: first estimate, shape `(*batch, *operator.input_shape)`; `None` for zero, which costs nothing to check.
        rule: when to stop.
        improve: gives a better estimate.
        progress: called after every iteration.
        distance: bounds or estimates the distance from the minimizer; `None` where nothing is known of it.
    """
    wide = equations.in_float64() if equations.needs_float64 else None
    if wide is not None:
        precise = None if start is None else start.double()
        solution = refine_equations(wide, precise, rule, improve, progress, distance)
        return _rounded(wide, solution, equations.y.dtype)
    log = GradientLog(rule, equations.scale, progress)
    if start is None:
        x, gradient = equations.zero(), equations.right_side
    else:
        x, gradient = start, equations.remaining(start, equations.residual(start))
    x, gradient = _repeat(equations, x, gradient, log, improve, distance)
    is_reached = _is_reached(equations, x, gradient, log, distance) & torch.isfinite(log.scale)
    status = Status.CONVERGED
    if not synchronize.holds_everywhere(is_reached):
        status = Status.MAX_ITERATIONS if log.is_spent else Status.STAGNATED
    bound = None if distance is None else _relative_distance(equations, x, gradient, distance)
    if bound is not None and distance is not None and status is Status.CONVERGED and not _is_near(bound):
        x, gradient, bound = _approach(equations, x, gradient, log, improve, distance)
        status = Status.CONVERGED if _is_near(bound) else Status.INACCURATE
    return Solution(
        x.contiguous(),  # a zero that was never improved takes no memory of its own
        status,
        len(log.history),
        synchronize.as_number(relative(equations.norm(gradient), log.scale).max()),
        tuple(log.history),
        distance_bound=None if bound is None else synchronize.as_number(bound.max()),
    )


def _repeat(
    equations: NormalEquations,
    x: Tensor,
    gradient: Tensor,
    log: GradientLog,
    improve: Improve,
    distance: Distance | None,
) -> tuple[Tensor, Tensor]:
    """Improve an estimate round by round; gives the best one of each image, and the negative gradient there."""
    best = equations.norm(gradient)
    for _ in range(MAX_ROUNDS):
        if log.is_spent or synchronize.holds_everywhere(_is_reached(equations, x, gradient, log, distance)):
            break
        candidate = improve(equations, x, gradient, log)
        new_gradient = equations.remaining(candidate, equations.residual(candidate))
        reached = equations.norm(new_gradient)
        is_better = reached < best
        if synchronize.holds_everywhere(is_better):
            x, gradient = candidate, new_gradient
        else:
            keeps = as_factor(is_better, is_better, equations.n_dims)
            x, gradient = torch.where(keeps, candidate, x), torch.where(keeps, new_gradient, gradient)
        # A round that does not even halve what is left gains nothing more; the batch goes on while one image does.
        gains = (reached <= 0.5 * best) & (reached > log.goal)
        best = torch.minimum(reached, best)
        if not synchronize.holds_anywhere(gains):
            break
    return x, gradient


def _is_reached(
    equations: NormalEquations, x: Tensor, gradient: Tensor, log: GradientLog, distance: Distance | None
) -> Tensor:
    """Return which images have a gradient as small as the goal, shape `(*batch,)`.

    Under a heavy penalty on differences rounding of the penalty leaves more than that. Then an estimate will do that is
    as near to the minimizer as the tolerance.
    """
    is_small = equations.norm(gradient) <= log.goal
    if distance is None or equations.least_curvature is not None or synchronize.holds_everywhere(is_small):
        return is_small
    return is_small | (_relative_distance(equations, x, gradient, distance) <= log.rule.tolerance)


def _approach(
    equations: NormalEquations, x: Tensor, gradient: Tensor, log: GradientLog, improve: Improve, distance: Distance
) -> tuple[Tensor, Tensor, Tensor]:
    """Go on until the minimizer is near, with residuals in double precision where those of the data do not suffice.

    Returns:
        The estimate, the negative gradient there in the precision of the last residual, and the distance.
    """
    if _lower_goal(equations, x, gradient, log, distance):
        x, gradient = _repeat(equations, x, gradient, log, improve, distance)
    bound = _relative_distance(equations, x, gradient, distance)
    wide = equations.in_float64()
    if wide is None or _is_near(bound):
        return x, gradient, bound
    precise = x.double()
    gradient = wide.remaining(precise, wide.residual(precise))
    if _lower_goal(wide, precise, gradient, log, distance):
        precise, gradient = _repeat(wide, precise, gradient, log, improve, distance)
    bound = _relative_distance(wide, precise, gradient, distance)
    rounded, gradient, lost = _round(wide, precise, x.dtype)
    return rounded, gradient, bound + lost


def _round(wide: NormalEquations, precise: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Round an estimate to a dtype; gives it, its negative gradient in double precision, and the relative change."""
    rounded = precise.to(dtype)
    again = rounded.double()
    gradient = wide.remaining(again, wide.residual(again))
    return rounded, gradient, relative(wide.norm(again - precise), wide.norm(precise))


def _rounded(wide: NormalEquations, solution: Solution, dtype: torch.dtype) -> Solution:
    """Round a solution to a dtype, and measure it again."""
    value, gradient, lost = _round(wide, solution.value, dtype)
    certificate = synchronize.as_number(relative(wide.norm(gradient), wide.scale).max())
    bound = solution.distance_bound
    if bound is not None:
        bound += synchronize.as_number(lost.max())
    return replace(solution, value=value, certificate=certificate, distance_bound=bound)


def _lower_goal(equations: NormalEquations, x: Tensor, gradient: Tensor, log: GradientLog, distance: Distance) -> bool:
    """Lower the goal as far as the distance asks for; returns whether rounding leaves it within reach."""
    bound = _relative_distance(equations, x, gradient, distance)
    wanted = SAFETY * MAX_DISTANCE * equations.norm(gradient) / bound.clamp_min(MAX_DISTANCE)
    log.goal = torch.where(bound > MAX_DISTANCE, torch.minimum(log.goal, wanted), log.goal)
    return not synchronize.holds_anywhere(log.goal < torch.finfo(x.dtype).eps * log.scale)


def _relative_distance(equations: NormalEquations, x: Tensor, gradient: Tensor, distance: Distance) -> Tensor:
    """Bound ‖x − x*‖ / ‖x‖, shape `(*batch,)`."""
    return relative(distance(equations, gradient), equations.norm(x))


def _is_near(bound: Tensor) -> bool:
    return synchronize.holds_everywhere(bound <= MAX_DISTANCE)
