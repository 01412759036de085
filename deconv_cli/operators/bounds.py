"""Between what the outputs of an operator lie: known, known to be at most or at least something, or unknown."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Bounds:
    """Bounds of each output: tensors of one shape; -inf and inf where nothing is known, equal where the output is."""

    lower: Tensor
    upper: Tensor

    @classmethod
    def exactly(cls, y: Tensor) -> Bounds:
        """Bounds of outputs that are known."""
        return cls(y, y)

    @property
    def known(self) -> Tensor:
        """Where the output is known."""
        return self.lower == self.upper

    def nearest(self, z: Tensor) -> Tensor:
        """Cut `z` to the bounds."""
        return torch.minimum(torch.maximum(z, self.lower), self.upper)

    def shifted(self, by: Tensor) -> Bounds:
        """Add a tensor to both bounds."""
        return Bounds(self.lower + by, self.upper + by)

    def to(self, dtype: torch.dtype) -> Bounds:
        """Give the same in another precision."""
        return Bounds(self.lower.to(dtype), self.upper.to(dtype))
