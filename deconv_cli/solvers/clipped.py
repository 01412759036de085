"""Saturated samples as lower bounds: min ½‖Ax − y‖² + ½λσ²max‖Lx‖², in which light above a bound costs little.

A saturated sample says "at least this bright". It counts as any other where the prediction Ax stays below it, and above
it by Huber's function times `EXCESS_WEIGHT`: a square at first, and a line from `HUBER_THRESHOLD` on. The objective is
convex, quadratic in pieces, and differentiable (Huber, "Robust estimation of a location parameter", Annals of
Mathematical Statistics 35, 1964). Nonlinear conjugate gradients minimize it, preconditioned by the inverse on a torus
(Polak and Ribière, 1969; Nocedal and Wright, Numerical Optimization, 2006, equation 5.45). A step takes three pairs of
FFTs, or two under an unknown border: the line search knows A times the direction, and looks at the saturated samples
alone. If a certificate needs more digits than the data have, the estimate and its residual are kept in double
precision; the steps keep that of the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import as_factor, crop, inner, norm, relative, safe_ratio, space_axes
from deconv_cli.operators.convolution import Convolution
from deconv_cli.solvers.iterative import TorusPreconditioner
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.solvers.solution import IterationLog, Progress, Solution, Status, StoppingRule

OBJECTIVE = "½‖Ax − y‖² + ½λσ²max‖Lx‖², where light above clipped samples costs hardly anything"
EXCESS_WEIGHT = 1e-3
"""Of what Ax exceeds a bound by. Where the penalty alone held the estimate it took three times the iterations in wide
full parts, and hung on data far away."""
HUBER_THRESHOLD = 0.1
"""Part of a bound, from which on light above it costs linearly: else saturated stars lose their brightness, and
what is around them with it."""
LEAST_TOLERANCE_IN_FLOAT32 = 1e-6
LINE_ACCURACY = 0.1
"""A line search ends where this part of the slope is left."""
MAX_TRIALS = 30
PATIENCE = 100
"""Number of steps without a smaller gradient that ends a round; a round that does not halve the gradient is last."""
DEFAULT_TOLERANCE = 1e-5
"""The certificate at which it ends by default; a closer solution shows no visible change."""
CLOSE_TOLERANCE = 3e-8
"""The same for parts of a picture, which have to agree."""


def solve_clipped(
    problem: TikhonovProblem,
    y: Tensor,
    is_clipped: Tensor,
    rule: StoppingRule,
    progress: Progress | None = None,
) -> Solution:
    """Solve with saturated samples as lower bounds; the certificate is the norm of the gradient over ‖Aᴴy‖.

    Args:
        problem: with λ > 0.
        y: shape `(*batch, C_out, *output_size)`.
        is_clipped: which samples are bounds, of the same shape.
        rule: when to stop.
        progress: called after every iteration.
    """
    preconditioner, log = TorusPreconditioner(problem), IterationLog(rule, progress)
    is_narrow = problem.runs_in_own_precision and rule.tolerance >= LEAST_TOLERANCE_IN_FLOAT32
    on_images = _Steps(problem.operator, preconditioner)
    exact = on_images if is_narrow else _Steps(problem.operator.in_float64(), preconditioner)
    # Stacks are transformed by parts.
    is_on_torus = problem.operator.boundary.is_unknown and not any(problem.operator.wraps) and problem.n_dims <= 3
    steps = _TorusSteps(problem.operator, preconditioner) if is_on_torus else on_images
    objective = _Objective(problem, y.to(exact.operator.kernel.dtype), is_clipped)
    here = objective.at(preconditioner.estimate(y), on_images)
    certificate = here.certificate
    while True:
        if certificate > rule.tolerance and not log.is_spent:
            here = _descend(objective, here, steps, log)
        # Recurrences drift: a round is judged by its estimate alone.
        last, here = certificate, objective.at(here.x, exact)
        certificate = here.certificate
        if certificate <= rule.tolerance or log.is_spent or not certificate < last / 2:
            break
    status = Status.CONVERGED
    if not certificate <= rule.tolerance:
        status = Status.STAGNATED
        if log.is_spent:
            status = Status.TIME_LIMIT if rule.is_overdue else Status.MAX_ITERATIONS
    x = here.x.to(y.dtype)
    if x.dtype != here.x.dtype:  # rounding is a part of what is given
        certificate = objective.at(x, exact).certificate
    return Solution(x, status, log.n_iterations, certificate, tuple(log.history), OBJECTIVE)


class _Steps:
    """The linear maps of a step, by A and a preconditioner. A gradient and a direction are images here."""

    def __init__(self, operator: Convolution, preconditioner: TorusPreconditioner) -> None:
        self.operator, self._preconditioner = operator, preconditioner
        self._n_dims = len(operator.input_shape)

    def start(self, gradient: Tensor) -> Tensor:
        """Bring an image into the form and the precision of the steps."""
        return gradient.to(self.operator.kernel.dtype)

    def gradient(self, counted: Tensor, rough: Tensor) -> Tensor:
        """Compute Aᴴ·counted − rough, of shapes `(*batch, C_out, *output_size)` and `(*batch, C_in, *size)`."""
        return self.operator.adjoint(counted.to(self.operator.kernel.dtype)) - rough

    def precondition(self, gradient: Tensor) -> Tensor:
        """Apply the preconditioner."""
        return self._preconditioner.forward(gradient)

    def images(self, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Give a direction as an image, and A times it."""
        return direction, self.operator.forward(direction)

    def inner(self, a: Tensor, b: Tensor) -> Tensor:
        """Compute the inner products of gradients and directions, shape `(*batch,)`."""
        return inner(a, b, self._n_dims)


class _TorusSteps(_Steps):
    """The same under an unknown border by four FFTs instead of six: a gradient and a direction are spectra.

    No output and no penalty depends on the pixels that the preconditioner's torus has beyond the image. So a gradient
    is zero there, and a direction may be anything.
    """

    def start(self, gradient: Tensor) -> Tensor:
        torus = self._preconditioner.symbol.torus
        return torch.fft.rfftn(super().start(gradient), s=torus, dim=space_axes(len(torus)))

    def gradient(self, counted: Tensor, rough: Tensor) -> Tensor:
        pulled = self._preconditioner.symbol.blocks.multiply_once(self.start(counted), adjoint=True)
        return pulled.sub_(self.start(rough))

    def precondition(self, gradient: Tensor) -> Tensor:
        return self._preconditioner.gram_inverse.blocks.multiply(gradient)

    def images(self, direction: Tensor) -> tuple[Tensor, Tensor]:
        symbol, fields = self._preconditioner.symbol, []
        for spectrum, shape in (
            (symbol.blocks.multiply(direction), self.operator.output_shape),
            (direction, self.operator.input_shape),
        ):
            field = torch.fft.irfftn(spectrum, s=symbol.torus, dim=space_axes(len(symbol.torus)))
            fields.append(crop(field, (0,) * len(symbol.torus), shape[1:]))
        return fields[1], fields[0]

    def inner(self, a: Tensor, b: Tensor) -> Tensor:
        """Add up half the spectrum twice, but the columns that have no mirror image once (Parseval)."""
        torus = self._preconditioner.symbol.torus
        a, b = (torch.view_as_real(spectrum).flatten(-2) for spectrum in (a, b))
        once = inner(a[..., :2], b[..., :2], self._n_dims)
        if torus[-1] % 2 == 0:
            once += inner(a[..., -2:], b[..., -2:], self._n_dims)
        return (2 * inner(a, b, self._n_dims) - once) / math.prod(torus)


class _Objective:
    """The objective for data with saturated samples.

    `places` are those of the saturated samples in the flattened data, and `owner` is the image of each.
    """

    def __init__(self, problem: TikhonovProblem, y: Tensor, is_clipped: Tensor) -> None:
        self.problem, self.y, self.n_dims = problem, y, problem.n_dims
        self.places = is_clipped.flatten().nonzero()[:, 0]
        self.owner = self.places // y[(0,) * (y.ndim - self.n_dims)].numel()
        self._least = -HUBER_THRESHOLD * self.at_bounds(y).abs()
        self._scale = norm(problem.operator.adjoint(y.to(problem.operator.kernel.dtype)), self.n_dims)

    def at(self, x: Tensor, steps: _Steps) -> _Point:
        """Compute residual, penalty and gradient at an estimate by the operator in some precision."""
        x = x.to(self.y.dtype)
        residual = self.y - steps.operator.forward(x.to(steps.operator.kernel.dtype))
        return self.point(x, residual, self.problem.penalty_gram(x), steps)

    def point(self, x: Tensor, residual: Tensor, rough: Tensor, steps: _Steps) -> _Point:
        """Compute gradient and certificate of an estimate, from its residual y − Ax and μLᴴLx."""
        counted = residual.clone()
        counted.view(-1)[self.places] = self.counted(self.at_bounds(residual))
        gradient = steps.gradient(counted, rough)
        certificate = synchronize.as_number(relative(steps.inner(gradient, gradient).sqrt(), self._scale).max())
        return _Point(x, residual, rough, gradient, certificate)

    def at_bounds(self, samples: Tensor) -> Tensor:
        """Take the saturated samples alone, shape `(n_bounds,)`."""
        return samples.flatten().index_select(0, self.places)

    def counted(self, residual: Tensor) -> Tensor:
        """Compute how much of the residuals of saturated samples pulls at the estimate."""
        return torch.where(residual > 0, residual, EXCESS_WEIGHT * torch.maximum(residual, self._least))

    def step_length(self, here: _Point, image: Tensor, slope: Tensor, bend: Tensor) -> Tensor:
        """Find where the slope along a direction ends, for each image of the batch.

        Args:
            here: the estimate.
            image: A times the direction.
            slope: of the objective along the direction, downwards.
            bend: the curvature along the direction that the penalty has.
        """
        residual, gain = self.at_bounds(here.residual), self.at_bounds(image).to(slope.dtype)
        whole = inner(image, image, self.n_dims) + bend  # as if no sample were saturated
        base = slope - self._sum((self.counted(residual) - residual) * gain, slope)
        length, low, high = torch.zeros_like(slope), torch.zeros_like(slope), torch.full_like(slope, torch.inf)
        left = slope
        for _ in range(MAX_TRIALS):
            missed = residual - self._each(length) * gain
            weights = torch.where(missed > 0, 1, EXCESS_WEIGHT * (missed >= self._least))
            curvature = whole - self._sum((1 - weights) * gain.square(), slope)
            newton = length + safe_ratio(left, curvature)
            length = torch.where((newton > low) & (newton < high), newton, (low + high.clamp_max(1e30)) / 2)
            missed = residual - self._each(length) * gain
            left = base - length * whole + self._sum((self.counted(missed) - missed) * gain, slope)
            if synchronize.holds_everywhere(left.abs() <= LINE_ACCURACY * slope.abs()):
                break
            low, high = torch.where(left > 0, length, low), torch.where(left < 0, length, high)
        return torch.where(slope > 0, length, 0)

    def _each(self, numbers: Tensor) -> Tensor:
        return numbers.flatten() if numbers.numel() == 1 else numbers.flatten()[self.owner]

    def _sum(self, values: Tensor, like: Tensor) -> Tensor:
        """Add up numbers of the saturated samples of each image."""
        if like.numel() == 1:
            return values.sum(dtype=like.dtype).reshape(like.shape)
        return torch.zeros_like(like).view(-1).index_add_(0, self.owner, values.to(like.dtype)).view(like.shape)


@dataclass(frozen=True, eq=False)
class _Point:
    """An estimate x, its residual y − Ax, μLᴴLx, the gradient, which points down the objective, and its certificate.

    The certificate is the norm of the gradient over that of Aᴴy, for the worst image.
    """

    x: Tensor
    residual: Tensor
    rough: Tensor
    gradient: Tensor
    certificate: float


def _descend(objective: _Objective, here: _Point, steps: _Steps, log: IterationLog) -> _Point:
    """Take steps of nonlinear conjugate gradients until the tolerance is reached or nothing is gained any more.

    The fields of the point are overwritten.
    """
    problem, n_dims = objective.problem, objective.n_dims
    direction: Tensor | None = None
    gamma, n_since, least = torch.zeros(()), 0, here.certificate
    gradient = last = steps.start(here.gradient)
    like = gradient.real
    while not log.is_spent:
        z = steps.precondition(gradient)
        before, gamma = gamma, steps.inner(gradient, z)
        if direction is None:
            direction, slope = z, gamma
        else:
            beta = safe_ratio(gamma - steps.inner(last, z), before).clamp_min(0)
            direction = direction.mul_(as_factor(beta, like, n_dims)).add_(z)
            slope = steps.inner(gradient, direction)
            if synchronize.holds_anywhere(slope <= 0):
                direction = torch.where(as_factor(slope <= 0, like, n_dims) > 0, z, direction)
                slope = torch.where(slope <= 0, gamma, slope)
        del z
        last, (step, image) = gradient, steps.images(direction)
        bent = problem.penalty_gram(step)
        bend = inner(step, bent, n_dims)
        length = as_factor(objective.step_length(here, image, slope, bend), here.x, n_dims)
        # In place, and without what is done with: at the size of photographs these fields are the peak of memory.
        here.x.addcmul_(length, step)
        here.residual.addcmul_(length, image, value=-1)
        here.rough.addcmul_(length, bent)
        del step, image, bent
        here = objective.point(here.x, here.residual, here.rough, steps)
        gradient = here.gradient.to(last.dtype)
        log.record(here.certificate)
        least, n_since = (here.certificate, 0) if here.certificate < least else (least, n_since + 1)
        if here.certificate <= log.rule.tolerance or n_since > PATIENCE:
            break
    return here
