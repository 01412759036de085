"""A result cut into blocks: each block writes whole units of the file, and no other block writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deconv_cli.io.layout import Layout
from deconv_cli.operators.circulant import next_fast_size
from deconv_cli.vocabulary import Size

Interval = tuple[int, int]
"""Start and stop along one axis."""


@dataclass(frozen=True)
class AxisCut:
    """One axis of the whole: the data, and the image pixels that make them.

    Image pixels m − before to m − before + n_taps − 1 make datum m. At the frame the boundary rule of the whole gives
    what lies outside. At a cut nothing is assumed: the padding is 0, as torch's `valid`, and the estimate reaches
    beyond the data as far as the kernel does.

    Attributes:
        n_data: samples of the data.
        n_taps: taps of the kernel.
        pads: image pixels that the rule adds before the first pixel and behind the last.
    """

    n_data: int
    n_taps: int
    pads: tuple[int, int]

    @property
    def n_image(self) -> int:
        """Image pixels."""
        return self.n_data + self.n_taps - 1 - sum(self.pads)

    @property
    def shift(self) -> int:
        """The place of the datum that lies on an image pixel, minus the place of that pixel."""
        return self.pads[0] - (self.n_taps - 1) // 2

    def data_around(self, core: Interval, halo: int) -> Interval:
        """Return the data around image pixels: at least `halo` on each side, and more where the FFT is faster."""
        start, stop = core[0] - halo + self.shift, core[1] + halo + self.shift
        start, stop = max(start, 0), min(stop, self.n_data)
        reach = self.n_taps - 1
        n_wanted = next_fast_size(stop - start + reach) - reach
        stop = min(start + n_wanted, self.n_data)
        return max(stop - n_wanted, 0), stop

    def pads_of(self, data: Interval) -> tuple[int, int]:
        """Return the padding of a part of the data: that of the whole at the frame, 0 at a cut."""
        return self.pads[0] if data[0] == 0 else 0, self.pads[1] if data[1] == self.n_data else 0

    def is_closed(self, data: Interval) -> bool:
        """Return whether both ends of a part of the data are cuts."""
        return data[0] > 0 and data[1] < self.n_data

    def image_of(self, data: Interval) -> Interval:
        """Return the image pixels that are restored from a part of the data."""
        before, after = self.pads_of(data)
        return data[0] - self.pads[0] + before, data[1] + self.n_taps - 1 - self.pads[0] - after


@dataclass(frozen=True)
class Block:
    """One block; its number counts along the last axis first.

    Attributes:
        batch: the part of each axis that is neither space nor channels.
        core: the image pixels that the block writes, along each axis of space.
        data: the data that they are restored from.
    """

    number: int
    batch: tuple[slice, ...]
    core: tuple[Interval, ...]
    data: tuple[Interval, ...]

    @property
    def n_batch(self) -> int:
        """Images that are restored together."""
        return math.prod(part.stop - part.start for part in self.batch)


@dataclass(frozen=True)
class BlockGrid:
    """All blocks of one result.

    Attributes:
        layout: axes and sizes of the result as it is stored.
        cuts: how each axis of space is cut.
        core: samples of a block along each axis of the result; the last block may be smaller.
        halo: image pixels around the core that are restored too, along each axis of space.
        halo_at_frame: the halo of blocks that reach the frame along an axis that is cut; at least as wide.
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
        """Number of blocks."""
        return math.prod(self.n_along)

    @property
    def is_cut(self) -> tuple[bool, ...]:
        """Whether blocks meet within an image, along each axis of space."""
        return tuple(n > 1 for n in self.along_space(self.n_along))

    def along_space(self, values: Sequence[int]) -> Size:
        """Keep the values that belong to the axes of space."""
        return tuple(values[self.layout.axes.index(letter)] for letter in self.layout.space)

    def block(self, number: int) -> Block:
        """Lay out one block."""
        region, rest = list[slice](), number
        for n, length, count in reversed([*zip(self.layout.sizes, self.core, self.n_along, strict=True)]):
            rest, place = divmod(rest, count)
            region.insert(0, slice(place * length, min((place + 1) * length, n)))
        along = [region[self.layout.axes.index(letter)] for letter in self.layout.space]
        core = tuple((part.start, part.stop) for part in along)
        batch = tuple(region[axis] for axis in self.layout.batch_axes)
        return Block(number, batch, core, self.data_around(core))

    def data_around(self, core: Sequence[Interval]) -> tuple[Interval, ...]:
        """Return the data that image pixels are restored from, along each axis of space."""
        inside, at_frame = (
            tuple(cut.data_around(c, h) for cut, c, h in zip(self.cuts, core, halo, strict=True))
            for halo in (self.halo, self.halo_at_frame)
        )
        ends = zip(self.cuts, core, inside, strict=True)
        reaches_frame = any(c != (0, cut.n_image) and not cut.is_closed(data) for cut, c, data in ends)
        return at_frame if reaches_frame else inside

    def order(self) -> list[int]:
        """List all blocks so that those of one size and one boundary follow one another: they share an inverse."""
        return sorted(range(self.n_blocks), key=self._kind)

    def _kind(self, number: int) -> tuple[object, ...]:
        block = self.block(number)
        ends = [(cut.pads_of(data), cut.is_closed(data)) for cut, data in zip(self.cuts, block.data, strict=True)]
        return block.n_batch, [stop - start for start, stop in block.data], ends, number

    @property
    def largest_data(self) -> Size:
        """The largest size of the data of any block."""
        lengths = []
        sizes, cores = self.along_space(self.layout.sizes), self.along_space(self.core)
        for cut, n, core, halo in zip(self.cuts, sizes, cores, self.halo_at_frame, strict=True):
            parts = [cut.data_around((start, min(start + core, n)), halo) for start in range(0, n, core)]
            lengths.append(max(stop - start for start, stop in parts))
        return tuple(lengths)


def choose_core(layout: Layout, unit: Size, largest: Sequence[int]) -> Size:
    """Choose how many samples a block has along each axis of the result.

    Args:
        layout: of the result.
        unit: samples along each axis that are written together.
        largest: samples of a block along each axis of space, at most.
    """
    core = []
    for letter, n, one in zip(layout.axes, layout.sizes, unit, strict=True):
        if letter in layout.space:
            core.append(_divide(n, largest[layout.space.index(letter)], one))
        else:
            core.append(n if letter in "CS" else min(one, n))
    return tuple(core)


def _divide(length: int, largest: int, unit: int) -> int:
    """Cut a length into equal parts of whole units, none longer than `largest` unless it is a single unit."""
    n_units = -(-length // unit)
    n_parts = 1 if largest >= length else -(-n_units // max(largest // unit, 1))
    return min(-(-n_units // n_parts) * unit, length)
