"""The modes of a convolution on a torus, a regularized inverse as a filter on them, and bands of modes of like σ.

At the frequency θ the block K(θ) = U S Vᴴ (`C_out × C_in`) turns the wave of amplitude v_j into that of amplitude u_j,
σ_j times as strong: a mode (Sedghi, Gupta and Long, "The singular values of convolutional layers", International
Conference on Learning Representations 2019, section 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from deconv_cli.diagnostics.spectra import FadedImages
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import half_spectrum, space_axes, squared_modulus
from deconv_cli.operators.circulant import (
    channels_last,
    frequency_numbers,
    multiply_lines,
    multiply_lines_adjoint,
    phase_tables,
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
N_BANDS = 24
DECIDED_SHARE, DECIDED = 0.02, 0.5
"""The data decide a mode if the estimate keeps half of it, or if it is one of the 2 % that the estimate keeps best."""


@dataclass(frozen=True, eq=False)
class TorusModes:
    """Singular vectors and values at frequencies of `torch.fft.rfftn`, evenly spaced along each axis.

    With m = min(C_out, C_in) modes at each of the frequencies of a grid of shape F = (F1, F2, ...):

    Attributes:
        torus: `(N1, N2, ...)`.
        frequencies: their numbers along each axis, shape `(Fi,)`; at most N / 2 on the last.
        weights: how many frequencies of the whole torus each one represents, shape `(*F,)`.
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
        """Whether the grid holds every frequency of the torus or its mirror image."""
        return tuple(self.weights.shape) == half_spectrum(self.torus)

    def squared_penalty(self, penalty: PenaltyLike) -> Tensor:
        """Evaluate |l(θ)|², shape `(*F, 1)`."""
        whole = find_penalty(penalty).symbol(self.torus, self.sigma.dtype, self.sigma.device)
        return self.sampled(whole)[..., None]

    def transformed(self, images: Tensor) -> Tensor:
        """Compute unitary transforms of images `(*batch, C, N1, N2, ...)`, complex, at all frequencies of the torus."""
        return torch.fft.rfftn(images.to(self.sigma.dtype), dim=space_axes(len(self.torus)), norm="ortho")

    def of_outputs(self, spectrum: Tensor) -> Tensor:
        """Compute uᴴY from the transform of outputs, complex, shape `(*batch, *F, m)`.

        White noise of unit variance has a mean square of one.
        """
        lines = self.sampled(spectrum).flatten(-len(self.torus))
        return self._on_grid(multiply_lines_adjoint(self.u.flatten(0, -3), lines))

    def of_inputs(self, spectrum: Tensor) -> Tensor:
        """Compute vᴴX from the transform of images, complex, shape `(*batch, *F, m)`."""
        lines = self.sampled(spectrum).flatten(-len(self.torus))
        return self._on_grid(multiply_lines(self.vh.flatten(0, -3), lines))

    def power_of_outputs(self, outputs: FadedImages) -> Tensor:
        """Compute |uᴴY|², averaged over the batch of outputs on the torus, shape `(*F, m)`."""
        if self.u.shape[-2:] == (1, 1):  # u is a phase
            return self.sampled(outputs.mean_power)[..., None]
        return squared_modulus(self.of_outputs(outputs.spectrum)).mean(0)

    def energy(self, spectrum: Tensor) -> Tensor:
        """Sum |X(θ)|² over the channels of a transform, shape `(*batch, *F)`."""
        return squared_modulus(self.sampled(spectrum)).sum(dim=-len(self.torus) - 1)

    def null_share(self, coefficients: Tensor, spectrum: Tensor, threshold: float) -> float:
        """Compute the share of the energy of images or outputs in modes up to a threshold, or in no mode.

        `coefficients` are those of the spectrum, by `of_inputs` or `of_outputs`.
        """
        squares = torch.where(self.sigma > threshold, squared_modulus(coefficients), 0)
        passed = synchronize.as_number((self.weights[..., None] * squares).sum())
        whole = synchronize.as_number((self.weights * self.energy(spectrum)).sum())
        return max(1 - passed / whole, 0.0) if whole > 0 else 0.0

    def sampled(self, spectrum: Tensor) -> Tensor:
        """Take these frequencies out of those of `torch.fft.rfftn`, shape `(*, *plane)` to `(*, *F)`."""
        for axis, numbers in zip(space_axes(len(self.torus)), self.frequencies, strict=True):
            if len(numbers) < spectrum.shape[axis]:
                spectrum = spectrum.index_select(axis, numbers)
        return spectrum

    def _on_grid(self, lines: Tensor) -> Tensor:
        return lines.movedim(-2, -1).unflatten(-2, self.weights.shape)


def torus_modes(taps: Tensor, torus: Size, *, is_bounded: bool = True) -> TorusModes:
    """Decompose the symbol of a cross-correlation `(C_out, C_in, *k)` on a torus.

    If all frequencies are too much work, a bounded decomposition takes every second, third, ... along an axis.
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


def symbol_at(taps: Tensor, torus: Size, frequencies: Sequence[Tensor]) -> Tensor:
    """Evaluate Σ_d K[d] exp(iθ·d) at numbered frequencies of a torus, complex, `(F1, F2, ..., C_out, C_in)`."""
    tables = phase_tables(taps, torus, frequencies)
    return channels_last(sum_taps(taps.to(tables[0].dtype), tables, first_axis=2)).contiguous()


def mean_gain(taps: Tensor, torus: Size) -> Tensor:
    """Compute |K(θ)|², summed over inputs and averaged over outputs, at the frequencies of `torch.fft.rfftn`."""
    numbers = frequency_numbers(torus, taps.device)
    return squared_modulus(symbol_at(to_float64(taps.detach()), torus, numbers)).sum(dim=-1).mean(dim=-1)


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
    """Space the frequencies along each axis so that the work is bounded."""
    per_block = n_outputs * n_inputs * min(n_outputs, n_inputs)
    cost = 1 if n_outputs == n_inputs == 1 else max(per_block, MIN_BLOCK_OPERATIONS)
    affordable = min(MAX_FREQUENCIES, MAX_BLOCK_OPERATIONS / cost)
    steps = [1] * len(plane)
    while math.prod(counts := [-(-n // step) for n, step in zip(plane, steps, strict=True)]) > max(affordable, 1):
        if max(counts) == 1:
            break
        steps[counts.index(max(counts))] += 1
    return tuple(steps)


@dataclass(frozen=True)
class InverseFilter:
    """The filter σ / (σ² + μ|l|²).

    Attributes:
        weight: μ = λσ²max; 0 for the pseudo-inverse.
        penalty: which L.
        rcond: singular values up to this fraction of the largest count as zero.
    """

    weight: float
    penalty: PenaltyLike
    rcond: float

    def threshold(self, modes: TorusModes) -> float:
        """Singular values up to this one count as zero, in the unit of the taps."""
        return self.rcond * synchronize.as_number(modes.sigma.max())

    def gain(self, modes: TorusModes) -> Tensor:
        """Evaluate the filter along each mode, shape `(*F, m)`.

        It is zero where kernel and penalty both vanish, and for μ = 0 up to the threshold.
        """
        sigma = modes.sigma
        denominator = sigma.square() + self.weight * modes.squared_penalty(self.penalty)
        is_kept = sigma > self.threshold(modes) if self.weight == 0 else denominator > 0
        return torch.where(is_kept, sigma / torch.where(is_kept, denominator, 1), 0)

    def noise_gain(self, modes: TorusModes, noise: Tensor | float = 1.0) -> float:
        """Compute the root mean square of the estimate for noise whose power along each mode is given, `(*F, m)`.

        By default it is white noise of unit variance.
        """
        total = synchronize.as_number((modes.weights[..., None] * noise * self.gain(modes).square()).sum())
        return (total / (modes.vh.shape[-1] * math.prod(modes.torus))) ** 0.5

    def passed(self, modes: TorusModes) -> Tensor:
        """Evaluate f = σ² / (σ² + μ|l|²), the part of each mode of the image that the estimate keeps, `(*F, m)`."""
        return self.gain(modes) * modes.sigma


@dataclass(frozen=True, eq=False)
class ModeBands:
    """The n modes of a kernel on the torus of the data in bands of like σ, and the filter that made an estimate."""

    modes: TorusModes
    inverse: InverseFilter

    @cached_property
    def sigma(self) -> Tensor:
        """Singular values, shape `(n,)`."""
        return self.modes.sigma.flatten()

    @cached_property
    def _rising(self) -> tuple[Tensor, ...]:
        """Numbers of the modes of each band."""
        return self.sigma.argsort().tensor_split(min(N_BANDS, len(self.sigma)))

    @cached_property
    def counts(self) -> list[int]:
        """How many modes each band has."""
        return [len(band) for band in self._rising]

    @cached_property
    def index(self) -> Tensor:
        """The band of each mode, shape `(n,)`."""
        index = torch.empty_like(self.sigma, dtype=torch.int64)
        for number, band in enumerate(self._rising):
            index.index_fill_(0, band, number)
        return index

    @cached_property
    def share(self) -> Tensor:
        """The weight of each mode in the mean over its band, shape `(n,)`."""
        weights = self.modes.weights[..., None].expand_as(self.modes.sigma).flatten()
        return weights / self._sums(weights)[self.index]

    @cached_property
    def _kept(self) -> Tensor:
        return self.inverse.passed(self.modes).flatten()

    @cached_property
    def lost(self) -> Tensor:
        """The part of the power of each mode that stays in the residual, shape `(n,)`."""
        return (1 - self._kept).square()

    @cached_property
    def signal(self) -> list[float]:
        """Mean power in the residual, over each band, of an image whose power is 1 along every mode."""
        return self.mean(self.lost * self.sigma.square())

    @cached_property
    def decided(self) -> Tensor:
        """Numbers of the modes that the data decide, shape `(m,)`."""
        return synchronize.places(self._kept >= self._kept.quantile(1 - DECIDED_SHARE).clamp_max(DECIDED))

    def strength(self, power: Tensor) -> float:
        """Give the median power of an image along the modes that the data decide, from data of `power`, `(n,)`."""
        gain = self.sigma[self.decided].square().clamp_min(torch.finfo(self.sigma.dtype).tiny)
        return synchronize.medians([power[self.decided] / gain])[0]

    def mean(self, values: Tensor) -> list[float]:
        """Average values `(n,)` over each band."""
        return synchronize.as_numbers(self._sums(self.share * values))

    def _sums(self, values: Tensor) -> Tensor:
        return values.new_zeros(len(self.counts)).scatter_add(0, self.index, values)
