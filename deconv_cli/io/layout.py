"""The axes and samples of a file as tensors of batch, channels and axes of space, and back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from deconv_cli.errors import MalformedInputError, UntrustworthyResultError, UsageError
from deconv_cli.io import limits
from deconv_cli.vocabulary import AXES_BY_SHAPE, counted

if TYPE_CHECKING:
    import torch

Array: TypeAlias = npt.NDArray[np.generic]

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
                f"axes '{self.axes}' name {counted(len(self.axes), 'axis', 'axes')}, but the shape "
                f"{self.sizes} has {len(self.sizes)}."
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
        """Order the axes as batch, C, space, S, unless the last ones are already Y and X, with or without S."""
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


def rename_batch(axes: str, allowed: str) -> str:
    """Rename batch axes to T or Z if only certain letters are allowed, as long as these two are free."""
    free = [letter for letter in "TZ" if letter not in axes]
    return "".join(free.pop(0) if letter not in allowed and free else letter for letter in axes)


def letters_of_tensor(n_axes: int, dimensions: int | None = None) -> str | None:
    """Choose the letters of the axes of a tensor, as CYX; `None` for unsupported numbers of axes.

    If the number of axes of space is `None`, one axis is a signal, two to four are pictures, and five are stacks.
    """
    found = AXES_BY_SHAPE.get(n_axes) if dimensions is None else dimensions
    if found is None or not found <= n_axes <= found + len(_BATCH_AND_CHANNELS):
        return None
    return (_BATCH_AND_CHANNELS + SPACE[-found:])[-n_axes:]


def tensor_axes(path: object, n_axes: int) -> str:
    """Choose the letters of the axes of a tensor; raises `MalformedInputError` if their number is not supported."""
    letters = letters_of_tensor(n_axes)
    if letters is None:
        raise MalformedInputError(
            f"'{path}' should hold a tensor of one to five axes (X, YX, CYX, BCYX, BCZYX), but it has {n_axes}; name "
            'them, for instance axes="TZCYX".'
        )
    return letters


def dimensions_of(axes: str) -> int:
    """Count the axes of space of images whose kernel is unknown: 2 for planes, 1 for lines."""
    return 2 if "Y" in axes or "X" not in axes else 1


Samples: TypeAlias = "Array | torch.Tensor"
"""An array of NumPy or torch."""

_WIDER = {"uint16": "int32", "uint32": "int64", "bool": "uint8"}

UNDERSTOOD = {
    *("bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64"),
    *("float16", "bfloat16", "float32", "float64"),
}
"""NumPy names of the sample types that are understood."""


def dtype_name(samples: Samples) -> str:
    """Name a sample type as NumPy does, for instance `uint16`."""
    if isinstance(samples, np.ndarray):
        return samples.dtype.newbyteorder("=").name
    return str(samples.dtype).removeprefix("torch.")


def working_bytes(shape: Iterable[int], dtype: np.dtype[np.generic]) -> int:
    """Compute the bytes of samples as `as_real_tensor` converts them."""
    return limits.array_bytes(shape, np.dtype(_WIDER.get(dtype.name, dtype)).itemsize)


def as_real_tensor(path: Path, samples: Samples) -> torch.Tensor:
    """Convert samples to a dense real tensor on the CPU.

    uint16 and uint32 become int32 and int64, because torch supports few operations on them; bool becomes uint8.

    Raises:
        MalformedInputError: complex, quantized, sparse or otherwise not real numbers, or of size zero.
    """
    import torch

    name = working_dtype(path, dtype_name(samples), samples.shape)
    if isinstance(samples, np.ndarray):
        return torch.from_numpy(np.require(samples, np.dtype(name), ["C_CONTIGUOUS", "WRITEABLE"]))
    return samples.detach().to(getattr(torch, name)).contiguous()


def as_real_array(path: Path, samples: Samples) -> Array:
    """Convert samples as `as_real_tensor` does, but without torch; bfloat16, which NumPy lacks, becomes float32."""
    name = working_dtype(path, dtype_name(samples), samples.shape)
    if isinstance(samples, np.ndarray):
        return np.require(samples, np.dtype(name), ["C_CONTIGUOUS"])
    tensor = as_real_tensor(path, samples)
    converted: Array = (tensor.float() if name == "bfloat16" else tensor).numpy()
    return converted


def working_dtype(path: Path, name: str, shape: Sequence[int]) -> str:
    """Name the type to which `as_real_tensor` converts samples of a type and shape; raises the same errors."""
    if name not in UNDERSTOOD:
        raise MalformedInputError(f"'{path}' should hold real numbers, but its samples are {name}; convert it first.")
    if 0 in shape:
        raise MalformedInputError(f"'{path}' holds no samples: its shape is {tuple(shape)}.")
    return _WIDER.get(name, name)


def check_finite(path: Path, tensor: torch.Tensor, what: str) -> None:
    """Raise `MalformedInputError` for NaN and Inf in a tensor, which the message calls `what`."""
    if _are_finite(tensor):
        return
    bad = ~tensor.isfinite()
    first = tuple(int(i) for i in np.unravel_index(int(bad.flatten().byte().argmax()), tensor.shape))
    raise MalformedInputError(
        f"'{path}' should hold finite numbers, but {int(bad.sum())} of {tensor.numel()} {what} samples are NaN or Inf, "
        f"the first at index {first}; replace them first."
    )


def _are_finite(values: torch.Tensor) -> bool:
    """Check only the least and the largest sample, which takes a ninth of the time of checking each."""
    if not values.is_floating_point() or values.numel() == 0:
        return True
    return all(bool(end.isfinite()) for end in values.aminmax())


@dataclass(frozen=True, eq=False)
class ConvertedSamples:
    """Samples in the type of the file, the number of clipped samples, and notes on the conversion."""

    samples: npt.NDArray[np.generic]
    n_clipped: int = 0
    notes: tuple[str, ...] = ()


def convert_samples(values: torch.Tensor, dtype: str) -> ConvertedSamples:
    """Convert a floating result of any shape on the CPU to the sample type of a file.

    Whole numbers are rounded half to even; samples outside the range of the type become its nearest end.

    Raises:
        UntrustworthyResultError: some values are NaN or Inf.
    """
    if not _are_finite(values):
        n_bad = int((~values.isfinite()).sum())
        raise UntrustworthyResultError(
            f"{n_bad} of {values.numel()} samples of the result are NaN or Inf, so nothing was written; the problem "
            "is too ill-conditioned with these settings; try a larger lam."
        )
    source = str(values.dtype).removeprefix("torch.")
    target = np.dtype(dtype)
    if np.issubdtype(target, np.integer):
        lowest, highest = (float(end) for end in (np.iinfo(target).min, np.iinfo(target).max))
        values, done = values.round(), f"rounded to {dtype}"
    elif target.itemsize >= values.element_size():
        return ConvertedSamples(values.numpy().astype(target, copy=False))
    else:
        highest = float(np.finfo(target).max)
        lowest, done = -highest, f"rounded from {source} to {dtype} (output_dtype={source} keeps all digits)"
    n_clipped = int(((values < lowest) | (values > highest)).count_nonzero())
    percent = 100 * n_clipped / values.numel()
    clipped = f"{counted(n_clipped, 'sample')} ({percent:.3g} %) clipped to {lowest:g} to {highest:g}"
    samples = values.clamp(lowest, highest).numpy().astype(target)
    return ConvertedSamples(samples, n_clipped, (f"{done}, {clipped if n_clipped else 'no sample clipped'}",))
