"""Saturated samples as lower bounds: min ½‖Ax − y‖² + ½λσ²max‖Lx‖², in which light above a bound costs little.

A saturated sample says "at least this bright". It counts as any other where the prediction Ax stays below it, and above
it by Huber's function times `EXCESS_WEIGHT`: a square at first, and a line from `HUBER_THRESHOLD` on. The objective is
convex, quadratic in pieces, and differentiable (Huber, "Robust estimation of a location parameter", Annals of
Mathematical Statistics 35, 1964). Nonlinear conjugate gradients minimize it, preconditioned by the inverse on a torus
(Polak and Ribière, 1969; Nocedal and Wright, Numerical Optimization, 2006, equation 5.45). A step takes three pairs of
FFTs. Under an unknown border it takes two, or one while `_Filling` finds a start. The line search knows A times the
direction, and looks at the saturated samples alone. If a certificate needs more digits than the data have, the estimate
and its residual are kept in double precision; the steps keep that of the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import as_factor, crop, inner, relative, safe_ratio, space_axes
from deconv_cli.operators.circulant import FrequencyBlocks
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.extension import close_smoothly
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
RING = 0.75
"""Kernels beyond the frame that are filled in. A wider ring takes more steps, a narrower one leaves more to others."""
FILLING_SHARE = 0.9
"""Filling in ends at this part of the tolerance."""
MAX_LAMBDA_OF_FILLING, LEAST_TOLERANCE_OF_FILLING = 0.02, 5e-6
"""From there on the penalties that a torus has beyond the frame leave a larger gradient than the tolerance."""


def solve_clipped(
    problem: TikhonovProblem,
    y: Tensor,
    is_clipped: Tensor,
    rule: StoppingRule,
    progress: Progress | None = None,
    start: Tensor | None = None,
) -> Solution:
    """Solve with saturated samples as lower bounds; the certificate is the norm of the gradient over ‖Aᴴy‖.

    Args:
        problem: with λ > 0.
        y: shape `(*batch, C_out, *output_size)`.
        is_clipped: which samples are bounds, of the same shape.
        rule: when to stop.
        progress: called after every iteration.
        start: an estimate that takes saturated samples for measurements, shape `(*batch, C_in, *size)`; overwritten.
    """
    y = y.contiguous()  # samples are found by their places
    preconditioner, log = TorusPreconditioner(problem), IterationLog(rule, progress)
    is_narrow = problem.runs_in_own_precision and rule.tolerance >= LEAST_TOLERANCE_IN_FLOAT32
    on_images = _Steps(problem.operator, preconditioner)
    exact = on_images if is_narrow else _Steps(problem.operator.in_float64(), preconditioner)
    # Stacks are transformed by parts.
    is_on_torus = problem.operator.boundary.is_unknown and not any(problem.operator.wraps) and problem.n_dims <= 3
    steps = _TorusSteps(problem.operator, preconditioner) if is_on_torus else on_images
    wide = y.to(exact.operator.kernel.dtype)
    objective = _Objective(problem, wide, is_clipped, steps)
    if isinstance(steps, _TorusSteps) and _fills(problem, rule):
        narrow = y.to(steps.operator.kernel.dtype)
        start = _Filling(problem, narrow, is_clipped, steps, start).solve(objective.scale, log)
    here = objective.at(preconditioner.estimate(y) if start is None else start, exact)
    while not here.certificate <= rule.tolerance and not log.is_spent:
        # Recurrences drift: a round is judged by its estimate alone.
        last, here = here.certificate, objective.at(_descend(objective, here, steps, log).x, exact)
        if not here.certificate < last / 2:
            break
    status = Status.CONVERGED
    if not here.certificate <= rule.tolerance:
        status = Status.STAGNATED
        if log.is_spent:
            status = Status.TIME_LIMIT if rule.is_overdue else Status.MAX_ITERATIONS
    if here.x.dtype != y.dtype:  # rounding is a part of what is given
        here = objective.at(here.x.to(y.dtype), exact)
    x, residual = here.x.to(y.dtype), here.residual.to(y.dtype)
    n, history = log.n_iterations, tuple(log.history)
    return Solution(x, status, n, here.certificate, history, OBJECTIVE, left_over=(x, residual))


def _fills(problem: TikhonovProblem, rule: StoppingRule) -> bool:
    """Return whether the penalties that a torus adds change less than the tolerance."""
    return problem.lam <= MAX_LAMBDA_OF_FILLING and rule.tolerance >= LEAST_TOLERANCE_OF_FILLING


class _Steps:
    """The linear maps of a step, by A and a preconditioner. A gradient and a direction are images here."""

    def __init__(self, operator: Convolution, preconditioner: TorusPreconditioner) -> None:
        self.operator, self._preconditioner = operator, preconditioner
        self._n_dims = len(operator.input_shape)

    def start(self, gradient: Tensor) -> Tensor:
        """Bring an image into the form and the precision of the steps."""
        return gradient.to(self.operator.kernel.dtype)

    def pull(self, data: Tensor) -> Tensor:
        """Compute Aᴴ·data, of data `(*batch, C_out, *output_size)`."""
        return self.operator.adjoint(data.to(self.operator.kernel.dtype))

    def gradient(self, counted: Tensor, rough: Tensor) -> Tensor:
        """Compute Aᴴ·counted − rough, of shapes `(*batch, C_out, *output_size)` and `(*batch, C_in, *size)`."""
        return self.pull(counted) - rough

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

    def __init__(self, operator: Convolution, preconditioner: TorusPreconditioner) -> None:
        super().__init__(operator, preconditioner)
        self.symbol, self.torus = preconditioner.symbol, preconditioner.symbol.torus
        self._adjoint = FrequencyBlocks(self.symbol.blocks.matrices.mH.resolve_conj())

    def start(self, gradient: Tensor) -> Tensor:
        return torch.fft.rfftn(super().start(gradient), s=self.torus, dim=space_axes(len(self.torus)))

    def pull(self, data: Tensor) -> Tensor:
        """Compute Kᴴ·data, for data on the torus or zero beyond their end."""
        return self._adjoint.multiply_once(self.start(data))

    def gradient(self, counted: Tensor, rough: Tensor) -> Tensor:
        return self.pull(counted).sub_(self.start(rough))

    def precondition(self, gradient: Tensor) -> Tensor:
        return self._preconditioner.gram_inverse.blocks.multiply(gradient)

    def predictor(self) -> FrequencyBlocks:
        """Compute K(KᴴK + μ|l|²)⁻¹, whose product with Kᴴ·data predicts data."""
        symbol, inverse = (part.blocks.matrices for part in (self.symbol, self._preconditioner.gram_inverse))
        return FrequencyBlocks(symbol * inverse if inverse.shape[-2:] == (1, 1) else symbol @ inverse)

    def field(self, spectrum: Tensor) -> Tensor:
        """Transform a spectrum back."""
        return torch.fft.irfftn(spectrum, s=self.torus, dim=space_axes(len(self.torus)))

    def images(self, direction: Tensor) -> tuple[Tensor, Tensor]:
        corner, sizes = (0,) * len(self.torus), (self.operator.input_shape[1:], self.operator.output_shape[1:])
        image = crop(self.field(self.symbol.blocks.multiply(direction)), corner, sizes[1])
        return crop(self.field(direction), corner, sizes[0]), image

    def inner(self, a: Tensor, b: Tensor) -> Tensor:
        """Add up half the spectrum twice, but the columns that have no mirror image once (Parseval)."""
        is_square, a = b is a, torch.view_as_real(a).flatten(-2)
        b = a if is_square else torch.view_as_real(b).flatten(-2)
        once = inner(a[..., :2], b[..., :2], self._n_dims)
        if self.torus[-1] % 2 == 0:
            once += inner(a[..., -2:], b[..., -2:], self._n_dims)
        return (2 * inner(a, b, self._n_dims) - once) / math.prod(self.torus)


class _Bounds:
    """Samples of a field `(*batch, C, *size)` that are lower bounds, or were not observed at all.

    `places` are theirs in the flattened field, and `owner` is the image of each. A residual counts `above` times, and
    where it is negative as Huber's function says.
    """

    above: Tensor | float = 1.0

    def __init__(self, field: Tensor, is_bound: Tensor, n_dims: int) -> None:
        self.n_dims = n_dims
        self.places = is_bound.flatten().nonzero()[:, 0]
        self.owner = self.places // field[(0,) * (field.ndim - n_dims)].numel()
        self._least = -HUBER_THRESHOLD * self.at_bounds(field).abs()

    def at_bounds(self, samples: Tensor) -> Tensor:
        """Take these samples alone, shape `(n_bounds,)`."""
        return samples.flatten().index_select(0, self.places)

    def counted(self, residual: Tensor) -> Tensor:
        """Compute how much of the residuals of these samples pulls at the estimate."""
        pull = residual.maximum(self._least).mul_(EXCESS_WEIGHT)  # less than a positive residual
        return torch.maximum(residual, pull, out=pull).mul_(self.above)

    def step_length(self, residual: Tensor, counted: Tensor, gain: Tensor, slope: Tensor, whole: Tensor) -> Tensor:
        """Find where the slope along a direction ends, for each image of the batch.

        Args:
            residual: of these samples.
            counted: how much of it pulls.
            gain: A times the direction, at these samples.
            slope: of the objective along the direction, downwards.
            whole: the curvature along the direction as if every sample were measured.
        """
        length, low, high = torch.zeros_like(slope), torch.zeros_like(slope), torch.full_like(slope, torch.inf)
        left, missed, squares = slope, residual, gain.square()
        others = whole - self.sum_up(squares, slope)
        squares.mul_(self.above)
        for _ in range(MAX_TRIALS):
            # By signs: to make numbers of comparisons takes five times as long.
            weights = missed.sign().clamp_min_(EXCESS_WEIGHT)
            curvature = others + self.sum_up(weights.mul_(squares), slope)
            newton = length + safe_ratio(left, curvature)
            length = torch.where((newton > low) & (newton < high), newton, (low + high.clamp_max(1e30)) / 2)
            missed = torch.addcmul(residual, self.each(length, gain), gain, value=-1)
            left = slope - length * others + self.sum_up(self.counted(missed).sub_(counted).mul_(gain), slope)
            if synchronize.holds_everywhere(left.abs() <= LINE_ACCURACY * slope.abs()):
                break
            low, high = torch.where(left > 0, length, low), torch.where(left < 0, length, high)
        return torch.where(slope > 0, length, 0)

    def each(self, numbers: Tensor, like: Tensor) -> Tensor:
        """Give each sample the number of its image, in the precision of `like`."""
        numbers = numbers.flatten().to(like.dtype)
        return numbers if numbers.numel() == 1 else numbers[self.owner]

    def sum_up(self, values: Tensor, like: Tensor) -> Tensor:
        """Add up numbers of these samples for each image, in the shape and precision of `like`."""
        if like.numel() == 1:
            return values.sum().to(like.dtype).reshape(like.shape)
        return torch.zeros_like(like).view(-1).index_add_(0, self.owner, values.to(like.dtype)).view(like.shape)


class _Objective(_Bounds):
    """The objective for data with saturated samples."""

    def __init__(self, problem: TikhonovProblem, y: Tensor, is_clipped: Tensor, steps: _Steps) -> None:
        super().__init__(y, is_clipped, problem.n_dims)
        self.problem, self.y = problem, y
        pulled = steps.pull(y)
        self.scale = steps.inner(pulled, pulled).sqrt()

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
        certificate = synchronize.as_number(relative(steps.inner(gradient, gradient).sqrt(), self.scale).max())
        return _Point(x, residual, rough, gradient, certificate)


class _Filling(_Bounds):
    """The same steps by two FFTs each, if penalties go around the preconditioner's torus and beyond the frame.

    There an estimate is P·data, of data on all of the torus: observed, filled in at saturated samples and in a ring
    around the frame, and those of a start beyond it. Its gradient is Kᴴe, where e is what residuals count less what
    they are, which is zero but at samples that are filled in. So the steps need P and K at these alone.
    """

    def __init__(
        self, problem: TikhonovProblem, y: Tensor, is_clipped: Tensor, steps: _TorusSteps, x: Tensor | None
    ) -> None:
        n_axes, self._size = problem.n_dims - 1, problem.operator.input_shape[1:]
        self._steps, self._symbol, self._predictor = steps, steps.symbol, steps.predictor()
        torus, corner, size = self._symbol.torus, (0,) * n_axes, y.shape[-n_axes:]
        self._data = close_smoothly(y, torus)
        if x is not None:
            self._data = self._symbol.forward(close_smoothly(x, torus))
            crop(self._data, corner, size).copy_(y)
        is_near, is_inside = torch.ones(2, *torus, dtype=torch.bool, device=y.device)
        for axis, length, n, k in zip(
            space_axes(n_axes), torus, size, problem.operator.geometry.kernel_size, strict=True
        ):
            place = torch.arange(length, device=y.device).reshape(-1, *[1] * (-1 - axis))
            is_inside &= place < n
            is_near &= (place < n + RING * k) | (place >= length - RING * k)
        is_free = (is_near & ~is_inside).expand_as(self._data).clone()
        crop(is_free, corner, size).copy_(is_clipped)
        super().__init__(self._data, is_free, problem.n_dims)
        self.above = self.at_bounds(is_inside.expand_as(self._data)).to(y.dtype)

    def solve(self, scale: Tensor, log: IterationLog) -> Tensor:
        """Take steps until the certificate is reached, and give the estimate; `scale` is ‖Aᴴy‖."""
        steps, field, zero = self._steps, torch.zeros_like(self._data), torch.zeros_like(scale)
        given = self.at_bounds(self._data)
        image, values = self._image(steps.pull(self._data)), given.clone()
        direction, gain, last, gamma = torch.zeros_like(given), torch.zeros_like(given), given, zero
        least, n_since, is_begun = math.inf, 0, False
        while True:
            residual = given - image
            counted = self.counted(residual)
            error = counted - (values - image)
            pulled = steps.pull(field.view(-1).scatter_(0, self.places, error).view_as(field))
            certificate = synchronize.as_number(relative(steps.inner(pulled, pulled).sqrt(), scale).max())
            if is_begun:
                log.record(certificate)
            least, n_since, is_begun = (certificate, 0, True) if certificate < least else (least, n_since + 1, True)
            if certificate <= FILLING_SHARE * log.rule.tolerance or log.is_spent or n_since > PATIENCE:
                break
            z = self._image(pulled)
            before, gamma = gamma, self.sum_up(error * z, zero)
            beta = safe_ratio(gamma - self.sum_up(last * z, zero), before).clamp_min(0)
            along = self.sum_up(error * gain, zero)
            beta = torch.where(gamma + beta * along > 0, beta, 0)
            factor, last = self.each(beta, error), error
            direction.mul_(factor).add_(error)
            gain.mul_(factor).add_(z)
            whole = self.sum_up(gain * direction, zero)
            length = self.each(self.step_length(residual, counted, gain, gamma + beta * along, whole), error)
            values.addcmul_(length, direction)
            image.addcmul_(length, gain)
        self._data.view(-1)[self.places] = values
        found = steps.field(steps.precondition(steps.pull(self._data)))
        return crop(found, (0,) * len(self._size), self._size)

    def _image(self, pulled: Tensor) -> Tensor:
        """Compute KP·data at these samples from the spectrum Kᴴ·data, which is overwritten."""
        return self.at_bounds(self._steps.field(self._predictor.multiply_once(pulled)))


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
        residual, gain = (objective.at_bounds(samples) for samples in (here.residual, image))
        whole = inner(image, image, n_dims) + bend
        length = objective.step_length(residual, objective.counted(residual), gain.to(slope.dtype), slope, whole)
        length = as_factor(length, here.x, n_dims)
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
