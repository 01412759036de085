"""The cases that every operator and every inverse is held against: borders × paddings × kernels."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.geometry import Geometry
from deconv_cli.parts import BOUNDARIES
from deconv_cli.vocabulary import PaddingLike

PADDINGS: tuple[PaddingLike, ...] = ("same", "valid", "full", 0, 1, (2, 1))

# (C_out, C_in, kH, kW): square, tall and wide in channels; odd, even and non-square in space.
KERNEL_SHAPES = (
    (1, 1, 3, 3),
    (1, 1, 4, 4),
    (2, 2, 3, 3),
    (3, 2, 2, 5),
    (2, 3, 3, 2),
    (3, 3, 1, 3),
    (1, 1, 1, 1),
)

IMAGE_SIZES = ((7, 6), (8, 9))


@dataclass(frozen=True)
class Case:
    """One convolution on one image size."""

    boundary: str
    padding: PaddingLike
    shape: tuple[int, int, int, int]
    size: tuple[int, int]

    @property
    def name(self) -> str:
        padding = "x".join(map(str, self.padding)) if isinstance(self.padding, tuple) else self.padding
        return f"{self.boundary}-{padding}-{'x'.join(map(str, self.shape))}-{self.size[0]}x{self.size[1]}"

    def kernel(self, dtype: torch.dtype = torch.float64) -> Tensor:
        generator = torch.Generator().manual_seed(sum(self.shape) + 31 * self.size[0])
        return torch.randn(self.shape, generator=generator, dtype=torch.float64).to(dtype)

    def geometry(self) -> Geometry:
        return Geometry.of_image(self.size, self.shape[2:], self.padding)

    def operator(self, dtype: torch.dtype = torch.float64) -> Convolution:
        return Convolution.of_geometry(self.kernel(dtype), self.geometry(), self.boundary)


ALL_CASES = [Case(*values) for values in itertools.product(BOUNDARIES, PADDINGS, KERNEL_SHAPES, IMAGE_SIZES)]


EACH = 5
"""One of so many cases is quick, the others are exhaustive ones: each border still meets each padding and kernel."""


def named(cases: list[Case]) -> dict[str, object]:
    """Arguments for `pytest.mark.parametrize` over cases."""
    values = [
        pytest.param(case, id=case.name, marks=() if i % EACH == 0 else pytest.mark.exhaustive)
        for i, case in enumerate(cases)
    ]
    return {"argnames": "case", "argvalues": values}


def random(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Draw standard normal numbers, the same for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
