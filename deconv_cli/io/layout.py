"""How the axes of a file become batch, channels, rows and columns, and how they come back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from deconv_cli.errors import MalformedInputError, UsageError

TENSOR_AXES = {2: "YX", 3: "CYX", 4: "BCYX"}
"""What the axes of a tensor file mean, by their number."""


@dataclass(frozen=True)
class Layout:
    """Letters and sizes of axes: Y and X are the plane, C and S the channels, every other one is batch."""

    axes: str
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.axes) != len(self.sizes):
            raise UsageError(
                f"axes '{self.axes}' name {len(self.axes)} axes, but the shape {self.sizes} has {len(self.sizes)}."
            )
        repeated = [letter for letter in "YXCS" if self.axes.count(letter) > 1]
        if "Y" not in self.axes or "X" not in self.axes or repeated or not self.axes.isalpha():
            raise UsageError(f"axes '{self.axes}' must name Y and X once each, and C and S at most once.")

    @property
    def channel_axes(self) -> tuple[int, ...]:
        """Positions of C and S, in this order."""
        return tuple(self.axes.index(letter) for letter in "CS" if letter in self.axes)

    @property
    def batch_axes(self) -> tuple[int, ...]:
        """Positions of the axes that are neither plane nor channels."""
        return tuple(i for i, letter in enumerate(self.axes) if letter not in "YXCS")

    @property
    def n_batch(self) -> int:
        """Number of planes that are worked on one after another."""
        return math.prod(self.sizes[i] for i in self.batch_axes)

    @property
    def n_channels(self) -> int:
        """Number of channels."""
        return math.prod(self.sizes[i] for i in self.channel_axes)

    @property
    def _order(self) -> tuple[int, ...]:
        return (*self.batch_axes, *self.channel_axes, self.axes.index("Y"), self.axes.index("X"))

    def to_planes(self, values: torch.Tensor) -> torch.Tensor:
        """Sort a tensor of shape `sizes` into (B, C, H, W)."""
        ordered = values.permute(self._order)
        return ordered.reshape(self.n_batch, self.n_channels, *ordered.shape[-2:]).contiguous()

    def from_planes(self, values: torch.Tensor) -> torch.Tensor:
        """Sort (B, C, H, W) back into the axes of this layout; height and width may be new."""
        sizes = [self.sizes[i] for i in self._order[:-2]]
        ordered = values.reshape(*sizes, *values.shape[-2:])
        inverse = sorted(range(len(self._order)), key=self._order.__getitem__)
        return ordered.permute(inverse).contiguous()

    def resized(self, **sizes: int) -> Layout:
        """Give the same axes, some of them with another size."""
        return Layout(self.axes, tuple(sizes.get(a, n) for a, n in zip(self.axes, self.sizes, strict=True)))

    def with_channels(self, n_channels: int) -> Layout:
        """Give the layout of a result with another number of channels.

        Colors cease to be colors: S becomes C, and a single channel has no axis at all.
        """
        if n_channels == self.n_channels:
            return self
        kept = [(a, n) for a, n in zip(self.axes, self.sizes, strict=True) if a not in "CS"]
        if n_channels > 1:
            place = self.axes.index("C") if "C" in self.axes else self.axes.index("Y")
            place -= int("S" in self.axes[:place])
            kept.insert(place, ("C", n_channels))
        return Layout("".join(a for a, _ in kept), tuple(n for _, n in kept))

    def squeezed(self, keep: str = "YX") -> Layout:
        """Leave out axes of size one, as TIFF readers do, except those named in `keep`."""
        kept = [(a, n) for a, n in zip(self.axes, self.sizes, strict=True) if n > 1 or a in keep]
        return Layout("".join(a for a, _ in kept), tuple(n for _, n in kept))

    def planes_last(self) -> Layout:
        """Order the axes as batch, C, Y, X, S unless they already end in a plane or its samples."""
        if self.axes.endswith(("YX", "YXS", "SYX")):
            return self
        order = [*self.batch_axes, *(self.axes.index(a) for a in "CYXS" if a in self.axes)]
        return Layout("".join(self.axes[i] for i in order), tuple(self.sizes[i] for i in order))


def tensor_axes(path: object, n_axes: int) -> str:
    """Give the letters of the axes of a tensor; refuse by `MalformedInputError` other than 2, 3 or 4 axes."""
    if n_axes not in TENSOR_AXES:
        raise MalformedInputError(
            f"'{path}' should hold a tensor of 2, 3 or 4 axes (YX, CYX, BCYX), but it has {n_axes}; name them, "
            'for instance axes="TZCYX".'
        )
    return TENSOR_AXES[n_axes]
