"""One array as a file stores it: its samples, the letters of its axes, and its metadata."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from deconv_cli.io.samples import Samples, dtype_name

METERS = {
    **dict.fromkeys(("inch", "in"), Fraction(254, 10**4)),
    **dict.fromkeys(("centimeter", "cm"), Fraction(1, 100)),
    **{"m": Fraction(1), "mm": Fraction(1, 10**3), "nm": Fraction(1, 10**9), "pm": Fraction(1, 10**12)},
    # The sign for micro and the Greek letter, the letter and the sign for an angstrom.
    **dict.fromkeys(("\u00b5m", "\u03bcm", "um"), Fraction(1, 10**6)),
    **dict.fromkeys(("\u00c5", "\u212b"), Fraction(1, 10**10)),
}
"""Length of each unit of a resolution, in the words of TIFF and OME."""


@dataclass(frozen=True)
class Resolution:
    """Pixels per unit of length along the columns (`x`) and the rows (`y`); the inverse of the pixel size."""

    x: Fraction
    y: Fraction
    unit: str
    """A key of `METERS`, or empty where the unit is not known."""
    plane_distance: Fraction | None = None
    """Distance of two planes along Z, in the same unit."""

    def transposed(self) -> Resolution:
        """Exchange rows and columns."""
        return replace(self, x=self.y, y=self.x)

    def per(self, unit: str) -> Resolution:
        """Give the same resolution in another unit, if the unit is known."""
        if not self.unit:
            return self
        factor = METERS[unit] / METERS[self.unit]
        distance = None if self.plane_distance is None else self.plane_distance / factor
        return Resolution(self.x * factor, self.y * factor, unit, distance)


@dataclass(frozen=True)
class Metadata:
    """What a file says about its image besides the samples. Every field may be empty."""

    resolution: Resolution | None = None
    icc_profile: bytes | None = None
    exif: bytes | None = None
    """A whole EXIF block with the leading marker, as Pillow gives and takes it."""
    channel_names: tuple[str, ...] = ()
    native: dict[str, Any] = field(default_factory=dict)
    """What only files of the same format can hold, by the names that notes use."""
    native_of_channels: dict[str, Any] = field(default_factory=dict)
    """Likewise, but true only as long as the channels are the same."""
    flavor: str = ""
    """`imagej` or `ome` for TIFF files of these kinds, `ome-zarr` for such a Zarr."""
    unsupported: tuple[str, ...] = ()
    """Names of what was found but is never carried over."""


def pyramid_notes(n_smaller: int) -> tuple[str, ...]:
    """Say so where a file holds the same image at smaller resolutions too."""
    if not n_smaller:
        return ()
    return (f"the file is a pyramid, of which the full resolution was read; smaller levels left out: {n_smaller}",)


def zeros_of(shape: tuple[int, ...], dtype: np.dtype[Any] | str) -> npt.NDArray[np.generic]:
    """Give an array of zeros that takes the memory of one: it stands for samples that are elsewhere."""
    return np.broadcast_to(np.zeros((), dtype), shape)


@dataclass(frozen=True, eq=False)
class StoredImage:
    """What a codec reads from a file, and what it writes into one."""

    samples: Samples
    """As stored, of shape `shape`, in native byte order, the alpha sample included."""
    axes: str = ""
    """One letter for each axis: Y and X the plane, C and S channels, others batch; empty where the file names none."""
    metadata: Metadata = field(default_factory=Metadata)
    record: dict[str, Any] | None = None
    """What an earlier run wrote into the file, or what is to be written into it."""
    alpha: str | None = None
    """`unassociated` or `associated` where the last sample of axis S is an alpha channel."""
    orientation: int = 1
    """EXIF orientation, 1 to 8."""
    notes: tuple[str, ...] = ()
    """What was done to the samples, a sentence each."""
    n_levels: int = 1
    """How many resolutions are to be written, each half the one before."""
    jpeg_table: tuple[int, ...] | None = None
    """Of a JPEG, the 64 divisors of its luma's coefficients, row by row from the lowest frequency."""

    def noting(self, *notes: str) -> StoredImage:
        """Give the same with further notes."""
        return replace(self, notes=(*self.notes, *notes))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape as stored."""
        return tuple(int(size) for size in self.samples.shape)

    @property
    def dtype(self) -> str:
        """The sample type by its NumPy name."""
        return dtype_name(self.samples)
