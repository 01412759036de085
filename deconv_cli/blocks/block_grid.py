"""A grid of blocks over the result: each one writes whole units of the file, and no other writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deconv_cli.blocks.axis_cut import AxisCut, Interval
from deconv_cli.io.layout import Layout
from deconv_cli.io.regions import Region
from deconv_cli.vocabulary import Size


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        number: which one, counted along the last axis first.
        region: of the result, along its axes.
        batch: the part of each axis that is neither space nor channels.
        core: the image pixels that it writes, along each axis of space.
        data: what they are restored from.
    """

    number: int
    region: Region
    batch: tuple[slice, ...]
    core: tuple[Interval, ...]
    data: tuple[Interval, ...]

    @property
    def n_batch(self) -> int:
        """Images that are restored at once."""
        return math.prod(part.stop - part.start for part in self.batch)


@dataclass(frozen=True)
class BlockGrid:
    """All blocks of one result.

    Attributes:
        layout: axes and sizes of the result as it is stored.
        cuts: how each axis of space is cut.
        core: samples of a block along each axis of the result; the last one may be smaller.
        halo: image pixels around the core, along each axis of space, that data are read for.
        halo_at_frame: the same of blocks that reach an end of the frame along an axis that is cut; no narrower.
    """

    layout: Layout
    cuts: tuple[AxisCut, ...]
    core: Size
    halo: Size
    halo_at_frame: Size

    @property
    def n_along(self) -> Size:
        """Blocks along each axis of the result."""
        return tuple(-(-n // core) for n, core in zip(self.layout.sizes, self.core, strict=True))

    @property
    def n_blocks(self) -> int:
        """Blocks altogether."""
        return math.prod(self.n_along)

    @property
    def is_cut(self) -> tuple[bool, ...]:
        """Whether blocks meet within an image, along each axis of space."""
        return tuple(self.n_along[self.layout.axes.index(letter)] > 1 for letter in self.layout.space)

    def block(self, number: int) -> Block:
        """Lay out one block."""
        region = []
        for n, core, count in reversed([*zip(self.layout.sizes, self.core, self.n_along, strict=True)]):
            number, place = divmod(number, count)
            region.append(slice(place * core, min((place + 1) * core, n)))
        region.reverse()
        return self._of_region(tuple(region))

    def _of_region(self, region: Region) -> Block:
        places = [part.start // core for part, core in zip(region, self.core, strict=True)]
        number = 0
        for place, count in zip(places, self.n_along, strict=True):
            number = number * count + place
        along = [region[self.layout.axes.index(letter)] for letter in self.layout.space]
        core = tuple((part.start, part.stop) for part in along)
        return Block(number, region, tuple(region[i] for i in self.layout.batch_axes), core, self.data_around(core))

    def data_around(self, core: Sequence[Interval]) -> tuple[Interval, ...]:
        """Give the data to restore image pixels from, along each axis of space."""
        inside, at_frame = (
            tuple(cut.data_around(c, h) for cut, c, h in zip(self.cuts, core, halo, strict=True))
            for halo in (self.halo, self.halo_at_frame)
        )
        ends = zip(self.cuts, core, inside, strict=True)
        reaches_frame = any(c != (0, cut.n_image) and not cut.is_closed(data) for cut, c, data in ends)
        return at_frame if reaches_frame else inside

    def order(self) -> list[int]:
        """List all blocks, those of one size and one boundary after another: they share an inverse."""
        return sorted(range(self.n_blocks), key=self._kind)

    def _kind(self, number: int) -> tuple[object, ...]:
        block = self.block(number)
        ends = [(cut.pads_of(data), cut.is_closed(data)) for cut, data in zip(self.cuts, block.data, strict=True)]
        return block.n_batch, [stop - start for start, stop in block.data], ends, number

    @property
    def largest_data(self) -> Size:
        """The largest size of the data of any block."""
        lengths = []
        for cut, letter, halo in zip(self.cuts, self.layout.space, self.halo_at_frame, strict=True):
            axis = self.layout.axes.index(letter)
            starts = range(0, self.layout.sizes[axis], self.core[axis])
            ends = [(start, min(start + self.core[axis], self.layout.sizes[axis])) for start in starts]
            parts = [cut.data_around(core, halo) for core in ends]
            lengths.append(max(stop - start for start, stop in parts))
        return tuple(lengths)


def divide(length: int, largest: int, unit: int) -> int:
    """Cut a length into equal parts of whole units, none longer than `largest` but for a single unit."""
    n_units = -(-length // unit)
    n_parts = 1 if largest >= length else -(-n_units // max(largest // unit, 1))
    return -(-n_units // n_parts) * unit


def core_of(layout: Layout, unit: Size, largest: Sequence[int]) -> Size:
    """Choose how many samples a block has along each axis of the result.

    Args:
        layout: of the result.
        unit: samples along each axis that are written together.
        largest: samples of a block along each axis of space, at most.
    """
    core = []
    for letter, n, one in zip(layout.axes, layout.sizes, unit, strict=True):
        if letter in layout.space:
            core.append(divide(n, largest[layout.space.index(letter)], one))
        else:
            core.append(n if letter in "CS" else min(one, n))
    return tuple(core)
