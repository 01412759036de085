"""An operator that computes in another precision than the images that it takes and gives."""

from __future__ import annotations

import torch
from torch import Tensor

from deconv_cli.operators.linear_operator import LinearOperator


class InPrecision(LinearOperator):
    """The same operator for images of another dtype, which are converted on the way in and on the way out.

    Args:
        operator: computes in its own dtype.
        dtype: of the images.
    """

    def __init__(self, operator: LinearOperator, dtype: torch.dtype) -> None:
        self._operator, self.dtype, self.device = operator, dtype, operator.device
        self.input_shape, self.output_shape = operator.input_shape, operator.output_shape

    def forward(self, x: Tensor) -> Tensor:
        """Apply the operator to `x` of shape `(*batch, *input_shape)`."""
        return self._operator.forward(x.to(self._operator.dtype)).to(x.dtype)

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the adjoint to `y` of shape `(*batch, *output_shape)`."""
        return self._operator.adjoint(y.to(self._operator.dtype)).to(y.dtype)
