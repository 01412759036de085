"""What a quantizer leaves of the coefficients of blocks.

A uniform quantizer of the step q answers a Laplacian coefficient c of the power C by Q(c), of which the part that goes
with c is A = E[c·Q(c)] / C = h·(1 + h·coth h) / (2·sinh h), with h² = q² / 2C: all of a strong coefficient, nothing of
one that is far weaker than the step. (Coefficients of cosine transforms of images are Laplacian: Lam and Goodman, "A
mathematical analysis of the DCT coefficient distributions for images", IEEE Transactions on Image Processing 9, 2000.)
Strong coefficients are wrong by q²/12 on average; with that mean squared error M, h² = 6·M / C. A block of 8 samples
mixes neighboring frequencies, so that nothing falls out where a kernel is zero at single ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deconv_cli.operators.axes import space_axes
from deconv_cli.vocabulary import Size

_BLOCK = 8
"""Samples of a block along each axis: those of JPEG."""
_LARGEST = 80.0


def gain_in_blocks(gain: Tensor, torus: Size) -> Tensor:
    """Compute the power that coefficients of blocks have, where white images have a given power by frequency.

    Args:
        gain: at the frequencies of `rfftn` on a torus, such as |K|².
        torus: `(N1, N2, ...)`.

    Returns:
        Of the same shape: the Fourier transform of the covariance times that of a block with itself.
    """
    axes = space_axes(len(torus))
    covariance = torch.fft.irfftn(gain, s=torus, dim=axes)
    for axis, length in zip(axes, torus, strict=True):
        offset = length * torch.fft.fftfreq(length, dtype=gain.dtype, device=gain.device).abs()
        overlap = (1 - offset / _BLOCK).clamp_min(0)
        covariance = covariance * overlap.reshape(-1, *[1] * (-1 - axis))
    return torch.fft.rfftn(covariance, dim=axes).real.clamp_min(0)


def part_left(ratio: Tensor) -> Tensor:
    """Compute A of the mean squared error of strong coefficients, relative to the power of these, of any shape."""
    h = (6 * ratio).sqrt().clamp(1e-3, _LARGEST)
    return h * (1 + h / h.tanh()) / (2 * h.sinh())
