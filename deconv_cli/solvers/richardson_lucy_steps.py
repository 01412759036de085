"""The multiplicative iteration of Richardson and Lucy, with momentum as long as the likelihood rises.

A step multiplies the estimate x by the factor Aᴴ(y/Ax)/Aᴴ1, which never lowers the likelihood, and then goes on along
the way from where the step before came to, by a share of it that grows with the steps (Wang and Miller, Scaled
heavy-ball acceleration of the Richardson–Lucy algorithm for 3D microscopy image restoration, IEEE Transactions on Image
Processing 23, 2014). Where that would leave x less likely than it was, it is not gone, and the shares
begin again (O'Donoghue and Candès, Adaptive restart for accelerated gradient schemes, Foundations of Computational
Mathematics 15, 2015). So a step takes one product with A and one with Aᴴ, and another with A where momentum fails.

A share taken from the last two gains (Biggs and Andrews, Acceleration of iterative image restoration algorithms,
Applied Optics 36, 1997) needs less than half of the steps, but carries noise along: of stars, and of stacks of few
counts, the best estimates on its way were half a decibel to two worse than those without momentum. Of the shares that
grow they are as good.

Multiplied by the one number that gives the estimate the light of the data, it is the more likely: the factor alone
keeps the light, what is added to it does not.

Both that number and the decision whether momentum fails are taken over the whole image. Where parts of an image are to
come to what the whole comes to, steps are local: neither is taken, and a pixel depends on what its kernel reaches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import image_axes, slabs
from deconv_cli.operators.convolution import Convolution
from deconv_cli.solvers.norms import accumulation_dtype, relative

# Pixels whose sensitivity is below this part of the largest are reached by rounding alone, and stay as they start.
MIN_SENSITIVITY = 1e-5
# Momentum alone darkens a pixel to no less than this part of itself, and hardly one that is as dark as this part of
# the mean: those that are all but black grow so slowly that a mistake would stay.
MIN_LEFT = 0.5
MIN_LIGHT = 1e-3
SMALLEST = 1e-30


class RichardsonLucySteps:
    """The steps, for a batch whose images have their own momentum, and can be left as they are.

    Args:
        operator: A.
        y: counts, shape `(B, *inner, C_out, *output_size)`.
        used: which samples are, shape `(C_out, *output_size)`; `None` for all.
        are_local: nothing is decided over the whole image.

    Attributes:
        x: the estimate, shape `(B, *inner, C_in, *size)`.
        y: the counts.
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
        ones = torch.ones_like(y[:1]) if used is None else used.to(y.dtype).expand_as(y[:1])
        # Samples that are not used are taken for black, and predicted without consequence.
        self._used, self._counts = ones, y if used is None else y * ones
        sensitivity = operator.adjoint(ones)
        is_reached = sensitivity > MIN_SENSITIVITY * sensitivity.amax(dim=self._axes, keepdim=True)
        self._sensitivity = torch.where(is_reached, sensitivity, 1)
        self._unreached = None if synchronize.holds_everywhere(is_reached) else ~is_reached
        # Flat, with as much light as the data have.
        light = self._counts.sum(dim=self._axes, keepdim=True)
        self._start = light / sensitivity.sum(dim=self._axes, keepdim=True)
        self._light = per_image(self._counts)
        self.x = self._start.expand(*y.shape[: self._axes[0]], *operator.input_shape).clone()
        self.blurred, self.divergence = self._measure(self.x)
        self._factor: Tensor | None = None
        self._imbalance = torch.zeros_like(self._light)
        # Where the last step came to before its momentum, and the steps since momentum failed.
        self._plain, self._n_steps = self.x.clone(), torch.zeros_like(self.divergence)
        self.is_moving = torch.ones_like(self.divergence, dtype=torch.bool)

    def step(self, going: Tensor) -> None:
        """Take one step for the images that `going`, shape `(B,)`, names."""
        # The factor's place is the next estimate's.
        ahead, self._factor = self._known_factor(), None
        self._multiply(ahead)
        blurred, reached = self._measure(ahead)
        fails = torch.zeros_like(going) if self._are_local else going & ~(reached <= self.divergence)
        if synchronize.holds_anywhere(fails):
            ahead = torch.where(self._spread(fails) > 0, self._plain, ahead)
            blurred, reached = self._measure(ahead)
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
        self._known_factor()
        return relative(self._imbalance, self._light)

    def _known_factor(self) -> Tensor:
        """Compute what a step multiplies by, Aᴴ(y/Ax) / Aᴴ1, unless it is known; 1 where nothing reaches."""
        if self._factor is not None:
            return self._factor
        factor = self.operator.adjoint(self._counts / self.blurred)
        if self._unreached is not None:
            factor.masked_fill_(self._unreached, 1)
        self._imbalance = torch.zeros_like(self._light)
        for part, x, sensitivity in slabs(self._n_axes, factor, self.x, self._sensitivity):
            # The adjoint may leave rounding below zero.
            force = part.clamp_min_(0) - sensitivity
            part.div_(sensitivity)
            # A pixel so dark that it hardly moves, but that ought to grow, counts as if it were as bright as the start.
            growth = torch.maximum(x, self._start).mul_(force)
            self._imbalance += per_image(torch.maximum(growth, force.mul_(x).abs_(), out=growth))
        self._factor = factor
        return factor

    def _multiply(self, factor: Tensor) -> None:
        """Multiply x by its factor and go on along the way since the step before, all in the place of the factor."""
        share = self._spread((1 - 2 / (self._n_steps + 4).sqrt()).clamp_min(0))
        for ahead, x, plain in slabs(self._n_axes, factor, self.x, self._plain):
            ahead.mul_(x)
            lowest = torch.minimum(ahead, MIN_LEFT * ahead + MIN_LIGHT * self._start)
            way = (ahead - plain).mul_(share)
            plain.copy_(ahead)
            torch.maximum(ahead.add_(way), lowest, out=ahead)

    def _measure(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give x the light of the data, in place, but in local steps; return Ax and its divergence, shape `(B,)`."""
        blurred = self.operator.forward(x)
        light = self._light if self._are_local else per_image(blurred * self._used)
        scale = self._spread(torch.where(light > 0, self._light / light, 1))
        x.mul_(scale)
        floor = (scale * torch.finfo(x.dtype).eps * blurred.amax(dim=self._axes, keepdim=True)).clamp_min(SMALLEST)
        total = torch.zeros_like(light)
        for y, mean, used in slabs(self._n_axes, self._counts, blurred, self._used):
            torch.maximum(mean.mul_(scale), floor, out=mean)
            ratio = (y / mean).clamp_min_(SMALLEST)
            total += per_image(ratio.log_().mul_(y).sub_(y).addcmul_(mean, used))
        return blurred, total

    def _spread(self, numbers: Tensor) -> Tensor:
        """Shape numbers of images, shape `(B,)`, to multiply images by, in their dtype."""
        return numbers.to(self.x.dtype).reshape(-1, *[1] * (self.x.ndim - 1))


def per_image(a: Tensor) -> Tensor:
    """Sum over all but the first axis, shape `(B,)`."""
    return a.sum(dim=tuple(range(1, a.ndim)), dtype=accumulation_dtype(a))
