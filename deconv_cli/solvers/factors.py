"""What is costly to compute about an inverse: computed once, saved, and taken over when it is built again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.errors import MalformedInputError
from deconv_cli.operators import synchronize


@dataclass(frozen=True, eq=False)
class Factors:
    """Tensors by name.

    `Inverse.factors` returns them, `Solver.build` takes them back. All else about an inverse is cheap to compute, and
    follows from the kernel and the settings again. Memory layouts belong to the factors: with
    another one the same arithmetic may round differently.

    Attributes:
        tensors: of any shapes and dtypes.
    """

    tensors: Mapping[str, Tensor]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return the tensor of a name.

        Args:
            name: its name.
            shape: what its shape must be, since kernel and settings are what they are.
            dtype: what its dtype must be.

        Raises:
            MalformedInputError: it is not there, or is another.
        """
        found = self.tensors.get(name)
        if found is None or tuple(found.shape) != shape or found.dtype != dtype:
            what = "is missing" if found is None else f"is {found.dtype} of shape {tuple(found.shape)}"
            raise MalformedInputError(f"its factor '{name}' should be {dtype} of shape {shape}, but {what}.")
        return found

    def take_pivots(self, n: int) -> Tensor:
        """Return the row exchanges of an LU factorization of `n` rows, shape `(n,)`.

        Raises:
            MalformedInputError: they are not there, or are none: LAPACK would write outside of the matrix.
        """
        pivots = self.take("pivots", (n,), torch.int32)
        if not synchronize.holds_everywhere((pivots >= 1) & (pivots <= n)):
            raise MalformedInputError(f"its factor 'pivots' should name rows from 1 to {n}, but names others.")
        return pivots
