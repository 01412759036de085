"""A layer of a network as a linear operator: stride, dilation, groups and the transposed direction, as in torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from deconv_cli.errors import ShapeError
from deconv_cli.layer_options import AxisOptions, LayerOptions
from deconv_cli.operators.axes import crop, space_axes
from deconv_cli.operators.boundary_rules import BoundaryRule, as_rule
from deconv_cli.operators.circulant import to_float64, torus_symbol
from deconv_cli.operators.convolution import CONVOLUTIONS, Convolution, extension_of, full_precision_convolutions
from deconv_cli.operators.geometry import Geometry, GridAxis, Padding
from deconv_cli.operators.linear_operator import LinearOperator
from deconv_cli.operators.phases import rearranged_taps, transposed_taps
from deconv_cli.operators.spectrum import (
    MAX_BLOCK_OPERATIONS,
    Spectrum,
    affordable_grid,
    kernel_spectrum,
    singular_values,
)
from deconv_cli.vocabulary import Size, counted

TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
"""torch's own transposed convolutions, by the number of axes."""

# In float32, a product with the taps takes half the time of torch's transposed convolution if it has at most so many
# values for each output: 6.7 against 12.4 ms for the first layer of ResNet-18.
MAX_COLUMNS = 4
# Groups whose singular values come so near to the largest on a coarse grid are looked at on the whole one.
NEARLY = 0.8


def check_groups(kernel: Tensor, options: LayerOptions) -> None:
    """Refuse, by `ShapeError`, groups that do not divide the channels on the first axis of a kernel."""
    if kernel.shape[0] % options.groups:
        raise ShapeError(
            f"the kernel of shape {tuple(kernel.shape)} has {counted(kernel.shape[0], 'channel')} on its first axis, "
            f"which is not a multiple of the {options.groups} groups; give another number of groups."
        )


class StridedCorrelation(LinearOperator):
    """Slide grouped, dilated taps `(C_out, C_in / groups, *k)` with a stride over an image with its border.

    It gives the first `n_outputs` along each axis.
    """

    def __init__(self, kernel: Tensor, size: Size, steps: AxisOptions, groups: int, n_outputs: Size) -> None:
        self.kernel, self.dtype, self.device = kernel, kernel.dtype, kernel.device
        self.input_shape = (groups * kernel.shape[1], *size)
        self.output_shape = (kernel.shape[0], *n_outputs)
        self._steps, self._groups = steps, groups
        spans = zip(n_outputs, steps.stride, steps.dilation, kernel.shape[2:], strict=True)
        self._seen = tuple((m - 1) * s + d * (k - 1) + 1 for m, s, d, k in spans)
        n_columns = kernel[0].numel()
        self._folds = len(size) == 2 and groups == 1 and n_columns <= MAX_COLUMNS * len(kernel)

    def forward(self, x: Tensor) -> Tensor:
        """Correlate `x` of shape `(*batch, C_in, *size)` with the kernel."""
        n_axes = len(self._seen)
        # What the outputs see of the image, and no more: torch would give more outputs.
        seen = crop(x, (0,) * n_axes, tuple(min(n, end) for n, end in zip(x.shape[-n_axes:], self._seen, strict=True)))
        flat = seen.reshape(-1, *seen.shape[-n_axes - 1 :])
        with full_precision_convolutions(x.device):
            y = CONVOLUTIONS[n_axes](
                flat, self.kernel, stride=self._steps.stride, dilation=self._steps.dilation, groups=self._groups
            )
        return y.reshape(*x.shape[: -n_axes - 1], *y.shape[1:])

    def adjoint(self, y: Tensor) -> Tensor:
        """Spread `y` of shape `(*batch, C_out, *outputs)` by the taps."""
        n_axes, steps = len(self._seen), self._steps
        flat = y.reshape(-1, *y.shape[-n_axes - 1 :])
        if self._folds and y.device.type == "cpu" and y.dtype == torch.float32:
            columns = self.kernel.flatten(1).T @ flat.flatten(2)
            size = self.kernel.shape[2:]
            x = functional.fold(columns, self._seen, size, dilation=steps.dilation, stride=steps.stride)
        else:
            with full_precision_convolutions(y.device):
                x = TRANSPOSED[n_axes](
                    flat, self.kernel, stride=steps.stride, dilation=steps.dilation, groups=self._groups
                )
        uncovered = [n - end for n, end in zip(self.input_shape[1:], self._seen, strict=True)]
        if any(uncovered):
            x = functional.pad(x, [n for rest in reversed(uncovered) for n in (0, rest)])
        return x.reshape(*y.shape[: -n_axes - 1], *x.shape[1:])


class LayerConvolution(Convolution):
    """`torch.nn.Conv1d`, `Conv2d`, `Conv3d` or their transposed counterparts, under any boundary.

    It takes `(*batch, C_in, *image_size)` to `(*batch, C_out, *output_size)`. The kernel has the shape `(C_out, C_in /
    groups, *k)`, or `(C_in, C_out / groups, *k)` for a transposed layer, which cuts the padding off its output and has
    zeros outside.

    Raises:
        ShapeError: the kernel does not fit the image or the groups, or reaches too far outside the image.
        UsageError: no such padding or boundary is known, or options that are for another number of axes.
    """

    is_layer = True

    def __init__(
        self,
        kernel: Tensor,
        image_size: Size,
        options: LayerOptions,
        *,
        padding: Padding = "same",
        boundary: str | BoundaryRule = "zero",
    ) -> None:
        self.kernel, self.dtype, self.device = kernel, kernel.dtype, kernel.device
        self.options, self.boundary = options, as_rule(boundary)
        self.geometry = Geometry.of_image(image_size, tuple(kernel.shape[2:]), padding, options)
        self.geometry.check_boundary(self.boundary)
        check_groups(kernel, options)
        self.correlation, self.extension = self._parts(kernel, self.geometry)
        if options.transposed:
            self.input_shape = self.correlation.output_shape
            self.output_shape = (self.correlation.input_shape[0], *self.geometry.output_size)
        else:
            self.input_shape, self.output_shape = self.extension.input_shape, self.correlation.output_shape

    @property
    def moves_pixels(self) -> bool:
        """Whether more than its groups differs from a plain convolution."""
        return self.options.transposed or any(axis.stride > 1 or axis.dilation > 1 for axis in self.grid_axes)

    def _parts(self, kernel: Tensor, geometry: Geometry) -> tuple[LinearOperator, LinearOperator]:
        """Build the correlation from the fine grid with its border to the coarse one, and the border."""
        axes, groups = geometry.grid_axes, self.options.groups
        extended = tuple(axis.n_fine + axis.before + axis.after for axis in axes)
        n_coarse = tuple(axis.n_coarse for axis in axes)
        correlation = StridedCorrelation(kernel, extended, geometry.steps, groups, n_coarse)
        fine = Geometry(tuple(axis.n_fine for axis in axes), geometry.reach, geometry.pads)
        return correlation, extension_of(fine, groups * kernel.shape[1], self.boundary)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to `x` of shape `(*batch, C_in, *image_size)`."""
        if self.options.transposed:
            return self.extension.adjoint(self.correlation.adjoint(x))
        return self.correlation.forward(self.extension.forward(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the transpose to `y` of shape `(*batch, C_out, *output_size)`."""
        if self.options.transposed:
            return self.correlation.forward(self.extension.forward(y))
        return self.extension.adjoint(self.correlation.adjoint(y))

    def forward_parts(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Apply the layer, in one part."""
        return LinearOperator.forward_parts(self, x)

    def adjoint_parts(self, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Apply the transpose, in one part."""
        return LinearOperator.adjoint_parts(self, y)

    def with_kernel(self, kernel: Tensor) -> LayerConvolution:
        """Return the same layer with other taps."""
        geometry = self.geometry
        return LayerConvolution(
            kernel, geometry.image_size, self.options, padding=geometry.pads, boundary=self.boundary
        )

    @property
    def grid_axes(self) -> tuple[GridAxis, ...]:
        """The relation of the two grids along each axis; an unknown border is a part of the fine one."""
        axes = self.geometry.grid_axes
        if not self.boundary.is_unknown:
            return axes
        return tuple(replace(a, n_fine=a.n_fine + a.before + a.after, before=0, after=0) for a in axes)

    def plain_taps(self, kernel: Tensor) -> Tensor:
        """Give the taps of the layer's plain convolutions, shape `(groups, O, I, *k')`.

        Phases are channels (`phases.py`): those of the image, or those of the output of a transposed layer.
        """
        found = rearranged_taps(kernel, self.grid_axes, self.options.groups)
        return transposed_taps(found) if self.options.transposed else found

    @cached_property
    def spectrum(self) -> Spectrum:
        """The extreme singular values of the symbol of the phases, for the group with the largest."""
        torus = tuple(-(-axis.n_fine // axis.stride) for axis in self.geometry.grid_axes)
        found = [self._spectrum_of(group, torus) for group in self._loudest_groups(torus)]
        return max(found, key=lambda spectrum: spectrum.sigma_max)

    def _spectrum_of(self, group: int, torus: Size) -> Spectrum:
        return kernel_spectrum(self.kernel, torus, lambda kernel: self.plain_taps(kernel)[group])

    def _loudest_groups(self, torus: Size) -> list[int]:
        """Find the groups that may have the largest singular value, on few frequencies."""
        taps = to_float64(self.plain_taps(self.kernel.detach()))
        n_groups, n_outputs = taps.shape[:2]
        if n_groups == 1:
            return [0]
        grid = affordable_grid(torus, taps.shape[1:3], max_block_operations=MAX_BLOCK_OPERATIONS / n_groups)
        symbol = torus_symbol(taps.flatten(0, 1), grid).unflatten(-2, (n_groups, n_outputs))
        largest = singular_values(symbol).amax(-1).flatten(0, -2).amax(0)
        return torch.nonzero(largest >= NEARLY * largest.max()).flatten().tolist()

    @property
    def mean_square_gain(self) -> Tensor:
        """The mean square of the singular values of the symbol of the phases, of all groups."""
        taps = to_float64(self.plain_taps(self.kernel.detach()))
        return taps.square().sum() / (taps.shape[0] * min(taps.shape[1:3]))

    @property
    def constant_gains(self) -> Tensor:
        """The gains of constant channels away from the border, shape `(n, C_in)`, a row for each phase."""
        gains = self.plain_taps(to_float64(self.kernel)).sum(dim=space_axes(len(self.geometry.image_size)))
        if not self.options.transposed:  # all phases of a constant are equal
            gains = gains.unflatten(-1, (self.kernel.shape[1], -1)).sum(dim=-1)
        return torch.block_diag(*gains)

    def touched(self) -> Tensor:
        """Find the pixels that some output depends on, by the places of the taps: booleans, shape `input_shape[1:]`."""
        geometry, taps = self.geometry, self.kernel.new_ones(1, 1, *self.geometry.kernel_size)
        options = replace(self.options, groups=1)
        layer = LayerConvolution(taps, geometry.image_size, options, padding=geometry.pads, boundary=self.boundary)
        return layer.adjoint(self.kernel.new_ones(layer.output_shape))[0] != 0
