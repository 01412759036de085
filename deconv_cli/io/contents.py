"""What a codec finds in a file, before the axes are sorted into batch, channels and plane."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    Samples: TypeAlias = npt.NDArray[np.generic] | torch.Tensor


@dataclass(frozen=True)
class Resolution:
    """Pixels per unit of length along the columns (`x`) and the rows (`y`)."""

    x: Fraction
    y: Fraction
    unit: str
    """`inch`, `centimeter`, or `none` where the unit is told elsewhere or not at all."""

    def transposed(self) -> Resolution:
        """Exchange rows and columns."""
        return Resolution(self.y, self.x, self.unit)

    def per_meter(self) -> tuple[float, float] | None:
        """Give pixels per meter along x and y, or None without a unit."""
        scale = {"inch": 1 / 0.0254, "centimeter": 100.0}.get(self.unit)
        return None if scale is None else (float(self.x) * scale, float(self.y) * scale)


@dataclass(frozen=True)
class Metadata:
    """What a picture says about itself besides its samples. Every field may be absent."""

    resolution: Resolution | None = None
    icc_profile: bytes | None = None
    exif: bytes | None = None
    """A whole EXIF block in TIFF form, without the leading `Exif` marker."""
    texts: dict[str, str] = field(default_factory=dict)
    """Free texts by keyword, for instance `Artist` or a PNG keyword."""
    imagej: dict[str, Any] = field(default_factory=dict)
    ome: dict[str, Any] = field(default_factory=dict)
    """OME fields under tifffile's names: `PhysicalSizeX`, `Channel`, `Name`, ..."""
    png_chunks: tuple[tuple[bytes, bytes], ...] = ()
    """PNG chunks that only PNG can hold, such as `gAMA`: name and content."""
    white_is_zero: bool = False
    comment: bytes | None = None
    """A JPEG comment."""
    unsupported: tuple[str, ...] = ()
    """Names of what was found but is never carried."""


@dataclass(frozen=True, eq=False)
class Contents:
    """One array out of a file, with the letters of its axes."""

    samples: Samples
    """As stored, of shape `shape`, in native byte order, the alpha sample included."""
    axes: str
    dtype: str
    metadata: Metadata = field(default_factory=Metadata)
    record: dict[str, Any] | None = None
    alpha: str | None = None
    """`unassociated` or `associated` where the last sample of axis S is an alpha channel."""
    orientation: int = 1
    """EXIF orientation, 1 to 8."""
    flavor: str = "plain"
    """`imagej` or `ome` for TIFF files of these kinds."""
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape as stored."""
        return tuple(int(size) for size in self.samples.shape)
