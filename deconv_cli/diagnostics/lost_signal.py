"""Noise of lossy compression is what was taken away from the image, and no light that was added to it.

A quantizer that answers with the means of its cells makes an error n that is not correlated with what it gives,
y = b + n, and so is correlated with what it got: E[bn] = −E[n²] (Gersho and Gray, "Vector Quantization and Signal
Compression", 1992, chapter 6). Noise of the power N in data of the power B is then n = −ρb + w, where ρ = N/B at most 1
is lost of the data, and w, which knows nothing of them, has the power N(1 − ρ). Smoothing and demosaicing take away
likewise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deconv_cli.diagnostics.image_model import ImageModel
from deconv_cli.diagnostics.modulus import squared_modulus
from deconv_cli.diagnostics.noise_spectrum import draw_noise, interpolated
from deconv_cli.diagnostics.torus_modes import symbol_at
from deconv_cli.operators.axes import half_spectrum, space_axes
from deconv_cli.operators.circulant import to_float64
from deconv_cli.vocabulary import Size


def is_lossy(model: ImageModel) -> bool:
    """Tell whether the noise of a model took something away, as far as is known: not where channels are mixed."""
    return not model.noise.is_white and model.channels.shape[0] == 1


def lost_share(model: ImageModel, taps: Tensor, torus: Size) -> Tensor:
    """Compute ρ, the part of the data's amplitude that is lost, at the frequencies of `rfftn` on a torus.

    Args:
        model: of one channel.
        taps: of the kernel, shape `(C_out, 1, *k)`.
        torus: `(N1, N2, ...)`.

    Returns:
        From 0 to 1, float64, shape `(*torus[:-1], torus[-1] // 2 + 1)`.
    """
    numbers = tuple(torch.arange(n, device=taps.device) for n in half_spectrum(torus))
    symbol = symbol_at(to_float64(taps.detach()), torus, numbers)
    seen = model.power(torus) * squared_modulus(symbol).sum(dim=-1).mean(dim=-1)
    noise = model.sigma**2 * interpolated(model.noise.spectrum, torus, seen)
    return (noise / seen.clamp_min(1e-30)).clamp_max(1.0)


def without_lost(images: Tensor, model: ImageModel, taps: Tensor) -> Tensor:
    """Give what compression left of images `(B, 1, *torus)`."""
    return _scaled(images, 1 - lost_share(model, taps, tuple(images.shape[2:])))


def draw_remaining_noise(model: ImageModel, taps: Tensor, like: Tensor, seed: int) -> Tensor:
    """Draw w, relative to the σ of the model, as much as in `like` of shape `(B, C_out, *size)`."""
    noise = draw_noise(model.noise, like, seed, like.ndim - 2)
    return _scaled(noise, (1 - lost_share(model, taps, tuple(like.shape[2:]))).sqrt())


def _scaled(images: Tensor, amplitudes: Tensor) -> Tensor:
    size = tuple(images.shape[2:])
    axes = space_axes(len(size))
    return torch.fft.irfftn(torch.fft.rfftn(images, dim=axes) * amplitudes.to(images.dtype), s=size, dim=axes)
