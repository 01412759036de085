"""Saturated samples as lower bounds: min ½‖Ax − y‖² + ½λσ²max‖Lx‖², in which light above a bound costs little.

A saturated sample says "at least this bright". It counts as any other where the prediction Ax stays below it, and above
it by Huber's function times `EXCESS_WEIGHT`: a square at first, and a line from `HUBER_THRESHOLD` on. The objective is
convex, quadratic in pieces, and differentiable. Newton's method solves it: with the curvature w of each sample, 1,
`EXCESS_WEIGHT` or 0, conjugate gradients solve least squares, until no curvature changes (Mangasarian, "A finite Newton
method for classification", Optimization Methods and Software 17, 2002, on problems of this form; Huber, "Robust
estimation of a location parameter", Annals of Mathematical Statistics 35, 1964). Nothing curves where w = 0, so a step
may go too far and is then shortened.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import as_factor, inner, relative
from deconv_cli.operators.linear_operator import LinearOperator
from deconv_cli.solvers.cgls import iterate
from deconv_cli.solvers.iterative import TorusPreconditioner
from deconv_cli.solvers.normal_equations import NormalEquations
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.solvers.solution import Progress, Solution, Status, StoppingRule

OBJECTIVE = "½‖Ax − y‖² + ½λσ²max‖Lx‖², where light above clipped samples costs hardly anything"
EXCESS_WEIGHT = 1e-3
"""Of what Ax exceeds a bound by. Where the penalty alone held the estimate it took three times the iterations in wide
full parts, and hung on data far away."""
HUBER_THRESHOLD = 0.1
"""Part of a bound, from which on light above it costs linearly: else saturated stars lose their brightness, and
what is around them with it."""
NEWTON_ACCURACY = 0.5
LEAST_SHORTENING, MOST_SHORTENING, MAX_SHORTENINGS = 0.9, 0.1, 20
DEFAULT_TOLERANCE = 3e-6
"""The certificate at which it ends where none was given: nearer to the solution nothing changes that one would see."""
CLOSE_TOLERANCE = 3e-8
"""The same for parts of a picture, which have to agree."""


class WeightedSamples(LinearOperator):
    """A with outputs multiplied by `factors`, shape `(*batch, *operator.output_shape)`."""

    def __init__(self, operator: LinearOperator, factors: Tensor) -> None:
        self.input_shape, self.output_shape = operator.input_shape, operator.output_shape
        self._operator, self._factors = operator, factors

    def forward(self, x: Tensor) -> Tensor:
        """Apply to `x` of shape `(*batch, *input_shape)`."""
        return self._factors * self._operator.forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the transpose to `y` of shape `(*batch, *output_shape)`."""
        return self._operator.adjoint(self._factors * y)


def solve_clipped(
    problem: TikhonovProblem,
    y: Tensor,
    is_clipped: Tensor,
    rule: StoppingRule,
    progress: Progress | None = None,
) -> Solution:
    """Solve with saturated samples as lower bounds; the certificate is that of `_Quadratic`.

    Args:
        problem: with λ > 0.
        y: shape `(*batch, C_out, *output_size)`.
        is_clipped: which samples are bounds, of the same shape.
        rule: when to stop; each round may take all the iterations that are left.
        progress: called after every iteration.
    """
    preconditioner, history = TorusPreconditioner(problem), list[float]()
    objective = _Objective(problem, y, is_clipped)
    here = objective.at(preconditioner.estimate(y).to(objective.y.dtype))
    while here.certificate > rule.tolerance and len(history) < rule.max_iterations:
        # The next round changes the equations, so an exact solution is not needed.
        left = StoppingRule(max(rule.tolerance / here.certificate, NEWTON_ACCURACY), rule.max_iterations - len(history))
        listener = partial(_report, progress, len(history), here.certificate) if progress else None
        equations = _correction(problem, here)
        found = iterate(equations, left, preconditioner=preconditioner, progress=listener)
        history += [part * here.certificate for part in found.residual_norms]
        last, here = here, objective.step(here, found.value.to(objective.y.dtype))
        if here.certificate >= last.certificate and synchronize.holds_everywhere(here.weights == last.weights):
            break
    status = Status.CONVERGED
    if not here.certificate <= rule.tolerance:
        status = Status.MAX_ITERATIONS if len(history) >= rule.max_iterations else Status.STAGNATED
    x, certificate = here.x.to(y.dtype), here.certificate
    if x.dtype != here.x.dtype:  # rounding is a part of what is given
        certificate = objective.at(x.to(here.x.dtype)).certificate
    return Solution(x, status, len(history), certificate, tuple(history), OBJECTIVE)


def _report(progress: Progress, n_before: int, certificate: float, n: int, part: float) -> None:
    """Count iterations over all rounds, and report the certificate instead of the remaining part of a gradient."""
    progress(n_before + n, part * certificate)


def _correction(problem: TikhonovProblem, here: _Quadratic) -> NormalEquations:
    """Set up the equations of the next step, which hold as long as no curvature changes."""
    dtype = problem.operator.kernel.dtype
    operator = WeightedSamples(problem.operator, here.weights.to(dtype).sqrt())
    nothing = torch.zeros_like(here.weights, dtype=dtype)
    return NormalEquations(operator, nothing, problem.penalty_operator, problem.weight, g=here.gradient.to(dtype))


class _Objective:
    """The objective, in double precision: in single precision the rest has too few digits."""

    def __init__(self, problem: TikhonovProblem, y: Tensor, is_clipped: Tensor) -> None:
        operator = problem.operator.in_float64()
        self.y, self.is_clipped = y.to(operator.kernel.dtype), is_clipped
        self.equations = NormalEquations(operator, self.y, problem.penalty_operator, problem.weight)

    def at(self, x: Tensor) -> _Quadratic:
        """Compute curvature, gradient and certificate at an estimate."""
        residual = self.equations.residual(x)
        exceeds, least = self.is_clipped & (residual <= 0), -HUBER_THRESHOLD * self.y.abs()
        weights = torch.ones_like(self.y).masked_fill_(exceeds, EXCESS_WEIGHT)
        weights.masked_fill_(exceeds & (residual < least), 0)
        counted = torch.where(exceeds, EXCESS_WEIGHT * torch.maximum(residual, least), residual)
        gradient = self.equations.remaining(x, counted)
        certificate = relative(self.equations.norm(gradient), self.equations.scale).max()
        return _Quadratic(x, weights, gradient, synchronize.as_number(certificate))

    def step(self, here: _Quadratic, way: Tensor) -> _Quadratic:
        """Search along a line: shorten the step of each image until its slope has not turned by over one half."""
        n_dims = self.equations.n_dims
        slope = inner(here.gradient, way, n_dims)
        length = torch.ones_like(slope)
        for _ in range(MAX_SHORTENINGS):
            there = self.at(here.x + as_factor(length, way, n_dims) * way)
            behind = inner(there.gradient, way, n_dims)
            is_too_far = behind < -slope / 2
            if not synchronize.holds_anywhere(is_too_far):
                break
            shortened = (slope / (slope - behind)).clamp(MOST_SHORTENING, LEAST_SHORTENING)
            length = torch.where(is_too_far, length * shortened, length)
        return there


@dataclass(frozen=True, eq=False)
class _Quadratic:
    """The objective around an estimate x, where it is quadratic.

    `weights` are the curvatures of the samples, `gradient` points down the objective, and the certificate is its norm
    over that of Aᴴy, for the worst image.
    """

    x: Tensor
    weights: Tensor
    gradient: Tensor
    certificate: float
