"""Sliding a kernel over an image that already has its border: taps in space, or products in frequency."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from deconv_cli.operators.circulant import BlockCirculant, next_fast_size, torus_symbol
from deconv_cli.operators.linear_operator import LinearOperator
from deconv_cli.vocabulary import Size

CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
"""torch's own convolutions, by the number of axes; beyond these there is the FFT alone."""

# Measured from 1 to 32 channels: below it the taps took 0.2 to 1.9 times as long as the FFT, above it 2 to 11 times.
MAX_UNFOLDED_BYTES = 2**24


class ValidCorrelation(LinearOperator):
    """`torch.nn.functional.conv2d` without padding, and its like for other numbers of axes, the cheaper of two ways.

    Args:
        kernel: shape `(C_out, C_in, *k)`.
        size: pixels of the image with its border.
        use_fft: choose the way by hand; `None` lets the cost decide.
    """

    def __init__(self, kernel: Tensor, size: Size, *, use_fft: bool | None = None) -> None:
        n_outputs, n_inputs, *taps = kernel.shape
        self.kernel = kernel
        self.input_shape = (n_inputs, *size)
        self.output_shape = (n_outputs, *(n - k + 1 for n, k in zip(size, taps, strict=True)))
        self.use_fft = prefers_fft(kernel, size) if use_fft is None else use_fft
        self._torus = tuple(next_fast_size(n) for n in size)
        self._start = (0,) * len(size)
        if not self.use_fft:
            self._transposed = kernel.flip(tuple(range(2, kernel.ndim))).transpose(0, 1).contiguous()

    @cached_property
    def _circulant(self) -> BlockCirculant:
        """The convolution on a torus, made when it is first used: not every inverse needs it."""
        return BlockCirculant(torus_symbol(self.kernel, self._torus), self._torus)

    def forward(self, x: Tensor) -> Tensor:
        """Correlate `x` of shape `(*batch, C_in, *size)` with the kernel."""
        if self.use_fft:
            return self._circulant.forward(x, self.output_shape[1:])
        return _slide(x, self.kernel, self._start)

    def adjoint(self, y: Tensor) -> Tensor:
        """Spread `y` of shape `(*batch, C_out, *(size - k + 1))` by the taps."""
        if self.use_fft:
            return self._circulant.adjoint(y, self.input_shape[1:])
        return _slide(y, self._transposed, tuple(k - 1 for k in self.kernel.shape[2:]))

    def forward_parts(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Correlate `x`, some planes at a time; see `LinearOperator.forward_parts`."""
        if self.use_fft:
            return self._circulant.forward_parts(x, self.output_shape[1:])
        return super().forward_parts(x)

    def adjoint_parts(self, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Spread `y` in the same way."""
        if self.use_fft:
            return self._circulant.adjoint_parts(y, self.input_shape[1:])
        return super().adjoint_parts(y)


def prefers_fft(kernel: Tensor, size: Size) -> bool:
    """Decide whether the FFT is cheaper than the taps.

    torch's direct float64 convolution unfolds the image into as many copies as there are taps: it wins while they stay
    in the cache. In float32 the direct way is vectorized, and wins up to about 7 × 7 taps.

    Args:
        kernel: shape `(C_out, C_in, *k)`.
        size: pixels of the image with its border.
    """
    n_taps = math.prod(kernel.shape[2:])
    if len(size) not in CONVOLUTIONS:
        return True
    if kernel.dtype == torch.float64:
        unfolded_bytes = 8 * n_taps * max(kernel.shape[:2]) * math.prod(size)
        return n_taps > 25 or unfolded_bytes > MAX_UNFOLDED_BYTES
    return n_taps > 49


def _slide(x: Tensor, kernel: Tensor, padding: Size) -> Tensor:
    """Slide taps `(C_out, C_in, *k)` over `x` of shape `(*batch, C_in, *size)`, with zeros added on every side."""
    n_axes = len(padding)
    batch = x.shape[: -n_axes - 1]
    with full_precision_convolutions(x.device):
        y = CONVOLUTIONS[n_axes](x.reshape(-1, *x.shape[-n_axes - 1 :]), kernel, padding=padding)
    return y.reshape(*batch, *y.shape[1:])


@contextmanager
def full_precision_convolutions(device: torch.device) -> Iterator[None]:
    """Keep cuDNN from rounding float32 to TF32's ten bits, which no solver can repair."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
