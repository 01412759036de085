"""One axis of space cut into blocks: which data a part of the estimate is restored from, and what lies outside them."""

from __future__ import annotations

from dataclasses import dataclass

from deconv_cli.operators.circulant import next_fast_size

Interval = tuple[int, int]
"""Start and stop along one axis; beyond its ends where the image repeats itself."""


@dataclass(frozen=True)
class AxisCut:
    """One axis of the whole: output pixels, which are the data, and the image pixels that they are made of.

    Data m are made of image pixels m − before to m − before + n_taps − 1. Where data end with the frame, what lies
    outside is given by the boundary rule of the whole; where they are cut, nothing is assumed, and the estimate reaches
    beyond them as far as the kernel does. There the padding is 0, as torch's `valid`.

    Attributes:
        n_data: output pixels.
        n_taps: taps of the kernel.
        pads: image pixels that the rule added before the first pixel and behind the last.
        wraps: whether the image repeats itself along this axis, so that all ends are cut.
    """

    n_data: int
    n_taps: int
    pads: tuple[int, int]
    wraps: bool = False

    @property
    def n_image(self) -> int:
        """Image pixels."""
        return self.n_data + self.n_taps - 1 - sum(self.pads)

    @property
    def shift(self) -> int:
        """What is added to the place of an image pixel to get that of the output pixel that lies on it."""
        return self.pads[0] - (self.n_taps - 1) // 2

    def data_around(self, core: Interval, halo: int) -> Interval:
        """Give the data to restore image pixels from, with as many as `halo` around, and some more for a fast FFT."""
        start, stop = core[0] - halo + self.shift, core[1] + halo + self.shift
        if not self.wraps:
            start, stop = max(start, 0), min(stop, self.n_data)
        reach = self.n_taps - 1
        n_wanted = next_fast_size(stop - start + reach) - reach
        if self.wraps:
            return start, start + n_wanted
        stop = min(start + n_wanted, self.n_data)
        return max(stop - n_wanted, 0), stop

    def pads_of(self, data: Interval) -> tuple[int, int]:
        """Give the padding of a part of the data: that of the whole where they end with the frame, else 0."""
        if self.wraps:
            return 0, 0
        return self.pads[0] if data[0] == 0 else 0, self.pads[1] if data[1] == self.n_data else 0

    def is_closed(self, data: Interval) -> bool:
        """Tell whether a part of the data is cut at both ends, so that what lies outside matters to neither."""
        return self.wraps or (data[0] > 0 and data[1] < self.n_data)

    def image_of(self, data: Interval) -> Interval:
        """Give the image pixels that are restored from a part of the data."""
        before, after = self.pads_of(data)
        return data[0] - self.pads[0] + before, data[1] + self.n_taps - 1 - self.pads[0] - after

    def runs(self, data: Interval) -> list[slice]:
        """Give the parts of the stored axis, one after another, that a part of the data is read from."""
        found, start = [], data[0]
        while start < data[1]:
            place = start % self.n_data
            stop = min(self.n_data, place + data[1] - start)
            found.append(slice(place, stop))
            start += stop - place
        return found
