"""Kernels by formula: the formula with its numbers, and the blur that it describes by its Fourier transform."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from deconv_cli.errors import UsageError

MAX_REACH = 1024
"""Samples from the center of a kernel to its edge."""


@dataclass(frozen=True)
class ContinuousKernel:
    """The image of a point, of sum 1.

    Attributes:
        reach: half its width along each axis, in samples; tails beyond are cut.
        transform: takes the frequencies along each axis, in cycles a sample and shaped to be broadcast against each
            other, float64, and gives the Fourier transform ∫ k(x) exp(−2πi f·x) dx there, real or complex.
    """

    reach: tuple[float, ...]
    transform: Callable[..., Tensor]

    @classmethod
    def radial(cls, radius: float, profile: Callable[[Tensor], Tensor]) -> ContinuousKernel:
        """Describe a kernel of two axes that is the same in all directions.

        Args:
            radius: half its width, in samples.
            profile: its transform by the distance from frequency zero.
        """
        return cls((radius, radius), lambda fy, fx: profile(torch.hypot(*torch.broadcast_tensors(fy, fx))))

    def along_last(self) -> ContinuousKernel:
        """Describe the kernel of a signal: the image of a line perpendicular to the last axis, along that axis."""
        n_others = len(self.reach) - 1

        def transform(frequency: Tensor) -> Tensor:
            still = frequency.new_zeros([1] * (n_others + 1))
            return self.transform(*[still] * n_others, frequency.reshape([1] * n_others + [-1])).flatten()

        return ContinuousKernel(self.reach[-1:], transform)

    def __mul__(self, other: ContinuousKernel) -> ContinuousKernel:
        """Describe two blurs in sequence.

        Raises:
            UsageError: their numbers of axes differ, or together they are too wide.
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
    """Describe several blurs in sequence."""
    return reduce(operator.mul, kernels)


def check_length(half_width: float, name: str) -> float:
    """Return half the width of a kernel.

    Args:
        half_width: in samples.
        name: of the parameter that gives it, for the message.

    Raises:
        UsageError: not positive, or more than `MAX_REACH`.
    """
    if not 0 < half_width <= MAX_REACH:
        raise UsageError(
            f"{name} must be positive, and so small that the kernel reaches at most {MAX_REACH} pixels from its center."
        )
    return half_width


Numbers = tuple[float, ...]
"""The numbers of a kernel source, in the order of its parameters."""


@dataclass(frozen=True)
class BlurFamily:
    """How the numbers of a kernel source are found in a blurred picture.

    Attributes:
        starts: takes the largest half width in pixels and the best numbers of the families before this one, by name;
            returns the numbers at which the search starts.
        steps: the distance between two starts in each number: a factor (its logarithm) for a length, degrees for an
            angle, 0 for a number that is not varied.
        log_penalty: logarithm of how much less likely this family is than a Gaussian, before the picture is seen.
        period: the angle in degrees after which the power spectrum of a kernel of these numbers repeats.
    """

    starts: Callable[[float, Mapping[str, Numbers]], list[Numbers]]
    steps: Callable[[Numbers], Numbers]
    log_penalty: float
    period: Callable[[Numbers], float] = lambda _: 180.0


@dataclass(frozen=True)
class KernelSource:
    """A formula for a kernel.

    Attributes:
        parameters: what its numbers are called, in their order, for instance `("LENGTH", "ANGLE")`.
        make: takes these numbers, and describes the blur over rows and columns, or planes, rows and columns.
        family: how its numbers are found from a blurred picture; `None` if they are not.
        along: for each number the axis whose samples it counts: −1 for rows and columns, −3 for planes, `None` for an
            angle or a ratio. Empty: its numbers take no units.
        read: turns the text of the only parameter into the argument of `make`, where it is not a number.
        example: what a person types behind its name and a colon.
    """

    parameters: tuple[str, ...]
    make: Callable[..., ContinuousKernel]
    family: BlurFamily | None = None
    along: tuple[int | None, ...] = ()
    read: Callable[[str], Any] | None = None
    example: str = ""

    def usage(self, name: str) -> str:
        """Return how a person writes a kernel of this source, which is registered under `name`."""
        example = f", for example {name}:{self.example}" if self.example else ""
        return f"{':'.join(filter(None, [name, '@'.join(self.parameters)]))}{example}"


def geometric(low: float, high: float, ratio: float) -> list[float]:
    """List numbers from `low` to `high`, each about `ratio` times the one before."""
    n = max(1, round(math.log(high / low) / math.log(ratio)))
    return [low * (high / low) ** (i / n) for i in range(n + 1)]
