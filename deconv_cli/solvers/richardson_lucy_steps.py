"""The multiplicative iteration of Richardson and Lucy, with momentum as long as the likelihood rises.

A step multiplies the estimate x by the factor Aᴴ(y/Ax)/Aᴴ1, which never lowers the likelihood. Then it adds momentum: a
share, which grows with the steps, of the way from the last step's result (Wang and Miller, Scaled heavy-ball
acceleration of the Richardson–Lucy algorithm for 3D microscopy image restoration, IEEE Transactions on Image Processing
23, 2014). If momentum makes x less likely, the step leaves it out, and the shares begin again (O'Donoghue and Candès,
Adaptive restart for accelerated gradient schemes, Foundations of Computational Mathematics 15, 2015). So a step takes
one product with A and one with Aᴴ, and another with A if momentum fails. Shares computed from the last two gains
(Biggs and Andrews, Applied Optics 36, 1997) need less than half of the steps but amplify noise: on stars and stacks of
few counts they lost 0.5 to 2 dB.

Momentum changes the light of the estimate, so each step scales it to the light of the data, which makes it likelier.
The scale and the decision about momentum are taken over the whole image. Local steps take neither: then a pixel depends
only on its kernel's reach, and parts of an image give the same result as the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import EllipsisType

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import MAX_ROW, accumulation_dtype, image_axes, planes_of, relative, slabs
from deconv_cli.operators.convolution import Convolution
from deconv_cli.solvers.solution import IterationLog, Status

# Above this mean the expected deviance is 1 + 1/(6m) to three digits; below it is tabulated.
MAX_TABULATED_MEAN = 30.0
N_TABULATED = 400
# No expected deviance is above this one, which is that of about 1.4 counts.
MAX_EXPECTED_DEVIANCE = 1.2
# Counts beyond this one have no weight for any tabulated mean.
MAX_COUNT = 100
# Steps of the lattice of held-out samples, along the channels, planes, rows and columns.
LATTICE = (5, 7, 4, 1)


def divergence(y: Tensor, mean: Tensor) -> Tensor:
    """Compute y·log(y/m) − y + m for each sample: half the deviance of counts `y` under means `mean` > 0.

    Up to a constant, its sum is the negative logarithm of the likelihood of `y` (Csiszár, Why least squares and
    maximum entropy?, Annals of Statistics 19, 1991). No sample's part is negative.
    """
    wide = accumulation_dtype(y)
    y, mean = y.to(wide), mean.to(wide)
    return torch.xlogy(y, y / mean) - y + mean


def expected_deviance(mean: Tensor) -> Tensor:
    """Compute the expectation of 2·(k·log(k/m) − k + m) for counts k of mean m ≥ 0: near 1 for many, near 0 for few.

    The discrepancy principle of Bertero, Boccacci, Talenti, Zanella and Zanni (A discrepancy principle for Poisson
    data, Inverse Problems 26, 2010) takes 1. For fewer than about five counts the true value, a sum over all counts,
    differs.
    """
    roots = torch.linspace(0, MAX_TABULATED_MEAN**0.5, N_TABULATED, dtype=mean.dtype, device=mean.device)
    m = roots.square()[1:, None]
    k = torch.arange(MAX_COUNT + 1, dtype=mean.dtype, device=mean.device)
    chances = torch.exp(torch.xlogy(k, m) - m - torch.lgamma(k + 1))
    table = torch.cat([m.new_zeros(1), (chances * 2 * (torch.xlogy(k, k / m) - k + m)).sum(dim=-1)])
    # The roots are spaced evenly, since the deviance rises steeply from zero.
    place = mean.clamp(0, MAX_TABULATED_MEAN).sqrt() / roots[1]
    below = place.floor().clamp_max(N_TABULATED - 2)
    index = below.long()
    tabulated = torch.lerp(table[index], table[index + 1], place - below)
    return torch.where(mean < MAX_TABULATED_MEAN, tabulated, 1 + 1 / (6 * mean.clamp_min(1.0)))


def held_out(y: Tensor, n_dims: int) -> Tensor:
    """Pick about one sample in nineteen, on a slanted lattice, so that every row, column and channel has its share.

    Images have `n_dims` axes, at most four with their channels. The result is boolean, shape `(C, *size)`.
    """
    number = torch.zeros((), dtype=torch.int64, device=y.device)
    steps = (LATTICE[0], *LATTICE[-(n_dims - 1) :])
    for step, n in zip(steps, y.shape[y.ndim - n_dims :], strict=True):
        number = number[..., None] + step * torch.arange(n, device=y.device)
    return number % 19 == 0


# Pixels whose sensitivity is below this part of the largest are reached by rounding alone, and stay as they start.
MIN_SENSITIVITY = 1e-5
# Momentum alone darkens a pixel to no less than this part of itself, and hardly one that is as dark as this part of
# the mean: nearly black ones grow so slowly that a mistake would stay.
MIN_LEFT = 0.5
MIN_LIGHT = 1e-3
SMALLEST = 1e-30
# After n steps the share of the way that momentum adds is 1 − (1 + n/4)^−¾. With a root instead of the power the
# best estimates take a third more steps; of stars they have a hundredth less error, and of photographs as much.
FIRST_STEPS = 4
GROWTH = 0.75


class RichardsonLucySteps:
    """The steps, for a batch whose images have their own momentum and end at their own time.

    The mask `used`, shape `(C_out, *output_size)`, says which samples are used; steps that `are_local` decide nothing
    over the whole image.

    Attributes:
        x: the estimate, shape `(B, *inner, C_in, *size)`.
        y: counts, shape `(B, *inner, C_out, *output_size)`.
        blurred: Ax.
        divergence: of the samples that are used, shape `(B,)`.
        is_moving: whether an image changed in the last step, shape `(B,)`.
    """

    def __init__(
        self, operator: Convolution, y: Tensor, used: Tensor | None = None, *, are_local: bool = False
    ) -> None:
        self.operator, self.y, self._are_local = operator, y, are_local
        self._n_axes = len(operator.input_shape) - 1
        self._axes = image_axes(self._n_axes)
        # Unused samples count as black, and their prediction does not matter.
        self._used = (y.new_ones(()) if used is None else used.to(y.dtype)).expand_as(y[:1])
        self._counts = y if used is None else y * self._used
        sensitivity = operator.adjoint(self._used)
        is_reached = sensitivity > MIN_SENSITIVITY * sensitivity.amax(dim=self._axes, keepdim=True)
        # Flat, with as much light as the data have.
        light = self._counts.sum(dim=self._axes, keepdim=True)
        self._start = light / sensitivity.sum(dim=self._axes, keepdim=True)
        self._unreached = None if synchronize.holds_everywhere(is_reached) else ~is_reached
        self._sensitivity = torch.where(is_reached, sensitivity, SMALLEST)
        self._light = per_image(self._counts)
        brightest = self._counts.amax(dim=self._axes, keepdim=True)
        self._floor = (torch.finfo(y.dtype).eps * brightest).clamp_min(SMALLEST)
        self.x = self._start.expand(*y.shape[: self._axes[0]], *operator.input_shape).clone()
        # Where the last step came to before its momentum, and the steps since momentum failed.
        self._plain = self.x.clone()
        self.blurred, self.divergence = self._measure(self.x, self._light_of(self.x))
        self._n_steps = torch.zeros_like(self.divergence)
        self._ahead: Tensor | None = None
        self._light_ahead = self._imbalance = torch.zeros_like(self._light)
        self.is_moving = torch.ones_like(self.divergence, dtype=torch.bool)

    def step(self, going: Tensor) -> None:
        """Step once, for the images with `going`, shape `(B,)`."""
        ahead, self._ahead = self._next(), None
        blurred, reached = self._measure(ahead, self._light_ahead)
        fails = torch.zeros_like(going) if self._are_local else going & ~(reached <= self.divergence)
        if synchronize.holds_anywhere(fails):
            ahead = torch.where(self._spread(fails) > 0, self._plain, ahead)
            blurred, reached = self._measure(ahead, self._light_of(ahead))
        self._n_steps = torch.where(fails, 0, self._n_steps + 1)
        self.is_moving = going & (reached <= self.divergence) if not self._are_local else going
        if synchronize.holds_everywhere(self.is_moving):
            self.x, self.blurred, self.divergence = ahead, blurred, reached
            return
        takes = self._spread(self.is_moving) > 0
        self.x = torch.where(takes, ahead, self.x)
        self.blurred = torch.where(takes, blurred, self.blurred)
        self.divergence = torch.where(self.is_moving, reached, self.divergence)

    def certificate(self) -> Tensor:
        """Compute Σ w·|Aᴴ1 − Aᴴ(y/Ax)| / Σy, shape `(B,)`; w as in `RichardsonLucyEstimator`."""
        self._next()
        return relative(self._imbalance, self._light)

    def _next(self) -> Tensor:
        """Multiply x by Aᴴ(y/Ax) / Aᴴ1, 1 where nothing reaches, and add momentum.

        The numbers for the step and the certificate are computed while a part of Aᴴ(y/Ax) is in the cache.
        """
        if self._ahead is not None:
            return self._ahead
        # From where the step before came to, by the whole way and a share that grows.
        share = 2 - self._spread((1 + self._n_steps / FIRST_STEPS) ** -GROWTH)
        self._light_ahead, self._imbalance = torch.zeros_like(self._light), torch.zeros_like(self._light)
        self._ahead = torch.empty_like(self.x)
        parts = self.operator.adjoint_parts(self._counts / self.blurred)
        arrays = [self._ahead, self.x, self._plain, self._sensitivity]
        arrays += [] if self._unreached is None else [self._unreached]
        for back, ahead, x, plain, sensitivity, *unreached in self._pieces(parts, *arrays):
            # The adjoint may leave rounding below zero.
            back.clamp_min_(0)
            if unreached:
                back.masked_fill_(unreached[0], SMALLEST)
            force = back - sensitivity
            # A pixel so dark that it hardly moves, but that should grow, counts as if it were as bright as the start.
            growth = torch.maximum(x, self._start).mul_(force)
            self._imbalance += per_image(torch.maximum(growth, force.mul_(x).abs_(), out=growth))
            likelier = back.div_(sensitivity).mul_(x)
            torch.lerp(plain, likelier, share, out=ahead)
            plain.copy_(likelier)
            lowest = torch.add(MIN_LIGHT * self._start, likelier, alpha=MIN_LEFT)
            torch.maximum(ahead, torch.minimum(likelier, lowest, out=lowest), out=ahead)
            if not self._are_local:
                self._light_ahead += per_image(ahead * sensitivity)
        return self._ahead

    def _light_of(self, x: Tensor) -> Tensor:
        """Add up the light of Ax in the samples that are used, shape `(B,)`."""
        return per_image(x * self._sensitivity)

    def _measure(self, x: Tensor, light: Tensor) -> tuple[Tensor, Tensor]:
        """Scale x in place, whose light is given, to the light of the data, except in local steps.

        Returns:
            Ax, and its divergence, shape `(B,)`; 0 in local steps, which do not use it.
        """
        if not self._are_local:
            x.mul_(self._spread(torch.where(light > 0, self._light / light, 1)))
        blurred, total = torch.empty_like(self.y), torch.zeros_like(light)
        for mean, out, y, used in self._pieces(self.operator.forward_parts(x), blurred, self._counts, self._used):
            torch.maximum(mean, self._floor, out=out)
            if not self._are_local:
                ratio = torch.div(y, out, out=mean).clamp_min_(SMALLEST)
                total += per_image(ratio.log_().mul_(y).sub_(y).addcmul_(out, used))
        return blurred, total

    def _pieces(self, parts: Iterable[tuple[slice, Tensor]], *arrays: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Cut an operator's parts, and arrays of its size of space, into views that stay in the cache."""
        for place, part in parts:
            yield from slabs(self._n_axes, part, *(planes_of(array, place, self._n_axes) for array in arrays))

    def _spread(self, numbers: Tensor) -> Tensor:
        """Reshape one number for each image, shape `(B,)`, so that it multiplies that image; in the images' dtype."""
        return numbers.to(self.x.dtype).reshape(-1, *[1] * (self.x.ndim - 1))


def per_image(a: Tensor) -> Tensor:
    """Sum over all axes except the first, shape `(B,)`; line by line, as in `axes.inner`."""
    if a.ndim > 2 and a.shape[-1] <= MAX_ROW:
        a = a.sum(dim=-1)
    return a.sum(dim=tuple(range(1, a.ndim)), dtype=accumulation_dtype(a))


StoppingCriterion = Callable[[RichardsonLucySteps, int], Tensor]
"""Takes the steps and how many there were; returns which images the noise ends, shape `(B,)`."""


def reaches_discrepancy(steps: RichardsonLucySteps, gain: float) -> Tensor:
    """Return whose divergence is that of Poisson noise, for units of the samples per count."""
    deviance, n_samples = 2 * steps.divergence / gain, steps.blurred[0].numel()
    if not synchronize.holds_anywhere(deviance <= MAX_EXPECTED_DEVIANCE * n_samples):
        return torch.zeros_like(steps.is_moving)
    mean = steps.blurred.to(accumulation_dtype(steps.blurred)) / gain
    return deviance <= per_image(expected_deviance(mean))


def reaches_noise(steps: RichardsonLucySteps, sigma: float) -> Tensor:
    """Return which images have a residual as small as noise of this standard deviation."""
    squares = (steps.y - steps.blurred).to(accumulation_dtype(steps.y)).square()
    return per_image(squares) <= sigma**2 * per_image(torch.ones_like(squares))


# The iteration ends if held-out samples gained nothing for this part of the steps so far, and at least for this many.
PATIENCE = 0.2
MIN_PATIENCE = 10


class HeldOut:
    """Ends where the prediction of held-out samples has not improved for a while; `best` is the best number of steps.

    Args:
        used: the samples that are not held out, shape `(C, *size)`.
    """

    def __init__(self, used: Tensor) -> None:
        places = torch.unravel_index(synchronize.places(~used.flatten()), used.shape)
        self._held_out: tuple[EllipsisType | Tensor, ...] = (Ellipsis, *places)
        self._lowest: Tensor | None = None
        self.best = used.new_zeros((), dtype=torch.float32)

    def __call__(self, steps: RichardsonLucySteps, n_steps: int) -> Tensor:
        """Return which images should end: those whose best prediction so far was many steps ago."""
        found = per_image(divergence(steps.y[self._held_out], steps.blurred[self._held_out]))
        if self._lowest is None:
            self._lowest, self.best = found, torch.full_like(found, n_steps)
        self.best = torch.where(found < self._lowest, n_steps, self.best)
        self._lowest = torch.minimum(found, self._lowest)
        return n_steps >= self.best * (1 + PATIENCE) + MIN_PATIENCE


def run_until(
    steps: RichardsonLucySteps, criterion: StoppingCriterion, log: IterationLog, share: float = 1.0
) -> Status:
    """Take steps until the noise or the certificate ends every image, or the steps are spent.

    At most this share of the remaining steps of the log may be spent.
    """
    limit = int(share * (log.rule.max_iterations - len(log.history)))
    n_steps = 0
    ended = criterion(steps, n_steps)
    certificate = steps.certificate()
    while True:
        going = ~(ended | (certificate <= log.rule.tolerance))
        if not synchronize.holds_anywhere(going):
            return Status.STOPPED_AT_NOISE if synchronize.holds_anywhere(ended) else Status.CONVERGED
        if n_steps >= limit:
            return Status.MAX_ITERATIONS
        steps.step(going)
        n_steps += 1
        certificate = steps.certificate()
        log.record(synchronize.as_number(certificate.max()))
        ended = ended | criterion(steps, n_steps)
        if not synchronize.holds_anywhere(steps.is_moving):
            return Status.STAGNATED
