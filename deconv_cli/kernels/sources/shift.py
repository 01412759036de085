"""`shift:DOWN@RIGHT`: a move by any part of a sample along each axis."""

from __future__ import annotations

import math
from functools import reduce
from operator import add

import torch

from deconv_cli.errors import UsageError
from deconv_cli.kernels.sources.continuous_kernel import ContinuousKernel
from deconv_cli.kernels.sources.kernel_source import KernelSource, Numbers
from deconv_cli.vocabulary import shortened

_MOST = 64.0


def shift_kernel(by: Numbers) -> ContinuousKernel:
    """Describe a point beside the center.

    Args:
        by: where it lies along each axis, in samples.
    """

    def transform(*frequencies: torch.Tensor) -> torch.Tensor:
        return torch.exp(-2j * math.pi * reduce(add, (f * moved for f, moved in zip(frequencies, by, strict=True))))

    return ContinuousKernel(tuple(map(abs, by)), transform)


def read_shift(text: str) -> Numbers:
    """Read a shift, one number for each axis.

    Raises:
        UsageError: none of two or three axes, or too far.
    """
    try:
        numbers = tuple(float(part) for part in text.split("@"))
    except ValueError:
        numbers = ()
    if len(numbers) not in (2, 3) or not all(abs(number) <= _MOST for number in numbers):
        raise UsageError(
            f"a shift is written shift:DOWN@RIGHT, in pixels and at most {_MOST:g}, for stacks with the planes before, "
            f"but is '{shortened(text)}'."
        )
    return numbers


SHIFT = KernelSource(("DOWN@RIGHT",), shift_kernel, read=read_shift, example="0.3@-0.2")
