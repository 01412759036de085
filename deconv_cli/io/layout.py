"""Conversion between the axes of a file and batch, channels and axes of space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from deconv_cli.errors import MalformedInputError, UsageError
from deconv_cli.vocabulary import AXES_BY_SHAPE

SPACE = "ZYX"
"""Letters of the axes of space; a signal has the last one, a picture the last two, a stack all three."""

_BATCH_AND_CHANNELS = "BC"


@dataclass(frozen=True)
class Layout:
    """Letters and sizes of axes: the last `dimensions` of Z, Y and X are space, C and S channels, others batch."""

    axes: str
    sizes: tuple[int, ...]
    dimensions: int = 2

    def __post_init__(self) -> None:
        if len(self.axes) != len(self.sizes):
            raise UsageError(
                f"axes '{self.axes}' name {len(self.axes)} axes, but the shape {self.sizes} has {len(self.sizes)}."
            )
        if not self.axes.isalpha():
            raise UsageError(f"axes '{self.axes}' must be letters, one for each axis, for instance CYX.")
        repeated = [letter for letter in f"{self.space}CS" if self.axes.count(letter) > 1]
        if set(self.space) - set(self.axes) or repeated:
            named = " and ".join(filter(None, (", ".join(self.space[:-1]), self.space[-1])))
            raise UsageError(f"axes '{self.axes}' must name {named} once each, and C and S at most once.")

    @property
    def space(self) -> str:
        """Letters of the axes of space, in the order of images."""
        return SPACE[-self.dimensions :]

    @property
    def channel_axes(self) -> tuple[int, ...]:
        """Positions of C and S, in this order."""
        return tuple(self.axes.index(letter) for letter in "CS" if letter in self.axes)

    @property
    def batch_axes(self) -> tuple[int, ...]:
        """Positions of the axes that are neither space nor channels."""
        return tuple(i for i, letter in enumerate(self.axes) if letter not in f"{self.space}CS")

    @property
    def n_batch(self) -> int:
        """Number of images in the batch."""
        return math.prod(self.sizes[i] for i in self.batch_axes)

    @property
    def n_channels(self) -> int:
        """Number of channels."""
        return math.prod(self.sizes[i] for i in self.channel_axes)

    @property
    def _order(self) -> tuple[int, ...]:
        return (*self.batch_axes, *self.channel_axes, *(self.axes.index(letter) for letter in self.space))

    def to_images(self, values: torch.Tensor) -> torch.Tensor:
        """Reorder a tensor of shape `sizes` to (B, C, *space)."""
        ordered = values.permute(self._order)
        return ordered.reshape(self.n_batch, self.n_channels, *ordered.shape[-self.dimensions :]).contiguous()

    def from_images(self, values: torch.Tensor) -> torch.Tensor:
        """Reorder (B, C, *space) to the axes of this layout; the sizes of space may be new."""
        sizes = [self.sizes[i] for i in self._order[: -self.dimensions]]
        ordered = values.reshape(*sizes, *values.shape[-self.dimensions :])
        inverse = sorted(range(len(self._order)), key=self._order.__getitem__)
        return ordered.permute(inverse).contiguous()

    def region(self, batch: Sequence[slice], space: Sequence[slice]) -> tuple[slice, ...]:
        """Build a region from the parts of `batch_axes` and of the axes of space; it spans all channels."""
        found = [slice(0, n) for n in self.sizes]
        places = (*self.batch_axes, *(self.axes.index(letter) for letter in self.space))
        for place, part in zip(places, (*batch, *space), strict=True):
            found[place] = part
        return tuple(found)

    def resized(self, **sizes: int) -> Layout:
        """Change the sizes of some axes."""
        return replace(self, sizes=tuple(sizes.get(a, n) for a, n in zip(self.axes, self.sizes, strict=True)))

    def resized_space(self, size: Sequence[int]) -> Layout:
        """Change the size in space, `(D, H, W)` or its last ones."""
        return self.resized(**dict(zip(self.space, size, strict=True)))

    def with_channels(self, n_channels: int) -> Layout:
        """Change the number of channels: S becomes C, and a single channel keeps an axis C if there is one."""
        if n_channels == self.n_channels:
            return self
        kept = [(a, n) for a, n in zip(self.axes, self.sizes, strict=True) if a not in "CS"]
        if n_channels > 1 or "C" in self.axes:
            place = self.axes.index("C") if "C" in self.axes else min(self.axes.index(letter) for letter in self.space)
            place -= int("S" in self.axes[:place])
            kept.insert(place, ("C", n_channels))
        return self._of(kept)

    def squeezed(self, keep: str = "YX") -> Layout:
        """Drop axes of size one, as TIFF readers do, except those named in `keep`."""
        kept = [(a, n) for a, n in zip(self.axes, self.sizes, strict=True) if n > 1 or a in keep]
        return self._of(kept)

    def planes_last(self) -> Layout:
        """Order the axes as batch, C, space, S unless they already end in a plane or its samples."""
        if self.axes.endswith(("YX", "YXS", "SYX")):
            return self
        return self.ordered(f"C{self.space}S")

    def ordered(self, letters: str) -> Layout:
        """Move the axes of some letters, in their order, behind all others."""
        named = [(letter, size) for letter, size in zip(self.axes, self.sizes, strict=True) if letter in letters]
        others = [(letter, size) for letter, size in zip(self.axes, self.sizes, strict=True) if letter not in letters]
        return self._of([*others, *sorted(named, key=lambda axis: letters.index(axis[0]))])

    def _of(self, axes: Sequence[tuple[str, int]]) -> Layout:
        return replace(self, axes="".join(letter for letter, _ in axes), sizes=tuple(size for _, size in axes))


def letters_of_tensor(n_axes: int, dimensions: int | None = None) -> str | None:
    """Choose the letters of the axes of a tensor, for instance CYX.

    Args:
        n_axes: number of axes.
        dimensions: number of axes of space; `None` assumes a signal for one axis, pictures for two to four, and stacks
            for five.

    Returns:
        The letters; `None` for numbers of axes that are not understood.
    """
    found = AXES_BY_SHAPE.get(n_axes) if dimensions is None else dimensions
    if found is None or not found <= n_axes <= found + len(_BATCH_AND_CHANNELS):
        return None
    return (_BATCH_AND_CHANNELS + SPACE[-found:])[-n_axes:]


def tensor_axes(path: object, n_axes: int) -> str:
    """Choose the letters of the axes of a tensor; raises `MalformedInputError` if their number is not understood."""
    letters = letters_of_tensor(n_axes)
    if letters is None:
        raise MalformedInputError(
            f"'{path}' should hold a tensor of one to five axes (X, YX, CYX, BCYX, BCZYX), but it has {n_axes}; name "
            'them, for instance axes="TZCYX".'
        )
    return letters


def dimensions_of(axes: str) -> int:
    """Count the axes of space of images without a kernel: planes, else lines."""
    return 2 if "Y" in axes or "X" not in axes else 1
