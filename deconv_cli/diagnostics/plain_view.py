"""A convolution, its data and its estimate as what a torus is laid out for: of a layer, one group with its phases."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.layer_convolution import GroupedLayer, LayerConvolution
from deconv_cli.operators.phases import rearranged_taps, transposed_taps, whole_layer


@dataclass(frozen=True, eq=False)
class PlainView:
    """Taps `(C_out, C_in, *k)`, and the images that belong to them, shape `(*batch, C, *size)` each.

    Attributes:
        taps: of a plain convolution; of a layer those between the phases of its pixels (`operators/phases.py`).
        data: y.
        estimate: x̂, cut to its frame.
        residual: y − Ax̂.
        has_phases: whether the channels of the data or of the estimate are phases of one image.
    """

    taps: Tensor
    data: Tensor
    estimate: Tensor
    residual: Tensor
    has_phases: bool = False


def plain_view(operator: Convolution, data: Tensor, estimate: Tensor, residual: Tensor) -> PlainView:
    """Take a convolution as it is; of a layer the group that leaves most of its data over, with its phases as channels.

    Args:
        operator: A.
        data: y, shape `(*batch, C_out, *output_size)`.
        estimate: x̂, shape `(*batch, C_in, *image_size)`.
        residual: y − Ax̂.
    """
    if not isinstance(operator, LayerConvolution):
        return PlainView(operator.kernel, data, estimate, residual)
    groups, axes, options = GroupedLayer(operator), operator.layer_geometry.grid_axes, operator.options
    part, n_dims = whole_layer(axes), len(operator.input_shape)
    squares = groups.divide(residual).square().movedim(-n_dims - 1, 0).flatten(1).sum(-1)
    group = synchronize.as_index(squares.argmax())
    outputs, left, images = (groups.divide(of).select(-n_dims - 1, group) for of in (data, residual, estimate))
    taps = rearranged_taps(operator.kernel, axes, options.groups, on_torus=True)
    if options.transposed:
        taps, outputs, left = transposed_taps(taps), part.take_fine(outputs), part.take_fine(left)
    else:
        images = part.take_fine(images)
    return PlainView(taps[group], outputs, images, left, has_phases=any(axis.stride > 1 for axis in axes))
