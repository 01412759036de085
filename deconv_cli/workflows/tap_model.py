"""Custom taps with their weights and geometry, and how they meet images: one at a time, since they are not linear."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deconv_cli.errors import ShapeError, UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.kernels.receptive_field import ReceptiveFieldConv2d
from deconv_cli.layer_options import LayerOptions
from deconv_cli.operators.boundaries.rule import BoundaryRule, as_rule
from deconv_cli.operators.geometry import Geometry
from deconv_cli.operators.tap_convolution import Tap, TapConvolution, spread_out
from deconv_cli.parts import TAPS
from deconv_cli.vocabulary import PaddingLike, Size, format_size


def find_tap(tap: Tap | str | None) -> Tap:
    """Give the tap of a name, or the function itself.

    Raises:
        UsageError: no such name, or neither a name nor a function.
    """
    found: object = TAPS[TAPS.check(tap)] if isinstance(tap, str) else tap
    if not callable(found):
        raise UsageError(f"a tap must be one of {', '.join(TAPS)} or a function (pixel, weight), but is {found!r}.")
    return found


def check_layer(layer: LayerOptions) -> None:
    """Refuse layers that custom taps do not make up.

    Raises:
        UsageError: groups, or the transposed direction.
    """
    if layer.groups > 1 or layer.transposed:
        raise UsageError(
            f"custom taps take a stride and a dilation, but this layer is one with {layer.describe()}; leave "
            f"{'groups' if layer.groups > 1 else 'transposed'} out."
        )


@dataclass(frozen=True, eq=False)
class TapModel:
    """What `TapConvolution` is made of, but for the size of the image.

    Attributes:
        tap: φ.
        kernel: the weights.
        padding: how far the receptive field reaches outside.
        boundary: what lies there.
        reduction: `sum` or `product`.
        stride: steps of the receptive field, in pixels.
        dilation: distances of neighboring taps, in pixels.
    """

    tap: Tap
    kernel: Kernel
    padding: PaddingLike
    boundary: BoundaryRule
    reduction: str = "sum"
    stride: Size | None = None
    dilation: Size | None = None

    @classmethod
    def of_layer(cls, layer: ReceptiveFieldConv2d, device: torch.device, dtype: torch.dtype) -> TapModel:
        """Take all of them from a layer."""
        weight = layer.weight.detach().to(device, dtype)
        kernel = Kernel(weight, shared=False)
        return cls(layer.phi, kernel, layer.padding, as_rule("zero"), layer.reduction, layer.stride, layer.dilation)

    def with_layer(self, layer: LayerOptions) -> TapModel:
        """Give the same model with the stride and the dilation of a layer.

        Raises:
            UsageError: groups, or the transposed direction.
        """
        check_layer(layer)
        steps = layer.over_axes(self.kernel.n_axes)
        return replace(self, stride=steps.stride, dilation=steps.dilation)

    def convolution(self, image_size: Size, weights: Tensor) -> TapConvolution:
        """Build the convolution of images of one size with weights `(C_out, C_in, *k)`."""
        return TapConvolution(
            self.tap,
            weights,
            image_size,
            padding=self.padding,
            boundary=self.boundary,
            reduction=self.reduction,
            stride=self.stride,
            dilation=self.dilation,
        )

    def image_size(self, output_size: Size, wanted: Size | None = None) -> Size:
        """Find the size of the images that give outputs of a size; with a stride there are several.

        Args:
            output_size: of the outputs.
            wanted: which of them; by default stride × output size where that is among them, else the least.

        Raises:
            ShapeError: no image of the size that is wanted gives such an output.
        """
        n_axes = self.kernel.n_axes
        stride, dilation = self.stride or (1,) * n_axes, self.dilation or (1,) * n_axes
        extent = tuple(spread_out(self.kernel.taps[:1, :1], dilation).shape[2:])
        longest = tuple(n * step for n, step in zip(output_size, stride, strict=True))
        shortest = tuple(n - step + 1 for n, step in zip(longest, stride, strict=True))
        least, most = (Geometry.of_output(size, extent, self.padding).image_size for size in (shortest, longest))
        if wanted is None:
            return tuple(n if a <= n <= b else a for n, a, b in zip(longest, least, most, strict=True))
        if len(wanted) != n_axes or not all(a <= n <= b for n, a, b in zip(wanted, least, most, strict=True)):
            raise ShapeError(
                f"outputs of {format_size(output_size)} come from images of {format_size(least)} to "
                f"{format_size(most)} pixels, but input_size is {wanted}; give one of these."
            )
        return wanted

    def for_each_image(self, do: Callable[..., Tensor], outputs: Tensor | None, inputs: Tensor | None) -> Tensor:
        """Call `do(weights, output, input)` for one image after another, and put what it gives together.

        Args:
            do: takes weights `(C_out, C_in, *k)`, and those that are there of an output `(C_out, *size)` and an input
                `(C_in, *size)`.
            outputs: of the convolution, shape `(C, *size)` or `(B, C, *size)`.
            inputs: likewise.

        Raises:
            ShapeError: the channels do not fit the kernel.
        """
        kernel, axis = self.kernel, self.kernel.channel_axis
        given = [images for images in (outputs, inputs) if images is not None]
        if kernel.is_per_channel:
            for images in given:
                kernel.check_channels(images)
            parts = []
            for c in range(kernel.taps.shape[0]):
                alone = replace(self, kernel=kernel.of_channel(c))
                one = [None if images is None else images.narrow(axis, c, 1) for images in (outputs, inputs)]
                parts.append(alone.for_each_image(do, *one))
            return torch.cat(parts, axis)
        arranged = [kernel.split(images, are_outputs=images is outputs) for images in given]
        batch = arranged[0].shape[:axis]
        flat = [images.reshape(-1, *images.shape[axis:]) for images in arranged]
        done = torch.stack([do(kernel.taps, *one) for one in zip(*flat, strict=True)])
        return kernel.join(done.reshape(*batch, *done.shape[1:]))
