"""How arrays in files of one format are read and written by parts; listed in `parts.REGION_FORMATS`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from deconv_cli.io.codec import WriteRequest
from deconv_cli.io.layout import Layout
from deconv_cli.io.regions.region_source import RegionSource
from deconv_cli.io.regions.region_target import RegionTarget


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
