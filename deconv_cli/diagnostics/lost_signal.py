"""What lossy compression takes away of an image, beside the noise that it adds.

Of strong coefficients a quantizer leaves all, of weak ones nothing (`quantization.py`). How wrong strong ones are is
the level of the noise where the scene is strong. Smoothing and demosaicing take weak detail away likewise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deconv_cli.diagnostics.image_model import ImageModel
from deconv_cli.diagnostics.modulus import squared_modulus
from deconv_cli.diagnostics.noise_spectrum import interpolated
from deconv_cli.diagnostics.quantization import gain_in_blocks, part_left
from deconv_cli.diagnostics.torus_modes import symbol_at
from deconv_cli.operators.axes import half_spectrum, space_axes
from deconv_cli.operators.circulant import to_float64
from deconv_cli.vocabulary import Size


def is_lossy(model: ImageModel) -> bool:
    """Tell whether the noise of a model took something away, as far as is known: not where channels are mixed."""
    return not model.noise.is_white and model.channels.shape[0] == 1


def share_left(model: ImageModel, taps: Tensor, torus: Size) -> Tensor:
    """Compute A, the part of the data's amplitude that compression left, at the frequencies of `rfftn` on a torus.

    Args:
        model: of one channel.
        taps: of the kernel, shape `(C_out, 1, *k)`.
        torus: `(N1, N2, ...)`.

    Returns:
        From 0 to 1, float64, shape `(*torus[:-1], torus[-1] // 2 + 1)`.
    """
    numbers = tuple(torch.arange(n, device=taps.device) for n in half_spectrum(torus))
    symbol = symbol_at(to_float64(taps.detach()), torus, numbers)
    gain = squared_modulus(symbol).sum(dim=-1).mean(dim=-1)
    seen = model.power(torus) * gain_in_blocks(gain, torus)
    noise = model.sigma**2 * interpolated(model.noise.spectrum, torus, seen)
    return part_left(model.sigma**2 * model.noise.spectrum[0] / (seen + noise).clamp_min(1e-30))


def without_lost(images: Tensor, model: ImageModel, taps: Tensor) -> Tensor:
    """Give what compression left of images `(B, 1, *torus)`."""
    size = tuple(images.shape[2:])
    axes, left = space_axes(len(size)), share_left(model, taps, size).to(images.dtype)
    return torch.fft.irfftn(torch.fft.rfftn(images, dim=axes) * left, s=size, dim=axes)
