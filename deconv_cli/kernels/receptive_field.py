"""A convolution whose taps are any function φ(pixel, weight), summed or multiplied over the receptive field."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from deconv_cli.errors import ShapeError, UsageError
from deconv_cli.operators.tap_convolution import Tap
from deconv_cli.vocabulary import is_whole

Slopes: TypeAlias = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""∂φ/∂pixel and ∂φ/∂weight, each of the shape of φ or one that broadcasts to it."""

Pair: TypeAlias = "int | tuple[int, int]"

_CHUNK_BYTES = 64 * 2**20
_POLE = 1e3
"""A tap larger than this multiple of the median is close to a pole."""


_SMALL_STEP = 1e-4
_STEEP = 0.05
"""A tap of 1000 beside a simple pole changes by a tenth under that step of its pixel, exp(88) by a hundredth."""


class PoleWarning(UserWarning):
    """φ is near a pole: its values, and more so its slopes, are no longer to be trusted."""


def multiply(pixel: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """φ = pixel · weight, the ordinary convolution."""
    return pixel * weight


def tangent_of_sum(pixel: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """φ = tan(pixel + weight)."""
    return torch.tan(pixel + weight)


def _slopes_of_multiply(pixel: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return weight, pixel


def _slopes_of_tangent(pixel: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    slope = 1 + torch.tan(pixel + weight).square()
    return slope, slope


_KNOWN_SLOPES: dict[Tap, Slopes] = {multiply: _slopes_of_multiply, tangent_of_sum: _slopes_of_tangent}


class ReceptiveFieldConv2d(nn.Module):
    """A convolution with taps φ(pixel, weight) instead of pixel · weight.

    `y[b, o, m] = reduce over (c, d) of φ(x[b, c, m·stride + d·dilation − padding], weight[o, c, d]) + bias[o]`, pixels
    outside of `x` being zero. With the default φ and a sum this is `torch.nn.functional.conv2d`.

    Patches are strided views of the input, so that the input is never unfolded in memory (padding copies it once), and
    what would take more than `chunk_bytes` is computed in pieces, forward and backward.

    Args:
        in_channels: C, channels of the input.
        out_channels: O, channels of the output.
        kernel_size: height and width of the receptive field, in pixels.
        phi: the tap, a function of tensors that broadcast against each other. For `multiply` and `tangent_of_sum` the
            slopes are known.
        slopes: ∂φ/∂pixel and ∂φ/∂weight for another φ. With slopes the backward pass is analytic; it can be
            differentiated once. Without them it is left to autograd, which can be differentiated as often as φ can.
        reduction: `sum` or `product`.
        stride: step of the receptive field, in pixels.
        padding: zeros around the input, in pixels.
        dilation: distance between neighboring taps, in pixels.
        bias: add a learned number to each output channel; it starts at zero.
        analytic: False leaves the backward pass to autograd although the slopes are known.
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
        slopes: Slopes | None = None,
        reduction: str = "sum",
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        bias: bool = False,
        analytic: bool = True,
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
        for name, function in (("phi", phi), ("slopes", slopes)):
            if not (callable(function) or (function is None and name == "slopes")):
                raise UsageError(f"{name} must be a function of pixels and weights, but is {function!r}.")
        self.phi = phi
        self.reduction = reduction
        self.slopes = (slopes or _KNOWN_SLOPES.get(phi)) if analytic else None
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
        if self.phi is multiply and self.reduction == "sum" and self.slopes is not None:
            result = functional.conv2d(batch, self.weight, self.bias, self.stride, self.padding, self.dilation)
            return result if x.ndim == 4 else result.squeeze(0)
        padded = functional.pad(batch, (self.padding[1],) * 2 + (self.padding[0],) * 2) if any(self.padding) else batch
        self._check_size(padded)
        apply: Any = _Analytic.apply
        result = apply(padded, self.weight, self) if self.slopes is not None else self._by_autograd(padded)
        if self.bias is not None:
            result = result + self.bias[:, None, None]
        return result if x.ndim == 4 else result.squeeze(0)

    def _check_size(self, padded: torch.Tensor) -> None:
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        if padded.shape[-2] < reach[0] or padded.shape[-1] < reach[1]:
            raise ShapeError(
                f"the receptive field of {reach[0]} × {reach[1]} pixels does not fit into {padded.shape[-2]} × "
                f"{padded.shape[-1]} with its padding; pad the input."
            )

    def patches(self, padded: torch.Tensor) -> torch.Tensor:
        """View every receptive field of a padded input `(B, C, H, W)` as `(B, H', W', C, kH, kW)`, without a copy."""
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        view = padded.unfold(2, reach[0], self.stride[0]).unfold(3, reach[1], self.stride[1])
        view = view[..., :: self.dilation[0], :: self.dilation[1]]
        return view.permute(0, 2, 3, 1, 4, 5)

    def pieces(self, patches: torch.Tensor) -> Iterator[tuple[slice, slice]]:
        """Cut rows and output channels so that the taps of a piece stay within `chunk_bytes`."""
        n_outputs = self.weight.shape[0]
        per_row = patches[:, :1].numel() * patches.element_size()
        channels = max(1, min(n_outputs, self.chunk_bytes // max(per_row, 1)))
        rows = max(1, min(patches.shape[1], self.chunk_bytes // max(per_row * channels, 1)))
        for row in range(0, patches.shape[1], rows):
            for channel in range(0, n_outputs, channels):
                yield slice(row, row + rows), slice(channel, channel + channels)

    def taps(self, patches: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Compute φ: patches `(B, h, W', C, kH, kW)` and weight `(o, C, kH, kW)` give `(B, o, h, W', C·kH·kW)`."""
        return self.phi(patches.unsqueeze(1), weight[None, :, None, None]).flatten(-3)

    def reduced(self, taps: torch.Tensor) -> torch.Tensor:
        """Add up or multiply the taps of each receptive field."""
        return taps.sum(-1) if self.reduction == "sum" else taps.prod(-1)

    def _by_autograd(self, padded: torch.Tensor) -> torch.Tensor:
        patches = self.patches(padded)
        pieces = list(self.pieces(patches))

        def piece(padded: torch.Tensor, weight: torch.Tensor, rows: slice, channels: slice) -> torch.Tensor:
            patches = self.patches(padded)
            taps = self.taps(patches[:, rows], weight[channels])
            self.warn_of_poles(taps, patches[:, rows], weight[channels])
            return self.reduced(taps)

        if len(pieces) == 1:
            return piece(padded, self.weight, *pieces[0])
        # Each piece is computed again in the backward pass, so that only one has to be held at a time.
        done = [
            checkpoint(piece, padded, self.weight, rows, channels, use_reentrant=False) for rows, channels in pieces
        ]
        return _joined(done, pieces)

    def warn_of_poles(self, taps: torch.Tensor, patches: torch.Tensor, weight: torch.Tensor) -> None:
        """Warn where taps grow as they do near a pole; the ordinary convolution has none.

        Args:
            taps: φ of the patches and the weight.
            patches: shape `(B, h, W', C, kH, kW)`.
            weight: shape `(o, C, kH, kW)`.
        """
        if self.phi is multiply or not taps.numel():
            return
        with torch.no_grad():
            sizes = taps.abs()
            largest, middle = float(sizes.max()), float(sizes.flatten()[: 2**16].median())
            is_near = ~(sizes <= _POLE * max(middle, 1.0))
            if middle > _POLE or not math.isfinite(middle):
                # Most taps are large: near a pole they change with every small step, elsewhere they do not.
                step = _SMALL_STEP * patches.abs().clamp_min(1.0)
                change = (self.taps(patches + step, weight) - taps).abs()
                is_near = is_near | ((sizes > _POLE) & ~(change <= _STEEP * sizes))
            n_near = int(is_near.sum())
        if n_near:
            warnings.warn(
                f"{n_near} of {taps.numel()} taps are near a pole of φ: the largest is {largest:.3g}, the median "
                f"{middle:.3g}; gradients there are far larger still. Keep pixel and weight away from it.",
                PoleWarning,
                stacklevel=3,
            )


class _Analytic(torch.autograd.Function):
    """Forward in pieces, and a backward pass by the slopes of φ."""

    @staticmethod
    def forward(ctx: Any, padded: torch.Tensor, weight: torch.Tensor, layer: ReceptiveFieldConv2d) -> torch.Tensor:  # noqa: ANN401
        """Compute the output piece by piece."""
        patches = layer.patches(padded)
        pieces = list(layer.pieces(patches))
        done = []
        for rows, channels in pieces:
            taps = layer.taps(patches[:, rows], weight[channels])
            layer.warn_of_poles(taps, patches[:, rows], weight[channels])
            done.append(layer.reduced(taps))
        ctx.save_for_backward(padded, weight)
        ctx.layer, ctx.pieces = layer, pieces
        return _joined(done, pieces)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:  # noqa: ANN401
        """Compute ∂loss/∂padded and ∂loss/∂weight piece by piece."""
        padded, weight = ctx.saved_tensors
        layer: ReceptiveFieldConv2d = ctx.layer
        assert layer.slopes is not None
        patches = layer.patches(padded)
        grad_padded, grad_weight = torch.zeros_like(padded), torch.zeros_like(weight)
        for rows, channels in ctx.pieces:
            pixel, kernel = patches[:, rows].unsqueeze(1), weight[channels][None, :, None, None]
            by_pixel, by_weight = layer.slopes(pixel, kernel)
            inner = grad[:, channels, rows][..., None, None, None]
            if layer.reduction == "product":
                taps = layer.taps(patches[:, rows], weight[channels])
                inner = inner * _product_of_the_others(taps).unflatten(-1, weight.shape[1:])
            if ctx.needs_input_grad[1]:
                grad_weight[channels] += (inner * by_weight).sum((0, 2, 3))
            if ctx.needs_input_grad[0]:
                _spread(grad_padded, (inner * by_pixel).sum(1), rows, layer)
        return (
            grad_padded if ctx.needs_input_grad[0] else None,
            grad_weight if ctx.needs_input_grad[1] else None,
            None,
        )


def _spread(target: torch.Tensor, inner: torch.Tensor, rows: slice, layer: ReceptiveFieldConv2d) -> None:
    """Add gradients of patches, `(B, h, W', C, kH, kW)`, to the pixels that they were views of."""
    n_rows, n_columns = inner.shape[1:3]
    for i in range(layer.kernel_size[0]):
        top = rows.start * layer.stride[0] + i * layer.dilation[0]
        for j in range(layer.kernel_size[1]):
            left = j * layer.dilation[1]
            region = target[
                :,
                :,
                top : top + (n_rows - 1) * layer.stride[0] + 1 : layer.stride[0],
                left : left + (n_columns - 1) * layer.stride[1] + 1 : layer.stride[1],
            ]
            region += inner[..., i, j].permute(0, 3, 1, 2)


def _joined(done: list[torch.Tensor], pieces: list[tuple[slice, slice]]) -> torch.Tensor:
    """Put pieces `(B, o, h, W')` together, rows outermost."""
    by_row: dict[int, list[torch.Tensor]] = {}
    for piece, (rows, _) in zip(done, pieces, strict=True):
        by_row.setdefault(rows.start, []).append(piece)
    return torch.cat([torch.cat(channels, 1) for channels in by_row.values()], 2)


def _pair(value: Pair, name: str, least: int) -> tuple[int, int]:
    found = tuple(value) if isinstance(value, Iterable) else (value, value)
    if len(found) != 2 or not all(is_whole(n) and n >= least for n in found):
        raise UsageError(f"{name} must be one or two whole numbers from {least}, but is {value!r}.")
    return int(found[0]), int(found[1])


def _product_of_the_others(taps: torch.Tensor) -> torch.Tensor:
    """Multiply, for each tap, all others along the last axis; by running products, since a tap may be zero."""
    ones = torch.ones_like(taps[..., :1])
    before = torch.cat([ones, taps[..., :-1]], -1).cumprod(-1)
    after = torch.cat([ones, taps[..., 1:].flip(-1)], -1).cumprod(-1).flip(-1)
    return before * after
