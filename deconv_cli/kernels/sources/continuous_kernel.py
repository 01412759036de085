"""What a formula describes: a blur as a function of place, by its Fourier transform."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from deconv_cli.errors import UsageError

MAX_REACH = 1024
"""Samples from the center of a kernel to its edge."""


@dataclass(frozen=True)
class ContinuousKernel:
    """What a point becomes, of sum 1.

    Attributes:
        reach: how far it extends from the center along each axis, in samples; what tails lie beyond is cut.
        transform: takes the frequencies along each axis, in cycles a sample and shaped to be broadcast against each
            other, float64, and gives the Fourier transform ∫ k(x) exp(−2πi f·x) dx there, real or complex.
    """

    reach: tuple[float, ...]
    transform: Callable[..., Tensor]

    @classmethod
    def radial(cls, radius: float, profile: Callable[[Tensor], Tensor]) -> ContinuousKernel:
        """Describe a kernel of two axes that is the same in all directions.

        Args:
            radius: how far it reaches, in samples.
            profile: its transform by the distance from frequency zero.
        """
        return cls((radius, radius), lambda fy, fx: profile(torch.hypot(*torch.broadcast_tensors(fy, fx))))

    def along_last(self) -> ContinuousKernel:
        """Describe what a line across the last axis becomes along it, for signals of one axis."""
        n_others = len(self.reach) - 1

        def transform(frequency: Tensor) -> Tensor:
            still = frequency.new_zeros([1] * (n_others + 1))
            return self.transform(*[still] * n_others, frequency.reshape([1] * n_others + [-1])).flatten()

        return ContinuousKernel(self.reach[-1:], transform)

    def __mul__(self, other: ContinuousKernel) -> ContinuousKernel:
        """Describe one blur after another.

        Raises:
            UsageError: they have another number of axes, or together reach too far.
        """
        n_axes = len(self.reach)
        if n_axes != len(other.reach):
            raise UsageError(
                "the factors of a kernel should have the same number of axes, but have "
                f"{n_axes} and {len(other.reach)}."
            )
        reach = tuple(map(operator.add, self.reach, other.reach))
        if max(reach) > MAX_REACH:
            raise UsageError(
                f"a product of kernels may reach at most {MAX_REACH} pixels from its center; take smaller ones."
            )
        return ContinuousKernel(reach, lambda *f: self.transform(*f) * other.transform(*f))


def product(kernels: list[ContinuousKernel]) -> ContinuousKernel:
    """Describe several blurs, one after another."""
    return reduce(operator.mul, kernels)


def check_length(half_width: float, name: str) -> float:
    """Give half the width of a kernel back.

    Args:
        half_width: how far it extends from its center, in samples.
        name: the parameter that says so, for the message.

    Raises:
        UsageError: not positive, or more than `MAX_REACH`.
    """
    if not 0 < half_width <= MAX_REACH:
        raise UsageError(
            f"{name} must be positive, and so small that the kernel reaches at most {MAX_REACH} pixels from its center."
        )
    return half_width
