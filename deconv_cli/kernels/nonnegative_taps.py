"""The nearest kernel without negative taps, for whatever counts light.

Formulas with sharp edges (`kernels/sources/band_limited.py`) and kernels that were fitted under noise have small
negative taps. Where none may be, among kernels of the same sum the one is taken that changes the blur of pictures the
least, in the mean square over pictures of power 1/f² (Field, Relations between the statistics of natural images and the
response properties of cortical cells, Journal of the Optical Society of America A 4, 1987).
"""

from __future__ import annotations

import torch
from torch import Tensor

from deconv_cli.kernels.blind.unit_simplex import minimize_over_kernels, nearest_kernel
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import space_axes

MOST_NEGATIVE = 0.5
"""Weight of the negative taps beside that of the others, above which a kernel is a filter that no light makes."""
LEAST_NEGATIVE = 1e-6
"""The same, below which they are rounding."""
_FLAT = 0.03
"""Cycles a sample below which the power of pictures no longer grows."""


def negative_share(taps: Tensor, n_axes: int) -> float:
    """Give the weight of the negative taps of kernels `(*, *k)` beside that of the others, where it is largest."""
    axes, taps = space_axes(n_axes), taps.detach()
    shares = -taps.clamp_max(0).sum(axes) / taps.clamp_min(0).sum(axes).clamp_min(torch.finfo(taps.dtype).tiny)
    return synchronize.as_number(shares.max())


def without_negative_taps(taps: Tensor, n_axes: int) -> Tensor:
    """Give the nearest kernels without negative taps.

    Args:
        taps: shape `(*, *k)`, with a `negative_share` of at most `MOST_NEGATIVE`.
        n_axes: axes of space, `k`.

    Returns:
        The same shape, dtype and sums.
    """
    planes = taps.reshape(-1, *taps.shape[-n_axes:])
    return torch.stack([_nearest(plane) if bool((plane < 0).any()) else plane for plane in planes]).reshape(taps.shape)


def _nearest(plane: Tensor) -> Tensor:
    """Do so for one kernel of a positive sum, shape `(*k)`."""
    total = plane.double().sum()
    wanted = plane.double() / total
    wide = [2 * n for n in plane.shape]
    squares = [torch.fft.fftfreq(n, dtype=wanted.dtype, device=plane.device).square() for n in wide]
    power = 1 / (_FLAT**2 + torch.stack(torch.meshgrid(*squares, indexing="ij")).sum(0))
    power = power / power.max()

    def slope(kernel: Tensor) -> Tensor:
        change = torch.fft.ifftn(power * torch.fft.fftn(kernel.reshape(plane.shape) - wanted, s=wide)).real
        return change[tuple(slice(n) for n in plane.shape)].flatten()

    found = minimize_over_kernels(slope, 1.0, nearest_kernel(wanted.flatten()))
    return (total * found).reshape(plane.shape).to(plane.dtype)
