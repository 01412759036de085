"""Convolutions of mirrored images with even kernels, diagonal in the cosine transform (DCT-II).

A kernel that is even along every axis blurs an image together with its mirror images, as boundary `symmetric` continues
it, into an image with its mirror images (Ng, Chan and Tang, A fast algorithm for deblurring models with Neumann
boundary conditions, SIAM Journal on Scientific Computing 21, 1999). An image of N pixels has the frequencies πk/N, k =
0, …, N − 1, along each axis: half of those of the torus of 2N pixels that holds all mirror images.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from deconv_cli.operators.axes import space_axes
from deconv_cli.operators.circulant import FrequencyBlocks
from deconv_cli.operators.linear_operator import LinearOperator
from deconv_cli.operators.torus_filter import parts_of


class BlockCosine(LinearOperator):
    """A convolution with even kernels under boundary `symmetric`: real blocks `(*size, C_out, C_in)`."""

    def __init__(self, blocks: Tensor) -> None:
        self.blocks = FrequencyBlocks(blocks)
        size, (n_outputs, n_inputs) = blocks.shape[:-2], blocks.shape[-2:]
        self.input_shape, self.output_shape = (n_inputs, *size), (n_outputs, *size)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x` of shape `(*batch, C_in, *size)`."""
        return self._apply(x, adjoint=False)

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the transpose to `y` of shape `(*batch, C_out, *size)`."""
        return self._apply(y, adjoint=True)

    def _apply(self, x: Tensor, *, adjoint: bool) -> Tensor:
        axes = space_axes(len(self.input_shape) - 1)
        for axis in reversed(axes):
            x = _along(x, axis, _to_cosines)
        x = self.blocks.multiply_once(x, adjoint=adjoint)
        for axis in axes:
            x = _along(x, axis, _from_cosines)
        return x


def _along(x: Tensor, axis: int, transform: Callable[[Tensor], Tensor]) -> Tensor:
    """Transform the lines of `x` along an axis, counted from the end, some at a time, which stay in the cache."""
    lines = x.reshape(-1, x.shape[axis], math.prod(x.shape[axis:][1:]))
    n_lines, length, n_across = lines.shape
    result = torch.empty_like(lines)
    for rows in parts_of(n_lines, length * n_across, x.device):
        for across in parts_of(n_across, length * (rows.stop - rows.start), x.device):
            result[rows, :, across] = transform(lines[rows, :, across])
    return result.reshape(x.shape)


def _to_cosines(lines: Tensor) -> Tensor:
    """Compute Σ x[j] cos(πk(2j + 1)/2N) along the middle of three axes by one FFT of N real numbers.

    Makhoul, A fast cosine transform in one and two dimensions, IEEE Transactions on Acoustics, Speech, and Signal
    Processing 28, 1980.
    """
    n = lines.shape[1]
    spectrum = torch.fft.rfft(lines.index_select(1, _order(n, lines.device)), dim=1).mul_(_turns(n, lines).conj())
    return torch.cat([spectrum.real, spectrum.imag[:, 1 : (n + 1) // 2].flip(1).neg_()], dim=1)


def _from_cosines(values: Tensor) -> Tensor:
    """Undo `_to_cosines`."""
    n = values.shape[1]
    first = values[:, : n // 2 + 1]
    mirrored = torch.cat([torch.zeros_like(values[:, :1]), values[:, n - n // 2 :].flip(1).neg_()], dim=1)
    lines = torch.fft.irfft(torch.complex(first, mirrored).mul_(_turns(n, values)), n=n, dim=1)
    return lines.index_select(1, _order(n, values.device).argsort())


def _order(n: int, device: torch.device) -> Tensor:
    """List the pixels of a line: those of even numbers, and back those of odd ones."""
    numbers = torch.arange(n, device=device)
    return torch.cat([numbers[::2], numbers[1::2].flip(0)])


def _turns(n: int, like: Tensor) -> Tensor:
    """Tabulate exp(iπk/2N) for the frequencies of `torch.fft.rfft`: complex, shape `(N // 2 + 1, 1)`."""
    angle = torch.arange(n // 2 + 1, dtype=like.dtype, device=like.device)[:, None] * (math.pi / (2 * n))
    return torch.polar(torch.ones_like(angle), angle)
