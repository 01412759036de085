"""The modes of a convolution on a torus: its singular vectors, frequency by frequency.

At the frequency θ the block K(θ) = U S Vᴴ (`C_out × C_in`) sends the wave of amplitude v_j to that of amplitude u_j,
σ_j times as strong. Sedghi, Gupta and Long, The Singular Values of Convolutional Layers, 2019, section 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.operators.circulant import phases, to_float64
from deconv_cli.operators.spectrum import single_threaded, singular_values
from deconv_cli.regularizers import find_penalty
from deconv_cli.vocabulary import Size

# Bounds on the work of one decomposition: frequencies, and frequencies times the cost of one block.
MAX_FREQUENCIES = 2**18
MAX_BLOCK_OPERATIONS = 1e8
# A LAPACK call on a tiny block costs about as much as one on an 8 × 8 block.
MIN_BLOCK_OPERATIONS = 512


@dataclass(frozen=True, eq=False)
class TorusModes:
    """Singular vectors and values at a sample of the frequencies of `torch.fft.rfft2`, the same steps apart.

    With m = min(C_out, C_in) modes at each of R × C frequencies:

    Attributes:
        torus: `(N1, N2)`.
        rows: numbers of the frequencies along the rows, shape `(R,)`.
        columns: numbers of those along the columns, at most N2 / 2, shape `(C,)`.
        weights: how many frequencies of the whole torus each one stands for, shape `(R, C)`.
        u: complex, shape `(R, C, C_out, m)`.
        sigma: descending, shape `(R, C, m)`.
        vh: complex, shape `(R, C, m, C_in)`.
    """

    torus: Size
    rows: Tensor
    columns: Tensor
    weights: Tensor
    u: Tensor
    sigma: Tensor
    vh: Tensor

    @property
    def is_complete(self) -> bool:
        """Whether every frequency of the torus is there, or its mirror image."""
        return len(self.rows) == self.torus[0] and len(self.columns) == self.torus[1] // 2 + 1

    def squared_penalty(self, penalty: str) -> Tensor:
        """Evaluate |l(θ)|², shape `(R, C, 1)`."""
        whole = find_penalty(penalty).symbol(self.torus, self.sigma.dtype, self.sigma.device)
        return whole[self.rows][:, self.columns][..., None]

    def of_outputs(self, images: Tensor) -> Tensor:
        """Compute uᴴY of unitary transforms of outputs: white noise of unit variance gives mean squares of one.

        Args:
            images: shape `(*batch, C_out, N1, N2)`.

        Returns:
            Complex, shape `(*batch, R, C, m)`.
        """
        return (self.u.mH @ self._transformed(images)).squeeze(-1)

    def of_inputs(self, images: Tensor) -> Tensor:
        """Compute vᴴX of unitary transforms of images `(*batch, C_in, N1, N2)`, shape `(*batch, R, C, m)`."""
        return (self.vh @ self._transformed(images)).squeeze(-1)

    def energy(self, images: Tensor) -> Tensor:
        """Sum up |X(θ)|² over channels, shape `(*batch, R, C)`."""
        return torch.view_as_real(self._transformed(images)).square().sum(dim=(-3, -2, -1))

    def _transformed(self, images: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(images.to(self.sigma.dtype), norm="ortho")
        sampled = spectrum[..., self.rows, :][..., self.columns]
        return sampled.movedim(-3, -1)[..., None]


def torus_modes(taps: Tensor, torus: Size) -> TorusModes:
    """Decompose the symbol of a cross-correlation on a torus.

    Where the frequencies are more than the work allows, every second, third, ... along either axis is taken.

    Args:
        taps: shape `(C_out, C_in, kH, kW)`.
        torus: `(N1, N2)`.
    """
    wide = to_float64(taps.detach())
    n_columns = torus[1] // 2 + 1
    steps = _steps((torus[0], n_columns), *wide.shape[:2])
    rows = torch.arange(0, torus[0], steps[0], device=wide.device)
    columns = torch.arange(0, n_columns, steps[1], device=wide.device)
    symbol = symbol_at(wide, torus, rows, columns)
    u, sigma, vh = _decompose(symbol)
    is_single = (columns == 0) | (2 * columns == torus[1])
    multiplicity = torch.where(is_single, 1.0, 2.0).to(sigma.dtype)
    weights = multiplicity.expand(len(rows), len(columns))
    return TorusModes(torus, rows, columns, weights * (math.prod(torus) / weights.sum()), u, sigma, vh)


def symbol_at(taps: Tensor, torus: Size, rows: Tensor, columns: Tensor) -> Tensor:
    """Evaluate Σ_d K[d] exp(iθ·d) at some rows `(R,)` and columns `(C,)` of a torus, `(R, C, C_out, C_in)`."""
    down = phases(rows, torus[0], taps.shape[-2], taps)
    across = phases(columns, torus[1], taps.shape[-1], taps)
    return (down @ taps.to(down.dtype) @ across.T).permute(2, 3, 0, 1).contiguous()


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
    """Find how far apart the frequencies must be, along rows and columns, for the work to be bounded."""
    per_block = n_outputs * n_inputs * min(n_outputs, n_inputs)
    cost = 1 if n_outputs == n_inputs == 1 else max(per_block, MIN_BLOCK_OPERATIONS)
    affordable = min(MAX_FREQUENCIES, MAX_BLOCK_OPERATIONS / cost)
    steps = [1, 1]
    while math.prod(counts := [-(-n // step) for n, step in zip(plane, steps, strict=True)]) > max(affordable, 1):
        if max(counts) == 1:
            break
        steps[counts.index(max(counts))] += 1
    return steps[0], steps[1]
