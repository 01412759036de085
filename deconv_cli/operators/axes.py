"""The axes of an image in a tensor, and its norms: space comes last, channels before it, and batches before those."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from deconv_cli.vocabulary import Size

# Numbers of a few arrays that fit a processor's cache together. With fewer, busy cores wait for one another more often
# than they compute.
SLAB = 2**21


def space_axes(n_axes: int) -> tuple[int, ...]:
    """List the axes of space, counted from the end: `(-2, -1)` for two."""
    return tuple(range(-n_axes, 0))


def image_axes(n_axes: int) -> tuple[int, ...]:
    """List the axes of an image, its channels and those of space: `(-3, -2, -1)` for two of space."""
    return tuple(range(-n_axes - 1, 0))


def spread(lines: Sequence[Tensor]) -> list[Tensor]:
    """Shape the numbers along each axis, `(n,)`, to be broadcast against those along the others."""
    return [line.reshape(-1, *[1] * (len(lines) - 1 - axis)) for axis, line in enumerate(lines)]


def per_image(values: Tensor, n_axes: int) -> Tensor:
    """Shape one number for each image, `(*batch,)`, to multiply images `(*batch, C, *size)` by."""
    return values.reshape(*values.shape, *[1] * (n_axes + 1))


def crop(x: Tensor, start: Size, size: Size) -> Tensor:
    """Cut a box of `size` that begins at `start` out of `x` of shape `(*, *larger size)`, without copying it."""
    for axis, first, length in zip(space_axes(len(size)), start, size, strict=True):
        x = x.narrow(axis, first, length)
    return x


def resized(x: Tensor, size: Size) -> Tensor:
    """Crop the last axes of `x` to a size, or fill them up with zeros, around the middle `(n - 1) // 2` of each."""
    margins = []
    for longer, n in zip(reversed(size), reversed(x.shape), strict=False):
        before = (longer - 1) // 2 - (n - 1) // 2
        margins += [before, longer - n - before]
    return functional.pad(x, margins)


def masked(numbers: Sequence[int], is_kept: Sequence[bool]) -> Size:
    """Keep the numbers of some axes, and replace the others by zero."""
    return tuple(n if is_one else 0 for n, is_one in zip(numbers, is_kept, strict=True))


def planes_of(x: Tensor, part: slice, n_axes: int) -> Tensor:
    """View a part of the first of `n_axes` axes of space of `x`."""
    start, stop, _ = part.indices(x.shape[-n_axes])
    return x.narrow(-n_axes, start, stop - start)


def slabs(n_axes: int, *arrays: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut arrays across their first axis of space, into views so small that one stays in the cache from pass to pass.

    Several passes over arrays larger than the cache would wait for the memory. Other devices than the processor get the
    whole at once. The arrays have the shape `(*batch, C, *size)` with the same size of space.
    """
    first = arrays[0]
    axis, length = -n_axes, first.shape[-n_axes]
    thickness = length
    if first.device.type == "cpu":
        thickness = max(1, SLAB * length // max(math.prod(first.shape), 1))
    for start in range(0, length, thickness):
        yield tuple(array.narrow(axis, start, min(thickness, length - start)) for array in arrays)


def half_spectrum(torus: Size) -> Size:
    """Return the shape of `torch.fft.rfftn` of a real field on a torus."""
    return *torus[:-1], torus[-1] // 2 + 1


def half_weights(length: int, like: Tensor) -> Tensor:
    """Count how often each frequency of `torch.fft.rfft` occurs among all of a line: 2, but 1 at the ends."""
    weights = like.new_full((length // 2 + 1,), 2.0)
    weights[0] = 1.0
    if length % 2 == 0:
        weights[-1] = 1.0
    return weights


def join_neighbors(x: Tensor, reach: Size, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Join the samples in a box of a reach around each along the last axes, by an operation in place; outside is zero.

    `Tensor.bitwise_or_` widens a mask. Pools of torch take 3 to 20 times as long.
    """
    for axis, longest in zip(space_axes(len(reach)), reach, strict=True):
        total, n = x.clone(), x.shape[axis]
        for step in range(1, min(longest, n - 1) + 1):
            join(total.narrow(axis, 0, n - step), x.narrow(axis, step, n - step))
            join(total.narrow(axis, step, n - step), x.narrow(axis, 0, n - step))
        x = total
    return x


def squared_gradient(images: Tensor, n_axes: int) -> Tensor:
    """Add up the squared differences to the next pixel along each axis of space, of images `(*batch, C, *space)`."""
    total = torch.zeros_like(images)
    for axis in space_axes(n_axes):
        last = images.select(axis, -1).unsqueeze(axis)
        total = total + images.diff(dim=axis, append=last).square()
    return total


def squared_modulus(values: Tensor) -> Tensor:
    """Compute |z|² of complex or real numbers of any shape.

    A sum over `view_as_real`'s last axis takes five times as long, `abs`, which guards against overflow, eight times.
    """
    squares = values.real.square()
    return squares.addcmul_(values.imag, values.imag) if values.is_complex() else squares


# Axes of what is summed at once: those of an image.
IMAGE_DIMS = 3
# Up to this many float32 numbers add up without a loss that a certificate would show.
MAX_ROW = 2**14
# Products of long vectors that are added up at once; the products, also in double precision, take three times as much.
MAX_NUMBERS_AT_ONCE = 2**20


def inner(a: Tensor, b: Tensor, n_dims: int) -> Tensor:
    """Compute the inner product over the last `n_dims` axes, shape `(*batch,)`, in the widest real type."""
    if a is b and n_dims > 1 and a.shape[-1] <= MAX_ROW:
        return norm(a, n_dims).square()
    if n_dims > IMAGE_DIMS:
        # Plane by plane: the products of a stack, also in double precision, take three times its memory.
        planes = zip(a.unbind(1 - n_dims), b.unbind(1 - n_dims), strict=True)
        return torch.stack([inner(p, q, n_dims - 1) for p, q in planes]).sum(dim=0)
    if n_dims == 1 and a.shape[-1] > MAX_NUMBERS_AT_ONCE:
        parts = zip(a.split(MAX_NUMBERS_AT_ONCE, -1), b.split(MAX_NUMBERS_AT_ONCE, -1), strict=True)
        return torch.stack([inner(p, q, 1) for p, q in parts]).sum(dim=0)
    product = a * b
    if n_dims == 0:
        return product.to(accumulation_dtype(a))
    if n_dims > 1 and a.shape[-1] <= MAX_ROW:  # line by line, as in `norm`
        product = product.sum(dim=-1, keepdim=True)
    return product.sum(dim=tuple(range(-n_dims, 0)), dtype=accumulation_dtype(a))


def norm(a: Tensor, n_dims: int) -> Tensor:
    """Compute the Euclidean norm over the last `n_dims` axes, shape `(*batch,)`, in the widest real type."""
    if n_dims == 0 or a.shape[-1] > MAX_ROW:
        return inner(a, a, n_dims).sqrt()
    # Line by line: products of whole images, added up in double precision, take ten times as long.
    lines = torch.linalg.vector_norm(a, dim=-1).to(accumulation_dtype(a))
    return lines if n_dims == 1 else torch.linalg.vector_norm(lines, dim=tuple(range(1 - n_dims, 0)))


def as_factor(numbers: Tensor, like: Tensor, n_dims: int) -> Tensor:
    """Shape numbers `(*batch,)` to multiply elements of `n_dims` axes by, in the dtype of `like`."""
    return numbers.to(like.dtype).reshape(*numbers.shape, *[1] * n_dims)


def relative(size: Tensor, scale: Tensor) -> Tensor:
    """Divide norms, leaving those as they are whose scale is zero."""
    return torch.where(scale > 0, size / scale.clamp_min(1e-300), size)


def safe_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide, giving 0 where the denominator is not positive: for images that are solved already."""
    return torch.where(denominator > 0, numerator / denominator.clamp_min(1e-300), 0)


def accumulation_dtype(a: Tensor) -> torch.dtype:
    """Return the widest real type in which the device can compute sums."""
    return a.dtype if a.device.type == "mps" else torch.float64
