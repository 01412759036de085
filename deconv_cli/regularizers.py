"""The penalty λ·σ²max·‖Lx‖²: the operator L on images, and its symbol on a torus."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from deconv_cli.errors import UsageError
from deconv_cli.operators.differences import (
    Difference,
    Differences,
    difference_energies,
    first_differences,
    second_differences,
)
from deconv_cli.operators.linear_operator import Identity, LinearOperator, Shape
from deconv_cli.parts import PENALTIES
from deconv_cli.vocabulary import Size


class Penalty(ABC):
    """An operator L made of differences between pixels; a penalty defines `name` and `terms`.

    Attributes:
        name: the name under which the penalty is registered.
        spacing: distances of neighboring pixels along each axis, the smallest 1; `None` if all are equal.
    """

    name: str
    spacing: tuple[float, ...] | None = None

    def __str__(self) -> str:
        """Give the name."""
        return self.name

    @abstractmethod
    def terms(self, n_axes: int) -> tuple[Difference, ...]:
        """List the differences that L takes of an image with `n_axes` axes of space."""

    def operator(self, shape: Shape, *, periodic: bool | tuple[bool, ...]) -> LinearOperator:
        """Build L for images of `shape`, `(C, *size)`; differences reach around the edge along `periodic` axes."""
        return Differences(shape, self.terms(len(shape) - 1), periodic=periodic)

    def symbol(self, torus: Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Evaluate |l(θ)|², the symbol of LᴴL on a torus, at the frequencies of `torch.fft.rfftn`.

        Returns:
            Real, shape `(*torus[:-1], torus[-1] // 2 + 1)`, zero at frequencies that L annihilates.
        """
        return self.symbol_at(difference_energies(torus, dtype, device))

    def symbol_at(self, energies: Sequence[Tensor]) -> Tensor:
        """Evaluate |l(θ)|² at any frequencies; `energies` are 4 sin²(θ/2) for each axis, of shapes that broadcast."""
        # Not by torch.broadcast_shapes, which imports SymPy: a third of a second.
        total = energies[0].new_zeros(torch.broadcast_tensors(*energies)[0].shape)
        for term in self.terms(len(energies)):
            *factors, last = [energy**order for energy, order in zip(energies, term.orders, strict=True)]
            if factors:
                total.addcmul_(math.prod(factors[1:], start=factors[0]), last, value=term.factor**2)
            else:
                total.add_(last, alpha=term.factor**2)
        return total

    @property
    def takes_differences(self) -> bool:
        """Whether L compares pixels with one another."""
        return any(order > 0 for order in self._total_orders)

    @property
    def penalizes_constants(self) -> bool:
        """Whether constant images are penalized."""
        return 0 in self._total_orders

    @property
    def penalizes_ramps(self) -> bool:
        """Whether images that change at a constant rate are penalized."""
        return any(order <= 1 for order in self._total_orders)

    @property
    def _total_orders(self) -> list[int]:
        return [sum(term.orders) for term in self.terms(2)]


class IdentityPenalty(Penalty):
    """‖x‖²."""

    name = "identity"

    def terms(self, n_axes: int) -> tuple[Difference, ...]:
        """List the pixel itself."""
        return (Difference((0,) * n_axes),)

    def operator(self, shape: Shape, *, periodic: bool | tuple[bool, ...]) -> LinearOperator:
        """Build the identity for images of `shape`, `(C, *size)`."""
        del periodic
        return Identity(shape)


class GradientPenalty(Penalty):
    """‖∇x‖²: differences between neighbors."""

    name = "gradient"

    def terms(self, n_axes: int) -> tuple[Difference, ...]:
        """List the first differences along each axis."""
        return first_differences(n_axes)


class LaplacianPenalty(Penalty):
    """The energy of second differences, ∂xx, ∂yy and √2 ∂xy: on a torus that of the Laplacian, ‖Δx‖²."""

    name = "laplacian"

    def terms(self, n_axes: int) -> tuple[Difference, ...]:
        """List the second differences along each axis and each pair of axes."""
        return second_differences(n_axes)


class SpacedPenalty(Penalty):
    """A penalty for images whose spacing differs between axes: it divides differences by the distances.

    Args:
        penalty: the penalty on differences between neighbors.
        spacing: distances of neighbors along each axis, in any unit, divided by the smallest.
    """

    def __init__(self, penalty: Penalty, spacing: tuple[float, ...]) -> None:
        self.name, self._penalty = penalty.name, penalty
        self._distances = tuple(distance / min(spacing) for distance in spacing)
        self.spacing = self._distances

    def terms(self, n_axes: int) -> tuple[Difference, ...]:
        """List the differences, divided by the distances along their axes; a missing distance raises a `UsageError`."""
        if n_axes != len(self._distances):
            raise UsageError(
                f"the spacing holds {len(self._distances)} distances, but the images have {n_axes} axes of space; "
                "give one for each."
            )
        return tuple(replace(term, factor=term.factor / self._distance(term)) for term in self._penalty.terms(n_axes))

    def _distance(self, term: Difference) -> float:
        return math.prod(distance**order for distance, order in zip(self._distances, term.orders, strict=True))

    @property
    def _total_orders(self) -> list[int]:
        return self._penalty._total_orders


IDENTITY = IdentityPenalty()
GRADIENT = GradientPenalty()
LAPLACIAN = LaplacianPenalty()


PenaltyLike: TypeAlias = "str | Penalty"
"""A penalty, or its name."""


def find_penalty(penalty: PenaltyLike) -> Penalty:
    """Return the penalty of a name, or the penalty itself; an unknown name raises a `UsageError`."""
    if isinstance(penalty, Penalty):
        return penalty
    found: Penalty = PENALTIES[penalty]
    return found


def spaced_penalty(name: str, spacing: tuple[float, ...] | None) -> Penalty:
    """Return the named penalty for this spacing of pixels; one without differences raises a `UsageError`."""
    penalty = find_penalty(name)
    if spacing is None:
        return penalty
    if not penalty.takes_differences:
        raise UsageError(
            f"spacing divides differences between pixels, but penalty {name} uses no differences; leave it out."
        )
    return SpacedPenalty(penalty, spacing)


def is_determined(lam: float, penalty: PenaltyLike, n_outputs: int, n_inputs: int) -> bool:
    """Return whether kernel and penalty together determine all constant images; always true without a penalty."""
    return lam == 0 or find_penalty(penalty).penalizes_constants or n_outputs >= n_inputs
