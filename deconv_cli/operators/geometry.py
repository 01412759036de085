"""The reach of a kernel outside the image, and the sizes of convolutions and layers; no memory is allocated."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TypeAlias

from deconv_cli.errors import ShapeError, UsageError
from deconv_cli.layer_options import PLAIN, AxisOptions, LayerOptions
from deconv_cli.operators.boundary_rules import BoundaryRule
from deconv_cli.parts import BOUNDARIES
from deconv_cli.vocabulary import PADDING_WORDS, PaddingLike, Size, check_padding, format_size, name_some


@dataclass(frozen=True)
class Pads:
    """Pixels added around an image before the kernel slides over it.

    Attributes:
        before: for each axis, the pixels ahead of the first pixel: above, and to the left.
        after: for each axis, the pixels behind the last pixel.
    """

    before: Size
    after: Size

    @property
    def total(self) -> Size:
        """Total number of pixels added along each axis."""
        return tuple(b + a for b, a in zip(self.before, self.after, strict=True))


Padding: TypeAlias = "PaddingLike | Pads"
"""How much is added around an image: in torch's words, or the pixels on every side."""


def resolve_padding(padding: Padding, kernel_size: Size) -> Pads:
    """Turn a padding, as torch words it, into pixels on each side, for taps along each axis.

    `same` adds `k - 1` pixels, the odd one at the end, as `torch.nn.functional.conv2d(padding="same")` does.

    Raises:
        UsageError: the padding is not a word of torch, a whole number, one or a pair for each axis, or `Pads`.
    """
    if isinstance(padding, Pads):
        return padding
    reach = tuple(k - 1 for k in kernel_size)
    if padding == "same":
        before = tuple(r // 2 for r in reach)
        return Pads(before, tuple(r - b for r, b in zip(reach, before, strict=True)))
    if padding == "valid":
        return Pads((0,) * len(reach), (0,) * len(reach))
    if padding == "full":
        return Pads(reach, reach)
    checked = check_padding(padding)
    sides = (checked,) * len(reach) if isinstance(checked, int) else checked
    if not isinstance(sides, tuple) or len(sides) != len(reach):
        raise UsageError(
            f"padding must be {', '.join(PADDING_WORDS)}, a whole number or one for each of the {len(reach)} axes, "
            f"but is {padding!r}."
        )
    pairs = [side if isinstance(side, tuple) else (side, side) for side in sides]
    return Pads(tuple(before for before, _ in pairs), tuple(after for _, after in pairs))


@dataclass(frozen=True)
class GridAxis:
    """One axis of a layer: `coarse[o] = Σ_t K[t]·fine[stride·o + dilation·t − before]`.

    `before` and `after` count the pixels of the border outside the fine grid, ahead of its first pixel and behind its
    last.
    """

    n_fine: int
    n_coarse: int
    n_taps: int
    stride: int
    dilation: int
    before: int
    after: int


@dataclass(frozen=True)
class Geometry:
    """The sizes of one convolution or layer: image → extended image → output, each a tuple with one number per axis.

    A transposed layer cuts the pads off its output, as torch does.

    Attributes:
        image_size: pixels of the image x.
        kernel_size: taps of the kernel.
        pads: pixels added around x.
        options: stride, dilation, groups and direction of a layer.
    """

    image_size: Size
    kernel_size: Size
    pads: Pads
    options: LayerOptions = PLAIN

    @cached_property
    def steps(self) -> AxisOptions:
        """Stride, dilation and output padding along each axis."""
        return self.options.over_axes(len(self.kernel_size))

    @property
    def reach(self) -> Size:
        """Taps along each axis with the gaps between them."""
        return reach_of(self.kernel_size, self.options)

    @property
    def extended_size(self) -> Size:
        """Pixels of x with its border; a transposed convolution has none."""
        if self.options.transposed:
            return self.image_size
        return tuple(n + pad for n, pad in zip(self.image_size, self.pads.total, strict=True))

    @cached_property
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
        """The relation between the two grids along each axis."""
        steps, sizes = self.steps, (self.image_size, self.output_size)
        fine, coarse = reversed(sizes) if self.options.transposed else sizes
        values = (fine, coarse, self.kernel_size, steps.stride, steps.dilation, self.pads.before, self.pads.after)
        return tuple(GridAxis(*numbers) for numbers in zip(*values, strict=True))

    @classmethod
    def of_image(cls, image_size: Size, kernel_size: Size, padding: Padding, options: LayerOptions = PLAIN) -> Geometry:
        """Lay out the convolution of an image of known size.

        Raises:
            ShapeError: the image is empty or has another number of axes, or the kernel does not fit into it padded.
            UsageError: no such padding is known, or the options are for another number of axes.
        """
        if len(image_size) != len(kernel_size):
            raise ShapeError(
                f"a kernel of {format_size(kernel_size)} needs an image with {len(kernel_size)} axes of space, but the "
                f"image has the size {format_size(image_size)}."
            )
        if min(image_size) < 1:
            raise ShapeError(f"the image must hold at least one pixel, but its size is {format_size(image_size)}.")
        pads = resolve_padding(padding, reach_of(kernel_size, options))
        geometry = cls(tuple(image_size), tuple(kernel_size), pads, options)
        if min(geometry.output_size) < 1:
            raise ShapeError(
                f"a kernel of {format_size(kernel_size)} does not fit into an image of {format_size(image_size)} with "
                f"padding {padding}{_and_layer(options)}; use a smaller kernel, a larger image, or padding 'same' or "
                "'full'."
            )
        return geometry

    @classmethod
    def of_output(cls, output_size: Size, kernel_size: Size, padding: Padding) -> Geometry:
        """Lay out the convolution whose output has a known size; errors are those of `pick_input_size`."""
        return cls.of_image(pick_input_size(output_size, kernel_size, padding, PLAIN), kernel_size, padding)

    def check_boundary(self, boundary: BoundaryRule) -> None:
        """Refuse, by `ShapeError`, a boundary that reaches further than the image can supply, as torch does.

        A transposed layer refuses, by `UsageError`, any boundary but zeros.
        """
        if self.options.transposed and not boundary.is_zero:
            raise UsageError(
                "a transposed convolution reads no pixel outside of its input, so its boundary must be zero, but is "
                f"{boundary.name}; leave it out."
            )
        widths = tuple(max(sides) for sides in zip(self.pads.before, self.pads.after, strict=True))
        limits = [boundary.along(axis).reach(n) for axis, n in enumerate(self.image_size)]
        if self.options.transposed or all(
            limit is None or width <= limit for width, limit in zip(widths, limits, strict=True)
        ):
            return
        others = [name for name in BOUNDARIES if BOUNDARIES[name].reach(1) is None]
        raise ShapeError(
            f"a kernel of {format_size(self.kernel_size)} reaches {format_size(widths)} pixels outside an image of "
            f"{format_size(self.image_size)}, too far for a {boundary.name} boundary; "
            f"use a larger image, or boundary {', '.join(others[:-1])} or {others[-1]}."
        )


def reach_of(kernel_size: Size, options: LayerOptions) -> Size:
    """Count the taps along each axis with the gaps between them."""
    dilation = options.over_axes(len(kernel_size)).dilation
    return tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel_size, strict=True))


def input_sizes(output_size: Size, kernel_size: Size, padding: Padding, options: LayerOptions) -> tuple[range, ...]:
    """List the possible sizes of an image along each axis for an output of a known size; none is a `ShapeError`."""
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
            f"padding {padding}{_and_layer(options)}; check them, use a smaller padding, or give data of another size."
        )
    return tuple(found)


def pick_input_size(
    output_size: Size, kernel_size: Size, padding: Padding, options: LayerOptions, wanted: Size | None = None
) -> Size:
    """Choose among the possible sizes of an image: the wanted one, else stride × output, else the smallest.

    Raises:
        ShapeError: the wanted size is not possible; the message lists the possible ones.
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
    raise ShapeError(
        f"an image of {format_size(tuple(wanted))} does not give an output of {format_size(output_size)} under a "
        f"kernel of {format_size(kernel_size)} with padding {padding}{_and_layer(options)}; its size may be "
        f"{name_some(listed, 9)}."
    )


def _and_layer(options: LayerOptions) -> str:
    """Write stride, dilation and the rest behind a padding; nothing for a plain convolution."""
    return "" if options.is_plain else f" and {options.describe()}"
