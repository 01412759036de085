"""Pictures whose blur is known: sharp samples blurred in linear light, with light from outside the frame."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from deconv_cli.kernels.sources.formula import make_kernel
from deconv_cli.tone_curve import ToneCurve

SAMPLES = Path(__file__).parent.parent / "sample_images"
CURVE = ToneCurve.srgb(255)


def sharp_picture(name: str) -> torch.Tensor:
    """A sample picture, shape (C, H, W), uint8."""
    pixels = torch.from_numpy(np.asarray(Image.open(SAMPLES / f"{name}.png")).copy())
    return pixels[None] if pixels.ndim == 2 else pixels.movedim(-1, 0)


def blurred_picture(name: str, taps: torch.Tensor, *, sigma: float = 0.3, exposure: float = 1.0) -> torch.Tensor:
    """The same under a cross-correlation in linear light, with noise, rounded; shape (C, H', W'), uint8."""
    light = exposure * CURVE.to_light(sharp_picture(name).double())
    blurred = torch.nn.functional.conv2d(light[:, None], taps[None, None])[:, 0]
    noise = torch.randn(blurred.shape, generator=torch.Generator().manual_seed(0), dtype=blurred.dtype)
    return CURVE.to_stored(blurred.clamp(0, 255)).add(sigma * noise).round().clamp(0, 255).to(torch.uint8)


def write_blurred(path: Path, name: str, kernel: str, **options: object) -> Path:
    """Write such a picture, blurred by a formula."""
    pixels = blurred_picture(name, make_kernel(kernel)).movedim(0, -1).squeeze(-1)
    Image.fromarray(pixels.numpy()).save(path, **options)
    return path
