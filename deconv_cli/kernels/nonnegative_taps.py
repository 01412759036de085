"""The nearest kernel without negative taps, for methods that count light.

Formulas with sharp edges (`kernels/sources/formula.py`) and kernels that were fitted under noise have small
negative taps. Where none may be, among kernels of the same sum the one is taken that changes the blur of pictures the
least, in the mean square over pictures of power 1/f² (Field, Relations between the statistics of natural images and the
response properties of cortical cells, Journal of the Optical Society of America A 4, 1987).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import space_axes, spread

_N_STEPS = 80
_TOLERANCE = 1e-6


def nearest_kernel(values: Tensor) -> Tensor:
    """Project onto the kernels: shape `(n,)`, none negative, sum 1.

    Held and Wolfe and Crowder, Validation of subgradient optimization, Mathematical Programming 6, 1974.
    """
    descending = values.sort(descending=True).values
    excess = (descending.cumsum(0) - 1) / torch.arange(1, len(values) + 1).to(values)
    n_positive = int((descending > excess).sum())
    return (values - excess[n_positive - 1]).clamp_min(0)


def minimize_over_kernels(slope: Callable[[Tensor], Tensor], step: float, start: Tensor) -> Tensor:
    """Minimize a convex function over kernels `(n,)`, by accelerated projected gradients that restart.

    `slope` is its gradient, `step` one over the most by which that can change in a distance of one. Beck and Teboulle,
    A fast iterative shrinkage-thresholding algorithm, SIAM Journal on Imaging Sciences 2, 2009; O'Donoghue and Candès,
    Adaptive restart for accelerated gradient schemes, Foundations of Computational Mathematics 15, 2015.
    """
    kernel, ahead, momentum = start, start, 1.0
    for _ in range(_N_STEPS):
        found = nearest_kernel(ahead - step * slope(ahead))
        if float((ahead - found) @ (found - kernel)) > 0:
            momentum = 1.0
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = found + (momentum - 1) / following * (found - kernel)
        change = float((found - kernel).abs().max())
        kernel, momentum = found, following
        if change < _TOLERANCE:
            break
    return kernel


MOST_NEGATIVE = 0.5
"""Above this ratio of negative to positive weight, a kernel is a filter and not a blur by light."""
LEAST_NEGATIVE = 1e-6
"""The same, below which they are rounding."""
_FLAT = 0.03
"""Cycles a sample below which the power of pictures no longer grows."""


def negative_share(taps: Tensor, n_axes: int) -> float:
    """Return the largest ratio of negative to positive weight of kernels `(*, *k)`."""
    axes, taps = space_axes(n_axes), taps.detach()
    shares = -taps.clamp_max(0).sum(axes) / taps.clamp_min(0).sum(axes).clamp_min(torch.finfo(taps.dtype).tiny)
    return synchronize.as_number(shares.max())


def without_negative_taps(taps: Tensor, n_axes: int) -> Tensor:
    """Give the nearest kernels without negative taps, of the same shape `(*, *k)`, dtype and sums.

    Their `negative_share` is at most `MOST_NEGATIVE`; `k` has `n_axes` axes.
    """
    planes = taps.reshape(-1, *taps.shape[-n_axes:])
    return torch.stack([_nearest(plane) if bool((plane < 0).any()) else plane for plane in planes]).reshape(taps.shape)


def _nearest(plane: Tensor) -> Tensor:
    """Do so for one kernel of a positive sum, shape `(*k)`."""
    total = plane.double().sum()
    wanted = plane.double() / total
    wide = [2 * n for n in plane.shape]
    squares = [torch.fft.fftfreq(n, dtype=wanted.dtype, device=plane.device).square() for n in wide]
    power = 1 / sum(spread(squares), start=wanted.new_tensor(_FLAT**2))
    power = power / power.max()

    def slope(kernel: Tensor) -> Tensor:
        change = torch.fft.ifftn(power * torch.fft.fftn(kernel.reshape(plane.shape) - wanted, s=wide)).real
        return change[tuple(slice(n) for n in plane.shape)].flatten()

    found = minimize_over_kernels(slope, 1.0, nearest_kernel(wanted.flatten()))
    return (total * found).reshape(plane.shape).to(plane.dtype)


LEAST_RAISED = 1.1
"""A kernel of a larger gain sharpens; for pairs in the right order the gain stayed below 1."""
_BARS = 3.0


def describe_sharpening(taps: Tensor, errors: Tensor, n_axes: int) -> tuple[str, ...]:
    """Say that kernels `(*, *k)` sharpen, a sentence without its full stop; nothing where they do not.

    They do if the largest gain, less three standard deviations by the errors of the taps, clearly exceeds that of even
    brightness. Kernels that change the brightness much are skipped.
    """
    axes = space_axes(n_axes)
    sums = taps.sum(axes).abs()
    gains = torch.fft.fftn(taps, s=[2 * n for n in taps.shape[-n_axes:]], dim=axes).abs().amax(axes)
    raised = (gains - _BARS * errors.square().sum(axes).sqrt()) / sums
    gain = float(torch.where((sums - 1).abs() < 0.2, raised, 0.0).max())
    if gain < LEAST_RAISED:
        return ()
    return (f"the kernel amplifies detail up to {gain:.2g} times; swap the pictures if the first is the blurred one",)
