"""The convolution that this package inverts: a border rule, then sliding taps."""

from __future__ import annotations

from torch import Tensor

from deconv_cli.operators.correlation import ValidCorrelation
from deconv_cli.operators.extension import Extension
from deconv_cli.operators.geometry import Geometry
from deconv_cli.operators.linear_operator import Identity, LinearOperator


class Convolution(LinearOperator):
    """`y = conv2d(extend(x), K)`: multi-channel, under its real border.

    With the boundary `unknown` nothing is copied: the operator's input is the extended image itself, of which the
    frame is the part that is asked for (`crop_to_frame`).

    Args:
        kernel: shape `(C_out, C_in, kH, kW)`.
        geometry: the sizes.
        boundary: what lies outside the image.
    """

    def __init__(self, kernel: Tensor, geometry: Geometry, boundary: str) -> None:
        self.kernel = kernel
        self.geometry = geometry
        self.boundary = boundary
        n_inputs = kernel.shape[1]
        self.correlation = ValidCorrelation(kernel, geometry.extended_size)
        self.extension: LinearOperator = (
            Identity((n_inputs, *geometry.extended_size))
            if boundary == "unknown"
            else Extension(geometry, n_inputs, boundary)
        )
        self.input_shape = self.extension.input_shape
        self.output_shape = self.correlation.output_shape

    def forward(self, x: Tensor) -> Tensor:
        """Blur `x` of shape `(*batch, C_in, H, W)`."""
        return self.correlation.forward(self.extension.forward(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the transpose to `y` of shape `(*batch, C_out, H_y, W_y)`."""
        return self.extension.adjoint(self.correlation.adjoint(y))

    def crop_to_frame(self, x: Tensor) -> Tensor:
        """Cut the frame out of an estimate; the estimate itself, unless the boundary is unknown."""
        if self.boundary != "unknown":
            return x
        pads, (height, width) = self.geometry.pads, self.geometry.image_size
        return x[..., pads.top : pads.top + height, pads.left : pads.left + width]
