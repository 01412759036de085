"""A convolution whose taps are any function φ(pixel, weight), summed or multiplied over the receptive field."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeAlias

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from deconv_cli.errors import ShapeError, UsageError
from deconv_cli.operators.tap_convolution import Tap
from deconv_cli.vocabulary import is_whole

Pair: TypeAlias = "int | tuple[int, int]"

_CHUNK_BYTES = 64 * 2**20


def multiply(pixel: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """φ = pixel · weight, the ordinary convolution."""
    return pixel * weight


def tangent_of_sum(pixel: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """φ = tan(pixel + weight)."""
    return torch.tan(pixel + weight)


class ReceptiveFieldConv2d(nn.Module):
    """A convolution with taps φ(pixel, weight) instead of pixel · weight.

    `y[b, o, m] = reduce over (c, d) of φ(x[b, c, m·stride + d·dilation − padding], weight[o, c, d]) + bias[o]`, pixels
    outside of `x` being zero. With the default φ and a sum this is `torch.nn.functional.conv2d`.

    Patches are strided views of the input, so the input is never unfolded in memory (padding copies it once). What
    would take more than `chunk_bytes` is computed in pieces, and again in the backward pass, which is autograd's.

    Args:
        in_channels: C, channels of the input.
        out_channels: O, channels of the output.
        kernel_size: height and width of the receptive field, in pixels.
        phi: the tap, a function of tensors that broadcast against each other.
        reduction: `sum` or `product`.
        stride: step of the receptive field, in pixels.
        padding: zeros around the input, in pixels.
        dilation: distance between neighboring taps, in pixels.
        bias: add a learned number to each output channel; it starts at zero.
        chunk_bytes: memory that the taps of one piece may take.

    Shape:
        Input `(B, C, H, W)` or `(C, H, W)`, output `(B, O, H', W')` or `(O, H', W')` as of `conv2d`; weight
        `(O, C, kH, kW)`.

    Raises:
        UsageError: a setting that cannot be.
        ShapeError: an input of another shape, when called.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        *,
        phi: Tap = multiply,
        reduction: str = "sum",
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        bias: bool = False,
        chunk_bytes: int = _CHUNK_BYTES,
    ) -> None:
        super().__init__()
        self.kernel_size = _pair(kernel_size, "kernel_size", 1)
        self.stride = _pair(stride, "stride", 1)
        self.padding = _pair(padding, "padding", 0)
        self.dilation = _pair(dilation, "dilation", 1)
        if reduction not in ("sum", "product"):
            raise UsageError(f"reduction must be sum or product, but is '{reduction}'.")
        for name, count in (("in_channels", in_channels), ("out_channels", out_channels)):
            if not is_whole(count) or count < 1:
                raise UsageError(f"{name} must be a whole number from 1 on, but is {count!r}.")
        if not isinstance(chunk_bytes, int | float) or chunk_bytes < 1:
            raise UsageError(f"chunk_bytes must be a number of bytes from 1 on, but is {chunk_bytes!r}.")
        if not callable(phi):
            raise UsageError(f"phi must be a function of pixels and weights, but is {phi!r}.")
        self.phi = phi
        self.reduction = reduction
        self.chunk_bytes = chunk_bytes
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *self.kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        bound = 1 / math.sqrt(in_channels * self.kernel_size[0] * self.kernel_size[1])
        nn.init.uniform_(self.weight, -bound, bound)

    def extra_repr(self) -> str:
        """Describe the settings."""
        name = getattr(self.phi, "__name__", type(self.phi).__name__)
        settings = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, {settings}, phi={name}, reduction={self.reduction}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the taps.

        Raises:
            ShapeError: not `(B, C, H, W)` or `(C, H, W)` with the right C, or smaller than the receptive field.
        """
        n_channels = self.weight.shape[1]
        if x.ndim not in (3, 4) or x.shape[-3] != n_channels:
            raise ShapeError(
                f"the input should be of shape (B, {n_channels}, H, W) or ({n_channels}, H, W), but is "
                f"{tuple(x.shape)}."
            )
        batch = x if x.ndim == 4 else x.unsqueeze(0)
        if self.phi is multiply and self.reduction == "sum":
            result = functional.conv2d(batch, self.weight, self.bias, self.stride, self.padding, self.dilation)
            return result if x.ndim == 4 else result.squeeze(0)
        padded = functional.pad(batch, (self.padding[1],) * 2 + (self.padding[0],) * 2) if any(self.padding) else batch
        result = self._in_pieces(padded)
        if self.bias is not None:
            result = result + self.bias[:, None, None]
        return result if x.ndim == 4 else result.squeeze(0)

    def patches(self, padded: torch.Tensor) -> torch.Tensor:
        """View every receptive field of a padded input `(B, C, H, W)` as `(B, H', W', C, kH, kW)`, without a copy."""
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        if padded.shape[-2] < reach[0] or padded.shape[-1] < reach[1]:
            raise ShapeError(
                f"the receptive field of {reach[0]} × {reach[1]} pixels does not fit into {padded.shape[-2]} × "
                f"{padded.shape[-1]} with its padding; pad the input."
            )
        view = padded.unfold(2, reach[0], self.stride[0]).unfold(3, reach[1], self.stride[1])
        view = view[..., :: self.dilation[0], :: self.dilation[1]]
        return view.permute(0, 2, 3, 1, 4, 5)

    def _in_pieces(self, padded: torch.Tensor) -> torch.Tensor:
        """Cut rows and output channels so that the taps of a piece stay within `chunk_bytes`."""
        patches, n_outputs = self.patches(padded), self.weight.shape[0]
        per_row = patches[:, :1].numel() * patches.element_size()
        channels = max(1, min(n_outputs, self.chunk_bytes // max(per_row, 1)))
        n_rows = max(1, min(patches.shape[1], self.chunk_bytes // max(per_row * channels, 1)))

        def reduce_piece(padded: torch.Tensor, weight: torch.Tensor, row: int) -> torch.Tensor:
            pixels = self.patches(padded)[:, row : row + n_rows].unsqueeze(1)
            taps = self.phi(pixels, weight[None, :, None, None]).flatten(-3)  # (B, o, h, W', C·kH·kW)
            return taps.sum(-1) if self.reduction == "sum" else taps.prod(-1)

        if n_rows == patches.shape[1] and channels == n_outputs:
            return reduce_piece(padded, self.weight, 0)
        # Each piece is computed again in the backward pass, so that only one has to be held at a time.
        done = [
            [checkpoint(reduce_piece, padded, part, row, use_reentrant=False) for part in self.weight.split(channels)]
            for row in range(0, patches.shape[1], n_rows)
        ]
        return torch.cat([torch.cat(of_row, 1) for of_row in done], 2)


def _pair(value: Pair, name: str, least: int) -> tuple[int, int]:
    found = tuple(value) if isinstance(value, Iterable) else (value, value)
    if len(found) != 2 or not all(is_whole(n) and n >= least for n in found):
        raise UsageError(f"{name} must be one or two whole numbers from {least}, but is {value!r}.")
    return int(found[0]), int(found[1])
