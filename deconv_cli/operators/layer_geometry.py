"""The sizes of a layer with stride, dilation, or the transposed direction; nothing here allocates memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product

from deconv_cli.errors import ShapeError, UsageError
from deconv_cli.layer_options import PLAIN, AxisOptions, LayerOptions
from deconv_cli.operators.boundaries.rule import BoundaryRule
from deconv_cli.operators.geometry import Geometry, Padding, check_image_size, resolve_padding
from deconv_cli.vocabulary import Size, format_size


@dataclass(frozen=True)
class GridAxis:
    """One axis of a layer: `coarse[o] = Σ_t K[t]·fine[stride·o + dilation·t − before]`.

    Attributes:
        n_fine: pixels of the fine grid; positions outside of it are the border.
        n_coarse: pixels of the coarse grid.
        n_taps: of the kernel.
        stride: see above.
        dilation: see above.
        before: pixels of the border ahead of the first one.
        after: pixels of the border behind the last one.
    """

    n_fine: int
    n_coarse: int
    n_taps: int
    stride: int
    dilation: int
    before: int
    after: int


@dataclass(frozen=True)
class LayerGeometry(Geometry):
    """The sizes of one layer; of a transposed one the pads are cut off its output, as torch's padding is.

    Attributes:
        options: stride, dilation and the rest.
    """

    options: LayerOptions = field(default=PLAIN)

    @property
    def steps(self) -> AxisOptions:
        """Stride, dilation and output padding along each axis."""
        return self.options.over_axes(len(self.kernel_size))

    @property
    def reach(self) -> Size:
        """Taps along each axis with the gaps between them."""
        return reach_of(self.kernel_size, self.options)

    @property
    def extended_size(self) -> Size:
        """Pixels of x with its border; a transposed convolution looks at none."""
        return self.image_size if self.options.transposed else super().extended_size

    @property
    def output_size(self) -> Size:
        """Pixels of y."""
        steps = self.steps
        if self.options.transposed:
            grown = zip(self.image_size, steps.stride, self.reach, steps.output_padding, self.pads.total, strict=True)
            return tuple((n - 1) * step + reach + added - pad for n, step, reach, added, pad in grown)
        sizes = zip(self.extended_size, self.reach, steps.stride, strict=True)
        return tuple((n - reach) // step + 1 for n, reach, step in sizes)

    @property
    def grid_axes(self) -> tuple[GridAxis, ...]:
        """The relation of the two grids along each axis."""
        steps, sizes = self.steps, (self.image_size, self.output_size)
        fine, coarse = reversed(sizes) if self.options.transposed else sizes
        values = (fine, coarse, self.kernel_size, steps.stride, steps.dilation, self.pads.before, self.pads.after)
        return tuple(GridAxis(*numbers) for numbers in zip(*values, strict=True))

    def check_boundary(self, boundary: BoundaryRule) -> None:
        """Refuse a boundary that reaches further than the image can supply, or that a transposed layer never looks at.

        Raises:
            ShapeError: a mirrored or periodic border is wider than the image allows.
            UsageError: another boundary than zeros for a transposed convolution.
        """
        if not self.options.transposed:
            super().check_boundary(boundary)
        elif not boundary.is_zero:
            raise UsageError(
                f"a transposed convolution looks at no pixel outside of its input, so its boundary is zero, but is "
                f"{boundary.name}; leave it out."
            )

    @classmethod
    def of_layer(cls, image_size: Size, kernel_size: Size, padding: Padding, options: LayerOptions) -> LayerGeometry:
        """Lay out a layer on an image of known size.

        Raises:
            ShapeError: the image is empty, or the kernel does not fit into the padded image.
            UsageError: no such padding is known, or the options are for another number of axes.
        """
        check_image_size(image_size, kernel_size)
        pads = resolve_padding(padding, reach_of(kernel_size, options))
        geometry = cls(tuple(image_size), tuple(kernel_size), pads, options)
        if min(geometry.output_size) < 1:
            raise ShapeError(
                f"a layer with a kernel of {format_size(kernel_size)}, padding {padding} and {options.describe()} "
                f"gives no output for an image of {format_size(image_size)}; use a larger image, or another padding."
            )
        return geometry


def reach_of(kernel_size: Size, options: LayerOptions) -> Size:
    """Count the taps along each axis with the gaps between them."""
    dilation = options.over_axes(len(kernel_size)).dilation
    return tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel_size, strict=True))


def input_sizes(output_size: Size, kernel_size: Size, padding: Padding, options: LayerOptions) -> tuple[range, ...]:
    """List the sizes that an image may have along each axis for the layer to give an output of a known size.

    Raises:
        ShapeError: there is none.
        UsageError: no such padding is known.
    """
    reach, steps = reach_of(kernel_size, options), options.over_axes(len(kernel_size))
    pads = resolve_padding(padding, reach).total
    found = []
    for m, extent, step, added, pad in zip(output_size, reach, steps.stride, steps.output_padding, pads, strict=True):
        if options.transposed:
            n, rest = divmod(m + pad - extent - added, step)
            sizes = range(n + 1, n + 2) if rest == 0 else range(0)
        else:
            least = (m - 1) * step + extent - pad
            sizes = range(least, least + step)
        found.append(range(max(sizes.start, 1), sizes.stop))
    if min(output_size) < 1 or not all(found):
        raise ShapeError(
            f"no image gives an output of {format_size(output_size)} under a kernel of {format_size(kernel_size)} with "
            f"padding {padding}{_with(options)}; check them, or give data of another size."
        )
    return tuple(found)


def pick_input_size(
    output_size: Size, kernel_size: Size, padding: Padding, options: LayerOptions, wanted: Size | None = None
) -> Size:
    """Choose among the sizes that an image may have had: the one that is wanted, else stride × output, else the least.

    Raises:
        ShapeError: none of them is the one that is wanted; the message lists them.
        UsageError: no such padding is known.
    """
    sizes = input_sizes(output_size, kernel_size, padding, options)
    stride = options.over_axes(len(kernel_size)).stride
    if wanted is None:
        whole = tuple(step * m for step, m in zip(stride, output_size, strict=True))
        return tuple(n if n in possible else possible.start for n, possible in zip(whole, sizes, strict=True))
    if len(wanted) == len(sizes) and all(n in possible for n, possible in zip(wanted, sizes, strict=True)):
        return tuple(wanted)
    listed = [format_size(size) for size in product(*sizes)]
    more = f" and {len(listed) - 9} more" if len(listed) > 9 else ""
    raise ShapeError(
        f"an image of {format_size(tuple(wanted))} does not give an output of {format_size(output_size)} under a "
        f"kernel of {format_size(kernel_size)} with padding {padding}{_with(options)}; its size may be "
        f"{', '.join(listed[:9])}{more}."
    )


def _with(options: LayerOptions) -> str:
    return "" if options.is_plain else f" and {options.describe()}"
