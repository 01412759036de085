"""A large array that is being written a part at a time, by one process or by several."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deconv_cli.io.codec import Array, WriteRequest
from deconv_cli.io.folders import spelled
from deconv_cli.io.layout import Layout
from deconv_cli.io.regions.region_source import Region, RegionSource


@dataclass(frozen=True, eq=False)
class RegionTarget(ABC):
    """An array whose parts are written in any order, each once or again, and which can be read when all is there.

    Until `finish` nothing at `path` can be read as a whole result. All writers are told the same by this record, and
    can be sent to other processes. Two writers never meet in one unit, as long as each writes whole units.

    Attributes:
        path: where the result will be.
        shape: of the whole, in the order of `axes`.
        dtype: NumPy name of the sample type.
        axes: a letter for each axis.
        unit: samples along each axis that are written together, or not at all: the chunk or shard of the format.
        notes: what could not be carried over from the source, and what became of its axes.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: str
    axes: str
    unit: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @property
    def n_bytes(self) -> int:
        """Bytes of all samples, before they are compressed."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def spelled_path(self) -> str:
        """The path as it was typed: an address with both of its slashes."""
        return spelled(self.path)

    @abstractmethod
    def create(self) -> bool:
        """Make room for the result beside `path`, unless it is there already; gives whether it was.

        What differs from new room in more than its samples is replaced.

        Raises:
            FileAccessError: no permission, or the disk has too little room.
        """

    @abstractmethod
    def is_begun(self) -> bool:
        """Tell whether there is such room, and `finish` has not made a result of it yet."""

    @abstractmethod
    def write(self, region: Region, samples: Array) -> None:
        """Write a part that covers whole units, or ends with the array; writing it again does no harm.

        Raises:
            FileAccessError: it cannot be written.
        """

    @abstractmethod
    def read(self, region: Region) -> Array:
        """Read a part of the result in the making, or of that in its place; raises `DeconvError` if it is damaged."""

    def check_units(self, region: Region) -> None:
        """Hold a writer to whole units: two that share one would overwrite each other's samples without an error.

        Raises:
            ValueError: the part begins or ends within a unit; a bug of the caller.
        """
        axes = zip(region, self.unit, self.shape, strict=True)
        if any(part.start % unit or (part.stop % unit and part.stop != size) for part, unit, size in axes):
            raise ValueError(f"parts of '{self.path}' cover whole units of {self.unit}, but {region} does not")

    @abstractmethod
    def finish(self, record: dict[str, Any]) -> None:
        """Put the whole result at `path`, with the record of the run; all parts are there.

        Raises:
            FileAccessError: it cannot be written.
        """

    @abstractmethod
    def discard(self) -> None:
        """Remove what was written, if anything."""


class RegionFormat(ABC):
    """What a codec cannot: an array that is never in memory as a whole. It has the name of its codec."""

    @abstractmethod
    def open(self, path: Path, member: str | int | None) -> RegionSource:
        """Open a file, or the array called `member` of it.

        Raises:
            UsageError: no such array.
            InputRefusedError: damaged, unsafe, or stored in a way that is not read by parts.
        """

    @property
    def is_read_only(self) -> bool:
        """True where files are read by parts and never written so."""
        return type(self).plan is RegionFormat.plan

    def plan(self, request: WriteRequest, layout: Layout, source: RegionSource) -> RegionTarget:
        """Decide how a result is stored; nothing is written yet.

        Args:
            request: what is to be written.
            layout: axes and sizes of the result, in the order of its source.
            source: what it is computed from, whose metadata it keeps.
        """
        raise NotImplementedError
