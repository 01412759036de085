"""Sliding a kernel over an image that already has its border: taps in space, or products in frequency."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from deconv_cli.operators.circulant import BlockCirculant, next_fast_size, torus_symbol
from deconv_cli.operators.linear_operator import LinearOperator
from deconv_cli.vocabulary import Size


class ValidCorrelation(LinearOperator):
    """`torch.nn.functional.conv2d` without padding, by whichever of two ways is cheaper here.

    Args:
        kernel: shape `(C_out, C_in, kH, kW)`.
        size: height and width of the image with its border.
        use_fft: choose the way by hand; `None` lets the cost decide.
    """

    def __init__(self, kernel: Tensor, size: Size, *, use_fft: bool | None = None) -> None:
        n_outputs, n_inputs, height, width = kernel.shape
        self.kernel = kernel
        self.input_shape = (n_inputs, *size)
        self.output_shape = (n_outputs, size[0] - height + 1, size[1] - width + 1)
        self.use_fft = prefers_fft(kernel, size) if use_fft is None else use_fft
        self._torus = (next_fast_size(size[0]), next_fast_size(size[1]))
        if not self.use_fft:
            self._transposed = kernel.flip(-2, -1).transpose(0, 1).contiguous()

    @cached_property
    def _circulant(self) -> BlockCirculant:
        """The convolution on a torus, made when it is first used: not every inverse needs it."""
        return BlockCirculant(torus_symbol(self.kernel, self._torus), self._torus)

    def forward(self, x: Tensor) -> Tensor:
        """Correlate `x` of shape `(*batch, C_in, H, W)` with the kernel."""
        if self.use_fft:
            return self._circulant.forward(x)[..., : self.output_shape[1], : self.output_shape[2]]
        return _conv2d(x, self.kernel, (0, 0))

    def adjoint(self, y: Tensor) -> Tensor:
        """Spread `y` of shape `(*batch, C_out, H - kH + 1, W - kW + 1)` by the taps."""
        if self.use_fft:
            return self._circulant.adjoint(y)[..., : self.input_shape[1], : self.input_shape[2]]
        return _conv2d(y, self._transposed, (self.kernel.shape[-2] - 1, self.kernel.shape[-1] - 1))


def prefers_fft(kernel: Tensor, size: Size) -> bool:
    """Decide whether the FFT is cheaper than the taps.

    torch's direct float64 convolution unfolds the image into `kH · kW` copies: its memory decides. In float32 the
    direct way is vectorized, and wins up to about 7 × 7 taps.
    """
    _, n_inputs, height, width = kernel.shape
    taps = height * width
    if kernel.dtype == torch.float64:
        unfolded_bytes = 8 * taps * n_inputs * size[0] * size[1]
        return taps > 25 or unfolded_bytes > 2**28
    return taps > 49


def _conv2d(x: Tensor, kernel: Tensor, padding: Size) -> Tensor:
    batch = x.shape[:-3]
    with full_precision_convolutions(x.device):
        y = functional.conv2d(x.reshape(-1, *x.shape[-3:]), kernel, padding=padding)
    return y.reshape(*batch, *y.shape[-3:])


@contextmanager
def full_precision_convolutions(device: torch.device) -> Iterator[None]:
    """Keep cuDNN from rounding float32 to TF32's ten bits, which no solver can repair."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
