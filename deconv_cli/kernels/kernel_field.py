"""A kernel that varies over the frame: one kernel at each place of a grid, and interpolation between them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from deconv_cli.errors import MalformedInputError
from deconv_cli.operators import synchronize
from deconv_cli.operators.varying_convolution import check_places, middle_place
from deconv_cli.parts import ShownInNotebook
from deconv_cli.vocabulary import format_size


@dataclass(frozen=True, eq=False)
class KernelField(ShownInNotebook):
    """Kernels with their places in the frame, for every channel alike.

    The blur is A = Σ K_j diag(w_j), with weights that fall linearly from each place to the next ones, are constant
    beyond the outermost, and sum to one at every pixel (`operators/varying_convolution.py`).

    Attributes:
        taps: of cross-correlations, real, shape `(n_rows, n_columns, kH, kW)`.
        rows: where the rows of places lie, in parts of the height of the image x: from 0, the upper edge, to 1,
            increasing, `n_rows` of them.
        columns: the same of its width, `n_columns` of them.

    Raises:
        ShapeError: the taps have not four axes, or the places are not as many as their first two.
        MalformedInputError: taps that are complex or whole numbers, empty, or not finite; a kernel without any; or
            places outside the frame, or out of order.
    """

    taps: Tensor
    rows: tuple[float, ...]
    columns: tuple[float, ...]

    is_varying: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, places in zip(("rows", "columns"), check_places(self.taps, self.rows, self.columns), strict=True):
            object.__setattr__(self, name, places)
        if self.taps.numel() == 0 or not self.taps.is_floating_point() or not synchronize.are_finite(self.taps):
            raise MalformedInputError(
                f"the taps of a kernel field must be finite numbers, but the taps of shape "
                f"{tuple(self.taps.shape)} and type {self.taps.dtype} are not."
            )
        if not bool(self.taps.flatten(2).any(dim=2).all()):
            raise MalformedInputError("every kernel of a field must have taps, but those of one place are all zero.")
        for name, places in (("rows", self.rows), ("columns", self.columns)):
            if not all(a < b for a, b in zip((-1e-9, *places), (*places, 1 + 1e-9), strict=True)):
                raise MalformedInputError(
                    f"the {name} of a kernel field must lie between 0 and 1, increasing, but are {places}."
                )

    def __repr__(self) -> str:
        """Describe it in one line."""
        return f"KernelField({format_size(self.grid)} kernels of {format_size(self.taps.shape[2:])} taps)"

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> KernelField:
        """Give the same field with its taps on another device, or in another precision."""
        return replace(self, taps=self.taps.to(device, dtype))

    @property
    def grid(self) -> tuple[int, int]:
        """How many rows and columns of places there are."""
        return len(self.rows), len(self.columns)

    @property
    def sums(self) -> list[list[float]]:
        """The output of the kernel of each place for a constant image: rows of sums of taps."""
        sums: list[list[float]] = self.taps.double().sum(dim=(2, 3)).tolist()
        return sums

    def describe(self) -> str:
        """Describe the field in a clause."""
        (n_rows, n_columns), (height, width) = self.grid, self.taps.shape[2:]
        rows, columns = (", ".join(f"{place:.3g}" for place in places) for places in (self.rows, self.columns))
        sums = [total for row in self.sums for total in row]
        return (
            f"a kernel that varies over the frame: {n_rows}×{n_columns} kernels of {height}×{width} taps, at {rows} of "
            f"its height and {columns} of its width, with sums from {min(sums):.4g} to {max(sums):.4g}"
        )

    @property
    def middle(self) -> Tensor:
        """The taps in the middle, for uses that need a single kernel, shape `(kH, kW)`."""
        return self.taps[middle_place(self.taps)]
