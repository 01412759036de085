"""Singular vectors and values of a convolution on a torus, frequency by frequency.

At the frequency θ the block K(θ) = U S Vᴴ (`C_out × C_in`) sends the wave of amplitude v_j to that of amplitude u_j,
σ_j times as strong: a mode (Sedghi, Gupta and Long, "The singular values of convolutional layers", International
Conference on Learning Representations 2019, section 2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.diagnostics.hann_window import FadedImages
from deconv_cli.diagnostics.modulus import squared_modulus
from deconv_cli.operators.axes import half_spectrum, space_axes
from deconv_cli.operators.circulant import (
    channels_last,
    multiply_lines,
    multiply_lines_adjoint,
    phases,
    sum_taps,
    to_float64,
)
from deconv_cli.operators.spectrum import single_threaded, singular_values
from deconv_cli.regularizers import PenaltyLike, find_penalty
from deconv_cli.vocabulary import Size

# Bounds on the work of one decomposition: frequencies, and frequencies times the cost of one block.
MAX_FREQUENCIES = 2**18
MAX_BLOCK_OPERATIONS = 1e8
# A LAPACK call on a tiny block costs about as much as one on an 8 × 8 block.
MIN_BLOCK_OPERATIONS = 512


@dataclass(frozen=True, eq=False)
class TorusModes:
    """Singular vectors and values at frequencies of `torch.fft.rfftn`, evenly spaced along each axis.

    With m = min(C_out, C_in) modes at each of the frequencies of a grid of shape F = (F1, F2, ...):

    Attributes:
        torus: `(N1, N2, ...)`.
        frequencies: for each axis the numbers of the frequencies along it, shape `(Fi,)`; at most N / 2 on the last.
        weights: how many frequencies of the whole torus each one stands for, shape `(*F,)`.
        u: complex, shape `(*F, C_out, m)`.
        sigma: descending, shape `(*F, m)`.
        vh: complex, shape `(*F, m, C_in)`.
    """

    torus: Size
    frequencies: tuple[Tensor, ...]
    weights: Tensor
    u: Tensor
    sigma: Tensor
    vh: Tensor

    @property
    def is_complete(self) -> bool:
        """Whether every frequency of the torus is there, or its mirror image."""
        return tuple(self.weights.shape) == half_spectrum(self.torus)

    def squared_penalty(self, penalty: PenaltyLike) -> Tensor:
        """Evaluate |l(θ)|², shape `(*F, 1)`."""
        whole = find_penalty(penalty).symbol(self.torus, self.sigma.dtype, self.sigma.device)
        return self.sampled(whole)[..., None]

    def transformed(self, images: Tensor) -> Tensor:
        """Compute unitary transforms of images `(*batch, C, N1, N2, ...)`, complex, at all frequencies of the torus."""
        return torch.fft.rfftn(images.to(self.sigma.dtype), dim=space_axes(len(self.torus)), norm="ortho")

    def of_outputs(self, spectrum: Tensor) -> Tensor:
        """Compute uᴴY of what `transformed` gave of outputs: of white noise of unit variance its mean squares are one.

        Returns:
            Complex, shape `(*batch, *F, m)`.
        """
        lines = self.sampled(spectrum).flatten(-len(self.torus))
        return self._on_grid(multiply_lines_adjoint(self.u.flatten(0, -3), lines))

    def of_inputs(self, spectrum: Tensor) -> Tensor:
        """Compute vᴴX of what `transformed` gave of images, complex, shape `(*batch, *F, m)`."""
        lines = self.sampled(spectrum).flatten(-len(self.torus))
        return self._on_grid(multiply_lines(self.vh.flatten(0, -3), lines))

    def power_of_outputs(self, outputs: FadedImages) -> Tensor:
        """Compute |uᴴY|², as `of_outputs`, averaged over the batch of outputs on the torus, shape `(*F, m)`."""
        if self.u.shape[-2:] == (1, 1):  # u is a phase
            return self.sampled(outputs.mean_power)[..., None]
        return squared_modulus(self.of_outputs(outputs.spectrum)).mean(0)

    def energy(self, spectrum: Tensor) -> Tensor:
        """Sum up |X(θ)|² over channels of what `transformed` gave, shape `(*batch, *F)`."""
        return squared_modulus(self.sampled(spectrum)).sum(dim=-len(self.torus) - 1)

    def sampled(self, spectrum: Tensor) -> Tensor:
        """Take these frequencies out of those of `torch.fft.rfftn`, shape `(*, *plane)` to `(*, *F)`."""
        for axis, numbers in zip(space_axes(len(self.torus)), self.frequencies, strict=True):
            if len(numbers) < spectrum.shape[axis]:
                spectrum = spectrum.index_select(axis, numbers)
        return spectrum

    def _on_grid(self, lines: Tensor) -> Tensor:
        return lines.movedim(-2, -1).unflatten(-2, self.weights.shape)


def torus_modes(taps: Tensor, torus: Size, *, is_bounded: bool = True) -> TorusModes:
    """Decompose the symbol of a cross-correlation on a torus.

    Args:
        taps: shape `(C_out, C_in, *k)`.
        torus: `(N1, N2, ...)`.
        is_bounded: where the frequencies are more than the work allows, take every second, third, ... along an axis.
    """
    wide = to_float64(taps.detach())
    plane = half_spectrum(torus)
    steps = _steps(plane, *wide.shape[:2]) if is_bounded else (1,) * len(plane)
    frequencies = tuple(torch.arange(0, n, step, device=wide.device) for n, step in zip(plane, steps, strict=True))
    u, sigma, vh = _decompose(symbol_at(wide, torus, frequencies))
    last = frequencies[-1]
    multiplicity = torch.where((last == 0) | (2 * last == torus[-1]), 1.0, 2.0).to(sigma.dtype)
    weights = multiplicity.expand(sigma.shape[:-1])
    return TorusModes(torus, frequencies, weights * (math.prod(torus) / weights.sum()), u, sigma, vh)


def symbol_at(taps: Tensor, torus: Size, frequencies: tuple[Tensor, ...]) -> Tensor:
    """Evaluate Σ_d K[d] exp(iθ·d) on a grid of frequencies of a torus.

    Args:
        taps: shape `(C_out, C_in, *k)`.
        torus: `(N1, N2, ...)`.
        frequencies: for each axis their numbers, shape `(Fi,)`.

    Returns:
        Complex, shape `(F1, F2, ..., C_out, C_in)`.
    """
    tables = [
        phases(numbers, length, n_taps, taps)
        for numbers, length, n_taps in zip(frequencies, torus, taps.shape[2:], strict=True)
    ]
    return channels_last(sum_taps(taps.to(tables[0].dtype), tables, first_axis=2)).contiguous()


def _decompose(symbol: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if symbol.shape[-2:] == (1, 1):
        # A single number is its size times a phase: LAPACK would take a hundred times as long.
        sigma = singular_values(symbol)
        phase = symbol / torch.where(sigma > 0, sigma, 1)[..., None]
        phase = torch.where(sigma[..., None] > 0, phase, torch.ones_like(phase))
        return phase, sigma, torch.ones_like(symbol)
    with single_threaded(symbol.device):
        u, sigma, vh = torch.linalg.svd(symbol, full_matrices=False)
    return u, sigma, vh


def _steps(plane: Size, n_outputs: int, n_inputs: int) -> Size:
    """Find how far apart the frequencies must be, along each axis, for the work to be bounded."""
    per_block = n_outputs * n_inputs * min(n_outputs, n_inputs)
    cost = 1 if n_outputs == n_inputs == 1 else max(per_block, MIN_BLOCK_OPERATIONS)
    affordable = min(MAX_FREQUENCIES, MAX_BLOCK_OPERATIONS / cost)
    steps = [1] * len(plane)
    while math.prod(counts := [-(-n // step) for n, step in zip(plane, steps, strict=True)]) > max(affordable, 1):
        if max(counts) == 1:
            break
        steps[counts.index(max(counts))] += 1
    return tuple(steps)
