"""How a file format changed the samples: saturated samples, the error of JPEG, and the effect of a block quantizer.

* JPEG rounds each frequency of each block of 8 × 8 to multiples of a step. The steps show in the transform of the
  blocks (Fan and de Queiroz, Identification of bitmap compression history: JPEG detection and quantizer estimation,
  IEEE TIP 2003). Large steps remove most of the noise, so the remaining noise says little about the error.
* A uniform quantizer of the step q answers a Laplacian coefficient c of the power C by Q(c). The part that correlates
  with c is A = E[c·Q(c)] / C = h·(1 + h·coth h) / (2·sinh h), with h² = q² / 2C: all of a strong coefficient, nothing
  of one far below the step (coefficients of cosine transforms of images are Laplacian: Lam and Goodman, "A mathematical
  analysis of the DCT coefficient distributions for images", IEEE Transactions on Image Processing 9, 2000). Strong
  coefficients have the mean squared error M = q²/12, so h² = 6·M / C. A block of 8 samples mixes neighboring
  frequencies, so a single zero of a kernel removes none of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from deconv_cli.kernels.blind.blurred_picture import LUMA
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import space_axes
from deconv_cli.vocabulary import Size

NEARLY_FULL = 0.96
LEAST_SHARE = 1e-4
"""Full samples count as bounds if they are at least this share of all samples; fewer are hot pixels."""
_REACH = 2

BLOCK = 8
CHANNEL_ERRORS = (1.5, 1.0, 1.6)
"""Errors of red, green and blue in units of that of the luma: colors have larger steps and half of the samples.
Measured on five photographs of scikit-image and scikit-learn at qualities of 80 to 95."""
BESIDE, BESIDE_GRAY = (1.2, 0.8, 1.3), 0.5
"""Errors in gray levels that the steps do not show: of shared colors, of rounding, and of removed noise.
Measured on the same photographs at qualities of 98 and 100, with noise of 0.5 before."""
LARGEST_STEP = 64
MOST_BLOCKS, FEW_BLOCKS = 4096, 512
COARSE = [BLOCK * row + column for row in range(6) for column in range(6 - row)]
"""Coarse frequencies, at which most pictures have values other than zero."""
FEWEST = 30
"""Fewest values other than zero that show a step."""
LEAST_SCORE = 0.7
FEWEST_STEPS = 5
"""Frequencies that must show a step before a picture counts as JPEG."""


def find_clipped(y: Tensor, ceiling: float, size: Sequence[int], least_share: float = LEAST_SHARE) -> Tensor | None:
    """Find the full samples of data `(*batch, C, *space)` that an estimate may exceed: a mask, or `None`.

    Compression leaves some of them slightly below the ceiling, next to full ones. A sample that has only full ones
    around it, within half the kernel, counts as a measurement: no other sample shows how much brighter it was, so the
    estimate of a wide white background would depend on its far ends alone. With a smaller share of full samples than
    `least_share` there is no mask.
    """
    least = ceiling * (1 - 1e-6)
    if synchronize.as_number(y.max()) < least:
        return None
    full = y >= least
    if synchronize.as_index(full.count_nonzero()) < least_share * y.numel():
        return None
    full |= _is_any_around(full, [_REACH] * len(size)) & (y >= NEARLY_FULL * ceiling)
    bounds = full & _is_any_around(~full, [n_taps // 2 for n_taps in size])
    return bounds if synchronize.holds_anywhere(bounds) else None


def _is_any_around(mask: Tensor, reach: Sequence[int]) -> Tensor:
    """Find the samples with a marked one within `reach` along every axis of space, channel by channel."""
    if mask.ndim > len(reach):
        return torch.stack([_is_any_around(part, reach) for part in mask])
    for axis, n_away in zip(space_axes(len(reach)), reach, strict=True):
        # The time of cumulative counts does not depend on the kernel.
        n_set = functional.pad(mask.movedim(axis, -1).cumsum(-1, dtype=torch.int32), (1, 0))
        n, place = mask.shape[axis], torch.arange(mask.shape[axis], device=mask.device)
        before, after = (place - n_away).clamp_min(0), (place + n_away + 1).clamp_max(n)
        mask = (n_set[..., after] > n_set[..., before]).movedim(-1, axis)
    return mask


def estimate_jpeg_noise(stored: Tensor) -> Tensor | None:
    """Estimate the standard deviation of the error of JPEG by channel, shape `(C,)`; `None` without a trace of JPEG.

    Stored values are from 0 to 255, shape `(C, H, W)`, C 1 or 3; the blocks may begin anywhere.
    """
    if stored.shape[0] not in (1, 3) or min(stored.shape[1:]) < 2 * BLOCK:
        return None
    luma = torch.einsum("c,chw->hw", stored.new_tensor(LUMA), stored) if stored.shape[0] > 1 else stored[0]
    found = _steps_from(luma, (0, 0), MOST_BLOCKS, range(BLOCK**2))
    if len(found) < FEWEST_STEPS:
        starts = ((row, column) for row in range(BLOCK) for column in range(BLOCK))
        first = next((s for s in starts if len(_steps_from(luma, s, FEW_BLOCKS, COARSE)) >= FEWEST_STEPS), None)
        found = [] if first is None else _steps_from(luma, first, MOST_BLOCKS, range(BLOCK**2))
    if len(found) < FEWEST_STEPS:
        return None
    error = sum(_rounding_error(column, step) for column, step in found)
    factors, beside = (CHANNEL_ERRORS, BESIDE) if stored.shape[0] > 1 else ((1.0,), (BESIDE_GRAY,))
    return torch.hypot(math.sqrt(error / BLOCK**2) * stored.new_tensor(factors), stored.new_tensor(beside))


def _steps_from(luma: Tensor, first: tuple[int, int], n_most: int, places: Iterable[int]) -> list[tuple[Tensor, float]]:
    """Find the frequencies that show a step, with their values and steps, if the first block begins at a pixel."""
    columns = _frequencies(luma, first, n_most).T
    return [(columns[at], step) for at in places if (step := _step_of(columns[at])) is not None]


def _frequencies(luma: Tensor, first: tuple[int, int], n_most: int) -> Tensor:
    """Transform blocks by the orthonormal cosine transform; shape `(n_blocks, 64)`."""
    luma = luma[first[0] :, first[1] :]
    rows, columns = (n // BLOCK for n in luma.shape)
    blocks = luma[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK).transpose(1, 2)
    blocks = blocks.reshape(-1, BLOCK, BLOCK)
    blocks = blocks[:: math.ceil(len(blocks) / n_most)] - 128
    n = torch.arange(BLOCK, dtype=luma.dtype, device=luma.device)
    cosines = torch.cos(math.pi / BLOCK * (n + 0.5) * n[:, None]) * math.sqrt(2 / BLOCK)
    cosines[0] /= math.sqrt(2)
    return (cosines @ blocks @ cosines.T).flatten(1)


def _step_of(values: Tensor) -> float | None:
    """Find the largest step that nearly all values of one frequency are multiples of."""
    steps = torch.arange(2, LARGEST_STEP + 1, dtype=values.dtype, device=values.device)
    beyond = values.abs() > steps[:, None] / 2
    score = (torch.cos(2 * math.pi * values / steps[:, None]) * beyond).sum(dim=1)
    n_beyond = beyond.sum(dim=1)
    fits = (n_beyond >= FEWEST) & (score > LEAST_SCORE * n_beyond)
    return float(steps[fits].max()) if bool(fits.any()) else None


def _rounding_error(values: Tensor, step: float) -> float:
    """Compute the variance of the rounding error, for values whose distribution falls exponentially."""
    half = step / 2
    share = float((values.abs() > half).double().mean())
    scale = half / -math.log(min(share, 0.99))
    kept = math.exp(-half / scale)
    within = 2 * scale**2 - kept * (half**2 + 2 * half * scale + 2 * scale**2)
    return within + share * step**2 / 12


def gain_in_blocks(gain: Tensor, torus: Size) -> Tensor:
    """Compute the power of coefficients of blocks from the power of images at the frequencies of `rfftn` on a torus.

    It is the Fourier transform of the covariance times the autocorrelation of a block.
    """
    axes = space_axes(len(torus))
    covariance = torch.fft.irfftn(gain, s=torus, dim=axes)
    for axis, length in zip(axes, torus, strict=True):
        offset = length * torch.fft.fftfreq(length, dtype=gain.dtype, device=gain.device).abs()
        overlap = (1 - offset / BLOCK).clamp_min(0)
        covariance = covariance * overlap.reshape(-1, *[1] * (-1 - axis))
    return torch.fft.rfftn(covariance, dim=axes).real.clamp_min(0)


def part_left(ratio: Tensor) -> Tensor:
    """Compute A from the ratio M / C, of any shape."""
    h = (6 * ratio).sqrt().clamp(1e-3, 80.0)
    return h * (1 + h / h.tanh()) / (2 * h.sinh())
