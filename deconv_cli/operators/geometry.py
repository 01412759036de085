"""How far a kernel reaches outside the image, and the sizes that follow."""

from __future__ import annotations

from dataclasses import dataclass

from deconv_cli.errors import ShapeError, UsageError
from deconv_cli.vocabulary import PADDING_WORDS, PaddingLike, Size


@dataclass(frozen=True)
class Pads:
    """Pixels added on each side before the kernel is slid over what is then inside."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def total(self) -> Size:
        """Rows and columns added altogether."""
        return self.top + self.bottom, self.left + self.right


def resolve_padding(padding: PaddingLike, kernel_size: Size) -> Pads:
    """Turn a padding, as torch words it, into pixels on each side.

    `same` adds `k - 1` pixels, the odd one at the end, as `torch.nn.functional.conv2d(padding="same")` does.

    Raises:
        UsageError: the padding is not a known word, nor one or two whole numbers.
    """
    height, width = kernel_size
    if padding == "same":
        top, left = (height - 1) // 2, (width - 1) // 2
        return Pads(top, height - 1 - top, left, width - 1 - left)
    if padding == "valid":
        return Pads(0, 0, 0, 0)
    if padding == "full":
        return Pads(height - 1, height - 1, width - 1, width - 1)
    numbers = (padding, padding) if isinstance(padding, int) else padding
    if (
        not isinstance(numbers, (tuple, list))
        or len(numbers) != 2
        or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers)
    ):
        raise UsageError(
            f"padding must be {', '.join(PADDING_WORDS)}, a whole number or a pair of them, but is {padding!r}."
        )
    return Pads(numbers[0], numbers[0], numbers[1], numbers[1])


@dataclass(frozen=True)
class Geometry:
    """The sizes of one convolution: image → extended image → output.

    Attributes:
        image_size: height and width of the image x.
        kernel_size: height and width of the kernel.
        pads: pixels added around x.
    """

    image_size: Size
    kernel_size: Size
    pads: Pads

    @property
    def extended_size(self) -> Size:
        """Height and width of x with its border."""
        rows, columns = self.pads.total
        return self.image_size[0] + rows, self.image_size[1] + columns

    @property
    def output_size(self) -> Size:
        """Height and width of y."""
        return (
            self.extended_size[0] - self.kernel_size[0] + 1,
            self.extended_size[1] - self.kernel_size[1] + 1,
        )

    @classmethod
    def of_image(cls, image_size: Size, kernel_size: Size, padding: PaddingLike) -> Geometry:
        """Lay out the convolution of an image of known size.

        Raises:
            ShapeError: the image is empty, or the kernel does not fit into the padded image.
        """
        geometry = cls(image_size, kernel_size, resolve_padding(padding, kernel_size))
        if min(image_size) < 1:
            raise ShapeError(f"the image must hold at least one pixel, but its size is {_by(image_size)}.")
        if min(geometry.output_size) < 1:
            raise ShapeError(
                f"a kernel of {_by(kernel_size)} does not fit into an image of {_by(image_size)} "
                f"with padding {padding}; use a smaller kernel, or padding 'same' or 'full'."
            )
        return geometry

    @classmethod
    def of_output(cls, output_size: Size, kernel_size: Size, padding: PaddingLike) -> Geometry:
        """Lay out the convolution whose output has a known size.

        Raises:
            ShapeError: no image gives an output of this size.
        """
        rows, columns = resolve_padding(padding, kernel_size).total
        image_size = (
            output_size[0] + kernel_size[0] - 1 - rows,
            output_size[1] + kernel_size[1] - 1 - columns,
        )
        if min(image_size) < 1 or min(output_size) < 1:
            raise ShapeError(
                f"no image gives an output of {_by(output_size)} under a kernel of {_by(kernel_size)} "
                f"with padding {padding}; a larger output or a smaller padding is needed."
            )
        return cls.of_image(image_size, kernel_size, padding)

    def check_boundary(self, boundary: str) -> None:
        """Refuse a border that reaches further than the image can supply, as torch does.

        Raises:
            ShapeError: a mirrored or periodic border is wider than the image allows.
        """
        slack = {"reflect": 1, "symmetric": 0, "circular": 0}.get(boundary)
        if slack is None:
            return
        reach = (max(self.pads.top, self.pads.bottom), max(self.pads.left, self.pads.right))
        if any(pad > n - slack for pad, n in zip(reach, self.image_size, strict=True)):
            raise ShapeError(
                f"a kernel of {_by(self.kernel_size)} reaches {_by(reach)} pixels outside an image of "
                f"{_by(self.image_size)}, too far for a {boundary} boundary; "
                "use a larger image, or boundary zero, replicate or unknown."
            )


def _by(size: Size) -> str:
    return f"{size[0]}×{size[1]}"
