"""A kernel of free form from one blurred picture, by ascent on the marginal likelihood, coarse to fine.

Levin, Weiss, Durand and Freeman, Understanding and evaluating blind deconvolution algorithms, CVPR 2009: of image and
kernel together no blur is the likeliest, of the kernel alone the true one is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from deconv_cli.errors import MalformedInputError, ShapeError, UsageError
from deconv_cli.kernels.blind.sharp_derivatives import SharpDerivatives
from deconv_cli.operators import synchronize

MAX_SIZE = 63
"""Taps a side."""
_CROP = 400
"""Pixels a side of the part of the picture that is looked at."""
_N_TIMES_KERNEL = 3
"""Least size of a picture, in sizes of the kernel."""
_N_ITERATIONS = 15
_N_KEPT = ((5, 8), (9, 3), (13, 2), (MAX_SIZE, 1))
"""Largest number of taps a side at a scale: number of candidates that are followed further."""
_CORNER = ((0.0, 1.0, 1.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0))
_DIAGONAL = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0))
_LEANING = 0.8
"""Share of a first kernel that is not the family's: one that equals itself turned by half a circle would stay so."""
_LEAST_TAP = 0.03
"""Of the largest; what is smaller is noise."""
_LEAST_NOISE = 0.02
"""Of the root mean square of the derivatives: rounding, and what no model has."""
_NOISE_MARGIN = 2.0
"""Noise at which the ascent ends, in standard deviations: independent derivatives explain less than the scene holds."""
_MEDIAN_OF_NORMAL = 0.6745


@dataclass(frozen=True, eq=False)
class FreeForm:
    """A kernel of free form.

    Attributes:
        taps: of a cross-correlation, as every kernel here: `flip((0, 1))` gives the point-spread function. Shape
            `(k, k)`, float64, k odd, none negative, sum 1. Where it lies cannot be known from a picture: the center of
            mass is on the middle tap, to half a pixel, so that k may differ from the size that was given.
        noise_sigma: standard deviation of the noise, in units of the light.
        n_scales: how many scales were gone through.
        n_iterations: of the ascent, on all scales together.
        part: rows and columns of the picture that were looked at.
    """

    taps: Tensor
    noise_sigma: float
    n_scales: int
    n_iterations: int
    part: tuple[slice, slice]


def free_form(light: Tensor, start: Tensor, *, size: int, noise_sigma: float | None = None) -> FreeForm:
    """Estimate a kernel of which nothing is known but its support.

    Args:
        light: luminance, linear in the light, shape `(H, W)`.
        start: where the ascent starts, on the coarsest scale: the taps of the best of the families, shape `(kH, kW)`.
        size: taps a side of the support, odd; somewhat more than the blur reaches.
        noise_sigma: standard deviation of the noise, in units of `light`; by default it is estimated.

    Raises:
        UsageError: a size that is even, below 3, or above `MAX_SIZE`.
        ShapeError: the picture is not a plane, or too small for the kernel.
        MalformedInputError: the picture is constant; it or the start holds NaN or infinity; the start is no kernel.
    """
    _check(light, start, size)
    part = _richest_part(light, _CROP)
    light = light[part].float()
    sigma = _noise_of(light) if noise_sigma is None else noise_sigma
    scales = pyramid(size)
    candidates, last = _first_kernels(resampled(start.float(), scales[0][0], 1 / scales[0][1])), scales[0][1]
    n_iterations = 0
    for n_taps, factor in scales:
        y = _derivatives(_coarser(light, factor))
        moved = [boxed(resampled(taps, n_taps, last / factor)) for taps in candidates]
        found = sorted((_ascend(y, taps, sigma) for taps in moved), key=lambda pair: pair[0])
        n_iterations += _N_ITERATIONS * len(moved)
        candidates, last = [taps for _, taps in found[: _n_kept(n_taps)]], factor
    best = candidates[0].double()
    return FreeForm(balanced(best / best.sum()), sigma, len(scales), n_iterations, part)


def _first_kernels(start: Tensor) -> list[Tensor]:
    """Let a kernel of 3 × 3 taps lean to each side: a picture's power alone tells no kernel from its mirror image."""
    seeds = [torch.tensor(seed) for seed in (_CORNER, _DIAGONAL)]
    turned = [seed.rot90(turn, (0, 1)) / seed.sum() for seed in seeds for turn in range(4)]
    return [_LEANING * seed + (1 - _LEANING) * start for seed in turned]


def _n_kept(n_taps: int) -> int:
    return next(n_kept for most_taps, n_kept in _N_KEPT if n_taps <= most_taps)


def _ascend(y: Tensor, taps: Tensor, sigma: float) -> tuple[float, Tensor]:
    """Climb on one scale.

    Args:
        y: derivatives, shape `(2, H, W)`.
        taps: where to start, shape `(k, k)`.
        sigma: noise of the picture.

    Returns:
        The free energy, and the kernel.
    """
    least = max(2 * (_NOISE_MARGIN * sigma) ** 2, _LEAST_NOISE**2 * float(y.square().mean()))
    posterior = SharpDerivatives(y, taps)
    for _ in range(_N_ITERATIONS):
        posterior.update_image()
        posterior.update_kernel()
        posterior.update_noise(least)
    return posterior.free_energy(), pruned(posterior.taps, _LEAST_TAP)


def _derivatives(light: Tensor) -> Tensor:
    """Take differences of neighbors along both axes: `(H, W)`, to `(2, H − 1, W − 1)`."""
    return torch.stack([light[:-1].diff(dim=1), light[:, :-1].diff(dim=0)])


def _coarser(light: Tensor, factor: float) -> Tensor:
    if factor == 1:
        return light
    size = [max(8, int(n / factor)) for n in light.shape]
    return interpolate(light[None, None], size=size, mode="bilinear", antialias=True, align_corners=False)[0, 0]


def _noise_of(light: Tensor) -> float:
    """Estimate the noise from the finest diagonal detail, of which a blurred picture has little else."""
    detail = light.diff(dim=0).diff(dim=1) / 2
    return float(detail.abs().median()) / _MEDIAN_OF_NORMAL


def _richest_part(light: Tensor, size: int) -> tuple[slice, slice]:
    """Find the square that holds most edges and next to no pixel at the brightest value, where light is cut off."""
    height, width = (min(n, size) for n in light.shape)
    if light.shape == (height, width):
        return slice(0, height), slice(0, width)
    edges = _derivatives(light.float()).abs().sum(0)
    bright = (light[:-1, :-1] >= light.max()).float()
    planes = torch.stack([edges, bright])[None]
    window, stride = (height - 1, width - 1), max(size // 8, 1)
    found, saturated = avg_pool2d(planes, window, stride)[0]
    score = found / (1 + 100 * saturated)
    row, column = divmod(int(score.argmax()), score.shape[1])
    return slice(row * stride, row * stride + height), slice(column * stride, column * stride + width)


def _check(light: Tensor, start: Tensor, size: int) -> None:
    if size % 2 == 0 or not 3 <= size <= MAX_SIZE:
        raise UsageError(f"the support of a kernel of free form must be odd, 3 to {MAX_SIZE} taps, but is {size}.")
    if light.ndim != 2 or start.ndim != 2:
        raise ShapeError(
            "a kernel of free form needs a picture of shape (H, W) and a kernel of shape (kH, kW) to start from, "
            f"but they have {tuple(light.shape)} and {tuple(start.shape)}."
        )
    least = _N_TIMES_KERNEL * size
    if min(light.shape) < least:
        raise ShapeError(
            f"a kernel of {size} × {size} taps needs a picture of at least {least} × {least} pixels, but it has "
            f"{light.shape[0]} × {light.shape[1]}; take a smaller support."
        )
    if not (synchronize.are_finite(light) and synchronize.are_finite(start)):
        raise MalformedInputError("the picture or the kernel to start from holds NaN or infinity; correct it first.")
    if bool((start < 0).any()) or not math.isfinite(float(start.sum())) or float(start.sum()) <= 0:
        raise MalformedInputError("the kernel to start from must have no negative tap, and one that is positive.")
    if float(light.max()) <= float(light.min()):
        raise MalformedInputError("the picture is constant, so that it shows no blur.")


_STEP = math.sqrt(2)
_LEAST_SIZE = 3


def pyramid(size: int) -> list[tuple[int, float]]:
    """List the scales for `size` taps a side, the coarsest first: taps a side there, and how many pixels are one."""
    scales = [(size, 1.0)]
    while scales[-1][0] > _LEAST_SIZE:
        factor = _STEP ** len(scales)
        taps = 2 * (math.ceil(size / factor) // 2) + 1
        scales.append((min(taps, scales[-1][0]), factor))
    return scales[::-1]


def resampled(taps: Tensor, size: int, ratio: float) -> Tensor:
    """Draw a kernel `ratio` times as large, about its middle.

    Args:
        taps: shape `(kH, kW)`.
        size: taps a side of the result, shape `(size, size)`, of sum 1.
        ratio: below 1 for a coarser scale.

    Returns:
        Uniform taps if nothing of the kernel falls on the support.
    """
    rows, columns = (_hats(n, size, ratio).to(taps) for n in taps.shape)
    return _unit_sum(rows @ taps @ columns.T)


def _hats(n_taps: int, size: int, ratio: float) -> Tensor:
    """Interpolate linearly, or average where the result is coarser: shape `(size, n_taps)`."""
    wanted = (torch.arange(size) - (size - 1) / 2) / ratio
    given = torch.arange(n_taps) - (n_taps - 1) / 2
    return (1 - (wanted[:, None] - given).abs() * min(1.0, ratio)).clamp_min(0)


def pruned(taps: Tensor, least: float) -> Tensor:
    """Drop the taps below a share of the largest."""
    return _unit_sum(torch.where(taps < least * taps.max(), 0, taps))


def boxed(taps: Tensor) -> Tensor:
    """Move taps, shape `(k, k)`, so that the box around those that are not zero lies in the middle of the support."""
    shifts = []
    for axis in (0, 1):
        used = torch.nonzero(taps.sum(1 - axis) > 0).flatten()
        shifts.append(int((len(taps) - 1 - used[0] - used[-1]) // 2))
    # The box fits, so that nothing wraps around.
    return taps.roll(shifts, (0, 1))


def balanced(taps: Tensor) -> Tensor:
    """Cut zeros off, or add them, so that the center of mass lies on the middle tap, to half a pixel.

    Args:
        taps: shape `(k, k)`, of sum 1.

    Returns:
        The same taps, on the smallest square of odd size that holds them.
    """
    used = torch.nonzero(taps)
    numbers = torch.arange(len(taps), dtype=taps.dtype)
    center = [round(float((taps.sum(1 - axis) * numbers).sum())) for axis in (0, 1)]
    reach = max(int((used[:, axis] - center[axis]).abs().max()) for axis in (0, 1))
    moved = taps.new_zeros(2 * reach + 1, 2 * reach + 1)
    moved[used[:, 0] - center[0] + reach, used[:, 1] - center[1] + reach] = taps[used[:, 0], used[:, 1]]
    return moved


def _unit_sum(taps: Tensor) -> Tensor:
    total = float(taps.sum())
    return taps / total if total > 0 else torch.full_like(taps, 1 / taps.numel())
