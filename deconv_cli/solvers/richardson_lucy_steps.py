"""The multiplicative iteration of Richardson and Lucy, accelerated where the likelihood rises by it.

Biggs and Andrews, Acceleration of iterative image restoration algorithms, Applied Optics 36, 1997, equations 5 to 8.
Where an accelerated step would lower the likelihood the plain one is taken, which never does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import image_axes
from deconv_cli.operators.convolution import Convolution
from deconv_cli.solvers.norms import accumulation_dtype, relative
from deconv_cli.solvers.poisson import divergence

# Pixels whose sensitivity is below this part of the largest are reached by rounding alone, and stay as they start.
MIN_SENSITIVITY = 1e-5
# Acceleration alone darkens a pixel to no less than this part of itself, and hardly one that is as dark as this part of
# the mean: those that are all but black grow so slowly that a mistake would stay.
MIN_LEFT = 0.5
MIN_LIGHT = 1e-3
MAX_ACCELERATION = 0.999
SMALLEST = 1e-30


class RichardsonLucySteps:
    """The steps, for a batch whose images have their own acceleration, and can be left as they are.

    Args:
        operator: A.
        y: counts, shape `(B, *inner, C_out, *output_size)`.
        used: which samples are, shape `(C_out, *output_size)`; `None` for all.

    Attributes:
        x: the estimate, shape `(B, *inner, C_in, *size)`.
        blurred: Ax.
        divergence: of the samples that are used, shape `(B,)`.
        imbalance: the certificate where the last step set out from, shape `(B,)`.
        is_moving: whether an image changed in the last step, shape `(B,)`.
    """

    def __init__(self, operator: Convolution, y: Tensor, used: Tensor | None = None) -> None:
        self.operator, self.y, self.used = operator, y, used
        self._axes = image_axes(len(operator.input_shape) - 1)
        ones = torch.ones_like(y[:1]) if used is None else used.to(y.dtype).expand_as(y[:1])
        sensitivity = operator.adjoint(ones)
        self._is_reached = sensitivity > MIN_SENSITIVITY * sensitivity.amax(dim=self._axes, keepdim=True)
        self._sensitivity = torch.where(self._is_reached, sensitivity, 1)
        # Flat, with as much light as the data have.
        light = (y * ones).sum(dim=self._axes, keepdim=True)
        self._start = light / sensitivity.sum(dim=self._axes, keepdim=True)
        self.x = self._start.expand(*y.shape[: self._axes[0]], *operator.input_shape)
        self._light = per_image(y * ones)
        self.blurred, self.divergence = self._measure(self.x)
        self._previous, self._gain = self.x, torch.zeros_like(self.x)
        self._acceleration = torch.zeros_like(self.divergence)
        self.imbalance = self.certificate()
        self.is_moving = torch.ones_like(self.divergence, dtype=torch.bool)

    def step(self, going: Tensor) -> None:
        """Take one step for the images that `going`, shape `(B,)`, names."""
        ahead = self.x + self._spread(self._acceleration) * (self.x - self._previous)
        ahead = torch.maximum(ahead, torch.minimum(self.x, MIN_LEFT * self.x + MIN_LIGHT * self._start))
        factor = self._factor(self._blur(ahead))
        blurred, reached = self._measure(ahead * factor)
        fails = going & (self._acceleration > 0) & ~(reached <= self.divergence)
        if synchronize.holds_anywhere(fails):
            retry = self._spread(fails) > 0
            ahead = torch.where(retry, self.x, ahead)
            factor = torch.where(retry, self._factor(self.blurred), factor)
            blurred, reached = self._measure(ahead * factor)
        new = ahead * factor
        self.is_moving = going & (reached <= self.divergence)
        takes = self._spread(self.is_moving) > 0
        gain = torch.where(takes, new - ahead, 0)
        self.imbalance = torch.where(self.is_moving, self._imbalance(ahead, factor), self.imbalance)
        along, before = per_image(gain * self._gain), per_image(self._gain.square())
        ratio = torch.where(before > 0, along / before.clamp_min(SMALLEST), 0)
        self._acceleration = torch.where(fails | ~self.is_moving, 0, ratio.clamp(0, MAX_ACCELERATION))
        self._gain = gain
        self._previous = torch.where(takes, self.x, self._previous)
        self.x = torch.where(takes, new, self.x)
        self.blurred = torch.where(takes, blurred, self.blurred)
        self.divergence = torch.where(self.is_moving, reached, self.divergence)

    def certificate(self) -> Tensor:
        """Compute Σ w·|Aᴴ1 − Aᴴ(y/Ax)| / Σy, shape `(B,)`; w as in `RichardsonLucyEstimator`."""
        return self._imbalance(self.x, self._factor(self.blurred))

    def _imbalance(self, x: Tensor, factor: Tensor) -> Tensor:
        # A pixel so dark that it hardly moves, but that ought to grow, counts as if it were as bright as the start.
        weight = torch.where(factor > 1, torch.maximum(x, self._start), x)
        return relative(per_image((weight * self._sensitivity * (factor - 1)).abs()), self._light)

    def _factor(self, blurred: Tensor) -> Tensor:
        """Compute what a step multiplies by, Aᴴ(y/Ax) / Aᴴ1; 1 where nothing is reached."""
        ratio = self.y / blurred
        if self.used is not None:
            ratio = torch.where(self.used, ratio, 0)
        # The adjoint may leave rounding below zero.
        return torch.where(self._is_reached, self.operator.adjoint(ratio).clamp_min(0) / self._sensitivity, 1)

    def _blur(self, x: Tensor) -> Tensor:
        blurred = self.operator.forward(x)
        floor = torch.finfo(x.dtype).eps * blurred.amax(dim=self._axes, keepdim=True)
        return torch.maximum(blurred, floor.clamp_min(SMALLEST))

    def _measure(self, x: Tensor) -> tuple[Tensor, Tensor]:
        blurred = self._blur(x)
        each = divergence(self.y, blurred)
        return blurred, per_image(each if self.used is None else torch.where(self.used, each, 0))

    def _spread(self, numbers: Tensor) -> Tensor:
        """Shape numbers of images, shape `(B,)`, to multiply images by, in their dtype."""
        return numbers.to(self.x.dtype).reshape(-1, *[1] * (self.x.ndim - 1))


def per_image(a: Tensor) -> Tensor:
    """Sum over all but the first axis, shape `(B,)`."""
    return a.flatten(1).sum(dim=1, dtype=accumulation_dtype(a))
