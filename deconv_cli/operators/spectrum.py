"""The singular values of a convolution's symbol: how strongly each frequency comes through."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.operators.circulant import torus_symbol, widened
from deconv_cli.vocabulary import Size

# Bounds on the work of one spectrum: frequencies, and frequencies times the cost of one block. A symbol is a smooth
# function of few taps, so a coarser grid of the same torus misses little of it.
MAX_FREQUENCIES = 2**19
MAX_BLOCK_OPERATIONS = 3e8


@dataclass(frozen=True)
class Spectrum:
    """The extreme singular values of a symbol over a grid of frequencies.

    Attributes:
        sigma_max: the largest.
        sigma_min: the smallest.
        grid: the torus whose frequencies were looked at: the image's own size, or coarser for large problems.
        peak: the frequency of the largest, as a place on the half spectrum of the grid.
    """

    sigma_max: float
    sigma_min: float
    grid: Size
    peak: Size

    @property
    def condition(self) -> float:
        """σmax / σmin, infinite for a singular symbol."""
        return self.sigma_max / self.sigma_min if self.sigma_min > 0 else float("inf")


def kernel_spectrum(taps: Tensor, image_size: Size) -> Spectrum:
    """Find the extreme singular values of a kernel's symbol on the torus of the image.

    Args:
        taps: shape `(C_out, C_in, kH, kW)`.
        image_size: height and width of the image. Above `MAX_FREQUENCIES`, or for wide blocks, the larger axis of the
            torus is halved until the work is bounded; the zero frequency is always kept.
    """
    grid = _affordable_grid(image_size, taps.shape[0], taps.shape[1])
    wide = widened(taps)
    values = singular_values(torus_symbol(wide, grid))
    largest, smallest = float(values.max()), float(values.min())
    row, column = divmod(int(values.amax(dim=-1).argmax()), values.shape[1])
    # Below rounding the symbol cannot be told from a singular one.
    return Spectrum(largest, smallest if smallest > torch.finfo(wide.dtype).eps * largest else 0.0, grid, (row, column))


def peak_gain(taps: Tensor, spectrum: Spectrum) -> Tensor:
    """Compute σmax as a differentiable function of the taps, at the frequency where it is attained.

    The derivative of a singular value of K(θ) is Re(uᴴ dK(θ) v), with its singular vectors u and v.

    Args:
        taps: shape `(C_out, C_in, kH, kW)`, those of `spectrum`.
        spectrum: what `kernel_spectrum` found for them.

    Returns:
        A single number, in double precision where the device has it.
    """
    wide = widened(taps)
    down, across = (
        # Reduced modulo the length as whole numbers: the angle keeps every digit.
        (torch.arange(n_taps, device=taps.device) * place % length).to(wide.dtype) * (2 * math.pi / length)
        for n_taps, place, length in zip(taps.shape[-2:], spectrum.peak, spectrum.grid, strict=True)
    )
    angle = down[:, None] + across
    symbol = (wide * torch.polar(torch.ones_like(angle), angle)).sum(dim=(-2, -1))
    u, _, vh = torch.linalg.svd(symbol.detach(), full_matrices=False)
    gain: Tensor = (u[:, 0].conj() @ symbol @ vh[0].conj()).real
    return gain


def singular_values(symbol: Tensor) -> Tensor:
    """Compute the singular values at every frequency, shape `(N1, N2 // 2 + 1, min(C_out, C_in))`."""
    if min(symbol.shape[-2:]) == 1:
        return torch.linalg.vector_norm(symbol, dim=(-2, -1))[..., None]
    with single_threaded(symbol.device):
        return torch.linalg.svdvals(symbol)


@contextmanager
def single_threaded(device: torch.device) -> Iterator[None]:
    """Run batched CPU factorizations in one thread: with two, torch's batched SVD was measured 50 times slower."""
    n_threads = torch.get_num_threads()
    if device.type != "cpu" or n_threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def _affordable_grid(size: Size, n_outputs: int, n_inputs: int) -> Size:
    per_frequency = n_outputs * n_inputs * min(n_outputs, n_inputs)
    # A LAPACK call on a tiny block costs about as much as one on an 8 × 8 block.
    cost = per_frequency if min(n_outputs, n_inputs) == 1 else max(per_frequency, 512)
    height, width = size
    while height * (width // 2 + 1) > MAX_FREQUENCIES or height * (width // 2 + 1) * cost > MAX_BLOCK_OPERATIONS:
        if height <= 2 and width <= 2:
            break
        height, width = (-(-height // 2), width) if height >= width else (height, -(-width // 2))
    return height, width
