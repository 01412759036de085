"""A blur that varies over the frame: A = Σ K_j diag(w_j), kernels at the places of a grid with smooth weights.

The weights are products of hats along the axes, each one at its own place and zero at the next ones, and constant
beyond the outermost places: they sum to one at every pixel. Each kernel is applied to the part of the image where its
weight is not zero, by the FFT if that is cheaper, so that many places cost about as much as four kernels (Nagy and
O'Leary, Restoring images degraded by spatially variant blur, SIAM Journal on Scientific Computing 19, 1998; Hirsch,
Sra, Schölkopf and Harmeling, Efficient filter flow for space-variant multiframe blind deconvolution, CVPR 2010, where
the weights stand on the same side of the kernels).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from deconv_cli.errors import ShapeError, UsageError, check_type
from deconv_cli.operators.axes import crop
from deconv_cli.operators.boundary_rules import BoundaryRule
from deconv_cli.operators.circulant import to_float64
from deconv_cli.operators.convolution import Convolution, ValidCorrelation
from deconv_cli.operators.extension import outside_positions
from deconv_cli.operators.geometry import Padding
from deconv_cli.operators.linear_operator import LinearOperator
from deconv_cli.operators.spectrum import Spectrum, kernel_spectrum
from deconv_cli.vocabulary import Size, shortened

Places = tuple[tuple[float, ...], tuple[float, ...]]
"""The positions of the rows and of the columns of a field of kernels."""


def check_places(taps: Tensor, rows: Sequence[float], columns: Sequence[float]) -> Places:
    """Return the places of a field's rows and columns as plain numbers.

    Raises:
        UsageError: they are no sequences of numbers, or the taps no tensor.
        ShapeError: the taps have not four axes, or the places are not as many as their first two.
    """
    found = []
    for name, places in (("rows", rows), ("columns", columns)):
        try:
            found.append(tuple(float(place) for place in places))
        except (TypeError, ValueError) as error:
            raise UsageError(f"{name} must be a sequence of numbers, but is {shortened(repr(places))}.") from error
    check_type(taps, Tensor, "the taps")
    shape, (n_rows, n_columns) = tuple(taps.shape), map(len, found)
    if len(shape) != 4 or shape[:2] != (n_rows, n_columns) or n_rows * n_columns == 0:
        raise ShapeError(
            "kernels that vary over the frame must have taps of shape (n_rows, n_columns, kH, kW) and a place for each "
            f"row and column, but have taps of shape {shape}, {n_rows} rows and {n_columns} columns."
        )
    return found[0], found[1]


def hat_weights(places: Sequence[float], positions: Tensor) -> Tensor:
    """Evaluate the hats of n increasing places along an axis at positions `(m,)` on the host, in the same unit.

    Returns:
        Shape `(n, m)`: each column sums to one.
    """
    n, at = len(places), positions.new_tensor(places)
    weights = positions.new_zeros(n, len(positions))
    if n == 1:
        return weights + 1
    held = positions.clamp(at[0], at[-1])
    after = torch.searchsorted(at, held, right=True).clamp(1, n - 1)
    share = (held - at[after - 1]) / (at[after] - at[after - 1])
    weights.scatter_(0, (after - 1)[None], (1 - share)[None])
    return weights.scatter_(0, after[None], share[None])


@dataclass(frozen=True, eq=False)
class Part:
    """A box of pixels where the weight of one place is not zero.

    Attributes:
        place: the row and the column of the place in the grid.
        start: the first pixel of the box.
        weights: the weights there, shape `(h, w)`.
    """

    place: tuple[int, int]
    start: Size
    weights: Tensor

    @property
    def size(self) -> Size:
        """Pixels of the box."""
        return tuple(self.weights.shape)

    def widened(self, least: Size, whole: Size) -> Part:
        """Give the part with a box of at least the size `least`, within an image of the size `whole`."""
        sizes = [max(n, min(k, end)) for n, k, end in zip(self.size, least, whole, strict=True)]
        starts = [min(first, end - n) for first, n, end in zip(self.start, sizes, whole, strict=True)]
        weights = self.weights.new_zeros(*sizes)
        inner = Part(self.place, tuple(a - b for a, b in zip(self.start, starts, strict=True)), self.weights)
        inner.cut(weights).copy_(self.weights)
        return Part(self.place, tuple(starts), weights)

    def cut(self, x: Tensor) -> Tensor:
        """Cut the box out of `x` of shape `(*, H, W)`."""
        return crop(x, self.start, self.size)


def parts_of(row_weights: Tensor, column_weights: Tensor, like: Tensor) -> list[Part]:
    """Find the boxes of all places, from their weights `(n_rows, H)` and `(n_columns, W)` on the host.

    A place whose weight is not zero at both ends of a torus has several. The weights get the dtype and device of
    `like`.
    """
    return [
        Part((i, j), (top, left), (down[:, None] * across).to(like))
        for i, rows in enumerate(row_weights)
        for top, down in runs_of(rows)
        for j, columns in enumerate(column_weights)
        for left, across in runs_of(columns)
    ]


def runs_of(weights: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Find the stretches of a line `(n,)` on the host where it is not zero, each with its beginning."""
    edges = functional.pad((weights > 0).int(), (1, 1)).diff()
    starts, ends = ((edges == sign).nonzero().flatten().tolist() for sign in (1, -1))
    for start, end in zip(starts, ends, strict=True):
        yield start, weights[start:end]


class VaryingCorrelation(LinearOperator):
    """Sliding a kernel that varies over an image with its border: Σ K_j diag(w_j) without padding.

    The taps have the shape `(n_rows, n_columns, kH, kW)`; the weights of rows `(n_rows, H)` and columns `(n_columns,
    W)` are for the image with its border, on the host.
    """

    def __init__(self, taps: Tensor, row_weights: Tensor, column_weights: Tensor) -> None:
        size = (row_weights.shape[1], column_weights.shape[1])
        self._reach = tuple(k - 1 for k in taps.shape[2:])
        self.dtype, self.device = taps.dtype, taps.device
        self.input_shape = (1, *size)
        self.output_shape = (1, *(n - r for n, r in zip(size, self._reach, strict=True)))
        self._parts = parts_of(row_weights, column_weights, taps)
        # The adjoint of a correlation with the flipped taps spreads an image by the taps as they are.
        self._spreads = [
            ValidCorrelation(
                taps[part.place].flip(0, 1)[None, None],
                tuple(n + r for n, r in zip(part.size, self._reach, strict=True)),
            )
            for part in self._parts
        ]

    def forward(self, x: Tensor) -> Tensor:
        """Correlate `x` of shape `(*batch, 1, H, W)` with the kernels."""
        size = tuple(n + r for n, r in zip(self.input_shape[1:], self._reach, strict=True))
        total = x.new_zeros(*x.shape[:-2], *size)
        for part, spread in zip(self._parts, self._spreads, strict=True):
            crop(total, part.start, spread.input_shape[1:]).add_(spread.adjoint(part.cut(x) * part.weights))
        return crop(total, self._reach, self.output_shape[1:])

    def adjoint(self, y: Tensor) -> Tensor:
        """Spread `y` of shape `(*batch, 1, H − kH + 1, W − kW + 1)` by the kernels."""
        padded = functional.pad(y, [n for reach in reversed(self._reach) for n in (reach, reach)])
        x = y.new_zeros(*y.shape[:-2], *self.input_shape[1:])
        for part, spread in zip(self._parts, self._spreads, strict=True):
            piece = spread.forward(crop(padded, part.start, spread.input_shape[1:]))
            part.cut(x).add_(piece * part.weights)
        return x


class VaryingConvolution(Convolution):
    """`y = Σ conv(extend(w_j·x), K_j)` with stride 1 on each channel of an image, under its real boundary.

    It takes `(*batch, 1, H, W)` to `(*batch, 1, H_y, W_y)`. With the boundary `unknown` the weights of the outermost
    places continue outside the frame.

    Args:
        taps: of cross-correlations as in `torch.nn.functional.conv2d`, shape `(n_rows, n_columns, kH, kW)`.
        rows: positions of the rows of places, in parts of the image's height, increasing.
        columns: the same of its width.
        image_size: pixels of the image along each axis.
        padding: `same`, `valid`, `full`, a whole number, one for each axis, or `Pads`.
        boundary: the rule for pixels outside the image, or its name.

    Attributes:
        taps: the taps of all places.
        kernel: those of the place in the middle, for uses that want a single kernel, shape `(1, 1, kH, kW)`.

    Raises:
        ShapeError: the kernels do not fit the image, or reach too far outside it.
        UsageError: no such padding or boundary is known.
    """

    is_varying = True

    def __init__(
        self,
        taps: Tensor,
        rows: Sequence[float],
        columns: Sequence[float],
        image_size: Size,
        *,
        padding: Padding = "same",
        boundary: str | BoundaryRule = "zero",
    ) -> None:
        places = check_places(taps, rows, columns)
        super().__init__(taps[middle_place(taps)][None, None], image_size, padding=padding, boundary=boundary)
        self.taps, self.places = taps, places
        row_weights, column_weights = (self._weights(axis, is_extended=True) for axis in (0, 1))
        self.correlation, self._border = VaryingCorrelation(taps, row_weights, column_weights), self.extension

    @cached_property
    def spectrum(self) -> Spectrum:
        """The extreme singular values of the symbol of the kernel with the largest one."""
        size = self.geometry.image_size
        return max((kernel_spectrum(k[None, None], size) for k in self.taps.flatten(0, 1)), key=lambda s: s.sigma_max)

    def input_weights(self, axis: int) -> Tensor:
        """Evaluate the weights along an axis of the operator's input, shape `(n_places, n)`."""
        return self._weights(axis, is_extended=self.boundary.is_unknown)

    def in_float64(self) -> VaryingConvolution:
        """Give the same operator in double precision."""
        geometry = self.geometry
        return VaryingConvolution(
            to_float64(self.taps), *self.places, geometry.image_size, padding=geometry.pads, boundary=self.boundary
        )

    def _weights(self, axis: int, *, is_extended: bool) -> Tensor:
        """Evaluate the weights along an axis at the pixels of the image, or of the image with its border."""
        length, pads = self.geometry.image_size[axis], self.geometry.pads
        inside = torch.arange(length)
        before, after = outside_positions(pads.before[axis], pads.after[axis], length, inside.device)
        if self.boundary.copies_pixels:  # a copied pixel keeps the weight of its source
            before, after = (self.boundary.sources(position, length) for position in (before, after))
        pixels = torch.cat([before, inside, after]) if is_extended else inside
        weights = hat_weights(self.places[axis], (pixels.double() + 0.5) / length)
        if self.boundary.is_zero and is_extended:
            weights = weights * ((pixels >= 0) & (pixels < length))
        return weights


def middle_place(taps: Tensor) -> tuple[int, int]:
    """Find the place in the middle of the grid of taps `(n_rows, n_columns, kH, kW)`."""
    return (taps.shape[0] - 1) // 2, (taps.shape[1] - 1) // 2
