"""What a kernel source is: a formula with its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from deconv_cli.kernels.sources.continuous_kernel import ContinuousKernel

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
        make: takes these numbers, and describes what a point becomes, over rows and columns, or planes and those.
        family: how its numbers are found from a blurred picture; `None` if they are not.
        along: for each number the axis whose samples it counts, −1 for rows and columns, −3 for planes, and `None` for
            an angle or a ratio; empty where that is not said: its numbers then have no units.
        read: makes what `make` takes of what was written for the only parameter, which is then no number.
        example: what is typed for it, behind its name and a colon.
    """

    parameters: tuple[str, ...]
    make: Callable[..., ContinuousKernel]
    family: BlurFamily | None = None
    along: tuple[int | None, ...] = ()
    read: Callable[[str], Any] | None = None
    example: str = ""

    def usage(self, name: str) -> str:
        """Say how a kernel of this kind is written, under the name that the source has."""
        example = f", for example {name}:{self.example}" if self.example else ""
        return f"{':'.join(filter(None, [name, '@'.join(self.parameters)]))}{example}"


def geometric(low: float, high: float, ratio: float) -> list[float]:
    """List numbers from `low` to `high`, each about `ratio` times the one before."""
    n = max(1, round(math.log(high / low) / math.log(ratio)))
    return [low * (high / low) ** (i / n) for i in range(n + 1)]
