"""Where a part of an array lies in a file that holds the array row by row."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

from deconv_cli.io.regions.region_source import Region


def contiguous_runs(shape: tuple[int, ...], region: Region) -> tuple[int, Iterator[int]]:
    """Give the length of the runs of samples that a part is made of, and where each begins, counted in samples.

    Reading and writing run by run takes no more memory than the part; of a map of the file into memory the system
    keeps, and writes back, whole stretches around every row.
    """
    axis = len(shape) - 1
    while axis > 0 and region[axis] == slice(0, shape[axis]):
        axis -= 1
    inner = math.prod(shape[axis + 1 :])

    def starts() -> Iterator[int]:
        for lead in product(*(range(part.start, part.stop) for part in region[:axis])):
            place = 0
            for index, n in zip(lead, shape, strict=False):
                place = place * n + index
            yield (place * shape[axis] + region[axis].start) * inner

    return (region[axis].stop - region[axis].start) * inner, starts()
