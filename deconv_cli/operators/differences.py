"""Differences between neighboring pixels: the operators behind smoothness penalties."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.operators.axes import crop, half_spectrum, masked, space_axes
from deconv_cli.operators.linear_operator import LinearOperator, Shape, as_shape
from deconv_cli.vocabulary import Size


@dataclass(frozen=True)
class Difference:
    """A forward difference of pixels, of some order along each axis, times a factor.

    For orders (1, 0) it is `x[i + 1, j] − x[i, j]`; for orders (0, 0) it is the pixel itself.
    """

    orders: tuple[int, ...]
    factor: float = 1.0

    def observed(self, size: Size, wraps: tuple[bool, ...] = ()) -> Size:
        """Return the size of the box in which it takes pixels of an image of `size` alone.

        `wraps` are the axes along which the image goes around a torus; by default none.
        """
        axes = zip(size, self.orders, wraps or (False,) * len(size), strict=True)
        return tuple(n if is_wrapped else max(n - order, 0) for n, order, is_wrapped in axes)

    def symbol(self, torus: Size, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
        """Evaluate it at the frequencies of `torch.fft.rfftn`, as a product over the axes.

        Returns:
            Complex, one for each axis, shaped to broadcast: `(N1, 1)` and `(N2 // 2 + 1,)` for two axes. The
                factor is in the first.
        """
        parts = []
        for axis, order in zip(space_axes(len(torus)), self.orders, strict=True):
            angle = _axis_angles(torus, axis, dtype, device)
            parts.append((torch.polar(torch.ones_like(angle), angle) - 1) ** order)
        return self.factor * parts[0], *parts[1:]


def first_differences(n_axes: int) -> tuple[Difference, ...]:
    """List the first differences along each axis: ‖∇x‖² is the sum of their squares."""
    return tuple(Difference(_unit(i, n_axes)) for i in range(n_axes))


def second_differences(n_axes: int) -> tuple[Difference, ...]:
    """List the second differences, whose squares add up to the energy of a bent plate: Σ_i ‖∂ii‖² + 2 Σ_i<j ‖∂ij‖².

    On a torus that equals ‖Δx‖², the energy of the Laplacian; inside a frame it takes nothing from beyond the edge and
    leaves no pixel out.
    """
    pure = [Difference(tuple(2 * n for n in _unit(i, n_axes))) for i in range(n_axes)]
    mixed = [
        Difference(tuple(a + b for a, b in zip(_unit(i, n_axes), _unit(j, n_axes), strict=True)), math.sqrt(2))
        for i in range(n_axes)
        for j in range(i + 1, n_axes)
    ]
    return *pure, *mixed


class Differences(LinearOperator):
    """Several differences at once, stacked ahead of the channels: `(*batch, C, *size)` → `(*batch, n, C, *size)`.

    If it is periodic, for all axes of space or for each, the last pixel's neighbor is the first; else only differences
    between pixels of the image are taken, and the rest is zero.
    """

    def __init__(self, shape: Shape, terms: tuple[Difference, ...], *, periodic: bool | tuple[bool, ...]) -> None:
        self.input_shape = tuple(shape)
        self.output_shape = (len(terms), *shape)
        self.terms = terms
        self._axes = space_axes(len(shape) - 1)
        self._wraps = (periodic,) * len(self._axes) if isinstance(periodic, bool) else periodic

    def forward(self, x: Tensor) -> Tensor:
        """Take differences of `x` of shape `(*batch, C, *size)`."""
        fields = x.new_zeros(*x.shape[: x.ndim - len(self.input_shape)], *self.output_shape)
        for number, term in enumerate(self.terms):
            field = fields.select(-len(self.output_shape), number)
            self._observed(field, term).copy_(self._difference(x, term))
        return fields

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the transpose to `y` of shape `(*batch, n, C, *size)`."""
        fields = y.unbind(-len(self.output_shape))
        total = torch.zeros_like(fields[0])
        for field, term in zip(fields, self.terms, strict=True):
            self._add_transposed(self._observed(field, term), term, total)
        return total

    def apply_gram(self, x: Tensor) -> Tensor:
        """Apply the transpose to the differences of `x`, with only one kind in memory at a time."""
        total = torch.zeros_like(x)
        for term in self.terms:
            self._add_transposed(self._difference(x, term), term, total)
        return total

    def _observed(self, field: Tensor, term: Difference) -> Tensor:
        """View the differences between pixels of the image; the others would cross the edge, and are zero."""
        size = self.input_shape[1:]
        return crop(field, (0,) * len(size), term.observed(size, self._wraps))

    def _difference(self, x: Tensor, term: Difference) -> Tensor:
        for axis, order, is_wrapped in zip(self._axes, term.orders, self._wraps, strict=True):
            if not is_wrapped:
                x = x.diff(n=order, dim=axis)
                continue
            for _ in range(order):
                x = x.roll(-1, axis) - x
        return x if term.factor == 1.0 else term.factor * x

    def _add_transposed(self, field: Tensor, term: Difference, total: Tensor) -> None:
        """Add the transpose of a difference: the field at each pixel that it was taken from."""
        if field.numel() == 0:  # the image is narrower than the difference
            return
        for places in itertools.product(*(range(order + 1) for order in term.orders)):
            signed = [
                (-1) ** (order - at) * math.comb(order, at) for order, at in zip(term.orders, places, strict=True)
            ]
            weight = term.factor * math.prod(signed)
            around, ahead = (masked(places, axes) for axes in (self._wraps, [not wraps for wraps in self._wraps]))
            moved = field.roll(around, self._axes) if any(around) else field
            crop(total, ahead, tuple(field.shape[-len(places) :])).add_(moved, alpha=weight)


class Gradient(Differences):
    """First differences along each axis, `(*batch, C, *size)` → `(*batch, n_axes, C, *size)`; see `Differences`."""

    def __init__(self, shape: Shape, *, periodic: bool = False) -> None:
        super().__init__(shape, first_differences(len(as_shape(shape)) - 1), periodic=periodic)


class Laplacian(Differences):
    """Second differences whose squares add up to ‖Δx‖² on a torus, and to the energy of a bent plate inside a frame.

    It takes `(*batch, C, *size)` to `(*batch, n, C, *size)`: ∂xx, ∂yy and √2 ∂xy for two axes.
    """

    def __init__(self, shape: Shape, *, periodic: bool = False) -> None:
        super().__init__(shape, second_differences(len(as_shape(shape)) - 1), periodic=periodic)


def difference_energies(torus: Size, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Evaluate |exp(iθ) − 1|² = 4 sin²(θ/2) for each axis of a torus at the frequencies of `torch.fft.rfftn`.

    They are real, and shaped to broadcast: `(N1, 1)` and `(N2 // 2 + 1,)` for two axes.
    """
    return tuple(4 * (_axis_angles(torus, axis, dtype, device) / 2).sin().square() for axis in space_axes(len(torus)))


def _axis_angles(torus: Size, axis: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    numbers = torch.arange(half_spectrum(torus)[axis], dtype=dtype, device=device)
    return (numbers * (2 * math.pi / torus[axis])).reshape(-1, *[1] * (-1 - axis))


def _unit(i: int, n_axes: int) -> tuple[int, ...]:
    return tuple(int(j == i) for j in range(n_axes))
