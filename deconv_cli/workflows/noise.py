"""Noise for simulated measurements, the same for the same seed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeVar

import torch
from torch import Tensor

from deconv_cli.errors import UsageError
from deconv_cli.kernels.kernel_field import KernelField
from deconv_cli.kernels.nonnegative_taps import (
    LEAST_NEGATIVE,
    MOST_NEGATIVE,
    negative_share,
    without_negative_taps,
)
from deconv_cli.vocabulary import format_percent

Taps = TypeVar("Taps", Tensor, KernelField, Tensor | KernelField)


class NoiseKind(StrEnum):
    """How the noise is distributed."""

    GAUSSIAN = "gaussian"
    POISSON = "poisson"


@dataclass(frozen=True)
class Noise:
    """A noise model.

    Attributes:
        kind: the distribution.
        level: for `gaussian` the standard deviation, in the units of the samples; for `poisson` the expected count at
            the brightest sample.
    """

    kind: NoiseKind
    level: float

    @classmethod
    def parse(cls, text: str) -> Noise:
        """Read `gaussian:SIGMA` or `poisson:PEAK`.

        Raises:
            UsageError: the text is neither, or its number is not positive.
        """
        kind, _, number = text.partition(":")
        try:
            noise = cls(NoiseKind(kind), float(number))
        except ValueError:
            raise UsageError(f"noise must be gaussian:SIGMA or poisson:PEAK, but is '{text}'.") from None
        if not 0 < noise.level < float("inf"):
            raise UsageError(f"the level of the noise must be a positive number, but is {noise.level}.")
        return noise

    def kernel_for(self, kernel: Taps, n_axes: int) -> tuple[Taps, tuple[str, ...]]:
        """Give the kernel to blur by before the noise is added: what is counted takes one without negative taps.

        Args:
            kernel: taps `(*, *k)`, or those of a field.
            n_axes: axes of space, `k`.

        Returns:
            The kernel, or the nearest one without negative taps where those are small, and a sentence that says so.
        """
        taps = kernel.taps if isinstance(kernel, KernelField) else kernel
        share = negative_share(taps, n_axes) if self.kind is NoiseKind.POISSON else 0.0
        if not LEAST_NEGATIVE < share <= MOST_NEGATIVE:
            return kernel, ()
        nearest = without_negative_taps(taps, n_axes)
        part = f"{format_percent(share)} beside the others"
        note = f"counts were blurred by the nearest kernel without negative taps, {part}"
        return (replace(kernel, taps=nearest) if isinstance(kernel, KernelField) else nearest), (note,)

    def add(self, image: Tensor, seed: int) -> Tensor:
        """Add the noise to an image of any shape.

        It is drawn on the CPU, so that a seed gives the same noise on every device.

        Raises:
            UsageError: Poisson noise for an image with negative samples, or with none above zero.
        """
        generator = torch.Generator().manual_seed(seed)
        if self.kind is NoiseKind.GAUSSIAN:
            noise = torch.randn(image.shape, generator=generator, dtype=image.dtype)
            return image + self.level * noise.to(image.device)
        low, high = float(image.min()), float(image.max())
        if low < -1e-6 * max(high, 0.0) or high <= 0:
            raise UsageError(
                f"Poisson noise needs samples from zero upwards, but they go from {low:g} to {high:g}; "
                "use gaussian noise or a kernel without negative taps."
            )
        counts = torch.poisson((image.cpu() * (self.level / high)).clamp_min(0), generator=generator)
        return (counts * (high / self.level)).to(image.device)
