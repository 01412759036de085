"""How a kernel is written in words: `disk:5.2`, `motion:15@30`, `disk:4*motion:9@30`, `disk:3*shift:0.3@-0.2`."""

from __future__ import annotations

import math

import torch

from deconv_cli.errors import UsageError, check_type
from deconv_cli.kernels.sources.kernel_source import ContinuousKernel, KernelSource, product, sample_kernel
from deconv_cli.parts import KERNEL_SOURCES
from deconv_cli.vocabulary import Size, shortened


def make_kernel(
    text: str,
    *,
    dimensions: int | None = None,
    size: int | Size | None = None,
) -> torch.Tensor:
    """Make a kernel from the name of a source and its numbers, for instance `disk:5.2` or `motion:15@30`.

    Blurs that follow one another are a product: `disk:4*motion:9@30` is out of focus and moved. A factor
    `shift:0.3@-0.2` moves the picture down by 0.3 and to the left by 0.2 pixels. The kernel is sampled so that its
    transform is right, see `sample_kernel`; beside sharp edges it has small negative taps.

    Args:
        text: the words; lengths in samples.
        dimensions: 1 gives the kernel of signals of one axis, what lines across the last axis become.
        size: samples along each axis, odd, or one number for all; for kernels with tails, of which more then remain.

    Returns:
        Taps of shape `(kH, kW)`, or `(kD, kH, kW)` of `gaussian3d`, or `(kW,)`, float64, of odd size and of sum 1.

    Raises:
        UsageError: no such source, a number too many or too few, one that the source cannot take, or a size that is too
            small or too large.
    """
    kernel = read_formula(text, dimensions)
    psf = sample_kernel(kernel, (size,) * len(kernel.reach) if isinstance(size, int) else size)
    # A cross-correlation meets what a point becomes turned by half a turn.
    return psf.flip(tuple(range(psf.ndim)))


def read_formula(text: str, dimensions: int | None = None) -> ContinuousKernel:
    """Read what a formula describes, for the same arguments as `make_kernel`."""
    check_type(text, str, "the description of a kernel")
    factors = [factor.strip() for factor in text.split("*")]
    if len(factors) > 1 and not all(factors):
        raise UsageError(
            "a kernel must be described by blurs with * between them, such as 'disk:4*motion:9@30', but one factor is "
            f"missing in '{shortened(text)}'."
        )
    kernel = product([_read_factor(factor) for factor in factors])
    return kernel.along_last() if dimensions == 1 else kernel


def _read_factor(text: str) -> ContinuousKernel:
    name, _, rest = text.partition(":")
    source: KernelSource = KERNEL_SOURCES[KERNEL_SOURCES.check(name[:40])]
    if source.read is not None and rest:
        return source.make(source.read(rest))
    numbers = _floats(rest.split("@") if rest else [])
    if len(numbers) != len(source.parameters) or not all(map(math.isfinite, numbers)):
        raise UsageError(f"this kernel must be written {source.usage(name)}, but is '{shortened(text)}'.")
    return source.make(*numbers)


def _floats(texts: list[str]) -> tuple[float, ...]:
    """Read numbers; none where one is no number."""
    try:
        return tuple(float(text) for text in texts)
    except ValueError:
        return ()
