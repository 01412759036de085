"""Repeat an iteration until the certificate, computed afresh, is reached.

Recurrences drift from the truth in the last digits, and a solver may run in less precision than its answer needs. So
every solver is run again on what its own answer leaves over, until that is small enough or no longer falls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.solvers.normal_equations import NormalEquations
from deconv_cli.solvers.problem import norm, relative
from deconv_cli.solvers.solution import Solution, Status

Progress = Callable[[int, float], None]
"""Called after each iteration with its number and the certificate so far."""

MAX_ROUNDS = 8


@dataclass(frozen=True)
class StoppingRule:
    """When an iteration ends.

    Attributes:
        tolerance: the certificate to reach.
        max_iterations: iterations at most, all rounds together.
    """

    tolerance: float
    max_iterations: int


@dataclass
class Course:
    """The course of one solve, shared by its rounds.

    Attributes:
        rule: when to stop.
        scale: the norm of the right-hand side, ‖Aᴴy‖ for data, shape `(*batch,)`.
        progress: told of every iteration.
        history: the certificate as the iterations saw it.
    """

    rule: StoppingRule
    scale: Tensor
    progress: Progress | None = None
    history: list[float] = field(default_factory=list)

    @property
    def goal(self) -> Tensor:
        """The norm of the gradient to be reached, shape `(*batch,)`."""
        return self.rule.tolerance * self.scale

    @property
    def is_spent(self) -> bool:
        """Whether the iterations have run out."""
        return len(self.history) >= self.rule.max_iterations

    def note(self, remaining: Tensor) -> None:
        """Take note of an iteration that left a gradient of norm `remaining`, shape `(*batch,)`."""
        self.history.append(synchronize.as_number(relative(remaining, self.scale).max()))
        if self.progress is not None:
            self.progress(len(self.history), self.history[-1])


def refine_equations(
    equations: NormalEquations,
    start: Tensor | None,
    rule: StoppingRule,
    improve: Callable[[Tensor, Tensor, Course], Tensor],
    progress: Progress | None = None,
) -> Solution:
    """Call `improve` until the certificate is reached, the iterations are spent, or nothing is gained.

    Args:
        equations: what to solve.
        start: first estimate, shape `(*batch, *operator.input_shape)`; `None` for zero, which costs nothing to check.
        rule: when to stop.
        improve: takes an estimate, the negative gradient there and the course, and gives a better estimate.
        progress: told of every iteration.
    """
    course = Course(rule, equations.scale, progress)
    if start is None:
        x, gradient = equations.zero(), equations.right_side
    else:
        x, gradient = start, equations.remaining(start, equations.residual(start))
    best = norm(gradient)
    for _ in range(MAX_ROUNDS):
        if course.is_spent or synchronize.holds_everywhere(best <= course.goal):
            break
        candidate = improve(x, gradient, course)
        new_gradient = equations.remaining(candidate, equations.residual(candidate))
        reached = norm(new_gradient)
        is_better = reached < best
        if synchronize.holds_everywhere(is_better):
            x, gradient = candidate, new_gradient
        else:
            keeps = is_better[..., None, None, None]
            x, gradient = torch.where(keeps, candidate, x), torch.where(keeps, new_gradient, gradient)
        # A round that does not even halve what is left gains nothing more; the batch goes on while one image does.
        gains = (reached <= 0.5 * best) & (reached > course.goal)
        best = torch.minimum(reached, best)
        if not synchronize.holds_anywhere(gains):
            break
    is_done = synchronize.holds_everywhere((best <= course.goal) & torch.isfinite(course.scale))
    unfinished = Status.MAX_ITERATIONS if course.is_spent else Status.STAGNATED
    return Solution(
        x.contiguous(),  # a zero that was never improved takes no memory of its own
        Status.CONVERGED if is_done else unfinished,
        len(course.history),
        synchronize.as_number(relative(best, course.scale).max()),
        tuple(course.history),
    )


def step(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide, giving 0 to images that are done already."""
    return torch.where(denominator > 0, numerator / denominator.clamp_min(1e-300), 0)
