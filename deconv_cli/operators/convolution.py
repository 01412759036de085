"""The convolution that this package inverts: a boundary rule, then sliding taps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from deconv_cli.errors import MalformedInputError, ShapeError, UsageError
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import crop, masked, space_axes
from deconv_cli.operators.boundary_rules import CIRCULAR, BoundaryRule, WrappedBoundary, as_rule
from deconv_cli.operators.circulant import BlockCirculant, next_fast_size, to_float64, torus_symbol
from deconv_cli.operators.extension import Extension
from deconv_cli.operators.geometry import Geometry, Padding, Pads
from deconv_cli.operators.linear_operator import Identity, LinearOperator
from deconv_cli.operators.spectrum import Spectrum, kernel_spectrum
from deconv_cli.vocabulary import Size

CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
"""torch's own convolutions, by the number of axes; beyond these there is the FFT alone."""

# torch's direct convolution in double precision copies the image once for each tap. Copies of this size stay in the
# cache: one channel of 2048 × 2048 pixels and nine taps take half the time of all rows at once.
MAX_UNFOLDED_BYTES = 2**21
# Up to so many taps that takes 0.3 to 0.7 times as long as the FFT, measured from 1 to 128 channels; up to the second
# number with few channels.
MAX_TAPS, MAX_TAPS_OF_FEW, FEW_CHANNELS = 16, 25, 4
# Outputs that fill a smaller part of the torus are transformed by parts: half of it in half the time and memory.
MAX_PART_AS_WHOLE = 0.75


class ValidCorrelation(LinearOperator):
    """`torch.nn.functional.conv2d` without padding, in any number of dimensions, by the taps or by the FFT.

    Args:
        kernel: shape `(C_out, C_in, *k)`.
        size: pixels of the image with its border.
        use_fft: which way; `None` takes the cheaper one.
    """

    def __init__(self, kernel: Tensor, size: Size, *, use_fft: bool | None = None) -> None:
        n_outputs, n_inputs, *taps = kernel.shape
        self.kernel = kernel
        self.input_shape = (n_inputs, *size)
        self.output_shape = (n_outputs, *(n - k + 1 for n, k in zip(size, taps, strict=True)))
        self.use_fft = prefers_fft(kernel) if use_fft is None else use_fft
        self._by_parts = _goes_by_parts(self.output_shape, size)
        self._torus = tuple(next_fast_size(n, by_parts=self._by_parts) for n in size)
        self._start = (0,) * len(size)
        if not self.use_fft:
            self._transposed = kernel.flip(tuple(range(2, kernel.ndim))).transpose(0, 1).contiguous()

    @cached_property
    def circulant(self) -> BlockCirculant:
        """The convolution on a torus, made at its first use: not every inverse needs it."""
        symbol = torus_symbol(self.kernel, self._torus, self._start)
        return BlockCirculant(symbol, self._torus, by_parts=self._by_parts)

    def forward(self, x: Tensor) -> Tensor:
        """Correlate `x` of shape `(*batch, C_in, *size)` with the kernel."""
        if self.use_fft:
            return self.circulant.forward(x, self.output_shape[1:])
        return _slide(x, self.kernel, self._start)

    def adjoint(self, y: Tensor) -> Tensor:
        """Spread `y` of shape `(*batch, C_out, *(size - k + 1))` by the taps."""
        if self.use_fft:
            return self.circulant.adjoint(y, self.input_shape[1:])
        return _slide(y, self._transposed, tuple(k - 1 for k in self.kernel.shape[2:]))

    def forward_parts(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Correlate `x`, some planes at a time; see `LinearOperator.forward_parts`."""
        if self.use_fft:
            return self.circulant.forward_parts(x, self.output_shape[1:])
        return super().forward_parts(x)

    def adjoint_parts(self, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Spread `y` in the same way."""
        if self.use_fft:
            return self.circulant.adjoint_parts(y, self.input_shape[1:])
        return super().adjoint_parts(y)


class TorusCorrelation(ValidCorrelation):
    """A correlation by the FFT that needs no border, because the torus holds what lies outside; see `shared_torus`."""

    def __init__(self, kernel: Tensor, geometry: Geometry, torus: Size) -> None:
        self.kernel, self.use_fft = kernel, True
        self.input_shape = (kernel.shape[1], *geometry.image_size)
        self.output_shape = (kernel.shape[0], *geometry.output_size)
        self._torus, self._start = torus, geometry.pads.before
        self._by_parts = _goes_by_parts(self.output_shape, torus)


def _goes_by_parts(output_shape: tuple[int, ...], size: Size) -> bool:
    """Return whether transforms go by parts: where much of their first axis is not wanted."""
    return len(size) > 1 and output_shape[1] < MAX_PART_AS_WHOLE * size[0]


def shared_torus(geometry: Geometry, boundary: BoundaryRule) -> Size | None:
    """Find a torus smaller than an image with its border: zeros serve both ends, and periodic images need none.

    `None` if other pixels lie outside, or if a periodic image has no fast size.
    """
    torus, pads = [], geometry.pads
    sides = zip(geometry.image_size, geometry.output_size, pads.before, pads.after, strict=True)
    for axis, (n, n_outputs, before, after) in enumerate(sides):
        rule = boundary.along(axis)
        if rule.is_zero:
            torus.append(next_fast_size(max(n + max(before, after), n_outputs)))
        elif rule.is_periodic and n_outputs <= n == next_fast_size(n):
            torus.append(n)
        else:
            return None
    return tuple(torus)


def prefers_fft(kernel: Tensor) -> bool:
    """Return whether the FFT is cheaper than the taps `(C_out, C_in, *k)`.

    In float32 the direct way is vectorized, and wins up to about 7 × 7 taps.
    """
    n_taps = math.prod(kernel.shape[2:])
    if kernel.ndim - 2 not in CONVOLUTIONS:
        return True
    if kernel.dtype == torch.float64:
        return n_taps > (MAX_TAPS_OF_FEW if max(kernel.shape[:2]) <= FEW_CHANNELS else MAX_TAPS)
    return n_taps > 49


def unfolds_by_parts(x: Tensor) -> bool:
    """Return whether a direct convolution of such an image goes by parts: if torch would copy it for each tap."""
    return x.dtype == torch.float64 and x.device.type == "cpu"


def _slide(x: Tensor, kernel: Tensor, padding: Size) -> Tensor:
    """Slide taps `(C_out, C_in, *k)` over `x` of shape `(*batch, C_in, *size)`, with zeros added on every side."""
    n_axes = len(padding)
    batch = x.shape[: -n_axes - 1]
    images, convolve = x.reshape(-1, *x.shape[-n_axes - 1 :]), CONVOLUTIONS[n_axes]
    with full_precision_convolutions(x.device):
        if not unfolds_by_parts(x):
            y = convolve(images, kernel, padding=padding)
        else:
            margins = [n for n in reversed(padding) for _ in range(2)]
            padded = functional.pad(images, margins) if any(padding) else images
            n_more, n_bytes = kernel.shape[2] - 1, math.prod((8, *kernel.shape[1:], *padded.shape[3:]))
            n_planes = max(1, MAX_UNFOLDED_BYTES // n_bytes)
            starts = range(0, padded.shape[2] - n_more, n_planes)
            y = torch.cat([convolve(padded[:, :, i : i + n_planes + n_more], kernel) for i in starts], dim=2)
    return y.reshape(*batch, *y.shape[1:])


@contextmanager
def full_precision_convolutions(device: torch.device) -> Iterator[None]:
    """Keep cuDNN from rounding float32 to TF32's ten bits, which no solver can repair."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


class HasTaps(Protocol):
    """A kernel in canonical form."""

    @property
    def taps(self) -> Tensor:
        """The taps, shape `(C_out, C_in, *k)`."""


class Convolution(LinearOperator):
    """`y = conv(extend(x), K)` with stride 1: multi-channel, in any number of dimensions, under its real boundary.

    It takes `(*batch, C_in, *image_size)` to `(*batch, C_out, *output_size)`. With the boundary `unknown` nothing is
    copied: the operator's input is the extended image itself, and the frame is a part of it (`crop_to_frame`).

    Args:
        kernel: taps of a cross-correlation as in `torch.nn.functional.conv2d`, shape `(C_out, C_in, *k)`, or `(*k,)`
            for images of one channel; or a `Kernel`.
        image_size: pixels of the image along each axis.
        padding: `same`, `valid`, `full`, a whole number, one for each axis, or `Pads`.
        boundary: the rule for pixels outside the image, or its name.

    Attributes:
        kernel: the taps, shape `(C_out, C_in, *k)`.
        geometry: the sizes.
        boundary: the rule.
        extension: the rule as an operator.
        correlation: what follows it, or replaces both where a torus holds what lies outside.
        is_varying: whether the kernel varies over the frame, and `kernel` is only one of several.
        is_layer: whether it has a stride, a dilation or groups, or is transposed.

    Raises:
        ShapeError: the kernel does not fit the image, or reaches too far outside it.
        UsageError: no such padding or boundary is known, or the kernel is no real tensor.
        MalformedInputError: the kernel is empty, or holds NaN or infinite values.
    """

    is_varying = False
    is_layer = False

    def __init__(
        self,
        kernel: Tensor | HasTaps,
        image_size: Size,
        *,
        padding: Padding = "same",
        boundary: str | BoundaryRule = "zero",
    ) -> None:
        if getattr(kernel, "is_varying", False):
            raise UsageError(
                "a kernel that varies over the frame is not a single convolution; build "
                "VaryingConvolution(field.taps, field.rows, field.columns, image_size)."
            )
        taps = _canonical_taps(getattr(kernel, "taps", kernel), _check_size(image_size))
        self.kernel, self.dtype, self.device = taps, taps.dtype, taps.device
        self.geometry = Geometry.of_image(tuple(image_size), tuple(taps.shape[2:]), padding)
        self.boundary = as_rule(boundary)
        self.extension = self._border = extension_of(self.geometry, taps.shape[1], self.boundary)
        self.input_shape = self.extension.input_shape
        torus = shared_torus(self.geometry, self.boundary) if prefers_fft(taps) else None
        if torus is None:
            self.correlation: LinearOperator = ValidCorrelation(taps, self.geometry.extended_size)
        else:
            self.correlation, self._border = TorusCorrelation(taps, self.geometry, torus), Identity(self.input_shape)
        self.output_shape = self.correlation.output_shape

    @classmethod
    def of_geometry(cls, taps: Tensor, geometry: Geometry, boundary: str | BoundaryRule) -> Convolution:
        """Build the convolution whose sizes are laid out already."""
        return cls(taps, geometry.image_size, padding=geometry.pads, boundary=boundary)

    def forward(self, x: Tensor) -> Tensor:
        """Blur `x` of shape `(*batch, C_in, *image_size)`."""
        return self.correlation.forward(self._border.forward(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the transpose to `y` of shape `(*batch, C_out, *output_size)`."""
        return self._border.adjoint(self.correlation.adjoint(y))

    def forward_parts(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Blur `x`, and yield the outputs some planes at a time; see `LinearOperator.forward_parts`."""
        return self.correlation.forward_parts(self._border.forward(x))

    def adjoint_parts(self, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Apply the transpose in the same way, unless a border has to be folded back."""
        is_folded = not isinstance(self._border, Identity)
        return super().adjoint_parts(y) if is_folded else self.correlation.adjoint_parts(y)

    @cached_property
    def spectrum(self) -> Spectrum:
        """The extreme singular values of the kernel's symbol on the torus of the image."""
        return kernel_spectrum(self.kernel, self.geometry.image_size)

    @property
    def wraps(self) -> tuple[bool, ...]:
        """Whether the image goes around a torus along each axis of space."""
        return self.boundary.wraps(len(self.geometry.image_size))

    def with_kernel(self, kernel: Tensor) -> Convolution:
        """Return the same operator with other taps of the same shape."""
        return Convolution.of_geometry(kernel, self.geometry, self.boundary)

    def in_float64(self) -> Convolution:
        """Give the same operator in double precision."""
        return self.with_kernel(to_float64(self.kernel))

    @property
    def mean_square_gain(self) -> Tensor:
        """The mean square of the singular values of the symbol, a single number in double precision."""
        return to_float64(self.kernel.detach()).square().sum() / min(self.kernel.shape[:2])

    @property
    def constant_gains(self) -> Tensor:
        """The gains of constant channels away from the border, shape `(C_out, C_in)`, in double precision."""
        return to_float64(self.kernel).sum(dim=space_axes(len(self.geometry.kernel_size)))

    def crop_to_frame(self, x: Tensor) -> Tensor:
        """Cut the frame out of an estimate; the estimate itself, unless the boundary is unknown."""
        if not self.boundary.is_unknown:
            return x
        start = masked(self.geometry.pads.before, [not is_wrapped for is_wrapped in self.wraps])
        return crop(x, start, self.geometry.image_size)


def extension_of(geometry: Geometry, n_inputs: int, boundary: BoundaryRule) -> LinearOperator:
    """Surround images by their border; unknown pixels are a part of the input already."""
    if not isinstance(boundary, WrappedBoundary):
        if boundary.is_unknown:
            return Identity((n_inputs, *geometry.extended_size))
        return Extension(geometry, n_inputs, boundary)
    pads, wraps = geometry.pads, boundary.wraps(len(geometry.image_size))
    ends = tuple(not is_wrapped for is_wrapped in wraps)
    around, ahead = (Pads(masked(pads.before, axes), masked(pads.after, axes)) for axes in (wraps, ends))
    ended = Geometry(geometry.image_size, geometry.kernel_size, ahead)
    wrapped = Extension(Geometry(ended.extended_size, geometry.kernel_size, around), n_inputs, CIRCULAR)
    return wrapped if boundary.is_unknown else wrapped @ Extension(ended, n_inputs, boundary.ends)


def _check_size(image_size: Size) -> int:
    """Count the axes of an image's size, or refuse anything but a sequence of whole numbers."""
    is_size = isinstance(image_size, tuple | list) and len(image_size) > 0
    if not is_size or not all(isinstance(n, int) and not isinstance(n, bool) for n in image_size):
        raise UsageError(f"image_size must be a tuple of whole numbers, one for each axis, but is {image_size!r}.")
    return len(image_size)


def _canonical_taps(taps: object, n_axes: int) -> Tensor:
    """Check taps of shape `(*k,)` or `(C_out, C_in, *k)`, and bring them into the latter form."""
    if not isinstance(taps, Tensor) or not taps.is_floating_point():
        kind = taps.dtype if isinstance(taps, Tensor) else type(taps).__name__
        raise UsageError(f"a kernel must be a Kernel or a tensor of floating-point numbers, but is {kind}; convert it.")
    if taps.ndim not in (n_axes, n_axes + 2):
        raise ShapeError(
            f"a kernel for images with {n_axes} axes of space must have {n_axes} axes, or {n_axes + 2} with channels, "
            f"but its shape is {tuple(taps.shape)}."
        )
    if taps.numel() == 0 or not synchronize.are_finite(taps):
        raise MalformedInputError(
            "a kernel must hold at least one tap and no NaN or infinite values, but the kernel of shape "
            f"{tuple(taps.shape)} does not; correct it first."
        )
    return taps if taps.ndim == n_axes + 2 else taps[None, None]
