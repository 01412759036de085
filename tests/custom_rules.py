"""Boundary rules and penalties that a user might add: each one class, as the package's own are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from deconv_cli.operators.boundary_rules import BoundaryRule
from deconv_cli.operators.differences import Difference
from deconv_cli.parts import BOUNDARIES, PENALTIES
from deconv_cli.regularizers import Penalty


class Antisymmetric(BoundaryRule):
    """A mirror image with the opposite sign: x[−1 − i] = −x[i]."""

    name = "antisymmetric"
    description = "its mirror image with the opposite sign was taken to lie outside"

    def reach(self, length: int) -> int:
        return length

    def sources(self, position: Tensor, length: int) -> Tensor:
        return torch.where(position < 0, -position - 1, 2 * length - 1 - position)

    def factors(self, position: Tensor, length: int) -> Tensor:
        return torch.full_like(position, -1)


class Fading(BoundaryRule):
    """The outermost pixel, halved with each pixel outwards."""

    name = "fading"
    description = "its edge pixels were taken to fade outside"

    def sources(self, position: Tensor, length: int) -> Tensor:
        return position.clamp(0, length - 1)

    def factors(self, position: Tensor, length: int) -> Tensor:
        distance = torch.where(position < 0, -position, position - length + 1)
        return 0.5**distance


class ThirdDifferences(Penalty):
    """‖∂³x‖² along every direction: a parabola costs nothing."""

    name = "third"

    def terms(self, n_axes: int) -> tuple[Difference, ...]:
        orders = [
            o for o in torch.cartesian_prod(*[torch.arange(4)] * n_axes).reshape(-1, n_axes).tolist() if sum(o) == 3
        ]
        return tuple(Difference(tuple(o), math.sqrt(6 / math.prod(map(math.factorial, o)))) for o in orders)


CUSTOM_RULES = (Antisymmetric(), Fading())


@contextmanager
def registered(*parts: BoundaryRule | Penalty) -> Iterator[None]:
    """Register rules and penalties under their names for a while."""
    places = [(BOUNDARIES if isinstance(part, BoundaryRule) else PENALTIES, part) for part in parts]
    for registry, part in places:
        registry.register(part.name, part)
    try:
        yield
    finally:
        for registry, part in places:
            registry.unregister(part.name)
