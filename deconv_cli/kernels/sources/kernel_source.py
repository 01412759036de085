"""What a kernel source is, and how one is called: `name:NUMBER@NUMBER`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from deconv_cli.errors import UsageError
from deconv_cli.operators.axes import crop
from deconv_cli.operators.correlation import ValidCorrelation
from deconv_cli.parts import KERNEL_SOURCES

MAX_REACH = 1024
"""Pixels from the center of a kernel to its edge."""


Numbers = tuple[float, ...]
"""The numbers of a kernel source, in the order of its parameters."""


@dataclass(frozen=True)
class BlurFamily:
    """How the numbers of a kernel source are found from a blurred picture.

    Attributes:
        starts: gives the numbers that the search starts from. It takes the largest half width in pixels, and the best
            numbers of the families that come before, by their names.
        steps: how far apart the starts are in each number: a share of it (in logarithms) for a length, degrees for an
            angle, 0 for a number that is not varied.
        log_penalty: how much less likely it is than a Gaussian before the picture is seen, in logarithms.
        period: how far a kernel of these numbers is turned until its power looks the same, in degrees.
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
        make: takes these numbers, and gives taps, float64, of shape `(kH, kW)`, or `(kD, kH, kW)` for stacks.
        family: how its numbers are found from a blurred picture; `None` if they are not.
    """

    parameters: tuple[str, ...]
    make: Callable[..., torch.Tensor]
    family: BlurFamily | None = None


def make_kernel(text: str) -> torch.Tensor:
    """Make a kernel from the name of a source and its numbers, for instance `disk:5.2` or `motion:15@30`.

    Blurs that follow one another are a product: `disk:4*motion:9@30` is out of focus and moved.

    Returns:
        Taps of shape `(kH, kW)`, or `(kD, kH, kW)` of `gaussian3d`, float64. Those of the sources that come with this
        package are centered, of odd size, and of sum 1.

    Raises:
        UsageError: no such source, a number too many or too few, or one that the source cannot take.
    """
    taps, *others = (_make_factor(factor.strip()) for factor in text.split("*"))
    for other in others:
        taps = _convolved(taps, other)
    return taps


def _make_factor(text: str) -> torch.Tensor:
    name, _, rest = text.partition(":")
    source = KERNEL_SOURCES[KERNEL_SOURCES.check(name[:40])]
    written = rest.split("@") if rest else []
    try:
        numbers = [float(number) for number in written]
    except ValueError:
        numbers = []
    if len(numbers) != len(source.parameters) or not all(map(math.isfinite, numbers)):
        usage = f"{name}:{'@'.join(source.parameters)}"
        raise UsageError(f"a kernel of this kind is written {usage} with a number for each, but is '{text[:60]}'.")
    return source.make(*numbers)


def _convolved(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Convolve two kernels of shape `(*k)`; the result is larger by the second, less one tap along each axis.

    Raises:
        UsageError: they have another number of axes, or together reach too far.
    """
    if first.ndim != second.ndim:
        raise UsageError(
            f"the factors of a kernel should have the same number of axes, but have {first.ndim} and {second.ndim}."
        )
    size = tuple(a + b - 1 for a, b in zip(first.shape, second.shape, strict=True))
    if max(size) > 2 * MAX_REACH + 1:
        raise UsageError(
            f"a product of kernels may reach at most {MAX_REACH} pixels from its center; take smaller ones."
        )
    correlation = ValidCorrelation(
        second.flip(tuple(range(second.ndim)))[None, None], _wide(size, second), use_fft=False
    )
    wide = first.new_zeros(1, *_wide(size, second))
    start = tuple(n - 1 for n in second.shape)
    crop(wide[0], start, tuple(first.shape)).copy_(first)
    return correlation.forward(wide)[0]


def _wide(size: tuple[int, ...], kernel: torch.Tensor) -> tuple[int, ...]:
    return tuple(n + k - 1 for n, k in zip(size, kernel.shape, strict=True))


def pixels_reached(half_width: float, name: str) -> int:
    """Count the pixels beside the central one that a blur touches on each side.

    Args:
        half_width: how far it extends from the center of the central pixel, in pixels.
        name: the parameter that says so, for the message.

    Raises:
        UsageError: not positive, or more than `MAX_REACH`.
    """
    if not 0 < half_width <= MAX_REACH:
        raise UsageError(
            f"{name} must be positive, and so small that the kernel reaches at most {MAX_REACH} pixels from its center."
        )
    # What ends on the edge of a pixel, but for rounding, does not touch the next one.
    return max(0, math.ceil(half_width - 0.5 - 1e-9))


def geometric(low: float, high: float, ratio: float) -> list[float]:
    """List numbers from `low` to `high`, each about `ratio` times the one before."""
    n = max(1, round(math.log(high / low) / math.log(ratio)))
    return [low * (high / low) ** (i / n) for i in range(n + 1)]


def unit_sum(taps: torch.Tensor) -> torch.Tensor:
    """Divide taps by their sum."""
    return taps / taps.sum()
