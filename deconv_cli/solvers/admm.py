"""The alternating direction method of multipliers for total variation: z = ∇x is split off, and x and z take turns.

Wang, Yang, Yin and Zhang, A new alternating minimization algorithm for total variation image reconstruction, SIAM
Journal on Imaging Sciences 1, 2008: a step is a shrinkage of z and the quadratic problem in x of penalty `gradient`
with λσ²max = ρ. The steps are over-relaxed (Eckstein and Bertsekas, Mathematical Programming 55, 1992). ρ balances the
two relative residuals (Wohlberg, ADMM penalty parameter selection by residual balancing, arXiv:1704.06209, 2017), at
ever longer intervals, since each change rebuilds the inverse.

The inverse is applied to the residual, never to Aᴴy itself. So float32 keeps its digits, and an inverse solved to a
third of its right-hand side is good enough for each step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import accumulation_dtype, image_axes, inner, norm, relative
from deconv_cli.solvers.inverse import Inverse
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.solvers.solution import IterationLog, Status

DEFAULT_TOLERANCE, DEFAULT_CHANGE = 7e-2, 1.2e-2
"""The certificate at which it ends by default, and the largest change by the last step, relative to the contrast of the
estimate. Chosen on five pictures of scikit-image, its phantom and flat shapes, under five blurs: after 100 steps none
but shapes are better, by 0.09 dB at most. Judged on two photographs of scikit-learn under five blurs, and on stacks."""
DEFAULT_TOLERANCE_OF_SIGNALS = 1e-2
"""Signals in steps have up to 30 % less error than at the tolerance of pictures."""
RELAXATION = 1.8
# λ of the quadratic problem whose estimate an iteration may start from.
START_LAMBDA = 1e-3
# The first ρ shrinks differences by this part of the contrast of the data. Twice and half of it take a step more.
FIRST_SHRINKAGE = 0.4
# The step at which ρ is first balanced, and then at twice as many each time; smaller mismatches than this stay.
FIRST_BALANCE = 3
MIN_MISMATCH = 1.5
MAX_MISMATCH = 10.0
# A step is compared with the contrast of the estimate, and with this part of its norm, which rounding may move.
CONTRAST_FLOOR = 1e-2
# Differences below this part of the samples may be rounding.
MIN_EDGE = 1e-6
# The parts of ‖Aᴴy‖ and of w·Σ|x| that are added to the scales of the certificate: rounding is a part of them.
FORCE_FLOOR = 1e-3
VALUE_FLOOR = 1e-3
MAX_STEPS_WITHOUT_GAIN = 300
LINES_AT_ONCE = 64
TINY = 1e-300
SMALLEST = 1e-30


class Admm:
    """The variables of the iteration: x, the field z ≈ ∇x, and the multiplier p, no longer than the weight anywhere.

    It starts from zero: an estimate that holds the noise takes more steps.

    Args:
        build: builds (AᴴA + ρ∇ᴴ∇)⁻¹ for a ρ.
        problem: the quadratic problem for any ρ.
        y: data, shape `(*batch, C_out, *output_size)`.

    """

    def __init__(self, build: Callable[[float], Inverse], problem: TikhonovProblem, y: Tensor) -> None:
        self._build, self._problem = build, problem
        self._operator, self._gradient = problem.operator, problem.penalty_operator
        self._n_dims = problem.n_dims
        self.y = y
        self._set_estimate(y.new_zeros(*y.shape[: -self._n_dims], *self._operator.input_shape), y)
        self._scale = norm(self._back, self._n_dims)
        self._z, self._p, self._change = (torch.zeros_like(self._edges) for _ in range(3))
        self.rho = 0.0
        self._inverse: Inverse | None = None

    def start_from_estimate(self) -> None:
        """Start from a quadratic estimate instead of zero."""
        back, sigma_max = self._back, self._problem.sigma_max
        x = self._build(START_LAMBDA * sigma_max**2).approximate_normal(back)
        self._set_estimate(x, self.y - self._operator.forward(x))
        self._z = self._edges.clone()

    @property
    def roughness(self) -> float:
        """The mean of |∇x|."""
        return synchronize.as_number(self._lengths(self._edges).mean())

    @property
    def squared_residual(self) -> float:
        """‖Ax − y‖², of the whole batch."""
        return synchronize.as_number(self._residual.square().sum(dtype=accumulation_dtype(self.y)))

    def begin(self, weight: float) -> None:
        """Prepare for a weight: p points along the edges, as long as it may be, and ρ shrinks everything but edges."""
        if self.rho > 0:
            self._p = self._within(self._p, weight)
            return
        length, size = self._lengths(self._z), _root_mean_square(self.y)
        # Differences as small as rounding are no edges.
        self._p = weight * self._z / length.clamp_min(max(MIN_EDGE * size, SMALLEST))
        contrast = _root_mean_square(self.y - self.y.mean(dim=image_axes(self._n_dims - 1), keepdim=True))
        shrinkage, sigma_max = FIRST_SHRINKAGE * max(contrast, MIN_EDGE * size), self._problem.sigma_max
        self._set_rho(weight * sigma_max / shrinkage if shrinkage > 0 else sigma_max**2)

    def step(self, weight: float) -> float:
        """Take one step; returns the change of the estimate relative to its contrast."""
        before, n_dims = self.x, self._n_dims
        self._improve()
        axes = image_axes(n_dims - 1)
        contrast = norm(self.x - self.x.mean(dim=axes, keepdim=True), n_dims)
        moved = relative(norm(self.x - before, n_dims), contrast + CONTRAST_FLOOR * norm(self.x, n_dims))
        del before
        # Some lines at a time, which stay in the cache.
        fields = (self._z, self._edges, self._p, self._change)
        for z, edges, p, change in zip(*(field.split(LINES_AT_ONCE, dim=-2) for field in fields), strict=True):
            whole = torch.lerp(z, edges, RELAXATION).mul_(self.rho).add_(p)
            p.copy_(self._within(whole, weight))
            shrunk = whole.sub_(p).div_(self.rho)
            torch.sub(shrunk, z, out=change)
            z.copy_(shrunk)
        return synchronize.as_number(moved.max())

    def take(self, weight: float, n_steps: int, log: IterationLog) -> Status:
        """Take a number of steps, whatever their certificate."""
        self.begin(weight)
        for _ in range(n_steps):
            self.step(weight)
            log.record(synchronize.as_number(self.certificate(weight).max()))
        return Status.ALL_ITERATIONS

    def run(self, weight: float, tolerance: float, log: IterationLog, largest_change: float) -> Status:
        """Take steps until certificate and last change are small, nothing is gained, or the steps are spent."""
        self.begin(weight)
        lowest, n_since = math.inf, 0
        n_steps, next_balance = 0, FIRST_BALANCE
        while not log.is_spent:
            change = self.step(weight)
            n_steps += 1
            if change > largest_change and n_steps < next_balance:
                log.skip()  # a certificate takes a fifth of a step, and cannot end it
                continue
            certificate = synchronize.as_number(self.certificate(weight).max())
            log.record(certificate)
            if certificate <= tolerance and change <= largest_change:
                return Status.CONVERGED
            lowest, n_since = (certificate, 0) if certificate < lowest else (lowest, n_since + 1)
            if not math.isfinite(certificate) or n_since > MAX_STEPS_WITHOUT_GAIN:
                return Status.STAGNATED
            if n_steps == next_balance:
                self.balance()
                next_balance *= 2
        return Status.MAX_ITERATIONS

    def balance(self) -> None:
        """Change ρ if one of the two relative residuals is much larger than the other."""
        edges = self._edges
        split = _size(edges - self._z) / max(_size(edges), _size(self._z), TINY)
        change = self.rho * _size(self._gradient.adjoint(self._change))
        change /= max(_size(self._gradient.adjoint(self._p)), TINY)
        factor = math.sqrt(split / change) if split > 0 and change > 0 else 1.0
        if not 1 / MIN_MISMATCH < factor < MIN_MISMATCH:
            self._set_rho(self.rho * min(max(factor, 1 / MAX_MISMATCH), MAX_MISMATCH))

    def certificate(self, weight: float) -> Tensor:
        """Compute the larger of gap and stationarity (as in `TotalVariationEstimator`), shape `(*batch,)`."""
        wide = accumulation_dtype(self.x)
        edges, n_dims = self._edges, self._n_dims
        variation = weight * self._lengths(edges).sum(dim=image_axes(n_dims), dtype=wide)
        gap = variation - inner(self._p, edges, n_dims + 1)
        objective = 0.5 * norm(self._residual, n_dims).square() + variation
        objective = objective + VALUE_FLOOR * weight * self.x.abs().sum(dim=image_axes(n_dims - 1), dtype=wide)
        force = self._gradient.adjoint(self._p)
        left = norm(force - self._back, n_dims)
        return torch.maximum(relative(gap, objective), relative(left, norm(force, n_dims) + FORCE_FLOOR * self._scale))

    def _lengths(self, field: Tensor) -> Tensor:
        """Compute the lengths of the vectors of a field `(*batch, n, C, *size)`, shape `(*batch, 1, C, *size)`."""
        axis = -self._n_dims - 1
        first, *others = field.unbind(axis)
        squared = first.square()
        for other in others:
            squared.addcmul_(other, other)
        return squared.sqrt_().unsqueeze(axis)

    def _within(self, vectors: Tensor, weight: float) -> Tensor:
        return vectors * (weight / self._lengths(vectors)).clamp_max_(1)

    def _improve(self) -> None:
        """Minimize over x, with the other variables fixed."""
        assert self._inverse is not None
        pull = (self._z - self._edges).mul_(self.rho).sub_(self._p)
        left = self._back + self._gradient.adjoint(pull)
        del pull  # fields are the largest of all that is stored
        x = self.x + self._inverse.approximate_normal(left)
        self._set_estimate(x, self.y - self._operator.forward(x))

    def _set_estimate(self, x: Tensor, residual: Tensor) -> None:
        """Take an estimate x and y − Ax, and compute Aᴴ(y − Ax) and ∇x for the next step and the certificate."""
        self.x, self._residual = x, residual
        self._back = self._operator.adjoint(residual)
        self._edges = self._gradient.forward(x)

    def _set_rho(self, rho: float) -> None:
        self._inverse = None  # the old one's memory first
        self.rho, self._inverse = rho, self._build(rho)


def _root_mean_square(a: Tensor) -> float:
    return _size(a) / a.numel() ** 0.5


def _size(a: Tensor) -> float:
    return synchronize.as_number(norm(a, a.ndim))
