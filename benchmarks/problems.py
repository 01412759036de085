"""The problems that are measured: kernels, pictures, and the error of an estimate."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

PICTURE = Path(__file__).parent.parent / "sample_images" / "camera.png"
PIECE = 241


def random_kernel(n_channels: int, size: int = 3) -> Tensor:
    """Draw independent normal taps, shape `(C, C, k, k)` in float64, scaled to keep the energy of white images."""
    generator = torch.Generator().manual_seed(0)
    taps = torch.randn(n_channels, n_channels, size, size, generator=generator, dtype=torch.float64)
    return taps / (size * n_channels**0.5)


def near_identity_kernel(n_channels: int, size: int) -> Tensor:
    """Add weak random taps to the identity: well-posed under every border, so that costs alone grow with the size."""
    kernel = 0.2 * random_kernel(n_channels, size)
    kernel[:, :, size // 2, size // 2] += torch.eye(n_channels, dtype=kernel.dtype)
    return kernel


def disk_kernel(diameter: int) -> Tensor:
    """Blur out of focus: a disk of the given diameter that sums to one, shape `(k, k)` in float64."""
    offsets = torch.arange(diameter, dtype=torch.float64) - (diameter - 1) / 2
    disk = (torch.hypot(offsets[:, None], offsets) <= diameter / 2).double()
    return disk / disk.sum()


def features(n_channels: int, size: int) -> Tensor:
    """Draw white features, shape `(C, n, n)` in float64."""
    return torch.randn(n_channels, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def photograph(size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Give a photograph of any size, shape `(1, n, n)` in 0 to 1: the sample, or a mirrored piece that fills it."""
    picture = np.asarray(Image.open(PICTURE), dtype=np.float64) / 255
    if size > min(picture.shape):  # mirrored as a whole, it would fit into powers of two and be circular there
        picture = picture[:PIECE, :PIECE]
    rows, columns = (max(size - n, 0) for n in picture.shape)
    filled = np.pad(picture, ((0, rows), (0, columns)), mode="symmetric")[:size, :size]
    return torch.from_numpy(filled.copy()).to(dtype)[None]


def microscope_psf(size: tuple[int, int, int]) -> Tensor:
    """Draw a point-spread function that widens out of focus, more behind it than ahead, shape `size` in float64."""
    depth = torch.arange(size[0], dtype=torch.float64) - size[0] // 2
    rows, columns = (torch.arange(n, dtype=torch.float64) - n // 2 for n in size[1:])
    width = (1.1 + 0.28 * depth.abs() + 0.05 * depth.clamp_min(0))[:, None, None]
    light = (-((4 * depth / size[0]) ** 2) / 2).exp()[:, None, None] / width**2
    psf = light * (-(rows[:, None] ** 2 + columns**2) / (2 * width**2)).exp()
    return psf / psf.sum()


def cells(size: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Draw bodies of even brightness, threads and points over a dark ground, shape `size` in float64, 0 to about 3."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    bodies = _smooth(normal(*size), (4, 8, 8))
    n, (n_threads, length) = math.prod(size), (max(math.prod(size) // 20_000, 1), 200)
    points = torch.zeros(n, dtype=torch.float64)
    points[torch.randint(0, n, (n // 4000,), generator=generator)] = 30
    steps = 0.15 * normal(n_threads, length, 3).cumsum(1) + normal(n_threads, 1, 3)
    steps = steps / steps.norm(dim=-1, keepdim=True) * torch.tensor([0.3, 0.7, 0.7], dtype=torch.float64)
    starts = torch.rand(n_threads, 1, 3, generator=generator, dtype=torch.float64) * torch.tensor(size)
    places = (starts + steps.cumsum(1)).round().long()
    planes, rows, columns = places[((places >= 0) & (places < torch.tensor(size))).all(-1)].unbind(-1)
    points[((planes * size[1] + rows) * size[2] + columns).unique()] += 3
    edges = _smooth((bodies > 0.8 * bodies.std()).double(), (0.5, 0.5, 0.5))
    return (0.05 + 0.5 * edges + _smooth(points.reshape(size), (0.6, 0.6, 0.6))).clamp_min(0)


def _smooth(x: Tensor, sigmas: tuple[float, float, float]) -> Tensor:
    """Convolve a stack with a Gaussian, around its edges."""
    spectrum = torch.fft.rfftn(x)
    for axis, (n, sigma) in enumerate(zip(x.shape, sigmas, strict=True)):
        frequencies = torch.fft.rfftfreq(n) if axis == 2 else torch.fft.fftfreq(n)
        factor = (-2 * (math.pi * sigma * frequencies.double()) ** 2).exp()
        spectrum *= factor.reshape(-1, *[1] * (2 - axis))
    return torch.fft.irfftn(spectrum, s=x.shape)


def one_shot_filter(y: Tensor, kernel: Tensor, lam: float) -> Tensor:
    """Restore a circular image `(1, *size)`, blurred by a symmetric kernel, as one writes it in torch by hand."""
    axes = tuple(range(-kernel.ndim, 0))
    placed = torch.zeros_like(y[0])
    placed[tuple(slice(k) for k in kernel.shape)] = kernel
    symbol = torch.fft.rfftn(placed.roll(tuple(-(k // 2) for k in kernel.shape), axes))
    spectrum = torch.fft.rfftn(y, dim=axes) * symbol.conj() / (symbol.abs().square() + lam)
    return torch.fft.irfftn(spectrum, s=y.shape[1:], dim=axes)


def relative_error(estimate: Tensor, truth: Tensor) -> float:
    """Compute ‖estimate − truth‖ / ‖truth‖."""
    return float((estimate - truth).norm() / truth.norm())


def psnr(estimate: Tensor, truth: Tensor, band: int | None = None) -> float:
    """Compute the peak signal-to-noise ratio in dB of images in 0 to 1, or that of their outermost `band` pixels."""
    squares = (estimate.double() - truth.double()).square()
    if band is None:
        return float(-10 * squares.mean().log10())
    inner = squares[..., band:-band, band:-band]
    return float(-10 * ((squares.sum() - inner.sum()) / (squares.numel() - inner.numel())).log10())
