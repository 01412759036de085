"""The cases that test every operator and every inverse: borders × paddings × kernels."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.geometry import Geometry
from deconv_cli.operators.linear_operator import LinearOperator
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
"""One case in this number is quick, the others are exhaustive ones: each border still meets each padding and kernel.

No number of borders, penalties or precisions is a multiple of it, so that the quick ones have all of them.
"""


def named(cases: list[Case]) -> dict[str, object]:
    """Arguments for `pytest.mark.parametrize` over cases."""
    values = [
        pytest.param(case, id=case.name, marks=() if i % EACH == 0 else pytest.mark.exhaustive)
        for i, case in enumerate(cases)
    ]
    return {"argnames": "case", "argvalues": values}


def products(**axes: Iterable[object] | dict[str, object]) -> dict[str, object]:
    """Arguments for `pytest.mark.parametrize` over all combinations of values, of which one in `EACH` is quick.

    Args:
        axes: the values of each argument; in a dictionary by the names that are shown.
    """
    named_values = [
        list(values.items()) if isinstance(values, dict) else [(str(value), value) for value in values]
        for values in axes.values()
    ]
    combinations = [
        pytest.param(
            *(value for _, value in combination),
            id="-".join(name for name, _ in combination),
            marks=() if i % EACH == 0 else pytest.mark.exhaustive,
        )
        for i, combination in enumerate(itertools.product(*named_values))
    ]
    return {"argnames": list(axes), "argvalues": combinations}


def random(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Draw standard normal numbers, the same for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def mild_kernel(shape: tuple[int, ...], strength: float = 0.1) -> Tensor:
    """Taps around a unit impulse, whose inverse exists and is well conditioned under most boundaries."""
    kernel = strength * random(shape, seed=sum(shape))
    for channel in range(min(shape[:2])):
        kernel[(channel, channel, *((k - 1) // 2 for k in shape[2:]))] += 1
    return kernel


def dense_tikhonov(A: LinearOperator, y: Tensor, weight: float = 0.0, penalty: LinearOperator | None = None) -> Tensor:
    """Minimize ‖Ax − y‖² + weight·‖Lx‖² by dense linear algebra, with least norm."""
    matrix = A.as_matrix()
    if penalty is not None:
        matrix = torch.cat([matrix, weight**0.5 * penalty.as_matrix()])
    data = torch.cat([y.flatten(), y.new_zeros(len(matrix) - y.numel())])
    return (torch.linalg.pinv(matrix, rtol=1e-11) @ data).reshape(A.input_shape)
