"""Pairs of images as what kernels are fitted to: checked, split by channels and laid out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from deconv_cli.errors import MalformedInputError, ShapeError, TooLargeError, UsageError
from deconv_cli.kernels.fit.pair_equations import Pair
from deconv_cli.operators.boundaries.rule import BoundaryRule
from deconv_cli.operators.linear_operator import check_tensor
from deconv_cli.solvers.solver import free_memory
from deconv_cli.vocabulary import Size, check_name, format_memory, format_size
from deconv_cli.workflows.arithmetic import check_image

CHANNELS = ("shared", "each", "mix")
"""One kernel for all channels, one for each, or one that mixes them."""
N_MATRICES = 8
"""Square matrices of all taps that are held at once."""


def checked_size(size: object) -> Size:
    """Read the size of a kernel: one number of taps for each axis of space.

    Raises:
        UsageError: it is not so many positive whole numbers.
    """
    if not isinstance(size, tuple | list) or not 1 <= len(size) <= 3:
        raise UsageError(f"size must hold one number of taps for each of one to three axes, but is {size!r}.")
    if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in size):
        raise UsageError(f"size must hold positive whole numbers of taps, but is {size!r}.")
    return tuple(size)


def check_constraints(channels: str, lam: float | None, *, unit_sum: bool) -> None:
    """Refuse what cannot be asked of taps.

    Raises:
        UsageError: a weight that is not positive, or a sum of taps that mix channels.
    """
    if unit_sum and channels == "mix":
        raise UsageError(
            "unit_sum is for kernels that do not mix channels; leave it out, or take one for each channel."
        )
    if lam is not None and not (math.isfinite(lam) and lam > 0):
        raise UsageError(f"lam must be a positive number, or left out to be chosen, but is {lam}.")


def as_pairs(pairs: Iterable[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """List pairs of a sharp and a blurred image.

    Raises:
        UsageError: they are no pairs, or not of tensors.
    """
    try:
        listed = [(sharp, blurred) for sharp, blurred in pairs]
    except (TypeError, ValueError) as error:
        raise UsageError(
            "pairs must hold pairs of a sharp and a blurred image, but what was given does not come apart into two "
            f"tensors each, as it is of type {type(pairs).__name__}."
        ) from error
    for sharp, blurred in listed:
        check_tensor(sharp, "the sharp image")
        check_tensor(blurred, "the blurred image")
    return listed


def group_pairs(
    pairs: Sequence[tuple[Tensor, Tensor]], size: Size, channels: str, boundary: BoundaryRule
) -> list[list[Pair]]:
    """Lay out what each kernel is fitted to: all images, or those of one channel.

    Args:
        pairs: sharp and blurred, each of shape `(C, *size)` or `(B, C, *size)`.
        size: of the kernel.
        channels: one of `CHANNELS`.
        boundary: what lies outside the sharp images.

    Returns:
        The pairs of each kernel, in the same order for all.

    Raises:
        UsageError: there are none.
        ShapeError: images that do not fit one another, or the kernel.
        MalformedInputError: images that are not finite, or zero everywhere.
    """
    check_name(CHANNELS, channels, "channels")
    images = [one for sharp, blurred in as_pairs(pairs) for one in _one_by_one(sharp, blurred, len(size))]
    if not images:
        raise UsageError("a kernel is fitted to pairs of a sharp and a blurred image, but there are none.")
    counts = {(len(sharp), len(blurred)) for sharp, blurred in images}
    if len(counts) > 1:
        raise ShapeError(
            "all sharp images should have as many channels, and all blurred ones, but there are pairs of "
            f"{' and '.join(f'{a} and {b}' for a, b in sorted(counts)[:2])}; leave one kind out."
        )
    ((n_sharp, n_blurred),) = counts
    if channels != "mix" and n_sharp != n_blurred:
        raise ShapeError(
            f"sharp and blurred images should have as many channels, but have {n_sharp} and {n_blurred}; "
            'channels="mix" finds a kernel between different ones.'
        )
    if not any(bool(sharp.any()) for sharp, _ in images):
        raise MalformedInputError("the sharp images are zero everywhere, so that they tell nothing of a kernel.")
    if channels == "mix":
        return [[Pair.of(sharp, blurred, size, boundary) for sharp, blurred in images]]
    by_channel = [
        [Pair.of(sharp[c : c + 1], blurred[c : c + 1], size, boundary) for sharp, blurred in images]
        for c in range(n_sharp)
    ]
    return by_channel if channels == "each" else [[pair for group in by_channel for pair in group]]


def _one_by_one(sharp: Tensor, blurred: Tensor, n_axes: int) -> list[tuple[Tensor, Tensor]]:
    """Split a pair of batches into pairs of images `(C, *size)`."""
    for image, role in ((sharp, "the sharp image"), (blurred, "the blurred image")):
        check_image(image, role)
        if image.ndim not in (n_axes + 1, n_axes + 2):
            raise ShapeError(
                f"{role} should have its channels, and perhaps a batch, ahead of {n_axes} axes of space, but is of "
                f"shape {tuple(image.shape)}."
            )
    if sharp.ndim != blurred.ndim or (sharp.ndim == n_axes + 2 and len(sharp) != len(blurred)):
        raise ShapeError(
            f"sharp and blurred images should come in equal numbers, but are of shapes {tuple(sharp.shape)} and "
            f"{tuple(blurred.shape)}."
        )
    if sharp.ndim == n_axes + 1:
        return [(sharp.detach().cpu(), blurred.detach().cpu())]
    return list(zip(sharp.detach().cpu(), blurred.detach().cpu(), strict=True))


def arrange_taps(columns: Sequence[Tensor], size: Size, channels: str) -> Tensor:
    """Bring taps into the order of torch.

    Args:
        columns: those of each group of pairs, shape `(C_in·prod(k), C_out)`.
        size: of the kernel.
        channels: one of `CHANNELS`.

    Returns:
        Shape `(*k)`, `(C, *k)` or `(C_out, C_in, *k)`.
    """
    taps = torch.stack([column.T.reshape(column.shape[1], -1, *size) for column in columns])
    return taps[0] if channels == "mix" else taps[:, 0, 0] if channels == "each" else taps[0, 0, 0]


def check_memory(n_taps: int, size: Size) -> None:
    """Refuse kernels whose normal equations would not fit the memory.

    Raises:
        TooLargeError: they would not.
    """
    needed, available = 8 * N_MATRICES * n_taps**2, free_memory(torch.device("cpu"))
    if needed > available:
        raise TooLargeError(
            f"a fit of {n_taps} taps on {format_size(size)} takes about {format_memory(needed)}, more than the "
            f"{format_memory(available)} that are free; use a smaller size, or fit each channel by itself."
        )
