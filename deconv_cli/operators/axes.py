"""The axes of space are the last ones of a tensor, the channels stand before them, and batches before those."""

from __future__ import annotations

from torch import Tensor

from deconv_cli.vocabulary import Size


def space_axes(n_axes: int) -> tuple[int, ...]:
    """List the axes of space, counted from the end: `(-2, -1)` for two."""
    return tuple(range(-n_axes, 0))


def image_axes(n_axes: int) -> tuple[int, ...]:
    """List the axes of an image, its channels and those of space: `(-3, -2, -1)` for two of space."""
    return tuple(range(-n_axes - 1, 0))


def per_image(values: Tensor, n_axes: int) -> Tensor:
    """Shape one number for each image, `(*batch,)`, to multiply images `(*batch, C, *size)` by."""
    return values.reshape(*values.shape, *[1] * (n_axes + 1))


def crop(x: Tensor, start: Size, size: Size) -> Tensor:
    """Cut a box of `size` that begins at `start` out of `x` of shape `(*, *larger size)`, without copying it."""
    for axis, first, length in zip(space_axes(len(size)), start, size, strict=True):
        x = x.narrow(axis, first, length)
    return x


def half_spectrum(torus: Size) -> Size:
    """Return the shape of what `torch.fft.rfftn` makes of a real field on a torus."""
    return *torus[:-1], torus[-1] // 2 + 1


def unravel(number: int, size: Size) -> Size:
    """Find the coordinates of an entry from its number in a flattened array of `size`."""
    coordinates = []
    for length in reversed(size):
        number, at = divmod(number, length)
        coordinates.append(at)
    return tuple(reversed(coordinates))


def format_size(size: Size) -> str:
    """Write a size as text: `480×640`."""
    return "×".join(str(n) for n in size)
