"""By how much a kernel raises detail, which a blur never does."""

from __future__ import annotations

import torch
from torch import Tensor

from deconv_cli.operators.axes import space_axes

LEAST_RAISED = 1.1
"""Gain from which on a kernel is taken for one that sharpens; of pairs in the right order it stayed below 1."""
_BARS = 3.0


def raised_detail(taps: Tensor, errors: Tensor, n_axes: int) -> float:
    """Give the largest gain of kernels relative to that of even brightness, less three error bars of it.

    Args:
        taps: shape `(*, *k)`; kernels that do not keep about the brightness are left out.
        errors: standard deviation of each tap, of the same shape.
        n_axes: axes of space, `k`.

    Returns:
        The gain at the frequency that is raised the most; at most 1 for a blur, and 0 where no kernel is looked at.
    """
    axes = space_axes(n_axes)
    sums = taps.sum(axes).abs()
    gains = torch.fft.fftn(taps, s=[2 * n for n in taps.shape[-n_axes:]], dim=axes).abs().amax(axes)
    kept = (sums - 1).abs() < 0.2
    raised = (gains - _BARS * errors.square().sum(axes).sqrt()) / sums
    return float(torch.where(kept, raised, 0.0).max())


def describe_raised(gain: float) -> tuple[str, ...]:
    """Say that a kernel sharpens, a sentence without its full stop; nothing where it does not."""
    if gain < LEAST_RAISED:
        return ()
    return (f"the kernel raises detail up to {gain:.2g} times; exchange the pictures if the first is the blurred one",)
